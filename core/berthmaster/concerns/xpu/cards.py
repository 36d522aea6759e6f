"""Which cards go together on a host of eight: two wings of four, and links across.

    left wing 0 1 2 3     inside a wing every pair is linked
    right     4 5 6 7     across: 0-4, 1-5, 2-6, 3-7

A pod gets cards of one wing if it can, and of the wing where they leave the least behind: odd cards are
used up first, pairs and whole wings are kept. Across the wings only linked cards will do. Sets of cards are
numbers of eight bits, so that all answers fit into tables of 256: `CHOSEN[count][usable]` is the set that a
pod gets, 0 for none. `JOBS[busy]` is the fewest further jobs that fill the host.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

CARDS = 8
_WING = 4
_ALL = 0xFF
# By number of cards: how many usable ones a wing is to have, the best first.
_FILL_LEVELS = {1: (1, 3, 2, 4), 2: (2, 3, 4), 4: (4,)}
_QUADS = ((0, 1, 4, 5), (2, 3, 6, 7), (0, 2, 4, 6), (1, 3, 5, 7), (0, 3, 4, 7), (1, 2, 5, 6))


def choose(count: int, usable: int) -> int:
    """Return the set of cards that a pod of `count` gets of the usable ones, 0 for none."""
    if count == CARDS:
        return _ALL if usable == _ALL else 0
    if count not in _FILL_LEVELS:
        return 0
    cards = _members(usable)
    wings = [it for it in cards if it < _WING], [it for it in cards if it >= _WING]
    for level in _FILL_LEVELS[count]:
        for wing in wings:
            if len(wing) == level:
                return _set_of(wing[:count])
    if count == 2:
        return next((pair for pair in _linked_pairs() if pair & usable == pair), 0)
    return _choose_quad(usable, len(cards)) if count == _WING else 0


def _choose_quad(usable: int, count: int) -> int:
    complete = [quad for quad in map(_set_of, _QUADS) if quad & usable == quad]
    if not complete or count > _WING + 2:
        return 0
    if count < _WING + 2:
        return complete[0]
    return next((it for it in complete if _are_linked(usable & ~it)), complete[-1])


def _are_linked(pair: int) -> bool:
    first, second = _members(pair)
    return first // _WING == second // _WING or second - first == _WING


def _linked_pairs() -> list[int]:
    return [_set_of((card, card + _WING)) for card in range(_WING)]


def _count_jobs(busy: int) -> int:
    """Return the fewest further jobs that fill the host; one of eight cards fills an empty one."""
    if not busy:
        return 1
    wings = (busy & 0x0F).bit_count(), (busy >> _WING).bit_count()
    return sum({_WING: 0, 1: 2}.get(taken, 1) for taken in wings)


def _members(cards: int) -> list[int]:
    return [it for it in range(CARDS) if cards >> it & 1]


def _set_of(cards: Iterable[int]) -> int:
    return sum(1 << it for it in cards)


CHOSEN: dict[int, NDArray[np.uint8]] = {
    count: np.array([choose(count, usable) for usable in range(_ALL + 1)], dtype=np.uint8)
    for count in (1, 2, 4, 8)
}
JOBS: NDArray[np.int64] = np.array([_count_jobs(busy) for busy in range(_ALL + 1)], dtype=np.int64)
# Further jobs after and before, to the score of 6.4 in thirtieths: 0..100.
SCORES = {-1: 100.0, 0: 200 / 3, 1: 100 / 3, 2: 0.0}
