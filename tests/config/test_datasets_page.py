"""docs/datasets.md says what is so: its manifests, its table of settings, its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from berthmaster.api.names import DATASET, PLACEMENT
from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import policy_from_manifest
from berthmaster.api.settings.dataset import DatasetSettings
from berthmaster.concerns.dataset import CONCERN, reasons
from berthmaster.concerns.dataset.inventory import DatasetState
from berthmaster.concerns.dataset.request import MOST_DATASETS
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.settings import read_settings

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "datasets.md").read_text(encoding="utf-8")
BEFORE, NOW, POD_BEFORE, POD_NOW, TRAINING = (
    yaml.safe_load(it) for it in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
)


def test_policies_are_understood_to_the_last_field() -> None:
    for manifest in (NOW, TRAINING):
        policy = policy_from_manifest(manifest)
        told = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
        selector = told.get("namespaceSelector")
        if selector:
            selector.pop("matchExpressions", None)
        assert told == manifest["spec"]


def test_old_pods_are_taken_over_and_ask_the_same_as_new_ones() -> None:
    policy = policy_from_manifest(NOW)
    (profile,) = BEFORE["profiles"]
    old, new = (pod_from_manifest(it) for it in (POD_BEFORE, POD_NOW))
    assert profile["schedulerName"] == old.asked_scheduler
    assert old.asked_scheduler in policy.spec.scheduler_names
    assert new.annotations == {PLACEMENT: "preferred"}
    assert CONCERN.request(old, policy.spec) == CONCERN.request(new, policy.spec) is not None


def test_sample_is_the_policy_of_the_page() -> None:
    sample = PROJECT / "config" / "samples" / "placement-policy-old-cache-aware-scheduler.yaml"
    assert str(sample.relative_to(PROJECT)) in TEXT
    assert yaml.safe_load(sample.read_text(encoding="utf-8")) == NOW


def test_options_of_the_operator_and_its_component_are_as_told() -> None:
    for value in re.findall(r"`--dataset-placements=([a-z]+)`", TEXT):
        assert read_settings([f"--dataset-placements={value}"], {}).dataset_placements == value
    assert f"`{read_settings([], {}).cache_namespace}`" in TEXT
    folder = PROJECT / "config" / "components" / "dataset-placements"
    patch = yaml.safe_load((folder / "operator-patch.yaml").read_text())
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    environment = {variable["name"]: variable["value"]}
    assert read_settings([], environment).dataset_placements == "written"
    role = yaml.safe_load((folder / "placements-cluster-role.yaml").read_text())
    (rule,) = role["rules"]
    assert (rule["resources"], rule["verbs"]) == (["datasetsinternal/status"], ["patch"])


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = TEXT.split("`spec.concerns.dataset`")[1].split("### Modes")[0]
    rows = re.findall(r"^\| `([a-zA-Z]+)` \| ([^|]+) \|", table, re.M)
    found = {name: default.strip(" `") for name, default in rows}
    wire: dict[str, Any] = DatasetSettings().to_wire()
    tiers = wire.pop("tiers")
    assert found.pop("tiers") == ", ".join(f"{key} {it}" for key, it in tiers.items())
    assert found.pop("overload") == "see below"
    assert found == {
        name: str(it).lower() if isinstance(it, bool) else str(it) for name, it in wire.items()
    }


def test_states_words_and_names_are_those_of_the_program() -> None:
    table = TEXT.split("| state |")[1].split("Where it is told")[0]
    states = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.M))
    assert states == {str(it) for it in DatasetState} - {"usable"}
    assert reasons.not_here(["x"], []).group in TEXT
    assert DATASET in TEXT
    assert f"the first {MOST_DATASETS} count" in TEXT
    page = Metrics()
    page.count_datasets({"usable": 1}, 0)
    rendered = page.render().decode()
    for name in re.findall(r"`(berthmaster_[a-z_]+)", TEXT):
        assert name in rendered
