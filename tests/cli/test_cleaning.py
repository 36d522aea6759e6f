from __future__ import annotations

import json

from berthmaster.api.names import DISK_IO_READY_ON_NODE
from berthmaster.cli.cleaning import Cleaned, build_report, clean_nodes
from berthmaster.cluster.client import Client
from support.fake_api import FakeApi, Refusal

NODES = "/api/v1/nodes"


def put_node(api: FakeApi, name: str, *types: str) -> None:
    conditions = [{"type": it, "status": "True"} for it in types]
    api.put(NODES, {"metadata": {"name": name}, "status": {"conditions": conditions}})


async def test_conditions_of_ours_are_taken_off_and_others_stay() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        put_node(api, "n1", "Ready", DISK_IO_READY_ON_NODE)
        put_node(api, "n2", "Ready")
        put_node(api, "n3", "berthmaster.io/OfALaterVersion")
        api.fail_next("PATCH", f"{NODES}/n3/status", Refusal(403, "Forbidden", "not you"))

        results = await clean_nodes(client)

    sent = {it.path: json.loads(it.body) for it in api.requests if it.method == "PATCH"}
    assert sent[f"{NODES}/n1/status"] == {
        "status": {"conditions": [{"type": DISK_IO_READY_ON_NODE, "$patch": "delete"}]}
    }
    assert sent.keys() == {f"{NODES}/n1/status", f"{NODES}/n3/status"}
    assert [(it.node, bool(it.error)) for it in results] == [("n1", False), ("n3", True)]


def test_report_tells_each_node() -> None:
    results = [
        Cleaned(node="n1", conditions=("a",)),
        Cleaned(node="n2", conditions=("a",), error="no"),
    ]

    report = build_report(results, is_dry_run=True)

    assert report.sentence == "1 of 2 nodes can be cleaned."
    assert "dry run: nothing was changed" in report.remarks
    assert json.loads(json.dumps(report.data))["nodes"][1]["error"] == "no"
    assert build_report([]).sentence == "No node has a condition of ours."
