"""The webhook's metrics, in a registry of their own. No label holds a pod's, owner's or user's name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from berthmaster_webhook.guarding import guarded

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_DECISION_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_WAIT_BUCKETS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_ADMISSION_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """All of them; counters and histograms are moved where things happen, gauges where they change."""

    def __init__(self) -> None:
        # Their creation times would double the number of series and tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self.registry = CollectorRegistry()
        # Called before each scrape, for gauges that count what is there.
        self.before_render: list[Callable[[], None]] = []
        self.decisions = Counter(
            "berthmaster_decisions",
            "Answers by mode and outcome, from admission and from the queue.",
            ["mode", "outcome"],
            registry=self.registry,
        )
        self.decision_duration = Histogram(
            "berthmaster_decision_duration_seconds",
            "Time to find a node.",
            buckets=_DECISION_BUCKETS_S,
            registry=self.registry,
        )
        self.admission_duration = Histogram(
            "berthmaster_admission_duration_seconds",
            "Time from an admission request's receipt to its answer.",
            buckets=_ADMISSION_BUCKETS_S,
            registry=self.registry,
        )
        self.extender_duration = Histogram(
            "berthmaster_extender_duration_seconds",
            "Time to answer kube-scheduler, by verb of the extender protocol.",
            ["verb"],
            buckets=_ADMISSION_BUCKETS_S,
            registry=self.registry,
        )
        self.extender_answers = Counter(
            "berthmaster_extender_answers",
            "Answers to kube-scheduler, by verb of the extender protocol and result.",
            ["verb", "result"],
            registry=self.registry,
        )
        self.late_answers = Counter(
            "berthmaster_late_answers",
            "Answers not sent because the API server had stopped waiting.",
            registry=self.registry,
        )
        self.waiting_pods = Gauge(
            "berthmaster_waiting_pods",
            "Pods at the gate, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.oldest_waiting = Gauge(
            "berthmaster_oldest_waiting_pod_age_seconds",
            "Time since the creation of the oldest pod at the gate, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.wait_duration = Histogram(
            "berthmaster_wait_duration_seconds",
            "Time from the creation of a pod that had to wait to its placement.",
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.assumed_pods = Gauge(
            "berthmaster_assumed_pods",
            "Answers whose pods have not been seen yet.",
            registry=self.registry,
        )
        self.lapsed = Counter(
            "berthmaster_lapsed_assumptions",
            "Answers whose pods never came.",
            registry=self.registry,
        )
        self.pin_failures = Counter(
            "berthmaster_pin_failures",
            "Placed pods that kube-scheduler could not bind within pinPatience.",
            registry=self.registry,
        )
        self.evictions = Counter(
            "berthmaster_evictions",
            "Evictions of pods whose pin failed, by result.",
            ["result"],
            registry=self.registry,
        )
        self.kubelet_refusals = Counter(
            "berthmaster_kubelet_refusals",
            "Pods that asked for placement and were turned away by their kubelet, by its reason.",
            ["reason"],
            registry=self.registry,
        )
        self.holdings = Gauge(
            "berthmaster_holdings",
            "Pods and answers that hold something on a node, by concern.",
            ["concern"],
            registry=self.registry,
        )
        self.numa_refused_nodes = Counter(
            "berthmaster_numa_refused_nodes",
            "Nodes whose zones could not serve a pod, by reason, summed over decisions.",
            ["reason"],
            registry=self.registry,
        )
        self.numa_unreported_holdings = Gauge(
            "berthmaster_numa_unreported_holdings",
            "Pods and answers that hold something of zones and that no topology counts yet.",
            registry=self.registry,
        )
        self.numa_predictions = Counter(
            "berthmaster_numa_predictions",
            "Placed pods whose zones an updater told, by result: hit, as predicted, or miss.",
            ["result"],
            registry=self.registry,
        )
        self.leader = Gauge(
            "berthmaster_leader", "1 while this replica may decide.", registry=self.registry
        )
        self.leader_term = Gauge(
            "berthmaster_leader_term",
            "Number of times that the lead has changed hands, as this replica knows it.",
            registry=self.registry,
        )
        self.watch_silence = Gauge(
            "berthmaster_pod_watch_silence_seconds",
            "Time since the leader's pod watch last proved to be alive; at 10 nothing is decided.",
            registry=self.registry,
        )
        self.synced = Gauge(
            "berthmaster_synced",
            "1 while this replica has seen every kind that it needs.",
            registry=self.registry,
        )
        self.bypassed_pods = Gauge(
            "berthmaster_bypassed_pods",
            "Pods that asked for placement and were bound without a decision.",
            registry=self.registry,
        )
        self.bypassed_used = Gauge(
            "berthmaster_bypassed_used",
            "What pods that were bound without a decision take of nodes, in the unit of the label.",
            ["concern", "resource", "unit"],
            registry=self.registry,
        )
        self.nodes = Gauge(
            "berthmaster_nodes", "Nodes that can be decided about.", registry=self.registry
        )
        self.nodes_capacity = Gauge(
            "berthmaster_nodes_capacity",
            "What all nodes have together, in the unit of the label.",
            ["concern", "resource", "unit"],
            registry=self.registry,
        )
        self.nodes_used = Gauge(
            "berthmaster_nodes_used",
            "What is used of all nodes, answers on their way included, in the unit of the label.",
            ["concern", "resource", "unit"],
            registry=self.registry,
        )
        self.nodes_over = Gauge(
            "berthmaster_nodes_over_capacity",
            "Nodes of which more is used than they have.",
            ["concern", "resource"],
            registry=self.registry,
        )
        self.api_requests = Counter(
            "berthmaster_api_requests",
            "Requests to the API server by method and status; error: no answer came.",
            ["method", "code"],
            registry=self.registry,
        )
        self.build_info = Gauge(
            "berthmaster_build_info",
            "1, with the program and its version.",
            ["program", "version"],
            registry=self.registry,
        )
        self.build_info.labels("webhook", version("berthmaster")).set(1)
        ProcessCollector(registry=self.registry)
        self.bad_objects = Counter(
            "berthmaster_bad_objects",
            "Objects that could not be understood and were skipped, by kind.",
            ["kind"],
            registry=self.registry,
        )
        self.certificate_loads = Counter(
            "berthmaster_certificate_loads",
            "Attempts to serve a new certificate, by result.",
            ["result"],
            registry=self.registry,
        )

    def count_request(self, method: str, code: str) -> None:
        """Count one request to the API server."""
        self.api_requests.labels(method, code).inc()

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        for update in self.before_render:
            guarded(update, "gauges not brought up to date")
        return generate_latest(self.registry)
