"""What the cluster would make of a pod before it looks for a node: whether it is ours, by whose word.

The same rules as in the API server's policies and in the webhook, on a snapshot: the pod's own
annotation first, then the policy that opts it in, then nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode, PlacementPolicy
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.placement.opting import unknown_mode, why_exempt
from berthmaster.placement.shapes import PodRequest

_MODES = frozenset(map(str, Mode))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What counts for a pod.

    `mode` is None for a pod that does not ask. `taken_over_by` is the policy that opts it in where
    it does not ask itself. `error` holds the faults of a request that cannot be understood; the
    request is then one that every node refuses.
    """

    policy: PlacementPolicy
    mode: Mode | None
    request: PodRequest
    taken_over_by: str = ""
    exempt: str = ""
    error: InvalidRequestError | None = None

    @property
    def why_not_ours(self) -> str:
        """Return why the pod would be left to kube-scheduler, empty if it would not."""
        if self.exempt:
            return self.exempt
        if self.mode is None and self.error is None:
            return f"it carries no annotation {names.PLACEMENT} and no policy selects it"
        if self.mode is Mode.OFF:
            whose = f"policy {self.taken_over_by}" if self.taken_over_by else names.PLACEMENT
            return f"{whose} says off"
        return ""


def read_asking(pod: Pod, snapshot: Snapshot, *, own_namespace: str) -> Asking:
    """Return what counts for a pod that would be created now."""
    policy = snapshot.policy_of(pod)
    text = pod.annotations.get(names.PLACEMENT)
    mode, taken_over_by = None, ""
    error: InvalidRequestError | None = None
    if text is None:
        labels = snapshot.namespace_labels.get(pod.metadata.namespace, {})
        taker = snapshot.policies.taken_over_by(
            pod.metadata.labels or {},
            labels,
            scheduler_name=pod.asked_scheduler,
            resources=pod.asked_resources,
        )
        if taker is not None:
            # As in the webhook: a policy that outranks it gives the mode.
            mode, taken_over_by = policy.spec.mode, taker.name
    elif text in _MODES:
        mode = Mode(text)
    else:
        error = unknown_mode(text)
    if mode is not None:
        mode = snapshot.engine.mode_of(pod, policy.spec, mode)
    try:
        request = snapshot.engine.read_request(pod, policy.spec)
    except InvalidRequestError as found:
        error = found if error is None else error
        request = snapshot.engine.read_request(pod, policy.spec, is_strict=False)
    return Asking(
        policy=policy,
        mode=mode,
        request=request,
        taken_over_by=taken_over_by,
        exempt=why_exempt(pod, own_namespace),
        error=error,
    )
