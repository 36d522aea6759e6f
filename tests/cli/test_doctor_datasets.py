"""What the doctor concludes about datasets."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from berthmaster.cli.doctor import datasets
from berthmaster.cli.doctor.facts import Facts, Unread
from berthmaster.cli.doctor.findings import State

NEW, OLD = "datashim.io", "com.ie.ibm.hpsys"
FACTS = Facts(
    now=datetime(2026, 1, 1, tzinfo=UTC),
    cli_version="1",
    server_version="1",
    system_namespace="berthmaster-system",
    nodes=({"metadata": {"name": "n1"}},),
)


def seen(*manifests: tuple[str, str, dict[str, Any]]) -> Facts:
    found: dict[str, Any] = {path: None for _, _, path in datasets.PATHS}
    for group, plural, manifest in manifests:
        path = f"/apis/{group}/v1alpha1/{plural}"
        it = datasets.decode(group, plural, json.dumps(manifest).encode())
        found[path] = (*(found[path] or ()), it)
    return replace(FACTS, datasets=found)


def dataset(name: str, group: str = NEW, provision: str = "OK", caching: str = "OK") -> Any:
    status = {"provision": {"status": provision}, "caching": {"status": caching}}
    return group, "datasets", {"metadata": {"namespace": "ml", "name": name}, "status": status}


def internal(name: str, *nodes: str, group: str = NEW) -> Any:
    gateways = [{"key": "kubernetes.io/hostname", "value": it} for it in nodes]
    status = {"caching": {"placements": {"gateways": gateways}}}
    manifest = {"metadata": {"namespace": "ml", "name": name}, "status": status}
    return group, "datasetsinternal", manifest


def told(facts: Facts) -> list[tuple[State, str]]:
    return [(it.state, it.found) for it in datasets.check(facts)]


def test_a_cluster_without_datashim_is_well() -> None:
    assert told(seen()) == [(State.OK, "there are no Datasets: nothing is placed by them")]


def test_what_is_usable_or_was_disabled_is_well() -> None:
    facts = seen(
        dataset("a"),
        internal("a", "n1"),
        dataset("b", OLD),
        internal("b", "n1", group=OLD),
        dataset("off", caching="Disabled"),
        internal("off"),
    )
    assert told(facts) == [
        (State.OK, "caching-disabled: ml/off"),
        (State.OK, "usable: ml/a, ml/b"),
    ]


def test_what_is_in_the_way_is_told_with_a_way_out() -> None:
    facts = seen(
        dataset("gone"),
        internal("gone", "n7"),
        dataset("partly"),
        internal("partly", "n1", "n7"),
        dataset("late", provision="Pending"),
        internal("late", "n1"),
    )
    findings = {it.found: it for it in datasets.check(facts) if it.state is State.WARNING}
    stale = (
        "ml/gone: stale (kubernetes.io/hostname=n7: no such node); pods that name them are placed "
        "as if they did not"
    )
    assert set(findings) == {
        stale,
        "ml/late: not-provisioned; pods that name them are placed as if they did not",
        "some placements of ml/partly are no nodes any more",
    }
    assert "datasetsinternal.datashim.io gone -o yaml" in findings[stale].way_out


def test_what_cannot_be_read_is_not_checked() -> None:
    unread = Unread("needs list datasets")
    facts = seen(dataset("a"))
    path = datasets.PATHS[0][2]
    assert told(replace(facts, datasets={**facts.datasets, path: unread})) == [
        (State.NOT_CHECKED, "datasets: needs list datasets")
    ]
    assert told(replace(facts, nodes=Unread("no"))) == [
        (State.NOT_CHECKED, "where datasets are: no")
    ]
