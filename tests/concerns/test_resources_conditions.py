"""A node's conditions keep pods away before the node lifecycle controller has made taints of them."""

from __future__ import annotations

import numpy as np
import pytest

from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.resources import CONCERN
from support.builders import make_node, make_pod, make_taint

READY, PRESSED = {"Ready": "True"}, "True"
EVERYTHING = [{"operator": "Exists"}]


def refusal(conditions: dict[str, str], tolerations: list[dict[str, str]], *taints: str) -> str:
    columns = CONCERN.new_columns()
    columns.resize(1)
    node = make_node(conditions=conditions, taints=[make_taint(it) for it in taints])
    columns.write_node(0, node, None)
    pod = make_pod(tolerations=tolerations)
    request = CONCERN.request(pod, PlacementPolicySpec())
    assert request is not None
    code = int(CONCERN.filter(columns, np.array([0], dtype=np.intp), request)[0])
    return CONCERN.explain(columns, 0, code, request, "node").text if code else ""


def named(key: str) -> str:
    return f"node(s) had untolerated taint {{node.kubernetes.io/{key}: }}"


@pytest.mark.parametrize(
    ("conditions", "key"),
    [
        ({"Ready": "False"}, "not-ready"),
        ({"Ready": "Unknown"}, "unreachable"),
        ({**READY, "MemoryPressure": PRESSED}, "memory-pressure"),
        ({**READY, "DiskPressure": PRESSED}, "disk-pressure"),
        ({**READY, "PIDPressure": PRESSED}, "pid-pressure"),
        ({**READY, "NetworkUnavailable": PRESSED}, "network-unavailable"),
    ],
)
def test_a_bad_condition_is_a_taint(conditions: dict[str, str], key: str) -> None:
    assert refusal(conditions, []) == named(key)
    assert refusal(conditions, [{"key": f"node.kubernetes.io/{key}", "operator": "Exists"}]) == ""
    assert refusal(conditions, EVERYTHING) == ""


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        READY,
        {**READY, "MemoryPressure": "False", "DiskPressure": "Unknown", "PIDPressure": "False"},
        {**READY, "NetworkUnavailable": "False"},
        {**READY, "example.com/Rusty": "True"},
    ],
)
def test_other_conditions_keep_nobody_away(conditions: dict[str, str]) -> None:
    assert refusal(conditions, []) == ""


def test_tolerating_eviction_is_not_tolerating_placement() -> None:
    # What the admission plugin DefaultTolerationSeconds gives to every pod.
    defaults = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute"}
        for key in ("not-ready", "unreachable")
    ]
    placement = {**defaults[0], "effect": "NoSchedule"}

    assert refusal({"Ready": "False"}, defaults) == named("not-ready")
    assert refusal({"Ready": "False"}, [placement]) == named("not-ready")
    assert refusal({"Ready": "False"}, [*defaults, placement]) == ""


def test_a_taint_outlives_its_condition() -> None:
    assert refusal(READY, [], "node.kubernetes.io/not-ready") == named("not-ready")
