"""Log lines: JSON, one line each, with the decision's id, and nothing of a user's stands unescaped."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.objects import pod_from_manifest
from berthmaster.json_logs import JsonFormatter
from berthmaster_webhook.telling import about
from support.webhook_world import World, allocation_of, ask, gated_manifest, patched


class Log:
    """What was written."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.rstrip("\n").split("\n")]


@pytest.fixture
def log() -> Iterator[Log]:
    written = Log()
    handler = logging.StreamHandler(written.stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("berthmaster_webhook")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_decision_has_the_id_that_stands_on_the_pod(world: World, log: Log) -> None:
    world.add_node("n1", cpu="4")
    pod = gated_manifest("p", cpu="1")

    placed = patched(pod, ask(world, pod))
    ask(world, gated_manifest("q", cpu="9"))

    first, second = log.lines
    assert (first["message"], first["pod"], first["outcome"]) == ("decided", "default/p", "placed")
    assert first["decision"] == allocation_of(placed)["id"]
    assert first["level"] == "info"
    assert first["time"].endswith("Z")
    # A pod that fits nowhere is no fault of anybody's, and its decision can be asked for, too.
    assert (second["outcome"], second["level"]) == ("nowhere", "info")
    record = world.tools.records.find(decision_id=second["decision"])
    assert record is not None
    assert record.pod == "default/q"


async def test_text_of_users_cannot_make_lines_or_fields(world: World, log: Log) -> None:
    evil = 'p"}\n{"level":"error","message":"all is lost\u2028\x1b[31m'
    world.add_node("n1", cpu="4")

    ask(world, gated_manifest(evil, cpu="1"))

    (line,) = log.lines
    assert line["pod"] == f"default/{evil}"
    assert line["level"] == "info"
    assert "\x1b" not in log.text


def test_line_about_a_placed_pod_names_its_decision() -> None:
    annotation = json.dumps({"v": 1, "id": "d-1", "node": "n1", "mode": "required"})
    placed = gated_manifest("p", annotations={names.ALLOCATION: annotation})

    assert about(pod_from_manifest(placed)) == {"pod": "default/p", "decision": "d-1"}
    assert about(pod_from_manifest(placed), "d-2", fate="done") == {
        "pod": "default/p",
        "decision": "d-2",
        "fate": "done",
    }
    assert about(pod_from_manifest(gated_manifest("q"))) == {"pod": "default/q"}
