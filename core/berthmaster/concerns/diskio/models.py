"""Disk models: what an access of a block size costs a disk, as tables of ratios.

Upstream loads shared objects from URLs; here a model is data. The ConfigMap is upstream's, its
entries carry the tables inline:

    diskVendors: '[{"vendor": "Intel", "model": "P4510",
                    "readRatio": {"4k": 6, "32k": 1}, "writeRatio": {"4k": 5, "32k": 1}}]'

    read = ceil(rbps * readRatio[blocksize])         50Mi at 4k with ratio 2 -> 100Mi

A block size that a table does not list takes the ratio of the next lower listed one, else of the
smallest listed; an empty table is ratio 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.inventory import DiskModel
from berthmaster.api.quantities import LIMIT, ceil, parse_quantity
from berthmaster.concerns.diskio.block_sizes import BLOCK_SIZES
from berthmaster.concerns.diskio.shapes import Usage

_HIGHEST_RATIO = 1_000_000
_MOST_ENTRIES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskModels:
    """Model functions by `<vendor>-<model>`, and what was wrong with those that are left out."""

    functions: Mapping[str, DiskModel] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_models(data: Mapping[str, str] | None, previous: DiskModels | None = None) -> DiskModels:
    """Read the ConfigMap's data; never raises.

    Text that is no JSON list leaves the previous models in force: one slip in an editor must not
    stop every node.
    """
    text = (data or {}).get(names.DISK_MODELS_KEY)
    if text is None:
        return DiskModels(
            problems=(f"data.{names.DISK_MODELS_KEY}: missing, expected a JSON list",)
        )
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unreadable(f"not JSON: {error}", previous)
    if not isinstance(entries, list):
        return _unreadable(f"expected a JSON list, found {type(entries).__name__}", previous)
    functions: dict[str, DiskModel] = {}
    problems: list[str] = []
    for index, entry in enumerate(entries[:_MOST_ENTRIES]):
        at = f"data.{names.DISK_MODELS_KEY}[{index}]"
        try:
            key, function = _read_entry(entry)
        except ValueError as error:
            problems.append(f"{at}: {error}")
            continue
        if key in functions:
            problems.append(f"{at}: {key} is listed already, the first entry counts")
        else:
            functions[key] = function
    if len(entries) > _MOST_ENTRIES:
        problems.append(f"data.{names.DISK_MODELS_KEY}: only {_MOST_ENTRIES} entries are read")
    return DiskModels(functions=functions, problems=tuple(problems))


def compile_ratios(function: DiskModel) -> tuple[dict[str, Fraction], dict[str, Fraction]]:
    """Return the read and write ratio for each block size that a pod may name.

    Raises:
        ValueError: a ratio is no number, or out of bounds; one below 0 would make room by using it.
    """
    return _complete(function.read_ratio), _complete(function.write_ratio)


def normalise(
    usage: Usage, ratios: tuple[dict[str, Fraction], dict[str, Fraction]] | None
) -> tuple[int, int]:
    """Return read and write in the disk's units; the default request and unknown disks un-scaled."""
    read, write, block_size = usage
    if not block_size or ratios is None:
        return read, write
    return (
        min(ceil(read * ratios[0][block_size]), LIMIT),
        min(ceil(write * ratios[1][block_size]), LIMIT),
    )


def _unreadable(message: str, previous: DiskModels | None) -> DiskModels:
    kept = previous.functions if previous else {}
    words = f"data.{names.DISK_MODELS_KEY}: {message}; {len(kept)} models stay as they were"
    return DiskModels(functions=kept, problems=(words,))


def _read_entry(entry: object) -> tuple[str, DiskModel]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    vendor, model = entry.get("vendor"), entry.get("model")
    if not isinstance(vendor, str) or not vendor or not isinstance(model, str) or not model:
        raise ValueError("vendor and model must both be text that is not empty")
    key = f"{vendor}-{model}"
    if "readRatio" not in entry and "writeRatio" not in entry:
        if str(entry.get("url", "")).endswith(".so"):
            raise ValueError(
                f"{key}: a shared object cannot be loaded; give readRatio and writeRatio tables"
            )
        raise ValueError(f"{key}: no readRatio and writeRatio tables, expected both")
    return key, DiskModel(
        read_ratio=_read_table(entry.get("readRatio"), f"{key}: readRatio"),
        write_ratio=_read_table(entry.get("writeRatio"), f"{key}: writeRatio"),
    )


def _read_table(table: Any, at: str) -> dict[str, str]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ValueError(f"{at}: expected an object of block size to factor")
    ratios: dict[str, str] = {}
    for block_size, value in table.items():
        if block_size not in BLOCK_SIZES:
            sizes = ", ".join(BLOCK_SIZES)
            raise ValueError(f'{at}: unknown block size "{block_size}", expected one of {sizes}')
        try:
            _bounded(value)
        except ValueError as error:
            raise ValueError(f"{at}[{block_size}]: {error}") from error
        ratios[block_size] = str(value)
    return ratios


def _bounded(value: object) -> Fraction:
    ratio = parse_quantity(value)
    if not 0 <= ratio <= _HIGHEST_RATIO:
        raise ValueError(f"{value} is not in 0..{_HIGHEST_RATIO}")
    return ratio


def _complete(table: Mapping[str, str]) -> dict[str, Fraction]:
    listed = {
        BLOCK_SIZES[block_size]: _bounded(ratio)
        for block_size, ratio in table.items()
        if block_size in BLOCK_SIZES
    }
    if not listed:
        return dict.fromkeys(BLOCK_SIZES, Fraction(1))
    return {
        name: listed[max((it for it in listed if it <= size), default=min(listed))]
        for name, size in BLOCK_SIZES.items()
    }
