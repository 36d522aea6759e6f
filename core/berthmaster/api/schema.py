"""Building blocks of our own kinds: quantities, durations, label selectors, conditions.

The kinds themselves are pydantic models (`inventory`, `policy`); `crds` renders them to YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from berthmaster.api.quantities import (
    LIMIT,
    QuantityError,
    ceil,
    format_nanocores,
    format_size,
    parse_nanocores,
    parse_quantity,
    parse_size,
)

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
_RATE_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i)?$"
_QUANTITY_PATTERN = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$"


class Model(BaseModel):
    """Immutable part of one of our kinds; camelCase outside, unknown fields ignored."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore"
    )

    def to_wire(self) -> dict[str, Any]:
        """Return plain JSON data without absent fields, keys as in the API."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read_size(value: object) -> int:
    try:
        number = ceil(parse_quantity(value))
    except QuantityError as error:
        raise ValueError(str(error)) from error
    return max(-LIMIT, min(number, LIMIT))


def _read_rate(value: object) -> int:
    try:
        return parse_size(value)
    except QuantityError as error:
        raise ValueError(str(error)) from error


def _read_cores(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return parse_nanocores(value)
    except QuantityError as error:
        raise ValueError(str(error)) from error


def _read_duration(value: object) -> Fraction:
    if isinstance(value, Fraction):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration, expected text such as 90s or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return Fraction(hours * 3600 + minutes * 60 + seconds)


def _write_duration(seconds: Fraction) -> str:
    return f"{int(seconds)}s"


Size = Annotated[
    int,
    BeforeValidator(_read_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": _QUANTITY_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]

# A size that people write and that is not negative: text such as `50Mi`.
Rate = Annotated[
    int,
    BeforeValidator(_read_rate),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _RATE_PATTERN, "maxLength": 32}),
]

# CPU in billionths of a core, written as `100m` or `2`.
Cores = Annotated[
    int,
    BeforeValidator(_read_cores),
    PlainSerializer(format_nanocores, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _RATE_PATTERN, "maxLength": 32}),
]

# Seconds, written as `90s` or `1h30m`.
Duration = Annotated[
    Fraction,
    BeforeValidator(_read_duration),
    PlainSerializer(_write_duration, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$",
            "minLength": 2,
        }
    ),
]


class LabelSelectorRequirement(Model):
    """One expression over a label."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy this expression; absent keys satisfy the negatives."""
        value = labels.get(self.key)
        if self.operator == "Exists":
            return value is not None
        if self.operator == "DoesNotExist":
            return value is None
        return (value in self.values) == (self.operator == "In")


class LabelSelector(Model):
    """A Kubernetes label selector; an empty one selects everything."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether all labels and expressions hold."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            expression.matches(labels) for expression in self.match_expressions
        )


class StatusCondition(Model):
    """A condition in Kubernetes' own shape."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[
        str, Field(max_length=128, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: int | None = None
    last_transition_time: str | None = None
