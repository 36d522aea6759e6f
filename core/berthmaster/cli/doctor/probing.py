"""The proof of the whole way: what the API server makes of a pod that asks, in a dry run."""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Facts, JsonObject, Unread
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("dry run")
# It asks for nothing, tolerates everything, and passes the strictest Pod Security standard.
PROBE: JsonObject = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "generateName": "berthmaster-doctor-",
        "annotations": {names.PLACEMENT: "required"},
    },
    "spec": {
        "tolerations": [{"operator": "Exists"}],
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "probe",
                "image": "registry.k8s.io/pause:3.10",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"},
                    "limits": {"cpu": "1m", "memory": "1Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}


def check(facts: Facts) -> Iterator[Finding]:
    """Say what came of it."""
    tried = facts.tried
    if isinstance(tried, Unread):
        yield PART.not_checked("a pod that asks", tried.why)
    elif tried.node:
        yield PART.ok(f"a pod that asks is placed while it is created, on {tried.node}")
    elif tried.is_gated:
        yield PART.warning(
            "a pod that asks is created behind the gate and not placed at once: the webhook cannot be "
            "called, is just taking over, or no node fits",
            f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-webhook",
        )
    else:
        yield PART.broken("a pod that asks is neither gated nor placed", APPLY)
