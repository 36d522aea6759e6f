"""Pods: who waits at our gate for long and why, who came past us, whose place was lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Condition, Pod
from berthmaster.api.policy import Mode
from berthmaster.cli.doctor.facts import Facts, Unread, read_time
from berthmaster.cli.doctor.findings import Finding, Part, some
from berthmaster.placement.opting import why_exempt

WAITING = Part("waiting pods")
PAST = Part("pods past us")
LONG_S = 300.0
# The leader tells why a pod waits after a second; a take-over after a crash takes a minute.
UNSEEN_S = 120.0
_ENFORCED = frozenset({Mode.REQUIRED.value, Mode.BIND.value})


def check(facts: Facts) -> Iterator[Finding]:
    """Look at pods that wait, then at those that run."""
    pending, running = facts.pending_pods, facts.running_pods
    if isinstance(pending, Unread):
        yield WAITING.not_checked("pods at the gate", pending.why)
    else:
        yield from _check_waiting(pending or (), facts)
    if isinstance(running, Unread):
        yield PAST.not_checked("pods that were bound by others", running.why)
    else:
        yield from _check_past(running or ())
    for cut in facts.cuts:
        yield WAITING.not_checked("everything", cut)


def _check_waiting(pods: tuple[Pod, ...], facts: Facts) -> Iterator[Finding]:
    gated = [it for it in pods if it.gates == (names.GATE,) and not it.metadata.deletion_timestamp]
    long = [it for it in gated if _age_s(it, facts) > LONG_S]
    unseen = [it for it in gated if _placed(it) is None and _age_s(it, facts) > UNSEEN_S]
    failed = [it for it in pods if _is_pin_lost(it)]
    if unseen:
        yield WAITING.broken(
            f"nobody has told {some(_keys(unseen))} why it waits, for more than {UNSEEN_S:.0f} s: the "
            "webhook's leader is away or stuck",
            f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-webhook",
        )
    reasons: dict[str, list[Pod]] = defaultdict(list)
    for pod in long:
        condition = _placed(pod)
        if condition is not None:
            reasons[condition.reason].append(pod)
    for reason, waiting in sorted(reasons.items(), key=lambda it: (-len(it[1]), it[0])):
        condition = _placed(waiting[0])
        said = condition.message if condition is not None else ""
        yield WAITING.warning(
            f"{some(_keys(waiting))} waits for more than {LONG_S / 60:.0f} min, {reason}: {said}",
            f"kubectl berth why {waiting[0].key}",
        )
    if failed:
        yield WAITING.warning(
            f"{some(_keys(failed))} was placed and does not fit there any more",
            f"kubectl berth why {failed[0].key}",
        )
    if not (unseen or long or failed):
        now = f"{len(gated)} wait{'s' * (len(gated) == 1)}" if gated else "none waits"
        yield WAITING.ok(f"{now}, none for more than {LONG_S / 60:.0f} min")


def _check_past(pods: tuple[Pod, ...]) -> Iterator[Finding]:
    past = [it for it in pods if is_past_us(it)]
    if past:
        yield PAST.warning(
            f"{some(_keys(past))} asks for placement and carries no decision: it was ungated, bound by "
            "somebody else, or there before us; it is counted by what it requests",
            f"kubectl berth why {past[0].key}",
        )
    else:
        yield PAST.ok("every running pod that asks was placed by Berthmaster")


def is_past_us(pod: Pod) -> bool:
    """Return whether a bound pod asked to be placed and was not."""
    unbound = Pod(metadata=pod.metadata)
    return (
        pod.annotations.get(names.PLACEMENT) in _ENFORCED
        and read_allocation(pod.annotations.get(names.ALLOCATION)) is None
        and not why_exempt(unbound)
    )


def _is_pin_lost(pod: Pod) -> bool:
    """Return whether a pod that was given one node does not fit there; what is only observed has none."""
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    is_pinned = allocation is not None and allocation.mode == Mode.REQUIRED
    return is_pinned and any(
        it.type == "PodScheduled" and it.status == "False" and it.reason == "Unschedulable"
        for it in pod.status.conditions or ()
    )


def _placed(pod: Pod) -> Condition | None:
    found = (it for it in pod.status.conditions or () if it.type == names.PLACED_CONDITION)
    return next(found, None)


def _keys(pods: list[Pod]) -> list[str]:
    return [pod.key for pod in pods]


def _age_s(pod: Pod, facts: Facts) -> float:
    created = read_time(pod.metadata.creation_timestamp)
    return (facts.now - created).total_seconds() if created is not None else 0.0
