"""Where the pods of caches run: placements that are true now, for plugins whose pods are known.

The Ceph cache plugin writes placements once and never again. Its pods tell better: those of a dataset's
gateway are labelled `app=rook-ceph-rgw, rgw=<dataset>`, the storage daemons `app=rook-ceph-osd`, all in
Rook's namespace. Only running pods count. A list of which no pod runs is not replaced: a gateway that is being
started anew must not turn its cache into a file system that pods may not leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from berthmaster.api import names
from berthmaster.api.datasets import Dataset, DatasetInternal, Placement
from berthmaster.api.objects import Struct
from berthmaster.cluster.client import Query

CEPH_PLUGIN = "ceph-cache-plugin"
CACHE_PODS: Query = {"labelSelector": "app in (rook-ceph-rgw,rook-ceph-osd)"}
_GATEWAY = "rook-ceph-rgw"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePod:
    """A pod of a cache. `dataset` is whose gateway it is, empty for a storage daemon; `node` where it runs."""

    uid: str
    dataset: str
    node: str


class _Meta(Struct, frozen=True):
    uid: str = ""
    labels: dict[str, str] | None = None


class _Spec(Struct, frozen=True):
    node_name: str = ""


class _Status(Struct, frozen=True):
    phase: str = ""


class _Pod(Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()
    status: _Status = _Status()


_decode = msgspec.json.Decoder(_Pod).decode


def decode_cache_pod(raw: bytes) -> CachePod:
    """Read a pod; raises `msgspec.ValidationError` on a field of the wrong type."""
    pod = _decode(raw)
    labels = pod.metadata.labels or {}
    is_gateway = labels.get("app") == _GATEWAY
    return CachePod(
        uid=pod.metadata.uid,
        dataset=labels.get("rgw", "") if is_gateway else "",
        node=pod.spec.node_name if pod.status.phase == "Running" else "",
    )


class CachePods:
    """The pods of caches; `on_change` is told whose gateway moved, or None where data did."""

    def __init__(self, on_change: Callable[[str | None], None]) -> None:
        self._on_change = on_change
        self._pods: dict[str, CachePod] = {}

    def see(self, pod: CachePod) -> None:
        """Take over a pod."""
        known = self._pods.get(pod.uid)
        self._pods[pod.uid] = pod
        if known != pod:
            self._on_change(pod.dataset or None)

    def lose(self, pod: CachePod) -> None:
        """Forget a pod that is gone."""
        if self._pods.pop(pod.uid, None) is not None:
            self._on_change(pod.dataset or None)

    def correct(self, dataset: Dataset, internal: DatasetInternal) -> DatasetInternal:
        """Return the placements as they are now; those of other plugins as they were."""
        if dataset.plugin != CEPH_PLUGIN:
            return internal
        gateways, data = self._nodes_of(dataset.name), self._nodes_of("")
        return replace(
            internal,
            gateways=_placements(gateways) or internal.gateways,
            data_locations=_placements(data) or internal.data_locations,
        )

    def _nodes_of(self, dataset: str) -> set[str]:
        return {it.node for it in self._pods.values() if it.dataset == dataset and it.node}


def _placements(nodes: set[str]) -> tuple[Placement, ...]:
    return tuple(Placement(names.HOSTNAME_LABEL, it) for it in sorted(nodes))
