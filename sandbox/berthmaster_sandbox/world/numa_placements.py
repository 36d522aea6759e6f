"""In which zone each container lies, as the resource-topology-exporter writes it.

Containers stand for their places in the sorted list of their hashes, XXH64 of namespace, pod and name with
NUL bytes between. Each zone has the list of its places, as the first and then the steps; the zone with
the most containers has none. Numbers are digits of base 64 at the end and of base 25 before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from berthmaster_sandbox.world.numa_fingerprints import hash64

METADATA = "topology.node.k8s.io/numaplacement-metadata"
VECTOR = "topology.node.k8s.io/numaplacement-vector"
# Namespace, pod, container.
Key = tuple[str, str, str]

_ESCAPED_IN_JSON = '"&<>\\'
_LETTERS = [it for it in map(chr, range(0x21, 0x7F)) if it not in _ESCAPED_IN_JSON]
_LAST, _BEFORE = 64, 25


def encode(zone_of: Mapping[Key, int], zones: int) -> tuple[str, dict[int, str]]:
    """Return the topology's attribute, and that of each zone that has one."""
    hashes = sorted((hash64("\0".join(it).encode()), zone) for it, zone in zone_of.items())
    counts = Counter(zone_of.values())
    busiest = min(counts, key=lambda it: (-counts[it], it)) if counts else 0
    vectors = {}
    for zone in set(counts) - {busiest}:
        places = [place for place, (_, lies_in) in enumerate(hashes) if lies_in == zone]
        steps = [places[0], *(after - before for before, after in pairwise(places))]
        vectors[zone] = "".join(map(encode_number, steps))
    return f"npv0v001::ve=leb89::cc={len(zone_of)}::nn={zones}::bn={busiest}", vectors


def encode_number(number: int) -> str:
    """Return one number, 0 or more: below 64 one letter, below 1664 two."""
    if number < _LAST:
        return _LETTERS[number]
    rest, last = divmod(number - _LAST, _LAST)
    text = _LETTERS[last]
    while True:
        rest, digit = divmod(rest, _BEFORE)
        text = _LETTERS[_LAST + digit] + text
        if not rest:
            return text
