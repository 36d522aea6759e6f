"""One process of a container: started in a session of its own, ended with all it started.

The process dies with the kubelet (`PR_SET_PDEATHSIG`); what *it* started and left behind is
found by a mark in its environment, see `find_marked`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from berthmaster_sandbox.kubelet.environment import Launch
from berthmaster_sandbox.processes import build_death_pact

# Carries the pod's folder; never shown to the pod's author as something to use.
MARK = "BERTHMASTER_POD_FOLDER"
START_ERROR_CODE = 128


class StartError(Exception):
    """The program cannot be executed; the message names it and the system's reason."""


class ContainerProcess:
    """A running process and its group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, launch: Launch, *, cwd: Path, log_path: Path) -> Self:
        """Start the program with its output appended to a file. Raises StartError."""
        try:
            log = await asyncio.to_thread(_open_log, log_path)
            try:
                process = await asyncio.create_subprocess_exec(
                    *launch.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    cwd=cwd,
                    env=launch.env,
                    start_new_session=True,
                    preexec_fn=build_death_pact(),
                )
            finally:
                os.close(log)
        except (OSError, ValueError) as error:
            raise StartError(f"cannot start {launch.argv[0]!r}: {error}") from error
        return cls(process)

    @property
    def pid(self) -> int:
        """The process's id, which is its group's and its session's as well."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the process's end; return its exit code, 128 + N if signal N ended it."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def signal(self, number: signal.Signals) -> None:
        """Signal the process alone, as a container's first process gets it; harmless when gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kill the process and what it has started; harmless when all are gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for the whole group after `grace_s` seconds."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        self.kill_group()


def find_marked(folder: Path) -> list[int]:
    """Return the processes that an earlier kubelet started for pods under `folder`.

    Only those count whose environment carries the folder, so that no other process is touched.
    """
    needle = f"{MARK}={folder}{os.sep}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end, or be another user's, while it is looked at.
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(variable.startswith(needle) for variable in variables):
                found.append(int(entry.name))
    return found


def kill_marked(folder: Path) -> int:
    """Kill what `find_marked` finds and return how many there were."""
    found = find_marked(folder)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def mark(folder: Path) -> Mapping[str, str]:
    """Return the variable by which the pod's processes are found again."""
    return {MARK: str(folder)}


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
