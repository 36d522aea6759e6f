"""docs/numa.md says what is so: its manifests, its table of arguments, its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from berthmaster.api.policy import NumaSettings, policy_from_manifest
from berthmaster.concerns.numa import reasons

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "numa.md").read_text(encoding="utf-8")
BEFORE, NOW = (yaml.safe_load(it) for it in re.findall(r"```yaml\n(.*?)```", TEXT, re.S))


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


def test_words_are_those_that_pods_get() -> None:
    states = (reasons.UNRELIABLE, reasons.MISSING, reasons.STALE)
    words = " | ".join(reasons.plain(code).group for code in states)
    zones = [(0, {"cpu": 6 * 10**9}), (1, {"cpu": 8 * 10**9})]
    told = reasons.cannot_align(reasons.CONTAINER, "worker", (("cpu", 10 * 10**9),), zones)

    assert words in TEXT
    assert told.text in TEXT
