"""The stories of datasets: pods go near the cache of their data, and run where there is none.

Datashim is played (`world.datashim`): its objects say where a cache's gateway runs.
"""

from __future__ import annotations

import asyncio

from berthmaster.api import names
from berthmaster_sandbox.demo.stage import Stage, disk, io
from berthmaster_sandbox.demo.stories import Story


def _placed(zone: str) -> dict[str, str]:
    return {names.ZONE: zone, names.REGION: "harbour"}


async def _pulled_to_its_zone(stage: Stage) -> None:
    await asyncio.gather(
        stage.node("cache-here", cpu="1", labels=_placed("east")),
        stage.node("cache-near", labels=_placed("east")),
        stage.node("cache-far", labels=_placed("west")),
    )
    await stage.dataset("images", gateway="cache-here")
    await stage.pod("reads-small", dataset="images")
    await stage.lands("reads-small", "cache-here")
    # No room on the gateway's own node: its zone is next.
    await stage.pod("reads-big", dataset="images", limits={"cpu": "2"})
    await stage.lands("reads-big", "cache-near")


async def _busy_gateway(stage: Stage) -> None:
    await asyncio.gather(
        stage.node("busy-here", disk(1000, 1000, 2000), labels=_placed("north")),
        stage.node("busy-near", disk(1000, 1000, 2000), labels=_placed("north")),
    )
    await stage.dataset("films", gateway="busy-here")
    await stage.pod("calm", dataset="films")
    await stage.lands("calm", "busy-here")
    await stage.pod("hungry", io(900, 100), on="busy-here")
    await stage.lands("hungry", "busy-here")
    await stage.until_busy("busy-here")
    await stage.pod("spared", dataset="films")
    await stage.lands("spared", "busy-near")


async def _cache_lost(stage: Stage) -> None:
    await stage.node("lost-a", labels=_placed("south"))
    await stage.dataset("maps", gateway="lost-a")
    await stage.dataset("maps", gateway="lost-gone", is_usable=False)
    await stage.pod("runs-on", dataset="maps")
    await stage.lands("runs-on", "lost-a")


DATASET_STORIES = (
    Story("20-cache", "a cached dataset pulls a pod to its gateway, or else to its zone",
          _pulled_to_its_zone),
    Story("21-overload", "the gateway's disk is busy: the pod goes to a neighbour", _busy_gateway),
    Story("22-cache-lost", "the cache is lost: the pod runs all the same", _cache_lost),
)  # fmt: skip
