"""For which pods the API server calls the webhook, by the conditions in config/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel

from berthmaster.api.names import EXEMPT_NAMESPACES, GATE, PLACEMENT

FILE = Path(__file__).parents[2] / "config/base/admission/mutating-webhook-configuration.yaml"
(HOOK,) = yaml.safe_load(FILE.read_text(encoding="utf-8"))["webhooks"]


def is_called(pod: dict[str, Any]) -> bool:
    environment = cel.NewEnv(variables={"object": cel.Type.DYN})
    return all(
        environment.compile(it["expression"]).eval(data={"object": pod}).value()
        for it in HOOK["matchConditions"]
    )


def make(gates: tuple[str, ...] = (), annotations: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"metadata": {}, "spec": {}}
    if gates:
        found["spec"]["schedulingGates"] = [{"name": it} for it in gates]
    if annotations:
        found["metadata"]["annotations"] = annotations
    return found


@pytest.mark.parametrize(
    "pod",
    [
        make(),
        make(gates=("kueue.x-k8s.io/admission",)),
        make(annotations={PLACEMENT: "off"}),
        make(annotations={"blockio.kubernetes.io/resources": "{}"}),
    ],
    ids=["plain", "gated-by-another", "off", "asks-and-does-not-opt-in"],
)
def test_who_did_not_opt_in_is_never_sent(pod: dict[str, Any]) -> None:
    assert not is_called(pod)


@pytest.mark.parametrize(
    "pod",
    [
        make(gates=(GATE,)),
        make(gates=("another", GATE)),
        make(annotations={PLACEMENT: "preferred"}),
        make(annotations={PLACEMENT: "observe"}),
    ],
    ids=["gated", "gated-twice", "preferred", "observe"],
)
def test_who_opted_in_is_sent(pod: dict[str, Any]) -> None:
    assert is_called(pod)


def test_creations_are_never_refused_and_system_namespaces_are_left_out() -> None:
    (rule,) = HOOK["rules"]
    (selected,) = HOOK["namespaceSelector"]["matchExpressions"]

    assert (HOOK["failurePolicy"], HOOK["timeoutSeconds"]) == ("Ignore", 1)
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
    assert (selected["operator"], selected["values"]) == ("NotIn", list(EXEMPT_NAMESPACES))
