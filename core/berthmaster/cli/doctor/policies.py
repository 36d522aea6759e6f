"""PlacementPolicies: does each act, and does none stand in another's way?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.policy import Mode, PlacementPolicy, policy_from_manifest
from berthmaster.api.schema import LabelSelector
from berthmaster.cli.doctor import gating
from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    annotations_of,
    dig,
    mapping,
    metadata,
    name_of,
)
from berthmaster.cli.doctor.findings import Finding, Part

PART = Part("policies")
_EDIT = "kubectl edit placementpolicy {}"


def check(facts: Facts) -> Iterator[Finding]:
    """Look at each policy by itself, at pairs, and at the binding of each."""
    listed = facts.policies
    if listed is None:
        # The kinds say that ours is missing.
        return
    if isinstance(listed, Unread):
        yield PART.not_checked("PlacementPolicies", listed.why)
        return
    policies: list[PlacementPolicy] = []
    findings: list[Finding] = []
    for found in listed:
        try:
            policies.append(policy_from_manifest(found))
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            name = name_of(found)
            findings.append(
                PART.broken(f"{name} cannot be read: {at}: {first['msg']}", _EDIT.format(name))
            )
    findings += _check_bindings(policies, facts)
    findings += _check_namespaces(policies, facts)
    findings += _check_pairs(policies)
    yield from findings
    if not findings:
        taking = sum(policy.spec.selects_anything for policy in policies)
        settings = len(policies) - taking
        yield PART.ok(
            f"{taking} opt pods in, {settings} only give settings"
            if policies
            else "there is none: pods opt in by annotation, and the defaults hold"
        )


def _check_bindings(policies: Sequence[PlacementPolicy], facts: Facts) -> Iterator[Finding]:
    """Look whether each policy that opts pods in has reached the API server's admission."""
    taking = [policy for policy in policies if policy.spec.selects_anything]
    kinds, listed = facts.admission_kinds, facts.policy_bindings
    if not taking or isinstance(kinds, Unread) or gating.MUTATING_BINDINGS not in kinds:
        return
    if listed is None or isinstance(listed, Unread):
        why = listed.why if isinstance(listed, Unread) else "the kind is not served"
        yield PART.not_checked("the policies' bindings", why)
        return
    by_policy: dict[str, JsonObject] = {
        str(dig(it, "spec", "paramRef", "name")): it
        for it in listed
        if dig(it, "spec", "policyName") == names.SELECTED_POLICY
    }
    logs = f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-operator"
    for policy in taking:
        binding = by_policy.get(policy.name)
        if binding is None:
            yield PART.broken(
                f"{policy.name} opts no pod in: its MutatingAdmissionPolicyBinding is missing",
                f"the operator makes it within seconds while it runs: {logs}",
            )
        elif not _selects_alike(binding, policy):
            yield PART.broken(
                f"{policy.name}: its MutatingAdmissionPolicyBinding {name_of(binding)} selects other "
                "pods than the policy",
                f"kubectl delete mutatingadmissionpolicybinding {name_of(binding)} and "
                f"kubectl -n {facts.system_namespace} rollout restart deployment/berthmaster-operator",
            )


def _selects_alike(binding: JsonObject, policy: PlacementPolicy) -> bool:
    resources = mapping(dig(binding, "spec", "matchResources"))
    pairs = (
        ("namespaceSelector", policy.spec.namespace_selector),
        ("objectSelector", policy.spec.pod_selector),
    )
    return all(
        LabelSelector.model_validate(resources.get(key) or {}) == (wanted or LabelSelector())
        for key, wanted in pairs
    )


def _check_namespaces(policies: Sequence[PlacementPolicy], facts: Facts) -> Iterator[Finding]:
    namespaces = facts.namespaces
    if namespaces is None or isinstance(namespaces, Unread):
        return
    labels = [mapping(metadata(it).get("labels")) for it in namespaces]
    for policy in policies:
        selector = policy.spec.namespace_selector
        if selector is not None and not any(selector.matches(it) for it in labels):
            wanted = ", ".join(f"{key}={text}" for key, text in selector.match_labels.items())
            yield PART.warning(
                f"{policy.name} selects no namespace that there is",
                f"kubectl label namespace NAMESPACE {wanted}"
                if wanted
                else _EDIT.format(policy.name),
            )
    for found in namespaces:
        if names.PLACEMENT in annotations_of(found):
            yield PART.warning(
                f"the namespace {name_of(found)} carries the annotation {names.PLACEMENT}, which "
                "nobody reads there",
                "a PlacementPolicy with a namespaceSelector opts a namespace in: "
                "config/samples/placement-policy-namespaces.yaml",
            )


def _check_pairs(policies: Sequence[PlacementPolicy]) -> Iterator[Finding]:
    """Look for policies that never count, and for equals that want different things."""
    ordered = sorted(policies, key=lambda it: (-it.spec.priority, it.name))
    taking = [it for it in ordered if it.spec.selects_anything]
    for first, second in combinations(taking, 2):
        if _covers(first, second):
            off = ", and is off" if first.spec.mode is Mode.OFF else ""
            yield PART.warning(
                f"{second.name} never counts: {first.name} selects all of its pods before it "
                f"(priority {first.spec.priority} and {second.spec.priority}){off}",
                _EDIT.format(second.name) + "   # a higher priority, or delete it",
            )
        elif first.spec.priority == second.spec.priority and _overlap(first, second):
            yield PART.warning(
                f"{first.name} and {second.name} have the same priority {first.spec.priority}, other "
                f"settings, and may select the same pods; {first.name} counts, by its name",
                _EDIT.format(first.name) + "   # another priority says what is meant",
            )


def _covers(first: PlacementPolicy, second: PlacementPolicy) -> bool:
    a, b = first.spec, second.spec
    everything = LabelSelector()
    return (
        (a.namespace_selector or everything) in (everything, b.namespace_selector)
        and (a.pod_selector or everything) in (everything, b.pod_selector)
        and (not a.scheduler_names or set(b.scheduler_names) <= set(a.scheduler_names) != set())
        and not (a.scheduler_names and not b.scheduler_names)
        and (not a.resource_names or (set() < set(b.resource_names) <= set(a.resource_names)))
    )


def _overlap(first: PlacementPolicy, second: PlacementPolicy) -> bool:
    """Return whether a pod may be selected by both that want different things of it."""
    a, b = first.spec, second.spec
    if (a.mode, a.concerns, a.on_invalid) == (b.mode, b.concerns, b.on_invalid):
        return False
    if a.scheduler_names and b.scheduler_names:
        return bool(set(a.scheduler_names) & set(b.scheduler_names))
    # Two that name different resources meet only in a pod that asks for both, which is rare.
    if a.resource_names and b.resource_names and not set(a.resource_names) & set(b.resource_names):
        return False
    return not (
        _exclude(a.namespace_selector, b.namespace_selector)
        or _exclude(a.pod_selector, b.pod_selector)
    )


def _exclude(a: LabelSelector | None, b: LabelSelector | None) -> bool:
    """Return whether two selectors ask different values of one label."""
    if a is None or b is None:
        return False
    return any(b.match_labels.get(key, text) != text for key, text in a.match_labels.items())
