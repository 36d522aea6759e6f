"""Vendors' objects to the disks of a NodeInventory: the generation handshake, freshness, faults.

A driver's report counts only if its observedGeneration is the generation of the list of pods that
it was given, and then it counts exactly the pods of that list. The list goes into the inventory
beside the numbers, so that whoever reads it subtracts the pods that the report does not know yet.
A report that lags leaves the last accepted one in force; a stale driver leaves our own books, which
start from the capacity, or from less if the policy wants some safety.

A disk's model is looked up anew each time. Where its entry is faulty, or its source is away, the
disk keeps the function that was published for it, over restarts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from berthmaster.api import names
from berthmaster.api.diskio import DiskDevice, NodeDiskDevice, NodeDiskIOStats
from berthmaster.api.inventory import (
    Bandwidth,
    Disk,
    DiskModel,
    DiskSource,
    NodeInventoryStatus,
)
from berthmaster.api.schema import StatusCondition
from berthmaster.concerns.diskio.models import DiskModels

_LONGEST_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInventory:
    """The disk part of an inventory; `disks` is None where the node has no NodeDiskDevice."""

    disks: tuple[Disk, ...] | None
    source: DiskSource | None
    condition: StatusCondition | None
    free_disk: str | None
    is_report_ignored: bool = False


def build_disks(
    device: NodeDiskDevice | None,
    stats: NodeDiskIOStats | None,
    models: DiskModels,
    *,
    previous: NodeInventoryStatus | None = None,
    is_stale: bool = False,
    stale_safety_percent: int = 0,
) -> DiskInventory:
    """Return a node's disks as of now. Pure: the clock has spoken in `is_stale`."""
    if device is None:
        return DiskInventory(disks=None, source=None, condition=None, free_disk=None)
    report = _accepted(stats) if not is_stale else None
    kept = _previous(previous, stats) if report is None and not is_stale else {}
    before = {disk.id: disk for disk in (previous.disks if previous is not None else None) or ()}
    disks = tuple(
        _disk(it, report, kept.get(it.id), _function(it, models, before.get(it.id)))
        for it in device.devices
    )
    if is_stale and stale_safety_percent:
        disks = tuple(_with_safety(disk, stale_safety_percent) for disk in disks)
    default = find_default(disks)
    accepted = report is not None or any(disk.allocable is not None for disk in disks)
    observed = stats.observed_generation if report is not None and stats is not None else None
    if report is None and kept and previous is not None and previous.sources is not None:
        source = previous.sources.diskio
        observed = source.observed_generation if source is not None else None
    return DiskInventory(
        disks=disks,
        source=DiskSource(
            device_generation=device.generation,
            stats_generation=stats.generation if stats is not None else None,
            observed_generation=observed,
        ),
        condition=_condition(
            device, disks, default, models, stale=stats if is_stale else None, has_report=accepted
        ),
        free_disk=describe_free(default),
        is_report_ignored=report is None and stats is not None and bool(stats.allocable),
    )


def find_default(disks: tuple[Disk, ...]) -> Disk | None:
    """Return the disk that backs emptyDir volumes: the first by id, if there are several."""
    candidates = (disk for disk in disks if disk.type == names.EMPTY_DIR_DISK)
    return min(candidates, key=lambda disk: disk.id, default=None)


def _accepted(stats: NodeDiskIOStats | None) -> NodeDiskIOStats | None:
    if stats is None or stats.observed_generation is None:
        return None
    return stats if stats.observed_generation == stats.generation else None


def _previous(
    previous: NodeInventoryStatus | None, stats: NodeDiskIOStats | None
) -> dict[str, Disk]:
    """Return the disks of the last accepted report, where the present one merely lags behind it."""
    if previous is None or previous.disks is None or stats is None:
        return {}
    source = previous.sources.diskio if previous.sources is not None else None
    if source is None or source.observed_generation is None:
        return {}
    # A younger generation means a list written since; an older one means another object.
    if stats.generation <= source.observed_generation:
        return {}
    return {disk.id: disk for disk in previous.disks}


