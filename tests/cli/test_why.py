"""Sentences and reports of `why`, pure and against a fake API server."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import pytest

from berthmaster.api.names import GATE
from berthmaster.api.objects import pod_from_manifest
from berthmaster.cli import output, why
from berthmaster.cli.shortages import distance
from berthmaster.cli.why import Situation
from berthmaster.cluster.client import Client
from berthmaster.cluster.snapshot import load_engine
from berthmaster.concerns.shape import Reason
from berthmaster.placement.engine import Engine, Verdict
from berthmaster.placement.ledger import Ledger
from cli.harbour import INVENTORIES, NODES, POLICIES, allocation, furnish, manifest, pod, rates
from support.fake_api import FakeApi, Json

UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 1 Insufficient cpu.",
}


async def recomputed(waiting: Json, *others: Json) -> why.Recomputed:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, waiting, *others)
        return why.recompute(pod_from_manifest(waiting), await load_engine(client))


@pytest.mark.parametrize(
    ("fields", "situation", "expected"),
    [
        (
            {"decision": allocation(), "node": "node-a", "phase": "Running"},
            Situation.PLACED,
            "default/pod1 is on node-a: disk IO 97 of 100; "
            "1 node refused: disk IO read bandwidth is not enough.",
        ),
        (
            {"decision": allocation(refused=[], scores={"resources": 40.5}), "node": "node-a"},
            Situation.PLACED,
            "default/pod1 is on node-a: CPU and memory 40.5 of 100; no node refused.",
        ),
        (
            {
                "decision": allocation(
                    refused=[{"reason": "x", "count": 2}, {"reason": "y", "count": 1}]
                )
            },
            Situation.SENT,
            "default/pod1 is sent to node-a and kube-scheduler has yet to bind it: "
            "disk IO 97 of 100; 3 nodes refused: 2 x, 1 y.",
        ),
        (
            {"decision": allocation(), "conditions": (UNSCHEDULABLE,)},
            Situation.PIN_FAILED,
            "default/pod1 was sent to node-a and does not fit there any more; kube-scheduler says: "
            "0/3 nodes are available: 1 Insufficient cpu.",
        ),
        (
            {"decision": allocation(mode="preferred", refused=[]), "node": "node-c"},
            Situation.STRAYED,
            "default/pod1 is on node-c although node-a was chosen (preferred): "
            "disk IO 97 of 100; no node refused.",
        ),
        (
            {"decision": allocation(mode="observe", refused=[]), "node": "node-c"},
            Situation.OBSERVED,
            "default/pod1 is on node-c; Berthmaster would have chosen node-a: "
            "disk IO 97 of 100; no node refused.",
        ),
        (
            {"decision": allocation(mode="observe", refused=[]), "node": "node-a"},
            Situation.OBSERVED,
            "default/pod1 is on node-a, as Berthmaster would have it: "
            "disk IO 97 of 100; no node refused.",
        ),
        (
            {"decision": allocation(), "node": "node-a", "phase": "Succeeded"},
            Situation.FINISHED,
            "default/pod1 has finished (Succeeded) and holds nothing any more; it ran on node-a.",
        ),
        (
            {"mode": None, "node": "node-c"},
            Situation.NOT_ASKED,
            "default/pod1 is on node-c without Berthmaster: it carries no annotation "
            "berthmaster.io/placement and no policy selected it when it was created.",
        ),
        (
            {"mode": "off"},
            Situation.OFF,
            "default/pod1 is left to kube-scheduler without Berthmaster: "
            "berthmaster.io/placement is off.",
        ),
        (
            {"node": "node-c"},
            Situation.BYPASSED,
            "default/pod1 is on node-c past Berthmaster: it asks for placement but carries no "
            "decision; it was ungated or bound by somebody else, and is counted by what it "
            "requests.",
        ),
        (
            {"gates": (GATE, "kueue.x-k8s.io/admission")},
            Situation.FOREIGN_GATE,
            "default/pod1 waits for others first: kueue.x-k8s.io/admission; "
            "Berthmaster decides when only its own gate is left.",
        ),
        (
            {"gates": (GATE,)},
            Situation.WAITING,
            "default/pod1 waits for a node: Berthmaster has not looked at it yet.",
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Situation) else "",
)
def test_each_situation_has_its_sentence(
    fields: dict[str, Any], situation: Situation, expected: str
) -> None:
    asked = pod(**fields)

    assert why.find_situation(asked) is situation
    assert why.sentence(asked) == expected


def test_forged_allocation_counts_as_none() -> None:
    assert why.find_situation(pod(decision="{broken", node="node-a")) is Situation.BYPASSED


async def test_waiting_pod_is_told_the_nearest_node() -> None:
    holder = manifest("holder", node="node-a", request=rates("800Mi", "100Mi"), phase="Running")
    waiting = manifest(gates=(GATE,), request=rates("250Mi", "100Mi"))

    found = await recomputed(waiting, holder)

    assert why.sentence(pod_from_manifest(waiting), found) == (
        "default/pod1 waits for a node, 0 of 3 would do now: "
        "2 disk IO read bandwidth is not enough, "
        "1 node(s) without disk io aware support cannot schedule disk io aware workload; "
        "nearest is node-a, read short by 50Mi (asks 250Mi, free 200Mi of 1000Mi)."
    )
    assert [it.node for it in found.refused] == ["node-a", "node-b", "node-c"]


async def test_waiting_pod_that_fits_points_at_the_webhook() -> None:
    waiting = manifest(gates=(GATE,), request=rates("30Mi", "20Mi"))

    found = await recomputed(waiting)

    assert why.sentence(pod_from_manifest(waiting), found) == (
        "default/pod1 waits although 2 of 3 nodes would do now, best node-a: "
        "Berthmaster takes it within seconds, or a minute after its restart; if not, look at its "
        "pods in berthmaster-system."
    )


async def test_invalid_request_names_the_field() -> None:
    waiting = manifest(gates=(GATE,), request='{"blocksize": "4k"}')

    found = await recomputed(waiting)

    assert why.find_situation(pod_from_manifest(waiting), found) is Situation.INVALID
    said = why.sentence(pod_from_manifest(waiting), found)
    assert "cannot be understood" in said
    assert "metadata.annotations[blockio.kubernetes.io/resources]" in said


async def test_half_installed_cluster_still_answers() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api)
        del api.objects[INVENTORIES], api.objects[POLICIES]
        api.put(NODES, {"metadata": {"name": "odd", "labels": 3}})

        snapshot = await load_engine(client)

    assert len(snapshot.engine.table) == 3
    assert len(snapshot.notes) == 3
    assert "CRDs installed?" in snapshot.notes[1]


@pytest.mark.parametrize("odd", ["node", "pod", "namespace"])
async def test_object_that_a_concern_trips_over_keeps_nobody_from_an_answer(
    monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    see, write, observe = Ledger.see, Ledger.write_node, Engine.observe

    def trip(act: Any, name: str) -> Any:
        def tripping(self: Any, found: Any, *args: Any, **fields: Any) -> Any:
            if getattr(found, "metadata", None) and found.metadata.name == name:
                raise RuntimeError("poison")
            return act(self, found, *args, **fields)

        return tripping

    monkeypatch.setattr(Ledger, "see", trip(see, "odd" if odd == "pod" else ""))
    monkeypatch.setattr(Ledger, "write_node", trip(write, "node-b" if odd == "node" else ""))
    monkeypatch.setattr(Engine, "observe", trip(observe, "default" if odd == "namespace" else ""))
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest("odd"), manifest("b", node="node-a"))
        snapshot = await load_engine(client)

    (note,) = snapshot.notes
    assert "left out: poison" in note
    assert len(snapshot.engine.table) == (2 if odd == "node" else 3)
    assert snapshot.engine.ledger.entry("uid-b") is not None


async def test_policy_of_the_pod_counts() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api)
        selector = {"matchLabels": {"team": "a"}}
        api.put(POLICIES, {"metadata": {"name": "teams"}, "spec": {"namespaceSelector": selector}})

        snapshot = await load_engine(client)

    assert snapshot.policy_of(pod()).name == "teams"


async def test_inventory_of_an_earlier_node_is_ignored() -> None:
    waiting = manifest(gates=(GATE,), request=rates("30Mi", "20Mi"))
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, waiting)
        api.objects[NODES]["node-a"]["metadata"]["uid"] = "another"
        found = why.recompute(pod_from_manifest(waiting), await load_engine(client))

    assert [it.node for it in found.feasible] == ["node-b"]


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("read short by 810Mi (asks 900Mi, free 90Mi of 1000Mi)", Fraction(9, 10)),
        ("cpu: asks 4, free 2 of 8; memory: asks 4Gi, free 1Gi of 8Gi", Fraction(3, 4)),
        ("read short by 15Mi (asks 10Mi, free -5Mi of 10Mi)", Fraction(3, 2)),
        ("c asks 10 cpu, best zone node-1 has 8; fits if the limit were 8", Fraction(1, 5)),
        ("torn, nearest is node-0: asks 8 cpu, free 6, asks 4 x/gpu, free 1", Fraction(3, 4)),
        ("no NodeDiskDevice names this node", None),
        ("asks much, free little", None),
    ],
)
def test_distance_is_the_largest_lacking_share(detail: str, expected: Fraction | None) -> None:
    reason = Reason(text="t", group="g", detail=detail)
    verdict = Verdict(node="n", reason=reason, concern="c", score=0, scores={})

    assert distance(verdict) == expected


def test_plain_text_is_aligned_and_whole() -> None:
    report = why.build_report(pod(decision=allocation(), node="node-a", phase="Running"))

    assert output.render_plain(report) == (
        "default/pod1 is on node-a: disk IO 97 of 100; "
        "1 node refused: disk IO read bandwidth is not enough.\n"
        "\n"
        "Pod:      default/pod1 (Running)\n"
        "Node:     node-a\n"
        "Mode:     required\n"
        "Decision: d-1\n"
        "Chosen:   node-a, 2 of 3 fitting\n"
        "\n"
        "Scores on node-a:\n"
        "  CONCERN          SCORE   ALLOCATED\n"
        "  CPU and memory      40   -\n"
        "  disk IO             97   device fakeDevice, read 30Mi/s, write 20Mi/s\n"
        "  total               97\n"
        "\n"
        "Refused:\n"
        "  NODES   REASON\n"
        "      1   disk IO read bandwidth is not enough\n"
        "\n"
        "Runners-up:\n"
        "  NODE     SCORE\n"
        "  node-b      75\n"
    )


def test_terminal_shows_the_same_words() -> None:
    report = why.build_report(pod(decision=allocation(), node="node-a", phase="Running"))
    screen = io.StringIO()

    output.render_rich(report, screen, width=100)

    shown = " ".join(screen.getvalue().split())
    for word in ("disk IO 97 of 100", "d-1", "fakeDevice", "node-b 75"):
        assert word in shown
    assert max(map(len, screen.getvalue().splitlines())) <= 100


async def test_json_holds_every_node() -> None:
    waiting = manifest(gates=(GATE,), request=rates("2Gi", "1Mi"))
    screen = io.StringIO()

    report = why.build_report(pod_from_manifest(waiting), await recomputed(waiting), nodes_shown=1)
    output.show(report, as_json=True, out=screen)

    data = json.loads(screen.getvalue())
    assert data["situation"] == "Waiting"
    assert data["recomputed"]["nearest"] == "node-a"
    assert [it["node"] for it in data["recomputed"]["nodes"]] == ["node-a", "node-b", "node-c"]
    assert len(report.tables[-1].rows) == 1
    assert "2 nodes not shown: see --nodes, or -o json for all" in report.remarks
