"""Volumes: what they are, for whom, and from which rows they can be reached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berthmaster.api import names
from berthmaster.api.storage import PersistentVolume, StorageClass
from berthmaster.concerns.resources.label_selectors import Requirement, matches
from berthmaster.concerns.resources.labels import LabelColumns, Mask, all_match
from berthmaster.concerns.resources.request import read_terms
from berthmaster.concerns.resources.terms import ClaimWant, read_bytes
from berthmaster.concerns.shape import Rows

Counts = NDArray[np.int32]

_OLD_ZONE = "failure-domain.beta.kubernetes.io/zone"
_OLD_REGION = "failure-domain.beta.kubernetes.io/region"
_NEW_NAMES = {_OLD_ZONE: names.ZONE, _OLD_REGION: names.REGION}
_ZONE_LABELS = (_OLD_ZONE, _OLD_REGION, names.ZONE, names.REGION)
_ZONES_SEPARATOR = "__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Volumes that no claim can tell apart, but for where they are."""

    size_bytes: int
    access_modes: frozenset[str]
    volume_mode: str
    attributes_class: str
    labels: tuple[tuple[str, str], ...]

    def serves(self, want: ClaimWant) -> bool:
        """Return whether a claim may have such a volume."""
        return (
            self.has_room_for(want)
            and self.access_modes.issuperset(want.access_modes)
            and (not want.is_selective or matches(want.selector, dict(self.labels)))
        )

    def has_room_for(self, want: ClaimWant) -> bool:
        """Return whether a claim may have it that it is kept for."""
        return (
            self.size_bytes >= want.size_bytes
            and self.volume_mode == want.volume_mode
            and self.attributes_class == want.attributes_class
        )


def kind_of(volume: PersistentVolume) -> Kind:
    """Return what claims see of a volume; a size that cannot be read counts 0."""
    spec = volume.spec
    return Kind(
        size_bytes=read_bytes((spec.capacity or {}).get("storage", 0)),
        access_modes=frozenset(spec.access_modes or ()),
        volume_mode=spec.volume_mode,
        attributes_class=spec.volume_attributes_class_name,
        labels=tuple(sorted((volume.metadata.labels or {}).items())),
    )


def is_free(volume: PersistentVolume) -> bool:
    """Return whether any claim may have the volume."""
    return (
        volume.spec.claim_ref is None
        and volume.status.phase == "Available"
        and volume.metadata.deletion_timestamp is None
    )


def is_for(volume: PersistentVolume, claim_uid: str) -> bool:
    """Return whether a volume that is kept for a claim of this name is kept for this one."""
    reference = volume.spec.claim_ref
    return reference is not None and reference.uid in ("", claim_uid)


def reachable(labels: LabelColumns, volume: PersistentVolume) -> Mask:
    """Return for each row whether the volume's node affinity accepts its labels.

    As kube-scheduler does it: a node's name plays no role there, as if it had none.
    """
    affinity = volume.spec.node_affinity
    required = affinity.required if affinity else None
    if required is None:
        return np.ones(labels.rows, dtype=np.bool_)
    rows = np.arange(labels.rows, dtype=np.intp)
    reached = np.zeros(labels.rows, dtype=np.bool_)
    for term in read_terms(required.node_selector_terms or ()):
        if all(it.operator == "NotIn" for it in term.fields):
            reached |= all_match(labels, rows, term.labels)
    return reached


def zoned(labels: LabelColumns, volume: PersistentVolume) -> Mask:
    """Return for each row whether it is in the zone and region that a bound volume's labels name.

    A node without any such label takes every volume. Several zones are joined by `__`.
    """
    rows = np.arange(labels.rows, dtype=np.intp)
    matched = np.ones(labels.rows, dtype=np.bool_)
    found = volume.metadata.labels or {}
    zones = {key: found[key].split(_ZONES_SEPARATOR) for key in _ZONE_LABELS if key in found}
    # A list with an empty member cannot be read, and is ignored.
    zones = {key: values for key, values in zones.items() if all(values)}
    if not zones:
        return matched
    for key, values in zones.items():
        own = all_match(labels, rows, [Requirement(key, "In", tuple(values))])
        if key in _NEW_NAMES:
            renamed = Requirement(_NEW_NAMES[key], "In", tuple(values))
            own |= (labels.column(key).codes == 0) & all_match(labels, rows, [renamed])
        matched &= own
    has_none = all_match(labels, rows, [Requirement(key, "DoesNotExist") for key in _ZONE_LABELS])
    return matched | has_none


def provisioned(labels: LabelColumns, storage_class: StorageClass) -> Mask:
    """Return for each row whether the class may make volumes for it."""
    if not storage_class.allowed_topologies:
        return np.ones(labels.rows, dtype=np.bool_)
    rows = np.arange(labels.rows, dtype=np.intp)
    allowed = np.zeros(labels.rows, dtype=np.bool_)
    for term in storage_class.allowed_topologies:
        expressions = term.match_label_expressions or ()
        if expressions:
            asked = [Requirement(it.key, "In", tuple(it.values or ())) for it in expressions]
            allowed |= all_match(labels, rows, asked)
    return allowed


class FreeVolumes:
    """The free volumes of one class: for each kind how many can be reached from each row.

    So a thousand local disks of one size are one array. `is_shared`: some are reached from several rows.
    """

    def __init__(self, labels: LabelColumns) -> None:
        self.is_shared = False
        self._labels = labels
        self._volumes: dict[str, PersistentVolume] = {}
        self._kinds: dict[Kind, Counts] = {}
        self._numbers: dict[Kind, int] = {}
        self._where: dict[str, Rows] = {}
        self._version = -1

    def __len__(self) -> int:
        return len(self._volumes)

    def put(self, volume: PersistentVolume) -> None:
        """Add a volume."""
        self._volumes[volume.metadata.name] = volume
        if self._version == self._labels.version:
            self._place(volume)

    def take(self, name: str) -> None:
        """Take a volume out."""
        volume = self._volumes.pop(name)
        rows = self._where.pop(name, None)
        if rows is None:
            return
        kind = kind_of(volume)
        self._kinds[kind][rows] -= 1
        self._numbers[kind] -= 1
        if not self._numbers[kind]:
            del self._kinds[kind], self._numbers[kind]

    def kinds(self) -> list[tuple[Kind, Counts]]:
        """Return the kinds, the smallest first, with counts per row that are not to be written to."""
        if self._version != self._labels.version:
            self._version = self._labels.version
            self.is_shared = False
            for kept in (self._kinds, self._numbers, self._where):
                kept.clear()
            for volume in self._volumes.values():
                self._place(volume)
        return sorted(self._kinds.items(), key=lambda it: it[0].size_bytes)

    def _place(self, volume: PersistentVolume) -> None:
        kind = kind_of(volume)
        rows = np.flatnonzero(reachable(self._labels, volume))
        self.is_shared = self.is_shared or len(rows) > 1
        if kind not in self._kinds:
            self._kinds[kind] = np.zeros(self._labels.rows, dtype=np.int32)
            self._numbers[kind] = 0
        self._kinds[kind][rows] += 1
        self._numbers[kind] += 1
        self._where[volume.metadata.name] = rows
