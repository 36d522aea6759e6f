"""A simulated host with XPUs: its hardware, the dialects of its device plugins, and how they behave.

Owns what the plugins advertise on the Node. Memory is MiB, times are seconds. One host may have the
plugins of several dialects over the same devices. `make_host` is the short way to one:

    make_host("xpu-a")                                        4 devices of 8064 MiB, two on a board
    make_host("xpu-b", sizes=(8064, 8064, 16128))             of unequal size
    make_host("xpu-c", dialects=(Dialect.KUNLUN, Dialect.VXPU), devices=8)
    make_host("xpu-d", habits=Habits(allocate_s=2, crash_probability=0.1))
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

XPUSHARE_MEMORY = "baidu.com/xpu-mem"
XPUSHARE_COUNT = "baidu.com/xpu-count"
KUNLUN_CARDS = "kunlunxin.com/xpu"
VXPU_CARDS = "kunlunxin.com/vxpu"
VXPU_MEMORY = "kunlunxin.com/vxpu-memory"
REGISTER = "hami.io/node-register-xpu"
HANDSHAKE = "hami.io/node-handshake-xpu"

K200_MIB = 8064
P800_MIB = 98304
# A P800 card is cut into four at the most.
SLICES_PER_CARD = 4
FULL_CORES = 100


class Dialect(Enum):
    """Name the three ways of asking for XPUs."""

    XPUSHARE = "xpushare"
    KUNLUN = "hami-kunlun"
    VXPU = "hami-vxpu"


class RegisterForm(Enum):
    """Say how a vXPU plugin writes its devices onto the Node."""

    JSON = "json"
    TEXT = "text"
    TEXT_WITH_INDEX = "text-with-index"


# The resource for which the kubelet calls the dialect's plugin.
RESOURCES: Mapping[Dialect, str] = {
    Dialect.XPUSHARE: XPUSHARE_MEMORY,
    Dialect.KUNLUN: KUNLUN_CARDS,
    Dialect.VXPU: VXPU_CARDS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Xpu:
    """One device; `id` is what a vXPU plugin registers it under, `board` its serial number."""

    index: int
    memory_mib: int
    id: str
    board: str = ""
    numa_node: int = 0
    is_healthy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the kubelet and the plugins of one host behave; `*_jitter_s` is the most that is added.

    `pickup_s` passes between a binding and the kubelet's knowing of it, `allocate_s` within an Allocate,
    `verdict_s` until a verdict is written, `start_s` between an admission and Running, `stop_s` between
    a deletion and the end. With `crash_probability` a plugin dies in an Allocate, before or after it has
    written to the pod, and is back after `restart_s` without any memory.
    """

    pickup_s: float = 0.0
    pickup_jitter_s: float = 0.0
    allocate_s: float = 0.0
    allocate_jitter_s: float = 0.0
    verdict_s: float = 0.0
    verdict_jitter_s: float = 0.0
    start_s: float = 0.0
    stop_s: float = 0.0
    crash_probability: float = 0.0
    restart_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Host:
    """A node's devices and plugins.

    `memory_unit_mib` is what one of the kubelet's fake devices stands for. With `counts_first_size` the
    xpushare plugin takes the first device's size for every device, as its ancestor does.

    Raises:
        ValueError: no such host.
    """

    name: str
    devices: tuple[Xpu, ...]
    dialects: tuple[Dialect, ...] = (Dialect.XPUSHARE,)
    habits: Habits = field(default_factory=Habits)
    memory_unit_mib: int = 1
    counts_first_size: bool = False
    register_form: RegisterForm = RegisterForm.JSON

    def __post_init__(self) -> None:
        if len({it.index for it in self.devices}) != len(self.devices):
            raise ValueError(f"{self.name}: two devices have the same index")
        if len({it.id for it in self.devices}) != len(self.devices):
            raise ValueError(f"{self.name}: two devices have the same id")
        if not self.dialects or len(set(self.dialects)) != len(self.dialects):
            raise ValueError(f"{self.name}: expected each dialect once, found {self.dialects}")

    def device(self, index: int) -> Xpu | None:
        """Return the device of an index."""
        return next((it for it in self.devices if it.index == index), None)

    def named(self, id_: str) -> Xpu | None:
        """Return the device that is registered under an id."""
        return next((it for it in self.devices if it.id == id_), None)

    def units(self, dialect: Dialect, *, healthy_only: bool = False) -> int:
        """Return how many fake devices the dialect's plugin has for the kubelet."""
        devices = [it for it in self.devices if it.is_healthy or not healthy_only]
        if dialect is Dialect.KUNLUN:
            return len(devices)
        if dialect is Dialect.VXPU:
            return len(devices) * SLICES_PER_CARD
        first = self.devices[0].memory_mib if self.devices else 0
        sizes = [first if self.counts_first_size else it.memory_mib for it in devices]
        return sum(size // self.memory_unit_mib for size in sizes)

    def capacity(self) -> dict[str, str]:
        """Return what the plugins add to the Node's `status.capacity`."""
        total = {RESOURCES[it]: str(self.units(it)) for it in self.dialects}
        if Dialect.XPUSHARE in self.dialects:
            total[XPUSHARE_COUNT] = str(len(self.devices))
        return total

    def allocatable(self, down: Sequence[Dialect] = ()) -> dict[str, str]:
        """Return what they add to `status.allocatable`; nothing of a plugin that is down is."""
        total = {
            RESOURCES[it]: "0" if it in down else str(self.units(it, healthy_only=True))
            for it in self.dialects
        }
        if Dialect.XPUSHARE in self.dialects:
            total[XPUSHARE_COUNT] = str(len(self.devices))
        return total

    def annotations(self, now_s: float) -> dict[str, str]:
        """Return what the plugins write onto the Node itself."""
        if Dialect.VXPU not in self.dialects:
            return {}
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_s))
        return {REGISTER: self._register(), HANDSHAKE: f"Reported {stamp} +0000 UTC"}

    def _register(self) -> str:
        if self.register_form is RegisterForm.JSON:
            return json.dumps([_registered(it) for it in self.devices], separators=(",", ":"))
        has_index = self.register_form is RegisterForm.TEXT_WITH_INDEX
        return "".join(
            f"{it.id},{SLICES_PER_CARD},{it.memory_mib},{FULL_CORES},XPU,{it.numa_node},"
            f"{str(it.is_healthy).lower()}{f',{it.index},' if has_index else ''}:"
            for it in self.devices
        )


