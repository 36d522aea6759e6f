"""The words that commands share: concerns by their names for people, counts, scores, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api.quantities import describe_size
from berthmaster.cli import dataset_words, numa_zones, xpu_words

_TITLES = {
    "diskio": "disk IO",
    "resources": "CPU and memory",
    "numa": "NUMA",
    "xpu": "XPU",
    "dataset": "data",
    "power": "power",
    "podspread": "spread",
}
# Fields of allocations that hold bytes per second.
_BYTES_PER_S = frozenset({"read", "write", "rbps", "wbps"})
# kube-scheduler's words for what a pod itself rules out, shorter for a sentence.
_BRIEF = {
    "node(s) didn't match Pod's node affinity/selector": "outside the pod's own selector",
    "node(s) had untolerated taint(s)": "tainted",
    "node(s) were unschedulable": "cordoned",
}


def title(concern: str) -> str:
    """Return a concern's name for people; a third party's is its own."""
    return _TITLES.get(concern, concern)


def brief(reason: str) -> str:
    """Return a refusal's words as a sentence has them."""
    return _BRIEF.get(reason, reason)


def number(score: float) -> str:
    """Return a score without needless digits: 97.0 is `97`, 62.3333 is `62.3`."""
    return f"{score:.1f}".removesuffix(".0")


def nodes(count: int) -> str:
    """Return `1 node`, `2 nodes`."""
    return f"{count} node" if count == 1 else f"{count} nodes"


def amount(value: float, unit: str) -> str | None:
    """Return an amount of bytes, or of bytes per second, in words; None of another unit."""
    match unit:
        case "bytes_per_second":
            return f"{describe_size(round(value))}/s"
        case "bytes":
            return describe_size(round(value))
        case _:
            return None


def join(parts: Iterable[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def allocated(values: Mapping[str, Any]) -> str:
    """Return what a concern allocated as `device fakeDevice, read 900Mi/s, write 900Mi/s`."""
    for describe in (
        numa_zones.describe_allocated,
        dataset_words.describe_allocated,
        xpu_words.describe_allocated,
    ):
        if named := describe(values):
            return named
    return ", ".join(f"{name} {_value(name, value)}" for name, value in values.items())


def _value(name: str, value: object) -> str:
    if name in _BYTES_PER_S and isinstance(value, int) and not isinstance(value, bool):
        return f"{describe_size(value)}/s"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return str(value)
