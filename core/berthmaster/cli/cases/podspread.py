"""Decision cases of WAO's PodSpread: ReplicaSets and their pods."""

from __future__ import annotations

from berthmaster.api import names
from berthmaster.api.objects import pod_from_manifest, replica_set_from_manifest
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.settings.podspread import PodSpreadSettings
from berthmaster.cli.cases.worlds import (
    Case,
    CaseWorld,
    UnknownKeyError,
    check_keys,
    check_no_metrics,
)
from berthmaster.concerns import podspread


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    check_keys(case["config"], {"plugin", "generation", "annotation"}, "config")
    check_no_metrics(case)
    if case["config"]["annotation"] not in names.SPREAD_RATES:
        raise UnknownKeyError(f"config.annotation: {case['config']['annotation']}")
    unknown = {it["kind"] for it in case["cluster"]["resources"]} - {"ReplicaSet"}
    if unknown:
        raise UnknownKeyError(f"cluster.resources: unknown kind {', '.join(unknown)}")
    settings = PodSpreadSettings(strict_upstream="quirk" in case)
    finished = [
        pod_from_manifest({**it, "metadata": {"uid": it["metadata"]["name"], **it["metadata"]}})
        for it in case["cluster"].get("pods", ())
    ]
    return CaseWorld(
        concern=podspread.CONCERN,
        settings=ConcernSettings(podspread=settings),
        inventories={},
        surroundings=[
            *map(replica_set_from_manifest, case["cluster"]["resources"]),
            *(pod for pod in finished if pod.is_finished),
        ],
    )
