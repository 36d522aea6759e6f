"""What tells of a node's accelerators, to the devices of a NodeInventory: one device, one entry.

Three may tell of the same devices, matched by index: a NodeXPU (an agent's or an administrator's), the
cards that HAMi's plugin registers on the Node, and the Node's capacity. The first of them that is there
says what the devices are; all of them say what is wrong with them. Capacity knows only a sum, so its
devices are all of one size; where another source promises more than it, the smaller number counts, since
the device plugin gives out no more than that.

    capacity 32256 MiB, 4 devices -> 4 x 8064 MiB       capacity of 8 whole cards -> 8 x 98304 MiB
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from berthmaster.api.hami import MOST_DEVICES, RegisteredCard, read_registration
from berthmaster.api.inventory import XPU, XPUNode, XPUSource
from berthmaster.api.names import WHOLE_CARD_MIB, XPU_READY
from berthmaster.api.node_xpus import NodeXPU
from berthmaster.api.objects import Node, Quantity, Resources
from berthmaster.api.quantities import QuantityError, parse_size
from berthmaster.api.schema import StatusCondition
from berthmaster.api.xpu_names import XPUNames

_INDEX = re.compile(r"0*([0-9]{1,4})")
_HIGHEST_MIB = 2**40
_LONGEST_MESSAGE = 4096
_SHOWN_PROBLEMS = 5
_SHOWN_CHARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDevices:
    """What the Node itself says: amounts by resource, and annotations."""

    name: str
    capacity: Resources
    allocatable: Resources
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, node: Node) -> Self:
        """Return what a Node says."""
        return cls(
            name=node.metadata.name,
            capacity=node.status.capacity or {},
            allocatable=node.status.allocatable or {},
            annotations=node.metadata.annotations or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class XPUInventory:
    """The XPU part of an inventory; all of it is None where nothing tells of devices."""

    xpu: XPUNode | None = None
    xpus: tuple[XPU, ...] | None = None
    source: XPUSource | None = None
    condition: StatusCondition | None = None
    summary: str | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the Node says, read."""

    memory_mib: int
    count: int
    cards: int
    registered: tuple[RegisteredCard, ...]

    @property
    def each_mib(self) -> int:
        """Return the memory of each device by the capacity, 0 where it does not tell."""
        return self.memory_mib // self.count if self.count else 0


def build_xpus(
    node: NodeDevices,
    node_xpu: NodeXPU | None,
    names: XPUNames,
    *,
    unhealthy: Iterable[int] = (),
    is_stale: bool = False,
) -> XPUInventory:
    """Return a node's devices as of now. Pure: the clock has spoken in `is_stale`.

    `unhealthy` are indices that somebody outside of all this lists (`read_unhealthy`).
    """
    problems = list(node_xpu.problems) if node_xpu is not None else []
    told = _read_node(node, names, problems)
    devices, source = _devices(node, node_xpu, told, is_stale=is_stale)
    if not (devices or told.memory_mib or told.cards or told.registered):
        return XPUInventory(problems=tuple(problems))
    total_mib = sum(it.memory_mib for it in devices)
    mismatch = _find_mismatch(total_mib, told) if source != "Capacity" else ""
    is_cut = mismatch and total_mib > told.memory_mib
    listed, cordoned = frozenset(unhealthy), _cordoned(node, node_xpu, names)
    xpus = tuple(
        it.model_copy(
            update={
                "memory_mib": min(it.memory_mib, told.each_mib) if is_cut else it.memory_mib,
                "healthy": it.healthy and it.index not in listed,
                "cordoned": it.cordoned
                or not cordoned.isdisjoint((it.id, it.registered_id, card_id(node.name, it.index))),
            }
        )
        for it in devices
    )
    return XPUInventory(
        xpu=XPUNode(
            source=source,
            topology=node_xpu.spec.topology if node_xpu is not None else "Auto",
            shared=told.memory_mib > 0,
            cards=min(told.cards, MOST_DEVICES),
            sliced=bool(told.registered),
        ),
        xpus=xpus,
        source=XPUSource(generation=node_xpu.generation) if node_xpu is not None else None,
        condition=_condition(
            xpus, told, problems, mismatch=mismatch, is_stale=is_stale and node_xpu is not None
        ),
        summary=describe(xpus),
        problems=tuple(problems),
    )


