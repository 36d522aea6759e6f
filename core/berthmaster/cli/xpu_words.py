"""What stands on a pod about its accelerators, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_allocated(allocated: Mapping[str, Any]) -> str:
    """Return `device 0: 2500 MiB, device 1: 2500 MiB (xpushare)`, empty where no device is named.

    Allocations of before our policies were there may hold anything; what cannot be read is left out.
    """
    devices = allocated.get("devices")
    named = [
        f"device {it.get('i')}: {it.get('mem')} MiB"
        for it in (devices if isinstance(devices, list | tuple) else ())
        if isinstance(it, Mapping)
    ]
    dialect = allocated.get("dialect")
    return ", ".join(named) + (f" ({dialect})" if named and dialect else "")
