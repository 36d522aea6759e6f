from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cluster.informers import EventKind
from berthmaster_webhook.bypassing import BypassedPods, is_bypassed
from berthmaster_webhook.metrics import Metrics
from support.builders import make_pod_manifest

ASKS = {names.PLACEMENT: "required"}


def make_pod(annotations: dict[str, str] | None = None, **fields: Any) -> Pod:
    fields.setdefault("nodeName", "n1")
    return pod_from_manifest(make_pod_manifest("pod", annotations=annotations or ASKS, **fields))


def value(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("berthmaster_bypassed_pods")


def test_bound_pod_without_allocation_is_counted_until_it_is_gone() -> None:
    metrics = Metrics()
    bypassed = BypassedPods(metrics)
    pod = make_pod()

    bypassed.take_pod(EventKind.ADDED, pod)
    bypassed.take_pod(EventKind.MODIFIED, pod)
    assert value(metrics) == 1
    bypassed.take_pod(EventKind.DELETED, pod)
    assert value(metrics) == 0


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(make_pod(nodeName=""), id="not bound"),
        pytest.param(make_pod({**ASKS, names.ALLOCATION: "{}"}), id="allocated"),
        pytest.param(make_pod({"else": "x"}), id="does not ask"),
        pytest.param(make_pod({names.PLACEMENT: "observe"}), id="observes"),
        pytest.param(make_pod({names.PLACEMENT: "off"}), id="off"),
        pytest.param(make_pod(namespace="kube-system"), id="exempt"),
    ],
)
def test_others_are_not_counted(pod: Pod) -> None:
    assert not is_bypassed(pod)
