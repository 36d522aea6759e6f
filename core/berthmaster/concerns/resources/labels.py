"""Labels of rows: a code per row for each key that was asked about, 0 where the label is missing."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.resources.label_selectors import Requirement
from berthmaster.concerns.shape import Rows

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]

# Label keys come from pods, so anybody may name new ones; the least recently used one makes room.
_KEYS_REMEMBERED = 256
# Values that no node has any more are dropped when they outnumber the rows by so many.
_STALE_VALUES = 1024
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_Number = TypeVar("_Number", np.int64, np.int32)


class LabelColumn:
    """One label key: a code per row, 0 where the label is missing."""

    def __init__(self, key: str, labels: Iterable[Mapping[str, str]]) -> None:
        self.key = key
        self.code_by_value: dict[str, int] = {}
        codes = [self._code(it.get(key)) for it in labels]
        self.codes: Ids = np.array(codes, dtype=np.int32)

    def write(self, row: int, value: str | None) -> None:
        """Set a row's value."""
        self.codes[row] = self._code(value)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self.codes = grow(self.codes, rows)

    def _code(self, value: str | None) -> int:
        if value is None:
            return 0
        return self.code_by_value.setdefault(value, len(self.code_by_value) + 1)


class LabelColumns:
    """The label keys that pods have asked about, each built when it is first asked for."""

    def __init__(self) -> None:
        # Moves with every change of any row's labels.
        self.version = 0
        self._labels: list[Mapping[str, str]] = []
        self._columns: OrderedDict[str, LabelColumn] = OrderedDict()

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self._labels)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self.version += 1
        self._labels.extend({} for _ in range(rows - len(self._labels)))
        for column in self._columns.values():
            column.resize(rows)

    def write(self, row: int, labels: Mapping[str, str]) -> None:
        """Take over a row's labels."""
        if labels == self._labels[row]:
            return
        self.version += 1
        self._labels[row] = labels
        for column in self._columns.values():
            column.write(row, labels.get(column.key))

    def column(self, key: str) -> LabelColumn:
        """Return the column of a key."""
        column = self._columns.get(key)
        if column is None or len(column.code_by_value) > len(self._labels) + _STALE_VALUES:
            column = self._columns[key] = LabelColumn(key, self._labels)
            if len(self._columns) > _KEYS_REMEMBERED:
                self._columns.popitem(last=False)
        self._columns.move_to_end(key)
        return column


def all_match(labels: LabelColumns, rows: Rows, requirements: Iterable[Requirement]) -> Mask:
    """Return for each of the given rows whether its labels meet all requirements."""
    matches = np.ones(len(rows), dtype=np.bool_)
    for requirement in requirements:
        column = labels.column(requirement.key)
        matches &= _matching_codes(column, requirement)[column.codes[rows]]
    return matches


def _matching_codes(column: LabelColumn, requirement: Requirement) -> Mask:
    """Return for each code of the column, 0 being a missing label, whether it matches."""
    codes = column.code_by_value
    matching = np.zeros(len(codes) + 1, dtype=np.bool_)
    if requirement.operator in ("In", "NotIn"):
        matching[[codes[value] for value in requirement.values if value in codes]] = True
        return matching if requirement.operator == "In" else ~matching
    if requirement.operator in ("Exists", "DoesNotExist"):
        matching[0] = True
        return matching if requirement.operator == "DoesNotExist" else ~matching
    bound = to_integer(requirement.values[0])
    is_greater = requirement.operator == "Gt"
    for value, code in codes.items():
        number = to_integer(value)
        if number is not None and bound is not None:
            matching[code] = number > bound if is_greater else number < bound
    return matching


def to_integer(text: str) -> int | None:
    """Return the 64-bit integer that a label value is for `Gt` and `Lt`, None if it is none."""
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def grow(array: NDArray[_Number], rows: int) -> NDArray[_Number]:
    """Return the array with zeros appended, to hold so many rows."""
    return np.concatenate([array, np.zeros(rows - len(array), dtype=array.dtype)])
