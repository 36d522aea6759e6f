"""Our programs as people run them, against a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.processes import build_environment

PROGRAMS = Path(sys.executable).parent
BERTH = str(PROGRAMS / "kubectl-berth")


async def run(harbour: Sandbox, *command: str, **variables: str) -> tuple[int, str, str]:
    """Run a program with our programs on the PATH; return exit code, output, errors."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    process = await asyncio.create_subprocess_exec(
        *command,
        env=build_environment({"KUBECONFIG": str(harbour.kubeconfig), "PATH": path, **variables}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(), errors.decode()


async def ask(harbour: Sandbox, *question: str) -> str:
    """Return what a command says that succeeds and has nothing to complain about."""
    code, output, errors = await run(harbour, BERTH, *question)
    assert (code, errors) == (0, "")
    return output


async def ask_for_data(harbour: Sandbox, *question: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(await ask(harbour, *question, "-o", "json"))
    return data
