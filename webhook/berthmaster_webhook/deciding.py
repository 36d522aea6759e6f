"""One decision for one pod, the same for a pod that is being created and for one at the gate.

Nothing is reserved here and nothing is sent: the result says which node, what to write on the pod,
and what to assume.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.allocation import (
    read_allocation,
    write_allocation,
)
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.concerns.shape import NodeTerms, Placed
from berthmaster.placement import affinity
from berthmaster.placement.engine import Decision
from berthmaster.placement.injecting import inject, keys_of, own_keys
from berthmaster.placement.records import Records
from berthmaster.placement.shapes import PodRequest
from berthmaster_webhook.answers import Answer, Answers
from berthmaster_webhook.avoiding import AvoidedNodes, OwnerPauses
from berthmaster_webhook.measuring import count_refusals
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.notes import notes_of
from berthmaster_webhook.state import ClusterState, Help

RawPod = Mapping[str, Any]
Operations = list[affinity.Operation]

_CHOSEN_WEIGHT = 100


def make_decision_id() -> str:
    """Return a random id of 12 hexadecimal digits."""
    return secrets.token_hex(6)


class Stamps:
    """Gives nanoseconds since the epoch, each later than the last, even where the clock goes back."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._last_ns = 0

    def __call__(self) -> int:
        """Return the next one."""
        self._last_ns = max(self._clock(), self._last_ns + 1)
        return self._last_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What admission and the queue share. `clock` gives monotonic seconds, `stamp` tells answers' order."""

    state: ClusterState
    answers: Answers
    avoided: AvoidedNodes
    # Of owners whose pods kubelets turn away.
    pauses: OwnerPauses
    metrics: Metrics
    records: Records
    clock: Callable[[], float]
    own_namespace: str
    make_id: Callable[[], str] = field(default=make_decision_id)
    stamp: Callable[[], int] = field(default_factory=Stamps)


def decide(tools: Tools, pod: Pod, request: PodRequest) -> Decision:
    """Return the best node for a pod now, leaving out those that its owner's pods avoid."""
    with tools.metrics.decision_duration.time():
        avoid = avoided_by(tools, pod)
        decision = tools.state.engine.decide(request, tools.make_id(), avoid=avoid)
    count_refusals(tools.metrics, decision)
    tools.records.add(pod.key, decision, tools.stamp() / 1e9)
    return decision


def avoided_by(tools: Tools, pod: Pod) -> frozenset[str]:
    """Return the nodes that pods of this pod's controller avoid."""
    controller = pod.metadata.controller()
    if controller is None:
        return frozenset()
    return tools.avoided.of(controller.uid, tools.clock())


def give_back(tools: Tools, decision_id: str) -> None:
    """Give back what an answer holds that was surely never given, and say so to those who wait."""
    node = tools.answers.drop(decision_id)
    if node:
        tools.state.tell_help(Help(node))


def pause_of(tools: Tools, pod: Pod) -> float | None:
    """Return until when no pod of this pod's controller is placed, None if that is not so now."""
    controller = pod.metadata.controller()
    until_s = tools.pauses.until_s(controller.uid) if controller is not None else 0.0
    return until_s if until_s > tools.clock() else None


def make_answer(
    tools: Tools,
    pod: Pod,
    request: PodRequest,
    decision: Decision,
    owner: Hashable,
    *,
    mode: Mode,
    note: str = "",
) -> Answer:
    """Return what stands behind a decision that found a node; `mode` is what it does to the pod."""
    terms, preferences = NodeTerms(), {}
    if mode is Mode.PREFERRED:
        terms, rest = tools.state.engine.affinity(request, _node_of(decision))
        preferences = _preferences(decision, rest)
    return Answer(
        decision_id=decision.id,
        node=_node_of(decision),
        pod=pod,
        owner=owner,
        request=request,
        allocated=decision.allocated,
        annotation=annotation_of(decision, mode, note),
        mode=mode,
        preferences=preferences,
        terms=terms,
        notes=notes_of(note, decision.allocated),
        beside=_beside(tools, pod, decision),
    )


def annotation_of(decision: Decision, mode: Mode, note: str = "") -> str:
    """Return the allocation annotation's text."""
    return write_allocation(decision.allocation(str(mode), note))


def placing(raw: RawPod, answer: Answer, *, is_stored: bool = False) -> Operations:
    """Return what places a pod: pin, preferences or binding, the allocation, the gate taken off."""
    match answer.mode:
        case Mode.PREFERRED:
            placing = _preferring(raw, answer, is_stored=is_stored)
        case Mode.BIND:
            placing = affinity.bind(answer.node)
        case _:
            placing = affinity.pin_at_creation(raw, answer.node)
    return [
        *placing,
        *affinity.annotate_all(raw, {names.ALLOCATION: answer.annotation, **answer.beside}),
        *affinity.remove_gate(raw, names.GATE),
    ]


def _preferring(raw: RawPod, answer: Answer, *, is_stored: bool) -> Operations:
    """Return what adds an answer's terms, but preferences by a key that the pod uses itself."""
    own = own_keys(raw)
    preferred = [
        *affinity.prefer(answer.preferences),
        *(it for it in answer.terms.preferred if not keys_of(it["preference"]) & own),
    ]
    if is_stored and answer.terms.required:
        # Of a stored pod the number of required terms cannot be changed.
        return affinity.pin_gated(raw, answer.node)
    return inject(raw, required=answer.terms.required, preferred=preferred)


def ungating(raw: RawPod) -> Operations:
    """Return what lets a pod go as it is."""
    return affinity.remove_gate(raw, names.GATE)


def has_effect(stored: RawPod, answer: Answer | None) -> bool:
    """Return whether a stored pod shows that it was placed, or let go where there is no answer."""
    if answer is None:
        gates = (stored.get("spec") or {}).get("schedulingGates") or ()
        return all(gate.get("name") != names.GATE for gate in gates)
    annotations = (stored.get("metadata") or {}).get("annotations") or {}
    allocation = read_allocation(annotations.get(names.ALLOCATION))
    return allocation is not None and allocation.id == answer.decision_id


def _beside(tools: Tools, pod: Pod, decision: Decision) -> dict[str, str]:
    """Return the annotations of the concerns for programs that do not read the allocation."""
    annotations: dict[str, str] = {}
    table = tools.state.engine.table
    placed = Placed(node=_node_of(decision), at_ns=tools.stamp())
    for concern in table.concerns:
        allocated = decision.allocated.get(concern.name)
        if allocated:
            columns = table.columns[concern.name]
            annotations.update(concern.annotations(columns, pod, allocated, placed))
    return annotations


def _preferences(decision: Decision, share: Fraction) -> dict[str, int]:
    """Return weights by node: 100 for the chosen one, for runners-up at most half of that.

    The distance makes kube-scheduler follow the choice where it can: with equal weights its own
    scores would choose, and what is held on our node would be held in vain. `share` is what concerns that
    speak for themselves leave of it; with 0 there are no weights.
    """
    if not share:
        return {}
    weights = {_node_of(decision): _CHOSEN_WEIGHT}
    for node, score in decision.runners_up:
        part = score / decision.score if decision.score else 1.0
        weights[node] = min(round(part * _CHOSEN_WEIGHT / 2), _CHOSEN_WEIGHT // 2)
    return {node: max(1, round(weight * share)) for node, weight in weights.items()}


def _node_of(decision: Decision) -> str:
    if decision.node is None:
        raise ValueError(f"decision {decision.id} found no node")
    return decision.node
