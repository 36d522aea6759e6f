"""An audit drops what vanished unseen, by uid, and leaves what came anew under the same name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import pytest

from berthmaster.cluster.client import Client
from berthmaster_operator import auditing
from berthmaster_operator.auditing import audit
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers import node_configs, node_xpus, power_models
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from operator_program.stores import Notes

GROUP = "wao.bitmedia.co.jp"


class Lists:
    """Plays lists; `on_list` is what happens meanwhile."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, Any]]] = {}
        self.on_list: dict[str, Callable[[], None]] = {}

    async def list_pages(self, path: str) -> AsyncIterator[bytes]:
        yield json.dumps({"items": self.items.get(path, [])}).encode()
        self.on_list.get(path, lambda: None)()


def config(uid: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "c", "namespace": "wao-system", "uid": uid},
        "spec": {"nodeName": "n1"},
    }


def model(uid: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "m", "uid": uid},
        "spec": {"polynomial": {"coefficients": [1]}},
    }


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=lambda _: None)
    node_configs.take_config(found.power, GROUP, config("old"))
    power_models.take(found.power, model("old"))
    return found


async def test_kinds_that_changed_are_audited_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "SETTLE_S", 0.0)
    changed = asyncio.Event()
    changed.set()

    async with asyncio.timeout(10):
        assert await auditing.until_due(changed, 3600)
        assert not changed.is_set()
        assert not await auditing.until_due(changed, 0.01)


async def run(lists: Lists, fleet: Fleet) -> int:
    handler = PolicyHandler(fleet, Notes(), lambda _: None)
    return await audit(cast("Client", lists), fleet, handler)


async def test_what_is_listed_stays_and_what_vanished_goes(fleet: Fleet) -> None:
    lists = Lists()
    path = node_configs.PATHS[GROUP, node_configs.CONFIGS]
    lists.items = {path: [config("old")], power_models.PATH: [model("old")]}

    assert await run(lists, fleet) == 0
    assert (len(fleet.power.configs), len(fleet.power.models)) == (1, 1)

    lists.items = {}
    assert await run(lists, fleet) == 2
    assert (len(fleet.power.configs), len(fleet.power.models)) == (0, 0)


async def test_what_came_anew_while_it_was_listed_stays(fleet: Fleet) -> None:
    lists = Lists()
    path = node_configs.PATHS[GROUP, node_configs.CONFIGS]
    lists.on_list = {
        path: lambda: node_configs.take_config(fleet.power, GROUP, config("new")),
        power_models.PATH: lambda: power_models.take(fleet.power, model("new")),
    }

    assert await run(lists, fleet) == 0
    assert [it.uid for it in fleet.power.configs.values()] == ["new"]
    assert [it.uid for it in fleet.power.models.values()] == ["new"]


async def test_a_config_of_a_node_that_never_came_leaves_nothing(fleet: Fleet) -> None:
    before = fleet.power.version

    node_configs.take_config(fleet.power, GROUP, config("old"), is_gone=True)

    assert fleet.power.version > before
    assert fleet.power.terms_of("n1") is None
    assert not fleet.power._nodes


def node_xpu(version: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "n1", "uid": "x", "resourceVersion": version},
        "spec": {"devices": [{"index": 0, "id": "a", "memoryMiB": 8}]},
    }


async def test_only_what_is_not_known_in_its_version_is_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_xpus.take(fleet, node_xpu("7"))
    read = []
    take = node_xpus.take

    def counted(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
        read.append(manifest["metadata"]["resourceVersion"])
        take(fleet, manifest, is_gone=is_gone)

    monkeypatch.setattr(node_xpus, "take", counted)
    lists = Lists()

    for version in ("7", "9"):
        lists.items[node_xpus.PATH] = [node_xpu(version)]
        await run(lists, fleet)
        assert fleet.known_objects("node_xpu") == {("", "n1"): "x"}

    assert read == ["9"]
    assert fleet.known_versions() == {"x": "9"}
