"""The kubelet with NUMA zones answers as the real one would, and its books are right."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster_sandbox.world.numa_hints import Hint, merge
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import Device, KubeletSettings, Machine, Zone
from berthmaster_sandbox.world.numa_pods import PodView, Qos, read_pod
from berthmaster_sandbox.world.numa_random import Traits, build_case, build_machine, build_pod
from berthmaster_sandbox.world.numa_verdicts import Admitted, Rejected, Verdict

GI = 2**30
GPU = "vendor.example/gpu"
SINGLE = "single-numa-node"
SEEDS = st.integers(0, 2**32)


def make_zone(id_: int, cpus: int, memory: int = 64, **fields: Any) -> Zone:
    """Return a zone of which so many CPUs and Gi are for pods; one CPU and 1Gi more are not."""
    return Zone(
        id=id_,
        cpus=cpus + 1,
        memory=(memory + 1) * GI + sum(fields.get("hugepages", {}).values()),
        reserved_cpus=1,
        reserved_memory={"memory": GI},
        **fields,
    )


def make_kubelet(
    *zones: Zone,
    policy: str = SINGLE,
    scope: str = "container",
    cpu: str = "static",
    memory: str = "Static",
    devices: Sequence[Device] = (),
    threads: int = 1,
    **options: Any,
) -> NumaKubelet:
    return NumaKubelet(
        Machine(
            zones=zones,
            devices=tuple(devices),
            threads_per_core=threads,
            settings=KubeletSettings(
                topology_manager_policy=policy,
                topology_manager_scope=scope,
                cpu_manager_policy=cpu,
                memory_manager_policy=memory,
                **options,
            ),
        )
    )


def gpus(*zones: int, resource: str = GPU) -> list[Device]:
    return [
        Device(resource=resource, id=f"{index}", zones=(zone,)) for index, zone in enumerate(zones)
    ]


def container(cpu: float, memory: int = 1, **more: Any) -> dict[str, Any]:
    limits = {"cpu": str(cpu), "memory": f"{memory}Gi"}
    limits |= {GPU: str(more["gpu"])} if "gpu" in more else {}
    limits |= more.get("others", {})
    return {"limits": limits}


def make_pod(
    name: str,
    *apps: dict[str, Any],
    init: Sequence[dict[str, Any]] = (),
    sidecars: Sequence[dict[str, Any]] = (),
    **spec: Any,
) -> PodView:
    """Return a pod; sidecars come after the other init containers."""
    inits = [{"name": f"init-{n}", "resources": it} for n, it in enumerate(init)]
    inits += [
        {"name": f"sidecar-{n}", "resources": it, "restartPolicy": "Always"}
        for n, it in enumerate(sidecars)
    ]
    containers = [{"name": f"app-{n}", "resources": it} for n, it in enumerate(apps)]
    return read_pod(
        {
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": containers, "initContainers": inits, **spec},
        }
    )


def zones_of(verdict: Verdict) -> dict[str, tuple[int, ...]]:
    assert isinstance(verdict, Admitted), verdict
    return dict(verdict.zones)


def reason_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Rejected), verdict
    return verdict.reason


# Worked examples.


def test_lowest_fitting_zone_is_filled_first() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 8))

    assert zones_of(kubelet.admit(make_pod("a", container(3)))) == {"app-0": (0,)}
    assert zones_of(kubelet.admit(make_pod("b", container(3)))) == {"app-0": (1,)}
    assert zones_of(kubelet.admit(make_pod("c", container(1)))) == {"app-0": (0,)}
    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (0, 5)


def test_containers_are_placed_greedily_without_going_back() -> None:
    kubelet = make_kubelet(make_zone(0, 10), make_zone(1, 6))

    verdict = kubelet.admit(make_pod("a", container(4), container(8)))

    assert verdict == Rejected(
        reason="TopologyAffinityError",
        message="Resources cannot be allocated with Topology locality",
        container="app-1",
    )
    # The first container's CPUs are free again.
    assert zones_of(kubelet.admit(make_pod("b", container(8), container(4)))) == {
        "app-0": (0,),
        "app-1": (1,),
    }


def test_pod_scope_aligns_the_sum() -> None:
    zones = (make_zone(0, 6), make_zone(1, 6))
    pod = make_pod("a", container(4), container(4))

    by_container = make_kubelet(*zones).admit(pod)
    assert zones_of(by_container) == {"app-0": (0,), "app-1": (1,)}
    assert reason_of(make_kubelet(*zones, scope="pod").admit(pod)) == "TopologyAffinityError"


def test_device_pulls_cpus_and_memory_to_its_zone() -> None:
    kubelet = make_kubelet(make_zone(0, 8), make_zone(1, 8), devices=gpus(1))

    assert zones_of(kubelet.admit(make_pod("a", container(2, gpu=1)))) == {"app-0": (1,)}
    assert (kubelet.free_cpus(1), kubelet.free_memory(1)["memory"]) == (6, 63 * GI)
    assert reason_of(kubelet.admit(make_pod("b", container(2, gpu=1)))) == "TopologyAffinityError"


@pytest.mark.parametrize(
    ("gpu", "cpu", "is_admitted"), [(6, 10, False), (6, 24, True), (4, 16, True), (4, 1, True)]
)
def test_restricted_wants_the_fewest_zones_for_all(gpu: int, cpu: int, is_admitted: bool) -> None:
    kubelet = make_kubelet(
        make_zone(0, 16),
        make_zone(1, 16),
        policy="restricted",
        memory="None",
        devices=gpus(0, 0, 0, 0, 1, 1, 1, 1),
    )

    verdict = kubelet.admit(make_pod("a", container(cpu, gpu=gpu)))

    assert isinstance(verdict, Admitted) is is_admitted


def test_restricted_wants_devices_to_agree_with_cpus() -> None:
    kubelet = make_kubelet(
        make_zone(0, 16), make_zone(1, 16), policy="restricted", devices=gpus(0, 0, 1, 1)
    )

    # All four devices need both zones, one CPU needs one.
    assert reason_of(kubelet.admit(make_pod("a", container(1, gpu=4)))) == "TopologyAffinityError"


def test_restricted_counts_what_there_is_and_not_what_is_left() -> None:
    verdicts = []
    for policy in ("best-effort", "restricted"):
        kubelet = make_kubelet(make_zone(0, 8), make_zone(1, 8), policy=policy, memory="None")
        assert zones_of(kubelet.admit(make_pod("a", container(5), container(5))))
        verdicts.append(kubelet.admit(make_pod("b", container(6))))

    # Six would fit one empty zone: two are more than the fewest.
    assert zones_of(verdicts[0]) == {"app-0": (0, 1)}
    assert reason_of(verdicts[1]) == "TopologyAffinityError"


def test_reserved_cpus_count_for_the_fewest_zones() -> None:
    machine = (make_zone(0, 8), make_zone(1, 8))

    # Nine CPUs are in a zone, eight can be had of it: two zones would do, but one is "enough".
    nine = make_pod("a", container(9))
    assert reason_of(make_kubelet(*machine, policy="restricted").admit(nine)) == (
        "TopologyAffinityError"
    )
    ten = make_pod("a", container(10))
    memory_aside = make_kubelet(*machine, policy="restricted", memory="None")
    assert zones_of(memory_aside.admit(ten)) == {"app-0": (0, 1)}


def test_node_as_a_whole_is_looked_at_last() -> None:
    loose = make_kubelet(make_zone(0, 4), make_zone(1, 4), policy="none", cpu="none", memory="None")
    loose.admit(make_pod("a", container(6)))

    assert loose.admit(make_pod("b", container(2.5))) == Rejected(
        reason="OutOfcpu",
        message=(
            "Node didn't have enough resource: cpu, requested: 2500, used: 6000, capacity: 8000"
        ),
    )
    strict = make_kubelet(make_zone(0, 4), make_zone(1, 4))
    assert reason_of(strict.admit(make_pod("a", container(9)))) == "TopologyAffinityError"


def test_full_memory_is_no_topology_error() -> None:
    kubelet = make_kubelet(make_zone(0, 8, 10), make_zone(1, 8, 10))
    for name in "ab":
        assert zones_of(kubelet.admit(make_pod(name, container(1, 6))))

    # The memory manager has no hint then, which means any zone, and cannot allocate.
    assert kubelet.admit(make_pod("c", container(1, 6))) == Rejected(
        reason="UnexpectedAdmissionError",
        message=(
            "Allocate failed due to [memorymanager] failed to find NUMA nodes to extend the "
            "current topology hint, which is unexpected"
        ),
        container="app-0",
    )
    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (7, 7)


def test_full_memory_without_other_wishes_has_its_own_words() -> None:
    kubelet = make_kubelet(make_zone(0, 8, 10), make_zone(1, 8, 10), cpu="none")
    for name in "ab":
        kubelet.admit(make_pod(name, container(1, 6)))

    verdict = kubelet.admit(make_pod("c", container(1, 6)))

    assert isinstance(verdict, Rejected)
    assert "failed to get the default NUMA affinity" in verdict.message


@pytest.mark.parametrize("policy", ["none", "best-effort"])
def test_static_memory_refuses_under_every_policy(policy: str) -> None:
    kubelet = make_kubelet(make_zone(0, 8, 10), make_zone(1, 8, 10), policy=policy)
    for name in "ab":
        kubelet.admit(make_pod(name, container(1, 6)))

    assert reason_of(kubelet.admit(make_pod("c", container(1, 6)))) == "UnexpectedAdmissionError"


def test_zones_of_a_memory_group_serve_nobody_alone() -> None:
    kubelet = make_kubelet(
        *(make_zone(id_, 8, 10) for id_ in range(3)), policy="best-effort", cpu="none"
    )
    wide = kubelet.admit(make_pod("wide", container(1, 15)))
    assert zones_of(wide) == {"app-0": (0, 1)}

    # Zone 1 has room, but is of the group.
    assert zones_of(kubelet.admit(make_pod("narrow", container(1, 2)))) == {"app-0": (2,)}
    assert kubelet.admit(make_pod("other", container(1, 11))) == Rejected(
        reason="UnexpectedAdmissionError",
        message=(
            "Allocate failed due to [memorymanager] preferred hint violates NUMA node allocation, "
            "which is unexpected"
        ),
        container="app-0",
    )
    kubelet.remove("wide")
    assert zones_of(kubelet.admit(make_pod("again", container(1, 2)))) == {"app-0": (0,)}
    assert kubelet.audit() == []


def test_kubelet_itself_may_mix_a_group_with_one_of_its_zones() -> None:
    kubelet = make_kubelet(
        *(make_zone(id_, 8, 10) for id_ in range(3)),
        policy="best-effort",
        cpu="none",
        devices=gpus(1),
    )
    assert zones_of(kubelet.admit(make_pod("wide", container(1, 12)))) == {"app-0": (0, 1)}

    # The device wants zone 1, memory zone 2 or the group: what device and group share is zone 1.
    verdict = kubelet.admit(make_pod("narrow", container(1, 3, gpu=1)))

    assert zones_of(verdict) == {"app-0": (1,)}
    assert kubelet.free_memory(1)["memory"] == 5 * GI


def test_hugepages_bind_as_memory_does() -> None:
    pages = {"hugepages-1Gi": 4 * GI}
    kubelet = make_kubelet(make_zone(0, 8, hugepages=pages), make_zone(1, 8, hugepages=pages))
    asking = container(1, others={"hugepages-1Gi": "3Gi"})

    assert zones_of(kubelet.admit(make_pod("a", asking))) == {"app-0": (0,)}
    assert zones_of(kubelet.admit(make_pod("b", asking))) == {"app-0": (1,)}
    assert reason_of(kubelet.admit(make_pod("c", asking))) == "UnexpectedAdmissionError"
    assert kubelet.free_memory(0) == {"memory": 63 * GI, "hugepages-1Gi": GI}


def test_pod_scope_overlooks_hugepages_that_only_init_containers_ask_for() -> None:
    kubelet = make_kubelet(
        make_zone(0, 8), make_zone(1, 8, hugepages={"hugepages-1Gi": GI}), scope="pod"
    )
    asking = container(1, others={"hugepages-1Gi": "1Gi"})

    rejected = kubelet.admit(make_pod("a", container(1), init=[asking]))
    assert isinstance(rejected, Rejected)
    assert "failed to find the extended preferred hint" in rejected.message
    assert zones_of(kubelet.admit(make_pod("b", asking))) == {"app-0": (1,)}


def test_only_whole_cpus_of_guaranteed_pods_are_exclusive() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4), memory="None")

    assert zones_of(kubelet.admit(make_pod("fraction", container(1.5)))) == {"app-0": ()}
    burstable = make_pod("burstable", {"requests": {"cpu": "2", "memory": "1Gi"}})
    assert burstable.qos is Qos.BURSTABLE
    assert zones_of(kubelet.admit(burstable)) == {"app-0": ()}
    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (4, 4)


def test_devices_align_pods_of_any_class() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4), devices=gpus(0, 1))
    two = make_pod("two", {"limits": {GPU: "2"}})
    assert two.qos is Qos.BEST_EFFORT

    assert reason_of(kubelet.admit(two)) == "TopologyAffinityError"
    assert zones_of(kubelet.admit(make_pod("one", {"limits": {GPU: "1"}}))) == {"app-0": (0,)}


def test_devices_without_zones_go_anywhere() -> None:
    keys = [Device(resource="vendor.example/key", id=str(index)) for index in range(2)]
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4), devices=keys)
    asking = container(3, others={"vendor.example/key": "1"})

    assert zones_of(kubelet.admit(make_pod("a", asking))) == {"app-0": (0,)}
    assert zones_of(kubelet.admit(make_pod("b", asking))) == {"app-0": (1,)}
    assert reason_of(kubelet.admit(make_pod("c", {"limits": {"vendor.example/key": "1"}}))) == (
        "UnexpectedAdmissionError"
    )


def test_device_of_two_zones_fits_either() -> None:
    nic = Device(resource=GPU, id="nic", zones=(0, 1))
    kubelet = make_kubelet(make_zone(0, 2), make_zone(1, 8), devices=[nic])

    kubelet.admit(make_pod("a", container(5, gpu=1)))

    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (2, 3)


def test_unknown_extended_resources_do_not_count() -> None:
    kubelet = make_kubelet(make_zone(0, 4))

    assert zones_of(kubelet.admit(make_pod("a", container(1, others={"x.example/y": "9"}))))


def test_init_containers_are_used_again() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4), devices=gpus(0))
    pod = make_pod("a", container(2, gpu=1), container(2), init=[container(4, 2, gpu=1)])

    assert set(zones_of(kubelet.admit(pod)).values()) == {(0,)}
    assert (kubelet.free_cpus(0), kubelet.free_memory(0)["memory"]) == (0, 62 * GI)


def test_only_one_container_uses_an_init_container_again() -> None:
    kubelet = make_kubelet(make_zone(0, 4), devices=gpus(0, 0))
    pod = make_pod("a", container(2, gpu=1), container(2, gpu=1), init=[container(2, gpu=1)])

    assert zones_of(kubelet.admit(pod))
    assert kubelet.free_cpus(0) == 0
    assert kubelet.audit() == []


def test_init_containers_hold_their_zone_against_the_app() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 8))

    # Alone, each would find a zone. But CPUs to use again must be in the app's mask.
    pod = make_pod("a", container(8), init=[container(2)])

    assert kubelet.admit(pod) == Rejected(
        reason="TopologyAffinityError",
        message="Resources cannot be allocated with Topology locality",
        container="app-0",
    )


def test_sidecars_are_not_used_again() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4))

    verdict = kubelet.admit(make_pod("a", container(3), sidecars=[container(2)]))

    assert zones_of(verdict) == {"sidecar-0": (0,), "app-0": (1,)}
    whole = make_kubelet(make_zone(0, 4), make_zone(1, 4), scope="pod")
    assert reason_of(whole.admit(make_pod("a", container(3), sidecars=[container(2)]))) == (
        "TopologyAffinityError"
    )


def test_pod_level_amounts_are_not_aligned() -> None:
    kubelet = make_kubelet(make_zone(0, 4, 4), make_zone(1, 4, 4))
    whole = {"cpu": "6", "memory": "6Gi"}
    pod = make_pod("a", container(6, 6), resources={"requests": whole, "limits": whole})

    assert pod.qos is Qos.GUARANTEED
    assert zones_of(kubelet.admit(pod)) == {"app-0": ()}
    assert reason_of(kubelet.admit(make_pod("b", container(3)))) == "OutOfcpu"


def test_overhead_counts_for_the_node_alone() -> None:
    kubelet = make_kubelet(make_zone(0, 4), make_zone(1, 4), scope="pod", memory="None")
    overhead = {"cpu": "3"}

    assert zones_of(kubelet.admit(make_pod("a", container(4), overhead=overhead)))
    assert reason_of(kubelet.admit(make_pod("b", container(2), overhead=overhead))) == "OutOfcpu"


def test_nearer_zones_win_when_asked_to() -> None:
    zones = [
        make_zone(0, 4, distances={1: 40, 2: 20}),
        make_zone(1, 4, distances={0: 40, 2: 11}),
        make_zone(2, 4, distances={0: 20, 1: 11}),
    ]
    pod = make_pod("a", container(8))
    chosen = [
        zones_of(
            make_kubelet(
                *zones, policy="best-effort", memory="None", prefer_closest_numa_nodes=is_closest
            ).admit(pod)
        )
        for is_closest in (False, True)
    ]

    assert chosen == [{"app-0": (0, 1)}, {"app-0": (1, 2)}]


def test_whole_cores_are_demanded_where_set() -> None:
    zone = Zone(id=0, cpus=8, memory=64 * GI, reserved_cpus=2, reserved_memory={"memory": GI})
    kubelet = make_kubelet(zone, threads=2, full_pcpus_only=True)

    assert kubelet.admit(make_pod("a", container(3))) == Rejected(
        reason="SMTAlignmentError",
        message="SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
        container="app-0",
    )
    assert zones_of(kubelet.admit(make_pod("b", container(6)))) == {"app-0": (0,)}


def test_cpus_of_several_zones_come_from_the_fullest_zone_first() -> None:
    kubelet = make_kubelet(make_zone(0, 8), make_zone(1, 8), policy="best-effort", memory="None")
    kubelet.admit(make_pod("a", container(2)))
    kubelet.remove("a")
    kubelet.admit(make_pod("low", container(3)))
    kubelet.admit(make_pod("high", container(6)))
    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (5, 2)

    kubelet.admit(make_pod("wide", container(6)))

    assert (kubelet.free_cpus(0), kubelet.free_cpus(1)) == (1, 0)


@pytest.mark.parametrize(
    "machine",
    [
        {"zones": ()},
        {"zones": (Zone(id=0, cpus=1, memory=1, reserved_cpus=2),)},
        {"zones": (Zone(id=1, cpus=1, memory=1), Zone(id=0, cpus=1, memory=1))},
        {"zones": (Zone(id=0, cpus=1, memory=1),), "devices": tuple(gpus(1))},
        {
            "zones": (Zone(id=0, cpus=1, memory=1),),
            "settings": KubeletSettings(cpu_manager_policy="static"),
        },
        {
            "zones": tuple(Zone(id=id_, cpus=1, memory=1) for id_ in range(9)),
            "settings": KubeletSettings(topology_manager_policy="restricted"),
        },
    ],
    ids=["no-zone", "over-reserved", "order", "device-zone", "nothing-reserved", "too-many-zones"],
)
def test_kubelet_does_not_start_on_such_a_machine(machine: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Machine(**machine)


# Properties.


def fold(machine: Machine, lists: Sequence[Sequence[Hint]]) -> Hint:
    """Merge as the kubelet does it, one combination after the other."""
    every = machine.every_zone
    aim = max(
        (min((it.mask.bit_count() for it in hints if it.mask), default=0) for hints in lists),
        default=0,
    )
    best: Hint | None = None
    for combination in itertools.product(*lists):
        masks = [it.mask for it in combination if it.mask is not None]
        is_preferred = all(it.is_preferred for it in combination) and len(set(masks)) < 2
        candidate = Hint(reduce(lambda a, b: a & b, masks, every), is_preferred)
        if candidate.mask and (best is None or beats(candidate, best, aim)):
            best = candidate
    return best or Hint(every, False)


def beats(candidate: Hint, current: Hint, aim: int) -> bool:
    assert candidate.mask is not None
    assert current.mask is not None
    new, old = candidate.mask.bit_count(), current.mask.bit_count()
    is_narrower = (new, candidate.mask) < (old, current.mask)
    if candidate.is_preferred != current.is_preferred:
        return candidate.is_preferred
    if candidate.is_preferred or old > aim:
        return is_narrower
    if old == aim:
        return new == aim and is_narrower
    if new > aim:
        return False
    return new > old or (new == old and is_narrower)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_merging_is_what_all_combinations_give(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    machine = Machine(zones=tuple(Zone(id=id_, cpus=1, memory=1) for id_ in range(count)))
    masks = st.builds(Hint, st.integers(1, machine.every_zone), st.booleans())
    one = st.sampled_from([[Hint(None, True)], [Hint(None, False)]])
    lists = data.draw(st.lists(one | st.lists(masks, max_size=4), max_size=4))

    assert merge(machine, lists) == fold(machine, lists)


# Where groups of zones may be mixed with single ones the kubelet's own memory books are off.
EXACT = (Traits(policies=[SINGLE, "none"]), Traits(managers=[("static", "None")]))


@pytest.mark.parametrize("traits", EXACT, ids=["memory", "no-memory"])
@given(seed=SEEDS)
@settings(max_examples=120, deadline=None)
def test_books_are_right_whatever_comes_and_goes(traits: Traits, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    machine = build_machine(rng, traits)
    kubelet = NumaKubelet(machine)
    for index in range(25):
        pod = read_pod(build_pod(rng, traits, f"p{index}"))
        verdict = kubelet.admit(pod)
        assert kubelet.audit() == []
        assert isinstance(verdict, Admitted) is (pod.uid in kubelet.pods)
        if kubelet.pods and rng.random() < 0.4:
            kubelet.remove(rng.choice(list(kubelet.pods)))
            assert kubelet.audit() == []
    for uid in list(kubelet.pods):
        kubelet.remove(uid)

    assert kubelet.audit() == []
    for zone in machine.zones:
        assert kubelet.free_cpus(zone.id) == zone.cpus - zone.reserved_cpus
        assert kubelet.free_memory(zone.id) == zone.allocatable()


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_single_numa_node_never_spans_zones(seed: int) -> None:
    traits = Traits(policies=["single-numa-node"], spanning_devices=0)
    case = build_case(seed, traits)

    for running in case.kubelet.pods.values():
        zones = [set(it) for it in running.verdict.zones.values()]
        assert all(len(it) <= 1 for it in zones)
        if case.machine.settings.topology_manager_scope == "pod":
            assert len(set().union(*zones)) <= 1


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_admitting_and_removing_leaves_no_trace(seed: int) -> None:
    case = build_case(seed, Traits(policies=["single-numa-node", "none"]))
    kubelet, pod = case.kubelet, read_pod(case.next_pod)
    zones = [zone.id for zone in case.machine.zones]

    def free() -> list[Any]:
        return [(kubelet.free_cpus(id_), dict(kubelet.free_memory(id_))) for id_ in zones]

    before, verdict = free(), kubelet.admit(pod)
    kubelet.remove(pod.uid)

    if case.machine.settings.topology_manager_policy == "single-numa-node":
        assert free() == before
    assert kubelet.admit(pod) == verdict


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_more_room_in_the_only_zone_never_turns_a_pod_away(seed: int) -> None:
    case = build_case(seed, Traits(most_zones=1))
    pod = read_pod(case.next_pod)
    verdict = case.kubelet.admit(pod)
    case.kubelet.remove(pod.uid)
    for uid in list(case.kubelet.pods)[:1]:
        case.kubelet.remove(uid)

    assert isinstance(case.kubelet.admit(pod), Admitted) or isinstance(verdict, Rejected)
