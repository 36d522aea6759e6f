"""The stories of power: a burst goes where it costs the fewest watts, and does not pile up there."""

from __future__ import annotations

from berthmaster_sandbox.demo.stage import Stage, aligned
from berthmaster_sandbox.demo.stories import Story
from berthmaster_sandbox.world.power_machines import FRUGAL, LEAN


async def _cheapest_then_next(stage: Stage) -> None:
    """3.75 and 4.7 W a core: four pods of 4 cores are all that the frugal machine takes."""
    await stage.power_node("frugal", FRUGAL)
    await stage.power_node("lean", LEAN)
    await stage.foresees("frugal", aligned(4), '"watts":15.0')
    for number in range(6):
        name = f"watts-{number}"
        await stage.pod(name, limits=aligned(4))
        await stage.lands(name, "frugal" if number < 4 else "lean")


POWER_STORIES = (
    Story("14-power", "a burst goes where it costs the fewest watts, and does not pile up",
          _cheapest_then_next),
)  # fmt: skip