def _registered(device: Xpu) -> dict[str, Any]:
    """Return a device as Go's `omitempty` writes it: without zeros and without false."""
    whole = {
        "id": device.id,
        "index": device.index,
        "count": SLICES_PER_CARD,
        "devmem": device.memory_mib,
        "devcore": FULL_CORES,
        "type": "XPU",
        "numa": device.numa_node,
        "health": device.is_healthy,
    }
    return {key: value for key, value in whole.items() if value}


def make_host(  # noqa: PLR0913 - each has a default
    name: str,
    *,
    devices: int = 4,
    memory_mib: int | None = None,
    sizes: Sequence[int] | None = None,
    dialects: Sequence[Dialect] = (Dialect.XPUSHARE,),
    per_board: int = 2,
    numa_nodes: int = 2,
    unhealthy: Sequence[int] = (),
    habits: Habits | None = None,
    **further: Any,
) -> Host:
    """Return a host of `devices` equal devices, or of devices of these `sizes`.

    Neighbours share a board, and a NUMA node has the lower indices. Without a size they are K200, or
    P800 where HAMi's dialects are spoken. `further` are fields of `Host`.
    """
    usual = K200_MIB if tuple(dialects) == (Dialect.XPUSHARE,) else P800_MIB
    chosen = tuple(sizes) if sizes is not None else (memory_mib or usual,) * devices
    count = len(chosen)
    return Host(
        name=name,
        devices=tuple(
            Xpu(
                index=index,
                memory_mib=size,
                id=f"{name}-board{index // per_board}-{index % per_board}",
                board=f"{name}-board{index // per_board}",
                numa_node=index * numa_nodes // count,
                is_healthy=index not in unhealthy,
            )
            for index, size in enumerate(chosen)
        ),
        dialects=tuple(dialects),
        habits=habits or Habits(),
        **further,
    )
