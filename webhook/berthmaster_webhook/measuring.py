"""What the books hold, for the metrics: read when somebody scrapes, never while somebody waits."""

from __future__ import annotations

from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.reasons import LABELS
from berthmaster.placement.engine import Decision
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.state import ClusterState


class Books:
    """Copies the figures of ledger and columns into the metrics before each scrape."""

    def __init__(self, state: ClusterState, metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics
        self._hits = self._misses = 0
        metrics.before_render.append(self._copy)

    def _copy(self) -> None:
        for concern, count in self._state.ledger.holdings.items():
            self._metrics.holdings.labels(concern).set(count)
        columns = self._state.engine.table.columns.get("numa")
        if not isinstance(columns, NumaColumns):
            return
        self._metrics.numa_unreported_holdings.set(int(columns.unreported.sum()))
        predictions = self._metrics.numa_predictions
        predictions.labels("hit").inc(columns.hits - self._hits)
        predictions.labels("miss").inc(columns.misses - self._misses)
        self._hits, self._misses = columns.hits, columns.misses


def count_refusals(metrics: Metrics, decision: Decision) -> None:
    """Count the nodes that a decision refused for their zones; other words are not NUMA's."""
    for refused in decision.refusals:
        label = LABELS.get(refused.group)
        if label is not None:
            metrics.numa_refused_nodes.labels(label).inc(refused.count)
