"""What stands on a pod about its datasets, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def describe_allocated(allocated: Mapping[str, Any]) -> str:
    """Return `images: gateway on n1, 100 of 100; old is stale`, empty where no dataset is named.

    Allocations of before our policies were there may hold anything; what cannot be read is left out.
    """
    return "; ".join((*_usable(allocated.get("datasets")), *_others(allocated.get("notUsable"))))


def _usable(datasets: object) -> Iterator[str]:
    for name, it in datasets.items() if isinstance(datasets, Mapping) else ():
        if not isinstance(it, Mapping):
            continue
        at = it.get("at")
        where = "+".join(map(str, at)) if isinstance(at, list | tuple) else "?"
        count = it.get("nodes")
        more = f" and {count - 1} more" if isinstance(count, int) and count > 1 else ""
        what = "gateway" if it.get("mode") == "gateway" else "data"
        yield f"{name}: {what} on {where}{more}, {it.get('tier', '?')} of 100"


def _others(states: object) -> Iterator[str]:
    for name, state in states.items() if isinstance(states, Mapping) else ():
        yield f"{name} is {state}"
