"""The chaos suite's own count finds each kind of broken promise, and nothing where all is well."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from berthmaster_sandbox.chaos.recount import (
    MIB,
    Disk,
    Kind,
    Lines,
    Seen,
    count_ends,
    failed_creations,
    new_ends,
    recount,
)

NOW_S = 1_800_000_000.0
LONG_AGO = "2026-11-28T12:00:00Z"
DISK = Disk(read=100 * MIB, write=100 * MIB, total=150 * MIB, read_ratio={"4k": 2})  # type: ignore[dict-item]
LINES = Lines(disks={"n1": DISK}, devices={"n1": {0: 8064}})
NODE = {
    "metadata": {"name": "n1"},
    "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "5"}},
}

Pod = dict[str, Any]


def pod(
    name: str,
    *,
    node: str = "n1",
    cpu: str = "1",
    io: tuple[str, str] = ("20Mi", "20Mi"),
    devices: tuple[tuple[int, int], ...] = (),
) -> Pod:
    """A pod that we placed, and that runs."""
    allocation = {
        "v": 1,
        "id": f"decision-{name}",
        "node": node,
        "allocated": {"xpu": {"devices": [{"i": index, "mem": mem} for index, mem in devices]}},
    }
    request = {"rbps": io[0], "wbps": io[1], "blocksize": "4k"}
    return {
        "metadata": {
            "namespace": "default",
            "name": name,
            "creationTimestamp": LONG_AGO,
            "labels": {"app": "web"},
            "annotations": {
                "berthmaster.io/placement": "required",
                "berthmaster.io/allocation": json.dumps(allocation),
                "blockio.kubernetes.io/resources": json.dumps(request),
            },
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}],
        },
        "status": {"phase": "Running"},
    }


def waiting(
    name: str, message: str = "0/1 nodes: 1 (n1) disk IO read bandwidth is not enough"
) -> Pod:
    """A pod at the gate that says why."""
    found = pod(name)
    del found["metadata"]["annotations"]["berthmaster.io/allocation"]
    del found["spec"]["nodeName"]
    found["spec"]["schedulingGates"] = [{"name": "berthmaster.io/placement"}]
    placed = {"type": "berthmaster.io/Placed", "status": "False", "message": message}
    found["status"] = {"phase": "Pending", "conditions": [placed] if message else []}
    return found


def well() -> Seen:
    """Two pods of a Deployment, one placed and one that waits; and a Job that is done."""
    deployment = {
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"replicas": 2},
    }
    job = {
        "metadata": {"namespace": "default", "name": "work"},
        "spec": {"completions": 3},
        "status": {"succeeded": 3, "conditions": [{"type": "Complete"}]},
    }
    return Seen(
        nodes=[NODE],
        pods=[pod("one"), waiting("two")],
        deployments=[deployment],
        jobs=[job],
        at_s=NOW_S,
    )


def with_pods(*pods: Pod) -> Seen:
    return replace(well(), pods=[*pods], deployments=[])


def changed(found: Pod, change: Callable[[Pod], object]) -> Pod:
    other = copy.deepcopy(found)
    change(other)
    return other


def refused(message: str, subject: str = "web-5d4f8c7b9") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "default", "name": "e"},
        "message": message,
        "involvedObject": {"namespace": "default", "name": subject},
    }


def test_nothing_is_found_where_all_is_well() -> None:
    assert recount(well(), LINES) == []


def no_allocation(found: Pod) -> None:
    del found["metadata"]["annotations"]["berthmaster.io/allocation"]


def pinned(found: Pod) -> None:
    """Let it be decided and not bound yet."""
    del found["spec"]["nodeName"]
    found["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
    }


def selected_without_allocation() -> Seen:
    """Return a bound pod that a policy `p` asked for, as it was made."""
    asked = {"berthmaster.io/policy": "p"}
    bare = changed(pod("a"), no_allocation)
    return with_pods(changed(bare, lambda it: it["metadata"]["annotations"].update(asked)))


PLANTED: dict[str, tuple[Kind, Seen, str]] = {
    "more CPUs than there are": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", cpu="2500m"), pod("b", cpu="1600m", io=("1Mi", "1Mi"))),
        "4.1 of 4 cpu",
    ),
    "more pods than a node takes": (
        Kind.PAST_THE_LINE,
        with_pods(*(pod(str(it), cpu="1m", io=("1Mi", "1Mi")) for it in range(6))),
        "6 of 5 pods",
    ),
    "a decided pod counts before it is bound": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", cpu="3"), changed(pod("b", cpu="2", io=("1Mi", "1Mi")), pinned)),
        "5 of 4 cpu",
    ),
    "reading in the disk's own measure": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", io=("30Mi", "0")), pod("b", io=("21Mi", "0"))),
        "disk read: 102 of 100",
    ),
    "writing": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", io=("0", "101Mi"))),
        "disk write: 101 of 100",
    ),
    "both together": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", io=("40Mi", "71Mi"))),
        "disk total: 151 of 150",
    ),
    "a device given twice": (
        Kind.PAST_THE_LINE,
        with_pods(
            pod("a", io=("1Mi", "1Mi"), devices=((0, 5000),)),
            pod("b", io=("1Mi", "1Mi"), devices=((0, 3065),)),
        ),
        "device 0: 8065 of 8064 MiB",
    ),
    "a device that there is not": (
        Kind.PAST_THE_LINE,
        with_pods(pod("a", devices=((3, 1),))),
        "device 3: 1 of 0 MiB",
    ),
    "bound without an allocation": (
        Kind.ALLOCATION,
        with_pods(changed(pod("a"), no_allocation)),
        "without an allocation",
    ),
    "bound elsewhere": (
        Kind.ALLOCATION,
        with_pods(changed(pod("a"), lambda it: it["spec"].update(nodeName="n2"))),
        "is on n2, its allocation says n1",
    ),
    "one decision for two pods": (
        Kind.ALLOCATION,
        with_pods(
            pod("a"), changed(pod("a", cpu="1m"), lambda it: it["metadata"].update(name="b"))
        ),
        "share decision decision-a",
    ),
    "a kubelet without room": (
        Kind.TURNED_AWAY,
        with_pods(
            changed(
                pod("a"), lambda it: it.update(status={"phase": "Failed", "reason": "OutOfcpu"})
            )
        ),
        "OutOfcpu",
    ),
    "waiting without a word": (Kind.NO_REASON, with_pods(waiting("a", message="")), "why"),
    "neither gated nor decided": (
        Kind.LOST,
        with_pods(
            changed(
                waiting("a"),
                lambda it: it["spec"].update(schedulingGates=[]),
            )
        ),
        "not at the gate",
    ),
    "bound and never running": (
        Kind.LOST,
        with_pods(changed(pod("a"), lambda it: it["status"].update(phase="Pending"))),
        "is bound and Pending",
    ),
    "a pod without an allocation whose policy is older than it": (
        Kind.ALLOCATION,
        replace(selected_without_allocation(), policies={"p": "2026-11-28T11:59:59Z"}),
        "without an allocation",
    ),
    "a pod that was let go while its policy was gone with its kind": (
        Kind.ALLOCATION,
        replace(
            selected_without_allocation(),
            policies={"p": "2026-11-28T12:00:01Z"},
            standing=frozenset({"p"}),
        ),
        "without an allocation",
    ),
    "a Deployment whose pod is gone": (
        Kind.LOST,
        replace(well(), pods=[pod("one")]),
        "has 1 of 2 pods",
    ),
    "a Job without pods that is not done": (
        Kind.LOST,
        replace(
            well(),
            jobs=[
                {
                    "metadata": {"namespace": "default", "name": "work"},
                    "spec": {"completions": 3},
                    "status": {"succeeded": 2},
                }
            ],
        ),
        "2 of 3",
    ),
}


@pytest.mark.parametrize("title", PLANTED)
def test_planted_fault_is_found(title: str) -> None:
    kind, seen, words = PLANTED[title]

    found = recount(seen, LINES)

    assert [it.kind for it in found] == [kind]
    assert words in str(found[0])


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(
            with_pods(
                pod("a", cpu="3"),
                changed(pod("b", cpu="3"), lambda it: it["status"].update(phase="Succeeded")),
            ),
            id="what has finished holds nothing",
        ),
        pytest.param(
            with_pods(
                changed(
                    waiting("a", message=""),
                    lambda it: it["metadata"].update(creationTimestamp="2027-01-15T07:59:55Z"),
                )
            ),
            id="a pod of five seconds need not say anything yet",
        ),
        pytest.param(
            replace(
                well(),
                pods=[pod("one")],
                events=[refused("pods is forbidden: exceeded quota: tight")],
            ),
            id="a quota says why a pod is missing",
        ),
        pytest.param(
            with_pods(
                changed(
                    changed(pod("a"), no_allocation),
                    lambda it: it["metadata"]["annotations"].update(
                        {"berthmaster.io/policy": "gone"}
                    ),
                )
            ),
            id="a policy that is gone asks for nothing",
        ),
        pytest.param(
            replace(selected_without_allocation(), policies={"p": "2026-11-28T12:00:01Z"}),
            id="nor does one that was made since by its name",
        ),
    ],
)
def test_what_is_no_fault_is_not_found(seen: Seen) -> None:
    assert recount(seen, LINES) == []


def test_failed_creations_are_told_from_quotas_and_outages() -> None:
    quota = refused("pods is forbidden: exceeded quota: tight")
    outage = refused("dial tcp 127.0.0.1:20000: connect: connection refused")
    ours = refused("admission webhook placement.berthmaster.io denied: connection refused")

    busy = refused('Operation cannot be fulfilled on resourcequotas "tight": try again')

    assert failed_creations([quota, busy, outage], ["connection refused"]) == []
    assert [it.kind for it in failed_creations([quota, outage])] == [Kind.FAILED_CREATION]
    # What names us is never excused.
    assert "placement" in str(failed_creations([ours], ["connection refused"])[0])


def test_each_end_of_a_process_is_found_once() -> None:
    """Also one that is not started anew yet."""

    def ends(restarts: int, **state: Any) -> dict[str, int]:
        container = {"restartCount": restarts, **state}
        return count_ends(
            [{"metadata": {"name": "p"}, "status": {"containerStatuses": [container]}}]
        )

    last: dict[str, Any] = {"lastState": {"terminated": {}}}
    starting = ends(0, state={"waiting": {}}, lastState={})
    running = ends(0, state={"running": {}})
    over = ends(0, state={"terminated": {}})
    waiting = ends(0, state={"waiting": {}}, **last)
    again = ends(1, state={"running": {}}, **last)

    assert new_ends(starting, running) == []
    assert [str(it) for it in new_ends(running, over)] == ["ended: p: its process ended, 1 times"]
    assert new_ends(over, waiting) == new_ends(waiting, again) == []
    assert len(new_ends({}, again)) == 1
