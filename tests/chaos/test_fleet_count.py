"""The count after each turn of `bench/end_to_end.py` finds pods past any line and answers that are not the node's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from benching.counting import Ground, find_faults
from benching.fleets import WORKLOADS, gateways_of
from benching.topologies import build_machine
from berthmaster.api import names
from berthmaster_sandbox.world.xpu_hosts import XPUSHARE_MEMORY

NOW_S = 1_800_000_000.0
SPEECH = WORKLOADS[0]
MACHINE = build_machine(2)

Pod = dict[str, Any]


def node(name: str, zone: str) -> dict[str, Any]:
    there = {**MACHINE.allocatable(), XPUSHARE_MEMORY: 64512}
    labels = {names.ZONE: zone, names.REGION: "region-0"}
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": there}}


GROUND = Ground(
    nodes=[node("sim-0001", "zone-0"), node("sim-0002", "zone-0"), node("sim-0004", "zone-1")],
    machine=MACHINE,
    gateways={it.name: frozenset({"sim-0001"}) for it in WORKLOADS},
)


def pod(number: int = 0) -> Pod:
    """A speech pod on a node in the zone of its data, as answered."""
    it = SPEECH.pod({"annotations": {names.PLACEMENT: "required"}}, {"nodeName": "sim-0002"})
    answer = {
        "v": 1,
        "id": f"decision-{number}",
        "node": "sim-0002",
        "allocated": {
            "diskio": {"rbps": 5 * 2**20},
            "numa": {"zones": {"0": {"cpu": 2}}},
            "xpu": {"devices": [{"i": number % 8, "mem": 2016}]},
            "dataset": {"datasets": {"speech": {"mode": "gateway", "tier": 50}}},
            "power": {"watts": 18.8},
        },
        "scores": {"diskio": 1, "numa": 1, "xpu": 1, "dataset": 50, "power": 100},
    }
    it["metadata"] |= {
        "namespace": "bench",
        "name": f"p{number}",
        "uid": f"uid-{number}",
        "creationTimestamp": "2026-11-28T12:00:00Z",
    }
    it["metadata"]["annotations"][names.ALLOCATION] = json.dumps(answer)
    it["status"] = {"phase": "Running"}
    return it


def faults(*pods: Pod, expected: int | None = None) -> list[str]:
    return find_faults(
        GROUND, pods, expected=len(pods) if expected is None else expected, at_s=NOW_S
    )


def changed(change: Callable[[dict[str, Any]], Any]) -> Pod:
    """Return the pod with another answer."""
    it = pod()
    answer = json.loads(it["metadata"]["annotations"][names.ALLOCATION])
    change(answer)
    it["metadata"]["annotations"][names.ALLOCATION] = json.dumps(answer)
    return it


def test_nothing_is_found_where_all_is_well() -> None:
    assert faults(*(pod(number) for number in range(14))) == []


def test_a_missing_pod_is_found() -> None:
    assert faults(pod(), expected=2) == ["1 pods are bound, expected 2"]


def test_a_device_past_its_memory_is_found() -> None:
    found = faults(*(pod(number * 8) for number in range(5)))

    assert found == ["past the line: sim-0002: device 0: 10080 of 8064 MiB"]


def test_a_disk_past_its_bandwidth_is_found() -> None:
    it = pod()
    request = {"rbps": "1001Mi", "wbps": "5Mi", "blocksize": "32k"}
    it["metadata"]["annotations"][names.DISKIO_REQUEST] = json.dumps(request)

    assert faults(it) == ["past the line: sim-0002: disk read: 1001 of 1000 MiB/s"]


def test_a_pod_that_no_zone_has_room_for_is_found() -> None:
    """Three pods of 9 CPUs are within the 31 of the node, and each of its two zones has room for one."""
    pods = [pod(number) for number in range(3)]
    for it in pods:
        it["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "9"

    found = faults(*pods)

    assert [it for it in found if "its kubelet turns bench/p2 away" in it]
    assert not [it for it in found if "past the line" in it]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it["allocated"].pop("numa"), "numa gave none"),
        (lambda it: it["scores"].pop("power"), "power gave none"),
        (lambda it: it["allocated"]["xpu"]["devices"].clear(), "has 0 MiB of 0 devices"),
        (lambda it: it["allocated"]["numa"]["zones"].update({"1": {}}), "expected in one zone"),
        (lambda it: it["allocated"]["diskio"].update(rbps=1), "has 1 of read bandwidth"),
        (
            lambda it: it["allocated"]["dataset"]["datasets"]["speech"].update(tier=100),
            "its data score 100 by the answer, 50 by the labels of sim-0002",
        ),
        (lambda it: it["allocated"]["power"].update(watts=17), "costs 17 W by the answer, 18.75"),
    ],
)
def test_an_answer_that_is_not_the_nodes_is_found(
    change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    found = faults(changed(change))

    assert len(found) == 1
    assert words in found[0]


def test_pods_of_other_modes_need_no_answer_of_every_concern() -> None:
    it = copy.deepcopy(pod())
    it["metadata"]["labels"] = {"app": "bench"}
    it["metadata"]["annotations"] = {}

    assert faults(it) == []


def test_each_dataset_has_gateways_of_its_own_in_any_fleet() -> None:
    assert gateways_of(51) == {
        "speech": {"sim-0001", "sim-0051"},
        "vision": {"sim-0002"},
        "language": {"sim-0003"},
    }
    assert all(gateways_of(1).values())
