"""The table of concerns by node: in a pipe, on a narrow terminal, for programs, and for a pod that is there."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest

from berthmaster.api import names
from berthmaster.api.allocation import write_allocation
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cli import concern_table, output, why
from berthmaster.placement.affinity import unpinned
from support.builders import make_pod
from support.five_concerns import make_pod_of_five, make_snapshot, read_pod_of_five

NODES: dict[str, dict[str, Any]] = {
    "near": {"zone": "a", "watts_per_core": 4.0},
    "far": {"zone": "b"},
    "full": {"zone": "a", "disk": "50Mi", "free_cpus": (3, 3)},
    "gate": {"zone": "a", "corpus": "gateway", "taints": [{"key": "own", "effect": "NoSchedule"}]},
}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def placed_on(node: str, *, own_terms: list[dict[str, Any]] | None = None) -> Pod:
    """Return the pod as it is once it was placed: pinned, with its allocation, and running."""
    snapshot = make_snapshot(NODES)
    asked = read_pod_of_five()
    request = snapshot.engine.read_request(asked, snapshot.policy_of(asked).spec)
    decision = snapshot.engine.decide(request, "d", only=node)
    pin = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    terms = [{**it, **pin} for it in own_terms or [{}]]
    manifest = make_pod_of_five(
        annotations={names.ALLOCATION: write_allocation(decision.allocation("required"))},
        affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}},
    )
    manifest["spec"]["nodeName"] = node
    manifest["status"] = {"phase": "Running"}
    return pod_from_manifest(manifest)


def report_of(pod: Pod, **options: Any) -> output.Report:
    return why.build_report(pod, why.recompute(pod, make_snapshot(NODES, pod)), **options)


def test_plain_text_has_a_column_for_each_concern() -> None:
    text = output.render_plain(report_of(placed_on("near")))

    assert (
        """\
Concerns by node, the best first:
  NODE   TOTAL   NUMA   XPU   DISK IO   DATA   POWER   CPU AND MEMORY
  near      68     25    75        90     50     100             93.4
  far     59.3     25    75        90     25    81.7             93.4
  full       -     no    ok        no     ok      ok               ok
  gate       -     ok    ok        ok     ok      ok               no

Refused, by which concern and why:
  NODE   CONCERN          WHY
  full   NUMA             cannot align container: main asks 4 cpu, best zone node-0 has 3; fits if the limit were 3
  full   disk IO          disk IO read bandwidth is not enough: read short by 50Mi (asks 100Mi, free 50Mi of 50Mi)
  gate   CPU and memory   node(s) had untolerated taint {own: }
"""
        in text
    )


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_shows_it_within_its_width_and_breaks_no_word(width: int) -> None:
    screen = io.StringIO()
    output.render_rich(report_of(placed_on("near")), screen, width=width)
    lines = screen.getvalue().splitlines()
    at = next(i for i, it in enumerate(lines) if concern_table.TITLE in it)

    assert max(map(len, lines)) <= width
    rows = [it.split() for it in lines[at:] if it.split()[:1] in (["near"], ["full"])]
    assert rows[0] == ["near", "68", "25", "75", "90", "50", "100", "93.4"]
    assert rows[1] == ["full", "-", "no", "ok", "no", "ok", "ok", "ok"]
    assert "TOTAL" in screen.getvalue()


def test_a_placed_pod_is_compared_as_if_it_came_once_more() -> None:
    """Neither its pin nor what it holds on its node counts against the others or itself."""
    pod = placed_on("near")
    found = why.recompute(pod, make_snapshot(NODES, pod))
    fresh = why.recompute(read_pod_of_five(), make_snapshot(NODES))

    assert found.verdicts == fresh.verdicts
    assert [it.node for it in found.feasible] == ["near", "far"]


def test_its_own_node_is_shown_where_the_table_is_cut() -> None:
    tables = report_of(placed_on("far"), nodes_shown=1).tables
    table = next(it for it in tables if it.title == concern_table.TITLE)

    assert [row[0] for row in table.rows] == ["near", "far"]


def test_programs_get_the_words_of_every_refusing_concern() -> None:
    screen = io.StringIO()
    output.show(report_of(placed_on("near")), as_json=True, out=screen)
    nodes = {it["node"]: it for it in json.loads(screen.getvalue())["recomputed"]["nodes"]}

    assert set(nodes["near"]["scores"]) == {
        "resources", "numa", "xpu", "diskio", "dataset", "power",
    }  # fmt: skip
    assert set(nodes["full"]["refusedBy"]) == {"numa", "diskio"}


def test_a_pod_of_one_concern_has_no_table_of_one_column() -> None:
    dark: dict[str, Any] = {"watts_per_core": None}
    waiting = make_pod("small", cpu="1")
    found = why.recompute(waiting, make_snapshot({"n1": dark, "n2": dark}))

    titles = [it.title for it in why.recomputed_tables(found, 20)]
    assert titles == ["Nodes now, the nearest first"]


OWN = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}


@pytest.mark.parametrize("own_terms", [None, [OWN], [OWN, {**OWN}]])
def test_only_the_pin_is_taken_off_a_pod(own_terms: list[dict[str, Any]] | None) -> None:
    pod = placed_on("near", own_terms=own_terms)
    affinity = unpinned(pod, "near").spec.affinity

    assert affinity is not None
    assert affinity.node_affinity is not None
    expected = None if own_terms is None else {"nodeSelectorTerms": own_terms}
    assert msgspec.to_builtins(affinity.node_affinity).get(REQUIRED) == (
        None if expected is None else _with_defaults(expected)
    )


def _with_defaults(required: dict[str, Any]) -> dict[str, Any]:
    terms = [{"matchFields": None, **it} for it in required["nodeSelectorTerms"]]
    return {"nodeSelectorTerms": [dict(sorted(it.items())) for it in terms]}


def test_a_pod_without_our_pin_stays_as_it_is() -> None:
    pod = placed_on("near")

    assert unpinned(pod, "far") is pod
    bare = make_pod("bare")
    assert unpinned(bare, "near") is bare
