"""What a pod asks of the spread: its ReplicaSet, and whether it goes to control-plane nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_RATE = 32


class PodSpreadRequest(NamedTuple):
    """A pod of a ReplicaSet; `is_active` is set when the request is resolved."""

    owner: str
    tolerates_control_plane: bool = False
    is_strict: bool = False
    is_active: bool = True


class PodSpreadUsage(NamedTuple):
    """A pod counts for its ReplicaSet."""

    owner: str


def read_request(pod: Pod, policy: PlacementPolicySpec) -> PodSpreadRequest | None:
    """Return what the pod asks; None without a ReplicaSet, or a rate where one is needed."""
    settings = policy.concerns.podspread
    owner = owner_of(pod)
    text = rate_text(pod.annotations)
    if text is None:
        is_spread = settings.owner_annotation and not settings.strict_upstream
    else:
        is_spread = parse_rate(text) is not None
    if not owner or not is_spread:
        return None
    return PodSpreadRequest(owner, _tolerates_control_plane(pod), settings.strict_upstream)


def read_usage(pod: Pod) -> PodSpreadUsage | None:
    """Return for which ReplicaSet the pod counts.

    A pod that somebody bound counts once it is PodScheduled, as upstream has it; one that was only
    answered counts at once, or a burst would not spread.
    """
    owner = owner_of(pod)
    return (
        PodSpreadUsage(owner) if owner and (not pod.spec.node_name or is_scheduled(pod)) else None
    )


def owner_of(pod: Pod) -> str:
    """Return the uid of the ReplicaSet that controls the pod, empty for others."""
    controller = pod.metadata.controller()
    return controller.uid if controller is not None and controller.kind == "ReplicaSet" else ""


def is_scheduled(pod: Pod) -> bool:
    """Return whether the pod's condition says so."""
    return any(
        it.type == "PodScheduled" and it.status == "True" for it in pod.status.conditions or ()
    )


def rate_text(annotations: Mapping[str, str]) -> str | None:
    """Return the rate as written, under either generation's key."""
    return next((annotations[key] for key in names.SPREAD_RATES if key in annotations), None)


def parse_rate(text: str | None) -> float | None:
    """Return a rate of 0..1; None for what is none, as Go reads numbers."""
    if text is None or len(text) > _LONGEST_RATE or not _NUMBER.fullmatch(text):
        return None
    rate = float(text)
    return rate if 0 <= rate <= 1 else None


def _tolerates_control_plane(pod: Pod) -> bool:
    return any(
        (it.key, it.operator, it.effect) == (names.CONTROL_PLANE_LABEL, "Exists", "NoSchedule")
        for it in pod.spec.tolerations or ()
    )
