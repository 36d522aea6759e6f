"""PowerModel: what nodes of a kind draw at some CPU usage, as numbers, for where no model server is.

The one of the highest priority that selects a node counts, then the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field

from berthmaster.api.inventory import Exponential
from berthmaster.api.schema import LabelSelector, Model

Watts = Annotated[float, Field(ge=0, le=1_000_000)]


class Polynomial(Model):
    """Watts as c0 + c1 * u + c2 * u^2 + ..., u the CPU usage as a ratio of capacity, 0..1."""

    coefficients: Annotated[
        tuple[float, ...], Field(min_length=1, max_length=8, description="c0, c1, c2, ...")
    ]


class TablePoint(Model):
    """One point of a table."""

    cpu_percent: Annotated[
        float, Field(ge=0, le=100, description="CPU usage, percent of capacity.")
    ]
    watts: Annotated[Watts, Field(description="What the node draws there.")]


class Table(Model):
    """Watts at some CPU usages; between them it is straight."""

    points: Annotated[
        tuple[TablePoint, ...], Field(min_length=2, max_length=101, description="In any order.")
    ]


class PowerModelSpec(Model):
    """What a PowerModel says; one of the three forms."""

    priority: Annotated[
        int,
        Field(ge=-1_000_000, le=1_000_000, description="The highest that selects a node counts."),
    ] = 0
    node_selector: Annotated[
        LabelSelector, Field(description="Nodes that the model is of; empty: all.")
    ] = LabelSelector()
    exponential: Annotated[
        Exponential | None, Field(description="k0 + k1 * e^(k2 * percent), as Peaks has it.")
    ] = None
    polynomial: Annotated[Polynomial | None, Field(description="Coefficients.")] = None
    table: Annotated[Table | None, Field(description="Points, as measured.")] = None


class PowerModel(Model):
    """A named model."""

    name: str
    uid: str = ""
    spec: PowerModelSpec = PowerModelSpec()


def power_model_from_manifest(manifest: Mapping[str, Any]) -> PowerModel:
    """Build a model from a parsed object.

    Raises:
        pydantic.ValidationError: a field is wrong; the error lists the paths.
    """
    metadata = manifest.get("metadata") or {}
    return PowerModel(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        spec=PowerModelSpec.model_validate(manifest.get("spec") or {}),
    )


def choose_model(models: Iterable[PowerModel], labels: Mapping[str, str]) -> PowerModel | None:
    """Return the model that counts for a node."""
    fitting = (it for it in models if it.spec.node_selector.matches(labels))
    return min(fitting, key=lambda it: (-it.spec.priority, it.name), default=None)
