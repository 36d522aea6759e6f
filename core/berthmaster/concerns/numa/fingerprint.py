"""The fingerprint by which an updater says over which pods its numbers were taken.

pod  = XXH64(name, seed = XXH64(namespace))
text = "pfp0v001" + XXH64 of all pods' hashes, sorted, 8 bytes little-endian each, in hex
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

PREFIX, VERSION = "pfp0", "v001"
_SHORTEST = 16

_MASK = 2**64 - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def is_fingerprint(text: str) -> bool:
    """Return whether the text is a fingerprint of the version that we can make."""
    return len(text) >= _SHORTEST and text.startswith(PREFIX + VERSION)


def fingerprint(pods: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of pods given as namespace and name; repeated ones count."""
    return fingerprint_of_hashes(pod_hash(namespace, name) for namespace, name in pods)


def fingerprint_of_hashes(hashes: Iterable[int]) -> str:
    """Return the fingerprint of pods given by their hashes, in any order."""
    ordered = sorted(hashes)
    digest = xxh64(struct.pack(f"<{len(ordered)}Q", *ordered))
    return f"{PREFIX}{VERSION}{digest:016x}"


@lru_cache(maxsize=65536)
def pod_hash(namespace: str, name: str) -> int:
    """Return a pod's own hash."""
    return xxh64(name.encode(errors="replace"), xxh64(namespace.encode(errors="replace")))


def xxh64(data: bytes, seed: int = 0) -> int:
    """Return the 64-bit hash XXH64 of the data."""
    size, at = len(data), 0
    if size >= 32:
        lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while at + 32 <= size:
            words = struct.unpack_from("<4Q", data, at)
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
            at += 32
        turns = zip(lanes, (1, 7, 12, 18), strict=True)
        digest = sum(_rotate(lane, turn) for lane, turn in turns) & _MASK
        for lane in lanes:
            digest = ((digest ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        digest = (seed + _P5) & _MASK
    digest = (digest + size) & _MASK
    while at + 8 <= size:
        (word,) = struct.unpack_from("<Q", data, at)
        digest = (_rotate(digest ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= size:
        (half,) = struct.unpack_from("<I", data, at)
        digest = (_rotate(digest ^ (half * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        digest = _rotate(digest ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    digest = (digest ^ digest >> 33) * _P2 & _MASK
    digest = (digest ^ digest >> 29) * _P3 & _MASK
    return digest ^ digest >> 32


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def _rotate(value: int, turn: int) -> int:
    return (value << turn | value >> (64 - turn)) & _MASK
