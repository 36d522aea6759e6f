"""The command `berthmaster-sandbox`: a control plane for whoever wants one.

Owns the words on the terminal and the signals. What a shell is to evaluate goes to standard
output, everything else to standard error. `up` stays in the foreground and is the sandbox: when
it ends, in whatever way, so does the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from berthmaster_sandbox.binaries import FOLDER_VARIABLE, Binaries, ensure_binaries
from berthmaster_sandbox.building import format_duration, print_progress
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.folders import SandboxState, find_base, is_alive, list_running

DOWN_DEADLINE_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 refused or failed."""
    options = _build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="[sandbox] %(levelname)s %(message)s")
    try:
        return int(options.run(options))
    except SandboxError as error:
        print_progress(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="berthmaster-sandbox", description="A Kubernetes control plane on this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    binaries = commands.add_parser("binaries", help="find or build the programs, print where")
    binaries.add_argument("--folder", type=Path, help=f"also {FOLDER_VARIABLE}")
    binaries.set_defaults(run=_run_binaries)

    up = commands.add_parser("up", help="run a cluster until Ctrl-C")
    up.add_argument("--nodes", type=int, default=0, metavar="N", help="simulated nodes (0)")
    up.add_argument("--process-nodes", type=int, default=3, metavar="N", help="process nodes (3)")
    up.add_argument("--name", help="name of the sandbox (a random one)")
    up.add_argument("--binaries", type=Path, metavar="FOLDER", help=f"also {FOLDER_VARIABLE}")
    up.set_defaults(run=_run_up)

    status = commands.add_parser("status", help="list the sandboxes that run")
    status.set_defaults(run=_run_status)

    for name, run, text in (
        ("down", _run_down, "end a sandbox"),
        ("env", _run_env, "print what a shell must evaluate to use a sandbox"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--name", help="which one (the newest)")
        command.set_defaults(run=run)
    return parser


def _run_binaries(options: argparse.Namespace) -> int:
    binaries = ensure_binaries(options.folder)
    print(binaries.folder)
    if binaries.kwok.parent != binaries.folder:
        print(binaries.kwok)
    return 0


def _run_up(options: argparse.Namespace) -> int:
    # Before the loop runs: a build blocks, and Ctrl-C must end it.
    binaries = ensure_binaries(options.binaries)
    return asyncio.run(_stay_up(options, binaries))


async def _stay_up(options: argparse.Namespace, binaries: Binaries) -> int:
    cluster = asyncio.ensure_future(_run_cluster(options, binaries))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A second signal changes nothing: the ordered end is under way and bounded.
        loop.add_signal_handler(number, _cancel_once, cluster)
    try:
        return await cluster
    except asyncio.CancelledError:
        print_progress("ended")
        return 0


def _cancel_once(task: asyncio.Future[int]) -> None:
    if isinstance(task, asyncio.Task) and not task.cancelling():
        task.cancel()


async def _run_cluster(options: argparse.Namespace, binaries: Binaries) -> int:
    async with Sandbox.start(
        sim_nodes=options.nodes,
        process_nodes=options.process_nodes,
        name=options.name,
        binaries=binaries,
        verbose=True,
    ) as sandbox:
        print(f"export KUBECONFIG={sandbox.kubeconfig}")
        print(f'export PATH="{binaries.folder}:$PATH"', flush=True)
        print_progress("running; Ctrl-C ends it")
        print_progress(await sandbox.wait_failed())
        return 1


def _run_status(_options: argparse.Namespace) -> int:
    running = list_running(find_base())
    if not running:
        print_progress("no sandbox is running")
    for state in running:
        age = format_duration(time.time() - state.started_at)
        print(f"{state.name}\t{state.server}\tpid {state.pid}\tup {age}\t{state.kubeconfig}")
    return 0


def _run_env(options: argparse.Namespace) -> int:
    state = _find_running(options.name)
    print(f"export KUBECONFIG={state.kubeconfig}")
    print(f'export PATH="{state.binaries}:$PATH"')
    return 0


def _run_down(options: argparse.Namespace) -> int:
    state = _find_running(options.name)
    folder = find_base() / state.name
    os.kill(state.pid, signal.SIGTERM)
    if not _wait_gone(folder):
        print_progress(f"{state.name} does not end, killing it")
        os.kill(state.pid, signal.SIGKILL)
        if not _wait_gone(folder):
            raise SandboxError(f"{state.name} (pid {state.pid}) is still there")
    print_progress(f"{state.name} has ended")
    return 0


def _wait_gone(folder: Path) -> bool:
    deadline = time.monotonic() + DOWN_DEADLINE_S
    while is_alive(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _find_running(name: str | None) -> SandboxState:
    running = list_running(find_base())
    for state in running:
        if name is None or state.name == name:
            return state
    wanted = "no sandbox is running" if name is None else f"no sandbox called {name} is running"
    raise SandboxError(f"{wanted}; `berthmaster-sandbox up` starts one")


if __name__ == "__main__":
    sys.exit(main())
