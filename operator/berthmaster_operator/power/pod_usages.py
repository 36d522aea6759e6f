"""What pods use that rule WAOv1 placed: it assumes a usage for each, until the pod's own reaches half of that.

Only those are asked for, a bounded number at a time, whoever was asked for the longest ago first. A usage is kept in
tenths of what was assumed, and as all of it once half is reached: an inventory is not written for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from berthmaster.api import names

_STEPS = 10
# As many as an inventory holds.
_MOST_OF_A_NODE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AssumedPod:
    """A pod on a node and the CPU that is assumed for it, in billionths of a core."""

    uid: str
    namespace: str
    name: str
    node: str
    assumed: int

    @property
    def metrics_path(self) -> str:
        """Return where its PodMetrics are."""
        return f"/apis/{names.METRICS_API_VERSION}/namespaces/{self.namespace}/pods/{self.name}"


class PodUsages:
    """Pods by uid, and what each was last seen to use."""

    def __init__(self) -> None:
        # In the order in which they were asked for.
        self._waiting: dict[str, AssumedPod] = {}
        self._of_node: dict[str, dict[str, int]] = {}
        self._node_of: dict[str, str] = {}

    def see(self, pod: AssumedPod) -> None:
        """Take over a pod that was placed; one that is known stays as it is."""
        if pod.uid not in self._node_of:
            self._node_of[pod.uid] = pod.node
            self._waiting[pod.uid] = pod

    def lose(self, uid: str) -> None:
        """Forget a pod; unknown ones are ignored."""
        node = self._node_of.pop(uid, None)
        self._waiting.pop(uid, None)
        usages = self._of_node.get(node, {}) if node is not None else {}
        usages.pop(uid, None)
        if node is not None and not usages:
            self._of_node.pop(node, None)

    def next(self, most: int) -> list[AssumedPod]:
        """Return the pods to ask for now; they go to the end of the row."""
        chosen = list(self._waiting.values())[:most]
        for pod in chosen:
            self._waiting[pod.uid] = self._waiting.pop(pod.uid)
        return chosen

    def take(self, pod: AssumedPod, nanocores: int) -> bool:
        """Take over what a pod uses; tell whether that is news."""
        if pod.uid not in self._waiting:
            return False
        usages = self._of_node.setdefault(pod.node, {})
        if pod.uid not in usages and len(usages) >= _MOST_OF_A_NODE:
            return False
        step = max(pod.assumed // _STEPS, 1)
        usage = nanocores // step * step
        if 2 * nanocores >= pod.assumed:
            del self._waiting[pod.uid]
            usage = pod.assumed
        is_news = usages.get(pod.uid, 0) != usage
        usages[pod.uid] = usage
        return is_news

    def of_node(self, name: str) -> Mapping[str, int]:
        """Return what pods of a node use, by uid in its order."""
        return dict(sorted(self._of_node.get(name, {}).items()))
