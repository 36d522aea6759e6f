"""Are the kinds there, served at our version, with the schema that this version of us has?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from berthmaster.api import crds, names
from berthmaster.cli.doctor.facts import Facts, JsonObject, Unread, dig, items
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("kinds")
UPSTREAM = (f"nodediskdevices.{names.DISKIO_GROUP}", f"nodediskiostats.{names.DISKIO_GROUP}")
OURS: dict[str, Mapping[str, Any]] = {
    crd["metadata"]["name"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in crds.render().values()
}
ALL = (*OURS, *UPSTREAM)
_VERSION = "v1alpha1"
_DESCRIBES = frozenset({"description", "title", "example"})


def check(facts: Facts) -> Iterator[Finding]:
    """Look at each definition."""
    good = []
    for name in ALL:
        found = facts.definitions.get(name)
        if isinstance(found, Unread):
            yield PART.not_checked(name, found.why)
        elif found is None:
            yield PART.broken(f"the CustomResourceDefinition {name} is missing", APPLY)
        elif not _is_served(found):
            yield PART.broken(f"{name} does not serve {_VERSION}", APPLY)
        elif name in OURS and (difference := _difference(found, OURS[name])):
            yield PART.warning(
                f"{name} has the schema of another version: {difference}",
                f"{APPLY}; or use the kubectl berth of that version",
            )
        else:
            good.append(name.partition(".")[0])
    if good:
        yield PART.ok(f"{', '.join(good)} served as {_VERSION}")


def _is_served(found: JsonObject) -> bool:
    established = any(
        it.get("type") == "Established" and it.get("status") == "True"
        for it in items(found, "status", "conditions")
    )
    return established and any(
        it.get("name") == _VERSION and it.get("served") for it in items(found, "spec", "versions")
    )


def _difference(found: JsonObject, wanted: Mapping[str, Any]) -> str:
    version = next(it for it in items(found, "spec", "versions") if it.get("name") == _VERSION)
    return find_difference(dig(version, "schema", "openAPIV3Schema"), wanted)


def find_difference(found: Any, wanted: Any, at: str = "") -> str:
    """Return the first place where two schemas differ in more than words, empty if none does."""
    where = at or "the root"
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        # Below `properties` keys are names of fields, and a field may be called `description`.
        ignored = frozenset[str]() if at.endswith("properties") else _DESCRIBES
        for key in sorted((found.keys() | wanted.keys()) - ignored):
            if key not in found:
                return f"{where} lacks {key}"
            if key not in wanted:
                return f"{where} has {key} beyond ours"
            below = find_difference(found[key], wanted[key], f"{at}.{key}" if at else key)
            if below:
                return below
        return ""
    if isinstance(found, list) and isinstance(wanted, list | tuple):
        if len(found) != len(wanted):
            return f"{where} has {len(found)} entries, ours {len(wanted)}"
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((it for i, (a, b) in pairs if (it := find_difference(a, b, f"{at}[{i}]"))), "")
    return "" if found == wanted else f"{where} is {found!r}, ours {wanted!r}"
