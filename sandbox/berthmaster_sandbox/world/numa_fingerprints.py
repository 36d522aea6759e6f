"""The fingerprint of a set of pods, version 1, and the hash that it is made of.

A pod's hash is XXH64 of its name, seeded with XXH64 of its namespace. The sorted hashes, eight bytes
each, little-endian, are hashed once more.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "pfp0v001"

_ALL = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5
_STRIPE = 32


def fingerprint(pods: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of pods given as (namespace, name); their order does not matter."""
    hashes = sorted(hash64(name.encode(), hash64(namespace.encode())) for namespace, name in pods)
    digest = hash64(b"".join(it.to_bytes(8, "little") for it in hashes))
    return f"{PREFIX}{digest:016x}"


def hash64(data: bytes, seed: int = 0) -> int:
    """Return XXH64 of the data as an unsigned number."""
    position = len(data) // _STRIPE * _STRIPE
    state = _fold_lanes(_run_lanes(data[:position], seed)) if position else seed + _P5
    state = (state + len(data)) & _ALL
    while position + 8 <= len(data):
        state ^= _round(0, _word(data, position, 8))
        state = (_rotate(state, 27) * _P1 + _P4) & _ALL
        position += 8
    if position + 4 <= len(data):
        state ^= _word(data, position, 4) * _P1 & _ALL
        state = (_rotate(state, 23) * _P2 + _P3) & _ALL
        position += 4
    for byte in data[position:]:
        state ^= byte * _P5 & _ALL
        state = _rotate(state, 11) * _P1 & _ALL
    for shift, prime in ((33, _P2), (29, _P3), (32, 1)):
        state = (state ^ state >> shift) * prime & _ALL
    return state


def _run_lanes(data: bytes, seed: int) -> list[int]:
    lanes = [(seed + it) & _ALL for it in (_P1 + _P2, _P2, 0, -_P1)]
    for position in range(0, len(data), 8):
        lane = position // 8 % 4
        lanes[lane] = _round(lanes[lane], _word(data, position, 8))
    return lanes


def _fold_lanes(lanes: list[int]) -> int:
    state = sum(_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _ALL
    for lane in lanes:
        state = ((state ^ _round(0, lane)) * _P1 + _P4) & _ALL
    return state


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _P2) & _ALL, 31) * _P1 & _ALL


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & _ALL


def _word(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size], "little")
