"""What `kubectl berth why` says of a pod's accelerators."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.cli import words


@pytest.mark.parametrize(
    ("allocated", "told"),
    [
        (
            {"dialect": "xpushare", "devices": [{"i": 1, "id": "b", "mem": 2500}], "of": 8064},
            "device 1: 2500 MiB (xpushare)",
        ),
        (
            {"devices": [{"i": 0, "mem": 5}, 7, {"i": 2, "mem": 4}]},
            "device 0: 5 MiB, device 2: 4 MiB",
        ),
        ({"devices": "none", "of": 3}, "devices none, of 3"),
    ],
)
def test_devices_are_told_by_number_and_size(allocated: dict[str, Any], told: str) -> None:
    assert words.allocated(allocated) == told
