"""What the books hold, for the metrics: read when somebody scrapes, never while somebody waits."""

from __future__ import annotations

from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.reasons import LABELS
from berthmaster.placement.engine import Decision
from berthmaster.placement.filling import Filling
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.state import ClusterState


class Books:
    """Copies the figures of ledger and columns into the metrics before each scrape."""

    def __init__(self, state: ClusterState, metrics: Metrics) -> None:
        self._state = state
        self._metrics = metrics
        self._hits = self._misses = 0
        self.filling = Filling(state.engine.table)
        metrics.before_render += [self._copy, self._copy_filling]

    def _copy_filling(self) -> None:
        metrics = self._metrics
        metrics.nodes.set(len(self._state.engine.table))
        self.filling.refresh()
        for it, level, over in self.filling.totals():
            metrics.nodes_capacity.labels(*it).set(level.capacity)
            metrics.nodes_used.labels(*it).set(level.used)
            metrics.nodes_over.labels(it.concern, it.resource).set(over)

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
