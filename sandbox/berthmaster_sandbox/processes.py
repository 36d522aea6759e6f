"""Child processes that never outlive the sandbox.

Owns the start, the watching and the end of every program that the sandbox runs. Three things
make the end certain. Each child asks the kernel to be killed when the thread that forked it is
gone, so that `kill -9` on the sandbox leaves nothing behind. Each child leads a session of its
own, so that one signal reaches its descendants too, and Ctrl-C in a terminal reaches only the
sandbox, which then stops its children in order. And each child starts with an environment free
of proxies: everything here talks on loopback.

The kernel ties the parent-death signal to a thread and not to a process. `start_process`
therefore refuses to run anywhere but on the main thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from berthmaster_sandbox.errors import BootError

POLL_INTERVAL_S = 0.02
LOG_TAIL_LINES = 25

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: a child may not take the loader's lock.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def build_environment(
    extra: Mapping[str, str] | None = None, *, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment for a child: ours without any proxy setting, plus `extra`."""
    source = os.environ if inherited is None else inherited
    kept = {key: value for key, value in source.items() if not _is_proxy_variable(key)}
    return {**kept, **(extra or {})}


def _is_proxy_variable(key: str) -> bool:
    return key.lower().endswith("_proxy")


def build_death_pact() -> Callable[[], None]:
    """Return a function to run in a forked child, so that it is killed when this process dies.

    It belongs into `preexec_fn` of a child that the main thread starts. On systems other than
    Linux it does nothing.
    """
    parent_pid = os.getpid()

    def die_with_parent() -> None:
        if _PRCTL is None:
            return
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died between the fork and the line above.
        if os.getppid() != parent_pid:
            os._exit(1)

    return die_with_parent


def read_tail(path: Path, *, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log file, or a remark that there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


@dataclass(slots=True, kw_only=True)
class ManagedProcess:
    """A running child: its name for messages, its log, and the means to signal it."""

    name: str
    log_path: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id, which is the id of the process group as well."""
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        """True until the child has ended and was collected."""
        return self.popen.poll() is None

    def check_alive(self) -> None:
        """Raise BootError with the end of the log if the child has ended."""
        code = self.popen.poll()
        if code is not None:
            raise BootError(
                f"{self.name} ended with code {code}; the end of {self.log_path}:\n"
                f"{read_tail(self.log_path)}"
            )

    def send_signal(self, number: int) -> None:
        """Send a signal to the child's whole group; a group that is gone is left in peace."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def pause(self) -> None:
        """Freeze the whole group, as a machine that hangs would."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen group go on."""
        self.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill the group at once and collect the child."""
        self.send_signal(signal.SIGKILL)
        await self.wait(deadline_s=5)

    async def wait(self, *, deadline_s: float) -> bool:
        """Wait for the end of the child; return False if the deadline passes first."""
        deadline = time.monotonic() + deadline_s
        while self.is_running:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_INTERVAL_S)
        return True

    async def stop(self, *, grace_s: float = 5) -> None:
        """End the child: SIGTERM, then after `grace_s` seconds SIGKILL to the whole group."""
        if self.is_running:
            # A frozen process does not see SIGTERM before it goes on.
            self.resume()
            self.send_signal(signal.SIGTERM)
            await self.wait(deadline_s=grace_s)
        # Also after an orderly end: descendants may have been left in the group.
        await self.kill()


def start_process(
    name: str,
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> ManagedProcess:
    """Start a program whose output is appended to `<folder>/logs/<name>.log`.

    `environment` is complete, not an addition; without it the child gets `build_environment()`.
    Raises BootError if the program cannot be executed, RuntimeError off the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread, with which they die")
    log_path = folder / "logs" / f"{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        try:
            popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(build_environment() if environment is None else environment),
                start_new_session=True,
                preexec_fn=build_death_pact(),
            )
        except OSError as error:
            raise BootError(f"{name} cannot be started: {error}") from error
    return ManagedProcess(name=name, log_path=log_path, popen=popen)
