"""Node affinity joined with a pod's own: requirements AND-ed into each of its terms, preferences added.

Terms of a list are alternatives, expressions within one must all hold, and an empty term matches no
node. So two lists are joined by their product: each own term with each injected one, the own ones
outside. Empty terms are left out on both sides; where nothing is left to inject, nothing changes.

What is here builds whole lists, for pods that are being created. A stored pod at its gate allows
less; see `affinity`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from berthmaster.api.json_pointer import unescape
from berthmaster.placement.affinity import (
    PREFERRED_KEY,
    REQUIRED_KEY,
    TERMS_KEY,
    Operation,
    RawPod,
    set_node_affinity,
)

Term = Mapping[str, Any]
_PARTS = ("matchExpressions", "matchFields")


def inject(
    pod: RawPod, *, required: Sequence[Term] = (), preferred: Sequence[Mapping[str, Any]] = ()
) -> list[Operation]:
    """Return what joins terms with the pod's own.

    `required` are node selector terms, `preferred` weighted ones. A preference that stands there already
    is not added again, nor is an expression to a term that has it; so with at most one required term
    this returns nothing on its own output.
    """
    affinity = (pod.get("spec", {}).get("affinity") or {}).get("nodeAffinity") or {}
    parts: dict[str, object] = {}
    own = (affinity.get(REQUIRED_KEY) or {}).get(TERMS_KEY)
    joined = join(own, required)
    if joined is not None and joined != own:
        parts[REQUIRED_KEY] = {TERMS_KEY: joined}
    known = affinity.get(PREFERRED_KEY) or []
    added = [it for it in preferred if it not in known]
    if added:
        parts[PREFERRED_KEY] = [*known, *added]
    return set_node_affinity(pod, parts) if parts else []


def add(pod: RawPod, operations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the pod after JSON Patch operations, all of which are `add`."""
    after = copy.deepcopy(dict(pod))
    for operation in operations:
        *path, last = map(unescape, operation["path"].removeprefix("/").split("/"))
        target: Any = after
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if isinstance(target, list):
            target.insert(len(target) if last == "-" else int(last), operation["value"])
        else:
            target[last] = operation["value"]
    return after


def join(own: Sequence[Term] | None, injected: Sequence[Term]) -> list[Term] | None:
    """Return the terms that hold where both lists do; None: as before."""
    wanted = [_both(it, {}) for it in injected if not _is_empty(it)]
    if not wanted:
        return None
    kept = [it for it in own or () if not _is_empty(it)]
    if not kept:
        return wanted
    return [_both(term, further) for term in kept for further in wanted]


def own_keys(pod: RawPod) -> frozenset[str]:
    """Return the label keys by which a pod chooses nodes itself, required or preferred."""
    spec = pod.get("spec", {})
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = [
        *((affinity.get(REQUIRED_KEY) or {}).get(TERMS_KEY) or ()),
        *(it.get("preference") or {} for it in affinity.get(PREFERRED_KEY) or ()),
    ]
    return frozenset(spec.get("nodeSelector") or ()).union(*map(keys_of, terms))


def keys_of(term: Term) -> frozenset[str]:
    """Return the label keys of a term."""
    return frozenset(str(it.get("key")) for it in term.get("matchExpressions") or ())


def _both(term: Term, further: Term) -> Term:
    joined = {}
    for part in _PARTS:
        own, added = term.get(part) or [], further.get(part) or []
        whole = [*own, *(it for it in added if it not in own)]
        if whole:
            joined[part] = whole
    return joined


def _is_empty(term: Term) -> bool:
    return not any(term.get(part) for part in _PARTS)
