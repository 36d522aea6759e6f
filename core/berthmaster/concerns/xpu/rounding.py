"""The memory of slices, written back onto a new pod as what it will get.

A card is cut into slices of three sizes, so a pod that asks 30000 MiB gets 49152. Its limits say so from its
creation on, as users of HAMi know it, and so does what kube-scheduler and quotas count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from berthmaster.api.json_pointer import escape
from berthmaster.api.quantities import QuantityError, parse_quantity
from berthmaster.api.xpu_names import XPUNames
from berthmaster.concerns.xpu.request import round_to_slice

_SIDES = ("limits", "requests")


def round_slices(raw: Mapping[str, Any], names: XPUNames) -> list[dict[str, Any]]:
    """Return the JSON Patch operations that write sizes of slices where others stand; never raises."""
    spec = raw.get("spec") or {}
    return [
        operation
        for kind in ("initContainers", "containers")
        for number, container in enumerate(spec.get(kind) or ())
        for operation in _round(container, f"/spec/{kind}/{number}/resources", names)
    ]


def _round(container: Mapping[str, Any], at: str, names: XPUNames) -> Iterator[dict[str, Any]]:
    resources = container.get("resources") or {}
    sides = {side: resources.get(side) or {} for side in _SIDES}
    if all(names.slices not in amounts for amounts in sides.values()):
        return
    asked = next(
        (it[names.slice_memory] for it in sides.values() if names.slice_memory in it), None
    )
    size = _size(asked)
    if not size:
        return
    for side, amounts in sides.items():
        if names.slice_memory in amounts and str(amounts[names.slice_memory]) != size:
            path = f"{at}/{side}/{escape(names.slice_memory)}"
            yield {"op": "add", "path": path, "value": size}


def _size(asked: object) -> str:
    """Return the slice that an amount gets, empty for what is none; that is refused elsewhere."""
    try:
        mib = parse_quantity(asked)
    except QuantityError:
        return ""
    return str(round_to_slice(mib.numerator)) if mib >= 0 and mib.denominator == 1 else ""
