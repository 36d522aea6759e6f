"""What a concern's loader makes of a decision case, and how it says that it does not understand one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import Pod
from berthmaster.api.policy import ConcernSettings
from berthmaster.concerns.shape import AnyConcern, Surrounding
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest

Case = Mapping[str, Any]
# Of what is expected, the engine, what the pod asks, the pod, and the scores of nodes that fit.
Comparison = Callable[
    [Mapping[str, Any], Engine, PodRequest, Pod, Mapping[str, float]], Iterator[str]
]


class UnknownKeyError(ValueError):
    """A case says something that this loader does not understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseWorld:
    """What a concern's loader makes of a case: its concern, settings and inventories.

    `reserved` are pods that were promised to nodes and have not been seen yet, `allocated` what pods that
    are there were given, by namespace and name. `surroundings` are what wide concerns are told of, and
    `made` the objects that are derived from others. `beside` are further concerns
    that filter. `scores_alone`: scores are those of `concern`, 0 where the pod asks nothing of it.
    `compare` yields what differs of what only this concern's cases expect.
    """

    concern: AnyConcern
    settings: ConcernSettings
    inventories: Mapping[str, NodeInventory]
    reserved: Sequence[tuple[str, Pod]] = ()
    allocated: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    surroundings: Sequence[Surrounding] = ()
    made: Sequence[Mapping[str, Any]] = ()
    beside: Sequence[AnyConcern] = ()
    scores_alone: bool = False
    compare: Comparison | None = None


def as_read(name: str, status: NodeInventoryStatus) -> NodeInventory:
    """Return a node's inventory through its wire form, as the webhook reads it."""
    return NodeInventory(name=name, status=NodeInventoryStatus.model_validate(status.to_wire()))


def check_keys(found: Mapping[str, Any], known: set[str], at: str) -> None:
    """Raise `UnknownKeyError` if a mapping has keys beyond the known ones."""
    unknown = sorted(set(found) - known)
    if unknown:
        raise UnknownKeyError(f"{at}: unknown key(s) {', '.join(unknown)}")


def check_no_metrics(case: Case) -> None:
    """Raise `UnknownKeyError` if a case has metrics."""
    if case.get("metrics"):
        raise UnknownKeyError("metrics: none are understood for this plugin")
