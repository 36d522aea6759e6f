"""The power part of an inventory is written when it says something else, and goes with its configuration."""

from __future__ import annotations

from typing import Any

from berthmaster.api import names
from berthmaster.api.power import CpuUsage
from berthmaster.api.quantities import NANO
from berthmaster_operator.handlers import node_configs, power_models
from operator_program.worlds import BEGIN, INVENTORY, NODE, NODE_PATH, World

GROUP = names.WAO_GROUPS[1]
FAKE = {"type": "Fake", "endpoint": ""}
CONFIG = {
    "metadata": {"name": "c", "namespace": "somewhere"},
    "spec": {"nodeName": NODE, "metricsCollector": {"inletTemp": FAKE, "deltaP": FAKE}},
}
MODEL = {"metadata": {"name": "m"}, "spec": {"polynomial": {"coefficients": [100, 80]}}}


class PowerWorld(World):
    def __init__(self) -> None:
        super().__init__()
        node = {"metadata": {"name": NODE, "uid": "u"}, "status": {"capacity": {"cpu": "8"}}}
        self.store.put(NODE_PATH, node)
        self.start()

    def use(self, cores: float) -> None:
        at_s = BEGIN.timestamp() + self.now_s
        usage = CpuUsage(nanocores=int(cores * NANO), sampled_s=at_s, window_s=15)
        self.fleet.power.take_usages([(NODE, usage)], now_s=at_s)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.store.objects[INVENTORY]["status"]
        return found

    def writes(self) -> int:
        return len([path for _, path in self.store.writes if path.startswith(INVENTORY)])


async def test_power_comes_and_goes_with_its_configuration() -> None:
    world = PowerWorld()
    power_models.take(world.fleet.power, MODEL)
    node_configs.take_config(world.fleet.power, GROUP, CONFIG)
    world.use(2)

    await world.settle()

    status = world.status()
    assert status["power"]["link"] == "Model"
    assert status["power"]["curve"]["watts"][0] == 100
    assert status["powerNow"] == "~120W Model"
    assert [it["reason"] for it in status["conditions"]] == ["Model"]
    on_node = world.store.objects[NODE_PATH]["status"]["conditions"]
    assert [it["type"] for it in on_node] == [names.POWER_READY_ON_NODE]

    node_configs.take_config(world.fleet.power, GROUP, CONFIG, is_gone=True)
    power_models.take(world.fleet.power, MODEL, is_gone=True)
    await world.settle()

    assert world.status().get("power") is None
    assert world.store.objects[NODE_PATH]["status"]["conditions"] == []


async def test_small_moves_write_nothing() -> None:
    world = PowerWorld()
    power_models.take(world.fleet.power, MODEL)
    world.use(2)
    await world.settle()
    before = world.writes()

    for _ in range(20):
        world.now_s += 15
        world.use(2.02)
        await world.settle()

    assert world.writes() == before


async def test_sample_that_shows_a_pod_is_written() -> None:
    world = PowerWorld()
    power_models.take(world.fleet.power, MODEL)
    world.use(2)
    await world.settle()
    first_s = world.status()["power"]["usageSampledS"]
    time = "2026-01-01T00:16:41Z"
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "uid": "p", "namespace": "team"},
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "startTime": time},
    }
    pod["metadata"]["managedFields"] = [{"subresource": "status", "time": time}]
    world.add_pod(pod)

    world.now_s += 30
    world.use(2.02)
    await world.settle()

    assert world.status()["power"]["usageSampledS"] > first_s


async def test_usage_that_grows_old_is_said_without_an_event() -> None:
    world = PowerWorld()
    power_models.take(world.fleet.power, MODEL)
    world.use(2)
    again_s = await world.settle()
    assert again_s is not None
    assert again_s <= 90

    world.now_s += 91
    await world.settle()

    assert world.status()["power"].get("usage") is None
    assert world.status()["conditions"][0]["reason"] == "NoUsage"
