"""The last thing made of the same objects, so that it is not made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """Hold one thing and what it was made of.

    Sources are told apart by identity, which costs nothing: what watches show is never changed in place.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], Made] | None = None

    def of(self, sources: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """Return what was made of these sources last, or make it."""
        kept = self._kept
        if kept is None or not _are_same(sources, kept[0]):
            kept = self._kept = (sources, make())
        return kept[1]


def _are_same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    return len(some) == len(others) and all(
        one is other for one, other in zip(some, others, strict=True)
    )
