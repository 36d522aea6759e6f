"""The gate for clusters without MutatingAdmissionPolicy: what the policies of config/ do, done here.

The API server decides by match conditions which pods come; the path says what is to be done, so an
answer depends on nothing but the request, and every replica gives it, leader or not, synced or not:

    /gate/annotated                                    put the gate on
    /gate/selected/MODE/PRIORITY/SCHEDULERS/POLICY     stamp, take an old scheduler's name over, gate
    /gate/drop                                         drop what only we write and a user made up

PRIORITY is `p5` or `m5` for 5 and -5 (a path may hold no sign), SCHEDULERS `named` where the policy
takes schedulers' names over, else `any`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.admission import allow
from berthmaster.api.json_pointer import escape
from berthmaster.api.objects import decode_pod
from berthmaster.api.policy import Mode
from berthmaster_webhook.admission import MalformedReviewError, read_review

Operations = list[dict[str, Any]]

_GATED_MODES = (Mode.REQUIRED, Mode.BIND)
_PRIORITY = re.compile(r"[pm]\d{1,7}")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class UnknownGateError(Exception):
    """Say which path asks for something that we do not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What a path says of the PlacementPolicy that takes the pod over."""

    policy: str
    mode: Mode
    priority: int
    takes_schedulers_over: bool


def answer(path: str, body: bytes) -> bytes:
    """Return the body of the answer to a review that came by `/gate/<path>`.

    Raises:
        UnknownGateError: the path is none of ours.
        MalformedReviewError: the body is no review of a pod.
    """
    act = _read_path(path)
    request = read_review(body)
    try:
        decode_pod(request.object)
        pod = _decode(request.object)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedReviewError(f"request.object is not a Pod: {error}") from error
    if not (isinstance(pod.get("metadata"), dict) and isinstance(pod.get("spec"), dict)):
        raise MalformedReviewError("request.object is not a Pod: it needs metadata and spec")
    if act == "drop":
        operations = drop(pod)
    elif isinstance(act, Selected):
        operations = select(pod, act)
    else:
        operations = gate(pod)
    return allow(request.uid, operations)


def gate(pod: dict[str, Any]) -> Operations:
    """Return what puts the gate on, nothing if it is there."""
    gates = pod["spec"].get("schedulingGates")
    if any(it.get("name") == names.GATE for it in gates or ()):
        return []
    ours = {"name": names.GATE}
    if gates is None:
        return [{"op": "add", "path": "/spec/schedulingGates", "value": [ours]}]
    return [{"op": "add", "path": "/spec/schedulingGates/-", "value": ours}]


def select(pod: dict[str, Any], chosen: Selected) -> Operations:
    """Return what makes the pod the policy's; a policy that had it before and is outranked is undone."""
    stamp = {
        names.PLACEMENT: str(chosen.mode),
        names.POLICY: chosen.policy,
        names.POLICY_PRIORITY: str(chosen.priority),
    }
    annotations = pod["metadata"].get("annotations")
    scheduler = pod["spec"].get("schedulerName", names.DEFAULT_SCHEDULER)
    replaced = (annotations or {}).get(names.REPLACED_SCHEDULER)
    operations: Operations = []
    if chosen.takes_schedulers_over and scheduler != names.DEFAULT_SCHEDULER:
        stamp[names.REPLACED_SCHEDULER] = scheduler
        operations.append(_set_scheduler(names.DEFAULT_SCHEDULER))
    elif not chosen.takes_schedulers_over and replaced is not None:
        operations.append(_set_scheduler(replaced))
        operations.append({"op": "remove", "path": _at(names.REPLACED_SCHEDULER)})
    if annotations is None:
        operations.insert(0, {"op": "add", "path": "/metadata/annotations", "value": stamp})
    else:
        operations[:0] = [
            {"op": "add", "path": _at(key), "value": value} for key, value in stamp.items()
        ]
    waits = chosen.mode in _GATED_MODES or (
        chosen.mode is Mode.PREFERRED and _asks_for_devices(pod)
    )
    return operations + (gate(pod) if waits else _ungate(pod))


def drop(pod: dict[str, Any]) -> Operations:
    """Return what takes off what only we write; the keys of device plugins leave a note behind."""
    annotations = pod["metadata"].get("annotations") or {}
    forged = [key for key in names.FORGEABLE if key in annotations]
    operations: Operations = [{"op": "remove", "path": _at(key)} for key in forged]
    if names.ALLOCATION in annotations:
        operations.append({"op": "remove", "path": _at(names.ALLOCATION)})
    if forged:
        operations.append({"op": "add", "path": _at(names.DROPPED), "value": ",".join(forged)})
    return operations


def _asks_for_devices(pod: dict[str, Any]) -> bool:
    containers = pod["spec"].get("containers") or ()
    limits = ((it.get("resources") or {}).get("limits") or {} for it in containers)
    return any(name in found for found in limits for name in names.DEVICE_RESOURCES)


def _ungate(pod: dict[str, Any]) -> Operations:
    gates = [it.get("name") for it in pod["spec"].get("schedulingGates") or ()]
    if names.GATE not in gates:
        return []
    return [{"op": "remove", "path": f"/spec/schedulingGates/{gates.index(names.GATE)}"}]


def _read_path(path: str) -> Selected | str:
    if path in ("annotated", "drop"):
        return path
    parts = path.split("/")
    if len(parts) == 5 and parts[0] == "selected":
        _, mode, priority, schedulers, policy = parts
        if (
            mode in set(Mode)
            and _PRIORITY.fullmatch(priority)
            and schedulers in ("named", "any")
            and policy
        ):
            sign = -1 if priority[0] == "m" else 1
            return Selected(
                policy=policy,
                mode=Mode(mode),
                priority=sign * int(priority[1:]),
                takes_schedulers_over=schedulers == "named",
            )
    raise UnknownGateError(f"/gate/{path[:200]} is not known")


def _set_scheduler(name: str) -> dict[str, Any]:
    return {"op": "add", "path": "/spec/schedulerName", "value": name}


def _at(key: str) -> str:
    return "/metadata/annotations/" + escape(key)
