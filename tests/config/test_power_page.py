"""docs/power.md says what is so: its manifests, its tables, its numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from berthmaster.api.policy import PlacementPolicySpec, policy_from_manifest
from berthmaster.api.power_models import PowerModelSpec, power_model_from_manifest
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import PowerRule
from berthmaster.concerns.power.models import curve_of_model
from berthmaster.concerns.power.placement import compare
from berthmaster.concerns.power.request import read_request
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.settings import read_settings
from support.builders import make_pod

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "power.md").read_text(encoding="utf-8")
NOW, BEFORE, MODEL, _ = (yaml.safe_load(it) for it in re.findall(r"```yaml\n(.*?)```", TEXT, re.S))


def sample(name: str) -> Any:
    return yaml.safe_load((PROJECT / "config" / "samples" / name).read_text(encoding="utf-8"))


def test_policy_is_understood_to_the_last_field() -> None:
    policy = policy_from_manifest(NOW)

    told = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
    assert told == NOW["spec"]


def test_samples_are_those_of_the_page() -> None:
    assert sample("placement-policy-old-wao-scheduler.yaml") == NOW
    assert sample("power-model.yaml") == MODEL


def test_model_gives_the_watts_of_the_page() -> None:
    curve = curve_of_model(power_model_from_manifest(MODEL).spec, 8 * NANO)

    assert curve is not None
    assert (curve.watts[0], curve.watts[-1]) == (145, 410)


@pytest.mark.parametrize("form", ["exponential", "polynomial"])
def test_other_forms_of_the_page_are_understood(form: str) -> None:
    found = re.search(rf"`({form}: .*?\}})`", TEXT)
    assert found is not None

    curve = curve_of_model(PowerModelSpec.model_validate(yaml.safe_load(found[1])), 8 * NANO)

    assert curve is not None
    assert curve.gaps == ()


def test_every_argument_of_before_has_its_place() -> None:
    for argument in BEFORE["profiles"][0]["pluginConfig"][0]["args"]:
        assert f"| `{argument}` |" in TEXT


def test_every_rule_is_in_the_table() -> None:
    for rule in PowerRule:
        assert re.search(rf"^\| `{rule}`", TEXT, re.M), rule


def test_worked_example_is_so() -> None:
    request = read_request(make_pod(cpu="1"), PlacementPolicySpec())

    scores = compare(np.array([4.0, 4.03, 14.0, -1.0]), request)

    assert scores.tolist() == pytest.approx([100.0, 100.0, 33.6, 50.0])


def test_flags_and_metrics_exist() -> None:
    settings = read_settings(["--power-unverified=10.0.100.0/24"], {})

    assert settings.power_unverified == ("10.0.100.0/24",)
    metrics = Metrics()
    metrics.count_fetch("usage", "ok")
    assert b"berthmaster_power_fetches_total" in metrics.render()
