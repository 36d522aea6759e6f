"""Two sandboxes of one user, up at once, as a stranger would run them from a shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.waiting import wait_for

pytestmark = pytest.mark.cluster

COMMAND = (sys.executable, "-m", "berthmaster_sandbox.main")
ANSWER = """
import http.server, os, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())

    def log_message(self, *_):
        pass

address = (os.environ["BERTHMASTER_BIND_ADDRESS"], 8080)
http.server.ThreadingHTTPServer(address, Answer).serve_forever()
"""


class Shell:
    """Runs the commands of a user whose sandboxes live in `runtime`."""

    def __init__(self, runtime: Path) -> None:
        self.base = runtime / f"berthmaster-sandbox-{os.getuid()}"
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}

    def sandbox(self, *words: str, code: int = 0) -> str:
        done = self._run([*COMMAND, *words])
        assert done.returncode == code, done.stderr
        return done.stdout

    def kubectl(self, name: str, words: str, *, stdin: str | None = None) -> str:
        """Run kubectl as somebody who evaluated `env` before."""
        script = f"{self.sandbox('env', '--name', name)}\nkubectl {words}"
        done = self._run(["/bin/sh", "-c", script], stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def list_running(self) -> dict[str, dict[str, Any]]:
        return {state["name"]: state for state in json.loads(self.sandbox("status", "-o", "json"))}

    def _run(self, words: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.sandbox("down", "--all")


def ask(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return str(answer.read(), encoding="utf-8")
    except OSError:
        return ""


def make_greeter(name: str) -> str:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "greeter", "labels": {"app": "greeter"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "sandbox-1"},
            "tolerations": [{"key": "berthmaster.io/sandbox", "operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": "berthmaster.io/sandbox/python",
                    "args": ["-c", ANSWER, name],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                }
            ],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "greeter"},
        "spec": {"selector": {"app": "greeter"}, "ports": [{"port": 8080}]},
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod, service]})


def read_address(shell: Shell, name: str, kind: str, path: str) -> str:
    return shell.kubectl(name, f"get {kind} greeter -o jsonpath='{{{path}}}'")


def list_marked(folder: Path) -> list[int]:
    """Return the processes that run pods of the sandbox in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{folder}/".encode() in environment:
                found.append(int(entry.name))
    return found


@pytest.mark.timeout(360)
def test_two_sandboxes_are_up_healthy_and_apart(shell: Shell) -> None:
    for name in ("east", "west"):
        words = ("up", "--detach", "--name", name, "--nodes", "1", "--process-nodes", "1")
        assert f"/{name}/" in shell.sandbox(*words)

    running = shell.list_running()
    assert {name: state["state"] for name, state in running.items()} == {
        "east": "ready",
        "west": "ready",
    }
    assert running["east"]["server"] != running["west"]["server"]
    # Which of the two is meant has to be said.
    shell.sandbox("env", code=1)

    # The same objects in both, on nodes of the same name, do not meet.
    services = {}
    for name in ("east", "west"):
        shell.kubectl(name, "apply -f -", stdin=make_greeter(name))
        services[name] = read_address(shell, name, "service", ".spec.clusterIP")
    for name, address in services.items():
        url = f"http://{address}:8080"
        wait_for(lambda url=url, name=name: ask(url) == name, f"no answer from {url}")  # type: ignore[misc]
    pods = {name: read_address(shell, name, "pod", ".status.podIP") for name in services}
    assert pods["east"].split(".")[:2] != pods["west"].split(".")[:2]
    assert services["east"].split(".")[:2] != services["west"].split(".")[:2]
    shell.kubectl("east", "create namespace only-here")
    assert "only-here" not in shell.kubectl("west", "get namespaces")

    # The end of one is not felt by the other.
    east = running["east"]
    assert list_marked(shell.base / "east")
    shell.sandbox("down", "--name", "east")
    assert ask(f"http://{services['west']}:8080") == "west"
    assert set(shell.list_running()) == {"west"}
    shell.sandbox("status", "--name", "west")
    # Whoever has adopted its process collects it in a moment of its own.
    wait_for(lambda: not Path(f"/proc/{east['pid']}").exists(), "the sandbox's process is there")
    assert not list_marked(shell.base / "east")
    assert ask(f"http://{services['east']}:8080") == ""

    # Nor does a killed one stay: what it leaves is told and cleared away.
    os.kill(running["west"]["pid"], signal.SIGKILL)
    wait_for(lambda: not shell.list_running(), "the killed sandbox is still listed")
    shell.sandbox("status", "--name", "west", code=1)
    wait_for(lambda: not list_marked(shell.base / "west"), "a pod outlived its sandbox")
    shell.sandbox("down")
    assert [path.name for path in shell.base.iterdir()] == [".lock"]
