"""Names of the XPU dialects that a policy sets: do the API server's own policies know them, too?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy, PolicySet, policy_from_manifest
from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster.cli.doctor import gating
from berthmaster.cli.doctor.facts import Facts, Unread
from berthmaster.cli.doctor.findings import Finding, Part, some

PART = Part("accelerators")
_DEFAULTS = repr(sorted(DEFAULT_NAMES.written_keys | DEFAULT_NAMES.asked))
_WAY_OUT = "add the names in your overlay, see docs/xpu.md"


def check(facts: Facts) -> Iterator[Finding]:
    """Look what the policies call things; with the default names nothing has to be said."""
    if facts.policies is None or isinstance(facts.policies, Unread):
        # The policies' own part tells.
        return
    policies = []
    for found in facts.policies:
        try:
            policies.append(policy_from_manifest(found))
        except ValidationError:
            continue
    yield from _check_agreement(policies)
    in_force = PolicySet(policies).xpu_names
    if in_force == DEFAULT_NAMES:
        return
    for name, keys, loss in (
        (gating.DROP, in_force.written_keys, "is believed when a user makes it up"),
        (gating.ANNOTATED, in_force.asked, _ungated("asks by annotation")),
        (names.SELECTED_POLICY, in_force.asked, _ungated("a PlacementPolicy opts in")),
    ):
        stored = facts.admission_objects.get((gating.MUTATING, name))
        # Where there is none, the component for older clusters does its work, by the default names.
        text = json.dumps(stored) if isinstance(stored, dict) else _DEFAULTS
        missing = sorted(it for it in keys if f"'{it}'" not in text)
        if missing:
            yield PART.warning(f"{name} does not know {some(missing)}: {loss}", _WAY_OUT)


def _ungated(who: str) -> str:
    return f"while we are away, a pod of mode preferred that {who} and asks for it is not gated"


def _check_agreement(policies: Sequence[PlacementPolicy]) -> Iterator[Finding]:
    naming = [it for it in policies if it.spec.concerns.xpu.names is not None]
    in_force = PolicySet(naming).xpu_names
    ignored = sorted(it.name for it in naming if it.spec.concerns.xpu.names != in_force)
    if ignored:
        yield PART.warning(
            f"{some(ignored)}: spec.concerns.xpu.names has no effect, a more important policy has others",
            f"kubectl edit placementpolicy {ignored[0]}",
        )
