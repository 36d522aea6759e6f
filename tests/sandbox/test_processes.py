"""Children start clean, are reported when they die, and end when told."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from berthmaster_sandbox.errors import BootError
from berthmaster_sandbox.processes import ManagedProcess, build_environment, start_process


def start(folder: Path, code: str) -> ManagedProcess:
    return start_process("child", [sys.executable, "-c", code], folder=folder)


async def wait_log(process: ManagedProcess, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in process.log_path.read_text():
        assert time.monotonic() < deadline, process.log_path.read_text()
        await asyncio.sleep(0.02)


def test_environment_has_no_proxies() -> None:
    inherited = {"HTTPS_PROXY": "x", "http_proxy": "x", "No_Proxy": "x", "GOPROXY": "x", "A": "1"}

    assert build_environment({"B": "2"}, inherited=inherited) == {
        "GOPROXY": "x",
        "A": "1",
        "B": "2",
    }


async def test_death_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    process = start(tmp_path, "print('line of reason'); raise SystemExit(7)")

    assert await process.wait(deadline_s=20)
    with pytest.raises(BootError, match=r"child ended with code 7.*\n.*line of reason"):
        process.check_alive()


async def test_stubborn_child_is_killed_after_its_grace(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    process = start(tmp_path, f"{code}; time.sleep(60)")
    await wait_log(process, "up")

    await process.stop(grace_s=0.1)

    assert process.popen.returncode == -signal.SIGKILL


async def test_frozen_child_ends_in_order(tmp_path: Path) -> None:
    process = start(tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    await wait_log(process, "up")
    process.pause()

    await process.stop(grace_s=20)

    assert process.popen.returncode == -signal.SIGTERM


def test_missing_program_is_a_boot_error(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="child cannot be started"):
        start_process("child", [tmp_path / "absent"], folder=tmp_path)


def test_children_start_on_the_main_thread_only(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            start(tmp_path, "")
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(timeout=20)

    assert len(errors) == 1
