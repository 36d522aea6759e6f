"""The three ways in which a pod says what it asks of a disk, and every fault in them.

    blockio.kubernetes.io/resources: {"rbps": "900Mi", "wbps": "900Mi", "blocksize": "4k"}
    blockio.kubernetes.io/resources: {"data": {"requests": {"rbps": "50Mi/4k", "wbps": "50Mi/4k"}}}
    berthmaster.io/disk-read: 900Mi      berthmaster.io/disk-write: ...   .../disk-block-size: 4k

The first is the disk IO aware scheduler's. Its keys are matched without regard to case and the later
of two spellings wins, as Go's decoder does it. The second, by volume, is its predecessor's: the
volumes are added up, since all of them are charged to the disk behind emptyDir, and `limits` are not
looked at. The third is for those who dislike JSON in annotations. A pod may use two of them only to
say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from berthmaster.api import names
from berthmaster.api.quantities import LIMIT, QuantityError, describe_size, parse_size
from berthmaster.api.settings.diskio import BlockSizePolicy
from berthmaster.concerns.diskio.block_sizes import describe_expected, find_block_size
from berthmaster.concerns.shape import Problem

DEFAULT_BYTES_PER_S = 5 * 2**20
TYPED_KEYS = (names.DISK_READ, names.DISK_WRITE, names.DISK_BLOCK_SIZE)

_KEYS = (names.DISKIO_REQUEST, *TYPED_KEYS)
# What is longer is read each time, so that nobody can fill the memory with it.
_REMEMBERED_CHARS = 512
_FLAT_KEYS = ("rbps", "wbps", "blocksize")
_VOLUME_BLOCK_SIZE = "4k"
_FIELD = f"metadata.annotations[{names.DISKIO_REQUEST}]"
_SHOWN_CHARS = 40
_MOST_PROBLEMS = 10
_FRACTION = re.compile(r"\.|[num]$")
_EXAMPLE = '{"rbps": "100Mi", "wbps": "50Mi", "blocksize": "4k"}'
_VOLUME_EXAMPLE = '{"requests": {"rbps": "100Mi/4k", "wbps": "50Mi/4k"}}'


class Usage(NamedTuple):
    """Bytes per second at a block size; an empty block size is the un-scaled default.

    `needs_nearest`: the block size stands for one that only the policy `Nearest` understands.
    """

    read_bytes_per_s: int
    write_bytes_per_s: int
    block_size: str
    needs_nearest: bool = False


class Rules(NamedTuple):
    """What a policy says about block sizes."""

    block_size_policy: BlockSizePolicy = BlockSizePolicy.STRICT
    default_block_size: str | None = None


BEST_EFFORT = Usage(DEFAULT_BYTES_PER_S, DEFAULT_BYTES_PER_S, "")
# Faults found so far; the functions below add to it.
_Problems = list[Problem]


def read_annotations(
    annotations: Mapping[str, str], rules: Rules
) -> tuple[Usage | None, tuple[Problem, ...]]:
    """Return what a pod's annotations ask, None if they do not ask, and their faults.

    With any fault the usage is the default. Equal texts are read once: the pods of a workload have them.
    """
    texts = tuple((key, annotations[key]) for key in _KEYS if key in annotations)
    if not texts:
        return None, ()
    is_short = sum(len(text) for _, text in texts) <= _REMEMBERED_CHARS
    return _read_once(texts, rules) if is_short else _read(texts, rules)


def _read(
    texts: tuple[tuple[str, str], ...], rules: Rules
) -> tuple[Usage | None, tuple[Problem, ...]]:
    annotations = dict(texts)
    text = annotations.get(names.DISKIO_REQUEST)
    typed = [key for key in TYPED_KEYS if key in annotations]
    problems: _Problems = []
    found = _read_text(text, rules, problems) if text is not None else None
    if typed:
        asked = _read_typed(annotations, rules, problems)
        if found is not None and not problems and asked != found:
            others = ", ".join(f"metadata.annotations[{key}]" for key in typed)
            message = (
                f"asks {_describe(found)}, but {others} ask {_describe(asked)}; "
                "keep one of the two ways to ask"
            )
            problems.append(Problem(field=_FIELD, message=message))
        found = asked
    if problems:
        return BEST_EFFORT, tuple(problems[:_MOST_PROBLEMS])
    return found, ()


_read_once = lru_cache(maxsize=4096)(_read)


def is_for_every_driver(text: str | None, usage: Usage) -> bool:
    """Return whether the annotation's text says this usage in the form that drivers understand.

    They know the flat shape, exact block sizes, and whole quantities: the reference driver takes
    one with a fraction for 0.
    """
    if text is None:
        return False
    is_short = len(text) <= _REMEMBERED_CHARS
    return _is_plain_once(text, usage) if is_short else _is_plain(text, usage)


def _is_plain(text: str, usage: Usage) -> bool:
    try:
        pairs = _parse(text)
    except (ValueError, RecursionError):
        return False
    rates = [value for key, value in pairs if key.casefold() in ("rbps", "wbps")]
    if any(not isinstance(rate, str) or _FRACTION.search(rate) for rate in rates):
        return False
    problems: _Problems = []
    return _read_flat(pairs, Rules(), problems) == usage and not problems


_is_plain_once = lru_cache(maxsize=4096)(_is_plain)


def _read_text(text: str, rules: Rules, problems: _Problems) -> Usage:
    if text == "":
        return BEST_EFFORT
    try:
        pairs = _parse(text)
        volumes = [(key, it) for key, it in pairs if isinstance(it, _Pairs)]
        is_flat = any(key.casefold() in _FLAT_KEYS for key, _ in pairs)
        if not volumes or (is_flat and not any(_has_requests(it) for _, it in volumes)):
            return _read_flat(pairs, rules, problems)
    except (ValueError, RecursionError) as error:
        message = f"not understood: {error}; expected {_EXAMPLE}"
        problems.append(Problem(field=_FIELD, message=message))
        return BEST_EFFORT
    if is_flat:
        message = (
            f'both shapes in one: rbps, wbps or blocksize of the pod, and requests of volume "'
            f'{_cut(volumes[0][0])}"; keep one of the two, such as {_EXAMPLE}'
        )
        problems.append(Problem(field=_FIELD, message=message))
        return BEST_EFFORT
    return _read_volumes(pairs, rules, problems)


def _read_flat(pairs: _Pairs, rules: Rules, problems: _Problems) -> Usage:
    """Read the known keys, the later spelling winning; raises ValueError for a wrong type."""
    values: dict[str, str] = {}
    for key, value in pairs:
        name = key.casefold()
        if name not in _FLAT_KEYS or value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f'"{key}" must be text in quotes, found {json.dumps(value)[:40]}')
        values[name] = _sendable(value)
    read = _rate(values.get("rbps"), f"{_FIELD}.rbps", _EXAMPLE, problems)
    write = _rate(values.get("wbps"), f"{_FIELD}.wbps", _EXAMPLE, problems)
    size = _block_size(values.get("blocksize"), f"{_FIELD}.blocksize", rules, problems)
    return Usage(read, write, size)


def _read_typed(annotations: Mapping[str, str], rules: Rules, problems: _Problems) -> Usage:
    fields = {key: f"metadata.annotations[{key}]" for key in TYPED_KEYS}
    example = ", ".join(
        f"{key}: {value}" for key, value in zip(TYPED_KEYS, ("100Mi", "50Mi", "4k"), strict=True)
    )
    read, write = (
        _rate(annotations.get(key), fields[key], example, problems)
        for key in (names.DISK_READ, names.DISK_WRITE)
    )
    size = annotations.get(names.DISK_BLOCK_SIZE)
    return Usage(read, write, _block_size(size, fields[names.DISK_BLOCK_SIZE], rules, problems))


def _read_volumes(pairs: _Pairs, rules: Rules, problems: _Problems) -> Usage:
    sums = {"rbps": 0, "wbps": 0}
    sizes: dict[str, str] = {}
    # The later of two volumes of one name wins, as with Go's decoder.
    for volume, value in {_sendable(key): value for key, value in pairs}.items():
        at = f"{_FIELD}.{_cut(volume)}"
        requests = _member(value, "requests")
        if not isinstance(requests, _Pairs):
            message = f"missing, expected for each volume {_VOLUME_EXAMPLE}"
            problems.append(Problem(field=f"{at}.requests", message=message))
            continue
        for key in sums:
            text = _member(requests, key)
            if text is not None and not isinstance(text, str):
                message = f'must be text in quotes such as "50Mi/4k", found {json.dumps(text)[:40]}'
                problems.append(Problem(field=f"{at}.requests.{key}", message=message))
                continue
            rate, _, size = (None, "", "") if text is None else _sendable(text).partition("/")
            where = f"{at}.requests.{key}"
            sums[key] = min(LIMIT, sums[key] + _rate(rate, where, _VOLUME_EXAMPLE, problems))
            sizes.setdefault(_block_size(size or _VOLUME_BLOCK_SIZE, where, rules, problems), where)
    if len(sizes) > 1 and not problems:
        (one, at), (other, there) = tuple(sizes.items())[:2]
        message = f"block size {other}, but {one} in {at}; one pod has one block size"
        problems.append(Problem(field=there, message=message))
    return Usage(sums["rbps"], sums["wbps"], next(iter(sizes), ""))


def _rate(text: str | None, field: str, example: str, problems: _Problems) -> int:
    if text is None:
        message = f'missing, expected bytes per second such as "100Mi"; a full example: {example}'
        problems.append(Problem(field=field, message=message))
        return 0
    try:
        return parse_size(text)
    except QuantityError as error:
        problems.append(Problem(field=field, message=str(error)))
        return 0


def _block_size(text: str | None, field: str, rules: Rules, problems: _Problems) -> str:
    if text is None:
        text = rules.default_block_size
    size = find_block_size(text, rules.block_size_policy) if text is not None else None
    if size is not None:
        return size
    found = "none is given" if text is None else f'"{_cut(text)}"'
    expected = describe_expected(rules.block_size_policy)
    message = f"unsupported block size: {found}, {expected}"
    problems.append(Problem(field=field, message=message))
    return ""


def _describe(usage: Usage) -> str:
    read, write = describe_size(usage.read_bytes_per_s), describe_size(usage.write_bytes_per_s)
    return f"{read} read and {write} write at {usage.block_size or 'no block size'}"


def _cut(text: str) -> str:
    """Return a user's text short enough for a message."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _sendable(text: str) -> str:
    """Return a text without half characters.

    A JSON escape can give one, and no answer, condition or Event can hold it; Go's decoder
    replaces it as well.
    """
    return text.encode(errors="replace").decode()


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, repeated ones too."""


def _parse(text: str) -> _Pairs:
    """Return the JSON object of a text, `null` as an empty one; raises ValueError for others."""
    # Nested objects come back as lists of pairs as well: one look at the type tells them apart.
    pairs = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    if pairs is None:
        return _Pairs()
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"a JSON object is expected, found {type(pairs).__name__}")
    return pairs


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _member(value: object, name: str) -> object:
    """Return a member of an object by its name in any case, the later spelling winning."""
    if not isinstance(value, _Pairs):
        return None
    found = [it for key, it in value if key.casefold() == name and it is not None]
    return found[-1] if found else None


def _has_requests(value: object) -> bool:
    return _member(value, "requests") is not None
