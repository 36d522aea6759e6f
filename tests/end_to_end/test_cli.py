"""`kubectl berth` as people run it: a program of its own, found by kubectl, against a real cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.world.diskio import DiskWorld
from support.commands import BERTH, PROGRAMS, ask, ask_for_data, run
from support.harbour import (
    apply_models,
    create,
    io,
    make_pod,
    new_namespace,
    until_bound,
    until_reason,
    until_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "cli"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[DiskWorld]:
    """A node whose disk has 100 and two pods that ask 60 each: one is placed, one waits."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name="cli")
    async with DiskWorld(harbour.client) as running:
        await running.add_node("cli", devices={"d": disk(100, 100, 200)})
        await until_reason(harbour, "cli", "Reported")
        await create(harbour, NAMESPACE, make_pod("placed", request=io("60Mi"), on="cli"))
        await create(harbour, NAMESPACE, make_pod("plain", placement=None, on="cli"))
        assert await until_bound(harbour, NAMESPACE, "placed") == "cli"
        assert await until_bound(harbour, NAMESPACE, "plain") == "cli"
        await create(harbour, NAMESPACE, make_pod("waits", request=io("60Mi"), on="cli"))
        await until_waiting(harbour, NAMESPACE, "waits")
        yield running


async def test_kubectl_finds_the_plugin(harbour: Sandbox, world: DiskWorld) -> None:
    kubectl = str(harbour.binaries.kubectl)
    question = ("why", "placed", "-n", NAMESPACE)

    code, output, errors = await run(harbour, kubectl, "berth", *question)

    assert (code, errors) == (0, "")
    assert output == await ask(harbour, *question)


async def test_kubectl_completes_the_plugin(harbour: Sandbox, world: DiskWorld) -> None:
    kubectl = harbour.binaries.kubectl
    path = f"{PROGRAMS}{os.pathsep}{Path(kubectl).parent}{os.pathsep}{os.environ['PATH']}"

    async def complete(*words: str) -> list[str]:
        _, output, _ = await run(harbour, str(kubectl), "__complete", "berth", *words, PATH=path)
        return output.splitlines()

    assert await complete("sim") == ["simulate", ":4"]
    assert await complete("why", "-n", NAMESPACE, "pl") == ["placed", "plain", ":4"]
    assert await complete("ungate", "-n", NAMESPACE, "") == ["waits", ":4"]


async def test_why_of_a_placed_pod(harbour: Sandbox, world: DiskWorld) -> None:
    output = await ask(harbour, "why", f"{NAMESPACE}/placed")
    data = await ask_for_data(harbour, "why", "placed", "-n", NAMESPACE)

    sentence, *rest = output.splitlines()
    assert re.fullmatch(
        r"cli/placed is on cli: disk IO 40 of 100; \d+ nodes refused: .+\.", sentence
    )
    assert any(line.split() == ["Node:", "cli"] for line in rest)
    assert (data["situation"], data["node"], data["sentence"]) == ("Placed", "cli", sentence)
    assert data["allocation"]["allocated"]["diskio"]["rbps"] == 60 * 2**20
    assert data["allocation"]["scores"]["diskio"] == 40


async def test_why_of_a_waiting_pod(harbour: Sandbox, world: DiskWorld) -> None:
    output = await ask(harbour, "why", "waits", "-n", NAMESPACE)
    data = await ask_for_data(harbour, "why", "waits", "-n", NAMESPACE)

    # 100 less the placed one's 60 and the plain one's 5 leaves 35.
    detail = "read short by 25Mi (asks 60Mi, free 35Mi of 100Mi)"
    sentence = output.splitlines()[0]
    assert sentence.startswith("cli/waits waits for a node, 0 of ")
    assert f"nearest is cli, {detail}" in sentence
    assert "recomputed now from the API server" in output
    assert data["situation"] == "Waiting"
    assert data["gates"] == ["berthmaster.io/placement"]
    assert data["recomputed"]["nearest"] == "cli"
    nearest = data["recomputed"]["nodes"][0]
    assert nearest["detail"].startswith(detail)
    assert nearest["reason"] == "node cli disk IO read bandwidth is not enough"


async def test_why_of_a_pod_that_did_not_opt_in(harbour: Sandbox, world: DiskWorld) -> None:
    output = await ask(harbour, "why", "plain", "-n", NAMESPACE)
    data = await ask_for_data(harbour, "why", "plain", "-n", NAMESPACE)

    assert output.startswith(
        "cli/plain is on cli without Berthmaster: it carries no annotation berthmaster.io/placement"
    )
    assert (data["situation"], data["allocation"]) == ("NotAsked", None)


async def test_no_answer_is_one_line_and_an_exit_code(harbour: Sandbox, world: DiskWorld) -> None:
    code, output, errors = await run(harbour, BERTH, "why", "ghost", "-n", NAMESPACE)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("error: pod cli/ghost not found; -n chooses another namespace")

    nowhere = {"KUBECONFIG": str(harbour.folder / "no-such-kubeconfig")}
    code, output, errors = await run(harbour, BERTH, "why", "placed", **nowhere)
    assert (code, output, errors.count("\n")) == (1, "", 1)

    code, output, errors = await run(harbour, BERTH, "ungate")
    assert (code, output) == (2, "")
    assert "one of the arguments POD --all is required" in errors


