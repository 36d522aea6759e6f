"""`kubectl berth` as people run it: a program of its own, found by kubectl, against a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.processes import build_environment
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    apply_models,
    create,
    io,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_reason,
    why_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "cli"


async def run(harbour: Sandbox, *arguments: str) -> tuple[int, str, str]:
    """Run kubectl with its plugins on the PATH; return exit code, output, errors."""
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    process = await asyncio.create_subprocess_exec(
        str(harbour.binaries.kubectl),
        *arguments,
        env=build_environment({"KUBECONFIG": str(harbour.kubeconfig), "PATH": path}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_why_and_ungate(harbour: Sandbox) -> None:
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name="cli")
    async with DiskWorld(harbour.client) as world:
        await world.add_node("cli", devices={"d": disk(100, 100, 200)})
        await until_reason(harbour, "cli", "Reported")
        await create(harbour, NAMESPACE, make_pod("placed", request=io("60Mi"), on="cli"))
        await create(harbour, NAMESPACE, make_pod("plain", placement=None, on="cli"))
        assert await until_bound(harbour, NAMESPACE, "placed") == "cli"
        await create(harbour, NAMESPACE, make_pod("waits", request=io("60Mi"), on="cli"))
        await until(lambda: why_waiting(harbour, NAMESPACE, "waits"), lambda it: bool(it[0]), 30)

        code, output, _ = await run(harbour, "berth", "why", "placed", "-n", NAMESPACE)
        assert code == 0
        assert output.startswith("cli/placed is on cli: disk IO 40 of 100; ")

        code, output, _ = await run(harbour, "berth", "why", "waits", "-n", NAMESPACE)
        assert code == 0
        assert "nearest is cli, read short by" in output

        code, output, _ = await run(harbour, "berth", "why", "plain", "-n", NAMESPACE, "-o", "json")
        assert code == 0
        assert "without Berthmaster" in json.loads(output)["sentence"]

        code, output, errors = await run(harbour, "berth", "why", "ghost", "-n", NAMESPACE)
        assert (code, output) == (1, "")
        assert "pod cli/ghost not found" in errors

        code, output, _ = await run(harbour, "berth", "ungate", "waits", "-n", NAMESPACE)
        assert code == 0
        assert await until_bound(harbour, NAMESPACE, "waits") == "cli"

        # What was let through is past the line, is reported as such, and is counted.
        assert [str(it) for it in await world.judge()]
        await create(harbour, NAMESPACE, make_pod("after", request=io("1Mi"), on="cli"))
        _, message = await until(
            lambda: why_waiting(harbour, NAMESPACE, "after"), lambda it: bool(it[0]), 30
        )
        assert "disk IO read bandwidth is not enough" in message
