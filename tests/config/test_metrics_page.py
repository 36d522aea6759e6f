"""docs/metrics.md is what the programs say, and the names in it are Prometheus'."""

from __future__ import annotations

import re

import pytest

from support.metrics_page import Entry, list_metrics, read_table, render

# Each has as many values as a cluster has of them.
UNBOUNDED = {"pod", "node", "namespace", "uid", "name", "owner", "user", "decision", "claim"}
UNITS = {"seconds", "bytes", "cores", "watts", "celsius"}


def test_page_has_the_table_of_this_version() -> None:
    assert read_table() == render(), (
        "run: PYTHONPATH=tests .venv/bin/python -m support.metrics_page"
    )


@pytest.mark.parametrize("metric", list_metrics(), ids=lambda it: f"{it.program}-{it.name}")
def test_names_and_labels_follow_the_conventions(metric: Entry) -> None:
    assert re.fullmatch(r"berthmaster_[a-z][a-z0-9_]*", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert metric.text.endswith(".")
    assert not UNBOUNDED & set(metric.labels)
    if metric.kind == "histogram" or re.search(
        "_(age|duration|lag|silence|timestamp)_", metric.name
    ):
        assert re.sub("_(max|total)$", "", metric.name).rpartition("_")[2] in UNITS
    # Units that are none of Prometheus' base units.
    assert not re.search("(milli|micro|nano|kilo|mega|mib|minutes|hours|percent)", metric.name)


def test_one_name_means_the_same_in_both_programs() -> None:
    meanings: dict[str, set[tuple[object, ...]]] = {}
    for it in list_metrics():
        meanings.setdefault(it.name, set()).add((it.kind, it.labels, it.text))

    assert {name for name, found in meanings.items() if len(found) > 1} == set()
