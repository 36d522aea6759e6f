"""Claims, volumes and classes of storage, and which rows the claims of a pod leave to it.

Claims that pods on the rows use are counted with them. One of these that waits for a volume will take
one that still looks free, and so do the pods that were answered and not seen yet; a pod that comes
later is judged by what they leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.storage import (
    NO_PROVISIONER,
    READ_WRITE_ONCE_POD,
    SELECTED_NODE,
    WAIT_FOR_FIRST_CONSUMER,
    CSINode,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
)
from berthmaster.concerns.resources.attachments import Attachments
from berthmaster.concerns.resources.codes import (
    ONCE_POD,
    VOLUME_AFFINITY,
    VOLUME_LIMIT,
    VOLUME_UNBOUND,
    VOLUME_ZONE,
)
from berthmaster.concerns.resources.labels import LabelColumns, Mask
from berthmaster.concerns.resources.terms import ClaimUse, ClaimWant, Peer, Wishes, read_want
from berthmaster.concerns.resources.volumes import (
    FreeVolumes,
    Kind,
    is_for,
    is_free,
    kind_of,
    provisioned,
    reachable,
    zoned,
)
from berthmaster.concerns.shape import Codes

Counts = NDArray[np.int32]
_Taken = dict[tuple[str, Kind], Counts]


class ClaimRefusedError(Exception):
    """No node will do while a claim is as it is; the message says why, in kube-scheduler's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unbound:
    """A claim that gets its volume with its pod; `uid` and `selected` are empty where there is none."""

    key: str
    want: ClaimWant
    uid: str = ""
    selected: str = ""

    @property
    def storage_class(self) -> str:
        return self.want.storage_class or ""


