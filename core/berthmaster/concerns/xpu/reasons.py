"""Codes of the XPU concern and the dialects' words for them."""

from __future__ import annotations

from collections.abc import Sequence

from berthmaster.concerns.shape import Reason

INVALID = 1
NOT_FOR_SHARES = 2
SHORT = 3
PENDING = 4
UNREGISTERED = 5
TOO_FEW_CARDS = 6
CARDS_DO_NOT_FIT = 7
TOO_MANY_HANDLES = 8
WAITING = 9


def invalid(problem: str) -> Reason:
    """Return the words for a request that cannot be understood."""
    return Reason(text=problem, group=problem)


def not_for_shares(node: str) -> Reason:
    """Return the words for a node whose capacity has no memory to share."""
    words = "is not for XPU share, need skip"
    return Reason(
        text=f"The node {node} {words}",
        group=f"node(s) {words}",
        detail="its capacity has no memory of devices",
    )


def short(count: int, need: str, free: Sequence[str]) -> Reason:
    """Return the words for devices without the memory; `free` has one text per device."""
    where = "one device" if count == 1 else f"{count} devices"
    words = f"Insufficient XPU Memory in {where}"
    detail = f"need {need}, free per device {','.join(free) or 'none, there are no devices'}"
    return Reason(text=f"{words}: {detail}", group=words, detail=detail)


def pending(count: int, total_mib: int, spare_mib: int, pending_mib: int) -> Reason:
    """Return the words for memory that pods may take whose devices are not known."""
    where = "one device" if count == 1 else f"{count} devices"
    words = f"Insufficient XPU Memory in {where}"
    detail = (
        f"need {total_mib} MiB, {max(0, spare_mib)} MiB are left beside {pending_mib} MiB of pods "
        "that run here without a known device"
    )
    return Reason(text=f"{words}: {detail}", group=words, detail=detail)


def unregistered() -> Reason:
    """Return the words for a node that serves no cards."""
    return Reason(
        text="node unregistered",
        group="node unregistered",
        detail="its device plugin has registered no cards",
    )


def too_few_cards(asked: int, cards: int) -> Reason:
    """Return the words for a node with fewer cards than are asked."""
    return Reason(
        text="NodeInsufficientDevice",
        group="NodeInsufficientDevice",
        detail=f"{asked} cards are asked, the node has {cards}",
    )


def cards_do_not_fit(counts: Sequence[tuple[int, str]], cards: int, detail: str) -> Reason:
    """Return the words for cards that do not fit: how many, of all, for which reason."""
    words = ", ".join(sorted(f"{count}/{cards} {word}" for count, word in counts))
    return Reason(text=words, group=", ".join(sorted({word for _, word in counts})), detail=detail)


def too_many_handles(handles: int, more: int, most: int) -> Reason:
    """Return the words for a driver that can serve no more slices."""
    words = "no handles left in the XPU driver"
    detail = f"{handles} are in use, {more} more are asked, {most} is the most"
    return Reason(text=f"{words}: {detail}", group=words, detail=detail)


def waiting(node: str, what: str) -> Reason:
    """Return the words for a node whose device plugin still has another such pod to serve."""
    words = f"device plugin has not served another pod {what} yet"
    return Reason(
        text=f"node {node}: {words}",
        group=f"the {words}",
        detail="it is not told which pod it serves, so they go there one after the other",
    )
