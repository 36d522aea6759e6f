"""Pods out of manifests: from files or stdin, from several documents, from the kinds that make pods.

What is no pod and makes none (a Service beside a Deployment) is left out and said so. Pods come out
as the API server would hand them to admission, as far as that needs no cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from berthmaster.api import names
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cli.errors import CommandError

Manifest = Mapping[str, Any]

MAX_BYTES = 16 * 1024 * 1024
STDIN = "-"
# Where each kind keeps the template of its pods, and where it says how many; 1 if it does not.
_TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Deployment": (("spec", "template"), ("spec", "replicas")),
    "StatefulSet": (("spec", "template"), ("spec", "replicas")),
    "ReplicaSet": (("spec", "template"), ("spec", "replicas")),
    "ReplicationController": (("spec", "template"), ("spec", "replicas")),
    "DaemonSet": (("spec", "template"), ()),
    "Job": (("spec", "template"), ("spec", "parallelism")),
    "CronJob": (
        ("spec", "jobTemplate", "spec", "template"),
        ("spec", "jobTemplate", "spec", "parallelism"),
    ),
    "PodTemplate": (("template",), ()),
}
_GIVE = f"give a Pod or one of {', '.join(_TEMPLATES)}"
_KIND_IS_ANNOTATED = (names.PLACEMENT, names.DISKIO_REQUEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A pod, or what makes `replicas` equal ones. `raw` is the pod as written, with its namespace."""

    kind: str
    name: str
    replicas: int
    pod: Pod
    raw: Manifest

    @property
    def key(self) -> str:
        """Return `namespace/name`, with the kind before it where it is no pod."""
        key = f"{self.pod.metadata.namespace}/{self.name}"
        return key if self.kind == "Pod" else f"{self.kind} {key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """What was found; `notes` say what was left out or looks wrong."""

    workloads: tuple[Workload, ...]
    notes: tuple[str, ...] = ()


def read_sources(sources: Sequence[str], namespace: str, *, is_forced: bool = False) -> Manifests:
    """Read files (`-`: stdin) of one or more YAML or JSON documents.

    `namespace` is for objects that name none; where it `is_forced`, another one is an error.
    Raises CommandError.
    """
    workloads: list[Workload] = []
    notes: list[str] = []
    for source in sources:
        for manifest in _documents(_read(source), _title(source)):
            workload = _workload(manifest, _title(source), namespace, notes)
            if workload is None:
                continue
            found = workload.pod.metadata.namespace
            if is_forced and found != namespace:
                raise CommandError(
                    f"{workload.key} is of the namespace {found}, and -n says {namespace}"
                )
            workloads.append(workload)
    if not workloads:
        about = f": {'; '.join(notes)}" if notes else ""
        raise CommandError(
            f"nothing in {', '.join(map(_title, sources))} makes pods{about}; {_GIVE}"
        )
    return Manifests(workloads=tuple(workloads), notes=tuple(notes))


def _title(source: str) -> str:
    return "stdin" if source == STDIN else source


def _read(source: str) -> str:
    try:
        if source == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).expanduser().open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{_title(source)} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise CommandError(f"{_title(source)} has more than {MAX_BYTES // 2**20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"{_title(source)} is not UTF-8 text: {error}") from error


def _documents(text: str, title: str) -> Iterator[Manifest]:
    try:
        # JSON is YAML; a list of objects is one document.
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CommandError(f"{title} is neither YAML nor JSON: {error}") from error
    for index, document in enumerate(documents, start=1):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise CommandError(
                f"{title}, document {index}: expected an object, found {type(document).__name__}"
            )
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            yield from (item for item in items if isinstance(item, dict))
        else:
            yield document


def _workload(manifest: Manifest, title: str, namespace: str, notes: list[str]) -> Workload | None:
    kind = str(manifest.get("kind") or "")
    metadata = _mapping(manifest.get("metadata"))
    name = str(metadata.get("name") or metadata.get("generateName") or "")
    if not kind:
        raise CommandError(f"{title}: an object has no kind; {_GIVE}")
    if kind == "Pod":
        return _make(kind, name, 1, manifest, str(metadata.get("namespace") or namespace), title)
    places = _TEMPLATES.get(kind)
    if places is None:
        notes.append(f"{kind} {name or 'without a name'} is left out: it has no pod template")
        return None
    template = _at(manifest, places[0])
    if not isinstance(template, dict):
        raise CommandError(f"{title}: {kind} {name} has no {'.'.join(places[0])}")
    notes.extend(_misplaced(kind, name, metadata, template))
    replicas = _at(manifest, places[1]) if places[1] else 1
    if isinstance(replicas, bool) or not isinstance(replicas, int | None):
        raise CommandError(f"{title}: {kind} {name}: {'.'.join(places[1])} is not a whole number")
    count = 1 if replicas is None else max(0, replicas)
    return _make(kind, name, count, template, str(metadata.get("namespace") or namespace), title)


def _misplaced(kind: str, name: str, metadata: Manifest, template: Manifest) -> Iterator[str]:
    here = _mapping(metadata.get("annotations"))
    there = _mapping(_mapping(template.get("metadata")).get("annotations"))
    for key in _KIND_IS_ANNOTATED:
        if key in here and key not in there:
            yield (
                f"{kind} {name} carries {key} in its own metadata, where nobody reads it: it belongs "
                "into the metadata of the pod template"
            )


def _make(
    kind: str, name: str, replicas: int, template: Manifest, namespace: str, title: str
) -> Workload:
    metadata: dict[str, Any] = {
        **_mapping(template.get("metadata")),
        "namespace": namespace,
        "name": name or str(_mapping(template.get("metadata")).get("name") or "pod"),
    }
    if kind == "DaemonSet":
        # Its pods are told by their owner.
        owner = {"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": True}
        metadata["ownerReferences"] = [owner]
    raw = {"metadata": metadata, "spec": template.get("spec") or {}}
    if not _mapping(raw["spec"]).get("containers"):
        raise CommandError(f"{title}: {kind} {name}: spec.containers is missing or empty")
    try:
        pod = pod_from_manifest(raw)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CommandError(f"{title}: the pod of {kind} {name} cannot be read: {error}") from error
    return Workload(kind=kind, name=str(metadata["name"]), replicas=replicas, pod=pod, raw=raw)


def _mapping(value: object) -> Manifest:
    return value if isinstance(value, dict) else {}


def _at(manifest: Manifest, path: Sequence[str]) -> Any:
    value: Any = manifest
    for key in path:
        value = _mapping(value).get(key)
    return value
