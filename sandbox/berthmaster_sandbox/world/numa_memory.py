"""The kubelet's Static memory manager: memory and huge pages of Guaranteed pods come from chosen zones.

A zone serves either containers that are bound to it alone or those of one group of zones until it is
empty. The kubelet sees to that when it makes hints and, for groups, when it allocates; where other
resources narrow the choice to one zone of a group, it takes from that zone all the same. A block of a
group is taken from its zones in ascending order, and given back in the same order, so that within a
group only the sum is certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from berthmaster_sandbox.world.numa_hints import Hint, Wishes
from berthmaster_sandbox.world.numa_machines import HUGEPAGES_PREFIX, MEMORY, Machine, Mask
from berthmaster_sandbox.world.numa_pods import Amounts, ContainerView, PodView, Role
from berthmaster_sandbox.world.numa_verdicts import AllocationError

Sizes = dict[str, int]


class Block(NamedTuple):
    """Bytes of one kind of memory that a container has of a group of zones."""

    name: str
    zones: tuple[int, ...]
    size: int


@dataclass(slots=True)
class _ZoneBooks:
    """One zone: what is free of each kind, how many blocks touch it, and its group."""

    allocatable: Sizes
    free: Sizes
    group: tuple[int, ...]
    blocks: int = 0

    def copy(self) -> _ZoneBooks:
        return _ZoneBooks(self.allocatable, dict(self.free), self.group, self.blocks)


class MemoryManager:
    """Who has which memory."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._zones = {
            zone.id: _ZoneBooks(zone.allocatable(), zone.allocatable(), (zone.id,))
            for zone in machine.zones
        }
        self._held: dict[tuple[str, str], list[Block]] = {}
        # Of init containers of the pod that is being admitted, by zones and kind.
        self._reusable: dict[tuple[tuple[int, ...], str], int] = {}

    def copy(self) -> MemoryManager:
        """Return an independent manager in the same state."""
        other = object.__new__(MemoryManager)
        other._machine = self._machine
        other._zones = {id_: zone.copy() for id_, zone in self._zones.items()}
        other._held = {key: list(blocks) for key, blocks in self._held.items()}
        other._reusable = dict(self._reusable)
        return other

    def begin(self) -> None:
        """Start with another pod."""
        self._reusable = {}

    def wishes(self, pod: PodView, container: ContainerView) -> Wishes:
        """Return the hints for one container, none at all where no zones will do.

        The kubelet takes that for "any zone" and stumbles when it allocates. So do we.
        """
        try:
            sizes = self._sizes(pod, container.requests)
        except AllocationError:
            return {}
        return self._wishes(sizes)

    def pod_wishes(self, pod: PodView) -> Wishes:
        """Return the hints for a pod as a whole, of the kinds that app containers ask for."""
        try:
            sizes = {it.name: self._sizes(pod, it.requests) for it in pod.containers}
        except AllocationError:
            return {}
        apps = {name for it in pod.containers if it.role is Role.APP for name in sizes[it.name]}
        amounts = {it.name: self._kinds(it.requests) for it in pod.containers}
        if not pod.is_pinned or not self._machine.settings.has_pinned_memory:
            return {}
        total = pod.effective(amounts)
        return self._wishes({name: int(size) for name, size in total.items() if name in apps})

    def allocate(self, pod: PodView, container: ContainerView, hint: Hint) -> None:
        """Give a container its memory from the hint's zones, or from more zones where it must.

        Raises:
            AllocationError: no zones will do.
        """
        sizes = self._sizes(pod, container.requests)
        if not pod.is_pinned or not self._machine.settings.has_pinned_memory:
            return
        zones = self._settle(sizes, hint)
        if self._breaks_groups(zones):
            raise AllocationError("[memorymanager] preferred hint violates NUMA node allocation")
        blocks = [Block(name, zones, size) for name, size in sizes.items()]
        for block in blocks:
            again = self._reusable.get((zones, block.name), 0)
            self._take(block, max(block.size - again, 0))
        self._note_reuse(container, blocks)
        self._held[pod.uid, container.name] = blocks
        self._shrink_init_blocks(pod, container, blocks)

    def release(self, pod: PodView) -> None:
        """Take back everything that a pod has."""
        for container in pod.containers:
            for block in self._held.pop((pod.uid, container.name), ()):
                self._give_back(block)

    def held(self, uid: str, container: str) -> dict[str, tuple[tuple[int, ...], int]]:
        """Return a container's blocks by kind: zones and bytes."""
        return {it.name: (it.zones, it.size) for it in self._held.get((uid, container), ())}

    def free(self, zone: int) -> Mapping[str, int]:
        """Return the bytes by kind that nobody has of a zone."""
        return self._zones[zone].free

    def audit(self) -> Iterator[str]:
        """Yield what cannot be: zones of which more is given than there is, or empty ones not free."""
        for zones, sizes in self._given().items():
            for name, size in sizes.items():
                there = sum(self._zones[id_].allocatable.get(name, 0) for id_ in zones)
                if size > there:
                    yield f"memory: {name} of zones {zones} has {size} of {there} given"
        for id_, zone in self._zones.items():
            if not zone.blocks and zone.free != zone.allocatable:
                yield f"memory: zone {id_} is empty and not free"

    def _given(self) -> dict[tuple[int, ...], Sizes]:
        """Return the bytes given of each zone alone, and of each set of zones that groups tie together."""
        given: dict[tuple[int, ...], Sizes] = {}
        blocks = [block for held in self._held.values() for block in held]
        for zones in {it.zones for it in blocks if len(it.zones) == 1} | self._tied(blocks):
            sizes = given.setdefault(zones, {})
            for block in blocks:
                if set(block.zones) <= set(zones):
                    sizes[block.name] = sizes.get(block.name, 0) + block.size
        return given

    def _tied(self, blocks: list[Block]) -> set[tuple[int, ...]]:
        tied: list[set[int]] = []
        for block in blocks:
            touching = [it for it in tied if it & set(block.zones)]
            tied = [it for it in tied if it not in touching]
            tied.append(set(block.zones).union(*touching))
        return {tuple(sorted(it)) for it in tied}

    def _kinds(self, requests: Amounts) -> Amounts:
        return {
            name: size
            for name, size in requests.items()
            if name == MEMORY or name.startswith(HUGEPAGES_PREFIX)
        }

    def _sizes(self, pod: PodView, requests: Amounts) -> Sizes:
        if not pod.is_pinned or not self._machine.settings.has_pinned_memory:
            return {}
        kinds = self._kinds(requests)
        if any(size.denominator != 1 for size in kinds.values()):
            raise AllocationError("[memorymanager] failed to represent quantity as int64")
        return {name: int(size) for name, size in kinds.items()}

    def _wishes(self, sizes: Sizes) -> Wishes:
        if not sizes:
            return {}
        hints = self._hints(sizes)
        return {name: hints for name in sizes} if hints else {}

    def _hints(self, sizes: Sizes) -> list[Hint]:
        width = len(self._machine.zones)
        fitting = []
        for mask in self._machine.masks:
            if not self._could_hold(mask, sizes):
                continue
            width = min(width, len(mask.zones))
            if self._keeps_groups(mask) and self._holds(mask, sizes):
                fitting.append(mask)
        return [Hint(it.bits, len(it.zones) == width) for it in fitting]

    def _could_hold(self, mask: Mask, sizes: Sizes) -> bool:
        zones = [self._zones[id_].allocatable for id_ in mask.zones]
        return all(sum(it.get(name, 0) for it in zones) >= size for name, size in sizes.items())

    def _holds(self, mask: Mask, sizes: Sizes) -> bool:
        zones = [self._zones[id_].free for id_ in mask.zones]
        return all(
            sum(it.get(name, 0) for it in zones) + self._reusable.get((mask.zones, name), 0) >= size
            for name, size in sizes.items()
        )

    def _keeps_groups(self, mask: Mask) -> bool:
        if len(mask.zones) == 1:
            return len(self._zones[mask.zones[0]].group) == 1
        return not self._breaks_groups(mask.zones)

    def _breaks_groups(self, zones: tuple[int, ...]) -> bool:
        if len(zones) == 1:
            return False
        return any(self._zones[id_].blocks and self._zones[id_].group != zones for id_ in zones)

    def _settle(self, sizes: Sizes, hint: Hint) -> tuple[int, ...]:
        """Return the zones to take from: the hint's, if need be with others, or the best ones."""
        chosen = hint
        if chosen.mask is None:
            hints = self._hints(sizes) if sizes else []
            if not hints:
                raise AllocationError(
                    "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with "
                    "enough memory is available"
                )
            chosen = _best(hints)
            if hint.is_preferred and not chosen.is_preferred:
                raise AllocationError("[memorymanager] failed to find the default preferred hint")
        zones = self._ids(chosen)
        if all(
            sum(self._zones[id_].free.get(name, 0) for id_ in zones) >= size
            for name, size in sizes.items()
        ):
            return zones
        wider = [it for it in self._hints(sizes) if _bits(it) & _bits(chosen) == _bits(chosen)]
        if not wider:
            raise AllocationError(
                "[memorymanager] failed to find NUMA nodes to extend the current topology hint"
            )
        extended = _best(wider)
        if chosen.is_preferred and not extended.is_preferred:
            raise AllocationError("[memorymanager] failed to find the extended preferred hint")
        return self._ids(extended)

    def _ids(self, hint: Hint) -> tuple[int, ...]:
        return tuple(id_ for id_ in self._zones if _bits(hint) >> id_ & 1)

    def _take(self, block: Block, size: int) -> None:
        for id_ in block.zones:
            zone = self._zones[id_]
            zone.blocks += 1
            zone.group = block.zones
            part = min(size, zone.free.get(block.name, 0))
            if part:
                zone.free[block.name] -= part
                size -= part

    def _give_back(self, block: Block) -> None:
        size = block.size
        for id_ in block.zones:
            zone = self._zones[id_]
            zone.blocks -= 1
            if not zone.blocks:
                zone.group = (id_,)
            gone = zone.allocatable.get(block.name, 0) - zone.free.get(block.name, 0)
            part = min(size, gone)
            if part:
                zone.free[block.name] += part
                size -= part

    def _note_reuse(self, container: ContainerView, blocks: list[Block]) -> None:
        for block in blocks:
            key = (block.zones, block.name)
            known = self._reusable.get(key, 0)
            if container.role is Role.INIT:
                self._reusable[key] = max(known, block.size)
            elif known:
                self._reusable[key] = max(known - block.size, 0)

    def _shrink_init_blocks(
        self, pod: PodView, container: ContainerView, blocks: list[Block]
    ) -> None:
        """Take what is used again out of the blocks of init containers, so that it counts once."""
        for block in blocks:
            left = block.size
            for earlier in pod.containers:
                if earlier.name == container.name or earlier.role is Role.APP:
                    break
                if earlier.role is Role.SIDECAR:
                    continue
                held = self._held.get((pod.uid, earlier.name), [])
                for index, old in enumerate(held):
                    if (old.name, old.zones) == (block.name, block.zones):
                        part = min(old.size, left)
                        held[index] = old._replace(size=old.size - part)
                        left -= part


def _best(hints: list[Hint]) -> Hint:
    """Return the preferred hint of the fewest zones, then of the lowest."""
    return min(hints, key=lambda it: (not it.is_preferred, _bits(it).bit_count(), _bits(it)))


def _bits(hint: Hint) -> int:
    if hint.mask is None:
        raise ValueError("any zone has no mask")
    return hint.mask
