from __future__ import annotations

import pytest

from berthmaster.api.allocation import read_allocation


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
