"""The queue of gated pods: by priority, then age; woken by what could help, never by the clock.

Pods that ask for the same stand in one line. A line whose first pod fits nowhere is closed as a
whole, so ten thousand equal pods cost as much as one. It is opened by a cause that may help it: room on a
node opens the lines that this node, judged by itself, could serve, and only that is judged; what is no
room opens those whom such things matter to. Among open lines the one with the most important, then oldest,
first pod is served; with `turns`, of equally important ones that whose namespace's turn it is.

For each pod one guarded patch (see `sending`) writes affinity and allocation and removes the gate; its
room is assumed in the ledger before it is sent, and while it is under way the pod is not decided anew.
A pod whose reason to be gated is gone is let go as it is. Pods with a gate of somebody else are left
alone. Everything runs on one thread; only the patches are concurrent.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections import Counter
from collections.abc import Hashable
from enum import Enum
from typing import Any

from berthmaster.api import names
from berthmaster.api.objects import ObjectMeta, Pod
from berthmaster.api.policy import Mode, PlacementPolicySpec
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import JsonObject
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.placement import affinity
from berthmaster.placement.engine import Decision
from berthmaster.placement.opting import unknown_mode, why_exempt
from berthmaster.placement.shapes import PodRequest
from berthmaster_webhook import deciding
from berthmaster_webhook.admission import Term
from berthmaster_webhook.answers import Answer
from berthmaster_webhook.binding import FROM_QUEUE, bound_as_required
from berthmaster_webhook.deciding import Operations, Tools
from berthmaster_webhook.effective import (
    Standing,
    read_effective,
    waits_at_gate,
)
from berthmaster_webhook.lines import Line, Lines, Waiter
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.reporting import Reporter
from berthmaster_webhook.sending import Fate, PodStore, raw_of, send_until_known
from berthmaster_webhook.state import ANYTHING, Help
from berthmaster_webhook.telling import about
from berthmaster_webhook.turns import Turns
from berthmaster_webhook.waking import Waking

logger = logging.getLogger(__name__)

PATCHES_IN_FLIGHT = 16
# With those that pause before they are sent once more.
PATCHES_UNDER_WAY = 256
# A policy that took a pod over may be seen later than the pod, and be back when its kind is; after this it is taken
# for deleted.
POLICY_GRACE_S = 10.0
# Between two rounds: collects what wakes together.
ROUND_S = 0.02
# Looking again where deciding was forbidden; nothing tells us when it is allowed again.
RETRY_S = 0.5
# For so long the loop, which answers admission requests, is kept from others.
_SLICE_S = 0.002
_OWNER = "the queue"
_UNPREPARED = "it was created while the webhook could not be reached; delete it and create it anew"
_PAUSED = (
    "a kubelet turned away a pod of the same controller; the next ones are placed after a pause, which "
    "grows while that goes on"
)
_NO_POLICIES = (
    "a PlacementPolicy took it over and there is no such kind any more: apply crds/ and the policy again, or "
    "let the pod go with kubectl berth ungate"
)
_NOT_OURS_NOW = frozenset({Outcome.NOT_LEADER, Outcome.TAKING_OVER, Outcome.STOPPING})


class _Let(Enum):
    """How a pod that need not wait leaves the gate."""

    GO = "go"
    PREFER = "prefer"


class WaitingPods:
    """The queue; give it to the state's callbacks and await `run`."""

    def __init__(
        self,
        tools: Tools,
        term: Term,
        store: PodStore,
        reporter: Reporter,
        *,
        patches_in_flight: int = PATCHES_IN_FLIGHT,
        first_backoff_s: float = 0.5,
        policy_grace_s: float = POLICY_GRACE_S,
        turns: Turns | None = None,
    ) -> None:
        self._tools = tools
        self._term = term
        self._store = store
        self._reporter = reporter
        self._first_backoff_s = first_backoff_s
        self._policy_grace_s = policy_grace_s
        self._waiters: dict[str, Waiter] = {}
        self._lines = Lines(self._waiters, turns)
        self._waking = Waking(tools, self._lines)
        self._breathed_s = 0.0
        # Lines whose first pod our code tripped over, for the next round.
        self._tripped: list[Line] = []
        # To be looked at anew, in the order in which they came.
        self._dirty: dict[str, None] = {}
        self._later: list[tuple[float, str]] = []
        self._slots = asyncio.Semaphore(patches_in_flight)
        self._under_way = asyncio.Semaphore(PATCHES_UNDER_WAY)
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        tools.metrics.before_render.append(self._count)

    def __len__(self) -> int:
        return len(self._waiters)

    # What happens outside.

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take over a pod that the watch or a list shows."""
        uid = pod.metadata.uid
        if kind is EventKind.DELETED or not waits_at_gate(pod):
            if self._waiters.pop(uid, None) is not None:
                self._dirty.pop(uid, None)
                self._reporter.forget(uid)
            return
        waiter = self._waiters.get(uid)
        if waiter is None:
            backoff = self._new_backoff()
            waiter = Waiter(pod, self._tools.clock(), backoff)
            self._waiters[uid] = waiter
        elif _gist(waiter.pod) == _gist(pod):
            # Our own condition, or another's status: newer version, same question.
            waiter.pod = pod
            return
        waiter.pod = pod
        waiter.not_before_s = 0.0
        self._dirty[uid] = None
        self._wake.set()

    def take_settings(self, namespace: str = "") -> None:
        """Look at all pods anew, or at those of a namespace: policies or labels changed, or we lead now."""
        self._dirty.update(
            (uid, None)
            for uid, waiter in self._waiters.items()
            if namespace in ("", waiter.pod.metadata.namespace)
        )
        self._wake.set()

    def take_avoided(self) -> None:
        """Look anew at the pods whose owner's pods pause, or avoid other nodes than they did."""
        tools = self._tools
        for uid, waiter in self._waiters.items():
            line, pod = waiter.line, waiter.pod
            if line is not None and (
                line.avoided != deciding.avoided_by(tools, pod)
                or deciding.pause_of(tools, pod) is not None
            ):
                self._dirty[uid] = None
        self._wake.set()

    def take_help(self, help_: Help = ANYTHING) -> None:
        """Note what may help the pods that fitted nowhere."""
        if self._waiters:
            self._waking.note(help_)
            self._wake.set()

    def goes_first(self, pod: Pod, node: str) -> bool:
        """Return whether a pod that waits has an older right to a node than one that is being created."""
        return bool(self._waiters) and self._waking.goes_first(pod, node)

    async def drained(self, timeout_s: float) -> None:
        """Wait until no patch is under way, for at most so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("patches still under way", extra={"patches": self._busy})

    # The round.

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await self._until_woken()
                try:
                    await self._round()
                # The boundary of one round: what our code trips over outside of those of single pods
                # must not end the process, but this is looked at once more.
                except Exception:
                    logger.exception("a round of the queue failed, trying again")
                    self._look_again()
                await asyncio.sleep(max(ROUND_S, self._waking.rest_s))

    async def _until_woken(self) -> None:
        due_s = min(self._later[0][0] if self._later else math.inf, self._waking.due_s)
        limit_s = None if math.isinf(due_s) else max(0.0, due_s - self._tools.clock())
        try:
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _round(self) -> None:
        self._expire_later()
        if self._must_wait():
            return
        await self._sort()
        for line in self._tripped:
            self._lines.open(line)
        self._tripped.clear()
        self._waking.open_stale()
        while True:
            if self._dirty:
                await self._sort()
            if not await self._waking.open_helped(self._breathe):
                # It rests; the round after that does it.
                self._wake.set()
            if not self._lines.any_open:
                self._waking.withdraw_offers()
                break
            await self._take_slot()
            is_sent = False
            try:
                if self._must_wait():
                    return
                opened = self._lines.take_open()
                is_sent = opened is not None and self._serve(opened)
            finally:
                if not is_sent:
                    self._give_slot()
            await self._breathe()

    async def _take_slot(self) -> None:
        await self._under_way.acquire()
        await self._slots.acquire()

    def _give_slot(self) -> None:
        self._slots.release()
        self._under_way.release()

    async def _pause(self, seconds: float) -> None:
        """Wait between two copies of a patch, and let those of other pods be sent meanwhile."""
        self._slots.release()
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._slots.acquire()

    async def _breathe(self) -> None:
        """Let others have the loop if this task has had it for long enough."""
        if time.monotonic() - self._breathed_s > _SLICE_S:
            await asyncio.sleep(0)
            self._breathed_s = time.monotonic()

    def _must_wait(self) -> bool:
        """Return whether nothing may be decided; nobody may wake us then, so look again soon.

        Not even leadership that pauses between two renewals is told by anybody when it goes on.
        """
        why_not = self._term.why_not()
        if why_not is not None and why_not is not Outcome.STOPPING and self._waiters:
            heapq.heappush(self._later, (self._tools.clock() + RETRY_S, ""))
        return why_not is not None

    def _look_again(self) -> None:
        """Have everybody looked at soon, since it is not known what was not done."""
        self._waking.note(ANYTHING)
        heapq.heappush(self._later, (self._tools.clock() + RETRY_S, ""))

    def _expire_later(self) -> None:
        now_s = self._tools.clock()
        while self._later and self._later[0][0] <= now_s:
            _, uid = heapq.heappop(self._later)
            if uid in self._waiters:
                self._dirty[uid] = None

    async def _sort(self) -> None:
        """Find out for each pod that is new or changed what is to be done with it."""
        for uid in list(self._dirty):
            self._dirty.pop(uid, None)
            waiter = self._waiters.get(uid)
            if waiter is None or waiter.is_busy:
                # A busy one is looked at when its patch is through.
                continue
            if waiter.not_before_s > self._tools.clock():
                heapq.heappush(self._later, (waiter.not_before_s, uid))
                continue
            let = self._sort_one(uid, waiter)
            if let is not None:
                await self._take_slot()
                if self._must_wait():
                    self._dirty[uid] = None
                    self._give_slot()
                    return
                if self._waiters.get(uid) is waiter:
                    self._let_go(waiter, let)
                else:
                    # It has left meanwhile; those behind it have not.
                    self._give_slot()
            await self._breathe()

    def _sort_one(self, uid: str, waiter: Waiter) -> _Let | None:
        try:
            return self._place_in_line(uid, waiter)
        # The boundary of one pod: a concern's code that trips over it must not stop the others.
        except Exception as error:  # noqa: BLE001 - logged with its traceback by _set_aside
            self._set_aside(waiter, error)
            return None

    def _set_aside(self, waiter: Waiter, error: Exception) -> None:
        """Let a pod wait that our code trips over, say so, and try again later."""
        uid = waiter.pod.metadata.uid
        logger.exception("deciding failed", extra=about(waiter.pod))
        self._lines.leave(waiter)
        waiter.why = "failed"
        waiter.not_before_s = self._tools.clock() + waiter.backoff.next_s()
        heapq.heappush(self._later, (waiter.not_before_s, uid))
        message = (
            f"deciding failed with {type(error).__name__}: a defect, please report it with the "
            f"webhook's log; the annotation {names.PLACEMENT}: {Mode.OFF} creates a pod without us"
        )
        self._reporter.tell_waiting(waiter.pod, "InternalError", message, frozenset({message}))

    def _place_in_line(self, uid: str, waiter: Waiter) -> _Let | None:
        """Put a pod in its line, or say why it stands in none; return how to let it go otherwise."""
        tools, pod = self._tools, waiter.pod
        if why_exempt(pod, tools.own_namespace):
            return _Let.GO
        effective = read_effective(tools.state, pod)
        if effective.standing is Standing.NAMESPACE_UNSEEN:
            # Its arrival changes the settings, which brings us here again.
            self._lines.leave(waiter)
            waiter.why = "namespace_unseen"
            return None
        if effective.standing is not Standing.POLICY_UNSEEN:
            waiter.unseen_s = None
        if not effective.may_wait:
            if effective.standing is Standing.POLICY_UNSEEN and self._may_yet_come(uid, waiter):
                self._lines.leave(waiter)
                waiter.why = "policy_unseen"
                return None
            return _Let.PREFER if effective.mode is Mode.PREFERRED else _Let.GO
        if effective.mode is None:
            self._tell_invalid(waiter, str(unknown_mode(effective.text)))
            return None
        pause_s = deciding.pause_of(tools, pod)
        if pause_s is not None:
            self._lines.leave(waiter)
            waiter.why = "owner_paused"
            heapq.heappush(self._later, (pause_s, uid))
            self._reporter.tell_waiting(pod, "OwnerPaused", _PAUSED, frozenset({_PAUSED}))
            return None
        lacking = tools.state.engine.lacks(pod, effective.policy.spec)
        if lacking:
            self._tell_invalid(waiter, f"{lacking}: {_UNPREPARED}")
            return None
        try:
            request = tools.state.engine.read_request(
                pod, self._patient(uid, waiter, effective.policy.spec)
            )
        except InvalidRequestError as error:
            self._tell_invalid(waiter, str(error))
            return None
        self._join(uid, waiter, request)
        return None

    def _may_yet_come(self, uid: str, waiter: Waiter) -> bool:
        """Return whether the policy that took a pod over may yet be seen; look again when that ends.

        Where its kind is gone nobody knows what it asked, so that is so until the kind is back.
        """
        now_s, is_kind_gone = self._tools.clock(), self._tools.state.policy_objects.is_absent
        if waiter.unseen_s is None or is_kind_gone:
            waiter.unseen_s = now_s
        if is_kind_gone:
            words = frozenset({_NO_POLICIES})
            self._reporter.tell_waiting(waiter.pod, "PolicyUnknown", _NO_POLICIES, words)
        until_s = waiter.unseen_s + self._policy_grace_s
        if now_s >= until_s:
            return False
        heapq.heappush(self._later, (until_s, uid))
        return True

    def _patient(self, uid: str, waiter: Waiter, spec: PlacementPolicySpec) -> PlacementPolicySpec:
        """Return the policy for a pod by how long it has waited for caches, and look again in time."""
        if not spec.hold_s:
            return spec
        until_s = waiter.since_s + spec.hold_s
        if self._tools.clock() >= until_s:
            return spec.without_hold()
        heapq.heappush(self._later, (until_s, uid))
        return spec

    def _let_go(self, waiter: Waiter, let: _Let) -> None:
        """Take the gate off a pod that need not wait, with preferences where it asks for them."""
        operations, answer = deciding.ungating(raw_of(waiter.pod)), None
        if let is _Let.PREFER:
            try:
                found = self._prefer(waiter.pod)
            # As in `_sort_one`, but such a pod never waits.
            except Exception:
                logger.exception("deciding failed", extra=about(waiter.pod))
            else:
                operations, answer = found or (operations, None)
        self._send(waiter, operations, answer)

    def _prefer(self, pod: Pod) -> tuple[Operations, Answer] | None:
        tools = self._tools
        policy = read_effective(tools.state, pod).policy
        spec = policy.spec.without_hold()
        request = tools.state.engine.read_request(pod, spec, is_strict=False)
        decision = deciding.decide(tools, pod, request)
        if decision.node is None:
            return None
        answer = deciding.make_answer(tools, pod, request, decision, _OWNER, mode=Mode.PREFERRED)
        # First, so that nothing is held where there is nothing to send.
        operations = deciding.placing(raw_of(pod), answer, is_stored=True)
        tools.answers.assume(answer, tools.clock())
        self._note_decision(pod, answer, decision)
        return operations, answer

    def _tell_invalid(self, waiter: Waiter, message: str) -> None:
        self._lines.leave(waiter)
        waiter.why = "invalid"
        self._reporter.tell_waiting(waiter.pod, "Invalid", message, frozenset({message}))

    def _join(self, uid: str, waiter: Waiter, request: PodRequest) -> None:
        avoided = deciding.avoided_by(self._tools, waiter.pod)
        line = self._lines.join(request, avoided, uid, waiter)
        waiter.why = "in_line"
        if line.message:
            # Why those before it wait; if it is served soon, nothing is written.
            self._tell_nowhere(waiter, line)

    # One pod.

    def _serve(self, line: Line) -> bool:
        """Decide for the first pod of a line; return whether a patch is under way for it."""
        waiter = self._lines.first(line)
        if waiter is None:
            return False
        began_s, had_words = time.thread_time(), bool(line.codes)
        try:
            is_placed = self._serve_one(line, waiter)
        # As in `_sort_one`.
        except Exception as error:  # noqa: BLE001 - as above
            self._set_aside(waiter, error)
            # Those behind it are served in the next round.
            self._tripped.append(line)
            self._wake.set()
            is_placed = False
        # The first decision of a line is not in vain: its pods have to be told something.
        if not is_placed and had_words:
            self._waking.rest(time.thread_time() - began_s)
        return is_placed

    def _serve_one(self, line: Line, waiter: Waiter) -> bool:
        tools, pod = self._tools, waiter.pod
        engine = tools.state.engine
        request = engine.resolve(waiter.request)
        if request != line.request:
            # Other pods have come to object to this one, or have ceased to, so it speaks for those
            # behind it no more.
            self._join(pod.metadata.uid, waiter, request)
            self._lines.open(line)
            return False
        if not self._waking.has_hope(line):
            # It lacks what is not counted, or others that go first have taken the room.
            self._lines.close(line, lambda: engine.needs(request))
            return False
        decision = deciding.decide(tools, pod, request)
        raw = raw_of(pod)
        if decision.node is None or not affinity.can_pin(raw, decision.node):
            self._close(line, decision)
            return False
        is_bind = read_effective(tools.state, pod).mode is Mode.BIND
        note = bound_as_required(FROM_QUEUE) if is_bind else ""
        answer = deciding.make_answer(
            tools, pod, request, decision, _OWNER, mode=Mode.REQUIRED, note=note
        )
        # First, as in `_prefer`.
        operations = deciding.placing(raw, answer)
        tools.answers.assume(answer, tools.clock())
        self._note_decision(pod, answer, decision)
        self._send(waiter, operations, answer)
        self._lines.take_turn(line)
        self._lines.open(line)
        return True

    def _note_decision(self, pod: Pod, answer: Answer, decision: Decision) -> None:
        self._tools.metrics.decisions.labels(str(answer.mode), str(Outcome.PLACED)).inc()
        logger.info(
            "decided",
            extra={
                "pod": pod.key,
                "decision": decision.id,
                "outcome": str(Outcome.PLACED),
                "mode": str(answer.mode),
                "node": decision.node,
                "score": decision.score,
                "from": "queue",
            },
        )

    def _close(self, line: Line, decision: Decision) -> None:
        codes = frozenset(it.group for it in decision.refusals)
        # Where there are no nodes there are no codes either.
        is_news = not line.message or line.codes != codes
        line.message, line.codes = decision.describe(), codes
        line.is_local = decision.is_local
        self._waking.note_decided(line)
        self._lines.close(line, lambda: self._tools.state.engine.needs(line.request))
        if is_news:
            for waiter in self._lines.members(line):
                self._tell_nowhere(waiter, line)

    def _tell_nowhere(self, waiter: Waiter, line: Line) -> None:
        waiter.why = "nowhere"
        self._reporter.tell_waiting(waiter.pod, "NoNodeFits", line.message, line.codes)

    def _send(self, waiter: Waiter, operations: Operations, answer: Answer | None) -> None:
        self._lines.leave(waiter)
        waiter.is_busy = True
        waiter.why = "placing"
        self._busy += 1
        self._idle.clear()
        if self._tasks is not None:
            self._tasks.create_task(self._see_through(waiter, operations, answer))

    async def _see_through(
        self, waiter: Waiter, operations: Operations, answer: Answer | None
    ) -> None:
        pod = waiter.pod

        def may_send() -> bool:
            if self._term.why_not() in _NOT_OURS_NOW:
                return False
            if answer is None:
                return True
            # After a long pause its room may have lapsed and be somebody else's by now.
            return self._tools.state.ledger.answered(answer.decision_id, self._tools.clock())

        def is_done(stored: JsonObject) -> bool:
            return deciding.has_effect(stored, answer)

        fate = Fate.ABANDONED
        try:
            fate = await send_until_known(
                self._store,
                pod,
                operations,
                may_send=may_send,
                is_done=is_done,
                backoff=self._new_backoff(),
                pause=self._pause,
            )
        # The boundary of one pod's task: the others go on, what it assumed stays until it lapses.
        except Exception:
            logger.exception("placing failed", extra=about(pod, _id_of(answer)))
        finally:
            self._give_slot()
            self._busy -= 1
            if not self._busy:
                self._idle.set()
        if fate is Fate.ABANDONED and answer is not None and self._is_seen(pod, answer):
            fate = Fate.DONE
        try:
            self._conclude(waiter, pod, answer, fate)
        # As above. It is looked at again, unless the watch shows it without its gate.
        except Exception as error:  # noqa: BLE001 - as in `_sort_one`
            waiter.is_busy = False
            self._set_aside(waiter, error)

    def _is_seen(self, pod: Pod, answer: Answer) -> bool:
        """Return whether the watch has shown what became of a patch before its answer came."""
        entry = self._tools.state.ledger.entry(pod.metadata.uid)
        return entry is not None and entry.decision_id == answer.decision_id

    def _conclude(self, waiter: Waiter, sent: Pod, answer: Answer | None, fate: Fate) -> None:
        if fate is Fate.DONE:
            # It stays busy until the watch shows it without its gate.
            if answer is not None:
                self._reporter.tell_placed(waiter.pod, answer.node)
                self._tools.metrics.wait_duration.observe(_age_s(sent.metadata))
            else:
                self._tools.metrics.decisions.labels("none", str(Outcome.UNGATED)).inc()
                logger.info("ungated unchanged", extra=about(sent))
            return
        if answer is not None and fate in (Fate.REFUSED, Fate.GONE):
            deciding.give_back(self._tools, answer.decision_id)
        logger.info("patch without effect", extra=about(sent, _id_of(answer), fate=fate.value))
        waiter.is_busy = False
        if waiter.pod is sent:
            # A fresh version of the pod goes at once, the same one after a pause.
            waiter.not_before_s = self._tools.clock() + waiter.backoff.next_s()
        self._dirty[sent.metadata.uid] = None
        self._wake.set()

    def _new_backoff(self) -> Backoff:
        return Backoff(first_s=self._first_backoff_s, cap_s=30.0, clock=self._tools.clock)

    def describe(self, count: int) -> list[dict[str, Any]]:
        """Return the first so many pods as JSON data: which, since when (seconds), why."""
        first = heapq.nsmallest(count, self._waiters.values(), key=lambda it: it.order)
        return [
            {
                "pod": it.pod.key,
                "since": it.pod.metadata.created_s or time.time(),
                "reason": it.why,
                "message": it.line.message if it.line is not None else "",
            }
            for it in first
        ]

    def _count(self) -> None:
        counts: Counter[str] = Counter()
        oldest: dict[str, ObjectMeta] = {}
        for waiter in self._waiters.values():
            counts[waiter.why] += 1
            known = oldest.setdefault(waiter.why, waiter.pod.metadata)
            # As text, which is in the order of time and quicker than reading ten thousand of them.
            if _created(waiter.pod.metadata) < _created(known):
                oldest[waiter.why] = waiter.pod.metadata
        metrics = self._tools.metrics
        metrics.waiting_pods.clear()
        metrics.oldest_waiting.clear()
        for why, count in counts.items():
            metrics.waiting_pods.labels(why).set(count)
            metrics.oldest_waiting.labels(why).set(_age_s(oldest[why]))


def _id_of(answer: Answer | None) -> str:
    return answer.decision_id if answer is not None else ""


def _created(metadata: ObjectMeta) -> str:
    return metadata.creation_timestamp or ""


def _age_s(metadata: ObjectMeta) -> float:
    """Return the time since an object's creation by the API server's clock and ours, at least 0."""
    created_s = metadata.created_s
    return 0.0 if created_s is None else max(0.0, time.time() - created_s)


def _gist(pod: Pod) -> Hashable:
    """Return what a pod's place in the queue depends on, apart from status and version."""
    metadata = pod.metadata
    return (
        tuple(sorted((metadata.labels or {}).items())),
        tuple(sorted(pod.annotations.items())),
        repr(pod.spec),
    )
