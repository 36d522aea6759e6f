"""What the doctor says of names that a policy gives the XPU dialects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster.cli.doctor import accelerators, gating
from berthmaster.cli.doctor.facts import Unread
from berthmaster.cli.doctor.findings import State
from cli.test_doctor import FACTS, found
from support.fake_api import Json

POLICIES = (gating.DROP, gating.ANNOTATED, "berthmaster-gate-selected")


def naming(name: str, priority: int = 0, **names: str) -> Json:
    spec: dict[str, Any] = {"priority": priority, "concerns": {"xpu": {"names": names}}}
    return {"metadata": {"name": name}, "spec": spec}


def knowing(*keys: str) -> dict[tuple[str, str], Any]:
    """The API server's policies, with these names in them."""
    expression = f"key in [{', '.join(map(repr, keys))}]"
    policy = {"spec": {"matchConditions": [{"name": "n", "expression": expression}]}}
    return {(gating.MUTATING, name): policy for name in POLICIES}


def test_default_names_need_no_words() -> None:
    assert found(accelerators.check, FACTS) == []
    plain = {"metadata": {"name": "plain"}, "spec": {}}
    assert found(accelerators.check, replace(FACTS, policies=(plain,))) == []


def test_policies_that_cannot_be_read_are_told_of_elsewhere() -> None:
    for policies in (None, Unread("no right"), ({"metadata": {"name": "odd"}, "spec": 5},)):
        assert found(accelerators.check, replace(FACTS, policies=policies)) == []


def test_names_that_the_api_server_does_not_know_are_told() -> None:
    other = naming(
        "gpushare", shareMemory="aliyun.com/gpu-mem", shareIndex="ALIYUN_COM_GPU_MEM_IDX"
    )
    known = knowing(*DEFAULT_NAMES.written_keys, *DEFAULT_NAMES.asked)
    facts = replace(FACTS, policies=(other,), admission_objects=known)

    drop, annotated, selected = found(accelerators.check, facts, State.WARNING)

    assert drop == (
        "berthmaster-drop-allocation does not know ALIYUN_COM_GPU_MEM_IDX: is believed when a user "
        "makes it up"
    )
    assert annotated.startswith(
        "berthmaster-gate-annotated does not know aliyun.com/gpu-mem: while"
    )
    assert selected.startswith("berthmaster-gate-selected does not know aliyun.com/gpu-mem: while")

    assert found(accelerators.check, replace(facts, admission_objects={}), State.WARNING) == [
        *(drop, annotated, selected)
    ]
    everything = knowing(
        *DEFAULT_NAMES.written_keys,
        *DEFAULT_NAMES.asked,
        *("aliyun.com/gpu-mem", "ALIYUN_COM_GPU_MEM_IDX"),
    )
    assert found(accelerators.check, replace(facts, admission_objects=everything)) == []


def test_names_without_effect_are_told() -> None:
    policies = (naming("first", 5, cards="a.b/c"), naming("second", cards="d.e/f"))
    known = knowing(*DEFAULT_NAMES.written_keys, *DEFAULT_NAMES.asked, "a.b/c")

    (words,) = found(
        accelerators.check,
        replace(FACTS, policies=policies, admission_objects=known),
        State.WARNING,
    )

    assert words.startswith("second: spec.concerns.xpu.names has no effect")
