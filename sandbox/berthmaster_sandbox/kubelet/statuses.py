"""What the kubelet reports about a pod, built from what its containers do.

Pure: `build_status` takes snapshots and returns the `status` to patch. It leaves the condition
PodScheduled alone, which is the scheduler's.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_OURS = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")


class Phase(enum.Enum):
    """Where a container is between two looks at it."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSnapshot:
    """A container as it is now. Times are in Kubernetes' format, exit codes as of a process."""

    name: str
    image: str
    phase: Phase = Phase.WAITING
    reason: str = "ContainerCreating"
    message: str = ""
    exit_code: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    container_id: str = ""
    restarts: int = 0
    is_started: bool = False
    is_ready: bool = False
    # Nothing will start it again.
    is_final: bool = False
    last_state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSnapshot:
    """A pod as it is now; `inits` and `sidecars` in the order of the pod's init containers."""

    pod_ip: str | None
    host_ip: str
    start_time: str
    inits: tuple[ContainerSnapshot, ...] = ()
    mains: tuple[ContainerSnapshot, ...] = ()
    sidecar_names: frozenset[str] = frozenset()
    reason: str = ""
    message: str = ""
    # Set when the pod ended for another reason than its containers'.
    is_failed: bool = False


def now_text() -> str:
    """Return the present time as Kubernetes writes it: UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_status(pod: Mapping[str, Any], snapshot: PodSnapshot, *, now: str) -> dict[str, Any]:
    """Return the pod's status, without the fields and conditions that others own.

    A condition keeps its `lastTransitionTime` from the pod's present status while its value does.
    """
    known = {
        condition["type"]: condition
        for condition in (pod.get("status") or {}).get("conditions") or ()
    }
    status: dict[str, Any] = {
        "phase": find_phase(snapshot),
        "hostIP": snapshot.host_ip,
        "hostIPs": [{"ip": snapshot.host_ip}],
        "startTime": snapshot.start_time,
        "conditions": [
            _with_transition(condition, known, now)
            for condition in _conditions(pod, snapshot, known)
        ],
        "containerStatuses": [_container_status(item) for item in snapshot.mains],
        "reason": snapshot.reason or None,
        "message": snapshot.message or None,
    }
    if snapshot.inits:
        status["initContainerStatuses"] = [_container_status(item) for item in snapshot.inits]
    if snapshot.pod_ip is not None:
        status["podIP"] = snapshot.pod_ip
        status["podIPs"] = [{"ip": snapshot.pod_ip}]
    return status


def find_phase(snapshot: PodSnapshot) -> str:
    """Return the phase by Kubernetes' rules: what never ran is Pending, what may run is Running."""
    if snapshot.is_failed:
        return "Failed"
    failed_init = any(
        item.is_final and item.exit_code != 0
        for item in snapshot.inits
        if item.name not in snapshot.sidecar_names
    )
    if failed_init:
        return "Failed"
    if not are_initialized(snapshot):
        return "Pending"
    if all(item.is_final for item in snapshot.mains):
        clean = all(item.exit_code == 0 for item in snapshot.mains)
        return "Succeeded" if clean else "Failed"
    if any(item.phase is Phase.WAITING and not item.last_state for item in snapshot.mains):
        return "Pending"
    return "Running"


def are_initialized(snapshot: PodSnapshot) -> bool:
    """Say whether each init container has succeeded and each sidecar has started.

    Once a main container has begun this stays true, whatever becomes of the sidecars.
    """
    if any(item.phase is not Phase.WAITING or item.last_state for item in snapshot.mains):
        return True
    return all(
        item.is_started
        if item.name in snapshot.sidecar_names
        else item.phase is Phase.TERMINATED and item.exit_code == 0
        for item in snapshot.inits
    )


def state_of(snapshot: ContainerSnapshot) -> dict[str, Any]:
    """Return the container's `state`, with exactly one of Kubernetes' three kinds."""
    if snapshot.phase is Phase.WAITING:
        waiting = {"reason": snapshot.reason}
        return {"waiting": waiting | ({"message": snapshot.message} if snapshot.message else {})}
    if snapshot.phase is Phase.RUNNING:
        return {"running": {"startedAt": snapshot.started_at}}
    terminated: dict[str, Any] = {
        "exitCode": snapshot.exit_code,
        "reason": snapshot.reason,
        "startedAt": snapshot.started_at,
        "finishedAt": snapshot.finished_at,
        "containerID": snapshot.container_id,
    }
    if snapshot.message:
        terminated["message"] = snapshot.message
    return {"terminated": terminated}


