"""`why POD`: where a pod is and for what reason, or what it waits for and what would help.

What was decided stands on the pod; this reads it. Why a pod waits now is worked out anew from a
snapshot of the cluster, and said to be so. Pure: pods and snapshots come in, a report goes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Condition, Pod
from berthmaster.api.policy import Mode
from berthmaster.cli import concern_table, numa_zones, words
from berthmaster.cli.numa_zones import ZoneRoom, presume
from berthmaster.cli.output import Report, Table
from berthmaster.cli.shortages import distance
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.concerns.shape import InvalidRequestError, Reason
from berthmaster.placement.affinity import unpinned
from berthmaster.placement.engine import Verdict

NODES_SHOWN = 20
_RECOMPUTED = "recomputed now from the API server; the leader may have seen another moment"
_COMPARED = "nodes are compared as they are now, as if the pod came once more; the scores above are as of its decision"
# Concerns that every pod has a score from; the sentence leaves it out where another one spoke.
_ALWAYS_THERE = "resources"


class Situation(StrEnum):
    """Where a pod stands with us."""

    PLACED = "Placed"
    SENT = "Sent"
    PIN_FAILED = "PinFailed"
    STRAYED = "Strayed"
    OBSERVED = "Observed"
    WAITING = "Waiting"
    FITS_NOW = "FitsNow"
    INVALID = "Invalid"
    FOREIGN_GATE = "ForeignGate"
    FINISHED = "Finished"
    BYPASSED = "Bypassed"
    OFF = "Off"
    NOT_ASKED = "NotAsked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What an engine says about a pod now, from a snapshot; `problems` are faults of its request.

    `asked` are the concerns that have something to say, `objections` by node the words of all that refuse.
    """

    verdicts: tuple[Verdict, ...] = ()
    asked: tuple[str, ...] = ()
    objections: Mapping[str, Mapping[str, Reason]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    policy: str = ""
    notes: tuple[str, ...] = ()
    zones: tuple[ZoneRoom, ...] = ()

    @property
    def feasible(self) -> tuple[Verdict, ...]:
        """Return the nodes that would do, the best first."""
        fitting = (it for it in self.verdicts if it.reason is None)
        return tuple(sorted(fitting, key=lambda it: (-it.score, it.node)))

    @property
    def refused(self) -> tuple[Verdict, ...]:
        """Return the nodes that would not, the nearest to fitting first."""
        refusing = (it for it in self.verdicts if it.reason is not None)
        return tuple(sorted(refusing, key=lambda it: (_distance_key(it), it.node)))

    @property
    def nearest(self) -> Verdict | None:
        """Return the refused node that misses least of what is asked, if shortage is all."""
        return next((it for it in self.refused if distance(it) is not None), None)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Return reasons with the number of nodes, the most frequent first."""
        counts = Counter(it.reason.group for it in self.verdicts if it.reason is not None)
        return sorted(counts.items(), key=lambda it: (-it[1], it[0]))


def recompute(pod: Pod, snapshot: Snapshot) -> Recomputed:
    """Work out for every node whether the pod would fit now; what it holds itself counts as free.

    The snapshot knows the pod no more after that.
    """
    presume(snapshot.engine)
    snapshot.engine.ledger.forget(pod)
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    if allocation is not None:
        pod = unpinned(pod, allocation.node)
    policy = snapshot.policy_of(pod)
    problems: tuple[str, ...] = ()
    try:
        request = snapshot.engine.read_request(pod, policy.spec)
    except InvalidRequestError as error:
        problems = tuple(map(str, error.problems))
        request = snapshot.engine.read_request(pod, policy.spec, is_strict=False)
    return Recomputed(
        verdicts=tuple(snapshot.engine.verdicts(request)),
        asked=snapshot.engine.asked(request),
        objections=snapshot.engine.objections(request),
        problems=problems,
        policy=policy.name,
        notes=snapshot.notes,
        zones=numa_zones.list_zones(snapshot.engine, request),
    )


def needs_recomputing(pod: Pod) -> bool:
    """Return whether only a snapshot tells why the pod is where it is: it waits for us."""
    return _waits_for_us(pod) and not _foreign_gates(pod)


def is_comparable(pod: Pod) -> bool:
    """Return whether a snapshot tells what other nodes would have been to a pod that was decided."""
    return not (_waits_for_us(pod) or pod.is_finished) and (
        read_allocation(pod.annotations.get(names.ALLOCATION)) is not None
    )


def find_situation(pod: Pod, recomputed: Recomputed | None = None) -> Situation:
    """Return where the pod stands; `recomputed` tells apart the kinds of waiting."""
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    if pod.is_finished:
        return Situation.FINISHED
    if _waits_for_us(pod):
        return _waiting(pod, recomputed)
    if allocation is not None:
        return _decided(pod, allocation)
    mode = pod.annotations.get(names.PLACEMENT)
    if mode is None:
        return Situation.NOT_ASKED
    return Situation.OFF if mode == Mode.OFF else Situation.BYPASSED


def sentence(pod: Pod, recomputed: Recomputed | None = None) -> str:
    """Return the whole story in one sentence.

    `default/pod1 is on node-a: disk IO 97 of 100; 1 node refused: disk IO read bandwidth is not
    enough.`
    """
    situation = find_situation(pod, recomputed)
    return f"{pod.key} {_predicate(pod, situation, recomputed)}."


def build_report(
    pod: Pod,
    recomputed: Recomputed | None = None,
    *,
    inventory: NodeInventory | None = None,
    nodes_shown: int = NODES_SHOWN,
    notes: Sequence[str] = (),
) -> Report:
    """Return everything that is known about a pod; `nodes_shown` bounds the table, not the data.

    `inventory` is that of the pod's node, and tells where the pod was seen; `notes` are remarks of the caller.
    """
    seen = numa_zones.seen_zones(pod, inventory)
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    tables: list[Table] = []
    remarks: list[str] = list(notes)
    if allocation is not None:
        tables.extend(decision_tables(allocation))
    if recomputed is not None:
        own = pod.spec.node_name or (allocation.node if allocation is not None else "")
        tables.extend(recomputed_tables(recomputed, nodes_shown, own=own))
        remarks.append(_RECOMPUTED if allocation is None else _COMPARED)
        hidden = len(recomputed.verdicts) - nodes_shown
        if hidden > 0 and not recomputed.problems:
            remarks.append(f"{words.nodes(hidden)} not shown: see --nodes, or -o json for all")
        remarks.extend(numa_zones.remarks(recomputed.refused))
        remarks.extend(recomputed.notes)
    if pod.metadata.deletion_timestamp is not None:
        remarks.append("the pod is being deleted; what it holds is free once it is gone")
    return Report(
        sentence=sentence(pod, recomputed),
        facts=tuple(_facts(pod, allocation, recomputed, seen)),
        tables=tuple(tables),
        remarks=tuple(remarks),
        data=_data(pod, allocation, recomputed)
        | {"zones": {"predicted": _predicted(allocation), "seen": seen}},
    )


def _distance_key(verdict: Verdict) -> tuple[bool, Fraction]:
    share = distance(verdict)
    return (True, Fraction(0)) if share is None else (False, share)


# Where a pod stands.


def _waits_for_us(pod: Pod) -> bool:
    return names.GATE in pod.gates and not pod.is_finished


def _foreign_gates(pod: Pod) -> tuple[str, ...]:
    return tuple(gate for gate in pod.gates if gate != names.GATE)


def _waiting(pod: Pod, recomputed: Recomputed | None) -> Situation:
    if _foreign_gates(pod):
        return Situation.FOREIGN_GATE
    if recomputed is not None and recomputed.problems:
        return Situation.INVALID
    if recomputed is not None and recomputed.feasible:
        return Situation.FITS_NOW
    return Situation.WAITING


def _decided(pod: Pod, allocation: Allocation) -> Situation:
    node = pod.spec.node_name
    if allocation.mode == Mode.OBSERVE:
        return Situation.OBSERVED
    if node:
        return Situation.PLACED if node == allocation.node else Situation.STRAYED
    scheduled = _condition(pod, "PodScheduled")
    is_pinned = allocation.mode == Mode.REQUIRED
    if is_pinned and scheduled is not None and scheduled.reason == "Unschedulable":
        return Situation.PIN_FAILED
    return Situation.SENT


def _condition(pod: Pod, kind: str) -> Condition | None:
    return next((it for it in pod.status.conditions or () if it.type == kind), None)


# The sentence.


def _predicate(pod: Pod, situation: Situation, recomputed: Recomputed | None) -> str:
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    if allocation is not None and situation in _DECIDED:
        return _decided_predicate(pod, situation, allocation)
    node = pod.spec.node_name
    where = f"is on {node}" if node else "is left to kube-scheduler"
    match situation:
        case Situation.FINISHED:
            ran = f"ran on {node}" if node else "never ran"
            return f"has finished ({pod.status.phase}) and holds nothing any more; it {ran}"
        case Situation.FOREIGN_GATE:
            gates = words.join(_foreign_gates(pod))
            return f"waits for others first: {gates}; Berthmaster decides when only its own gate is left"
        case Situation.NOT_ASKED:
            return (
                f"{where} without Berthmaster: it carries no annotation {names.PLACEMENT} and no "
                "policy selected it when it was created"
            )
        case Situation.OFF:
            return f"{where} without Berthmaster: {names.PLACEMENT} is off"
        case Situation.BYPASSED:
            return (
                f"{where} past Berthmaster: it asks for placement but carries no decision; it was "
                "ungated or bound by somebody else, and is counted by what it requests"
            )
        case _:
            return _waiting_predicate(pod, situation, recomputed)


_DECIDED = frozenset(
    {
        Situation.PLACED,
        Situation.SENT,
        Situation.PIN_FAILED,
        Situation.STRAYED,
        Situation.OBSERVED,
    }
)


def _decided_predicate(pod: Pod, situation: Situation, allocation: Allocation) -> str:
    chosen, node = allocation.node, pod.spec.node_name
    reasons = because(allocation)
    match situation:
        case Situation.PLACED:
            return f"is on {chosen}: {reasons}"
        case Situation.SENT:
            sent = "prefers" if allocation.mode == Mode.PREFERRED else "is sent to"
            return f"{sent} {chosen} and kube-scheduler has yet to bind it: {reasons}"
        case Situation.STRAYED:
            return f"is on {node} although {chosen} was chosen ({allocation.mode}): {reasons}"
        case Situation.OBSERVED:
            found = f"is on {node}" if node else "has no node yet"
            agrees = ", as Berthmaster would have it" if node == chosen else ""
            would = "" if agrees else f"; Berthmaster would have chosen {chosen}"
            return f"{found}{agrees}{would}: {reasons}"
        case _:
            scheduled = _condition(pod, "PodScheduled")
            said = scheduled.message.rstrip(".") if scheduled is not None else ""
            return (
                f"was sent to {chosen} and does not fit there any more; kube-scheduler says: "
                f"{said or 'Unschedulable'}"
            )


def because(allocation: Allocation) -> str:
    """Return a decision's scores and refusals in half a sentence."""
    scores = {
        concern: score
        for concern, score in allocation.scores.items()
        if concern != _ALWAYS_THERE or len(allocation.scores) == 1
    }
    parts = [f"{words.title(concern)} {words.number(score)}" for concern, score in scores.items()]
    said = f"{', '.join(parts)} of 100" if parts else f"score {words.number(allocation.score)}"
    return f"{said}; {_refused(allocation)}"


def _refused(allocation: Allocation) -> str:
    refused = sum(it.count for it in allocation.refused)
    if not refused:
        return "no node refused"
    return f"{words.nodes(refused)} refused: {grouped([(it.reason, it.count) for it in allocation.refused])}"


def _waiting_predicate(pod: Pod, situation: Situation, recomputed: Recomputed | None) -> str:
    if recomputed is None:
        condition = _condition(pod, names.PLACED_CONDITION)
        said = condition.message.rstrip(".") if condition is not None else ""
        return f"waits for a node: {said or 'Berthmaster has not looked at it yet'}"
    if situation is Situation.INVALID:
        return f"waits because its request cannot be understood: {'; '.join(recomputed.problems)}"
    total = len(recomputed.verdicts)
    if situation is Situation.FITS_NOW:
        best = recomputed.feasible[0].node
        return (
            f"waits although {len(recomputed.feasible)} of {words.nodes(total)} would do now, best "
            f"{best}: Berthmaster takes it within seconds, or a minute after its restart; if not, "
            f"look at its pods in {names.SYSTEM_NAMESPACE}"
        )
    if not total:
        return "waits for a node: the cluster has none"
    story = f"waits for a node, 0 of {total} would do now: {grouped(recomputed.groups)}"
    nearest = recomputed.nearest
    if nearest is not None and nearest.reason is not None:
        story += f"; nearest is {nearest.node}, {nearest.reason.detail}"
    return story


def grouped(groups: Sequence[tuple[str, int]]) -> str:
    """Return `2 tainted, 1 cordoned`."""
    if len(groups) == 1:
        return words.brief(groups[0][0])
    return ", ".join(f"{count} {words.brief(group)}" for group, count in groups)


# Facts, tables, data.


def _facts(
    pod: Pod,
    allocation: Allocation | None,
    recomputed: Recomputed | None,
    seen: list[int] | None,
) -> Iterator[tuple[str, str]]:
    mode = allocation.mode if allocation is not None else pod.annotations.get(names.PLACEMENT)
    yield "Pod", f"{pod.key} ({pod.status.phase or 'Unknown'})"
    if pod.spec.node_name:
        yield "Node", pod.spec.node_name
    if mode:
        yield "Mode", mode
    if recomputed is not None:
        yield "Policy", recomputed.policy or "none selects it: defaults"
    if allocation is not None:
        yield "Decision", allocation.id
        considered = allocation.feasible + sum(it.count for it in allocation.refused)
        yield "Chosen", f"{allocation.node}, {allocation.feasible} of {considered} fitting"
    yield from _zone_facts(_predicted(allocation), seen)
    if pod.gates:
        yield "Gates", ", ".join(pod.gates)
    condition = _condition(pod, names.PLACED_CONDITION)
    if condition is not None:
        since = f" since {condition.last_transition_time}" if condition.last_transition_time else ""
        yield "Condition", f"Placed={condition.status} {condition.reason}{since}"
        if condition.message:
            yield "Message", condition.message
    nearest = recomputed.nearest if recomputed is not None and not recomputed.feasible else None
    if allocation is None and nearest is not None and nearest.reason is not None:
        yield "Nearest", f"{nearest.node}: {nearest.reason.detail}"


def _predicted(allocation: Allocation | None) -> list[int] | None:
    """Return the zones that the pod was foreseen in, None where there was nothing to foresee."""
    given = allocation.allocated.get(numa_zones.NAME, {}) if allocation is not None else {}
    return sorted(int(it) for it in numa_zones.allocated_zones(given) if it.isdecimal()) or None


def _zone_facts(predicted: list[int] | None, seen: list[int] | None) -> Iterator[tuple[str, str]]:
    """Yield where the pod is to lie by our prediction, and where it lies by its node's updater."""
    if predicted is None and seen is None:
        return
    parts = []
    if predicted is not None:
        parts.append(f"{words.join(map(str, predicted))} predicted")
    if seen is not None:
        agrees = (
            ""
            if predicted is None
            else ", as predicted"
            if seen == predicted
            else ", not as predicted"
        )
        parts.append(f"{words.join(map(str, seen))} seen{agrees}")
    else:
        parts.append("not told where the kubelet put it")
    yield "NUMA zone", "; ".join(parts)


def decision_tables(allocation: Allocation) -> Iterator[Table]:
    """Yield a decision's scores, refusals and runners-up."""
    concerns = dict.fromkeys((*allocation.scores, *allocation.allocated))
    rows = [
        (
            words.title(concern),
            words.number(allocation.scores[concern]) if concern in allocation.scores else "-",
            words.allocated(allocation.allocated.get(concern, {})) or "-",
        )
        for concern in concerns
    ]
    yield Table(
        title=f"Scores on {allocation.node}",
        headers=("CONCERN", "SCORE", "ALLOCATED"),
        rows=(*rows, ("total", words.number(allocation.score), "")),
        numbers=frozenset({1}),
    )
    if allocation.refused:
        yield Table(
            title="Refused",
            headers=("NODES", "REASON"),
            rows=tuple((str(it.count), it.reason) for it in allocation.refused),
            numbers=frozenset({0}),
        )
    if allocation.runners_up:
        yield Table(
            title="Runners-up",
            headers=("NODE", "SCORE"),
            rows=tuple((it.node, words.number(it.score)) for it in allocation.runners_up),
            numbers=frozenset({1}),
        )


def recomputed_tables(
    recomputed: Recomputed, nodes_shown: int, *, own: str = ""
) -> Iterator[Table]:
    """Yield what each node says now; `own` is a node that is shown in any case."""
    # A request that cannot be understood fits nowhere; the sentence says why.
    if not recomputed.verdicts or recomputed.problems:
        return
    ordered = (*recomputed.feasible, *recomputed.refused)
    left_out = (it for it in ordered[nodes_shown:] if it.node == own)
    shown = (*ordered[:nodes_shown], *left_out)
    if concern_table.is_wanted(recomputed.asked):
        yield from concern_table.build(shown, recomputed.asked, recomputed.objections)
    else:
        yield Table(
            title="Nodes now, the nearest first",
            headers=("NODE", "ANSWER", "WHY"),
            rows=tuple((it.node, *_answer(it)) for it in shown),
        )
    yield from numa_zones.table(recomputed.zones, (it.node for it in shown))


def _answer(verdict: Verdict) -> tuple[str, str]:
    if verdict.reason is None:
        scores = (f"{words.title(name)} {words.number(it)}" for name, it in verdict.scores.items())
        return f"fits, {words.number(verdict.score)}", ", ".join(scores)
    return "refused", verdict.reason.sentence


def _data(pod: Pod, allocation: Allocation | None, recomputed: Recomputed | None) -> dict[str, Any]:
    condition = _condition(pod, names.PLACED_CONDITION)
    data: dict[str, Any] = {
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
        "phase": pod.status.phase,
        "situation": find_situation(pod, recomputed).value,
        "sentence": sentence(pod, recomputed),
        "node": pod.spec.node_name or None,
        "mode": pod.annotations.get(names.PLACEMENT),
        "gates": list(pod.gates),
        "allocation": msgspec.to_builtins(allocation) if allocation is not None else None,
        "condition": msgspec.to_builtins(condition) if condition is not None else None,
        "recomputed": None,
    }
    if recomputed is not None:
        nearest = recomputed.nearest
        data["recomputed"] = {
            "policy": recomputed.policy or None,
            "feasible": len(recomputed.feasible),
            "problems": list(recomputed.problems),
            "nearest": nearest.node if nearest is not None else None,
            "nodes": nodes_data(recomputed),
            "notes": list(recomputed.notes),
        }
    return data


def nodes_data(recomputed: Recomputed) -> list[dict[str, Any]]:
    """Return what each node says, for programs, with its zones where the pod asks something of them."""
    zones = numa_zones.by_node(recomputed.zones)
    return [
        _verdict_data(it, recomputed.objections.get(it.node, {}))
        | ({"zones": [zone.to_data() for zone in zones[it.node]]} if it.node in zones else {})
        for it in (*recomputed.feasible, *recomputed.refused)
    ]


def _verdict_data(verdict: Verdict, objections: Mapping[str, Reason]) -> dict[str, Any]:
    if verdict.reason is None:
        return {
            "node": verdict.node,
            "fits": True,
            "score": verdict.score,
            "scores": verdict.scores,
        }
    return {
        "node": verdict.node,
        "fits": False,
        "concern": verdict.concern,
        "reason": verdict.reason.text,
        "detail": verdict.reason.detail,
        "refusedBy": {name: reason.sentence for name, reason in objections.items()},
    }
