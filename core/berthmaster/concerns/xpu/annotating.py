"""The dialects' own annotations, by which an unmodified device plugin finds its pod and its devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api.hami import PodDevice, write_devices
from berthmaster.api.names import (
    CARD_DIALECT,
    CARD_TYPE,
    SHARE_DIALECT,
    SLICE_TYPE,
    WHOLE_CARD_MIB,
)
from berthmaster.api.objects import Pod
from berthmaster.api.xpu_names import XPUNames
from berthmaster.concerns.shape import Placed

_NANO = 10**9


def write_annotations(
    pod: Pod, allocated: Mapping[str, Any], placed: Placed, names: XPUNames
) -> dict[str, str]:
    """Return the annotations of the allocation's dialect."""
    devices = allocated["devices"]
    indices = ",".join(str(it["i"]) for it in devices)
    if allocated["dialect"] == SHARE_DIALECT:
        return {
            names.share_index: indices,
            names.share_pod: str(sum(it["mem"] for it in devices)),
            names.share_device: str(allocated["of"]),
            names.share_assigned: "false",
            names.share_assume_time: str(placed.at_ns),
        }
    seconds = str(placed.at_ns // _NANO)
    annotations = {
        names.node: placed.node,
        names.time: seconds,
        names.bind_phase: "allocating",
        names.bind_time: seconds,
    }
    if allocated["dialect"] == CARD_DIALECT:
        cards = _by_container(pod, devices, CARD_TYPE, is_whole=True)
        return {**annotations, names.cards_allocated: cards, names.card_index: indices}
    slices = _by_container(pod, devices, SLICE_TYPE, is_whole=False)
    return {**annotations, names.slices_to_allocate: slices, names.slices_allocated: slices}


def _by_container(
    pod: Pod, devices: Iterable[Mapping[str, Any]], type_: str, *, is_whole: bool
) -> str:
    count = len(pod.spec.init_containers or ()) + len(pod.spec.containers or ())
    containers: list[list[PodDevice]] = [[] for _ in range(count)]
    for device in devices:
        # A whole card is written so, whatever it has.
        mib = WHOLE_CARD_MIB if is_whole else device["mem"]
        cores = mib * 100 // WHOLE_CARD_MIB
        containers[device.get("c", 0)].append(PodDevice(device["id"], type_, mib, cores))
    return write_devices(containers)