def _function(device: DiskDevice, models: DiskModels, before: Disk | None) -> DiskModel | None:
    found = models.find(device.vendor, device.model)
    if found is not None or before is None or not models.fault_of(device.vendor, device.model):
        return found
    is_same = (before.vendor, before.model) == (device.vendor, device.model)
    return before.function if is_same else None


def _disk(
    device: DiskDevice,
    report: NodeDiskIOStats | None,
    kept: Disk | None,
    function: DiskModel | None,
) -> Disk:
    allocable: Bandwidth | None = None
    reported: tuple[str, ...] | None = None
    if report is not None and device.id in report.allocable:
        allocable, reported = report.allocable[device.id], report.reserved_pods
    elif kept is not None and kept.capacity == device.capacity:
        allocable, reported = kept.allocable, kept.reported_pods
    return Disk(
        id=device.id,
        type=device.type,
        vendor=device.vendor,
        model=device.model,
        capacity=device.capacity,
        allocable=allocable,
        reported_pods=reported,
        function=function,
    )


def _with_safety(disk: Disk, percent: int) -> Disk:
    """Return a disk of which a share is kept back, as a report that counts no pods."""
    whole, left = disk.capacity, 100 - percent
    allocable = Bandwidth.model_construct(
        read=whole.read * left // 100,
        write=whole.write * left // 100,
        total=whole.total * left // 100,
    )
    return disk.model_copy(update={"allocable": allocable, "reported_pods": ()})


def _condition(
    device: NodeDiskDevice,
    disks: tuple[Disk, ...],
    default: Disk | None,
    models: DiskModels,
    *,
    stale: NodeDiskIOStats | None,
    has_report: bool,
) -> StatusCondition:
    status: Literal["True", "False", "Unknown"]
    status, reason, message = "True", "Reported", "the driver's report counts every reserved pod"
    fault = models.fault_of(default.vendor, default.model) if default is not None else ""
    if default is None:
        status, reason = "False", "NoDefaultDisk"
        message = (
            f"NodeDiskDevice {device.namespace}/{device.name}: no device has type "
            f"{names.EMPTY_DIR_DISK}; no pod that is subject to disk IO fits until one has"
        )
    elif default.function is None:
        status, reason = "False", "ModelNotFound"
        config_map = f"ConfigMap {device.namespace}/{names.DISK_MODELS_CONFIG_MAP}"
        message = f"normalizer {default.model_key} not found: " + (
            f"{config_map}: {fault}"
            if fault
            else f"add readRatio and writeRatio, an expression or a url for vendor "
            f'"{default.vendor}", model "{default.model}" to {config_map}'
        )
    elif stale is not None and stale.heartbeat is not None:
        status, reason = "False", "Stale"
        message = "the driver's heartbeat has stopped; our own books count until it is back"
    elif stale is not None:
        status, reason = "Unknown", "Stale"
        message = (
            "no sign of life of the driver: it has fallen silent, or has nothing new to say, which "
            f"its annotation {names.HEARTBEAT} would tell; our own books count until it writes"
        )
    elif not has_report:
        reason, message = "OwnBooks", "no report yet; capacity less our own books counts"
    if fault and default is not None and default.function is not None:
        message += f"; {fault}; the model from before counts"
    several = sum(disk.type == names.EMPTY_DIR_DISK for disk in disks)
    if several > 1 and default is not None:
        message += f"; {several} devices have type {names.EMPTY_DIR_DISK}, {default.id} is used"
    if device.problems:
        message += "; " + "; ".join(device.problems[:5])
    return StatusCondition(
        type=names.DISK_IO_READY,
        status=status,
        reason=reason,
        # Names and values in it are the driver's, of any length; a longer one would not be stored.
        message=message[:_LONGEST_MESSAGE],
        observed_generation=device.generation,
    )


def describe_free(disk: Disk | None) -> str | None:
    """Return read and write still free for people, such as `80%/95%`."""
    if disk is None:
        return None
    if disk.allocable is None:
        return "unreported"
    pairs = (
        (disk.allocable.read, disk.capacity.read),
        (disk.allocable.write, disk.capacity.write),
    )
    return "/".join(f"{max(0, free) * 100 // total if total else 0}%" for free, total in pairs)
