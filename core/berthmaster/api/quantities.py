"""Kubernetes quantities, exactly: `"1.5Gi"` is 1610612736, never a float.

Grammar (facts 17): a decimal number with an optional suffix `n u m k M G T P E` (powers of 1000),
`Ki Mi Gi Ti Pi Ei` (powers of 1024) or an exponent (`e3`, `E-2`). Kubernetes rounds fractions finer
than nano up; we keep them and round where a whole number is needed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,3})?"
)
_SUFFIXES: dict[str, Fraction] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": Fraction(1000),
    "M": Fraction(1000**2),
    "G": Fraction(1000**3),
    "T": Fraction(1000**4),
    "P": Fraction(1000**5),
    "E": Fraction(1000**6),
    "Ki": Fraction(1024),
    "Mi": Fraction(1024**2),
    "Gi": Fraction(1024**3),
    "Ti": Fraction(1024**4),
    "Pi": Fraction(1024**5),
    "Ei": Fraction(1024**6),
}
_MAX_LENGTH = 64
# An exponent beyond what any hardware has; it also bounds the work on hostile input.
_MAX_EXPONENT = 40

# The largest whole number that the columns hold: a hundred pods of it still fit 64 bits.
LIMIT = 2**53

NANO = 10**9
# More than any node has; sums over a node's pods stay within 64 bits.
MOST_NANOCORES = 10**15


class QuantityError(ValueError):
    """The text is not a Kubernetes quantity; the message says what was found and expected."""


@lru_cache(maxsize=65536)
def _parse_text(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        shown = text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "..."
        raise QuantityError(f'"{shown}" is not a quantity, expected a number such as 500Mi or 2G')
    number = Fraction(match["number"])
    suffix = match["suffix"]
    if not suffix:
        return number
    scale = _SUFFIXES.get(suffix)
    if scale is None:
        exponent = int(suffix[1:])
        if abs(exponent) > _MAX_EXPONENT:
            raise QuantityError(f'"{text}" has an exponent beyond {_MAX_EXPONENT}')
        scale = Fraction(10) ** exponent
    return number * scale


def parse_quantity(value: object) -> Fraction:
    """Return the exact number that a quantity stands for.

    Accepts text and, as Kubernetes does for int-or-string fields, numbers.

    Raises:
        QuantityError: the value is no quantity.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QuantityError(f"{value!r} is not a quantity, expected text such as 500Mi")
    return _parse_text(repr(value))


def parse_size(value: object) -> int:
    """Return a quantity that must not be negative as a whole number, rounded up.

    Numbers above `LIMIT` come back as `LIMIT`: no hardware has that much, so such a request fits
    nowhere and such a capacity is never exhausted.

    Raises:
        QuantityError: no quantity, or a negative one.
    """
    number = parse_quantity(value)
    if number < 0:
        raise QuantityError(f'"{value}" is negative, expected zero or more')
    return min(ceil(number), LIMIT)


def parse_nanocores(value: object) -> int:
    """Return a CPU quantity in billionths of a core, rounded up, at most `MOST_NANOCORES`.

    Raises:
        QuantityError: no quantity, or a negative one.
    """
    # Every pod of the cluster is asked for its CPUs, and few texts are.
    return _text_nanocores(value) if isinstance(value, str) else _read_nanocores(value)


@lru_cache(maxsize=4096)
def _text_nanocores(text: str) -> int:
    return _read_nanocores(text)


def _read_nanocores(value: object) -> int:
    number = parse_quantity(value)
    if number < 0:
        raise QuantityError(f'"{value}" is negative, expected zero or more')
    return min(ceil(number * NANO), MOST_NANOCORES)


def format_nanocores(nanocores: int) -> str:
    """Return a CPU quantity: 1500000000 is `1500m`, 250 is `250n`."""
    if nanocores % NANO == 0:
        return str(nanocores // NANO)
    return f"{nanocores // 10**6}m" if nanocores % 10**6 == 0 else f"{nanocores}n"


def ceil(number: Fraction) -> int:
    """Return the smallest whole number that is not below `number`."""
    return -(-number.numerator // number.denominator)


def format_size(number: int) -> str:
    """Return the shortest exact quantity: 1048576 is `1Mi`, 1000000 is `1M`, 1500 is `1500`."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki", "E", "P", "T", "G", "M", "k"):
        scale = _SUFFIXES[suffix].numerator
        if number and number % scale == 0:
            return f"{number // scale}{suffix}"
    return str(number)


def describe_size(number: int) -> str:
    """Return a size for people, at most one decimal: 966367641 is `921.6Mi`."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        scale = _SUFFIXES[suffix].numerator
        if abs(number) >= scale:
            tenths = round(number * 10 / scale)
            return f"{tenths // 10}{suffix}" if tenths % 10 == 0 else f"{tenths / 10}{suffix}"
    return str(number)
