"""What is reported of a pod."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster_sandbox.kubelet.statuses import (
    ContainerSnapshot,
    Phase,
    PodSnapshot,
    build_status,
    find_phase,
    recall,
    state_of,
)

NOW = "2026-01-01T00:00:00Z"


def container(name: str = "c", **changes: Any) -> ContainerSnapshot:
    return ContainerSnapshot(name=name, image="i", **changes)


def running(name: str = "c", *, ready: bool = True) -> ContainerSnapshot:
    return container(name, phase=Phase.RUNNING, is_ready=ready, is_started=True, started_at=NOW)


def ended(name: str = "c", *, code: int = 0, final: bool = True) -> ContainerSnapshot:
    return container(name, phase=Phase.TERMINATED, exit_code=code, is_final=final)


def pod(*mains: ContainerSnapshot, **changes: Any) -> PodSnapshot:
    return PodSnapshot(
        pod_ip="10.244.1.2", host_ip="127.0.0.1", start_time=NOW, mains=mains, **changes
    )


def conditions(snapshot: PodSnapshot, known: dict[str, Any] | None = None) -> dict[str, str]:
    status = build_status(known or {}, snapshot, now=NOW)
    return {item["type"]: item["status"] for item in status["conditions"]}


@pytest.mark.parametrize(
    ("snapshot", "phase"),
    [
        pytest.param(pod(container()), "Pending", id="creating"),
        pytest.param(pod(running(), container("d")), "Pending", id="one is still created"),
        pytest.param(pod(running(ready=False)), "Running", id="unready runs"),
        pytest.param(
            pod(container(last_state={"terminated": {}})), "Running", id="crash loop runs"
        ),
        pytest.param(pod(ended(code=1, final=False)), "Running", id="about to restart"),
        pytest.param(pod(ended(), running("d")), "Running", id="one goes on"),
        pytest.param(pod(ended(), ended("d")), "Succeeded", id="all ended well"),
        pytest.param(pod(ended(), ended("d", code=2)), "Failed", id="one failed"),
        pytest.param(pod(container(), inits=(running("i"),)), "Pending", id="init runs"),
        pytest.param(pod(container(), inits=(ended("i", code=1),)), "Failed", id="init failed"),
        pytest.param(
            pod(running(), inits=(running("i"),), sidecar_names=frozenset({"i"})),
            "Running",
            id="sidecar runs",
        ),
        pytest.param(
            pod(ended(), inits=(ended("i", code=143),), sidecar_names=frozenset({"i"})),
            "Succeeded",
            id="sidecar was stopped",
        ),
        pytest.param(pod(running(), is_failed=True), "Failed", id="deadline"),
    ],
)
def test_phase(snapshot: PodSnapshot, phase: str) -> None:
    assert find_phase(snapshot) == phase


def test_pod_is_ready_with_all_containers() -> None:
    assert conditions(pod(running(), running("d")))["Ready"] == "True"
    assert conditions(pod(running(), running("d", ready=False)))["Ready"] == "False"


def test_finished_pod_is_not_ready() -> None:
    assert conditions(pod(ended()))["Ready"] == "False"


def test_readiness_gate_holds_the_pod_back() -> None:
    gated: dict[str, Any] = {"spec": {"readinessGates": [{"conditionType": "example.com/x"}]}}
    open_gate = {
        **gated,
        "status": {"conditions": [{"type": "example.com/x", "status": "True"}]},
    }

    assert conditions(pod(running()), gated)["Ready"] == "False"
    assert conditions(pod(running()), gated)["ContainersReady"] == "True"
    assert conditions(pod(running()), open_gate)["Ready"] == "True"


def test_scheduler_condition_is_left_alone() -> None:
    assert "PodScheduled" not in conditions(pod(running()))


def test_transition_time_stays_while_value_stays() -> None:
    before = "2025-01-01T00:00:00Z"
    known = {
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": before},
                {"type": "ContainersReady", "status": "False", "lastTransitionTime": before},
            ]
        }
    }

    status = build_status(known, pod(running()), now=NOW)

    times = {item["type"]: item["lastTransitionTime"] for item in status["conditions"]}
    assert times["Ready"] == before
    assert times["ContainersReady"] == NOW


def test_state_has_one_kind() -> None:
    assert list(state_of(container())) == ["waiting"]
    assert list(state_of(running())) == ["running"]
    assert list(state_of(ended(code=3))) == ["terminated"]
    assert state_of(ended(code=3))["terminated"]["exitCode"] == 3


def test_running_container_counts_as_ended_by_its_kubelet() -> None:
    reported = {"name": "c", "restartCount": 2, "state": {"running": {"startedAt": NOW}}}

    snapshot = recall({"name": "c"}, {"status": {"containerStatuses": [reported]}})

    assert snapshot.restarts == 3
    assert snapshot.last_state["terminated"]["exitCode"] == 137


def test_waiting_container_is_recalled_as_it_was() -> None:
    last = {"terminated": {"exitCode": 1}}
    reported = {"name": "c", "restartCount": 2, "state": {"waiting": {}}, "lastState": last}

    snapshot = recall({"name": "c"}, {"status": {"containerStatuses": [reported]}})

    assert (snapshot.restarts, snapshot.last_state) == (2, last)


def test_unknown_container_begins_afresh() -> None:
    snapshot = recall({"name": "c", "image": "i"}, {"status": {}})

    assert (snapshot.restarts, snapshot.phase) == (0, Phase.WAITING)
