"""What counts for a pod: whether it is ours to place, by which policy, in which mode.

The annotation `berthmaster.io/placement` is the user's word, unless the API server's policy has
written it for a PlacementPolicy that took the pod over; then `berthmaster.io/policy` names that
policy, and the mode of the policy that counts today is the pod's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode, PlacementPolicy
from berthmaster_webhook.state import ClusterState

_MODES = frozenset(map(str, Mode))
_NEVER_GATED = frozenset({Mode.PREFERRED, Mode.OBSERVE, Mode.OFF})


class Standing(StrEnum):
    """How sure the answer is."""

    KNOWN = "known"
    # Its namespace, or the policy that took it over, has not been seen yet (or never will be).
    NAMESPACE_UNSEEN = "namespace_unseen"
    POLICY_UNSEEN = "policy_unseen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """`mode` is what the pod asks for; None where its text is no mode (see `text`)."""

    policy: PlacementPolicy
    mode: Mode | None
    text: str = ""
    standing: Standing = Standing.KNOWN

    @property
    def may_wait(self) -> bool:
        """Return whether the pod waits at the gate while it has no node; so do unknown modes."""
        return self.mode not in _NEVER_GATED


def read_effective(state: ClusterState, pod: Pod) -> Effective:
    """Return what counts for a pod now."""
    annotations = pod.annotations
    taken_by = annotations.get(names.POLICY, "")
    labels = state.namespace_labels(pod.metadata.namespace)
    policy = state.policies.choose(
        pod.metadata.labels or {},
        labels or {},
        scheduler_name=pod.asked_scheduler,
        resources=pod.asked_resources,
    )
    standing = Standing.KNOWN
    if labels is None and state.policies.specs:
        standing = Standing.NAMESPACE_UNSEEN
    text = annotations.get(names.PLACEMENT)
    if text is not None and not taken_by:
        mode = _mode_of(state, pod, policy, text) if text in _MODES else None
        return Effective(policy=policy, mode=mode, text=text, standing=standing)
    opted_in = policy.spec.selects_anything
    if taken_by and state.policy(taken_by) is not None:
        opted_in = True
    elif taken_by and standing is Standing.KNOWN:
        standing = Standing.POLICY_UNSEEN
    mode = _mode_of(state, pod, policy, policy.spec.mode if opted_in else Mode.OFF)
    return Effective(policy=policy, mode=mode, standing=standing)


def _mode_of(state: ClusterState, pod: Pod, policy: PlacementPolicy, text: str) -> Mode:
    return state.engine.mode_of(pod, policy.spec, Mode(text))


def foreign_gates(pod: Pod) -> tuple[str, ...]:
    """Return the gates of others; while there is one, the pod may still be changed by its owner."""
    return tuple(gate for gate in pod.gates if gate != names.GATE)


def waits_at_gate(pod: Pod) -> bool:
    """Return whether a stored pod waits for us and for nobody else."""
    if not pod.spec.scheduling_gates or names.GATE not in pod.gates:
        return False
    return not (foreign_gates(pod) or pod.metadata.deletion_timestamp or pod.is_finished)
