"""Which concerns there are: ours in their order, then those of installed third parties.

A third party's concern is an entry point of the group `berthmaster.concerns` that names its
`CONCERN` object. The order decides whose words a node refused by several is given.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import cast

from berthmaster.concerns import dataset, diskio, numa, podspread, power, resources, xpu
from berthmaster.concerns.shape import AnyConcern

GROUP = "berthmaster.concerns"


def load() -> tuple[AnyConcern, ...]:
    """Return all concerns.

    Raises:
        ValueError: a third party's concern has a name that is taken.
    """
    concerns: list[AnyConcern] = [
        resources.CONCERN,
        numa.CONCERN,
        xpu.CONCERN,
        diskio.CONCERN,
        dataset.CONCERN,
        podspread.CONCERN,
        power.CONCERN,
    ]
    for point in sorted(entry_points(group=GROUP), key=lambda it: it.name):
        concern = cast(AnyConcern, point.load())
        if any(concern.name == known.name for known in concerns):
            raise ValueError(f"concern {concern.name} of {point.value} is there already")
        concerns.append(concern)
    return tuple(concerns)
