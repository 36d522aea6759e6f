"""Disk models: what an access of a block size costs a disk, as tables of ratios.

Upstream loads shared objects from URLs; here a model is data. The ConfigMap is upstream's, its
entries say the model in one of three ways:

    diskVendors: '[{"vendor": "Intel", "model": "P4510",
                    "readRatio": {"4k": 6, "32k": 1}, "writeRatio": {"4k": 5, "32k": 1}},
                   {"vendor": "Intel", "model": "*", "expression": "32768.0 / double(blockSize)"},
                   {"vendor": "Acme", "model": "X1", "url": "https://...", "sha256": "..."}]'

    read = ceil(rbps * readRatio[blocksize])         50Mi at 4k with ratio 2 -> 100Mi

A block size that a table does not list takes the ratio of the next lower listed one, else of the
smallest listed; an empty table is ratio 1. Model `*` is for all other models of a vendor, vendor and
model `*` for all other disks.

Expressions and URLs are for the operator, which makes tables of them (`resolve`); nobody else needs
to. An entry that is faulty, or whose source is away, changes nothing: the model from before counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.api.inventory import DiskModel
from berthmaster.api.quantities import LIMIT, parse_quantity
from berthmaster.concerns.diskio.block_sizes import BLOCK_SIZES
from berthmaster.concerns.diskio.shapes import Usage

ANY = "*"
PENDING = "its url has not been read yet"

_HIGHEST_RATIO = 1_000_000
_MOST_ENTRIES = 4096
_LONGEST_SOURCE = 2048
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WAYS = "readRatio and writeRatio tables, an expression, or the url of a table with its sha256"
_AT = f"data.{names.DISK_MODELS_KEY}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model's numbers come from: exactly one of tables, expression and url is given.

    `sha256` is that of what the url gives, in lower case.
    """

    tables: DiskModel | None = None
    expression: str = ""
    url: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One entry of the list; `at` says where it stands."""

    at: str
    vendor: str
    model: str
    source: ModelSource

    @property
    def key(self) -> str:
        """Return `<vendor>-<model>`."""
        return f"{self.vendor}-{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """The ConfigMap as written. `faults` are those of entries with a key, by it; `problems` are all.

    `unreadable` says why the whole text cannot be read.
    """

    entries: tuple[ModelEntry, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskModels:
    """Model functions by `<vendor>-<model>`, and what was wrong with those that cannot be used.

    A key with a fault may have a function all the same: the one from before.
    """

    functions: Mapping[str, DiskModel] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    unreadable: str = ""

    def find(self, vendor: str, model: str) -> DiskModel | None:
        """Return the function for a disk: its own, its vendor's, or the one for all others."""
        return self.functions.get(self._governing(vendor, model))

    def fault_of(self, vendor: str, model: str) -> str:
        """Return what is wrong with the entry for a disk, empty if nothing is, or there is none."""
        return self.faults.get(self._governing(vendor, model)) or self.unreadable

    def _governing(self, vendor: str, model: str) -> str:
        keys = (f"{vendor}-{model}", f"{vendor}-{ANY}", f"{ANY}-{ANY}")
        return next((key for key in keys if key in self.functions or key in self.faults), "")


def read_list(data: Mapping[str, str] | None) -> ModelList:
    """Read the ConfigMap's data; never raises."""
    text = (data or {}).get(names.DISK_MODELS_KEY)
    if text is None:
        return ModelList(problems=(f"{_AT}: missing, expected a JSON list",))
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ModelList(unreadable=f"{_AT}: not JSON: {error}")
    if not isinstance(entries, list):
        found = type(entries).__name__
        return ModelList(unreadable=f"{_AT}: expected a JSON list, found {found}")
    found_entries: dict[str, ModelEntry] = {}
    faults: dict[str, str] = {}
    problems: list[str] = []
    for index, entry in enumerate(entries[:_MOST_ENTRIES]):
        at, key = f"{_AT}[{index}]", ""
        try:
            vendor, model = _read_names(entry)
            key = f"{vendor}-{model}"
            if key in found_entries or key in faults:
                problems.append(f"{at}: {key} is listed already, the first entry counts")
                continue
            source = read_source(entry)
            found_entries[key] = ModelEntry(at=at, vendor=vendor, model=model, source=source)
        except ValueError as error:
            words = f"{at}: {key}: {error}" if key else f"{at}: {error}"
            problems.append(words)
            if key:
                faults[key] = words
    if len(entries) > _MOST_ENTRIES:
        problems.append(f"{_AT}: only {_MOST_ENTRIES} entries are read")
    return ModelList(entries=tuple(found_entries.values()), faults=faults, problems=tuple(problems))


