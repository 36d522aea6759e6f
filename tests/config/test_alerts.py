"""Each alert is quiet while all is well and goes off when it should: asked of Prometheus' own engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster_operator.metrics import InventoryFigures
from berthmaster_operator.metrics import Metrics as OperatorMetrics
from berthmaster_webhook.metrics import Metrics as WebhookMetrics
from support.promql import Page, Question, ask, check_rules

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = yaml.safe_load(
    (ROOT / "config/components/prometheus/prometheus-rule.yaml").read_text(encoding="utf-8")
)["spec"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}
STEP_S = 60
# The longest range that an expression looks back over.
BEFORE_S = 3600
START_S = 1_800_000_000
DAY_S = 86400


@dataclass
class Programs:
    """Two replicas of the webhook and an operator, in the best of health."""

    leader: WebhookMetrics = field(default_factory=WebhookMetrics)
    standby: WebhookMetrics = field(default_factory=WebhookMetrics)
    operator: OperatorMetrics = field(default_factory=OperatorMetrics)
    # What the API server counts of the calls that it went on without.
    calls_failed: int = 0
    hidden: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leader.leader.set(1)
        for webhook in (self.leader, self.standby):
            webhook.synced.set(1)
            webhook.oldest_waiting.labels("nowhere").set(20)
            webhook.nodes_over.labels("diskio", "read").set(0)
            webhook.nodes_over.labels("power", "power").set(7)
        self.operator.is_leader.set(1)
        self.operator.certificate_expiry.labels("serving").set(START_S + 80 * DAY_S)
        self.operator.account_topologies({"Reported": 3}, oldest_s=5, lag_s=1)
        self.operator.account_inventories(InventoryFigures(by_condition={}, oldest_sample_s=1))
        # Counters are there before their first failure, or no increase could be seen.
        self.leader.certificate_loads.labels("failed")
        self.leader.kubelet_refusals.labels("TopologyAffinityError")
        self.leader.bad_objects.labels("Node")
        self.leader.numa_predictions.labels("miss")
        self.operator._fetches.labels("meter", "failed")

    def work(self) -> None:
        """Let a minute of ordinary work pass."""
        for _ in range(60):
            self.leader.admission_duration.observe(0.002)
            self.leader.decision_duration.observe(0.0004)
            self.leader.count_request("PATCH", "200")
            self.operator.count_request("PATCH", "200")
        self.leader.count_request("PATCH", "409")
        self.leader.numa_predictions.labels("hit").inc(10)
        for _ in range(10):
            self.operator.count_fetch("meter", "ok")

    def pages(self, at_s: float) -> Iterator[Page]:
        """Return what a scrape of everything finds."""
        for pod, metrics in (("w-1", self.leader), ("w-2", self.standby), ("o-1", self.operator)):
            if pod in self.hidden:
                continue
            program = "operator" if pod == "o-1" else "webhook"
            job = f"berthmaster-system/berthmaster-{program}"
            yield Page(at_s, {"job": job, "pod": pod}, metrics.render().decode())
        name = "apiserver_admission_webhook_fail_open_count"
        count = f'{name}{{name="placement.berthmaster.io",type="admit"}} {self.calls_failed}\n'
        yield Page(at_s, {"job": "apiserver"}, count)


Harm = Callable[[Programs], None]


def _many(act: Harm, times: int = 10) -> Harm:
    def repeat(programs: Programs) -> None:
        for _ in range(times):
            act(programs)

    return repeat


def _fail_calls(programs: Programs) -> None:
    programs.calls_failed += 5


def _end_certificate(programs: Programs) -> None:
    programs.operator.certificate_expiry.labels("serving").set(START_S + 10 * DAY_S)


# What is done at each scrape from the moment on when things go wrong.
HARMS: dict[str, Harm] = {
    "BerthmasterNoDecisionMaker": lambda it: it.leader.leader.set(0),
    "BerthmasterTwoDecisionMakers": lambda it: it.standby.leader.set(1),
    "BerthmasterWebhookNotSynced": lambda it: it.standby.synced.set(0),
    "BerthmasterWatchSilent": lambda it: it.leader.watch_silence.set(15),
    "BerthmasterCallsFail": _fail_calls,
    "BerthmasterAnswersLate": lambda it: it.leader.late_answers.inc(2),
    "BerthmasterDecisionsSlow": _many(lambda it: it.leader.decision_duration.observe(0.09)),
    "BerthmasterPodsWait": lambda it: it.leader.oldest_waiting.labels("nowhere").set(2000),
    "BerthmasterAnswersLapse": lambda it: it.leader.lapsed.inc(3),
    "BerthmasterPinsFail": lambda it: it.leader.pin_failures.inc(),
    "BerthmasterKubeletsRefuse": lambda it: it.leader.kubelet_refusals.labels(
        "TopologyAffinityError"
    ).inc(),
    "BerthmasterPodsBypass": lambda it: it.leader.bypassed_pods.set(2),
    "BerthmasterNodesOverCapacity": lambda it: it.leader.nodes_over.labels("diskio", "read").set(1),
    "BerthmasterObjectsUnreadable": lambda it: it.leader.bad_objects.labels("Node").inc(),
    "BerthmasterOperatorHasNoLeader": lambda it: it.hidden.add("o-1"),
    "BerthmasterApiRefuses": _many(lambda it: it.operator.count_request("PATCH", "503")),
    "BerthmasterCertificateEnds": _end_certificate,
    "BerthmasterCertificateNotUsable": lambda it: it.leader.certificate_loads.labels(
        "failed"
    ).inc(),
    "BerthmasterDriversSilent": lambda it: it.operator.account_node(
        "n", is_stale=True, lag=0, unknown_devices=0, ignored_report=None
    ),
    "BerthmasterDiskModelsBroken": lambda it: it.operator.model_problems.set(1),
    "BerthmasterDatasetsStale": lambda it: it.operator.count_datasets({}, 2),
    "BerthmasterTopologiesUnreliable": lambda it: it.operator.account_topologies(
        {"Reported": 2, "Stale": 1}, oldest_s=900, lag_s=1
    ),
    "BerthmasterZonesPredictedWrong": lambda it: it.leader.numa_predictions.labels("miss").inc(9),
    "BerthmasterPowerSourcesFail": _many(lambda it: it.operator.count_fetch("meter", "failed"), 20),
}


def seconds_of(text: str) -> int:
    """Return a duration such as `10m` in seconds."""
    return int(text[:-1]) * {"m": 60, "h": 3600}[text[-1]]


def run(harm: Harm | None, minutes: int) -> tuple[list[Page], float]:
    """Return an hour of health and so many minutes of harm as pages, and when the last hour began."""
    programs = Programs()
    pages: list[Page] = []
    healthy = BEFORE_S // STEP_S
    for minute in range(healthy + minutes):
        programs.work()
        if harm is not None and minute >= healthy:
            harm(programs)
        pages += programs.pages(START_S + minute * STEP_S)
    return pages, START_S + healthy * STEP_S


def test_prometheus_takes_the_rules() -> None:
    check_rules(yaml.safe_dump({"groups": RULES["groups"]}))


def test_every_alert_has_a_harm_that_drives_it() -> None:
    assert HARMS.keys() == ALERTS.keys()


def test_nothing_goes_off_while_all_is_well() -> None:
    pages, end_s = run(None, 0)
    times = range(START_S + 10 * STEP_S, int(end_s), 5 * STEP_S)
    questions = [Question(rule["expr"], at_s) for rule in ALERTS.values() for at_s in times]

    answers = ask(pages, questions)

    assert [it for it, answer in zip(questions, answers, strict=True) if answer] == []


@pytest.mark.parametrize("name", ALERTS)
def test_alert_goes_off_when_it_should_and_not_before(name: str) -> None:
    rule = ALERTS[name]
    patience_s = seconds_of(rule.get("for", "0m"))
    # Ranges have to fill with what is wrong before an expression holds.
    minutes = 30 + patience_s // 60
    pages, harm_s = run(HARMS[name], minutes)
    times = [harm_s - STEP_S, *(harm_s + minute * STEP_S for minute in range(minutes))]

    answers = ask(pages, [Question(rule["expr"], at_s) for at_s in times])

    assert not answers[0], "it holds before anything went wrong"
    lasting = 0
    for answer in reversed(answers):
        if not answer:
            break
        lasting += STEP_S
    assert lasting > patience_s, "it never held for so long as it has to"
    # What the words name is there to be named.
    text = "".join(rule["annotations"].values())
    named = set(re.findall(r"\$labels\.(\w+)", text))
    assert all(named <= it.labels.keys() for it in answers[-1])


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")

    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/metrics.md#{name.lower()}"
    assert f"### {name}\n\n`{rule['labels']['severity']}`. " in page
