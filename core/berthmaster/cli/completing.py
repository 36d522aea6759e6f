"""Completion in shells: for `kubectl berth` by kubectl, for `kubectl-berth` by the shell itself.

kubectl (1.26 or newer) runs `kubectl_complete-berth` with the words after `berth`, the unfinished one
last, and reads a candidate per line and then what the shell may add, as a number after a colon.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from contextlib import suppress
from typing import NoReturn

from argcomplete.finders import CompletionFinder
from argcomplete.shell_integration import shellcode

from berthmaster.cli.main import build_parser

EXECUTABLE = "kubectl-berth"
_FILES_TOO, _NO_FILES = ":0", ":4"
_FILE_OPTIONS = frozenset({"-f", "--filename", "--kubeconfig"})
_SEPARATOR = "\v"


class _FinishedError(Exception):
    """The library wants the process to end."""


def main() -> int:
    """Answer kubectl."""
    words = sys.argv[1:] or [""]
    if len(words) > 1 and words[-2] in _FILE_OPTIONS:
        print(_FILES_TOO)
        return 0
    for candidate in find_candidates(words):
        print(candidate)
    print(_NO_FILES)
    return 0


def find_candidates(words: list[str]) -> list[str]:
    """Return what the last of the words may become."""
    *finished, unfinished = words
    line = " ".join((EXECUTABLE, *map(shlex.quote, finished), unfinished))
    os.environ.update(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS=_SEPARATOR,
        COMP_LINE=line,
        COMP_POINT=str(len(line.encode())),
    )
    os.environ.pop("_ARGCOMPLETE_SHELL", None)
    os.environ.pop("_ARGCOMPLETE_DFS", None)
    answer = io.StringIO()
    with suppress(_FinishedError):
        complete(output_stream=answer)
    return [it.rstrip() for it in answer.getvalue().split(_SEPARATOR) if it.strip()]


def complete(output_stream: io.StringIO | None = None) -> None:
    """Complete the command line that the environment holds, as argcomplete's shell code asks."""
    finder = CompletionFinder()
    finder(
        build_parser(),
        # Commands and names come before options, which come once a dash was typed.
        always_complete_options=False,
        exit_method=_leave if output_stream is not None else os._exit,
        output_stream=output_stream,
    )


def script(shell: str) -> str:
    """Return what makes a shell complete `kubectl-berth`; `kubectl berth` needs none."""
    return str(shellcode([EXECUTABLE], shell=shell))


def _leave(code: int) -> NoReturn:
    raise _FinishedError(code)
