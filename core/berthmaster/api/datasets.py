"""Datashim's kinds: Dataset and DatasetInternal, of its present API group and of its old one.

A Dataset says how far it is; the DatasetInternal of the same namespace and name says where its cache
is. Read leniently: what cannot be understood is left out and named in `problems`. Where the data
come from (`spec.local`, `spec.remote`) may hold credentials, so of that nothing is kept but one flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_MOST_PLACEMENTS = 5000
_PLUGIN = "dlf-plugin-name"
_MOST_PROBLEMS = 20

OK, PENDING, DISABLED = "OK", "Pending", "Disabled"
# Of a cache, until its plugin is done with it or has failed.
UNFINISHED = ("", "Initializing", PENDING)


class Placement(NamedTuple):
    """Nodes by a label: those that carry `key` with `value`."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """How far a Dataset is. Status words as Datashim writes them, empty before it did.

    `is_read_only` is whether its claim is to be mounted read-only.
    """

    group: str
    namespace: str
    name: str
    uid: str = ""
    provision: str = ""
    caching: str = ""
    # The cache plugin that has the Dataset, empty for none.
    plugin: str = ""
    is_read_only: bool = False
    problems: tuple[str, ...] = ()
    resource_version: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInternal:
    """Where the cache of the Dataset of the same group, namespace and name is.

    Empty entries and repeated ones are left out, the order is kept. The name of a node may stand as
    the value of `kubernetes.io/hostname`, which is what the only known writer does. It writes an empty
    value for a gateway that is not scheduled yet: `declares_gateway` is whether any entry stands there.
    """

    group: str
    namespace: str
    name: str
    uid: str = ""
    gateways: tuple[Placement, ...] = ()
    data_locations: tuple[Placement, ...] = ()
    declares_gateway: bool = False
    problems: tuple[str, ...] = ()

    @property
    def has_gateway(self) -> bool:
        """Return whether the data are reached through a gateway, wherever it is."""
        return self.declares_gateway or bool(self.gateways)

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSighting:
    """What a DatasetInternal comes to for who only tells states: whether it says where the cache is at all."""

    group: str
    namespace: str
    name: str
    is_declared: bool
    resource_version: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


def sighting_from_manifest(manifest: Mapping[str, Any]) -> CacheSighting:
    """Read whether a DatasetInternal of either group declares a placement; never raises on odd content."""
    internal = internal_from_manifest(manifest)
    return CacheSighting(
        group=internal.group,
        namespace=internal.namespace,
        name=internal.name,
        is_declared=bool(internal.gateways or internal.data_locations),
        resource_version=str((manifest.get("metadata") or {}).get("resourceVersion", "")),
    )


def dataset_from_manifest(manifest: Mapping[str, Any]) -> Dataset:
    """Read a Dataset of either group; never raises on odd content."""
    problems: list[str] = []
    spec = _object(manifest.get("spec"), "spec", problems)
    local = _object(spec.get("local"), "spec.local", problems)
    status = _object(manifest.get("status"), "status", problems)
    caching = _object(status.get("caching"), "status.caching", problems)
    provision = _object(status.get("provision"), "status.provision", problems)
    return Dataset(
        **_identity(manifest, problems),
        provision=_text(provision.get("status"), "status.provision.status", problems),
        caching=_text(caching.get("status"), "status.caching.status", problems),
        plugin=_plugin(manifest),
        is_read_only=local.get("readonly") == "true",
        problems=tuple(problems),
        resource_version=str((manifest.get("metadata") or {}).get("resourceVersion", "")),
    )


def internal_from_manifest(manifest: Mapping[str, Any]) -> DatasetInternal:
    """Read a DatasetInternal of either group; never raises on odd content."""
    problems: list[str] = []
    status = _object(manifest.get("status"), "status", problems)
    caching = _object(status.get("caching"), "status.caching", problems)
    at = "status.caching.placements"
    placements = _object(caching.get("placements"), at, problems)
    found = {
        name: tuple(dict.fromkeys(_placements(placements.get(name), f"{at}.{name}", problems)))
        for name in ("gateways", "datalocations")
    }
    return DatasetInternal(
        **_identity(manifest, problems),
        gateways=found["gateways"],
        data_locations=found["datalocations"],
        declares_gateway=bool(placements.get("gateways")),
        problems=tuple(problems),
    )


def _placements(value: object, at: str, problems: list[str]) -> Iterator[Placement]:
    entries = _list(value, at, problems)
    if len(entries) > _MOST_PLACEMENTS:
        _note(problems, f"{at}: {len(entries)} entries, only {_MOST_PLACEMENTS} are read")
    for index, entry in enumerate(entries[:_MOST_PLACEMENTS]):
        it = _object(entry, f"{at}[{index}]", problems)
        key = _text(it.get("key"), f"{at}[{index}].key", problems)
        text = _text(it.get("value"), f"{at}[{index}].value", problems)
        if key and text:
            yield Placement(key, text)


def _identity(manifest: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    metadata = _object(manifest.get("metadata"), "metadata", problems)
    group, _, _ = _text(manifest.get("apiVersion"), "apiVersion", problems).partition("/")
    return {
        "group": group,
        "namespace": _text(metadata.get("namespace"), "metadata.namespace", problems),
        "name": _text(metadata.get("name"), "metadata.name", problems),
        "uid": _text(metadata.get("uid"), "metadata.uid", problems),
    }


def _plugin(manifest: Mapping[str, Any]) -> str:
    metadata = manifest.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    name = annotations.get(_PLUGIN) if isinstance(annotations, Mapping) else None
    return name if isinstance(name, str) else ""


def _object(value: object, at: str, problems: list[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    _note(problems, f"{at}: expected an object, found {type(value).__name__}")
    return {}


def _list(value: object, at: str, problems: list[str]) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return value
    _note(problems, f"{at}: expected a list, found {type(value).__name__}")
    return ()


def _text(value: object, at: str, problems: list[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    # The type is told and not the value: nothing of a Dataset is copied that need not be.
    _note(problems, f"{at}: expected text, found {type(value).__name__}")
    return ""


def _note(problems: list[str], text: str) -> None:
    if len(problems) < _MOST_PROBLEMS:
        problems.append(text)
    elif len(problems) == _MOST_PROBLEMS:
        problems.append("more faults are not listed")
