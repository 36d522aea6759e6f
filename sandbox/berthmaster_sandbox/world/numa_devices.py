"""The kubelet's device manager: devices of plugins, for pods of every QoS class.

Where the plugin reports NUMA nodes, devices are taken from the zones that the topology manager chose.
Which of several equal devices the kubelet takes is chance; here it is the first by id. No plugin
here has preferences of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from berthmaster.api.quantities import ceil
from berthmaster_sandbox.world.numa_hints import Hint, Wishes
from berthmaster_sandbox.world.numa_machines import Device, Machine
from berthmaster_sandbox.world.numa_pods import ContainerView, PodView, Role
from berthmaster_sandbox.world.numa_verdicts import AllocationError


class DeviceManager:
    """Who has which devices."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._devices: dict[str, dict[str, Device]] = {}
        for device in sorted(machine.devices, key=lambda it: (it.resource, it.id)):
            self._devices.setdefault(device.resource, {})[device.id] = device
        self._bits = {
            (it.resource, it.id): sum(1 << zone for zone in set(it.zones)) for it in machine.devices
        }
        # Resources whose plugin reports NUMA nodes.
        self._aligned = {it.resource for it in machine.devices if it.zones}
        self._taken: dict[str, set[str]] = {name: set() for name in self._devices}
        self._held: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        # Of init containers of the pod that is being admitted.
        self._reusable: dict[str, set[str]] = {}

    def copy(self) -> DeviceManager:
        """Return an independent manager in the same state."""
        other = object.__new__(DeviceManager)
        other.__dict__.update(self.__dict__)
        other._taken = {name: set(ids) for name, ids in self._taken.items()}
        other._held = dict(self._held)
        other._reusable = {name: set(ids) for name, ids in self._reusable.items()}
        return other

    def begin(self) -> None:
        """Start with another pod."""
        self._reusable = {}

    def wishes(self, container: ContainerView) -> Wishes:
        """Return the hints for one container."""
        counts = self._counts(container)
        return {
            name: self._wish(name, count, self._reusable.get(name, set()))
            for name, count in counts.items()
        }

    def pod_wishes(self, pod: PodView) -> Wishes:
        """Return the hints for a pod as a whole."""
        total = pod.effective({it.name: it.limits for it in pod.containers})
        return {
            name: self._wish(name, ceil(amount), set())
            for name, amount in total.items()
            if name in self._devices
        }

    def allocate(self, pod: PodView, container: ContainerView, hint: Hint) -> None:
        """Give a container its devices: those to use again, those of the hint's zones, others.

        Raises:
            AllocationError: there are not enough devices.
        """
        held: dict[str, tuple[str, ...]] = {}
        self._held[pod.uid, container.name] = held
        for name, count in self._counts(container).items():
            chosen = self._choose(name, count, hint)
            self._taken[name].update(chosen)
            if chosen:
                held[name] = tuple(chosen)
            reusable = self._reusable.setdefault(name, set())
            if container.role is Role.INIT:
                reusable.update(chosen)
            else:
                reusable.difference_update(chosen)

    def release(self, pod: PodView) -> None:
        """Take back everything that a pod has."""
        for container in pod.containers:
            for name, ids in self._held.pop((pod.uid, container.name), {}).items():
                self._taken[name].difference_update(ids)

    def held(self, uid: str, container: str) -> Mapping[str, tuple[str, ...]]:
        """Return a container's device ids by resource."""
        return self._held.get((uid, container), {})

    def device(self, resource: str, id_: str) -> Device:
        """Return a device by its id."""
        return self._devices[resource][id_]

    def audit(self) -> Iterator[str]:
        """Yield what cannot be: a device of two pods, or books that are off."""
        owners: dict[tuple[str, str], str] = {}
        for (uid, _), held in self._held.items():
            for name, ids in held.items():
                for id_ in ids:
                    if owners.setdefault((name, id_), uid) != uid:
                        yield f"device: {name} {id_} is given to two pods"
        if set(owners) != {(name, id_) for name, ids in self._taken.items() for id_ in ids}:
            yield "device: given and booked devices differ"

    def _counts(self, container: ContainerView) -> dict[str, int]:
        return {
            name: ceil(amount) for name, amount in container.limits.items() if name in self._devices
        }

    def _free(self, name: str) -> list[str]:
        taken = self._taken[name]
        return [
            it.id for it in self._devices[name].values() if it.is_healthy and it.id not in taken
        ]

    def _wish(self, name: str, count: int, reusable: set[str]) -> Sequence[Hint] | None:
        if name not in self._aligned:
            return None
        free = self._free(name)
        if len(set(free) | reusable) < count:
            return []
        everywhere = Counter(self._bits[name, id_] for id_ in self._devices[name])
        available = Counter(self._bits[name, id_] for id_ in free)
        # Devices that can be used again must be: a mask without their zones is no hint.
        again = [self._bits[name, id_] for id_ in reusable if self._bits[name, id_]]
        width = len(self._machine.zones)
        fitting = []
        for mask in self._machine.masks:
            bits, size = mask.bits, len(mask.zones)
            if size < width and _number(everywhere, bits) >= count:
                width = size
            if not all(it & bits for it in again):
                continue
            if len(again) + _number(available, bits) >= count:
                fitting.append(mask)
        return [Hint(it.bits, len(it.zones) == width) for it in fitting]

    def _choose(self, name: str, count: int, hint: Hint) -> list[str]:
        chosen = sorted(self._reusable.get(name, ()))[:count]
        missing = count - len(chosen)
        if not missing:
            return chosen
        free = self._free(name)
        if len(free) < missing:
            raise AllocationError(
                f"requested number of devices unavailable for {name}. Requested: {missing}, "
                f"Available: {len(free)}"
            )
        if name in self._aligned and hint.mask is not None:
            zones = hint.mask
            # In the zones, elsewhere, nowhere.
            free.sort(
                key=lambda id_: (not self._bits[name, id_] & zones, not self._bits[name, id_])
            )
        return chosen + free[:missing]


def _number(devices: Counter[int], zones: int) -> int:
    """Return how many of the devices, counted by their zones, are in one of these zones."""
    return sum(number for bits, number in devices.items() if bits & zones)
