from __future__ import annotations

from typing import Any

import msgspec
import pytest

from berthmaster.api.allocation import Allocation, read_allocation, write_allocation


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"v": 2, "id": "a", "node": "n"}',
        '{"v": 1, "id": "a", "node": ""}',
        '{"v": 1, "id": "a", "node": "n", "allocated": []}',
        '{"v": 1, "id": "a", "node": "n", "allocated": {"x": {"y": ' + "[" * 50_000,
    ],
    ids=["empty", "cut", "other-version", "no-node", "wrong-type", "endless-nesting"],
)
def test_what_is_no_allocation_is_absent(text: str) -> None:
    assert read_allocation(text) is None


def test_what_only_explains_goes_first_where_an_allocation_is_too_long() -> None:
    found: dict[str, Any] = {f"{number:03}-{'x' * 56}": {} for number in range(30)}
    given = {"dataset": {"datasets": found}}
    scores = {f"concern-{number}": 1.0 for number in range(8)}
    told = Allocation(
        version=1, id="a", node="n", allocated=given, scores=scores, note="as required"
    )

    text = write_allocation(told)

    assert read_allocation(text) == msgspec.structs.replace(told, scores={})