async def test_ungated_pod_goes_and_is_counted(harbour: Sandbox, world: DiskWorld) -> None:
    output = await ask(harbour, "ungate", "placed", "-n", NAMESPACE)
    assert output.startswith("cli/placed carries no gate of ours, nothing was changed.")
    output = await ask(harbour, "ungate", "--all", "-n", NAMESPACE, "--dry-run")
    assert output.startswith("cli/waits can be ungated; kube-scheduler places it by itself.")
    await until_waiting(harbour, NAMESPACE, "waits")
    assert await world.judge() == []

    data = await ask_for_data(harbour, "ungate", "waits", "-n", NAMESPACE)
    assert [(it["pod"], it["outcome"]) for it in data["pods"]] == [("cli/waits", "ungated")]
    assert await until_bound(harbour, NAMESPACE, "waits") == "cli"

    # What was let through is past the line, as the judge says, and is counted.
    assert await world.judge()
    assert (await ask(harbour, "why", "waits", "-n", NAMESPACE)).startswith(
        "cli/waits is on cli past Berthmaster: it asks for placement but carries no decision"
    )
    await create(harbour, NAMESPACE, make_pod("after", request=io("1Mi"), on="cli"))
    _, message = await until_waiting(harbour, NAMESPACE, "after")
    assert "disk IO read bandwidth is not enough" in message
    data = await ask_for_data(harbour, "why", "after", "-n", NAMESPACE)
    assert data["recomputed"]["nodes"][0]["detail"].startswith("read short by 26Mi")


async def test_what_is_foretold_happens(harbour: Sandbox, world: DiskWorld) -> None:
    """Foretold by somebody who may only read; then the pods are created."""
    await harbour.create_nodes(1, name="room")
    await world.add_node("room", devices={"d": disk(100, 100, 200)})
    await until_reason(harbour, "room", "Reported")
    file = harbour.folder / "room.json"
    file.write_text(json.dumps(make_pod("room", request=io("30Mi"), on="room")))
    reader = await reader_of(harbour)
    asked = ("-f", str(file), "-n", NAMESPACE, "-o", "json")

    code, output, errors = await run(harbour, BERTH, "simulate", *asked, KUBECONFIG=reader)
    assert (code, errors) == (0, "")
    (foretold,) = json.loads(output)["workloads"]
    assert (foretold["outcome"], foretold["decision"]["node"]) == ("Placed", "room")
    code, output, errors = await run(harbour, BERTH, "capacity", *asked, KUBECONFIG=reader)
    assert (code, errors) == (0, "")
    capacity = json.loads(output)
    assert capacity["count"] == 3
    assert {it["node"]: it["fit"] for it in capacity["nodes"]}["room"] == 3

    for name in ("room-1", "room-2", "room-3"):
        await create(harbour, NAMESPACE, make_pod(name, request=io("30Mi"), on="room"))
        assert await until_bound(harbour, NAMESPACE, name) == "room"
    first = await ask_for_data(harbour, "why", "room-1", "-n", NAMESPACE)
    assert first["allocation"]["scores"] == foretold["decision"]["scores"]
    await create(harbour, NAMESPACE, make_pod("room-4", request=io("30Mi"), on="room"))
    await until_waiting(harbour, NAMESPACE, "room-4")

    code, output, errors = await run(harbour, BERTH, "simulate", *asked, KUBECONFIG=reader)
    assert (code, errors) == (3, "")
    (foretold,) = json.loads(output)["workloads"]
    assert foretold["outcome"] == "Nowhere"
    assert foretold["help"][0]["where"] == "room"
    assert foretold["help"][0]["what"].startswith("the end of one of cli/room-")


async def test_simulate_refuses_with_the_words_of_admission(
    harbour: Sandbox, world: DiskWorld
) -> None:
    pod = make_pod("odd", request='{"rbps": "fast"}', on="cli")
    file = harbour.folder / "odd.json"
    file.write_text(json.dumps(pod))
    with pytest.raises(ApiError) as refused:
        await create(harbour, NAMESPACE, pod)

    code, output, _ = await run(
        harbour, BERTH, "simulate", "-f", str(file), "-n", NAMESPACE, "-o", "json"
    )

    assert code == 1
    sentence = json.loads(output)["workloads"][0]["sentence"]
    words = sentence.removeprefix(f"{NAMESPACE}/odd would be refused: ").removesuffix(".")
    assert words
    assert words in refused.value.message


async def reader_of(harbour: Sandbox) -> str:
    """Return the kubeconfig of somebody who may read what the built-in role `view` shows, and nodes."""
    account = f"--serviceaccount={NAMESPACE}:reader"
    ours = "nodeinventories.berthmaster.io,placementpolicies.berthmaster.io"
    for command in (
        f"serviceaccount reader -n {NAMESPACE}",
        f"clusterrolebinding reader --clusterrole=view {account}",
        f"clusterrole reader --verb=get,list --resource=nodes --resource={ours}",
        f"clusterrolebinding reader-nodes --clusterrole=reader {account}",
    ):
        await harbour.kubectl("create", *command.split())
    token = (await harbour.kubectl("-n", NAMESPACE, "create", "token", "reader")).stdout.strip()
    config = json.loads((await harbour.kubectl("config", "view", "--raw", "-o", "json")).stdout)
    for user in config["users"]:
        user["user"] = {"token": token}
    path = harbour.folder / "reader"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return str(path)
