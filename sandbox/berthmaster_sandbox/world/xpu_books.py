"""Who really uses which XPU of one host, and everything that is wrong with that.

Owns the truth: what plugins handed out, not what any annotation says. A pod uses a device from its
Allocate until it has ended. Each fault is kept, also one that passed. Memory is MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from berthmaster_sandbox.world.numa_pods import ContainerView
from berthmaster_sandbox.world.xpu_hosts import Dialect, Host
from berthmaster_sandbox.world.xpu_pods import Devices, PodView, add_up


class Fault(Enum):
    """Name what may be wrong."""

    # More of a device's memory is in use than there is.
    OVERCOMMITTED = "overcommitted"
    # A card is cut into slices of two sizes.
    MIXED_SLICES = "mixed slices"
    # A pod's containers have other devices than its annotations say.
    MISMATCHED = "mismatched"
    # A container asked for XPUs and runs without one.
    UNSERVED = "unserved"
    # A pod got a device that does not work.
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault: where, whose, and the numbers. `pods` are `namespace/name`, sorted."""

    fault: Fault
    node: str
    device: int | None
    pods: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        where = self.node if self.device is None else f"{self.node} device {self.device}"
        return f"{where}: {self.fault.value}: {self.detail} ({', '.join(self.pods)})"


@dataclass(slots=True)
class _Use:
    """What one pod was given: per dialect its containers and the devices of each."""

    pod: PodView
    given: dict[Dialect, list[tuple[ContainerView, Devices]]] = field(default_factory=dict)

    def devices(self, dialect: Dialect) -> Devices:
        pairs = self.given.get(dialect, [])
        return add_up(tuple(container for container, _ in pairs), [it for _, it in pairs])


class Books:
    """What is handed out on one host; `findings` has every fault that ever was."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._uses: dict[str, _Use] = {}
        self.findings: dict[Finding, None] = {}

    def change(self, host: Host) -> None:
        """Let the hardware be another, such as one that broke."""
        self._host = host

    def give(
        self, pod: PodView, container: ContainerView, dialect: Dialect, devices: Mapping[int, int]
    ) -> None:
        """Let a container have devices."""
        use = self._uses.setdefault(pod.uid, _Use(pod))
        use.given.setdefault(dialect, []).append((container, dict(devices)))
        for index in devices:
            known = self._host.device(index)
            if known is not None and not known.is_healthy:
                self._note(Fault.UNHEALTHY, index, [pod], "is not healthy")
        self._note_all(self.audit())

    def is_unserved(self, uid: str) -> bool:
        """Return whether a container of a pod asked and was given nothing."""
        use = self._uses.get(uid)
        return use is not None and any(
            not devices for pairs in use.given.values() for _, devices in pairs
        )

    def complete(self, pod: PodView) -> None:
        """Hold what an admitted pod has against its own annotations."""
        use = self._uses.get(pod.uid)
        for dialect, pairs in use.given.items() if use is not None else ():
            for container, devices in pairs:
                if not devices:
                    self._note(
                        Fault.UNSERVED, None, [pod], f"container {container.name} has no device"
                    )
            planned = pod.planned(dialect, self._host)
            found = use.devices(dialect) if use is not None else {}
            if planned is not None and all(devices for _, devices in pairs) and planned != found:
                self._note(
                    Fault.MISMATCHED, None, [pod], f"annotated {_text(planned)}, has {_text(found)}"
                )

    def release(self, uid: str) -> None:
        """Let a pod have nothing any more; unknown ones are ignored."""
        self._uses.pop(uid, None)

    def used(self, index: int) -> int:
        """Return the MiB of a device that are in use now."""
        return sum(size for it in self._uses.values() for _, size in _on(it, index))

    def devices_of(self, uid: str) -> Devices:
        """Return MiB by device that a pod really has."""
        use = self._uses.get(uid)
        if use is None:
            return {}
        total: Devices = {}
        for dialect in use.given:
            for index, size in use.devices(dialect).items():
                total[index] = total.get(index, 0) + size
        return total

    def audit(self) -> list[Finding]:
        """Add up afresh and return what is wrong with the devices now."""
        found: list[Finding] = []
        for device in self._host.devices:
            users = [it for it in self._uses.values() if _on(it, device.index)]
            used = self.used(device.index)
            if used > device.memory_mib:
                detail = f"{used} of {device.memory_mib} MiB are in use"
                found.append(self._finding(Fault.OVERCOMMITTED, device.index, users, detail))
            slices = {
                size
                for use in users
                for dialect, size in _on(use, device.index)
                if dialect is Dialect.VXPU
            }
            if len(slices) > 1:
                detail = f"slices of {sorted(slices)} MiB"
                found.append(self._finding(Fault.MIXED_SLICES, device.index, users, detail))
        return found

    def _finding(self, fault: Fault, device: int, users: list[_Use], detail: str) -> Finding:
        pods = tuple(sorted(it.pod.key for it in users))
        return Finding(fault=fault, node=self._host.name, device=device, pods=pods, detail=detail)

    def _note(self, fault: Fault, device: int | None, pods: list[PodView], detail: str) -> None:
        keys = tuple(sorted(it.key for it in pods))
        self._note_all(
            [Finding(fault=fault, node=self._host.name, device=device, pods=keys, detail=detail)]
        )

    def _note_all(self, findings: list[Finding]) -> None:
        self.findings.update(dict.fromkeys(findings))


def _on(use: _Use, index: int) -> list[tuple[Dialect, int]]:
    """Return what a pod uses of a device, by dialect."""
    sizes = [(dialect, use.devices(dialect).get(index, 0)) for dialect in use.given]
    return [(dialect, size) for dialect, size in sizes if size]


def _text(devices: Devices) -> str:
    return " + ".join(f"{size} of {index}" for index, size in sorted(devices.items()))
