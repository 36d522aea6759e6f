"""The stories of NUMA zones: what no zone can hold waits, and what is sent is never turned away.

The kubelets, their devices and their topology updaters are simulated (`world.numa`); they decide by
themselves which zone a pod gets, and would end it as Failed with TopologyAffinityError.
"""

from __future__ import annotations

import asyncio

from berthmaster_sandbox.demo.stage import Stage, aligned, machine
from berthmaster_sandbox.demo.stories import Story
from berthmaster_sandbox.world.numa import UpdaterHabits
from berthmaster_sandbox.world.numa_reports import Dialect, ReportHabits

PROMPT_NFD = UpdaterHabits(delay_s=0.3)
LATE_S = 3.0
LATE_NFD = UpdaterHabits(delay_s=LATE_S)
LATE_RTE = UpdaterHabits(delay_s=LATE_S, report=ReportHabits(dialect=Dialect.RTE))
# Two of 3 CPUs in each zone of 8, and a fifth across both where the kubelet does not mind.
BURST_NODES = {
    "numa-single": ("single-numa-node", LATE_NFD, 4),
    "numa-restricted": ("restricted", LATE_RTE, 4),
    "numa-effort": ("best-effort", LATE_NFD, 5),
}


async def _no_zone_holds_it(stage: Stage) -> None:
    node = "numa-tight"
    await stage.numa_node(node, machine("single-numa-node"), PROMPT_NFD)
    for name in ("hold-1", "hold-2"):
        await stage.pod(name, limits=aligned(5))
        await stage.lands(name, node)
        await stage.berths_at(name, node)
    # Six CPUs are free on the node, three in each zone.
    await stage.pod("tight-4", limits=aligned(4))
    await stage.waits("tight-4", "cannot align container")
    await stage.explains(
        "tight-4", "app asks 4 cpu, best zone node-0 has 3; fits if the limit were 3"
    )
    await stage.pod("tight-3", limits=aligned(3))
    await stage.lands("tight-3", node)
    await stage.berths_at("tight-3", node)
    await stage.delete("hold-2")
    await stage.lands("tight-4", node)
    await stage.berths_at("tight-4", node)


async def _one_node_holds_it(stage: Stage) -> None:
    await asyncio.gather(
        stage.numa_node(
            "numa-small", machine("single-numa-node", cpus=(4, 4), gpus=(0,)), PROMPT_NFD
        ),
        stage.numa_node(
            "numa-apart", machine("single-numa-node", cpus=(8, 4), gpus=(1,)), PROMPT_NFD
        ),
        stage.numa_node(
            "numa-fits", machine("single-numa-node", cpus=(4, 8), gpus=(1,)), PROMPT_NFD
        ),
    )
    await stage.pod("only", limits=aligned(6, gpu=1))
    await stage.lands("only", "numa-fits")
    await stage.berths_at("only", "numa-fits")


async def _burst(stage: Stage) -> None:
    await asyncio.gather(
        *(
            stage.numa_node(name, machine(policy), updater)
            for name, (policy, updater, _) in BURST_NODES.items()
        )
    )
    fitting = [f"zone-{at:02d}" for at in range(1, 1 + sum(it[2] for it in BURST_NODES.values()))]
    for name in (*fitting, "zone-more"):
        await stage.pod(name, limits=aligned(3))
    await asyncio.gather(*(stage.berths_at(name, *BURST_NODES) for name in fitting))
    await stage.waits("zone-more", "cannot align container")
    stage.remains_waiting("zone-more")


NUMA_STORIES = (
    Story("10-no-zone", "the node has room and no zone has: the pod waits until one is free",
          _no_zone_holds_it),
    Story("11-one-node", "of three nodes with 6 CPUs and a GPU one has both in one zone",
          _one_node_holds_it),
    Story("12-burst", f"a burst fills zone by zone while reports come {LATE_S:.0f} s late", _burst),
)  # fmt: skip
