"""What a pod has of its node's accelerators, by what stands on it.

What we gave is told by our allocation. Others' placements, and those from before we were installed,
are told by the dialects' own annotations. A bound pod that asks for devices and tells of none is
pending: its device plugin will find it one, or leave it without.

Which annotations those are depends on the cluster's names, which `read_holding` does not know; so a
holding is what a pod says, and `resolve` what that means on a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import msgspec

from berthmaster.api.hami import PodDevice, read_devices
from berthmaster.api.inventory import XPU
from berthmaster.api.names import (
    CARD_DIALECT,
    GPUSHARE_ALLOCATION,
    GROUP,
    SHARE_DIALECT,
    SLICE_DIALECT,
    WHOLE_CARD_MIB,
)
from berthmaster.api.objects import Pod
from berthmaster.api.xpu_names import DEFAULT_NAMES, XPUNames
from berthmaster.concerns.lifetimes import add, most_at_once
from berthmaster.concerns.xpu.inventory import card_id
from berthmaster.concerns.xpu.request import Asks, ContainerUse, read_asks, read_containers

_INDEX = re.compile(r"[0-9]{1,4}")
_MIB = re.compile(r"[0-9]{1,12}")
_LONGEST_ANNOTATION = 4096
_MOST_ANNOTATIONS = 64
_OTHERS = (f"{GROUP}/", "kubectl.kubernetes.io/")
_ALLOCATED = ("true", "success", "failed")
# More than any device has; what all devices of a node come to stays within 64 bits.
_HIGHEST_MIB = 2**40
_BY_PHASE = "hami"

_decode = msgspec.json.Decoder(dict[str, dict[str, int]]).decode


class Share(NamedTuple):
    """MiB of the device of an index or an id; None is all of it. `position` is the container's."""

    device: int | str
    mib: int | None
    position: int = 0


class XPUHolding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a pod says of its devices. `shares` are ours, None where we did not place it."""

    containers: tuple[ContainerUse, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    dialect: str = ""
    shares: tuple[Share, ...] | None = None
    is_running: bool = False


class Held(NamedTuple):
    """What a holding means on a node: MiB and entries by device, and MiB of no known device.

    `waits_for` is what a device plugin could mistake the pod for while it has not been served: see
    `find_mistakable`.
    """

    mib: tuple[tuple[int, int], ...]
    entries: tuple[tuple[int, int], ...]
    pending_mib: int
    waits_for: tuple[str, int] | None
    dialect: str


class Devices(NamedTuple):
    """A node's devices as far as holdings refer to them: sizes by index, indices by id."""

    node: str
    sizes: Mapping[int, int]
    indices: Mapping[str, int]


def list_devices(node: str, xpus: Iterable[XPU]) -> Devices:
    """Return a node's devices, each by all ids that anybody knows it by."""
    sizes: dict[int, int] = {}
    indices: dict[str, int] = {}
    for xpu in xpus:
        sizes[xpu.index] = xpu.memory_mib
        for id_ in (card_id(node, xpu.index), xpu.registered_id, xpu.id):
            if id_:
                indices[id_] = xpu.index
    return Devices(node, sizes, indices)


NOTHING = Held((), (), 0, None, "")


def read_holding(pod: Pod, allocated: Mapping[str, Any] | None) -> XPUHolding | None:
    """Return what a pod says of devices, None for nothing; never raises."""
    extended = _extended(pod)
    annotations = pod.annotations
    if not allocated and not extended and DEFAULT_NAMES.placed_keys.isdisjoint(annotations):
        return None
    shares, dialect = _read_allocated(allocated) if allocated else (None, "")
    return XPUHolding(
        containers=read_containers(pod, extended),
        annotations=tuple(sorted(_kept(annotations)))[:_MOST_ANNOTATIONS],
        dialect=dialect,
        shares=shares,
        is_running=pod.status.phase == "Running",
    )


def resolve(holding: XPUHolding, names: XPUNames, devices: Devices) -> Held:
    """Return what a holding means on a node with these devices."""
    asks = read_asks(holding.containers, names, [])
    annotations = dict(holding.annotations)
    if holding.shares is not None:
        dialect, shares = holding.dialect, holding.shares
    else:
        dialect, shares = _find_shares(annotations, asks, names, devices.node)
    if not shares:
        return Held((), (), _asked_mib(asks), None, dialect)
    inits = {number for number, it in enumerate(holding.containers) if it.is_init}
    return _collapse(
        shares,
        inits,
        devices,
        waits_for=_waits_for(holding, annotations, dialect, names, asks.total_mib),
    )._replace(dialect=dialect)


def _collapse(
    shares: Iterable[Share],
    inits: set[int],
    devices: Devices,
    *,
    waits_for: tuple[str, int] | None,
) -> Held:
    """Sum up by device what is used of it at the most, as containers come and go."""
    by_container: dict[int, dict[int, int]] = {}
    entries: dict[int, int] = {}
    pending = 0
    for share in shares:
        index = devices.indices.get(share.device) if isinstance(share.device, str) else share.device
        if index is None or index not in devices.sizes:
            pending += WHOLE_CARD_MIB if share.mib is None else share.mib
            continue
        mib = devices.sizes[index] if share.mib is None else share.mib
        entries[index] = entries.get(index, 0) + 1
        add(by_container.setdefault(share.position, {}), {index: mib})
    most, _ = most_at_once((by_container[it], it not in inits) for it in sorted(by_container))
    return Held(tuple(sorted(most.items())), tuple(sorted(entries.items())), pending, waits_for, "")