def card_id(node: str, index: int) -> str:
    """Return the id that HAMi makes up for a whole card."""
    return f"{node}-kunlun-{index}"


def read_unhealthy(text: str) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the indices that a list such as `0, 2` names, and the tokens that are none."""
    found: set[int] = set()
    strange = []
    for token in text.split(","):
        word = token.strip()
        match = _INDEX.fullmatch(word)
        if match is not None:
            found.add(int(match[1]))
        elif word:
            strange.append(f'expected an index, found "{word[:_SHOWN_CHARS]}"; it is ignored')
    return frozenset(found), tuple(strange[:_SHOWN_PROBLEMS])


def describe(xpus: tuple[XPU, ...]) -> str:
    """Return for people how many devices take pods, of how many, and their sizes: `3/4 8064Mi`."""
    usable = sum(it.healthy and not it.cordoned for it in xpus)
    sizes = sorted({it.memory_mib for it in xpus})
    shown = "-".join(f"{it}Mi" for it in (sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    return f"{usable}/{len(xpus)} {shown}".rstrip()


def _read_node(node: NodeDevices, names: XPUNames, problems: list[str]) -> _Told:
    memory_mib = _amount(node.capacity, names.share_memory, _HIGHEST_MIB, problems)
    count = _amount(node.capacity, names.share_count, MOST_DEVICES, problems)
    cards = _amount(node.capacity, names.cards, MOST_DEVICES, problems)
    registered: tuple[RegisteredCard, ...] = ()
    text = node.annotations.get(names.registration)
    if text and not _is_forsaken(node, names):
        registered, faults = read_registration(text)
        problems.extend(f"metadata.annotations[{names.registration}]: {it}" for it in faults)
    return _Told(memory_mib=memory_mib, count=count, cards=cards, registered=registered)


def _is_forsaken(node: NodeDevices, names: XPUNames) -> bool:
    """Return whether HAMi asks for its plugin or has given it up, and the kubelet has none either."""
    handshake = node.annotations.get(names.handshake, "")
    is_asked = handshake.startswith(("Requesting", "Deleted"))
    return is_asked and not _amount(node.allocatable, names.slices, _HIGHEST_MIB, [])


def _amount(resources: Resources, name: str, most: int, problems: list[str]) -> int:
    value: Quantity | None = resources.get(name)
    if value is None:
        return 0
    try:
        amount = parse_size(value)
    except QuantityError as error:
        problems.append(f"status.capacity[{name}]: {error}; taken as 0")
        return 0
    if amount > most:
        problems.append(f"status.capacity[{name}]: {amount} is above {most}, which is taken")
    return min(amount, most)


def _devices(
    node: NodeDevices, node_xpu: NodeXPU | None, told: _Told, *, is_stale: bool
) -> tuple[tuple[XPU, ...], Literal["Capacity", "HAMiAnnotation", "Agent"]]:
    """Return the devices by the first source that tells of some, and that source."""
    is_agents = node_xpu is not None and node_xpu.spec.source == "Agent"
    if node_xpu is not None and is_agents and node_xpu.spec.devices and not is_stale:
        return _from_agent(node_xpu, told), "Agent"
    if told.registered:
        return _with_wishes(_from_registration(node, told), node_xpu), "HAMiAnnotation"
    found = _with_wishes(_from_capacity(node, told), node_xpu)
    if found or told.memory_mib or node_xpu is None:
        return found, "Capacity"
    # Nobody else tells, so what was told last stands.
    return _from_agent(node_xpu, told), node_xpu.spec.source


def _from_agent(node_xpu: NodeXPU, told: _Told) -> tuple[XPU, ...]:
    registered = {it.index: it.id for it in told.registered}
    health = {it.index: it.health for it in node_xpu.status.devices}
    return tuple(
        XPU(
            index=it.index,
            id=it.id,
            registered_id=registered.get(it.index, ""),
            model=it.model,
            memory_mib=it.memory_mib,
            healthy=health.get(it.index, "Healthy") == "Healthy",
            cordoned=it.cordoned,
            numa_node=it.numa_node,
            board=it.serial_number,
        )
        for it in node_xpu.spec.devices
    )


def _from_registration(node: NodeDevices, told: _Told) -> tuple[XPU, ...]:
    found = {
        it.index: XPU(
            index=it.index,
            id=it.id,
            registered_id=it.id,
            model=it.type,
            memory_mib=it.memory_mib,
            healthy=it.is_healthy,
            numa_node=min(it.numa_node, 63),
        )
        for it in told.registered
    }
    # A card that is also served whole is one device; one that is only served whole is made up.
    whole = {it.index: it for it in _from_capacity(node, replace(told, memory_mib=0, count=0))}
    return tuple(it for _, it in sorted({**whole, **found}.items()))


def _from_capacity(node: NodeDevices, told: _Told) -> tuple[XPU, ...]:
    return tuple(
        XPU(
            index=index,
            id=f"{node.name}-xpu-{index}",
            memory_mib=told.each_mib if index < told.count else WHOLE_CARD_MIB,
            numa_node=(0 if index < told.cards // 2 else 1) if index < told.cards else -1,
        )
        for index in range(max(told.count if told.each_mib else 0, told.cards))
    )


def _with_wishes(devices: tuple[XPU, ...], node_xpu: NodeXPU | None) -> tuple[XPU, ...]:
    """Return the devices with what people wish of them, and what was measured of them, by index."""
    if node_xpu is None:
        return devices
    cordoned = {it.index for it in node_xpu.spec.devices if it.cordoned}
    ill = {it.index for it in node_xpu.status.devices if it.health != "Healthy"}
    is_ours = node_xpu.spec.source != "Agent"
    return tuple(
        it.model_copy(
            update={
                "cordoned": it.index in cordoned,
                # What we wrote ourselves says nothing new.
                "healthy": it.healthy and (is_ours or it.index not in ill),
            }
        )
        for it in devices
    )


def _find_mismatch(total_mib: int, told: _Told) -> str:
    """Return in words that the devices' sum is not what the capacity says, empty if it is."""
    if not told.each_mib or abs(total_mib - told.memory_mib) <= told.count:
        return ""
    text = (
        f"the devices have {total_mib} MiB together, the Node's capacity says {told.memory_mib} for "
        f"{told.count}"
    )
    if total_mib < told.memory_mib:
        return f"{text}; the devices count"
    return f"{text}; no device counts for more than {told.each_mib}"


