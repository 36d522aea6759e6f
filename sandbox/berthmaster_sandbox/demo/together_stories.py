"""The story of all five concerns in one pod: it goes where a person would send it, having looked at everything.

A training pod asks for disk bandwidth, six whole CPUs of one NUMA zone, a share of one accelerator and a dataset,
and costs watts. Every node lacks one thing but two, and of these one costs more to run on.

    numa-cache    the dataset's gateway; its disk is taken by a pod that is there
    numa-torn     three CPUs are free in each zone, six on the node
    numa-card     accelerators of 4000 MiB
    numa-far      everything, and the fewest watts; the data are on another continent
    numa-dear     everything, in the zone of the data, with the most watts
    numa-best     the same with fewer
"""

from __future__ import annotations

import asyncio

from berthmaster.api import names
from berthmaster_sandbox.demo.stage import Everything, Stage, aligned, io
from berthmaster_sandbox.demo.stories import Story
from berthmaster_sandbox.world.power_machines import FRUGAL, LEAN, STOCKY
from berthmaster_sandbox.world.xpu_hosts import XPUSHARE_MEMORY

NEAR = {names.ZONE: "quay", names.REGION: "harbour"}
FAR = {names.ZONE: "elsewhere", names.REGION: "overseas"}
LIMITS = {**aligned(6), XPUSHARE_MEMORY: "5000"}
REQUEST = io(300, 300)
NODES = (
    Everything(name="numa-cache", labels=NEAR, power=LEAN),
    Everything(name="numa-torn", labels=NEAR, power=LEAN, cpus=(3, 3)),
    Everything(name="numa-card", labels=NEAR, power=LEAN, card_mib=4000),
    Everything(name="numa-far", labels=FAR, power=FRUGAL),
    Everything(name="numa-dear", labels=NEAR, power=STOCKY),
    Everything(name="numa-best", labels=NEAR, power=LEAN),
)


async def train(stage: Stage) -> None:
    """Play the story; the dataset is `corpus`, the pod `train`."""
    await asyncio.gather(*(stage.node_of_all(it) for it in NODES))
    await stage.dataset("corpus", gateway="numa-cache")
    await stage.pod("hog", io(900, 900), on="numa-cache")
    await stage.lands("hog", "numa-cache")
    await stage.foresees("numa-best", LIMITS, '"watts":28.1', request=REQUEST, dataset="corpus")
    await stage.pod("train", REQUEST, limits=LIMITS, dataset="corpus")
    await stage.lands("train", "numa-best")
    await stage.berths_at("train", "numa-best")
    await stage.holds_devices("train", "numa-best", {0: 5000})
    await stage.compares("train", *(it.name for it in NODES))


TOGETHER_STORIES = (
    Story("40-together", "disk, zone, accelerator, data and watts in one pod: one answer, one table",
          train),
)  # fmt: skip
