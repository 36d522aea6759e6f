"""What a pod wishes of its devices beyond their number and memory, by annotation, in every dialect.

berthmaster.io/xpu-models: P800, R200      only devices of these models: `P800` is `P800 OAM`, too
berthmaster.io/xpu-exclusive: "true"       only idle devices, and nobody else gets them beside it
berthmaster.io/xpu-numa: single            a share's devices are of one NUMA node; `prefer`: if possible
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from berthmaster.api.names import XPU_EXCLUSIVE, XPU_MODELS, XPU_NUMA
from berthmaster.concerns.shape import Problem

_MOST_MODELS = 16
_SHOWN_CHARS = 60
_ANSWERS = {"": False, "false": False, "true": True}
_NUMA = ("", "prefer", "single")


class Wishes(NamedTuple):
    """A pod's wishes; `models` are in lower case, none: any will do."""

    models: tuple[str, ...] = ()
    is_exclusive: bool = False
    numa: str = ""

    @property
    def is_single_numa(self) -> bool:
        """Return whether all devices must be of one NUMA node."""
        return self.numa == "single"

    def accept(self, model: str) -> bool:
        """Return whether a device's model is one of those wished for."""
        known = model.lower()
        return any(known == it or known.startswith(f"{it} ") for it in self.models)

    def describe(self) -> str:
        """Return the wishes behind a number of devices, empty for none."""
        words = f" of model {' or '.join(self.models)}" if self.models else ""
        words += ", all of one NUMA node" if self.is_single_numa else ""
        return f"{words}, idle" if self.is_exclusive else words


NONE = Wishes()


def read_wishes(annotations: Mapping[str, str], problems: list[Problem]) -> Wishes:
    """Return a pod's wishes; words that mean nothing become problems."""
    if annotations.keys().isdisjoint((XPU_MODELS, XPU_EXCLUSIVE, XPU_NUMA)):
        return NONE
    models = annotations.get(XPU_MODELS, "").lower().split(",")
    exclusive, numa = annotations.get(XPU_EXCLUSIVE, ""), annotations.get(XPU_NUMA, "")
    if exclusive not in _ANSWERS:
        problems.append(_problem(XPU_EXCLUSIVE, 'expected "true" or "false"', exclusive))
    if numa not in _NUMA:
        problems.append(_problem(XPU_NUMA, "expected single or prefer", numa))
    return Wishes(
        models=tuple(sorted({it.strip() for it in models if it.strip()}))[:_MOST_MODELS],
        is_exclusive=_ANSWERS.get(exclusive, False),
        numa=numa if numa in _NUMA else "",
    )


def _problem(key: str, expected: str, found: str) -> Problem:
    return Problem(
        field=f"metadata.annotations[{key}]",
        message=f'{expected}, found "{found[:_SHOWN_CHARS]}"',
    )
