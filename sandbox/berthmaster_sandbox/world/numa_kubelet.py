"""One kubelet with NUMA zones: which pods it admits, and what each container gets.

Written from the kubelet's own rules alone. The topology manager asks the device, CPU and memory
managers, in this order, for hints, makes one choice of them, and lets each allocate with that choice
before the next container is looked at. Only then comes the test against the Node's allocatable. What a
rejected pod had been given is free again. Pods do not start or end here: somebody says so.

Not played: reading a checkpoint at start, resizing in place, dynamic resource allocation, pod-level
resources that are aligned (alpha), critical pods that evict others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from berthmaster.api.quantities import ceil
from berthmaster_sandbox.world.numa_cpus import CpuManager
from berthmaster_sandbox.world.numa_devices import DeviceManager
from berthmaster_sandbox.world.numa_hints import NO_ZONE, Hint, choose
from berthmaster_sandbox.world.numa_machines import CPU, MEMORY, PODS, Machine
from berthmaster_sandbox.world.numa_memory import MemoryManager
from berthmaster_sandbox.world.numa_pods import ContainerView, PodView
from berthmaster_sandbox.world.numa_verdicts import (
    SMT_ALIGNMENT_ERROR,
    TOPOLOGY_AFFINITY_ERROR,
    TOPOLOGY_MESSAGE,
    UNEXPECTED_ADMISSION_ERROR,
    Admitted,
    AllocationError,
    Holding,
    Rejected,
    SmtAlignmentError,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A pod that was admitted."""

    pod: PodView
    verdict: Admitted
    holdings: Mapping[str, Holding]


