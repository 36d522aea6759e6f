"""Completion as kubectl asks for it, and the scripts for shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent
# Names pods, namespaces and contexts, and writes down what it was asked.
KUBECTL = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
  *"get pods"*) echo pod/web-0; echo pod/web-1; echo pod/db-0;;
  *"get namespaces"*) echo namespace/shop; echo namespace/default;;
  *get-contexts*) echo here; echo arn:aws:eks/there;;
esac
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder with a kubectl in it; return where that writes down what it was asked."""
    found = tmp_path / "log"
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(log=found))
    program.chmod(0o755)
    return found


def complete(log: Path | None, *words: str) -> tuple[list[str], str]:
    """Return the candidates and kubectl's directive."""
    folder = str(log.parent) if log is not None else "/nonexistent"
    result = subprocess.run(
        [str(PROGRAMS / "kubectl_complete-berth"), *words],
        env={"PATH": f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stderr == ""
    *candidates, directive = result.stdout.splitlines()
    return candidates, directive


def test_commands_and_options_are_completed(log: Path) -> None:
    assert complete(log, "") == (
        [
            *("why", "bypass", "page", "simulate", "capacity", "inspect", "doctor"),
            *("observe-report", "completion", "ungate", "clean"),
        ],
        ":4",
    )
    assert complete(log, "d") == (["doctor"], ":4")
    assert complete(log, "ungate", "--d") == (["--dry-run"], ":4")
    assert complete(log, "why", "web-0", "-o", "") == (["text", "json"], ":4")
    assert not log.exists()


def test_names_come_from_the_cluster_that_is_meant(log: Path) -> None:
    assert complete(log, "why", "we") == (["web-0", "web-1"], ":4")
    assert complete(log, "why", "-n", "shop", "--context", "there", "db")[0] == ["db-0"]
    assert complete(log, "why", "shop/db")[0] == ["shop/db-0"]
    assert complete(log, "ungate", "w")[0] == ["web-0", "web-1"]
    assert complete(log, "why", "-n", "sh")[0] == ["shop"]
    assert complete(log, "why", "--context", "h")[0] == ["here"]

    first, second, third, fourth, *_ = log.read_text().splitlines()
    assert "-n" not in first.split()
    assert {"--namespace=shop", "--context=there"} <= set(second.split())
    assert "-n shop" in third
    assert "--field-selector status.phase=Pending" in fourth


def test_files_are_left_to_the_shell(log: Path) -> None:
    assert complete(log, "simulate", "-f", "") == ([], ":0")


def test_no_cluster_and_no_kubectl_is_silence(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho trouble >&2; exit 1\n")
    (tmp_path / "kubectl").chmod(0o755)

    assert complete(tmp_path / "log", "why", "") == ([], ":4")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_names_the_program(shell: str) -> None:
    result = subprocess.run(
        [str(PROGRAMS / "kubectl-berth"), "completion", shell],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "kubectl-berth" in result.stdout


def test_bash_completes_with_the_script() -> None:
    """The script is sourced by a real bash, which then asks its function."""
    words = """
        source <(kubectl-berth completion bash)
        COMP_LINE='kubectl-berth sim' COMP_POINT=17 COMP_TYPE=9
        COMP_WORDS=(kubectl-berth sim) COMP_CWORD=1
        _python_argcomplete kubectl-berth sim kubectl-berth
        echo "${COMPREPLY[@]}"
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", words],
        env={"PATH": f"{PROGRAMS}{os.pathsep}/bin{os.pathsep}/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.split() == ["simulate"]
