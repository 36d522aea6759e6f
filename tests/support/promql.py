"""Prometheus' own engine, asked about pages of metrics: `tests/promql`, built once per machine.

    answers = ask([Page(0, {"job": "x"}, "up 1")], [Question("up == 1", 30)])

The parser, the functions and the rules' checker are Prometheus', pinned by checksum in `go.sum`. What a
server adds is not there: scraping, clocks, and for how long an alert's expression has to hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from berthmaster_sandbox.binaries import find_cache
from berthmaster_sandbox.building import build_go_environment, ensure_go

_RECIPE = Path(__file__).parents[1] / "promql"
_BUILD_TIMEOUT_S = 900
_ANSWER_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Page:
    """What a program said at a time, in seconds; `labels` are those that a scraper adds."""

    at: float
    labels: Mapping[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A PromQL expression, and for which time."""

    query: str
    at: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A series' value in an answer."""

    labels: Mapping[str, str]
    value: float


class QueryError(Exception):
    """Say what Prometheus says of a query or rule that it cannot use."""


def ask(pages: Sequence[Page], questions: Sequence[Question]) -> list[list[Sample]]:
    """Return the samples that answer each question. Raises QueryError."""
    answers = _run({"pages": _plain(pages), "questions": _plain(questions)})["answers"]
    for question, answer in zip(questions, answers, strict=True):
        if answer["error"]:
            raise QueryError(f"{question.query}: {answer['error']}")
    return [
        [Sample(it["labels"], float(it["value"])) for it in answer["samples"]] for answer in answers
    ]


def check_rules(text: str) -> None:
    """Raise QueryError if Prometheus would not load these rules (`groups: [...]`, YAML)."""
    faults = _run({"rules": text})["faults"]
    if faults:
        raise QueryError("; ".join(faults))


def _plain(items: Sequence[Page] | Sequence[Question]) -> list[dict[str, object]]:
    return [asdict(it) for it in items]


def _run(asked: Mapping[str, object]) -> dict[str, Any]:
    done = subprocess.run(
        [_engine()],
        input=json.dumps(asked).encode(),
        capture_output=True,
        timeout=_ANSWER_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise QueryError(done.stderr.decode().strip())
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


@cache
def _engine() -> Path:
    """Return the program, built if it is not there; raises BinariesError where there is no Go."""
    recipe = sorted(_RECIPE.iterdir())
    digest = sha256(b"\0".join(path.read_bytes() for path in recipe)).hexdigest()[:16]
    cache_folder = find_cache(os.environ).parent
    folder = cache_folder / f"promql-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "promql"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            made = folder / "promql.new"
            command = [str(ensure_go(cache_folder)), "build", "-trimpath", "-buildvcs=false"]
            command += ["-mod=readonly", "-ldflags", "-s -w", "-o", str(made), "."]
            subprocess.run(
                command,
                cwd=_RECIPE,
                env=build_go_environment(),
                timeout=_BUILD_TIMEOUT_S,
                check=True,
            )
            made.replace(program)
    return program
