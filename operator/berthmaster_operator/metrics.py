"""What the operator counts, for Prometheus. No label has a value per node or pod.

Figures that are a number of nodes are kept per node here and summed when a page is scraped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryFigures:
    """All inventories together, by condition, status and reason; the age of the oldest power sample."""

    by_condition: Mapping[tuple[str, str, str], int]
    oldest_sample_s: float


class Metrics:
    """All metrics of this process, in a registry of their own."""

    def __init__(self) -> None:
        # Their creation times would double the number of series and tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self.registry = CollectorRegistry()
        self._writes = Counter(
            "berthmaster_operator_writes_total",
            "Objects written, by kind and verb.",
            ["kind", "verb"],
            registry=self.registry,
        )
        self._fetches = Counter(
            "berthmaster_power_fetches_total",
            "Attempts to read power's sources, by source and outcome.",
            ["source", "outcome"],
            registry=self.registry,
        )
        self._ignored = Counter(
            "berthmaster_diskio_reports_ignored_total",
            "Reports whose observedGeneration is not the generation of the object.",
            registry=self.registry,
        )
        self.xpu_assign_timeouts = Counter(
            "berthmaster_xpu_assign_timeouts_total",
            "Pods that were bound for longer than assignTimeout before their device plugin served them.",
            registry=self.registry,
        )
        self._stale = self._gauge(
            "berthmaster_diskio_stale_drivers", "Nodes whose driver has fallen silent."
        )
        self._lagging = self._gauge(
            "berthmaster_diskio_lagging_nodes",
            "Nodes whose driver has not answered the newest list.",
        )
        self._lag = self._gauge(
            "berthmaster_diskio_generations_behind_max",
            "Largest distance between generation and observedGeneration of any node.",
        )
        self._unknown = self._gauge(
            "berthmaster_diskio_unknown_devices",
            "Devices that reports name and no NodeDiskDevice has.",
        )
        self.strays = self._gauge(
            "berthmaster_diskio_stray_objects",
            "NodeDiskIOStats with an unexpected name.",
        )
        self.model_problems = self._gauge(
            "berthmaster_diskio_model_problems",
            "Entries of the model ConfigMap that cannot be used.",
        )
        self._topologies = Gauge(
            "berthmaster_numa_topologies",
            "Nodes with a NodeResourceTopology, by whether it can be relied upon (Reported) or why not.",
            ["reason"],
            registry=self.registry,
        )
        self._topology_age = self._gauge(
            "berthmaster_numa_topology_age_max_seconds",
            "Time since the updater wrote the oldest topology; updaters of idle nodes write nothing.",
        )
        self._topology_lag = self._gauge(
            "berthmaster_numa_topology_lag_max_seconds",
            "Longest time for which a pod's start or end has not been in its node's topology.",
        )
        self._datasets = Gauge(
            "berthmaster_datasets",
            "Datasets, by what keeps pods from being placed by them, or usable.",
            ["state"],
            registry=self.registry,
        )
        self._stale_placements = self._gauge(
            "berthmaster_dataset_stale_placements",
            "Placements of datasets that no node answers to.",
        )
        self.is_leader = self._gauge(
            "berthmaster_operator_leader", "1 while this process may write, else 0."
        )
        self.queue_length = self._gauge(
            "berthmaster_operator_queue_length", "Nodes that wait for work, timers included."
        )
        self.certificate_expiry = Gauge(
            "berthmaster_webhook_certificate_expiration_timestamp_seconds",
            "When the webhook's certificate (serving) and its authority end, in seconds since the "
            "epoch; only the leader knows.",
            ["certificate"],
            registry=self.registry,
        )
        self._inventories = Gauge(
            "berthmaster_inventories",
            "Inventories by condition, its status and reason.",
            ["condition", "status", "reason"],
            registry=self.registry,
        )
        self._power_age = self._gauge(
            "berthmaster_power_sample_age_max_seconds",
            "Time since the oldest of the nodes' last samples of CPU usage.",
        )
        self._requests = Counter(
            "berthmaster_api_requests",
            "Requests to the API server by method and status; error: no answer came.",
            ["method", "code"],
            registry=self.registry,
        )
        build_info = Gauge(
            "berthmaster_build_info",
            "1, with the program and its version.",
            ["program", "version"],
            registry=self.registry,
        )
        build_info.labels("operator", version("berthmaster")).set(1)
        ProcessCollector(registry=self.registry)
        self._nodes: dict[str, tuple[bool, int, int]] = {}
        self._last_ignored: dict[str, tuple[str, float]] = {}

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def count_datasets(self, by_state: Mapping[str, int], stale_placements: int) -> None:
        """Note how many datasets are in each state, and how many placements lead nowhere."""
        self._datasets.clear()
        for state, count in by_state.items():
            self._datasets.labels(state).set(count)
        self._stale_placements.set(stale_placements)

    def count_fetch(self, source: str, outcome: str) -> None:
        """Count one attempt to read a meter, the metrics API or a model server."""
        self._fetches.labels(source=source, outcome=outcome).inc()

    def count_request(self, method: str, code: str) -> None:
        """Count one request to the API server."""
        self._requests.labels(method, code).inc()

    def account_inventories(self, figures: InventoryFigures) -> None:
        """Take over how many inventories there are by condition, and the age of what they tell."""
        self._inventories.clear()
        for labels, count in figures.by_condition.items():
            self._inventories.labels(*labels).set(count)
        self._power_age.set(figures.oldest_sample_s)

    def count_write(self, kind: str, verb: str) -> None:
        """Count one write that the API server accepted."""
        self._writes.labels(kind=kind, verb=verb).inc()

    def account_node(
        self,
        name: str,
        *,
        is_stale: bool,
        lag: int,
        unknown_devices: int,
        ignored_report: tuple[str, float] | None,
    ) -> None:
        """Take over a node's figures; `ignored_report` identifies the report, which counts once."""
        self._nodes[name] = (is_stale, lag, unknown_devices)
        if ignored_report is not None and self._last_ignored.get(name) != ignored_report:
            self._last_ignored[name] = ignored_report
            self._ignored.inc()

    def account_topologies(
        self, by_reason: Mapping[str, int], *, oldest_s: float, lag_s: float
    ) -> None:
        """Take over the figures of all topologies; a reason that is not named has no node any more."""
        self._topologies.clear()
        for reason, count in by_reason.items():
            self._topologies.labels(reason).set(count)
        self._topology_age.set(oldest_s)
        self._topology_lag.set(lag_s)

    def forget_node(self, name: str) -> None:
        """Drop a node's figures."""
        self._nodes.pop(name, None)
        self._last_ignored.pop(name, None)

    def render(self) -> bytes:
        """Return the page."""
        figures = self._nodes.values()
        self._stale.set(sum(is_stale for is_stale, _, _ in figures))
        self._lagging.set(sum(lag > 0 for _, lag, _ in figures))
        self._lag.set(max((lag for _, lag, _ in figures), default=0))
        self._unknown.set(sum(count for _, _, count in figures))
        return generate_latest(self.registry)
