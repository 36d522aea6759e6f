"""The kubelet's static CPU manager: whole CPUs of Guaranteed pods are theirs alone.

CPUs are numbered zone by zone, core by core; a set of them is a mask of bits. CPUs of an init
container may be taken again by the containers after it, and until the pod goes they are nobody else's.
Upstream's options other than `full-pcpus-only` are not played.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from berthmaster_sandbox.world.numa_hints import Hint, Wishes
from berthmaster_sandbox.world.numa_machines import CPU, Machine
from berthmaster_sandbox.world.numa_pods import ContainerView, PodView, Role
from berthmaster_sandbox.world.numa_verdicts import AllocationError, SmtAlignmentError


class CpuManager:
    """Who has which CPUs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._threads = machine.threads_per_core
        # Masks of CPUs by zone, and those that may be exclusive.
        self._zones: dict[int, int] = {}
        reserved = 0
        first = 0
        for zone in machine.zones:
            self._zones[zone.id] = _run(first, zone.cpus)
            reserved |= _run(first, zone.reserved_cpus)
            first += zone.cpus
        self._cores = {
            id_: [_run(start, self._threads) for start in self._starts(mask)]
            for id_, mask in self._zones.items()
        }
        self._totals = {
            it.bits: sum(machine.zone_by_id[id_].cpus for id_ in it.zones) for it in machine.masks
        }
        self._assignable = _run(0, first) & ~reserved
        self._free = self._assignable
        self._held: dict[tuple[str, str], int] = {}
        # Of the pod that is being admitted.
        self._reusable = 0

    def copy(self) -> CpuManager:
        """Return an independent manager in the same state."""
        other = object.__new__(CpuManager)
        other.__dict__.update(self.__dict__)
        other._held = dict(self._held)
        return other

    def begin(self) -> None:
        """Start with another pod."""
        self._reusable = 0

    def wishes(self, pod: PodView, container: ContainerView) -> Wishes:
        """Return the hints for one container."""
        return self._wishes(self._count(pod, container))

    def pod_wishes(self, pod: PodView) -> Wishes:
        """Return the hints for a pod as a whole."""
        amounts = {it.name: {CPU: Fraction(self._count(pod, it))} for it in pod.containers}
        return self._wishes(int(pod.effective(amounts).get(CPU, 0)))

    def allocate(self, pod: PodView, container: ContainerView, hint: Hint) -> None:
        """Give a container its CPUs, from the hint's zones first.

        Raises:
            AllocationError: there are not enough CPUs.
            SmtAlignmentError: whole cores are demanded and cannot be given.
        """
        count = self._count(pod, container)
        if not count:
            return
        if self._machine.settings.full_pcpus_only:
            self._check_cores(count)
        usable = self._free | self._reusable
        taken = 0
        if hint.mask is not None:
            aligned = usable & self._union(hint.mask)
            taken = self._take(aligned, min(count, aligned.bit_count()))
        taken |= self._take(usable & ~taken, count - taken.bit_count())
        self._free &= ~taken
        self._held[pod.uid, container.name] = taken
        if container.role is Role.INIT:
            self._reusable |= taken
        else:
            self._reusable &= ~taken

    def release(self, pod: PodView) -> None:
        """Take back everything that a pod has."""
        for container in pod.containers:
            self._free |= self._held.pop((pod.uid, container.name), 0)

    def held(self, uid: str, container: str) -> dict[int, int]:
        """Return how many CPUs of each zone a container has."""
        mask = self._held.get((uid, container), 0)
        return {
            id_: count for id_, zone in self._zones.items() if (count := (zone & mask).bit_count())
        }

    def free(self, zone: int) -> int:
        """Return how many CPUs of a zone may still become exclusive."""
        return (self._free & self._zones[zone]).bit_count()

    def audit(self) -> Iterator[str]:
        """Yield what cannot be: CPUs of two pods at once, or such as are the system's."""
        seen: dict[str, int] = {}
        for (uid, _), mask in self._held.items():
            seen[uid] = seen.get(uid, 0) | mask
        used = 0
        for uid, mask in seen.items():
            if used & mask:
                yield f"cpu: pod {uid} shares {(used & mask).bit_count()} CPUs with others"
            used |= mask
        if used & ~self._assignable:
            yield "cpu: reserved CPUs are given away"
        if used | self._free != self._assignable or used & self._free:
            yield "cpu: free and used CPUs are not all CPUs"

    def _count(self, pod: PodView, container: ContainerView) -> int:
        is_static = self._machine.settings.has_exclusive_cpus
        return container.whole_cpus if is_static and pod.is_pinned else 0

    def _wishes(self, count: int) -> Wishes:
        if not count:
            return {}
        free = {id_: (self._free & zone).bit_count() for id_, zone in self._zones.items()}
        kept = {id_: (self._reusable & zone).bit_count() for id_, zone in self._zones.items()}
        # CPUs that can be used again must be: a mask without their zones is no hint.
        must = sum(1 << id_ for id_, number in kept.items() if number)
        reusable = sum(kept.values())
        width = len(self._machine.zones)
        fitting = []
        for mask in self._machine.masks:
            # The system's own CPUs count for how many zones are needed, though nobody gets them.
            if len(mask.zones) < width and self._totals[mask.bits] >= count:
                width = len(mask.zones)
            if must & ~mask.bits:
                continue
            if reusable + sum(free[id_] for id_ in mask.zones) >= count:
                fitting.append(mask)
        return {CPU: [Hint(it.bits, len(it.zones) == width) for it in fitting]}

    def _check_cores(self, count: int) -> None:
        if count % self._threads:
            raise SmtAlignmentError(
                f"SMT Alignment Error: requested {count} cpus not multiple cpus per core = "
                f"{self._threads}"
            )
        whole = self._reusable
        for core in (core for cores in self._cores.values() for core in cores):
            # A core with a CPU of the system's counts as the system's.
            if core & ~self._assignable == 0:
                whole |= core & self._free
        if count > whole.bit_count():
            raise SmtAlignmentError(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = "
                f"{whole.bit_count()}, requested CPUs = {count}, CPUs per core = {self._threads}"
            )

    def _take(self, available: int, count: int) -> int:
        """Return that many CPUs: whole zones, then whole cores, then single ones, the fullest first."""
        if count > available.bit_count():
            raise AllocationError(
                f"not enough cpus available to satisfy request: requested={count}, "
                f"available={available.bit_count()}"
            )
        taken = 0
        for id_ in self._fullest(available):
            zone = self._zones[id_]
            if zone & ~available == 0 and count >= zone.bit_count():
                taken |= zone
                count -= zone.bit_count()
        available &= ~taken
        for core in list(self._free_cores(available)):
            if count < self._threads:
                break
            taken |= core
            count -= self._threads
        available &= ~taken
        if count:
            for cpu in self._single_cpus(available):
                taken |= cpu
                count -= 1
                if not count:
                    break
        return taken

    def _fullest(self, available: int) -> list[int]:
        sizes = {id_: (available & zone).bit_count() for id_, zone in self._zones.items()}
        return sorted((id_ for id_ in sizes if sizes[id_]), key=lambda id_: (sizes[id_], id_))

    def _free_cores(self, available: int) -> Iterator[int]:
        for id_ in self._fullest(available):
            yield from (core for core in self._cores[id_] if core & ~available == 0)

    def _single_cpus(self, available: int) -> Iterator[int]:
        for id_ in self._fullest(available):
            cores = [it & available for it in self._cores[id_] if it & available]
            for core in sorted(cores, key=int.bit_count):
                yield from _bits(core)

    def _union(self, zones: int) -> int:
        return sum(mask for id_, mask in self._zones.items() if zones >> id_ & 1)

    def _starts(self, mask: int) -> range:
        first = (mask & -mask).bit_length() - 1
        return range(first, first + mask.bit_count(), self._threads) if mask else range(0)


def _run(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest
        mask ^= lowest
