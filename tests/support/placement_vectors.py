"""Placement attributes as an updater writes them, from its rules and independent of who reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from berthmaster.concerns.numa.fingerprint import xxh64

METADATA = "topology.node.k8s.io/numaplacement-metadata"
VECTOR = "topology.node.k8s.io/numaplacement-vector"
# Namespace, pod, container.
Key = tuple[str, str, str]


def digits(number: int) -> str:
    """A number as the updater writes it, from the rules: a last digit of base 64, others of base 25."""
    letters = [chr(it) for it in range(33, 127) if chr(it) not in ('"', "&", "<", ">", "\\")]
    if number < 64:
        return letters[number]
    rest, last = divmod(number - 64, 64)
    text = letters[last]
    while True:
        rest, digit = divmod(rest, 25)
        text = letters[64 + digit] + text
        if not rest:
            return text


def encode(zone_of: Mapping[Key, int], zones: int) -> tuple[str, dict[int, str]]:
    """What an updater publishes about containers in zones."""
    hashes = sorted((xxh64("\0".join(it).encode()), zone) for it, zone in zone_of.items())
    counts = Counter(zone_of.values())
    busiest = min(counts, key=lambda it: (-counts[it], it)) if counts else 0
    vectors = {}
    for zone in set(counts) - {busiest}:
        places = [place for place, (_, lies_in) in enumerate(hashes) if lies_in == zone]
        steps = [places[0], *(b - a for a, b in pairwise(places))]
        vectors[zone] = "".join(map(digits, steps))
    return f"npv0v001::ve=leb89::cc={len(zone_of)}::nn={zones}::bn={busiest}", vectors
