"""In which zone each container lies, where the updater says so: its placement attributes, read.

    topology: npv0v001::ve=leb89::cc=<containers>::nn=<zones>::bn=<busiest zone>
    zone:     positions of its containers, first absolute, then the distance to the one before

Containers are named by their places in the ascending order of their hashes, XXH64 of namespace, pod and
name with a NUL between them. The busiest zone has no positions: all containers that no other zone names lie
there. So the meaning hangs on both sides knowing the same containers. Whatever does not agree makes all of it
unknown; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from berthmaster.concerns.numa.fingerprint import xxh64

# Namespace, pod, container.
ContainerKey = tuple[str, str, str]

_PREFIX = "npv0v001::"
_SEPARATOR = "::"
_ENCODING = "leb89"
_NUMBERS = ("cc", "nn", "bn")
_NUMBER = re.compile(r"[0-9]{1,9}")
# What JSON needs not escape: 64 digits that end a number, then 25 that continue it.
_ALPHABET = "".join(chr(it) for it in range(0x21, 0x7F) if chr(it) not in '"&<>\\')
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_TERMINALS = 64
_CONTINUATIONS = len(_ALPHABET) - _TERMINALS


def decode_placement(
    metadata: str, vectors: Mapping[int, str], containers: Iterable[ContainerKey]
) -> Mapping[ContainerKey, int] | None:
    """Return each container's zone; None where attributes and containers do not agree.

    `vectors` are the zones' attributes by zone id, `containers` those that hold something of a zone.
    """
    header = _read_metadata(metadata)
    by_hash = {_hash(it): it for it in containers}
    if header is None or len(by_hash) != header["cc"]:
        return None
    zones, busiest = header["nn"], header["bn"]
    told = {zone: text for zone, text in vectors.items() if text}
    if busiest >= zones or busiest in told or len(told) >= zones:
        return None
    if any(not 0 <= zone < zones for zone in told):
        return None
    ordered = [by_hash[it] for it in sorted(by_hash)]
    found: dict[ContainerKey, int] = {}
    for zone, text in told.items():
        for position in _positions(text, len(ordered)):
            if position is None or ordered[position] in found:
                return None
            found[ordered[position]] = zone
    return {it: found.get(it, busiest) for it in ordered}


def _read_metadata(text: str) -> Mapping[str, int] | None:
    """Return the three numbers, None where one is missing or anything else is there."""
    if not text.startswith(_PREFIX):
        return None
    fields = {}
    for part in text.removeprefix(_PREFIX).split(_SEPARATOR):
        name, _, value = part.partition("=")
        fields[name] = value
    if fields.pop("ve", "") != _ENCODING or fields.keys() != set(_NUMBERS):
        return None
    if not all(_NUMBER.fullmatch(it) for it in fields.values()):
        return None
    return {name: int(value) for name, value in fields.items()}


def _positions(text: str, count: int) -> Iterator[int | None]:
    """Yield the positions in a vector; None, and nothing after it, where it is not understood."""
    position = 0
    for number in _numbers(text, count):
        position += number if number is not None else count
        if position >= count:
            yield None
            return
        yield position


def _numbers(text: str, most: int) -> Iterator[int | None]:
    continued: int | None = None
    for letter in text:
        value = _VALUES.get(letter)
        if value is None or (continued or 0) > most:
            yield None
            return
        if value >= _TERMINALS:
            continued = (continued or 0) * _CONTINUATIONS + value - _TERMINALS
        else:
            yield value if continued is None else _TERMINALS * (1 + continued) + value
            continued = None
    if continued is not None:
        yield None


# Reckoned anew for every report of a node.
@lru_cache(maxsize=65536)
def _hash(container: ContainerKey) -> int:
    return xxh64("\0".join(container).encode(errors="replace"))
