"""Codes of the power concern and upstream's words for them."""

from __future__ import annotations

from berthmaster.concerns.shape import Reason

NO_CPU = 1
NO_METRICS = 2


def no_cpu() -> Reason:
    """Return WAO v2's words for a pod that says nothing of CPU."""
    words = "at least one container in the pod must have a requests.cpu or limits.cpu set"
    return Reason(
        text=words,
        group=words,
        detail="rule WAOv2 refuses such pods; rule LeastIncrease counts defaultRequest for them",
    )


def no_metrics(node: str) -> Reason:
    """Return WAO v1's words for a node without NodeMetrics, which refuses the pod everywhere."""
    words = f"Metrics of node {node} cannot be got"
    return Reason(
        text=words,
        group=words,
        detail="rule WAOv1 with strictUpstream refuses every node while one has no NodeMetrics",
    )
