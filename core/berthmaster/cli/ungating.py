"""`ungate`: take our gate off pods without a decision. Break glass.

Owns the patch and its repetition when somebody changed the pod meanwhile. Only our own gate goes; those
of others, and everything else on the pod, stay. kube-scheduler then places the pod by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import ObjectMeta, SchedulingGate, Struct
from berthmaster.cli import words
from berthmaster.cli.output import Report, Table
from berthmaster.cluster.client import (
    ApiError,
    Client,
    ClusterError,
    JsonObject,
    OutcomeUnknownError,
    PatchKind,
)
from berthmaster.placement.affinity import remove_gate

MEANING = (
    "an ungated pod goes where kube-scheduler sends it: what it asks of disks is counted where it "
    "lands, but was not checked before"
)
Confirm = Callable[[list[str]], bool]

_ATTEMPTS = 4
_AT_ONCE = 8


class Outcome(StrEnum):
    """What became of one pod."""

    UNGATED = "ungated"
    NO_GATE = "carries no gate of ours"
    GONE = "is gone"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ungated:
    """The result for one pod; `left` are gates of others that still hold it."""

    key: str
    outcome: Outcome
    left: tuple[str, ...] = ()
    error: str = ""


class _GatedSpec(Struct, frozen=True):
    priority: int | None = None
    scheduling_gates: list[SchedulingGate] | None = None


class _GatedPod(Struct, frozen=True):
    metadata: ObjectMeta
    spec: _GatedSpec = _GatedSpec()


class _Page(msgspec.Struct):
    items: list[_GatedPod] | None = None


_PAGE = msgspec.json.Decoder(_Page)


async def ungate_pod(
    client: Client, namespace: str, name: str, *, is_dry_run: bool = False
) -> Ungated:
    """Take our gate off one pod, over conflicts and lost answers.

    Raises ClusterError: no access, no answer; and ApiError 404 when there is no such pod.
    """
    key = f"{namespace}/{name}"
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    is_answer_lost = False
    for attempt in range(1, _ATTEMPTS + 1):
        pod = await client.get(path)
        operations = remove_gate(pod, names.GATE)
        if not operations:
            # Where an answer was lost, this is its effect; else the placer was faster.
            outcome = Outcome.UNGATED if is_answer_lost else Outcome.NO_GATE
            return Ungated(key=key, outcome=outcome, left=_gates(pod))
        uid = {"op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"]}
        query = {"dryRun": "All"} if is_dry_run else None
        try:
            stored = await client.patch(path, [uid, *operations], PatchKind.JSON, query)
        except ApiError as error:
            if not (error.is_conflict or error.is_invalid) or attempt == _ATTEMPTS:
                raise
        except OutcomeUnknownError:
            is_answer_lost = True
            if attempt == _ATTEMPTS:
                raise
        else:
            return Ungated(key=key, outcome=Outcome.UNGATED, left=_gates(stored))
    raise AssertionError("every last attempt returns or raises")


async def ungate_all(
    client: Client,
    namespace: str | None = None,
    *,
    is_dry_run: bool = False,
    confirm: Confirm | None = None,
) -> list[Ungated] | None:
    """Take our gate off every pod that carries it, in one namespace or in all.

    The most important go first, then the oldest, as the queue has them. What fails for one pod
    stands in its result. None where `confirm`, asked with the pods' names, says no.
    Raises ClusterError when pods cannot be listed.
    """
    found = sorted([pod async for pod in _find_gated(client, namespace)], key=_rank)
    keys = [(pod.metadata.namespace, pod.metadata.name) for pod in found]
    if keys and confirm is not None and not confirm([f"{space}/{name}" for space, name in keys]):
        return None
    results: dict[int, Ungated] = {}
    left = iter(enumerate(keys))

    async def work() -> None:
        # All workers draw from one iterator, so that thousands of pods are no thousands of tasks.
        for index, (pod_namespace, name) in left:
            results[index] = await _ungate_quietly(
                client, pod_namespace, name, is_dry_run=is_dry_run
            )

    await asyncio.gather(*(work() for _ in range(min(_AT_ONCE, len(keys)))))
    return [results[index] for index in range(len(keys))]


async def _find_gated(client: Client, namespace: str | None) -> AsyncIterator[_GatedPod]:
    """Yield the pods that carry our gate."""
    path = "/api/v1/pods" if namespace is None else f"/api/v1/namespaces/{namespace}/pods"
    # A gated pod is never bound, so the API server sorts out most of a big cluster.
    async for page in client.list_pages(path, {"fieldSelector": "status.phase=Pending"}):
        for pod in _PAGE.decode(page).items or ():
            if any(gate.name == names.GATE for gate in pod.spec.scheduling_gates or ()):
                yield pod


def _rank(pod: _GatedPod) -> tuple[int, str, str, str]:
    metadata = pod.metadata
    return (
        -(pod.spec.priority or 0),
        metadata.creation_timestamp or "",
        metadata.namespace,
        metadata.name,
    )


def build_report(results: list[Ungated], *, is_dry_run: bool = False) -> Report:
    """Return what was done, and what that means."""
    done = [it for it in results if it.outcome is Outcome.UNGATED]
    remarks = [MEANING] if done else []
    if is_dry_run:
        remarks.append("dry run: nothing was changed")
    data: dict[str, Any] = {
        "dryRun": is_dry_run,
        "pods": [
            {"pod": it.key, "outcome": it.outcome.value, "left": list(it.left), "error": it.error}
            for it in results
        ],
    }
    if len(results) == 1:
        sentence = _sentence(results[0], is_dry_run=is_dry_run)
        return Report(sentence=sentence, remarks=tuple(remarks), data=data)
    if not results:
        return Report(sentence="No pod carries our gate.", data=data)
    table = Table(
        title="Pods",
        headers=("POD", "OUTCOME", "STILL HELD BY"),
        rows=tuple(
            (it.key, it.error or it.outcome.value, ", ".join(it.left) or "-") for it in results
        ),
    )
    return Report(
        sentence=f"{len(done)} of {len(results)} gated pods {'can be ' * is_dry_run}ungated.",
        tables=(table,),
        remarks=tuple(remarks),
        data=data,
    )


def _sentence(result: Ungated, *, is_dry_run: bool) -> str:
    held = f"; still held by {words.join(result.left)}" if result.left else ""
    match result.outcome:
        case Outcome.UNGATED:
            after = held or "; kube-scheduler places it by itself"
            return f"{result.key} {'can be' if is_dry_run else 'is'} ungated{after}."
        case Outcome.FAILED:
            return f"{result.key} could not be ungated: {result.error}."
        case _:
            return f"{result.key} {result.outcome.value}, nothing was changed{held}."


async def _ungate_quietly(
    client: Client, namespace: str, name: str, *, is_dry_run: bool
) -> Ungated:
    key = f"{namespace}/{name}"
    try:
        return await ungate_pod(client, namespace, name, is_dry_run=is_dry_run)
    except ApiError as error:
        outcome = Outcome.GONE if error.is_not_found else Outcome.FAILED
        return Ungated(key=key, outcome=outcome, error="" if error.is_not_found else str(error))
    except ClusterError as error:
        # One lost answer must not hide what became of the others.
        return Ungated(key=key, outcome=Outcome.FAILED, error=str(error))


def _gates(pod: JsonObject) -> tuple[str, ...]:
    gates = pod.get("spec", {}).get("schedulingGates") or ()
    return tuple(gate.get("name", "") for gate in gates if gate.get("name") != names.GATE)
