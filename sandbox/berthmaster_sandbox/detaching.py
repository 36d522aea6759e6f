"""A sandbox in the background: `up --detach`.

Owns the process that stays behind, its log, and the wait until it is ready. The process is the
same `up` as in the foreground, in a session of its own, so that neither a closed terminal nor
Ctrl-C reaches it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.folders import SandboxState, find_log, is_alive, list_running

END_DEADLINE_S = 30.0
POLL_S = 0.05


def start_detached(base: Path, name: str, arguments: Sequence[str]) -> SandboxState:
    """Start `up` with these arguments and return the sandbox's state once it is ready.

    What it says meanwhile is repeated on standard error. Raises SandboxError if it ends instead;
    an interrupted wait ends it as well.
    """
    if is_alive(base / name):
        raise SandboxError(f"a sandbox called {name} is running already")
    log_path = find_log(base, name)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "berthmaster_sandbox.main", "up", "--name", name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _wait_ready(process, base, name, log_path)
    except BaseException:
        _end(process)
        log_path.unlink(missing_ok=True)
        raise


def _wait_ready(
    process: subprocess.Popen[bytes], base: Path, name: str, log_path: Path
) -> SandboxState:
    with log_path.open(encoding="utf-8", errors="replace") as log:
        while True:
            code = process.poll()
            sys.stderr.write(log.read())
            sys.stderr.flush()
            if code is not None:
                raise SandboxError(f"{name} did not start (code {code}); its words are above")
            for state in list_running(base):
                if state.name == name and state.is_ready:
                    return state
            time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
