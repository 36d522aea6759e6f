"""The words and exit codes of `berthmaster-sandbox`, with sandboxes that only seem to run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from berthmaster_sandbox.folders import (
    SandboxState,
    create_folder,
    find_base,
    find_log,
    lock_folder,
    write_state,
)
from berthmaster_sandbox.main import main


class Shore:
    """Makes sandboxes that others see: a folder, a lock, a state, and a kubectl of its own."""

    def __init__(self, owner: ExitStack, programs: Path) -> None:
        self.base = find_base()
        self._owner = owner
        self._programs = programs

    def launch(self, name: str, *, is_ready: bool = True, answers: bool = True) -> Path:
        folder = create_folder(self.base, self._owner, name=name)
        programs = self._programs / f"{name}'s programs"
        programs.mkdir()
        (programs / "kubectl").write_text(f"#!/bin/sh\nexit {0 if answers else 1}\n")
        (programs / "kubectl").chmod(0o755)
        state = SandboxState(
            name=name,
            pid=1,
            server="https://127.0.0.1:20002",
            kubeconfig=str(folder / "admin.yaml"),
            binaries=str(programs),
            started_at=time.time(),
            is_ready=is_ready,
        )
        write_state(folder, state)
        return folder


@pytest.fixture
def shore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shore]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    programs = tmp_path / "programs"
    programs.mkdir()
    with ExitStack() as owner:
        yield Shore(owner, programs)


def test_status_tells_what_runs_and_how_it_is(
    shore: Shore, capsys: pytest.CaptureFixture[str]
) -> None:
    shore.launch("quick")
    shore.launch("slow", is_ready=False)
    shore.launch("stuck", answers=False)

    assert main(["status"]) == 0

    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("   ")[0].strip(): line for line in lines}
    assert " ready " in rows["quick"]
    assert " starting " in rows["slow"]
    assert " not answering " in rows["stuck"]
    # Columns stand below one another.
    assert len({line.index("https://") for line in lines[1:]} | {lines[0].index("SERVER")}) == 1


@pytest.mark.parametrize(("name", "code"), [("quick", 0), ("slow", 1), ("stuck", 1), ("absent", 1)])
def test_status_of_one_is_its_exit_code(name: str, code: int, shore: Shore) -> None:
    shore.launch("quick")
    shore.launch("slow", is_ready=False)
    shore.launch("stuck", answers=False)

    assert main(["status", "--name", name]) == code


def test_status_is_read_by_programs(shore: Shore, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shore.launch("quick")

    assert main(["status", "-o", "json"]) == 0

    [found] = json.loads(capsys.readouterr().out)
    assert found["state"] == "ready"
    assert found["kubeconfig"] == str(folder / "admin.yaml")


def test_environment_survives_the_shell(shore: Shore, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shore.launch("quick")
    main(["env"])
    script = f'{capsys.readouterr().out}\necho "$KUBECONFIG|$PATH"'

    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": "/bin"}, capture_output=True, text=True, check=True
    )

    kubeconfig, path = done.stdout.strip().split("|")
    assert kubeconfig == str(folder / "admin.yaml")
    assert path.endswith("quick's programs:/bin")


@pytest.mark.parametrize("command", ["env", "down"])
def test_one_of_several_has_to_be_chosen(
    command: str, shore: Shore, capsys: pytest.CaptureFixture[str]
) -> None:
    shore.launch("east")
    shore.launch("west")

    assert main([command]) == 1

    said = capsys.readouterr().err
    assert "east" in said
    assert "west" in said
    assert "--name" in said


def test_environment_of_a_booting_sandbox_is_not_given(
    shore: Shore, capsys: pytest.CaptureFixture[str]
) -> None:
    shore.launch("slow", is_ready=False)

    assert main(["env"]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "still starting" in captured.err


def test_down_without_a_sandbox_is_no_failure(
    shore: Shore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script's last line must not fail because the sandbox has ended already."""
    assert main(["down"]) == 0
    assert main(["down", "--name", "absent"]) == 0
    assert "no sandbox called absent is running" in capsys.readouterr().err
    assert shore.base.is_dir()


def test_end_of_a_failed_sandbox_is_told_and_then_removed(
    shore: Shore, capsys: pytest.CaptureFixture[str]
) -> None:
    log = find_log(shore.base, "lost")
    log.write_text("etcd has ended: no space left\n")
    with ExitStack() as owner:
        (shore.base / "lost").mkdir()
        lock_folder(shore.base / "lost", owner)

    assert main(["status", "--name", "lost"]) == 1
    assert "no space left" in capsys.readouterr().err
    assert main(["down", "--name", "lost"]) == 0
    assert not log.exists()
    assert not (shore.base / "lost").exists()


def test_down_ends_a_sandbox_that_is_still_starting(shore: Shore) -> None:
    script = (
        "import os, sys, time; from contextlib import ExitStack; from pathlib import Path\n"
        "from berthmaster_sandbox import folders\n"
        "with ExitStack() as owner:\n"
        "    folder = folders.create_folder(folders.find_base(), owner, name='slow')\n"
        "    folders.write_state(folder, folders.SandboxState(name='slow', pid=os.getpid(),\n"
        "        server='', kubeconfig='', binaries='', started_at=time.time(), is_ready=False))\n"
        "    print('here', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"here\n"

        assert main(["down"]) == 0

        assert other.wait(timeout=60) == -signal.SIGTERM
    assert not (shore.base / "slow").exists()


@pytest.mark.parametrize("count", ["-1", "many", "10001"])
def test_impossible_number_of_nodes_is_refused(
    count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--nodes", count])

    assert f"expected a number from 0 to 10000, got '{count}'" in capsys.readouterr().err


def test_detached_sandbox_that_cannot_start_says_why_and_leaves_nothing(
    shore: Shore, tmp_path: Path
) -> None:
    programs = tmp_path / "broken"
    programs.mkdir()
    for name in ("etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl"):
        (programs / name).write_text("#!/bin/sh\necho the harbour is closed; exit 3\n")
        (programs / name).chmod(0o755)
    (programs / "kwok").symlink_to(programs / "etcd")
    command = [sys.executable, "-m", "berthmaster_sandbox.main", "up", "--detach", "--name", "sunk"]

    done = subprocess.run(
        [*command, "--binaries", str(programs)],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "etcd ended with code 3" in done.stderr
    assert "the harbour is closed" in done.stderr
    assert [path.name for path in shore.base.iterdir()] == [".lock"]


def test_downloads_are_listed_with_their_checksums(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BERTHMASTER_SANDBOX_MIRROR", "https://mirror.example.com/sandbox")

    assert main(["binaries", "--list-downloads"]) == 0

    rows = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 6
    assert all(len(row[1]) == 64 or row[1] == "-" for row in rows)
    assert all(row[2].startswith("https://mirror.example.com/sandbox/") for row in rows)
