"""What `kubectl berth why` says of a pod's datasets."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.cli import words


@pytest.mark.parametrize(
    ("allocated", "told"),
    [
        (
            {
                "datasets": {"images": {"mode": "gateway", "nodes": 1, "at": ["n1"], "tier": 100}},
                "besideGateway": True,
            },
            "images: gateway on n1, 100 of 100",
        ),
        (
            {
                "datasets": {"maps": {"mode": "filesystem", "nodes": 3, "at": ["n2"], "tier": 50}},
                "notUsable": {"old": "stale", "ghost": "missing"},
            },
            "maps: data on n2 and 2 more, 50 of 100; old is stale; ghost is missing",
        ),
        ({"datasets": {"a": 7, "b": {"at": 1, "nodes": "x"}}}, "b: data on ?, ? of 100"),
        ({"datasets": [1], "notUsable": "no"}, "datasets 1, notUsable no"),
    ],
)
def test_datasets_of_a_pod_in_words(allocated: dict[str, Any], told: str) -> None:
    assert words.allocated(allocated) == told
