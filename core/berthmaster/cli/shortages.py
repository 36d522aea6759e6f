"""How much a node lacks of what is asked, read from the words of its refusal.

Concerns of third parties say it in the same words (`asks 900Mi, free 90Mi`, `asks 10 cpu, best zone
node-1 has 8`), so that nothing but the detail of a reason is needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from berthmaster.api.quantities import QuantityError, parse_quantity
from berthmaster.placement.engine import Verdict

_SHORTAGE = re.compile(
    r"asks ([^,;() ]+)(?: [^,;() ]+)?, (?:free|best zone [^,;() ]+ has) ([^,;() ]+)"
)


def distance(verdict: Verdict) -> Fraction | None:
    """Return the share of what is asked that a node lacks, from the detail of its reason.

    `asks 900Mi, free 90Mi` is 9/10; the largest counts. None where the reason is no shortage.
    """
    detail = verdict.reason.detail if verdict.reason is not None else ""
    found = [(asked - free) / asked for asked, free in _read(detail) if asked > free and asked > 0]
    return max(found, default=None)


def room(verdict: Verdict) -> Fraction:
    """Return how much of one pod a refused node could hold, 0 up to 1; 0 where none is short."""
    lacking = distance(verdict)
    return Fraction(0) if lacking is None else max(Fraction(0), 1 - lacking)


def _read(detail: str) -> Iterator[tuple[Fraction, Fraction]]:
    for asked, free in _SHORTAGE.findall(detail):
        try:
            yield parse_quantity(asked), parse_quantity(free)
        except QuantityError:
            continue
