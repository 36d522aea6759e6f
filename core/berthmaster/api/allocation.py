"""The allocation annotation: what was decided for a pod, in 2 KiB of JSON unless what it was given is longer.

It is the ledger's durable truth. Version 1; readers ignore fields that they do not know and treat
another version, or text that is no allocation, as absent.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_BYTES = 2048


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes one reason refused."""

    reason: str
    count: int


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """A node that would have done, too."""

    node: str
    score: float


class Allocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision as it stands on the pod."""

    version: int = msgspec.field(name="v")
    id: str
    node: str
    mode: str = "required"
    allocated: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    score: float = 0.0
    feasible: int = 0
    refused: list[Refusal] = []
    runners_up: list[RunnerUp] = msgspec.field(default=[], name="runnersUp")
    # What the pod's owner should know, as why `bind` became `required`.
    note: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Allocation).decode


def write_allocation(allocation: Allocation) -> str:
    """Return the annotation's text, leaving out what only explains where it would be too long.

    What the pod was given, and what its owner should know, always stay, however long they are.
    """
    text = _encode(allocation)
    while len(text) > MAX_BYTES and (allocation.refused or allocation.runners_up):
        allocation = msgspec.structs.replace(
            allocation, refused=allocation.refused[:-1], runners_up=allocation.runners_up[:-1]
        )
        text = _encode(allocation)
    if len(text) > MAX_BYTES:
        text = _encode(msgspec.structs.replace(allocation, scores={}))
    return text.decode()


def read_allocation(text: str | None) -> Allocation | None:
    """Return the allocation that an annotation holds, or None if it holds none of version 1."""
    if not text:
        return None
    try:
        allocation = _decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return allocation if allocation.version == 1 and allocation.id and allocation.node else None
