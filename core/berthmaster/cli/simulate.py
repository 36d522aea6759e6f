"""`simulate -f pod.yaml`: what would be decided now for pods that do not exist; nothing is changed.

Several workloads are placed in the order given, each beside those before it, and a workload's
replicas one after the other. Pure: manifests and a snapshot come in, a report goes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import Allocation
from berthmaster.api.policy import Mode, OnInvalid
from berthmaster.cli import numa_zones, why, words
from berthmaster.cli.asking import Asking, read_asking
from berthmaster.cli.filling import Filling, fill, find_releasers
from berthmaster.cli.manifests import Workload
from berthmaster.cli.output import Report, Table
from berthmaster.cli.shortages import distance
from berthmaster.cli.why import Recomputed
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.placement.engine import Verdict
from berthmaster.placement.opting import describe_refusal

EXIT_NOWHERE = 3
MOST_REPLICAS = 10_000
_HELPED_NODES = 3
_NAMED_PODS = 3
_NEVER_WAITS = frozenset({Mode.OBSERVE, Mode.PREFERRED})
# What changes a refusal that is no shortage, by kube-scheduler's and upstream's words.
_HELP = (
    ("unschedulable", "kubectl uncordon NODE"),
    ("untolerated taint", "a toleration in the pod, or the taint taken off"),
    ("node affinity/selector", "another nodeSelector or node affinity in the pod"),
    ("free ports", "another hostPort, or the pod that has it gone"),
    ("no node topology data", "a topology updater on the node, or a pod that is not strict"),
    ("stale node topology data", "the node's topology updater: kubectl berth doctor"),
    ("disk io aware support", "a disk IO driver that writes a NodeDiskDevice for the node"),
    ("not registered in cache", "a device of type emptyDir in the node's NodeDiskDevice"),
    (
        "normalizer",
        f"an entry for the disk's model in the ConfigMap {names.DISK_MODELS_CONFIG_MAP}",
    ),
)


class Outcome(StrEnum):
    """What would become of a workload's pods."""

    PLACED = "Placed"
    PARTLY = "Partly"
    NOWHERE = "Nowhere"
    INVALID = "Invalid"
    OBSERVED = "Observed"
    PREFERRED = "Preferred"
    NOT_OURS = "NotOurs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What was found for one workload; `help` are (node, what would make the pod fit there)."""

    workload: Workload
    asking: Asking
    before: Recomputed
    filling: Filling
    allocation: Allocation | None
    at_the_end: Recomputed | None
    help: tuple[tuple[str, str], ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Return what would become of the pods."""
        if self.asking.why_not_ours:
            return Outcome.NOT_OURS
        if self.asking.error is not None:
            return Outcome.INVALID
        if self.asking.mode is Mode.OBSERVE:
            return Outcome.OBSERVED
        if self.asking.mode is Mode.PREFERRED:
            return Outcome.PREFERRED
        if self.filling.count == self.workload.replicas:
            return Outcome.PLACED
        return Outcome.PARTLY if self.filling.count else Outcome.NOWHERE

    @property
    def exit_code(self) -> int:
        """Return 0, `EXIT_NOWHERE` where a pod would wait, 1 where it would be refused."""
        match self.outcome:
            case Outcome.INVALID:
                if self.asking.mode in _NEVER_WAITS:
                    return 0
                waits = self.asking.policy.spec.on_invalid is OnInvalid.WAIT
                return EXIT_NOWHERE if waits else 1
            case Outcome.NOWHERE | Outcome.PARTLY:
                return EXIT_NOWHERE
            case _:
                return 0


def simulate(
    workloads: Sequence[Workload],
    snapshot: Snapshot,
    *,
    own_namespace: str = names.SYSTEM_NAMESPACE,
) -> list[Simulated]:
    """Decide for each workload in turn; the snapshot's engine is charged with what is placed."""
    return [_simulate(it, snapshot, own_namespace) for it in workloads]


def build_report(
    results: Sequence[Simulated], *, nodes_shown: int, notes: Sequence[str] = ()
) -> Report:
    """Return what would become of all; `nodes_shown` bounds tables, not data."""
    remarks = [
        "decided now from what the API server shows; nothing was created or reserved",
        *dict.fromkeys((*notes, *(note for it in results for note in _notes(it)))),
    ]
    data = {"workloads": [_data(it) for it in results], "notes": list(remarks)}
    if len(results) == 1:
        only = results[0]
        return Report(
            sentence=f"{only.workload.key} {_predicate(only)}.",
            facts=tuple(_facts(only)),
            tables=tuple(_tables(only, nodes_shown)),
            remarks=tuple(remarks),
            data=data,
        )
    good = sum(it.exit_code == 0 for it in results)
    rows = tuple((it.workload.key, str(it.outcome), _predicate(it)) for it in results)
    return Report(
        sentence=f"{good} of {len(results)} workloads would come up as asked.",
        tables=(Table(title="In this order", headers=("WORKLOAD", "OUTCOME", "WHY"), rows=rows),),
        remarks=tuple(remarks),
        data=data,
    )


def _simulate(workload: Workload, snapshot: Snapshot, own_namespace: str) -> Simulated:
    engine = snapshot.engine
    asking = read_asking(workload.pod, snapshot, own_namespace=own_namespace)
    before = _recompute(asking, snapshot)
    filling = Filling()
    at_the_end: Recomputed | None = None
    helping: tuple[tuple[str, str], ...] = ()
    if asking.error is None:
        # A pod that is not ours takes its room as well, wherever kube-scheduler would put it; that
        # is not known, so only what we place is charged.
        is_ours = not asking.why_not_ours and asking.mode is not Mode.OBSERVE
        wanted = min(workload.replicas, MOST_REPLICAS)
        if is_ours:
            filling = fill(engine, workload, asking.request, wanted)
        elif wanted and before.feasible:
            filling.first = engine.decide(asking.request, f"{workload.key}#1")
        if filling.nowhere is not None:
            at_the_end = _recompute(asking, snapshot) if filling.count else before
            helping = tuple(_find_help(at_the_end, asking, snapshot))
    first = filling.first
    return Simulated(
        workload=workload,
        asking=asking,
        before=before,
        filling=filling,
        allocation=first.allocation(str(asking.mode or Mode.REQUIRED)) if first else None,
        at_the_end=at_the_end,
        help=helping,
        advice=engine.advise(workload.pod, asking.policy.spec) if not asking.why_not_ours else (),
    )


def _recompute(asking: Asking, snapshot: Snapshot) -> Recomputed:
    problems = asking.error.problems if asking.error is not None else ()
    return Recomputed(
        verdicts=tuple(snapshot.engine.verdicts(asking.request)),
        problems=tuple(map(str, problems)),
        policy=asking.policy.name,
        zones=numa_zones.list_zones(snapshot.engine, asking.request),
    )


def _find_help(
    recomputed: Recomputed, asking: Asking, snapshot: Snapshot
) -> Iterator[tuple[str, str]]:
    """Yield for the nearest nodes what would make the pod fit, then for kinds of refusals."""
    near = [it for it in recomputed.refused if distance(it) is not None][:_HELPED_NODES]
    for verdict in near:
        found = list(
            islice(find_releasers(snapshot.engine, asking.request, verdict.node), _NAMED_PODS + 1)
        )
        if found:
            named = ", ".join(found[:_NAMED_PODS])
            more = ", ..." if len(found) > _NAMED_PODS else ""
            one = "the end of" if len(found) == 1 else "the end of one of"
            yield verdict.node, f"{one} {named}{more}"
        else:
            yield verdict.node, f"more room, or asking for less: {_shortage(verdict)}"
    for group, count in recomputed.groups:
        helping = next((text for part, text in _HELP if part in group), "")
        if helping:
            yield words.nodes(count), helping


def _shortage(verdict: Verdict) -> str:
    return verdict.reason.detail if verdict.reason is not None else ""


# Words.


def _predicate(it: Simulated) -> str:
    replicas, count = it.workload.replicas, it.filling.count
    match it.outcome:
        case Outcome.NOT_OURS:
            return f"would be left to kube-scheduler: {it.asking.why_not_ours}"
        case Outcome.INVALID:
            return _invalid(it)
        case Outcome.OBSERVED:
            where = it.allocation.node if it.allocation is not None else "nowhere"
            because = f": {why.because(it.allocation)}" if it.allocation is not None else ""
            return f"would go where kube-scheduler sends it, and {where} would be recorded{because}"
        case Outcome.PREFERRED:
            return _preferred(it)
        case Outcome.PLACED if replicas == 0:
            return "asks for no pod: its replicas are 0"
        case Outcome.PLACED if replicas == 1 and it.allocation is not None:
            return f"would go to {it.allocation.node}: {why.because(it.allocation)}"
        case Outcome.PLACED:
            return (
                f"would come up with all {replicas} pods, on {words.nodes(len(it.filling.by_node))}"
            )
        case Outcome.PARTLY:
            return f"would come up with {count} of {replicas} pods, the next {_waits(it)}"
        case _:
            return f"would be created and {_waits(it)}"


def _preferred(it: Simulated) -> str:
    replicas, count = it.workload.replicas, it.filling.count
    if not count:
        return "would go where kube-scheduler sends it: no node fits, so none is preferred"
    if replicas == 1 and it.allocation is not None:
        return f"would prefer {it.allocation.node}: {why.because(it.allocation)}"
    rest = "" if count == replicas else f"; the other {replicas - count} would prefer none"
    return f"would prefer {words.nodes(len(it.filling.by_node))} for {count} of its pods{rest}"


def _invalid(it: Simulated) -> str:
    error = it.asking.error
    if error is None:
        return ""
    if it.asking.mode in _NEVER_WAITS:
        return f"would go where kube-scheduler sends it, {it.asking.mode} has no effect: {error}"
    if it.asking.policy.spec.on_invalid is OnInvalid.WAIT:
        return f"would wait because its request cannot be understood: {error}"
    return f"would be refused: {describe_refusal(it.workload.pod, error)}"


def _waits(it: Simulated) -> str:
    end = it.at_the_end
    if end is None:
        return "waits"
    total = len(end.verdicts)
    if not total:
        return "waits for a node: the cluster has none"
    story = f"waits for a node, {len(end.feasible)} of {total} would do: {why.grouped(end.groups)}"
    nearest = end.nearest
    if nearest is not None and nearest.reason is not None:
        story += f"; nearest is {nearest.node}, {nearest.reason.detail}"
    return story


def _notes(it: Simulated) -> Iterator[str]:
    for advice in it.advice:
        yield f"{it.workload.key}: {advice}"
    yield from numa_zones.remarks(it.at_the_end.refused if it.at_the_end is not None else ())
    foreign = [gate for gate in it.workload.pod.gates if gate != names.GATE]
    if foreign:
        yield f"{it.workload.key} waits for others first, and is decided then: {words.join(foreign)}"
    if it.outcome is Outcome.NOT_OURS and not it.asking.exempt and it.allocation is not None:
        yield (
            f"if {it.workload.key} asked ({names.PLACEMENT}: required), it would go to "
            f"{it.allocation.node}"
        )
    scheduler = it.workload.pod.spec.scheduler_name
    if scheduler not in ("", names.DEFAULT_SCHEDULER) and not it.asking.taken_over_by:
        yield (
            f"{it.workload.key} names the scheduler {scheduler}, which no policy takes over: that one "
            "has to be there and to honour node affinity"
        )
    if it.workload.replicas > MOST_REPLICAS:
        yield f"only {MOST_REPLICAS} of {it.workload.replicas} replicas were placed"


def _facts(it: Simulated) -> Iterator[tuple[str, str]]:
    asking = it.asking
    yield "Pods", str(it.workload.replicas)
    if asking.taken_over_by:
        yield "Asked by", f"policy {asking.taken_over_by}"
    elif asking.mode is not None:
        yield "Asked by", "its annotation"
    if asking.mode is not None:
        yield "Mode", str(asking.mode)
    yield "Policy", asking.policy.name or "none selects it: defaults"
    if not asking.exempt:
        yield "Fitting", f"{len(it.before.feasible)} of {words.nodes(len(it.before.verdicts))}"


def _tables(it: Simulated, nodes_shown: int) -> Iterator[Table]:
    if it.outcome is Outcome.INVALID or it.asking.exempt:
        return
    if it.workload.replicas > 1 and it.filling.by_node:
        rows = sorted(it.filling.by_node.items(), key=lambda pair: (-pair[1], pair[0]))
        yield Table(
            title="Pods by node",
            headers=("NODE", "PODS"),
            rows=tuple((node, str(count)) for node, count in rows[:nodes_shown]),
            numbers=frozenset({1}),
        )
    elif it.allocation is not None:
        yield from why.decision_tables(it.allocation)
    if it.at_the_end is not None:
        yield Table(
            title="Refused",
            headers=("NODES", "REASON"),
            rows=tuple((str(count), group) for group, count in it.at_the_end.groups),
            numbers=frozenset({0}),
        )
        yield from why.recomputed_tables(it.at_the_end, nodes_shown)
    if it.help:
        yield Table(title="What would help", headers=("WHERE", "WHAT"), rows=it.help)


def _data(it: Simulated) -> dict[str, Any]:
    asking, end = it.asking, it.at_the_end
    metadata = it.workload.pod.metadata
    return {
        "kind": it.workload.kind,
        "namespace": metadata.namespace,
        "name": it.workload.name,
        "outcome": it.outcome.value,
        "sentence": f"{it.workload.key} {_predicate(it)}.",
        "mode": str(asking.mode) if asking.mode is not None else None,
        "policy": asking.policy.name or None,
        "takenOverBy": asking.taken_over_by or None,
        "problems": list(it.before.problems),
        "replicas": it.workload.replicas,
        "placed": it.filling.count,
        "byNode": dict(sorted(it.filling.by_node.items())),
        "decision": msgspec.to_builtins(it.allocation) if it.allocation is not None else None,
        "nodes": why.nodes_data(it.before),
        "nextRefused": [
            {"reason": group, "nodes": count} for group, count in (end.groups if end else ())
        ],
        "help": [{"where": where, "what": what} for where, what in it.help],
    }
