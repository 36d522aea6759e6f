"""One MutatingAdmissionPolicyBinding per PlacementPolicy that opts pods in.

The static policy `berthmaster-gate-selected` does the work in the API server; a binding tells it
which pods, by the selectors of one PlacementPolicy, and hands that PlacementPolicy over as its
parameter. The binding is owned by the PlacementPolicy and goes with it; it is taken away when the
PlacementPolicy has no selectors any more. A PlacementPolicy that is `off` has one, too: it keeps its
pods from policies that it outranks. Server-side apply, so a second write of the same is none.

Clusters before 1.36 do not have the kind; there `gates` does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy
from berthmaster.api.schema import LabelSelector
from berthmaster.cluster.client import JsonObject, PatchKind, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.stores import Deletes, Patches
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.metrics import Metrics

API_VERSION = "admissionregistration.k8s.io/v1"
KIND = "MutatingAdmissionPolicyBinding"
COLLECTION = f"/apis/{API_VERSION}/mutatingadmissionpolicybindings"
WRITE_TIMEOUT_S = 10.0
# What a hand changed in a binding is put right after so long.
RESYNC_S = 600.0
_LONGEST_NAME = 253
_APPLY: Query = {"fieldManager": names.OPERATOR_MANAGER, "force": True}


class Store(Deletes, Patches, Protocol):
    """Name the part of `Client` that is needed here."""


def binding_name(policy: str) -> str:
    """Return the binding's name; one that would be too long ends in a digest instead."""
    name = f"{names.BINDING_PREFIX}{policy}"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(policy.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - 17].rstrip('.-')}-{digest}"


def build_binding(policy: PlacementPolicy) -> JsonObject | None:
    """Return the binding for a policy, None if the policy opts nobody in."""
    spec = policy.spec
    if not spec.selects_anything:
        return None
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": binding_name(policy.name),
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": "PlacementPolicy",
                    "name": policy.name,
                    "uid": policy.uid,
                }
            ],
        },
        "spec": {
            "policyName": names.SELECTED_POLICY,
            "paramRef": {"name": policy.name, "parameterNotFoundAction": "Allow"},
            "matchResources": {
                "matchPolicy": "Equivalent",
                "namespaceSelector": build_selector(spec.namespace_selector),
                "objectSelector": build_selector(spec.pod_selector),
            },
        },
    }


def build_selector(selector: LabelSelector | None) -> dict[str, Any]:
    """Return a selector as the API has it; none and an empty one both select everything."""
    if selector is None:
        return {}
    wire: dict[str, Any] = {}
    if selector.match_labels:
        wire["matchLabels"] = dict(selector.match_labels)
    if selector.match_expressions:
        wire["matchExpressions"] = [
            {
                "key": it.key,
                "operator": it.operator,
                **({"values": list(it.values)} if it.values else {}),
            }
            for it in selector.match_expressions
        ]
    return wire


class BindingReconciler:
    """Keep the bindings in line with the policies; keys are policy names."""

    def __init__(
        self, store: Store, fleet: Fleet, *, may_write: Callable[[], bool], metrics: Metrics
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._may_write = may_write
        self._metrics = metrics

    async def reconcile(self, name: str) -> float | None:
        """Apply or take away one policy's binding; return when to look again. Raises ClusterError."""
        if not self._fleet.is_complete or not self._may_write():
            return None
        policy = self._fleet.policies.get(name)
        path = f"{COLLECTION}/{binding_name(name)}"
        wanted = build_binding(policy) if policy is not None else None
        if wanted is None:
            await self._remove(path)
            return None
        await self._store.patch(path, wanted, PatchKind.APPLY, _APPLY, timeout_s=WRITE_TIMEOUT_S)
        self._metrics.count_write(KIND, "apply")
        return RESYNC_S

    async def _remove(self, path: str) -> None:
        try:
            await self._store.delete(path, timeout_s=WRITE_TIMEOUT_S)
            self._metrics.count_write(KIND, "delete")
        except ApiError as error:
            if not error.is_not_found:
                raise
