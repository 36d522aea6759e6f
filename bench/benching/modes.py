"""The modes in which pods are created, and what the pods of each ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benching.fleets import WORKLOADS
from berthmaster.api import names

NAMESPACE, FIVE_NAMESPACE = "bench", "bench-five"
QUEUE, FIVE = "queue", "five"
MODES = ("plain", "required", "preferred", "bind", QUEUE, FIVE)
OF_ALL = ("plain", "required", "bind", QUEUE, FIVE)
OF_PARTS = ("plain", "required")
# A taint of nodes that are ours alone: `bind` wants it, and it changes nothing for the others.
TAINT = {"key": "example.com/berthmaster-only", "effect": "NoSchedule"}
TOLERATION = {"key": TAINT["key"], "operator": "Exists"}
# How long things take on a quiet machine of two cores, to say at the start how long a run will.
_START_S, _NODE_S, _NODE_OF_FIVE_S, _TURN_S, _POD_S = 45.0, 0.02, 0.22, 14.0, 0.014


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    nodes: int
    pods: int
    turns: int
    modes: tuple[str, ...]
    disks: bool
    zones: int
    hands: int

    @property
    def has_fleet(self) -> bool:
        """Return whether every concern is to know something of each node."""
        return FIVE in self.modes

    @property
    def expected_s(self) -> float:
        """Return how long it will take, about, on a quiet machine of two cores."""
        set_up_s = _START_S + self.nodes * (_NODE_OF_FIVE_S if self.has_fleet else _NODE_S)
        turn_s = _TURN_S + self.pods * _POD_S
        return set_up_s + len(self.modes) * (_TURN_S + self.turns * turn_s)


def namespace_of(mode: str) -> str:
    """Return where the pods of a mode are created."""
    return FIVE_NAMESPACE if mode == FIVE else NAMESPACE


def pods_of(mode: str) -> str:
    """Return the API path of the pods of a mode."""
    return f"/api/v1/namespaces/{namespace_of(mode)}/pods"


def make_pods(mode: str, plan: Plan) -> list[dict[str, Any]]:
    """Return the pods of a mode, to be created in turn; all but `five` ask for the same CPU and memory."""
    spec = {"tolerations": [TOLERATION]}
    if mode == FIVE:
        metadata = {"annotations": {names.PLACEMENT: "required"}, "labels": {"app": "bench"}}
        return [it.pod(metadata, spec) for it in WORKLOADS]
    annotations = {}
    if mode != "plain":
        annotations[names.PLACEMENT] = "required" if mode == QUEUE else mode
        if plan.disks:
            request = {"rbps": "5Mi", "wbps": "5Mi", "blocksize": "32k"}
            annotations[names.DISKIO_REQUEST] = json.dumps(request)
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    if plan.zones and not plan.has_fleet:
        whole = {"cpu": "1", "memory": "1Gi"}
        resources = {"requests": whole, "limits": whole}
    container = {"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": resources}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"annotations": annotations, "labels": {"app": "bench"}},
            "spec": {"containers": [container], **spec},
        }
    ]
