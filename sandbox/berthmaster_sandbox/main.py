"""The command `berthmaster-sandbox`: a control plane for whoever wants one.

Owns the words on the terminal and the signals. What a shell is to evaluate goes to standard
output, everything else to standard error. `up` stays in the foreground and is the sandbox: when
it ends, in whatever way, so does the cluster. `up --detach` leaves the same process behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from berthmaster_sandbox.binaries import (
    FOLDER_VARIABLE,
    Binaries,
    ensure_binaries,
    ensure_metrics_server,
    find_architecture,
)
from berthmaster_sandbox.building import format_duration, print_progress
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.detaching import start_detached
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.folders import (
    SandboxState,
    check_name,
    find_base,
    find_log,
    is_alive,
    list_running,
    sweep,
)
from berthmaster_sandbox.processes import read_tail
from berthmaster_sandbox.releases import Checksums, list_release_files

DOWN_DEADLINE_S = 30.0
PROBE_TIMEOUT_S = 5.0
# More than this machine's likes have been tried with, and still a slip of the finger.
MOST_NODES = 10_000
MOST_PROCESS_NODES = 20


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
        prog="berthmaster-sandbox",
        description="A real Kubernetes control plane on this machine, without containers.",
        epilog="The project's docs/sandbox.md says what it is good for, and what is not real.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run a cluster until Ctrl-C, or in the background")
    up.add_argument("--name", help="name of the sandbox (a random one)")
    up.add_argument(
        "--detach",
        action="store_true",
        help="return when it is ready and leave it running; print what a shell must evaluate",
    )
    up.add_argument(
        "--nodes",
        type=_count(MOST_NODES),
        default=0,
        metavar="N",
        help="simulated nodes: pods on them run without running (0)",
    )
    up.add_argument(
        "--process-nodes",
        type=_count(MOST_PROCESS_NODES),
        default=3,
        metavar="N",
        help="nodes whose pods are processes of this machine (3)",
    )
    up.add_argument(
        "--binaries",
        type=_folder,
        metavar="FOLDER",
        help=f"programs to use; also {FOLDER_VARIABLE}",
    )
    up.set_defaults(run=_run_up)

    status = commands.add_parser("status", help="tell which sandboxes run, and how they are")
    status.add_argument("--name", help="this one only; exit code 1 unless it is ready")
    status.add_argument("-o", "--output", choices=["table", "json"], default="table")
    status.set_defaults(run=_run_status)

    env = commands.add_parser("env", help="print what a shell must evaluate to use a sandbox")
    env.add_argument("--name", help="which one, if several run")
    env.set_defaults(run=_run_env)

    down = commands.add_parser("down", help="end a sandbox and remove all that is left of it")
    which = down.add_mutually_exclusive_group()
    which.add_argument("--name", help="which one, if several run")
    which.add_argument("--all", action="store_true", help="every one of this user")
    down.set_defaults(run=_run_down)

    binaries = commands.add_parser(
        "binaries", help="find, download or build the programs, print their folder"
    )
    binaries.add_argument("--folder", type=_folder, help=f"also {FOLDER_VARIABLE}")
    binaries.add_argument(
        "--list-downloads",
        action="store_true",
        help="only print what may be downloaded: program, SHA-256 or '-', address",
    )
    binaries.add_argument(
        "--metrics-server", action="store_true", help="only metrics-server, which few need"
    )
    binaries.set_defaults(run=_run_binaries)
    return parser


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a number from 0 to {most}, got {text!r}")
        return value

    return parse


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _run_binaries(options: argparse.Namespace) -> int:
    if options.list_downloads:
        checksums = Checksums(os.environ)
        for file in list_release_files(find_architecture(), os.environ):
            print(file.program, checksums.find(file.path) or "-", file.url)
        return 0
    if options.metrics_server:
        print(ensure_metrics_server())
        return 0
    binaries = ensure_binaries(options.folder)
    print(binaries.folder)
    if binaries.kwok.parent != binaries.folder:
        print(binaries.kwok)
    return 0


def _run_up(options: argparse.Namespace) -> int:
    if options.name is not None:
        check_name(options.name)
    # Before the loop runs: a build blocks, and Ctrl-C must end it.
    binaries = ensure_binaries(options.binaries)
    if options.detach:
        return _stay_behind(options)
    return asyncio.run(_stay_up(options, binaries))


def _stay_behind(options: argparse.Namespace) -> int:
    arguments = ["--nodes", str(options.nodes), "--process-nodes", str(options.process_nodes)]
    if options.binaries is not None:
        arguments += ["--binaries", str(options.binaries)]
    name = options.name or secrets.token_hex(3)
    _print_exports(start_detached(find_base(), name, arguments))
    return 0


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
        name = sandbox.folder.name
        ending = "Ctrl-C ends it" if sys.stdin.isatty() else "SIGTERM ends it"
        print_progress(
            f"{name} is running; {ending}, or from anywhere: berthmaster-sandbox down --name {name}"
        )
        print_progress(f'elsewhere: eval "$(berthmaster-sandbox env --name {name})"')
        _print_exports(sandbox.describe())
        print_progress(f"{name} ends: {await sandbox.wait_failed()}")
        return 1


def _print_exports(state: SandboxState) -> None:
    print(f"export KUBECONFIG={shlex.quote(state.kubeconfig)}")
    print(f'export PATH={shlex.quote(state.binaries)}:"$PATH"', flush=True)


def _run_status(options: argparse.Namespace) -> int:
    base = find_base()
    running = [
        state for state in list_running(base) if options.name is None or state.name == options.name
    ]
    rows = [(state, _judge(state)) for state in running]
    if options.output == "json":
        print(json.dumps([{**asdict(state), "state": word} for state, word in rows], indent=2))
    elif rows:
        _print_table(rows)
    if options.name is None:
        if not rows:
            print_progress("no sandbox is running")
        return 0
    if not rows:
        print_progress(_describe_absent(base, options.name))
    return 0 if [word for _, word in rows] == ["ready"] else 1


def _judge(state: SandboxState) -> str:
    """Return what the API server says about itself now, not what it once said."""
    if not state.is_ready:
        return "starting"
    command = [str(Path(state.binaries) / "kubectl"), "--kubeconfig", state.kubeconfig]
    command += ["get", "--raw", "/readyz", f"--request-timeout={PROBE_TIMEOUT_S:.0f}s"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=2 * PROBE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return "not answering"
    return "ready"


def _print_table(rows: Sequence[tuple[SandboxState, str]]) -> None:
    table = [("NAME", "STATE", "AGE", "PID", "SERVER", "KUBECONFIG")]
    for state, word in rows:
        age = format_duration(max(0.0, time.time() - state.started_at))
        table.append((state.name, word, age, str(state.pid), state.server, state.kubeconfig))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("   ".join(cells).rstrip())


def _describe_absent(base: Path, name: str) -> str:
    log = find_log(base, name)
    if not log.is_file():
        return f"no sandbox called {name} is running"
    return f"{name} ended on its own; the end of {log}:\n{read_tail(log)}"


def _run_env(options: argparse.Namespace) -> int:
    state = _choose(options.name, list_running(find_base()))
    if state is None:
        wanted = "no sandbox" if options.name is None else f"no sandbox called {options.name}"
        raise SandboxError(f"{wanted} is running; `berthmaster-sandbox up` starts one")
    if not state.is_ready:
        raise SandboxError(f"{state.name} is still starting; `berthmaster-sandbox status` tells")
    _print_exports(state)
    return 0


def _run_down(options: argparse.Namespace) -> int:
    base = find_base()
    running = list_running(base)
    if options.all:
        chosen = running
    else:
        state = _choose(options.name, running)
        chosen = [] if state is None else [state]
    if not chosen:
        name = "" if options.name is None else f" called {options.name}"
        print_progress(f"no sandbox{name} is running")
    for state in chosen:
        _end(base, state)
    for name in set(sweep(base)) - {state.name for state in chosen}:
        print_progress(f"removed what {name} had left when it was killed or failed")
    return 0


def _choose(name: str | None, running: Sequence[SandboxState]) -> SandboxState | None:
    """Return the sandbox of that name, or the only one. Raises SandboxError if there are several."""
    if name is not None:
        return next((state for state in running if state.name == name), None)
    if len(running) > 1:
        names = ", ".join(state.name for state in running)
        raise SandboxError(f"{len(running)} sandboxes are running ({names}): choose with --name")
    return running[0] if running else None


def _end(base: Path, state: SandboxState) -> None:
    folder = base / state.name
    with _until_exited(state.pid):
        _send_signal(state.pid, signal.SIGTERM)
        if not _wait_gone(folder):
            print_progress(f"{state.name} does not end, killing it")
            _send_signal(state.pid, signal.SIGKILL)
            if not _wait_gone(folder):
                raise SandboxError(f"{state.name} (pid {state.pid}) is still there")
    print_progress(f"{state.name} has ended")


@contextmanager
def _until_exited(pid: int) -> Iterator[None]:
    """Wait at the end of the block for the process that had this pid at its beginning.

    A sandbox gives its folder up a moment before its process is gone.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        yield
        return
    try:
        yield
        select.select([process], [], [], DOWN_DEADLINE_S)
    finally:
        os.close(process)


def _send_signal(pid: int, number: int) -> None:
    # It may have ended on its own since it was listed.
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_gone(folder: Path) -> bool:
    deadline = time.monotonic() + DOWN_DEADLINE_S
    while is_alive(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    sys.exit(main())
