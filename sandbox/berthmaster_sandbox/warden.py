"""A small process that outlives the sandbox by a moment and ends what is left of its pods.

The kernel kills the sandbox's children when the sandbox dies, but not *their* children: the
`sleep` that a pod's shell has started would go on. The warden holds the reading end of a pipe
whose writing end only the sandbox has. When that closes, for whatever reason, it kills every
process whose environment carries the mark that the kubelets put there, and ends itself.

This file is run by path, in an isolated Python, so that it costs next to nothing: it must not
import from its own package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# A process that forks while it is looked for is found in a later round.
ROUNDS = 100
PAUSE_S = 0.02


def start_warden(mark: str) -> subprocess.Popen[bytes]:
    """Start a warden for processes with a variable that begins with `mark` (`NAME=prefix`).

    It acts when the returned process's stdin is closed, at the latest when this process ends.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # Its own environment must not carry the mark.
        env={},
    )


def kill_marked(mark: str) -> int:
    """Kill the processes that carry the mark and return how many there were."""
    found = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end, or be another user's, while it is looked at.
        with suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(variable.startswith(mark.encode()) for variable in variables):
                os.kill(int(entry.name), signal.SIGKILL)
                found += 1
    return found


def main(mark: str) -> None:
    """Wait for the sandbox's end, then kill until nothing is found."""
    sys.stdin.buffer.read()
    if not Path("/proc").is_dir():
        return
    for _ in range(ROUNDS):
        if kill_marked(mark) == 0:
            return
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
