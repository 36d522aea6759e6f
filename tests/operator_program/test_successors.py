"""An object that is made anew at once: its predecessor's end may be told after its beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.datasets import Dataset
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers import (
    datasets,
    node_configs,
    node_disk_devices,
    node_disk_io_stats,
    node_resource_topologies,
    node_xpus,
    power_models,
)
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from operator_program.stores import Notes

GROUP = "a.example"
DATASHIM = names.DATASHIM_GROUPS[0]


def take_policy(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
    PolicyHandler(fleet, Notes(), lambda _: None).take(manifest, is_gone=is_gone)


# How an event is taken, and the uids that are known then.
KINDS: dict[str, tuple[Callable[..., object], Callable[[Fleet], set[str]]]] = {
    "device": (node_disk_devices.take, lambda it: set(it.known_objects("device").values())),
    "stats": (node_disk_io_stats.take, lambda it: set(it.known_objects("stats").values())),
    "topology": (
        node_resource_topologies.take,
        lambda it: set(it.known_objects("topology").values()),
    ),
    "node-xpu": (node_xpus.take, lambda it: set(it.known_objects("node_xpu").values())),
    "policy": (take_policy, lambda it: {found.uid for found in it.policies.values()}),
    "dataset": (
        lambda it, manifest, **more: datasets.take(
            it.datasets, DATASHIM, names.DATASETS, manifest, **more
        ),
        lambda it: set(it.datasets.known(Dataset, DATASHIM).values()),
    ),
    "config": (
        lambda it, manifest, **more: node_configs.take_config(it.power, GROUP, manifest, **more),
        lambda it: {found.uid for found in it.power.configs.values()},
    ),
    "template": (
        lambda it, manifest, **more: node_configs.take_template(it.power, GROUP, manifest, **more),
        lambda it: {found.uid for found in it.power.templates.values()},
    ),
    "model": (
        lambda it, manifest, **more: power_models.take(it.power, manifest, **more),
        lambda it: {found.uid for found in it.power.models.values()},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_a_predecessor_takes_nothing_from_its_successor(kind: str) -> None:
    take, known = KINDS[kind]
    fleet = Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=lambda _: None)
    specs: dict[str, dict[str, Any]] = {
        "config": {"nodeName": "n1"},
        "device": {"nodeName": "n1"},
        "stats": {"nodeName": "n1"},
    }
    specs["model"] = {"polynomial": {"coefficients": [1]}}

    def incarnation(uid: str) -> dict[str, Any]:
        metadata = {"name": "x", "namespace": "a", "uid": uid, "resourceVersion": uid[-1]}
        return {"metadata": metadata, "spec": specs.get(kind, {})}

    take(fleet, incarnation("uid-1"))
    take(fleet, incarnation("uid-2"))
    take(fleet, incarnation("uid-1"), is_gone=True)
    assert known(fleet) == {"uid-2"}

    take(fleet, incarnation("uid-2"), is_gone=True)
    assert known(fleet) == set()
