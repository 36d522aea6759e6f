"""Pins that fail: pods that we placed and kube-scheduler cannot bind.

kube-scheduler reserves nothing for a pinned pod, and a stored pod cannot be pinned anew. So a pod of
ours that was Unschedulable for longer than its policy's `pinPatience`, counted from when we first saw
it so, is told that its pin failed. If a controller owns it, it is evicted, and its successor stays
away from that node for a while; one eviction per owner at a time. A bare pod is told and left.
What the pod holds stays held until it is gone.

A pod of mode `preferred` is pinned, too, to the nodes of its file systems. It is given up only where these are not
there any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.objects import OwnerReference, Pod
from berthmaster.api.policy import Mode
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import JsonObject, Query
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns import dataset
from berthmaster_webhook.admission import Term
from berthmaster_webhook.avoiding import OwnerPauses
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.effective import read_effective
from berthmaster_webhook.guarding import guarded
from berthmaster_webhook.reporting import Reporter
from berthmaster_webhook.sending import pod_path
from berthmaster_webhook.telling import about

logger = logging.getLogger(__name__)

REASON = "PinFailed"
EVICT_TIMEOUT_S = 10.0
# An owner whose evicted pod does not go away is asked again after this.
STUCK_S = 120.0


class Evicter(Protocol):
    """Name the part of `Client` that is needed here."""

    async def create(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        """Create one object."""
        ...


@dataclass(eq=False, slots=True)
class _Failing:
    """One pod that cannot be bound, with when to look at it next."""

    pod: Pod
    node: str
    since_s: float
    due_s: float
    backoff: Backoff
    is_told: bool = False


class FailedPins:
    """Watches for pins that fail; give it to the state's callbacks and await `run`."""

    def __init__(
        self,
        tools: Tools,
        term: Term,
        store: Evicter,
        reporter: Reporter,
        *,
        on_avoid: Callable[[], None] = lambda: None,
        first_backoff_s: float = 5.0,
    ) -> None:
        self._tools = tools
        self._term = term
        self._store = store
        self._reporter = reporter
        self._on_avoid = on_avoid
        self._first_backoff_s = first_backoff_s
        self._failing: dict[str, _Failing] = {}
        # Owner uid -> the pod that is being evicted, and until when that keeps others waiting.
        self._evicting: dict[str, tuple[str, float]] = {}
        # Between evictions of an owner's pods.
        self._pauses = OwnerPauses(first_backoff_s, clock=tools.clock)
        self._wake = asyncio.Event()

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take over a pod that the watch or a list shows."""
        uid = pod.metadata.uid
        if kind is EventKind.DELETED or not _is_unschedulable(pod):
            failed = self._failing.pop(uid, None)
            if failed is not None:
                if failed.is_told and pod.spec.node_name and kind is not EventKind.DELETED:
                    # Room came free after all; the condition must not go on saying otherwise.
                    self._reporter.tell_placed(pod, pod.spec.node_name)
                self._reporter.forget(uid)
            if kind is EventKind.DELETED:
                self._release_owner(uid)
            return
        known = self._failing.get(uid)
        if known is not None:
            known.pod = pod
            return
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        if allocation is None or not _is_pinned(allocation):
            return
        now_s = self._tools.clock()
        self._failing[uid] = _Failing(
            pod=pod,
            node=allocation.node,
            since_s=now_s,
            due_s=now_s + self._patience_s(pod),
            backoff=Backoff(first_s=self._first_backoff_s, cap_s=300.0, clock=self._tools.clock),
        )
        self._wake.set()

    def _patience_s(self, pod: Pod) -> float:
        return float(read_effective(self._tools.state, pod).policy.spec.pin_patience)

    def take_ready(self) -> None:
        """Look at what became due while somebody else led."""
        self._wake.set()

    async def run(self) -> None:
        """Act on what is due until cancelled."""
        while True:
            if self._tools.avoided.expire(self._tools.clock()):
                guarded(self._on_avoid, "end of avoiding not told")
            if self._term.why_not() is None:
                await self._act_on_due()
            try:
                async with asyncio.timeout(self._idle_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _idle_s(self) -> float | None:
        due_s = [it.due_s for it in self._failing.values() if not math.isinf(it.due_s)]
        if self._tools.avoided.next_end_s is not None:
            due_s.append(self._tools.avoided.next_end_s)
        # At least a second: while we do not lead, what is due stays so.
        return max(1.0, min(due_s) - self._tools.clock()) if due_s else None

    async def _act_on_due(self) -> None:
        now_s = self._tools.clock()
        for uid, failing in list(self._failing.items()):
            if failing.due_s <= now_s and self._may_act(uid, failing):
                try:
                    await self._give_up(uid, failing)
                # The boundary of one pod: what our code trips over must not stop the others.
                except Exception:
                    failing.due_s = self._tools.clock() + failing.backoff.next_s()
                    logger.exception("pin not given up", extra=about(failing.pod))

    def _keeps_its_data(self, failing: _Failing) -> bool:
        """Return whether a pod is pinned to data alone, and these are still where it was sent."""
        allocation = read_allocation(failing.pod.annotations.get(names.ALLOCATION))
        if allocation is None or allocation.mode != Mode.PREFERRED:
            return False
        state = self._tools.state
        spec = read_effective(state, failing.pod).policy.spec
        request = state.engine.read_request(failing.pod, spec, is_strict=False)
        found = state.engine.opinions(request, allocation.node).get(dataset.CONCERN.name)
        if found is None or found.given is None:
            return False
        return _file_systems(allocation).issubset(found.given.get("datasets", {}))

    def _may_act(self, uid: str, failing: _Failing) -> bool:
        """Return whether the pod still fails and is ours to act on; asked after each wait."""
        return self._failing.get(uid) is failing and self._term.why_not() is None

    async def _give_up(self, uid: str, failing: _Failing) -> None:
        now_s = self._tools.clock()
        controller = failing.pod.metadata.controller()
        if not failing.is_told:
            # The policy may have changed, or may not have been there yet when the pod was first seen.
            due_s = failing.since_s + self._patience_s(failing.pod)
            if due_s > now_s:
                failing.due_s = due_s
                return
            if self._keeps_its_data(failing):
                failing.due_s = now_s + max(self._patience_s(failing.pod), self._first_backoff_s)
                return
            failing.is_told = True
            await self._tell(failing, controller)
            if not self._may_act(uid, failing):
                return
        if controller is None or controller.kind == "DaemonSet":
            failing.due_s = math.inf
            return
        free_s = self._free_at_s(controller.uid, uid)
        if free_s > now_s:
            failing.due_s = min(free_s, now_s + self._first_backoff_s)
            return
        self._tools.avoided.add(controller.uid, failing.node, now_s)
        self._on_avoid()
        self._evicting[controller.uid] = (uid, now_s + STUCK_S)
        await self._evict(failing, controller)

    def _free_at_s(self, owner: str, uid: str) -> float:
        """Return from when on the owner's pod may be evicted."""
        evicted, until_s = self._evicting.get(owner, (uid, 0.0))
        pause_s = self._pauses.until_s(owner)
        return max(pause_s, until_s) if evicted != uid else pause_s

    async def _evict(self, failing: _Failing, controller: OwnerReference) -> None:
        """Ask for the eviction; what becomes of it shows in the watch, or it is asked again."""
        metadata = failing.pod.metadata
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": metadata.name, "namespace": metadata.namespace},
            "deleteOptions": {"preconditions": {"uid": metadata.uid}},
        }
        result, wish_s = "accepted", None
        try:
            await self._store.create(
                f"{pod_path(failing.pod)}/eviction", eviction, timeout_s=EVICT_TIMEOUT_S
            )
        except ApiError as error:
            wish_s = error.retry_after_s
            result = "refused" if error.status == 429 else "failed"
            if error.is_not_found or error.is_conflict:
                result = "gone"
            # The next pod of this owner may be evictable.
            self._evicting.pop(controller.uid, None)
            _log(failing, error)
        except ClusterError as error:
            result = "failed"
            _log(failing, error)
        if result == "accepted":
            self._pauses.pause(controller.uid)
        self._tools.metrics.evictions.labels(result).inc()
        wait_s = STUCK_S if result == "accepted" else failing.backoff.next_s(wish_s)
        failing.due_s = self._tools.clock() + max(wait_s, self._first_backoff_s)

    async def _tell(self, failing: _Failing, controller: OwnerReference | None) -> None:
        pod = failing.pod
        said = next(
            (it.message for it in pod.status.conditions or () if it.type == "PodScheduled"), ""
        )
        what = (
            "nothing owns it, so delete and create it again"
            if controller is None
            else f"it is evicted, and the next pod of {controller.kind} {controller.name} "
            "avoids this node"
        )
        message = f"placed on {failing.node}, but kube-scheduler cannot bind it ({said}); {what}"
        self._tools.metrics.pin_failures.inc()
        logger.warning("pin failed", extra=about(pod, node=failing.node))
        await self._reporter.tell_now(pod, REASON, message)

    def _release_owner(self, uid: str) -> None:
        for owner, (evicted, _) in list(self._evicting.items()):
            if evicted == uid:
                del self._evicting[owner]
                self._wake.set()


def _is_pinned(allocation: Allocation) -> bool:
    """Return whether kube-scheduler was given no choice, or only that among the nodes of file systems."""
    if allocation.mode == Mode.PREFERRED:
        return bool(_file_systems(allocation))
    return allocation.mode == Mode.REQUIRED


def _file_systems(allocation: Allocation) -> frozenset[str]:
    """Return the datasets without a gateway that the pod was sent to."""
    datasets = allocation.allocated.get(dataset.CONCERN.name, {}).get("datasets", {})
    return frozenset(
        name
        for name, it in (datasets.items() if isinstance(datasets, Mapping) else ())
        if isinstance(it, Mapping) and it.get("mode") == "filesystem"
    )


def _is_unschedulable(pod: Pod) -> bool:
    if pod.spec.node_name or pod.spec.scheduling_gates or pod.metadata.deletion_timestamp:
        return False
    if names.ALLOCATION not in pod.annotations or pod.is_finished:
        return False
    return any(
        it.type == "PodScheduled" and it.status == "False" and it.reason == "Unschedulable"
        for it in pod.status.conditions or ()
    )


def _log(failing: _Failing, error: ClusterError) -> None:
    logger.warning("eviction failed", extra=about(failing.pod, error=str(error)))