def resolve(
    listed: ModelList, outcomes: Mapping[str, DiskModel | str], previous: DiskModels | None = None
) -> DiskModels:
    """Return the models: tables as listed, others by what became of them.

    `outcomes` has for the key of an expression or url its tables, or in words why there are none;
    one without an outcome is pending. The function from before stays where there is no new one.
    """
    before = previous.functions if previous is not None else {}
    if listed.unreadable:
        words = f"{listed.unreadable}; {len(before)} models stay as they were"
        return DiskModels(functions=before, problems=(words,), unreadable=words)
    functions: dict[str, DiskModel] = {}
    faults = dict(listed.faults)
    problems = list(listed.problems)
    for entry in listed.entries:
        outcome = entry.source.tables or outcomes.get(entry.key)
        if isinstance(outcome, DiskModel):
            functions[entry.key] = outcome
            continue
        faults[entry.key] = f"{entry.at}: {entry.key}: {outcome or PENDING}"
        if outcome is not None:
            problems.append(faults[entry.key])
    functions.update({key: before[key] for key in faults if key in before})
    return DiskModels(functions=functions, faults=faults, problems=tuple(problems))


def read_models(data: Mapping[str, str] | None, previous: DiskModels | None = None) -> DiskModels:
    """Read the ConfigMap's data where only tables matter; never raises."""
    return resolve(read_list(data), {}, previous)


def read_source(entry: object) -> ModelSource:
    """Read the part of an entry, or of what a url gave, that says the model.

    Raises:
        ValueError: it says none, several, or a wrong one; the message says what was expected.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    has_tables = "readRatio" in entry or "writeRatio" in entry
    expression, url = _read_text(entry, "expression"), _read_text(entry, "url")
    if has_tables and expression:
        raise ValueError("both tables and an expression, keep one of the two")
    if has_tables:
        # Upstream's entries have a url always; it is of no use beside tables.
        return ModelSource(
            tables=DiskModel(
                read_ratio=_read_table(entry.get("readRatio"), "readRatio"),
                write_ratio=_read_table(entry.get("writeRatio"), "writeRatio"),
            )
        )
    if expression:
        return ModelSource(expression=expression)
    if not url:
        raise ValueError(f"says no model, expected {_WAYS}")
    if url.partition("?")[0].endswith(".so"):
        raise ValueError(f"url: a shared object is code and cannot be loaded; give {_WAYS}")
    sha256 = _read_text(entry, "sha256")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(
            "sha256: expected the 64 hexadecimal digits of the hash of what the url gives, as "
            "sha256sum prints it"
        )
    return ModelSource(url=url, sha256=sha256.lower())


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
    read, write, block_size, _ = usage
    if not block_size or ratios is None:
        return read, write
    return _scale(read, ratios[0][block_size]), _scale(write, ratios[1][block_size])


def _scale(amount: int, ratio: Fraction) -> int:
    """Return the product rounded up; in integers, for a product of fractions is slow and as exact."""
    return min(-(-amount * ratio.numerator // ratio.denominator), LIMIT)


def _read_names(entry: object) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    vendor, model = entry.get("vendor"), entry.get("model")
    if not isinstance(vendor, str) or not vendor or not isinstance(model, str) or not model:
        raise ValueError("vendor and model must both be text that is not empty")
    if vendor == ANY and model != ANY:
        raise ValueError(f'vendor "{ANY}" goes with model "{ANY}" only')
    return vendor, model


def _read_text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text, found {type(value).__name__}")
    if len(value) > _LONGEST_SOURCE:
        raise ValueError(f"{key}: {len(value)} characters, at most {_LONGEST_SOURCE} are read")
    return value.strip()


def _read_table(table: Any, at: str) -> dict[str, str]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ValueError(f"{at}: expected an object of block size to factor")
    ratios: dict[str, str] = {}
    for key, value in table.items():
        # YAML reads the key 512 as a number.
        block_size = str(key)
        if block_size not in BLOCK_SIZES:
            sizes = ", ".join(BLOCK_SIZES)
            raise ValueError(
                f'{at}: unknown block size "{block_size[:40]}", expected one of {sizes}'
            )
        try:
            _bounded(value)
        except ValueError as error:
            raise ValueError(f"{at}[{block_size}]: {str(error)[:200]}") from error
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
