"""Who has how much of which accelerator: in the layout that users of the old tool know, and with bars."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster.cli import inspect_xpushare, inspecting
from berthmaster.cli.inspect_xpushare import render, render_details, render_summary
from berthmaster.cli.main import build_parser
from berthmaster.cli.output import render_plain
from berthmaster.cli.tab_stops import lay_out
from berthmaster.cli.xpu_facts import XPUNodeFacts, build_facts
from cli.harbour import furnish
from cli.test_main import KUBECONFIG, environment
from support.fake_api import FakeApi
from support.xpu_worlds import (
    CARDS,
    MEM,
    SLICE_MEM,
    SLICES,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
    share_marks,
)

SUMMARY = """\
NAME      IPADDRESS     XPU0(Allocated/Total)  XPU1(Allocated/Total)  XPU2(Allocated/Total)  \
XPU3(Allocated/Total)  XPU Memory(MiB)
minikube  192.168.49.2  4500/8064              4500/8064              0/8064                 \
0/8064                 9000/32256
---------------------------------------------------------------------------------------
Allocated/Total XPU Memory In Cluster:
9000/32256 (27%)@@
""".replace("@", " ")
DETAILS = """
NAME:       minikube
IPADDRESS:  192.168.49.2

NAME                      NAMESPACE   XPU0(Allocated)  XPU1(Allocated)  XPU2(Allocated)  XPU3(Allocated)@@
xpu-pod-6bf885cf6d-2vzgz  default     4500             0                0                0@@@@@@@@@@@@@@@@
xpu-pod-6bf885cf6d-m6vf6  default     0                4500             0                0@@@@@@@@@@@@@@@@
Allocated :               9000 (27%)@@
Total :                   32256@@@@@@@
----------------------------------------------------------------------------------------------------


