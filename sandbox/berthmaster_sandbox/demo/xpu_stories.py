"""The stories of accelerators: several pods on one card, by memory, and cards that belong together.

The device plugins are simulated (`world.xpu`). They are not told which pod an Allocate is for, look for it
by the dialect's annotations, and know what each pod really has.
"""

from __future__ import annotations

from berthmaster_sandbox.demo.stage import Stage
from berthmaster_sandbox.demo.stories import Story
from berthmaster_sandbox.world.xpu_hosts import (
    KUNLUN_CARDS,
    P800_MIB,
    VXPU_CARDS,
    VXPU_MEMORY,
    XPUSHARE_MEMORY,
    Dialect,
    Habits,
    make_host,
)

HABITS = Habits(allocate_s=0.2)
COUNT_LABEL = "baidu.com/xpu-count"


def _share(mib: int) -> dict[str, str]:
    return {XPUSHARE_MEMORY: str(mib)}


async def _binpack(stage: Stage) -> None:
    node = "xpu-binpack"
    await stage.xpu_node(make_host(node, devices=2, habits=HABITS))
    for name in ("pack-1", "pack-2", "pack-3"):
        await stage.pod(name, limits=_share(2500))
        await stage.holds_devices(name, node, {0: 2500})
    # The other card was left whole for this one.
    await stage.pod("pack-big", limits=_share(6000))
    await stage.holds_devices("pack-big", node, {1: 6000})
    # 2628 MiB are free on the node, 564 of one card and 2064 of the other.
    await stage.pod("pack-4", limits=_share(2500))
    await stage.waits("pack-4", "Insufficient XPU Memory in one device")
    await stage.delete("pack-2")
    await stage.holds_devices("pack-4", node, {0: 2500})


async def _several_devices(stage: Stage) -> None:
    node = "xpu-several"
    await stage.xpu_node(make_host(node, devices=4, habits=HABITS))
    await stage.pod("one-first", limits=_share(5000))
    await stage.holds_devices("one-first", node, {0: 5000})
    await stage.pod("over-three", limits=_share(10000), labels={COUNT_LABEL: "3"})
    await stage.holds_devices("over-three", node, {1: 3334, 2: 3333, 3: 3333})
    # 3064 MiB are left of device 0 and 4730 of the others: three times 3500, but not four times.
    await stage.pod("over-four", limits=_share(14000), labels={COUNT_LABEL: "4"})
    await stage.waits("over-four", "Insufficient XPU Memory in 4 devices")
    await stage.pod("over-two", limits=_share(9000), labels={COUNT_LABEL: "2"})
    await stage.holds_devices("over-two", node, {1: 4500, 2: 4500})
    stage.remains_waiting("over-four")


async def _mixed_node(stage: Stage) -> None:
    node = "xpu-mixed"
    dialects = (Dialect.KUNLUN, Dialect.VXPU, Dialect.XPUSHARE)
    await stage.xpu_node(make_host(node, devices=8, dialects=dialects, habits=HABITS))
    whole = {it: P800_MIB for it in range(4)}
    await stage.pod("mixed-whole", limits={KUNLUN_CARDS: "4"})
    await stage.holds_devices("mixed-whole", node, whole)
    await stage.pod("mixed-slice", limits={VXPU_CARDS: "1", VXPU_MEMORY: "24576"})
    await stage.holds_devices("mixed-slice", node, {4: 24576})
    await stage.pod("mixed-half", limits={VXPU_CARDS: "2", VXPU_MEMORY: "49152"})
    await stage.holds_devices("mixed-half", node, {5: 49152, 6: 49152})
    await stage.pod("mixed-share", limits=_share(90000))
    await stage.holds_devices("mixed-share", node, {7: 90000})
    await stage.pod("mixed-more", limits={KUNLUN_CARDS: "1"})
    await stage.waits("mixed-more", "NumaNotFit")
    stage.remains_waiting("mixed-more")


XPU_STORIES = (
    Story("30-binpack", "three pods on one card; the fourth waits, and moves in when one is gone",
          _binpack),
    Story("31-several", "one pod over three cards, equal shares, whatever is left over in the first",
          _several_devices),
    Story("32-mixed", "whole cards, slices and shares of one host: no card is given twice",
          _mixed_node),
)  # fmt: skip
