"""Pods that asked for placement and run without a decision: ungated by hand, or bound by somebody else.

They are counted where they are from what they request; this tells how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from msgspec import structs

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind
from berthmaster.placement.filling import Filling, Resource
from berthmaster.placement.ledger import Ledger
from berthmaster.placement.opting import why_exempt
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.reporting import ref_of

_UNGATED_MODES = (Mode.PREFERRED, Mode.OBSERVE, Mode.OFF)


class BypassedPods:
    """Keeps the gauges, and tells of each pod by an Event; the mode counts that stands on the pod.

    `may_tell` says whether this process is the one that tells, and has seen what was there before.
    """

    def __init__(
        self,
        metrics: Metrics,
        ledger: Ledger,
        filling: Filling,
        events: EventRecorder,
        *,
        may_tell: Callable[[], bool],
    ) -> None:
        self._events = events
        self._may_tell = may_tell
        self._metrics = metrics
        self._ledger = ledger
        self._filling = filling
        self._uids: set[str] = set()
        metrics.before_render.append(self._measure)

    def __len__(self) -> int:
        return len(self._uids)

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Count a pod in or out."""
        uid = pod.metadata.uid
        if kind is EventKind.DELETED or not is_bypassed(pod):
            self._uids.discard(uid)
        elif uid not in self._uids:
            self._uids.add(uid)
            if self._may_tell():
                self._events.record(
                    ref_of(pod),
                    "BoundPastUs",
                    f"runs on {pod.spec.node_name} without a decision: it was ungated, or bound by "
                    "somebody else; what it requests is counted there, and was not checked before",
                    action="Placing",
                    type_="Warning",
                )
        self._metrics.bypassed_pods.set(len(self._uids))

    def _measure(self) -> None:
        """Add up what they take."""
        sums: defaultdict[Resource, float] = defaultdict(float)
        for uid in self._uids:
            entry = self._ledger.entry(uid)
            if entry is not None:
                for resource, amount in self._filling.taken(entry).items():
                    sums[resource] += amount
        self._metrics.bypassed_used.clear()
        for resource, total in sums.items():
            self._metrics.bypassed_used.labels(*resource).set(total)


def is_bypassed(pod: Pod) -> bool:
    """Tell whether a stored pod opted in, is bound, and carries no allocation."""
    mode = pod.annotations.get(names.PLACEMENT)
    return (
        mode is not None
        and mode not in _UNGATED_MODES
        and bool(pod.spec.node_name)
        and names.ALLOCATION not in pod.annotations
        and not pod.is_finished
        and not _was_never_ours(pod)
    )


def _was_never_ours(pod: Pod) -> bool:
    # A stored pod has its node by now; whether it came with one cannot be told any more.
    unbound = structs.replace(pod, spec=structs.replace(pod.spec, node_name=""))
    return bool(why_exempt(unbound))
