"""Why a pod waits, told on the pod itself: condition `berthmaster.io/Placed` and an Event.

Each write costs the API server as much as placing a pod, so there are few: none for a pod that waits
less than a second, none while the set of reason codes stays, at most one in 30 s per pod, and never
faster than a fixed pace for all pods together.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import Condition as PodCondition
from berthmaster.api.objects import Pod
from berthmaster.cluster.client import PatchKind
from berthmaster.cluster.conditions import Condition, condition_patch
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster_webhook.sending import PodStore, pod_path
from berthmaster_webhook.telling import about

logger = logging.getLogger(__name__)

PAUSE_S = 30.0
PATIENCE_S = 1.0
# Between two writes: 20 in a second leave a small API server room for placing.
PACE_S = 0.05
# Looking again whether we may write; nobody tells us.
RETRY_S = 1.0
TIMEOUT_S = 10.0
PLACED = "Placed"
_COUNTS = re.compile(r"\d+/\d+ nodes: |\d+ \([^()]*\) ")
# An API server that has just started refuses everybody until it has read who may do what.
_REFUSED_AT_START = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is to be told; two reports with equal `codes` and reason tell the same."""

    pod: Pod
    is_placed: bool
    reason: str
    message: str
    codes: frozenset[str]

    @property
    def gist(self) -> tuple[str, frozenset[str]]:
        """Return what makes two reports the same."""
        return (self.reason, self.codes)


class Reporter:
    """Takes reports at any rate and writes a few. `clock` gives monotonic seconds."""

    def __init__(
        self,
        store: PodStore,
        events: EventRecorder,
        *,
        may_write: Callable[[], bool],
        clock: Callable[[], float],
        pace_s: float = PACE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._events = events
        self._may_write = may_write
        self._clock = clock
        self._pace_s = pace_s
        self._patience_s = patience_s
        self._told: dict[str, tuple[tuple[str, frozenset[str]], float]] = {}
        self._pending: dict[str, Report] = {}
        self._due: list[tuple[float, str]] = []
        self._wake = asyncio.Event()

    def tell_waiting(self, pod: Pod, reason: str, message: str, codes: frozenset[str]) -> None:
        """Say that a pod waits, and why; `reason` is a CamelCase word."""
        report = Report(pod=pod, is_placed=False, reason=reason, message=message, codes=codes)
        uid = pod.metadata.uid
        told = self._told.get(uid)
        if told is not None and told[0] == report.gist:
            self._pending.pop(uid, None)
            return
        now_s = self._clock()
        due_s = now_s + self._patience_s if told is None else max(now_s, told[1] + PAUSE_S)
        self._plan(uid, report, due_s)

    async def tell_now(self, pod: Pod, reason: str, message: str) -> None:
        """Say at once why a pod does not run, because it may soon be gone; at most 10 s."""
        uid = pod.metadata.uid
        self._pending.pop(uid, None)
        codes = frozenset({reason})
        report = Report(pod=pod, is_placed=False, reason=reason, message=message, codes=codes)
        await self._write(uid, report)

    def tell_placed(self, pod: Pod, node: str) -> None:
        """Say that a pod has a node now, if it was ever told why it waits."""
        uid = pod.metadata.uid
        self._pending.pop(uid, None)
        if uid not in self._told and _condition(pod) is None:
            return
        report = Report(
            pod=pod,
            is_placed=True,
            reason=PLACED,
            message=f"placed on {node}",
            codes=frozenset({node}),
        )
        self._plan(uid, report, self._clock())

    def forget(self, uid: str) -> None:
        """Drop what is known of a pod that does not wait any more; a last word still goes out."""
        self._told.pop(uid, None)
        report = self._pending.get(uid)
        if report is not None and not report.is_placed:
            del self._pending[uid]

    async def run(self) -> None:
        """Write until cancelled. What is due while we may not write is written when we may."""
        while True:
            now_s = self._clock()
            while self._due and self._due[0][0] <= now_s and self._may_write():
                _, uid = heapq.heappop(self._due)
                report = self._pending.pop(uid, None)
                if report is not None:
                    is_written = True
                    try:
                        is_written = await self._write(uid, report)
                    # The boundary of one pod: what cannot be said of it must not silence the others.
                    except Exception:
                        logger.exception("report failed", extra=about(report.pod))
                    await asyncio.sleep(self._pace_s if is_written else 0)
                    now_s = self._clock()
            try:
                async with asyncio.timeout(self._idle_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _plan(self, uid: str, report: Report, due_s: float) -> None:
        is_new = uid not in self._pending
        self._pending[uid] = report
        if is_new or report.is_placed:
            heapq.heappush(self._due, (due_s, uid))
            self._wake.set()

    def _idle_s(self) -> float | None:
        if not self._due:
            return None
        wait_s = self._due[0][0] - self._clock()
        return wait_s if wait_s > 0 or self._may_write() else RETRY_S

    async def _write(self, uid: str, report: Report) -> bool:
        """Write a report; return False if the pod says it already, and nothing was sent."""
        pod = report.pod
        condition = Condition(
            type=names.PLACED_CONDITION,
            status="True" if report.is_placed else "False",
            reason=report.reason,
            message=report.message,
        )
        existing = [msgspec.to_builtins(it) for it in pod.status.conditions or ()]
        patch = condition_patch(condition, existing, now=datetime.now(UTC), uid=uid)
        if not report.is_placed:
            self._told[uid] = (report.gist, self._clock())
        if patch is None or _says_the_same(pod, condition):
            return False
        try:
            await self._store.patch(
                f"{pod_path(pod)}/status", patch, PatchKind.STRATEGIC, timeout_s=TIMEOUT_S
            )
        except ApiError as error:
            if error.is_not_found or error.is_conflict:
                return True
            may_pass = error.is_retryable or error.status in _REFUSED_AT_START
            self._put_off(uid, report, error, is_lasting=not may_pass)
        except ClusterError as error:
            self._put_off(uid, report, error, is_lasting=False)
        self._events.record(
            ref_of(pod),
            report.reason,
            report.message,
            action="Placing",
            type_="Normal" if report.is_placed else "Warning",
        )
        return True

    def _put_off(self, uid: str, report: Report, error: ClusterError, *, is_lasting: bool) -> None:
        """Say it later: the reasons may stay as they are, so nothing else would bring it up again."""
        logger.warning("condition not written", extra=about(report.pod, error=str(error)))
        # A pod that does not wait any more was forgotten meanwhile.
        if is_lasting or self._told.pop(uid, None) is None or uid in self._pending:
            return
        self._plan(uid, report, self._clock() + PAUSE_S)


def ref_of(pod: Pod) -> ObjectRef:
    """Return a pod as what an Event is about."""
    metadata = pod.metadata
    return ObjectRef(
        api_version="v1",
        kind="Pod",
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
    )


def _condition(pod: Pod) -> PodCondition | None:
    conditions = pod.status.conditions or ()
    return next((it for it in conditions if it.type == names.PLACED_CONDITION), None)


def _says_the_same(pod: Pod, wanted: Condition) -> bool:
    """Return whether a pod gives these reasons already, of as many nodes as may be.

    A new leader knows what the last one told by that alone, and must not tell ten thousand pods again.
    """
    found = _condition(pod)
    return found is not None and (
        (found.status, found.reason) == (wanted.status, wanted.reason)
        and _reasons(found.message) == _reasons(wanted.message)
    )


def _reasons(message: str) -> frozenset[str]:
    """Return the reasons in a decision's words, without counts and examples; else the whole message."""
    return frozenset(part.removesuffix(", ") for part in _COUNTS.split(message))