def _cordoned(node: NodeDevices, node_xpu: NodeXPU | None, names: XPUNames) -> frozenset[str]:
    text = node.annotations.get(names.node_cordon, "")
    return frozenset(it.strip() for it in text.split(",") if it.strip())


def _condition(
    xpus: tuple[XPU, ...],
    told: _Told,
    problems: list[str],
    *,
    mismatch: str,
    is_stale: bool,
) -> StatusCondition:
    status: Literal["True", "False"] = "True"
    reason, message = "Known", describe(xpus)
    ill = [str(it.index) for it in xpus if not it.healthy]
    if told.memory_mib and not told.count and not xpus:
        status, reason = "False", "NoDevices"
        message = "the Node's capacity has memory but no number of devices; nothing fits"
    elif not xpus:
        status, reason, message = "False", "NoDevices", "no device is known"
    elif is_stale:
        status, reason = "False", "Stale"
        message = "the agent's heartbeat in NodeXPU has stopped; what device plugins say counts"
    elif len(ill) == len(xpus):
        status, reason, message = "False", "Unhealthy", "no device is healthy"
    elif mismatch:
        reason, message = "InventoryMismatch", mismatch
    elif ill:
        reason, message = "Degraded", f"devices {', '.join(ill)} are not healthy"
    if problems:
        message += "; " + "; ".join(problems[:_SHOWN_PROBLEMS])
    return StatusCondition(
        type=XPU_READY, status=status, reason=reason, message=message[:_LONGEST_MESSAGE]
    )
