"""What a pod asks of a disk: the annotation `blockio.kubernetes.io/resources`.

    {"rbps": "900Mi", "wbps": "900Mi", "blocksize": "4k"}

Keys are matched without regard to case and the later of two spellings wins, as Go's decoder does
it. A pod without the annotation is best effort and asks 5Mi read and 5Mi write, un-scaled; one with
an empty annotation asks the same, but only of nodes whose disks are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypeGuard

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec, Strategy
from berthmaster.api.quantities import LIMIT, QuantityError, parse_size
from berthmaster.concerns.shape import InvalidRequestError, Problem

BLOCK_SIZES: dict[str, int] = {
    "512": 512,
    "1k": 1024,
    "4k": 4096,
    "8k": 8192,
    "16k": 16384,
    "32k": 32768,
}
DEFAULT_BYTES_PER_S = 5 * 2**20
_FIELD = f"metadata.annotations[{names.DISKIO_REQUEST}]"
_SHOWN_CHARS = 40
_EXAMPLE = '{"rbps": "100Mi", "wbps": "50Mi", "blocksize": "4k"}'


class Usage(NamedTuple):
    """Bytes per second at a block size; an empty block size is the un-scaled default."""

    read_bytes_per_s: int
    write_bytes_per_s: int
    block_size: str


BEST_EFFORT = Usage(DEFAULT_BYTES_PER_S, DEFAULT_BYTES_PER_S, "")


class DiskIORequest(NamedTuple):
    """What a pod asks; with a `problem` it is refused by every node that knows its disks."""

    usage: Usage
    is_io_requiring: bool
    strategy: Strategy
    problem: str = ""


def read_request(pod: Pod, policy: PlacementPolicySpec) -> DiskIORequest | None:
    """Return what the pod asks; None for a white-listed namespace.

    Raises:
        InvalidRequestError: the annotation cannot be understood.
    """
    settings = policy.concerns.diskio
    if pod.metadata.namespace in settings.ns_white_list:
        return None
    text = pod.annotations.get(names.DISKIO_REQUEST)
    if text is None:
        return DiskIORequest(BEST_EFFORT, False, settings.strategy)
    usage, problems = parse_annotation(text)
    if problems:
        words = "; ".join(problem.message for problem in problems)
        refused = DiskIORequest(BEST_EFFORT, True, settings.strategy, words)
        raise InvalidRequestError(*problems, request=refused)
    return DiskIORequest(usage, True, settings.strategy)


def read_usage(pod: Pod, allocated: Mapping[str, Any] | None) -> Usage:
    """Return what a pod holds: as allocated, else as annotated, else the default; never raises."""
    if allocated:
        read, write = allocated.get("rbps"), allocated.get("wbps")
        block_size = allocated.get("blockSize")
        # An allocation that was forged before our policies were there may hold anything.
        if not isinstance(block_size, str) or block_size not in BLOCK_SIZES:
            return BEST_EFFORT
        if _is_rate(read) and _is_rate(write):
            return Usage(read, write, block_size)
        return BEST_EFFORT
    text = pod.annotations.get(names.DISKIO_REQUEST)
    return BEST_EFFORT if text is None else parse_annotation(text)[0]


def parse_annotation(text: str) -> tuple[Usage, tuple[Problem, ...]]:
    """Return what the annotation asks and its faults; with any fault the usage is the default."""
    if text == "":
        return BEST_EFFORT, ()
    try:
        values = _decode(text)
    except (ValueError, RecursionError) as error:
        return BEST_EFFORT, (
            Problem(field=_FIELD, message=f"not understood: {error}; expected {_EXAMPLE}"),
        )
    problems: list[Problem] = []
    read = _rate(values, "rbps", problems)
    write = _rate(values, "wbps", problems)
    block_size = values.get("blocksize")
    if block_size not in BLOCK_SIZES:
        found = "none is given" if block_size is None else f'"{_cut(block_size)}"'
        message = f"unsupported block size: {found}, expected one of {', '.join(BLOCK_SIZES)}"
        problems.append(Problem(field=f"{_FIELD}.blocksize", message=message))
    if problems or not isinstance(block_size, str):
        return BEST_EFFORT, tuple(problems)
    return Usage(read, write, block_size), ()


def _is_rate(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LIMIT


def _cut(text: str) -> str:
    """Return a user's text short enough for a message."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decode(text: str) -> dict[str, str]:
    """Return the known keys in lower case with their text values, the later spelling winning."""
    # Nested objects come back as lists of pairs as well: one look at the type tells them apart.
    pairs = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    if pairs is None:
        return {}
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"a JSON object is expected, found {type(pairs).__name__}")
    values: dict[str, str] = {}
    for key, value in pairs:
        name = key.casefold()
        if name not in ("rbps", "wbps", "blocksize") or value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f'"{key}" must be text in quotes, found {json.dumps(value)[:40]}')
        # An escape such as \\ud800 is half a character, which no answer, condition or Event can hold;
        # Go's decoder replaces it as well.
        values[name] = value.encode(errors="replace").decode()
    return values


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, repeated ones too."""


def _rate(values: Mapping[str, str], key: str, problems: list[Problem]) -> int:
    text = values.get(key)
    if text is None:
        message = f'missing, expected bytes per second such as "100Mi"; a full example: {_EXAMPLE}'
        problems.append(Problem(field=f"{_FIELD}.{key}", message=message))
        return 0
    try:
        return parse_size(text)
    except QuantityError as error:
        problems.append(Problem(field=f"{_FIELD}.{key}", message=str(error)))
        return 0
