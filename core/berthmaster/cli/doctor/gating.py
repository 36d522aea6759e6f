"""The policies in the API server: they gate pods that ask, and protect what we wrote on them."""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Facts, JsonObject, Unread, dig
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("gate")
MUTATING = "mutatingadmissionpolicies"
MUTATING_BINDINGS = "mutatingadmissionpolicybindings"
VALIDATING = "validatingadmissionpolicies"
VALIDATING_BINDINGS = "validatingadmissionpolicybindings"
WEBHOOKS = "mutatingwebhookconfigurations"
ANNOTATED = "berthmaster-gate-annotated"
DROP = "berthmaster-drop-allocation"
_PROTECT = "berthmaster-protect-allocation"
_PRE_136 = (
    "Kubernetes 1.36 has the kind; for older clusters apply an overlay with the component "
    "config/components/pre-1.36"
)
# By plural: name, and what is lost without it.
OBJECTS: dict[str, dict[str, str]] = {
    MUTATING: {
        ANNOTATED: "pods that ask by annotation are not gated",
        names.SELECTED_POLICY: "no PlacementPolicy opts pods in",
        DROP: "an allocation that a user made up is believed",
    },
    MUTATING_BINDINGS: {
        ANNOTATED: "pods that ask by annotation are not gated",
        DROP: "an allocation that a user made up is believed",
    },
    VALIDATING: {_PROTECT: "anybody can change an allocation"},
    VALIDATING_BINDINGS: {_PROTECT: "anybody can change an allocation"},
}
_KINDS = {
    MUTATING: "MutatingAdmissionPolicy",
    MUTATING_BINDINGS: "MutatingAdmissionPolicyBinding",
    VALIDATING: "ValidatingAdmissionPolicy",
    VALIDATING_BINDINGS: "ValidatingAdmissionPolicyBinding",
}


def check(facts: Facts) -> Iterator[Finding]:
    """Look at the kinds that the API server serves, then at our objects of them."""
    kinds = facts.admission_kinds
    if isinstance(kinds, Unread):
        yield PART.not_checked("admission kinds", kinds.why)
        return
    good = 0
    serves_mutating = MUTATING in kinds
    if not serves_mutating:
        yield _without_policies(facts)
    for plural, wanted in OBJECTS.items():
        if plural in (MUTATING, MUTATING_BINDINGS) and not serves_mutating:
            continue
        for name, loss in wanted.items():
            found = facts.admission_objects.get((plural, name))
            title = f"{_KINDS[plural]} {name}"
            if isinstance(found, Unread):
                yield PART.not_checked(title, found.why)
            elif found is None:
                yield PART.broken(f"{title} is missing: {loss}", APPLY)
            elif fault := _fault(plural, found):
                yield PART.broken(f"{title}: {fault}", APPLY)
            else:
                good += 1
    if good:
        yield PART.ok(f"{good} admission policies and bindings are in place")


def _without_policies(facts: Facts) -> Finding:
    found = facts.admission_objects.get((WEBHOOKS, names.GATE_CONFIGURATION))
    version = facts.server_version
    if isinstance(found, Unread):
        return PART.not_checked(f"webhook configuration {names.GATE_CONFIGURATION}", found.why)
    if found is not None:
        return PART.ok(f"the webhook {names.GATE_CONFIGURATION} gates (Kubernetes {version})")
    return PART.broken(
        f"this API server ({version}) does not serve MutatingAdmissionPolicy: no pod is gated",
        _PRE_136,
    )


def _fault(plural: str, found: JsonObject) -> str:
    spec = dig(found, "spec") or {}
    if plural == MUTATING:
        if spec.get("reinvocationPolicy") != "Never":
            return "reinvocationPolicy must be Never, or the gate is put back after each decision"
        if spec.get("failurePolicy") != "Ignore":
            return "failurePolicy must be Ignore, or it stands in the way of pods that did not ask"
    if plural == VALIDATING_BINDINGS and "Deny" not in (spec.get("validationActions") or ()):
        return "validationActions lacks Deny: nothing is refused"
    if plural in (MUTATING_BINDINGS, VALIDATING_BINDINGS):
        name = str(dig(found, "metadata", "name"))
        if spec.get("policyName") != name:
            return f"policyName is {spec.get('policyName')}, expected {name}"
        if spec.get("matchResources"):
            return "matchResources narrows what the policy looks at"
    return ""
