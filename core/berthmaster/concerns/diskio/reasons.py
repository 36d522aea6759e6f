"""Codes of the disk IO concern and upstream's words for them."""

from __future__ import annotations

from berthmaster.api.quantities import describe_size
from berthmaster.concerns.shape import Reason

UNSUPPORTED_NODE = 1
NO_DISK = 2
NO_MODEL = 3
INVALID = 4
SHORT_OF_READ = 5
SHORT_OF_WRITE = 6
SHORT_OF_TOTAL = 7

DIMENSIONS = ("read", "write", "total")


def unsupported_node(node: str) -> Reason:
    """Return the words for a node without NodeDiskDevice."""
    words = "without disk io aware support cannot schedule disk io aware workload"
    return Reason(
        text=f"node {node} {words}",
        group=f"node(s) {words}",
        detail="no NodeDiskDevice names this node",
    )


def no_disk() -> Reason:
    """Return the words for a node none of whose devices backs emptyDir; upstream's two blanks."""
    return Reason(
        text="emptydir disk  not registered in cache",
        group="emptydir disk not registered in cache",
        detail="no device of the NodeDiskDevice has type emptyDir",
    )


def no_model(key: str) -> Reason:
    """Return the words for a disk whose model function is not known."""
    return Reason(
        text=f"normalizer {key} not found",
        group="normalizer of the disk's model not found",
        detail=f"the disk models have no ratio tables for {key}",
    )


def invalid(problem: str) -> Reason:
    """Return the words for a request that cannot be understood."""
    return Reason(text=problem, group=problem)


def short(
    node: str, dimension: int, *, asked: int, free: int, capacity: int, reserve: int = 0
) -> Reason:
    """Return the words for too little bandwidth; sizes in bytes per second.

    `reserve` is what the policy wants to stay free.
    """
    name = DIMENSIONS[dimension]
    words = f"disk IO {name} bandwidth is not enough"
    missing, asks, left, whole, kept = map(
        describe_size, (asked + reserve - free, asked, free, capacity, reserve)
    )
    reserved = f", {kept} stay free by reservePercent" if reserve else ""
    return Reason(
        text=f"node {node} {words}",
        group=words,
        detail=f"{name} short by {missing} (asks {asks}, free {left} of {whole}{reserved})",
    )