class Storage:
    """What is known of storage, and who uses it."""

    def __init__(self, labels: LabelColumns) -> None:
        # Moves with every change that may let a pod fit.
        self.changes = 0
        self._labels = labels
        self._claims: dict[str, PersistentVolumeClaim] = {}
        self._volumes: dict[str, PersistentVolume] = {}
        self._kept: dict[str, dict[str, None]] = {}
        self._free: dict[str, FreeVolumes] = {}
        self._classes: dict[str, StorageClass] = {}
        self._rows: dict[str, int] = {}
        self._users: dict[str, dict[int, int]] = {}
        # The claims in use that are not bound: few, and for a short time.
        self._unsettled: set[str] = set()
        self._attachments = Attachments(self._handle_of)

    # What is there.

    def take_claim(self, claim: PersistentVolumeClaim, *, is_gone: bool) -> None:
        """Take over a claim."""
        self.changes += 1
        key = claim.key
        if is_gone:
            self._claims.pop(key, None)
        else:
            self._claims[key] = claim
        self._sort(key)
        self._attachments.forget(self._users.get(key, ()))

    def take_volume(self, volume: PersistentVolume, *, is_gone: bool) -> None:
        """Take over a volume."""
        self.changes += 1
        name = volume.metadata.name
        old = self._volumes.pop(name, None)
        if old is not None:
            self._put_away(old)
        if not is_gone:
            self._volumes[name] = volume
            if is_free(volume):
                free = self._free.setdefault(volume.storage_class, FreeVolumes(self._labels))
                free.put(volume)
            keeper = _keeper_of(volume)
            if keeper:
                self._kept.setdefault(keeper, {})[name] = None
        for keeper in {_keeper_of(it) for it in (old, volume) if it is not None}:
            self._attachments.forget(self._users.get(keeper, ()))

    def take_class(self, storage_class: StorageClass, *, is_gone: bool) -> None:
        """Take over a class."""
        self.changes += 1
        if is_gone:
            self._classes.pop(storage_class.metadata.name, None)
        else:
            self._classes[storage_class.metadata.name] = storage_class
        for key in self._users:
            self._sort(key)
        self._attachments.forget_all()

    def take_csi_node(self, csi_node: CSINode, *, is_gone: bool) -> None:
        """Take over what CSI drivers say about a node."""
        self.changes += 1
        limits = {
            driver.name: driver.allocatable.count
            for driver in csi_node.spec.drivers or ()
            if driver.allocatable is not None and driver.allocatable.count is not None
        }
        self._attachments.limit(csi_node.metadata.name, {} if is_gone else limits)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self._attachments.resize(rows)

    def name_row(self, row: int | None, node: str) -> None:
        """Say which row a node has, None when it is gone."""
        if row is None:
            self._rows.pop(node, None)
        else:
            self._rows[node] = row
        self._attachments.name_row(row, node)

    def use(self, row: int, peer: Peer) -> None:
        """Count a pod on the row as a user of its claims."""
        for name in peer.claims:
            key = f"{peer.namespace}/{name}"
            rows = self._users.setdefault(key, {})
            rows[row] = rows.get(row, 0) + 1
            self._attachments.use(row, key)
            self._sort(key)

    def leave(self, row: int, peer: Peer) -> None:
        """Count a pod no more."""
        for name in peer.claims:
            key = f"{peer.namespace}/{name}"
            rows = self._users[key]
            rows[row] -= 1
            if not rows[row]:
                del rows[row]
                self._attachments.leave(row, key)
            if not rows:
                del self._users[key]
            self._sort(key)

    # What is asked.

    def codes(self, wishes: Wishes) -> Codes:
        """Return a code for every row that the claims of a pod refuse, 0 for the others.

        Raises:
            ClaimRefusedError: no node will do.
        """
        bound: list[PersistentVolume] = []
        unbound: list[_Unbound] = []
        for use in wishes.claims:
            found = self._find(wishes, use)
            if isinstance(found, _Unbound):
                unbound.append(found)
            else:
                bound.append(found)
        codes = np.zeros(self._labels.rows, dtype=np.uint8)
        if any(self._is_taken(wishes, it) for it in wishes.claims):
            codes[:] = ONCE_POD
        keys = [f"{wishes.namespace}/{it.name}" for it in wishes.claims if it.name]
        codes[(codes == 0) & self._attachments.are_full(keys)] = VOLUME_LIMIT
        for volume in bound:
            codes[(codes == 0) & ~reachable(self._labels, volume)] = VOLUME_AFFINITY
        if unbound:
            codes[(codes == 0) & ~self._served(unbound)] = VOLUME_UNBOUND
        for volume in bound:
            codes[(codes == 0) & ~zoned(self._labels, volume)] = VOLUME_ZONE
        return codes

    def _find(self, wishes: Wishes, use: ClaimUse) -> PersistentVolume | _Unbound:
        """Return the volume of a claim, or what the claim asks of one."""
        key = f"{wishes.namespace}/{use.name}"
        claim = self._claims.get(key) if use.name else None
        if claim is None:
            return self._find_template(use)
        name, spec = use.name, claim.spec
        if claim.status.phase == "Lost":
            raise ClaimRefusedError(
                f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume '
                f'"{spec.volume_name}"'
            )
        if claim.metadata.deletion_timestamp is not None:
            raise ClaimRefusedError(f'persistentvolumeclaim "{name}" is being deleted')
        owner = claim.metadata.controller()
        if use.template is not None and (owner is None or owner.uid != wishes.uid):
            raise ClaimRefusedError(f"PVC {key} was not created for the pod (pod is not owner)")
        if claim.is_bound:
            volume = self._volumes.get(spec.volume_name)
            if volume is None:
                raise ClaimRefusedError(f'persistentvolume "{spec.volume_name}" not found')
            return volume
        if spec.volume_name or not self._waits_for_consumer(claim.storage_class):
            raise ClaimRefusedError("pod has unbound immediate PersistentVolumeClaims")
        return self._unbound(claim)

    def _find_template(self, use: ClaimUse) -> _Unbound:
        if use.template is None:
            raise ClaimRefusedError(f'persistentvolumeclaim "{use.name}" not found')
        want = use.template
        if want.storage_class is None:
            want = replace(want, storage_class=self._default_class())
        if not self._waits_for_consumer(want.storage_class or ""):
            raise ClaimRefusedError(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim "
                f'"{use.name}"'
            )
        return _Unbound(key="", want=want)

    def _unbound(self, claim: PersistentVolumeClaim) -> _Unbound:
        return _Unbound(
            key=claim.key,
            want=read_want(claim.spec, claim.storage_class),
            uid=claim.metadata.uid,
            selected=(claim.metadata.annotations or {}).get(SELECTED_NODE, ""),
        )

    def _waits_for_consumer(self, name: str) -> bool:
        found = self._classes.get(name)
        return found is not None and found.volume_binding_mode == WAIT_FOR_FIRST_CONSUMER

    def _default_class(self) -> str:
        """Return the newest default class, of equally old ones the first by name."""
        default = [it.metadata for it in self._classes.values() if it.is_default]
        newest = max((it.creation_timestamp or "" for it in default), default="")
        return min(
            (it.name for it in default if (it.creation_timestamp or "") == newest), default=""
        )

    def _is_taken(self, wishes: Wishes, use: ClaimUse) -> bool:
        """Return whether a claim for one pod has its pod."""
        key = f"{wishes.namespace}/{use.name}"
        claim = self._claims.get(key)
        modes = (claim and claim.spec.access_modes) or ()
        return use.template is None and READ_WRITE_ONCE_POD in modes and key in self._users

    # Claims that get their volume with the pod.

    def _served(self, claims: Sequence[_Unbound]) -> Mask:
        """Return for each row whether all claims would find a volume, or have one made, there.

        As in kube-scheduler the smallest claim takes the smallest volume first.
        """
        served = np.ones(self._labels.rows, dtype=np.bool_)
        taken = self._taken({it.storage_class for it in claims})
        for claim in sorted(claims, key=lambda it: it.want.size_bytes):
            if claim.key in self._users:
                # It is about to be bound for another pod: surely good where that one is.
                served &= self._only(self._users[claim.key])
            elif claim.selected:
                served &= self._only([self._rows.get(claim.selected, -1)]) & self._made(claim)
            else:
                served &= self._matched(claim, taken) | self._made(claim)
        return served

    def _matched(self, claim: _Unbound, taken: _Taken) -> Mask:
        """Return for each row whether a volume is there, and note it as taken."""
        kept = self._kept_for(claim)
        if kept is not None:
            return reachable(self._labels, kept)
        matched = np.zeros(self._labels.rows, dtype=np.bool_)
        free = self._free.get(claim.storage_class)
        for kind, counts in free.kinds() if free is not None else ():
            if not kind.serves(claim.want):
                continue
            used = taken.setdefault((claim.storage_class, kind), np.zeros_like(counts))
            found = ~matched & (counts > used)
            used[found] += 1
            matched |= found
        return matched

    def _kept_for(self, claim: _Unbound) -> PersistentVolume | None:
        """Return the volume that is kept for a claim and will do for it."""
        for name in self._kept.get(claim.key, ()):
            volume = self._volumes[name]
            if (
                volume.storage_class == claim.storage_class
                and volume.metadata.deletion_timestamp is None
                and is_for(volume, claim.uid)
                and kind_of(volume).has_room_for(claim.want)
            ):
                return volume
        return None

    def _made(self, claim: _Unbound) -> Mask:
        """Return for each row whether a volume can be made for it."""
        found = self._classes.get(claim.storage_class)
        if found is None or found.provisioner in ("", NO_PROVISIONER):
            return np.zeros(self._labels.rows, dtype=np.bool_)
        return provisioned(self._labels, found)

    def _taken(self, classes: set[str]) -> _Taken:
        """Return what claims in use will take of the free volumes."""
        taken: _Taken = {}
        for key in sorted(self._unsettled):
            claim = self._unbound(self._claims[key])
            if claim.storage_class not in classes or self._kept_for(claim) is not None:
                continue
            free = self._free.get(claim.storage_class)
            for row in self._users[key] if free is not None else ():
                self._take_at(row, claim, free, taken)
        return taken

    def _take_at(self, row: int, claim: _Unbound, free: FreeVolumes | None, taken: _Taken) -> None:
        for kind, counts in free.kinds() if free is not None else ():
            used = taken.setdefault((claim.storage_class, kind), np.zeros_like(counts))
            if kind.serves(claim.want) and counts[row] > used[row]:
                if free is not None and free.is_shared:
                    # Which of the volumes it will be is not known, nor who else could have it.
                    used += 1
                else:
                    used[row] += 1
                return

    def _only(self, rows: Iterable[int]) -> Mask:
        mask = np.zeros(self._labels.rows, dtype=np.bool_)
        mask[[row for row in rows if row >= 0]] = True
        return mask

    # Keeping order.

    def _sort(self, key: str) -> None:
        claim = self._claims.get(key)
        is_unsettled = (
            claim is not None
            and key in self._users
            and not claim.spec.volume_name
            and self._waits_for_consumer(claim.storage_class)
        )
        if is_unsettled:
            self._unsettled.add(key)
        else:
            self._unsettled.discard(key)

    def _put_away(self, volume: PersistentVolume) -> None:
        name = volume.metadata.name
        if is_free(volume):
            free = self._free[volume.storage_class]
            free.take(name)
            if not free:
                del self._free[volume.storage_class]
        keeper = _keeper_of(volume)
        if keeper:
            del self._kept[keeper][name]
            if not self._kept[keeper]:
                del self._kept[keeper]

    def _handle_of(self, key: str) -> tuple[str, str] | None:
        """Return the CSI driver and the handle of a claim's volume, None where there is none."""
        claim = self._claims.get(key)
        if claim is None:
            return None
        volume = self._volumes.get(claim.spec.volume_name)
        if volume is not None:
            csi = volume.spec.csi
            return (csi.driver, csi.volume_handle) if csi is not None else None
        found = self._classes.get(claim.storage_class)
        return (found.provisioner, f"claim {key}") if found is not None else None


def _keeper_of(volume: PersistentVolume) -> str:
    reference = volume.spec.claim_ref
    return f"{reference.namespace}/{reference.name}" if reference is not None else ""
