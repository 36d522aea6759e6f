"""Datashim's mounting of datasets into pods, for clusters that run its operator without its webhook.

Off unless a policy asks for it.

    dataset.<N>.id: name      dataset.<N>.useas: mount | configmap | mount.configmap

    mount       a volume of the claim of the dataset's name, mounted at /mnt/datasets/<name>
    configmap   the ConfigMap and the Secret of that name as environment, with the prefix <name>_

Init containers come before containers, datasets in the order of their numbers. What is there already
is kept and not repeated, so a second call adds nothing. Pods that cannot be understood are refused in
upstream's words. Of its faults none is kept: keys with a domain (`dataset.example.com/x`) are somebody
else's, no entry is repeated, no word is lost after a repeated one, absent lists are made, and a
container without a mount gets one where the volume is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from berthmaster.api.datasets import Dataset
from berthmaster.api.objects import Pod
from berthmaster.concerns.shape import Preparation

RawPod = Mapping[str, Any]
Operation = dict[str, Any]

MOUNT_PATH = "/mnt/datasets"
BAD_REQUEST = 400

_PREFIX = "dataset."
_INTEGER = re.compile(r"-?[0-9]+")
_PARTS = 3
_MOUNT, _CONFIG_MAP = "mount", "configmap"


@dataclass(slots=True)
class _Use:
    """One dataset as its two labels say it; `index` is its number."""

    index: int
    name: str | None = None
    use_as: str | None = None
    words: tuple[str, ...] = field(default=())


class _RefusedError(Exception):
    """The pod is refused with these words."""


def mount(
    pod: RawPod,
    namespace: str,
    find: Callable[[str], Dataset | None],
    *,
    operation: str = "CREATE",
) -> Preparation:
    """Return what a request for a pod comes to; `find` gives a Dataset of the namespace by name."""
    if operation != "CREATE":
        return Preparation(message=f"No Pod mutation required for operation {operation}.")
    metadata = pod.get("metadata") or {}
    try:
        uses = _read(metadata.get("labels") or {})
        datasets = {use.index: _dataset(use, namespace, find) for use in uses}
        for use in uses:
            use.words = _words(use)
    except _RefusedError as refused:
        return Preparation(is_allowed=False, code=BAD_REQUEST, message=str(refused))
    mounted = [datasets[use.index] for use in uses if _MOUNT in use.words]
    configured = [datasets[use.index].name for use in uses if _CONFIG_MAP in use.words]
    spec = pod.get("spec") or {}
    volumes = _volumes_by_claim(spec)
    operations = [
        *_append(
            "/spec/volumes",
            spec.get("volumes"),
            [_volume(it) for it in mounted if it.name not in volumes],
        ),
        *_mounts(spec, {it.name: volumes.get(it.name, it.name) for it in mounted}),
        *_environments(spec, configured),
    ]
    name = metadata.get("name") or f"{metadata.get('generateName', '')}*"
    if not operations:
        message = f"Pod {namespace}/{name} does not need to be mutated - skipping"
    else:
        message = "added volumes to Pod in response to dataset"
    return Preparation(message=message, operations=operations)


def unmounted(pod: Pod) -> tuple[str, ...]:
    """Return the datasets that a stored pod should mount and has no volume of; never raises."""
    try:
        uses = [it for it in _read(pod.metadata.labels or {}) if _MOUNT in _words(it)]
    except _RefusedError:
        return ()
    claims = {
        it.persistent_volume_claim.claim_name
        for it in pod.spec.volumes or ()
        if it.persistent_volume_claim is not None
    }
    return tuple(it.name for it in uses if it.name and it.name not in claims)


def _read(labels: Mapping[str, str]) -> list[_Use]:
    """Return the datasets that the labels name, in the order of their numbers."""
    uses: dict[int, _Use] = {}
    seen: set[str] = set()
    for key in sorted(labels):
        if not key.startswith(_PREFIX) or "/" in key:
            continue
        parts = key.split(".")
        if len(parts) != _PARTS:
            raise _RefusedError(f"label {key} is not in the right format")
        _, number, what = parts
        if not _INTEGER.fullmatch(number):
            raise _RefusedError(f"could not convert dataset index {number} to int")
        use = uses.setdefault(int(number), _Use(int(number)))
        if what not in ("id", "useas"):
            raise _RefusedError(f"dataset label is in the wrong format {key}")
        if (use.name if what == "id" else use.use_as) is not None:
            raise _RefusedError(
                f"repeat declaration of name {what} for dataset {use.name or number}"
            )
        if what == "useas":
            use.use_as = labels[key]
            continue
        use.name = labels[key]
        if use.name in seen:
            raise _RefusedError(f"dataset name {use.name} has been used in a previous label")
        seen.add(use.name)
    return [uses[index] for index in sorted(uses)]


def _dataset(use: _Use, namespace: str, find: Callable[[str], Dataset | None]) -> Dataset:
    dataset = find(use.name or "")
    if dataset is None:
        raise _RefusedError(f"dataset {use.name or ''} not found in namespace {namespace}")
    return dataset


def _words(use: _Use) -> tuple[str, ...]:
    words = () if use.use_as is None else tuple(use.use_as.split("."))
    if any(it not in (_MOUNT, _CONFIG_MAP) for it in words):
        raise _RefusedError("useas for this dataset is not recognized")
    return words


def _volumes_by_claim(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the volume by the claim that it mounts."""
    found: dict[str, str] = {}
    for volume in spec.get("volumes") or ():
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim:
            found.setdefault(claim, volume.get("name", ""))
    return found


def _volume(dataset: Dataset) -> dict[str, Any]:
    claim: dict[str, Any] = {"claimName": dataset.name}
    if dataset.is_read_only:
        claim["readOnly"] = True
    return {"name": dataset.name, "persistentVolumeClaim": claim}


def _mounts(spec: Mapping[str, Any], volumes: Mapping[str, str]) -> Iterator[Operation]:
    """Yield what mounts volumes, by dataset, into containers that do not mount them yet."""
    for path, container in _containers(spec):
        there = {it.get("name") for it in container.get("volumeMounts") or ()}
        missing = [
            {"name": volume, "mountPath": f"{MOUNT_PATH}/{dataset}"}
            for dataset, volume in volumes.items()
            if volume not in there
        ]
        yield from _append(f"{path}/volumeMounts", container.get("volumeMounts"), missing)


def _environments(spec: Mapping[str, Any], datasets: Sequence[str]) -> Iterator[Operation]:
    for path, container in _containers(spec):
        sources = container.get("envFrom") or ()
        there = {
            (it.get(kind) or {}).get("name")
            for it in sources
            for kind in ("configMapRef", "secretRef")
        }
        missing = [
            {"prefix": f"{name}_", kind: {"name": name}}
            for name in datasets
            if name not in there
            for kind in ("configMapRef", "secretRef")
        ]
        yield from _append(f"{path}/envFrom", container.get("envFrom"), missing)


def _containers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            yield f"/spec/{kind}/{index}", container


def _append(path: str, there: object, items: Sequence[Any]) -> Iterator[Operation]:
    """Yield what adds items to the end of a list, making it where it is absent."""
    if items and there is None:
        yield {"op": "add", "path": path, "value": list(items)}
        return
    for item in items:
        yield {"op": "add", "path": f"{path}/-", "value": item}