Allocated/Total XPU Memory In Cluster:  9000/32256 (27%)@@
""".replace("@", " ")


def node(name: str, address: str = "10.0.0.1", **fields: Any) -> dict[str, Any]:
    manifest = make_xpu_node(name, **fields)
    manifest["status"]["addresses"] = [
        {"type": "Hostname", "address": name},
        {"type": "InternalIP", "address": address},
    ]
    return manifest


def share(name: str, idx: str, mib: int, on: str = "minikube") -> dict[str, Any]:
    marks = share_marks(idx, mib) if idx else {}
    return make_xpu_pod(name, {MEM: mib}, annotations=marks, node=on, phase="Running")


def facts(
    nodes: list[dict[str, Any]],
    *pods: dict[str, Any],
    node_xpus: tuple[dict[str, Any], ...] = (),
) -> list[XPUNodeFacts]:
    return build_facts(nodes, map(pod_from_manifest, pods), (), node_xpus, DEFAULT_NAMES)


def minikube() -> list[XPUNodeFacts]:
    return facts(
        [node("minikube", "192.168.49.2", mem=32256, count=4)],
        share("xpu-pod-6bf885cf6d-m6vf6", "1", 4500),
        share("xpu-pod-6bf885cf6d-2vzgz", "0", 4500),
    )


def test_summary_is_the_old_tools_to_the_byte() -> None:
    assert render_summary(minikube()) == SUMMARY


def test_details_are_the_old_tools_to_the_byte() -> None:
    assert render_details(minikube()) == DETAILS


def test_nodes_of_different_sizes_and_pending_memory() -> None:
    found = facts(
        [node("b", mem=200, count=1), node("a", mem=32256, count=2), node("cpu")],
        share("lost", "", 700, on="a"),
        share("x", "1", 16128, on="a"),
    )

    summary = render_summary(found).splitlines()

    assert summary[0].split() == [
        *("NAME", "IPADDRESS", "XPU0(Allocated/Total)", "XPU1(Allocated/Total)"),
        *("PENDING(Allocated)", "XPU", "Memory(MiB)"),
    ]
    assert summary[1].split() == ["a", "10.0.0.1", "0/16128", "16128/16128", "700", "16828/32256"]
    assert summary[2].split() == ["b", "10.0.0.1", "0/200", "0/0", "0/200"]
    first = "a\t10.0.0.1\t0/16128\t16128/16128\t700\t16828/32256\n"
    assert summary[3] == "-" * (len(first) + 20)
    details = render_details(found)
    assert "Pending(Allocated)" in details.split("NAME:       b")[0]
    lines = details.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("x "))
    assert lines[at].split() == ["x", "default", "0", "16128", "0"]
    assert lines[at + 1].split() == ["lost", "default", "0", "0", "700"]


def test_columns_are_as_wide_as_their_longest_cell_also_where_rows_are_empty() -> None:
    found = facts(
        [
            node("gpu-17.example.com", "10.11.12.113", mem=2400, count=1),
            node("a", mem=1100, count=11),
        ],
        share("x", "10", 99, on="a"),
        share("lost", "", 5, on="gpu-17.example.com"),
    )
    lines = render_summary(found).split("\n")
    headers = "".join(f"XPU{it}(Allocated/Total)@@" for it in range(11))
    free, none = "0/100".ljust(23, "@"), "0/0".ljust(23, "@")

    assert [it.replace(" ", "@") for it in lines[:3]] == [
        f"NAME@@@@@@@@@@@@@@@@IPADDRESS@@@@@{headers}PENDING(Allocated)@@XPU@Memory(MiB)",
        f"a{'@' * 19}10.0.0.1{'@' * 6}{free * 10}99/100{'@' * 18}{'@' * 20}99/1100",
        f"gpu-17.example.com@@10.11.12.113@@0/2400{'@' * 17}{none * 9}0/0{'@' * 21}5{'@' * 19}5/2400",
    ]
    assert lines[3] == "-" * (
        len("a 10.0.0.1 ") + 10 * len("0/100 ") + len("99/100  99/1100 ") + 20
    )
    assert lines[4:] == ["Allocated/Total XPU Memory In Cluster:", "104/3500 (2%)  ", ""]


def test_details_without_pods_have_ten_dashes() -> None:
    assert "\n----------\n" in render_details(facts([node("a", mem=800, count=1)]))


def test_small_numbers_are_gib_and_no_node_is_no_fault() -> None:
    assert "XPU Memory(GiB)" in render_summary(facts([node("a", mem=64, count=2)]))
    assert "0/0 (0%)" in render_summary([])
    assert "0/0 (0%)" in render_details([])


def test_true_sizes_are_shown_where_an_agent_tells_them() -> None:
    agent = {
        "metadata": {"name": "a"},
        "spec": {
            "devices": [
                {"index": 0, "id": "s-0", "memoryMiB": 9000},
                {"index": 1, "id": "s-1", "memoryMiB": 7000},
            ]
        },
    }
    found = facts([node("a", mem=16000, count=2)], node_xpus=(agent,))

    assert "0/9000" in render_summary(found)
    assert "0/7000" in render_summary(found)


def test_pods_and_other_forms() -> None:
    found = minikube()

    assert "XPU1: 4500" in render(found, "text", details=False, pods=True)
    data = json.loads(render(found, "json", details=False, pods=False))
    assert data == yaml.safe_load(render(found, "yaml", details=True, pods=False))
    assert data["nodes"][0]["devices"][0] == {"index": 0, "totalMiB": 8064, "usedMiB": 4500}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a\tb\tc", "aaa\tb"], "a    b  c\naaa  b\n"),
        (["a\tb", "", "aaa\tb"], "a  b\n\naaa  b\n"),
        (["a\tbb\tc", "a\tb", "a\tb\tc"], "a  bb  c\na  b\na  b  c\n"),
        (["\t\tx", "a\t"], "     x\na  \n"),
        ([], ""),
    ],
)
def test_tab_stops(lines: list[str], expected: str) -> None:
    assert lay_out(lines) == expected


def test_bars_of_all_dialects() -> None:
    slices = {"hami.io/xpu-devices-allocated": "xpu-1,XPU,24576,25:;"}
    whole = {"hami.io/kunlun-allocated": "hami-kunlun-0,kunlun,98304,100:;"}
    registered = registered_cards(3)
    registered[2]["health"] = False
    found = facts(
        [node("hami", cards=3, registered=registered), node("share", mem=200, count=2)],
        make_xpu_pod("s", {SLICES: 1, SLICE_MEM: 24576}, annotations=slices, node="hami"),
        make_xpu_pod("w", {CARDS: 1}, annotations=whole, node="hami"),
        *(share(f"p{it}", "0", 30, on="share") for it in range(5)),
    )

    text = render_plain(inspecting.build_report(found))

    lines = [line.split() for line in text.splitlines()]
    assert ["hami", "0", "XPU", "98304", "98304", "#" * 20, "ok", "default/w", "98304"] in lines
    assert [
        "hami",
        "1",
        "XPU",
        "24576",
        "98304",
        "#" * 5 + "." * 15,
        "ok",
        "default/s",
        "24576",
    ] in lines
    assert ["hami", "2", "XPU", "0", "98304", "." * 20, "unhealthy", "-"] in lines
    assert "over" in text
    assert "and 1 more" in text
    assert text.startswith("5 XPUs on 2 nodes: 123030 of 295112 MiB are taken (41%).")
    assert inspecting.build_report([], "a").sentence == "Node a has no XPUs."
    assert inspecting.bar(1, 0) == "." * 20


async def run(api: FakeApi, folder: Path, module: str, *words: str) -> tuple[int, str, str]:
    config = folder / "config"
    config.write_text(KUBECONFIG.replace("SERVER", api.url))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        env=environment(config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), error.decode()


async def test_commands_ask_the_cluster(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, share("x", "1", 4500, on="gpu"))
        api.put("/api/v1/nodes", node("gpu", mem=32256, count=4))
        shared = "berthmaster.cli.inspect_xpushare"
        code, out, _ = await run(api, tmp_path, shared)
        berth, bars, _ = await run(api, tmp_path, "berthmaster.cli.main", "inspect", "gpu")
        missing, _, error = await run(api, tmp_path, shared, "node-a")
        none, words, _ = await run(api, tmp_path, "berthmaster.cli.main", "inspect", "node-a")

    assert (code, berth) == (0, 0)
    assert out.splitlines()[1].split()[2:] == [
        "0/8064",
        "4500/8064",
        "0/8064",
        "0/8064",
        "4500/32256",
    ]
    assert bars.startswith("4 XPUs on node gpu: 4500 of 32256 MiB are taken (13%).")
    assert missing == none == 1
    assert "node-a has no XPU memory" in error
    assert words == "Node node-a has no XPUs.\n"


def test_nothing_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = inspect_xpushare.main(["--kubeconfig", str(tmp_path / "none")])

    assert code == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert build_parser().parse_args(["inspect"]).node is None