def _find_shares(
    annotations: Mapping[str, str], asks: Asks, names: XPUNames, node: str
) -> tuple[str, tuple[Share, ...]]:
    """Return the dialect and the devices that the dialects' own annotations tell."""
    shares = _read_shares(annotations, asks, names)
    if shares:
        return SHARE_DIALECT, shares
    # A pod that was sent elsewhere than it is bound has nothing of what was meant for it there.
    if annotations.get(names.node, node) == node:
        cards = _read_devices(annotations.get(names.cards_allocated, ""), is_whole=True)
        cards = cards or tuple(
            Share(index, None) for index in _read_indices(annotations.get(names.card_index, ""))
        )
        if cards:
            return CARD_DIALECT, cards
        for key in (names.slices_allocated, names.slices_to_allocate):
            slices = _read_devices(annotations.get(key, ""), is_whole=False)
            if slices:
                return SLICE_DIALECT, slices
    return next(iter(sorted(asks.dialects)), ""), ()


def _read_shares(annotations: Mapping[str, str], asks: Asks, names: XPUNames) -> tuple[Share, ...]:
    by_container = annotations.get(GPUSHARE_ALLOCATION)
    if by_container:
        try:
            return tuple(
                Share(int(index), min(max(0, mib), _HIGHEST_MIB))
                for amounts in _decode(by_container).values()
                for index, mib in amounts.items()
                if _INDEX.fullmatch(index)
            )
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass
    indices = _read_indices(annotations.get(names.share_index, ""))
    if not indices:
        return ()
    text = annotations.get(names.share_pod, "")
    total = int(text) if _MIB.fullmatch(text) else asks.total_mib
    return split_share(indices, total)


def split_share(indices: Iterable[int], total_mib: int) -> tuple[Share, ...]:
    """Return a total over devices in the order written: the first carry the remainder."""
    ordered = tuple(indices)
    each, more = divmod(total_mib, len(ordered))
    return tuple(Share(index, each + (at < more)) for at, index in enumerate(ordered))


def _read_indices(text: str) -> tuple[int, ...]:
    words = [it.strip() for it in text.split(",")]
    if not all(_INDEX.fullmatch(it) for it in words) or len(set(words)) < len(words):
        return ()
    return tuple(map(int, words))


def _read_devices(text: str, *, is_whole: bool) -> tuple[Share, ...]:
    containers: tuple[tuple[PodDevice, ...], ...] = (read_devices(text) or ()) if text else ()
    return tuple(
        Share(device.id, None if is_whole else device.mib, position)
        for position, of_container in enumerate(containers)
        for device in of_container
    )


def _waits_for(
    holding: XPUHolding,
    annotations: Mapping[str, str],
    dialect: str,
    names: XPUNames,
    total_mib: int,
) -> tuple[str, int] | None:
    if holding.is_running:
        return None
    if dialect == SHARE_DIALECT:
        is_served = annotations.get(names.share_assigned) in _ALLOCATED
        is_known = holding.shares is not None or names.share_assume_time in annotations
        return find_mistakable(dialect, total_mib) if is_known and not is_served else None
    is_served = annotations.get(names.bind_phase) in _ALLOCATED
    is_known = holding.shares is not None or names.bind_phase in annotations
    return find_mistakable(dialect, 0) if is_known and not is_served else None


def find_mistakable(dialect: str, total_mib: int) -> tuple[str, int]:
    """Return what a device plugin may mistake a pod for: one with the same.

    A share's plugin goes by the size. HAMi's go by the phase that they write, whatever the size, and
    those for cards and for slices write the same one.
    """
    return (dialect, total_mib) if dialect == SHARE_DIALECT else (_BY_PHASE, 0)


def _asked_mib(asks: Asks) -> int:
    cards = (
        ask.cards * (ask.mib or WHOLE_CARD_MIB)
        for ask in (*asks.cards, *asks.slices)
        if not ask.is_init
    )
    return asks.total_mib + sum(cards)


def _read_allocated(allocated: Mapping[str, Any]) -> tuple[tuple[Share, ...] | None, str]:
    devices, dialect = allocated.get("devices"), allocated.get("dialect")
    if not isinstance(devices, list) or not isinstance(dialect, str):
        return None, ""
    shares = []
    for device in devices:
        # An allocation that was forged before our policies were there may hold anything.
        if not isinstance(device, Mapping):
            return None, ""
        index, mib, position = device.get("i"), device.get("mem"), device.get("c", 0)
        if not (_is_amount(index) and _is_amount(mib) and _is_amount(position)):
            return None, ""
        is_whole = dialect == CARD_DIALECT or device.get("x") is True
        shares.append(Share(index, None if is_whole else min(mib, _HIGHEST_MIB), position))
    return tuple(shares), dialect


def _is_amount(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _extended(pod: Pod) -> frozenset[str]:
    """Return the device resources that the pod names, whosever they are."""
    found: set[str] = set()
    for container in (*(pod.spec.init_containers or ()), *(pod.spec.containers or ())):
        asked = container.resources
        if asked is None:
            continue
        for side in (asked.limits, asked.requests):
            for name in side or ():
                if "/" in name:
                    found.add(name)
    return frozenset(found)


def _kept(annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in annotations.items():
        if len(value) <= _LONGEST_ANNOTATION and not key.startswith(_OTHERS):
            yield key, value
