"""What kubelets and device plugins read of a pod that asks for XPUs.

Owns the annotations of the three dialects as their plugins read them, and the sums over containers.
Memory is MiB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from berthmaster_sandbox.world.numa_pods import ContainerView, Role
from berthmaster_sandbox.world.numa_pods import PodView as NodePodView
from berthmaster_sandbox.world.numa_pods import read_pod as read_node_pod
from berthmaster_sandbox.world.xpu_hosts import RESOURCES, XPUSHARE_MEMORY, Dialect, Host

IDX = "BAIDU_COM_XPU_MEM_IDX"
ASSIGNED = "BAIDU_COM_XPU_MEM_ASSIGNED"
ASSUME_TIME = "BAIDU_COM_XPU_MEM_ASSUME_TIME"
CARDS_IDX = "BAIDU_COM_DEVICE_IDX"
CARDS_ALLOCATED = "hami.io/kunlun-allocated"
VXPU_TO_ALLOCATE = "hami.io/xpu-devices-to-allocate"
VXPU_ALLOCATED = "hami.io/xpu-devices-allocated"
VGPU_NODE = "hami.io/vgpu-node"
VGPU_TIME = "hami.io/vgpu-time"
BIND_PHASE = "hami.io/bind-phase"
BIND_TIME = "hami.io/bind-time"

# From the right, since an id may have colons.
_ENTRY = re.compile(r"([^;]+?),([^,;:]+),(\d+),(\d+):")
_MAX_ANNOTATION_CHARACTERS = 64 * 1024
Devices = dict[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One device of one container in HAMi's encoding."""

    id: str
    type: str
    memory_mib: int
    cores: int

    def __str__(self) -> str:
        return f"{self.id},{self.type},{self.memory_mib},{self.cores}:"


class PodView(msgspec.Struct, frozen=True, kw_only=True):
    """One pod: what every kubelet reads of it, and its annotations."""

    body: NodePodView
    annotations: Mapping[str, str]

    @property
    def uid(self) -> str:
        """Return the pod's uid."""
        return self.body.uid

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return self.body.key

    def amount(self, container: ContainerView, dialect: Dialect) -> int:
        """Return how many fake devices of the dialect's plugin a container asks for."""
        return int(container.limits.get(RESOURCES[dialect], 0))

    def peak(self, dialect: Dialect) -> int:
        """Return the most fake devices that the kubelet holds for the pod at one time."""
        resource = RESOURCES[dialect]
        limits = {it.name: it.limits for it in self.body.containers}
        return int(self.body.effective(limits).get(resource, 0))

    @property
    def total_units(self) -> int:
        """Return the sum that an xpushare plugin compares with: of the app containers alone."""
        apps = [it for it in self.body.containers if it.role is Role.APP]
        return sum(int(it.limits.get(XPUSHARE_MEMORY, 0)) for it in apps)

    def planned(self, dialect: Dialect, host: Host) -> Devices | None:
        """Return MiB by device that the pod's own annotations give it, None where they do not say."""
        if dialect is Dialect.XPUSHARE:
            indices = parse_indices(self.annotations.get(IDX))
            if not indices:
                return None
            return spread(self.total_units * host.memory_unit_mib, indices)
        if dialect is Dialect.KUNLUN:
            indices = parse_indices(self.annotations.get(CARDS_IDX))
            found = [host.device(it) for it in indices]
            return {it.index: it.memory_mib for it in found if it is not None} or None
        return self._planned_slices(host)

    def _planned_slices(self, host: Host) -> Devices | None:
        containers = parse_entries(self.annotations.get(VXPU_ALLOCATED))
        devices: list[Devices] = []
        for entries in containers:
            found = [(host.named(it.id), it.memory_mib) for it in entries]
            devices.append({it.index: size for it, size in found if it is not None})
        return add_up(self.body.containers, devices) or None


def add_up(containers: tuple[ContainerView, ...], devices: list[Devices]) -> Devices:
    """Return MiB by device at the peak, from the devices of each container in turn."""
    staying: Devices = {}
    peak: Devices = {}
    for container, given in zip(containers, devices, strict=False):
        for index, size in given.items():
            if container.role is Role.INIT:
                peak[index] = max(peak.get(index, 0), staying.get(index, 0) + size)
            else:
                staying[index] = staying.get(index, 0) + size
    for index, size in staying.items():
        peak[index] = max(peak.get(index, 0), size)
    return peak


def spread(total_mib: int, indices: list[int]) -> Devices:
    """Return what each device gives: the first `total % n` give one MiB more than the others.

    Worked: 10000 over 2,0,1 is 3334 of device 2 and 3333 of 0 and 1.
    """
    share, rest = divmod(total_mib, len(indices))
    return {index: share + (place < rest) for place, index in enumerate(indices)}


def parse_indices(text: str | None) -> list[int]:
    """Return the indices of a comma list, nothing where it is none."""
    parts = (text or "").split(",")
    is_list = all(it.isascii() and it.isdecimal() and len(it) < len(str(2**31)) for it in parts)
    return [int(it) for it in parts] if is_list else []


def parse_entries(text: str | None) -> list[list[Entry]]:
    """Return the devices per container of HAMi's encoding; what is none is left out."""
    if not text or len(text) > _MAX_ANNOTATION_CHARACTERS:
        return []
    return [
        [
            Entry(id_, type_, int(memory), int(cores))
            for id_, type_, memory, cores in _ENTRY.findall(part)
        ]
        for part in text.removesuffix(";").split(";")
    ]


def encode_entries(containers: list[list[Entry]]) -> str:
    """Return HAMi's encoding."""
    return "".join("".join(map(str, entries)) + ";" for entries in containers)


def decode_pod(raw: bytes) -> PodView:
    """Read a pod; raises `msgspec.DecodeError` or `QuantityError` on what is none."""
    return read_pod(msgspec.json.decode(raw, type=dict[str, Any]))


def read_pod(manifest: Mapping[str, Any]) -> PodView:
    """Read a pod as JSON data; raises `msgspec.ValidationError` or `QuantityError`."""
    annotations = (manifest.get("metadata") or {}).get("annotations") or {}
    return PodView(body=read_node_pod(manifest), annotations=dict(annotations))
