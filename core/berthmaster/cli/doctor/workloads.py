"""Opt-ins that nobody reads: on a Deployment instead of its template, or where pods are exempt."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    annotations_of,
    dig,
    items,
    mapping,
    metadata,
    name_of,
)
from berthmaster.cli.doctor.findings import Finding, Part

PART = Part("opt-in")
# By kind: where it is listed, and where its pods' metadata is.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Deployment": ("/apis/apps/v1/deployments", ("spec", "template", "metadata")),
    "StatefulSet": ("/apis/apps/v1/statefulsets", ("spec", "template", "metadata")),
    "DaemonSet": ("/apis/apps/v1/daemonsets", ("spec", "template", "metadata")),
    "Job": ("/apis/batch/v1/jobs", ("spec", "template", "metadata")),
    "CronJob": (
        "/apis/batch/v1/cronjobs",
        ("spec", "jobTemplate", "spec", "template", "metadata"),
    ),
}
_KEYS = (names.PLACEMENT, names.DISKIO_REQUEST)
_MOST_TOLD = 5


def check(facts: Facts) -> Iterator[Finding]:
    """Look at what makes pods."""
    told = 0
    for kind, listed in facts.workloads.items():
        if isinstance(listed, Unread):
            yield PART.not_checked(f"{kind}s", listed.why)
            continue
        for found in listed or ():
            finding = _check_one(kind, found)
            if finding is not None:
                told += 1
                if told <= _MOST_TOLD:
                    yield finding
    if told > _MOST_TOLD:
        yield PART.warning(f"{told - _MOST_TOLD} more like these", "correct these and look again")
    if not told and any(not isinstance(it, Unread) for it in facts.workloads.values()):
        yield PART.ok("no workload asks where nobody reads it")


def _check_one(kind: str, found: JsonObject) -> Finding | None:
    # What a controller made was copied from the object above it.
    if any(it.get("controller") for it in items(found, "metadata", "ownerReferences")):
        return None
    key = f"{kind} {metadata(found).get('namespace')}/{name_of(found)}"
    template = mapping(dig(found, *KINDS[kind][1]))
    there = mapping(template.get("annotations"))
    labels = mapping(template.get("labels"))
    misplaced = {it: annotations_of(found)[it] for it in _KEYS if it in annotations_of(found)}
    missing = {it: text for it, text in misplaced.items() if it not in there}
    if missing:
        return PART.warning(
            f"{key} carries {' and '.join(missing)} in its own metadata, where nobody reads it: it "
            "belongs into the pod template's",
            _patch(kind, found, missing),
        )
    if names.PLACEMENT in labels and names.PLACEMENT not in there:
        return PART.warning(
            f"the pods of {key} carry {names.PLACEMENT} as a label: it is read as an annotation",
            _patch(kind, found, {names.PLACEMENT: labels[names.PLACEMENT]}),
        )
    if kind == "DaemonSet" and there.get(names.PLACEMENT, "off") != "off":
        return PART.warning(
            f"the pods of {key} ask for placement: pods of DaemonSets are exempt",
            "take the annotation off",
        )
    return None


def _patch(kind: str, found: JsonObject, annotations: dict[str, object]) -> str:
    if kind == "Job":
        # Its template is final.
        return "create the Job anew with the annotation in its template"
    body: dict[str, object] = {"annotations": annotations}
    for key in reversed(KINDS[kind][1]):
        body = {key: body}
    where = f"-n {metadata(found).get('namespace')} {kind.lower()}/{name_of(found)}"
    # Quoted, since anybody may have written the annotation, and this is copied into a shell.
    return f"kubectl patch {where} --type merge -p {shlex.quote(json.dumps(body))}"
