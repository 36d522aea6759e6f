"""The numbers behind disks: ratios of unlisted block sizes, and scores that are exact where doubles are not."""

from __future__ import annotations

import numpy as np
import pytest

from berthmaster.api.inventory import DiskModel, NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import node_from_manifest
from berthmaster.api.settings.diskio import Strategy
from berthmaster.concerns.diskio import CONCERN
from berthmaster.concerns.diskio.columns import DiskIOColumns
from berthmaster.concerns.diskio.models import compile_ratios
from berthmaster.concerns.diskio.request import DiskIORequest
from berthmaster.concerns.diskio.shapes import Usage

NODE = node_from_manifest({"metadata": {"name": "n", "uid": "n"}})


def score(asked: tuple[int, int], free: tuple[int, int], strategy: Strategy) -> float:
    """Return what a disk with so much left scores, which takes bytes as they are."""
    left = {"read": free[0], "write": free[1], "total": sum(free)}
    disk = {
        "id": "d",
        "type": "emptyDir",
        "vendor": "V",
        "model": "M",
        "capacity": {"read": 1000, "write": 1000, "total": 2000},
        "allocable": left,
        "reportedPods": [],
        "function": {"readRatio": {}, "writeRatio": {}},
    }
    columns = DiskIOColumns()
    columns.resize(1)
    status = NodeInventoryStatus.model_validate({"disks": [disk]})
    columns.write_node(0, NODE, NodeInventory(name="n", status=status))
    request = DiskIORequest(Usage(*asked, "4k"), True, strategy)
    assert list(CONCERN.filter(columns, np.array([0]), request)) == [0]
    return float(CONCERN.score(columns, np.array([0]), request)[0])


@pytest.mark.parametrize(
    ("asked", "free", "least", "most"),
    [
        # As doubles (0.4 + 0.7) * 50 is a little more than 55, and (0.6 + 0.7) * 50 a little less than 65.
        ((400, 700), (1000, 1000), 45, 55),
        ((600, 700), (1000, 1000), 35, 65),
        ((800, 800), (1000, 1000), 20, 80),
        ((1, 1), (3, 3), 66, 33),
        # A direction of which nothing is left and nothing is asked counts as used up.
        ((0, 100), (0, 300), 33, 66),
        ((100, 0), (300, 0), 33, 66),
        ((0, 0), (0, 0), 0, 100),
        ((0, 0), (0, 1000), 50, 50),
    ],
)
def test_score_is_the_floor_of_the_exact_share(
    asked: tuple[int, int], free: tuple[int, int], least: int, most: int
) -> None:
    assert score(asked, free, Strategy.LEAST_ALLOCATED) == least
    assert score(asked, free, Strategy.MOST_ALLOCATED) == most


def test_unlisted_block_size_takes_the_ratio_of_the_next_lower_or_the_smallest() -> None:
    read, write = compile_ratios(DiskModel(read_ratio={"16k": "1.5", "1k": "10"}, write_ratio={}))

    assert read == {"512": 10, "1k": 10, "4k": 10, "8k": 10, "16k": 1.5, "32k": 1.5}
    assert set(write.values()) == {1}
