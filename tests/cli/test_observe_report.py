"""What `observe-report` counts and says: pods where they are against where they would have gone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.allocation import write_allocation
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cli import observe_report, output, savings
from berthmaster.cli.observed import Tally
from berthmaster.cluster.snapshot import Snapshot
from cli.harbour import allocation, furnish, manifest, rates
from cli.test_main import run_against
from support.fake_api import FakeApi
from support.five_concerns import make_pod_of_five, make_snapshot, read_pod_of_five

NODES: dict[str, dict[str, Any]] = {
    "near": {"zone": "a", "watts_per_core": 4.0},
    "gate": {"zone": "a", "corpus": "gateway", "disk": "50Mi"},
    "full": {"zone": "b", "disk": "150Mi"},
    "torn": {"zone": "b", "free_cpus": (3, 3)},
    "warm": {"zone": "a", "watts_per_core": 8.0},
}


def observed(name: str, node: str, *, chosen: str = "near", **fields: Any) -> Pod:
    """Return a pod that is on a node, with what was decided for it when it was created."""
    snapshot = make_snapshot(NODES)
    asked = read_pod_of_five(mode="observe", **fields)
    request = snapshot.engine.read_request(asked, snapshot.policy_of(asked).spec)
    decision = snapshot.engine.decide(request, f"d-{name}", only=chosen)
    found = make_pod_of_five(
        name,
        mode="observe",
        annotations={names.ALLOCATION: write_allocation(decision.allocation("observe"))},
        **fields,
    )
    found["spec"]["nodeName"] = node
    found["status"] = {"phase": "Running" if node else "Pending"}
    return pod_from_manifest(found)


def tally_of(*pods: Pod, most_judged: int = 100) -> Tally:
    tally = Tally(make_snapshot(NODES, *pods), most_judged=most_judged)
    for pod in pods:
        tally.take(pod)
    return tally


def data_of(tally: Tally) -> dict[str, Any]:
    screen = io.StringIO()
    output.show(observe_report.build_report(tally), as_json=True, out=screen)
    found: dict[str, Any] = json.loads(screen.getvalue())
    return found


def test_pods_are_counted_by_what_became_of_them() -> None:
    undecided = read_pod_of_five(name="undecided", mode="observe")
    ours = pod_from_manifest(make_pod_of_five("ours", mode="required"))
    tally = tally_of(
        observed("a", "near"), observed("b", "warm"), observed("c", ""), undecided, ours
    )

    counts = tally.counts
    assert (counts.agreeing, counts.elsewhere, counts.unbound, counts.undecided) == (1, 1, 1, 1)
    text = output.render_plain(observe_report.build_report(tally))
    assert text.startswith(
        "1 of 2 observed pods are on another node than Berthmaster would have chosen (50 %).\n"
    )


def test_watts_and_scores_are_those_of_each_concern() -> None:
    """Four cores at 8 W instead of 4 W."""
    found = data_of(tally_of(observed("a", "warm"), observed("b", "warm")))["concerns"]["power"]

    assert found["saved"] == {"watts": 32.0}
    assert found["pods"] == found["scored"] == 2
    assert found["meanScoreThere"] < found["meanScoreChosen"] == 100


def test_data_nearer_are_counted() -> None:
    found = data_of(tally_of(observed("a", "full"), observed("b", "warm")))["concerns"]

    assert found["dataset"]["saved"] == {"datasetsNearer": 1.0}
    assert found["dataset"]["meanScoreThere"] == (25 + 50) / 2


def test_disks_past_their_line_are_told_with_how_much_would_not_be_there() -> None:
    """Two pods of 100Mi on a disk of 150Mi: 50Mi are too much."""
    data = data_of(tally_of(observed("a", "full"), observed("b", "full")))
    past = {it["resource"]: it for it in data["pastTheLine"] if it["concern"] == "diskio"}

    assert past["read"] | {"unit": ""} == {
        "concern": "diskio",
        "resource": "read",
        "unit": "",
        "amount": 50 * 2**20,
        "nodes": 1,
    }
    assert data["concerns"]["diskio"]["refused"] == 2
    said = output.render_plain(
        observe_report.build_report(tally_of(observed("a", "full"), observed("b", "full")))
    )
    assert "50Mi/s of read past the line of 1 node" in said
    assert "disk IO read bandwidth is not enough" in said


def test_a_pod_that_no_zone_can_hold_would_have_lain_in_one() -> None:
    found = data_of(tally_of(observed("a", "torn")))["concerns"]["numa"]

    assert (found["refused"], found["saved"]) == (1, {"podsInOneZone": 1.0})


def test_what_a_pod_holds_itself_does_not_count_against_it_and_the_books_stay_as_they_were() -> (
    None
):
    pods = [observed("a", "warm", rate="900Mi")]
    snapshot = make_snapshot(NODES, *pods)
    before = {it.node: it.usages for it in snapshot.engine.ledger}
    tally = Tally(snapshot, most_judged=10)
    tally.take(pods[0])

    assert data_of(tally)["concerns"]["diskio"]["refused"] == 0
    assert {it.node: it.usages for it in snapshot.engine.ledger} == before


def test_finished_pods_and_those_past_the_bound_are_counted_and_not_judged() -> None:
    done = manifest("done", node="far", phase="Succeeded", decision=allocation(mode="observe"))
    tally = tally_of(
        observed("a", "warm"), observed("b", "warm"), pod_from_manifest(done), most_judged=1
    )

    assert (tally.counts.elsewhere, tally.judged, tally.not_judged) == (3, 1, 2)
    assert any("not judged" in it for it in observe_report.build_report(tally).remarks)


def test_pods_that_their_kubelet_turned_away_are_told() -> None:
    away = manifest("away", node="torn", phase="Failed", decision=allocation(mode="observe"))
    away["status"]["reason"] = "TopologyAffinityError"

    assert data_of(tally_of(pod_from_manifest(away)))["turnedAway"] == 1


def test_examples_are_few_the_worst_first() -> None:
    small: dict[str, Any] = {"rate": "10Mi", "cpu": "1", "share_mib": 100}
    pods = [observed(f"warm-{it:02d}", "warm", **small) for it in range(12)]
    tally = tally_of(*pods, observed("torn", "torn"), observed("far", "full"))

    assert len(tally.examples) == 10
    assert tally.examples[0].pod == "default/torn"
    assert "cannot align" in tally.examples[0].why


def test_namespaces_are_told_apart() -> None:
    shop = make_pod_of_five("s", mode="observe")
    shop["metadata"]["namespace"] = "shop"
    tally = tally_of(observed("a", "warm"), pod_from_manifest(shop))

    assert set(tally.by_namespace) == {"default", "shop"}
    text = output.render_plain(observe_report.build_report(tally))
    assert "By namespace, the most first:" in text


def test_nothing_observed_is_said_so() -> None:
    report = observe_report.build_report(tally_of())

    assert report.sentence == "No pod that observes has both a decision and a node."
    assert not report.tables
    assert not report.remarks


@pytest.mark.parametrize(
    ("concern", "promised", "given", "figures"),
    [
        ("dataset", {"datasets": {"a": {"tier": 50}}}, None, {"datasetsNearer": 1.0}),
        (
            "dataset",
            {"datasets": {"a": {"tier": 100, "mode": "gateway"}}, "besideGateway": True},
            {"datasets": {"a": {"tier": 50}}},
            {"datasetsNearer": 1.0, "datasetsOnTheNodeItself": 1.0},
        ),
        ("dataset", {"datasets": "odd"}, {"datasets": {"a": 3}}, {}),
        ("power", {"watts": 20.0}, {"watts": 12.5}, {"watts": -7.5}),
        ("power", {"watts": "odd"}, {"watts": 12.5}, {}),
        ("power", {"watts": 20.0}, None, {}),
        ("numa", {"zones": {"0": {}}}, {"zones": {"0": {}, "1": {}}}, {"podsInOneZone": 1.0}),
        ("numa", {"zones": {"0": {}}}, {"zones": {"1": {}}}, {}),
        ("numa", {}, None, {}),
        ("third-party", {"x": 1}, {"x": 2}, {}),
    ],
)
def test_savings_of_each_concern(
    concern: str, promised: dict[str, Any], given: dict[str, Any] | None, figures: dict[str, float]
) -> None:
    assert savings.compare(concern, promised, given) == figures


def test_figures_have_their_words() -> None:
    told = [savings.describe("datasetsNearer", it) for it in (1.0, 3.0)]

    assert told == ["1 dataset nearer", "3 datasets nearer"]
    assert savings.describe("watts", -7.52) == "-7.5 W"


async def test_the_command_counts_namespaces_that_are_named(tmp_path: Path) -> None:
    async with FakeApi() as api:
        decision = allocation(mode="observe", refused=[])
        pods = [
            manifest(
                name, mode="observe", decision=decision, node=node, request=rates("30Mi", "20Mi")
            )
            for name, node in (("pod1", "node-a"), ("pod2", "node-b"))
        ]
        furnish(api, *pods)
        code, out, err = await run_against(
            api, tmp_path, "observe-report", "default", "gone", "-o", "json"
        )

    data = json.loads(out)
    assert (code, err) == (0, "")
    assert (data["agreeing"], data["elsewhere"], data["judged"]) == (1, 1, 1)
    assert data["concerns"]["diskio"]["meanScoreChosen"] == 97
    assert data["notes"] == ["the namespace gone does not exist"]


def test_a_snapshot_is_not_changed_by_pods_of_other_modes() -> None:
    snapshot: Snapshot = make_snapshot(NODES)
    tally = Tally(snapshot, most_judged=1)
    tally.take(read_pod_of_five(mode="off"))

    assert not tally.by_namespace