class _TurnedAwayError(Exception):
    def __init__(self, verdict: Rejected) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class NumaKubelet:
    """The admission of one kubelet, and its books."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._allocatable = machine.allocatable()
        self._devices = DeviceManager(machine)
        self._cpus = CpuManager(machine)
        self._memory = MemoryManager(machine)
        self._pods: dict[str, Running] = {}
        self._used: dict[str, Fraction] = {}

    def copy(self) -> NumaKubelet:
        """Return an independent kubelet in the same state."""
        other = object.__new__(NumaKubelet)
        other.machine = self.machine
        other._allocatable = self._allocatable
        other._devices = self._devices.copy()
        other._cpus = self._cpus.copy()
        other._memory = self._memory.copy()
        other._pods = dict(self._pods)
        other._used = dict(self._used)
        return other

    @property
    def pods(self) -> Mapping[str, Running]:
        """Return the admitted pods by uid, in the order of admission."""
        return self._pods

    def admit(self, pod: PodView) -> Verdict:
        """Admit a pod and give its containers what they ask, or reject it; safe to repeat."""
        known = self._pods.get(pod.uid)
        if known is not None:
            return known.verdict
        for manager in (self._devices, self._cpus, self._memory):
            manager.begin()
        try:
            self._align(pod)
            self._check_node(pod)
        except _TurnedAwayError as error:
            self._release(pod)
            return error.verdict
        holdings = {it.name: self._holding(pod, it) for it in pod.containers}
        verdict = Admitted(zones={name: self._zones(it) for name, it in holdings.items()})
        self._pods[pod.uid] = Running(pod=pod, verdict=verdict, holdings=holdings)
        self._count(pod, 1)
        return verdict

    def remove(self, uid: str) -> None:
        """Let a pod be gone; unknown ones are ignored."""
        known = self._pods.pop(uid, None)
        if known is not None:
            self._release(known.pod)
            self._count(known.pod, -1)

    def device_zones(self, resource: str, id_: str) -> tuple[int, ...]:
        """Return the zones that a plugin reports for a device."""
        return self._devices.device(resource, id_).zones

    def free_memory(self, zone: int) -> Mapping[str, int]:
        """Return the bytes by kind that the memory manager has left in a zone."""
        return self._memory.free(zone)

    def free_cpus(self, zone: int) -> int:
        """Return the CPUs of a zone that may still become exclusive.

        Those of an init container that ended are not free while its pod is there.
        """
        return self._cpus.free(zone)

    def audit(self) -> list[str]:
        """Add up who has what and return everything of which more is given than there is."""
        found = [*self._devices.audit(), *self._cpus.audit(), *self._memory.audit()]
        used: dict[str, Fraction] = {PODS: Fraction(len(self._pods))}
        for running in self._pods.values():
            for name, amount in running.pod.node_request().items():
                used[name] = used.get(name, Fraction(0)) + amount
        found += [
            f"node: {name} has {float(used[name]):g} of {there} used"
            for name, there in self._allocatable.items()
            if used.get(name, 0) > there
        ]
        return found

    def _align(self, pod: PodView) -> None:
        settings = self.machine.settings
        if settings.topology_manager_policy == "none":
            for container in pod.containers:
                self._allocate(pod, container, NO_ZONE)
            return
        whole = None
        if settings.topology_manager_scope == "pod":
            whole = self._choose_for_pod(pod)
        for container in pod.containers:
            hint = whole if whole is not None else self._choose_for(pod, container)
            self._allocate(pod, container, hint)

    def _choose_for_pod(self, pod: PodView) -> Hint:
        hint, is_admitted = choose(
            self.machine,
            [
                self._devices.pod_wishes(pod),
                self._cpus.pod_wishes(pod),
                self._memory.pod_wishes(pod),
            ],
        )
        if not is_admitted:
            raise _TurnedAwayError(
                Rejected(reason=TOPOLOGY_AFFINITY_ERROR, message=TOPOLOGY_MESSAGE)
            )
        return hint

    def _choose_for(self, pod: PodView, container: ContainerView) -> Hint:
        hint, is_admitted = choose(
            self.machine,
            [
                self._devices.wishes(container),
                self._cpus.wishes(pod, container),
                self._memory.wishes(pod, container),
            ],
        )
        if not is_admitted:
            raise _TurnedAwayError(
                Rejected(
                    reason=TOPOLOGY_AFFINITY_ERROR,
                    message=TOPOLOGY_MESSAGE,
                    container=container.name,
                )
            )
        return hint

    def _allocate(self, pod: PodView, container: ContainerView, hint: Hint) -> None:
        try:
            self._devices.allocate(pod, container, hint)
            self._cpus.allocate(pod, container, hint)
            self._memory.allocate(pod, container, hint)
        except SmtAlignmentError as error:
            raise _TurnedAwayError(
                Rejected(reason=SMT_ALIGNMENT_ERROR, message=str(error), container=container.name)
            ) from error
        except AllocationError as error:
            raise _TurnedAwayError(
                Rejected(
                    reason=UNEXPECTED_ADMISSION_ERROR,
                    message=f"Allocate failed due to {error}, which is unexpected",
                    container=container.name,
                )
            ) from error

    def _check_node(self, pod: PodView) -> None:
        """Reject what the node as a whole has no room for; unknown resources do not count."""
        asked = {PODS: Fraction(1), **pod.node_request()}
        for name in sorted(asked, key=_test_order):
            there = self._allocatable.get(name)
            used = self._used.get(name, Fraction(0))
            if there is None or not asked[name] or used + asked[name] <= there:
                continue
            # The kubelet counts CPUs by the thousandth.
            scale = 1000 if name == CPU else 1
            raise _TurnedAwayError(
                Rejected(
                    reason=f"OutOf{name}",
                    message=(
                        f"Node didn't have enough resource: {name}, "
                        f"requested: {ceil(asked[name] * scale)}, used: {ceil(used * scale)}, "
                        f"capacity: {there * scale}"
                    ),
                )
            )

    def _release(self, pod: PodView) -> None:
        for manager in (self._devices, self._cpus, self._memory):
            manager.release(pod)

    def _count(self, pod: PodView, sign: int) -> None:
        for name, amount in {PODS: Fraction(1), **pod.node_request()}.items():
            self._used[name] = self._used.get(name, Fraction(0)) + sign * amount

    def _holding(self, pod: PodView, container: ContainerView) -> Holding:
        return Holding(
            cpus=self._cpus.held(pod.uid, container.name),
            memory=self._memory.held(pod.uid, container.name),
            devices=self._devices.held(pod.uid, container.name),
        )

    def _zones(self, holding: Holding) -> tuple[int, ...]:
        zones = set(holding.cpus)
        for ids, _ in holding.memory.values():
            zones.update(ids)
        for resource, devices in holding.devices.items():
            for id_ in devices:
                zones.update(self.device_zones(resource, id_))
        return tuple(sorted(zones))


def _test_order(name: str) -> tuple[int, str]:
    first = (PODS, CPU, MEMORY, "ephemeral-storage")
    return (first.index(name), "") if name in first else (len(first), name)