def recall(container: Mapping[str, Any], pod: Mapping[str, Any]) -> ContainerSnapshot:
    """Return the snapshot to begin with, given what an earlier kubelet reported of the container.

    Processes end with their kubelet, so a container that was running counts as ended by it.
    """
    fresh = ContainerSnapshot(name=container["name"], image=container.get("image") or "")
    status = pod.get("status") or {}
    reported = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    previous = next((item for item in reported if item["name"] == fresh.name), None)
    if previous is None:
        return fresh
    restarts = int(previous.get("restartCount") or 0)
    state = previous.get("state") or {}
    last_state = previous.get("lastState") or {}
    if "running" in state:
        last_state = {
            "terminated": {
                "exitCode": 137,
                "reason": "ContainerStatusUnknown",
                "message": "the process ended with its kubelet",
                "startedAt": state["running"].get("startedAt"),
                "finishedAt": now_text(),
                "containerID": previous.get("containerID") or "",
            }
        }
    elif "terminated" in state:
        last_state = state
    ended = last_state is not previous.get("lastState") and bool(last_state)
    return replace(fresh, restarts=restarts + (1 if ended else 0), last_state=last_state)


def _container_status(item: ContainerSnapshot) -> dict[str, Any]:
    status: dict[str, Any] = {
        "name": item.name,
        "image": item.image,
        "imageID": "",
        "ready": item.is_ready,
        "started": item.is_started,
        "restartCount": item.restarts,
        "state": state_of(item),
        "lastState": dict(item.last_state),
    }
    if item.container_id:
        status["containerID"] = item.container_id
    return status


def _conditions(
    pod: Mapping[str, Any], snapshot: PodSnapshot, known: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    is_done = find_phase(snapshot) in ("Succeeded", "Failed")
    unready = [item.name for item in snapshot.mains if not item.is_ready]
    sidecars = [item for item in snapshot.inits if item.name in snapshot.sidecar_names]
    unready += [item.name for item in sidecars if not item.is_ready]
    if is_done:
        reason = "PodCompleted" if find_phase(snapshot) == "Succeeded" else "PodFailed"
        containers_ready = _condition("ContainersReady", ok=False, reason=reason)
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        containers_ready = _condition(
            "ContainersReady", ok=False, reason="ContainersNotReady", message=message
        )
    else:
        containers_ready = _condition("ContainersReady", ok=True)
    ready = containers_ready | {"type": "Ready"}
    missing = _missing_gates(pod, known)
    if containers_ready["status"] == "True" and missing:
        ready = _condition(
            "Ready",
            ok=False,
            reason="ReadinessGatesNotReady",
            message=f"conditions that are not true: [{' '.join(missing)}]",
        )
    initialized = _initialized(snapshot)
    has_address = snapshot.pod_ip is not None and not is_done
    return [_condition(_OURS[0], ok=has_address), initialized, containers_ready, ready]


def _initialized(snapshot: PodSnapshot) -> dict[str, Any]:
    if are_initialized(snapshot):
        return _condition("Initialized", ok=True)
    waiting = [item.name for item in snapshot.inits if item.phase is not Phase.TERMINATED]
    return _condition(
        "Initialized",
        ok=False,
        reason="ContainersNotInitialized",
        message=f"containers with incomplete status: [{' '.join(waiting)}]",
    )


def _missing_gates(pod: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    gates: Iterable[Mapping[str, Any]] = (pod.get("spec") or {}).get("readinessGates") or ()
    types = [gate["conditionType"] for gate in gates]
    return [name for name in types if (known.get(name) or {}).get("status") != "True"]


def _condition(name: str, *, ok: bool, reason: str = "", message: str = "") -> dict[str, Any]:
    condition: dict[str, Any] = {"type": name, "status": "True" if ok else "False"}
    # Explicit nulls take an old reason away when the condition is merged.
    condition["reason"] = reason or None
    condition["message"] = message or None
    return condition


def _with_transition(
    condition: dict[str, Any], known: Mapping[str, Mapping[str, Any]], now: str
) -> dict[str, Any]:
    before = known.get(condition["type"]) or {}
    same = before.get("status") == condition["status"] and before.get("lastTransitionTime")
    return condition | {"lastTransitionTime": same or now}
