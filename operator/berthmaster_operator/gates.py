"""The gate for clusters without MutatingAdmissionPolicy: one webhook per PlacementPolicy.

`config/components/pre-1.36` installs the configuration `berthmaster-gate` with the webhooks that need
no policy. Here those are added that opt in the pods which a PlacementPolicy selects: its selectors and
conditions are the API server's business, and the path tells the webhook all the rest. All fields of
these and the bundle of every one are applied by one manager as one set, so that the webhook of a
deleted policy goes with the next write.

The conditions say the same as config/base/admission/gate-selected-policy.yaml, with the policy's values
in the place of `params`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy
from berthmaster.cluster.client import JsonObject
from berthmaster_operator.bindings import build_selector

SUFFIX = ".policy.berthmaster.io"
# Stateless and in memory; an API server or a machine that is busy has this long.
TIMEOUT_S = 5
_LONGEST_NAME = 253

_NOT_OF_A_DAEMON_SET = (
    "!has(object.metadata.ownerReferences) || "
    "!object.metadata.ownerReferences.exists(o, o.kind == 'DaemonSet')"
)
_NOT_A_MIRROR = (
    f"!has(object.metadata.annotations) || !('{names.MIRROR_POD}' in object.metadata.annotations)"
)
_NOT_BOUND = "!has(object.spec.nodeName) || object.spec.nodeName == ''"


class GateConfiguration:
    """What the operator owns of `berthmaster-gate`."""

    name = names.GATE_CONFIGURATION

    def __init__(self, policies: Callable[[], Iterable[PlacementPolicy]], namespace: str) -> None:
        self._policies = policies
        self._namespace = namespace

    def entries(self, found: JsonObject, bundle: bytes) -> list[JsonObject]:
        """Return the bundle for the webhooks that config/ applied, and whole ones for policies."""
        encoded = base64.b64encode(bundle).decode()
        fixed: list[JsonObject] = [
            {"name": it["name"], "clientConfig": {"caBundle": encoded}}
            for it in found.get("webhooks") or ()
            if not it["name"].endswith(SUFFIX)
        ]
        for webhook in self._webhooks():
            webhook["clientConfig"]["caBundle"] = encoded
            fixed.append(webhook)
        return fixed

    def is_outdated(self, found: JsonObject) -> bool:
        """Tell whether the webhooks of policies are not what the policies say."""
        there = [it for it in found.get("webhooks") or () if it["name"].endswith(SUFFIX)]
        wanted = {it["name"]: it for it in self._webhooks()}
        if wanted.keys() != {it["name"] for it in there}:
            return True
        return any(not _holds(it, wanted[it["name"]]) for it in there)

    def _webhooks(self) -> list[JsonObject]:
        # The first by rank comes first, so that it is mostly the only one that is called.
        ranked = sorted(self._policies(), key=lambda it: (-it.spec.priority, it.name))
        return [build_webhook(it, self._namespace) for it in ranked if it.spec.selects_anything]


def build_webhook(policy: PlacementPolicy, namespace: str) -> JsonObject:
    """Return the webhook that opts in a policy's pods, without the bundle."""
    spec = policy.spec
    exempt = {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": list(dict.fromkeys([*names.EXEMPT_NAMESPACES, namespace])),
    }
    selector = build_selector(spec.namespace_selector)
    selector["matchExpressions"] = [*selector.get("matchExpressions", ()), exempt]
    return {
        "name": webhook_name(policy.name),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": TIMEOUT_S,
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "Never",
        "clientConfig": {
            "service": {
                "namespace": namespace,
                "name": names.GATE_SERVICE,
                "port": names.WEBHOOK_PORT,
                "path": build_path(policy),
            }
        },
        "namespaceSelector": selector,
        "objectSelector": build_selector(spec.pod_selector),
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ],
        "matchConditions": _conditions(policy),
    }


def build_path(policy: PlacementPolicy) -> str:
    """Return the path that tells the webhook what to do with the policy's pods."""
    spec = policy.spec
    priority = f"{'m' if spec.priority < 0 else 'p'}{abs(spec.priority)}"
    schedulers = "named" if spec.scheduler_names else "any"
    return f"/gate/selected/{spec.mode}/{priority}/{schedulers}/{policy.name}"


def webhook_name(policy: str) -> str:
    """Return the webhook's name; one that would be too long ends in a digest instead."""
    if len(policy) + len(SUFFIX) <= _LONGEST_NAME:
        return policy + SUFFIX
    digest = hashlib.sha256(policy.encode()).hexdigest()[:16]
    return f"{policy[: _LONGEST_NAME - len(SUFFIX) - 17].rstrip('.-')}-{digest}{SUFFIX}"


def _conditions(policy: PlacementPolicy) -> list[dict[str, str]]:
    annotations = "object.metadata.annotations"
    placement, by, rank = (
        f"'{it}'" for it in (names.PLACEMENT, names.POLICY, names.POLICY_PRIORITY)
    )
    stamped = f"int({annotations}[{rank}])"
    priority = policy.spec.priority
    conditions = {
        "does-not-ask-or-is-outranked": (
            f"!has({annotations}) || !({placement} in {annotations}) || "
            f"({by} in {annotations} && {rank} in {annotations} && "
            f"{annotations}[{rank}].matches('^-?[0-9]{{1,7}}$') && "
            f"({stamped} < {priority} || ({stamped} == {priority} && "
            f"{_quote(policy.name)} < {annotations}[{by}])))"
        ),
        "not-of-a-daemon-set": _NOT_OF_A_DAEMON_SET,
        "not-a-mirror": _NOT_A_MIRROR,
        "not-bound": _NOT_BOUND,
    }
    if policy.spec.scheduler_names:
        taken = f"[{', '.join(map(_quote, policy.spec.scheduler_names))}]"
        replaced = f"'{names.REPLACED_SCHEDULER}'"
        conditions["scheduler-is-taken-over"] = (
            f"has({annotations}) && {replaced} in {annotations} "
            f"? {annotations}[{replaced}] in {taken} "
            f": has(object.spec.schedulerName) && object.spec.schedulerName in {taken}"
        )
    if policy.spec.resource_names:
        asked = f"[{', '.join(map(_quote, policy.spec.resource_names))}]"
        conditions["asks-for-a-resource"] = _asks_for(asked)
    return [{"name": name, "expression": text} for name, text in conditions.items()]


def _asks_for(resources: str) -> str:
    named = (
        f"(has(c.resources.limits) && c.resources.limits.exists(r, r in {resources})) || "
        f"(has(c.resources.requests) && c.resources.requests.exists(r, r in {resources}))"
    )
    asks = f"has(c.resources) && ({named})"
    return (
        f"object.spec.containers.exists(c, {asks}) || "
        f"(has(object.spec.initContainers) && object.spec.initContainers.exists(c, {asks}))"
    )


def _quote(text: str) -> str:
    """Return a CEL literal: its escapes are those of JSON."""
    return json.dumps(text)


def _holds(found: Any, wanted: Any) -> bool:
    """Tell whether everything wanted is there; lists must be equal, maps may hold more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            _holds(found.get(key), value) or (value == {} and key not in found)
            for key, value in wanted.items()
        )
    return bool(found == wanted)
