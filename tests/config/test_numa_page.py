"""docs/numa.md says what is so: its manifests, its table of arguments, its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from berthmaster.api.names import PLACEMENT
from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import policy_from_manifest
from berthmaster.api.settings.numa import NumaSettings
from berthmaster.concerns.numa import CONCERN, reasons
from berthmaster_operator.metrics import Metrics as OperatorMetrics
from berthmaster_webhook.metrics import Metrics as WebhookMetrics

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "numa.md").read_text(encoding="utf-8")
BEFORE, NOW, POD_BEFORE, POD_NOW = (
    yaml.safe_load(it) for it in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
)


def known(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as they are understood, defaults left out."""
    return NumaSettings.model_validate(settings).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )


def test_policy_is_understood_to_the_last_field() -> None:
    policy = policy_from_manifest(NOW)

    told = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
    assert told == NOW["spec"]


def test_sample_is_the_policy_of_the_page() -> None:
    sample = PROJECT / "config" / "samples" / "placement-policy-old-topology-scheduler.yaml"

    assert str(sample.relative_to(PROJECT)) in TEXT
    assert yaml.safe_load(sample.read_text(encoding="utf-8")) == NOW


def test_policy_says_what_the_old_configuration_said() -> None:
    (profile,) = BEFORE["profiles"]
    arguments = profile["pluginConfig"][0]["args"]
    spec = NOW["spec"]

    assert known(arguments) == arguments
    assert spec["schedulerNames"] == [profile["schedulerName"]]
    strategy = spec["concerns"]["numa"]["scoringStrategy"]
    assert strategy == arguments["scoringStrategy"]


def test_every_argument_in_the_table_is_a_field_with_that_default() -> None:
    table = TEXT.split("### Where each argument went")[1].split("**`books`**")[0]
    rows = re.findall(r"^\| `([a-zA-Z.]+?)(?:\[\])?` \| ([^|]+) \|", table, re.M)
    found = {name: default.strip(" `") for name, default in rows}
    defaults = NumaSettings().to_wire()

    assert len(found) == 9
    for name, default in found.items():
        value: Any = defaults
        for key in name.split("."):
            value = value[key]
        if name == "scoringStrategy.resources":
            value = ", ".join(f"{it['name']} {it['weight']}" for it in value)
        assert (str(value).lower() if isinstance(value, bool) else str(value)) == default


def test_pods_differ_by_scheduler_and_annotation_and_ask_the_same() -> None:
    policy = policy_from_manifest(NOW)
    old, new = (pod_from_manifest(it) for it in (POD_BEFORE, POD_NOW))

    assert old.asked_scheduler in policy.spec.scheduler_names
    assert (new.asked_scheduler, new.annotations) == ("default-scheduler", {PLACEMENT: "required"})
    assert CONCERN.request(old, policy.spec) == CONCERN.request(new, policy.spec) is not None


def test_every_word_of_a_refusal_is_explained() -> None:
    table = TEXT.split("## Why a pod waits")[1].split("## ")[0]

    assert set(re.findall(r"^\| `([a-z ]+)` \|", table, re.M)) == set(reasons.LABELS)


def test_every_metric_is_there() -> None:
    named = set(re.findall(r"`(berthmaster_\w+?)(?:\{[^`]*)?` \|", TEXT))
    registries = (OperatorMetrics().registry, WebhookMetrics().registry)
    counters = {
        f"{it.name}_total" if it.type == "counter" else it.name
        for registry in registries
        for it in registry.collect()
    }

    assert len(named) == 8
    assert named <= counters


def test_words_are_those_that_pods_get() -> None:
    eight, ten = (("cpu", 8 * 10**9),), (("cpu", 10 * 10**9),)
    zones = [(0, {"cpu": 6 * 10**9}), (1, {"cpu": 8 * 10**9})]
    told = reasons.cannot_align(
        reasons.CONTAINER, "worker", ten, zones, nearest=(1, eight), limits=eight
    )

    assert f"    {told.text}\n" in TEXT
