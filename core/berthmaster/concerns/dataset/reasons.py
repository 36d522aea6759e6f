"""Codes of the dataset concern and words for them, upstream's where it has any."""

from __future__ import annotations

from collections.abc import Sequence

from berthmaster.concerns.shape import Reason

NOT_HERE = 1
AWAITED = 2

_WORDS = "Node does not have cache deployment for pod"
_SHOWN = 3


def not_here(datasets: Sequence[str], common: Sequence[str]) -> Reason:
    """Return upstream's words, with the datasets that are not on the node.

    `common` are the nodes that have the data of all datasets of the pod that have no gateway.
    """
    if common:
        where = f"the data are on {_some(common)}"
    else:
        where = (
            "no node has all of its data; the annotation berthmaster.io/dataset: prefer lets it run "
            "elsewhere, if its volumes do"
        )
    return Reason(text=f"{_WORDS}: {_some(datasets)}", group=_WORDS, detail=where)


def awaited(datasets: Sequence[str]) -> Reason:
    """Return the words for datasets whose cache is still being built."""
    words = f"the cache of {_some(datasets)} is still being built"
    return Reason(
        text=words, group=words, detail="it is waited for as long as the policy's dataset.hold says"
    )


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown
