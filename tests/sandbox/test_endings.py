"""However a sandbox ends, nothing of it is left: no process, no port, no folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from berthmaster_sandbox.folders import is_alive, remove_stale_folders
from berthmaster_sandbox.slots import Slot
from berthmaster_sandbox.warden import start_warden
from support.waiting import wait_for

pytestmark = pytest.mark.cluster

BOOT_DEADLINE_S = 120
END_DEADLINE_S = 30


@contextmanager
def run_sandbox(runtime: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a sandbox that is up, as its process and its folder."""
    command = [sys.executable, "-m", "berthmaster_sandbox.main", "up", "--name", "short-lived"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    log = runtime / "up.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        # The line comes when the cluster is ready; the test's own limit bounds the wait.
        assert "KUBECONFIG" in process.stdout.readline(), log.read_text()
        yield process, runtime / f"berthmaster-sandbox-{os.getuid()}" / "short-lived"
    finally:
        process.kill()
        process.communicate(timeout=END_DEADLINE_S)


def list_descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def find_ports(folder: Path) -> list[int]:
    kubeconfig = (folder / "kubeconfigs" / "admin.yaml").read_text()
    return [
        port
        for index in range(32)
        if f":{Slot(index=index).api_server_port}" in kubeconfig
        for port in Slot(index=index).ports
    ]


@pytest.mark.timeout(BOOT_DEADLINE_S + 2 * END_DEADLINE_S)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_sandbox(number: signal.Signals, tmp_path: Path) -> None:
    with run_sandbox(tmp_path) as (process, folder):
        children, ports = list_descendants(process.pid), find_ports(folder)
        # Five programs and the warden.
        assert len(children) == 6
        assert all(is_listening(port) for port in ports)

        process.send_signal(number)
        process.wait(timeout=END_DEADLINE_S)

        wait_for(lambda: not any(map(is_running, children)), "a child is still alive")
        # A process that is as good as dead may still hold its sockets for a moment.
        wait_for(lambda: not any(map(is_listening, ports)), "a port is still open")
        assert not is_alive(folder)
        if number is signal.SIGKILL:
            # Nobody was left to remove the folder; the next start does.
            assert folder in remove_stale_folders(folder.parent)
        assert not folder.exists()


def test_warden_kills_what_pods_have_left(tmp_path: Path) -> None:
    mark = f"MARK_OF_A_TEST={tmp_path}/"
    warden = start_warden(mark)
    name, _, value = mark.partition("=")
    orphan = subprocess.Popen(["sleep", "600"], env={name: f"{value}pod", "PATH": os.defpath})
    bystander = subprocess.Popen(["sleep", "600"], env={"PATH": os.defpath})

    try:
        warden.communicate(timeout=END_DEADLINE_S)
        assert orphan.wait(timeout=END_DEADLINE_S) == -signal.SIGKILL
        assert bystander.poll() is None
    finally:
        for process in (orphan, bystander):
            process.kill()
            process.wait(timeout=END_DEADLINE_S)
