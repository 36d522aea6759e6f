"""Which datasets a pod uses: by the labels `dataset.<N>.id`, and by claims of a dataset's name.

Labels count in the order of their numbers, a name counts once, and keys that only resemble these are
somebody else's. A claim counts if a dataset of its name is usable, which is found out as late as
`resolve`. Of very many the first count, so that no pod makes a decision slow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.dataset import DatasetSettings, FilesystemPolicy
from berthmaster.concerns.shape import InvalidRequestError, Problem

MOST_DATASETS = 128

_LABEL = re.compile(r"dataset\.([0-9]+)\.id")
_FILESYSTEM = {"require": FilesystemPolicy.REQUIRE, "prefer": FilesystemPolicy.PREFER}
_SHOWN_CHARS = 60


class Weights(NamedTuple):
    """What a node scores by how near a dataset's cache is."""

    node: int
    zone: int
    region: int


class DatasetRequest(NamedTuple):
    """The datasets that a pod names, as `namespace/name`, and the rules for them.

    `found` are those that are usable now, each with the number of its latest move, `awaited` those whose
    cache is being built, where the pod is to wait for it: they are what `resolve` adds, and all that filter
    and score go by.
    """

    labelled: tuple[str, ...]
    claimed: tuple[str, ...]
    weights: Weights
    is_required: bool
    spares_data: bool = False
    pods_per_gateway: int = 0
    holds: bool = False
    awaited: tuple[str, ...] = ()
    found: tuple[tuple[str, int], ...] = ()
    # By how much less nodes with the data of file systems score for a pod without datasets.
    avoids: int = 0


class DatasetUsage(NamedTuple):
    """A pod that was placed on a gateway's node for that gateway."""


def read_request(pod: Pod, policy: PlacementPolicySpec) -> DatasetRequest | None:
    """Return which datasets the pod names; None if none.

    Raises:
        InvalidRequestError: our own annotation holds a word that we do not know.
    """
    settings = policy.concerns.dataset
    labelled = labelled_datasets(pod)
    claimed = tuple(it for it in _claims(pod) if it not in labelled) if settings.claims else ()
    if not labelled and not claimed and not settings.avoid_filesystems:
        return None
    tiers = settings.tiers
    return DatasetRequest(
        labelled=labelled[:MOST_DATASETS],
        claimed=claimed[: MOST_DATASETS - len(labelled[:MOST_DATASETS])],
        weights=Weights(tiers.node, tiers.zone, tiers.region),
        is_required=_filesystem(pod, settings) is FilesystemPolicy.REQUIRE,
        spares_data=settings.spare_data_locations,
        pods_per_gateway=settings.pods_per_gateway,
        holds=bool(settings.hold),
        avoids=0 if labelled else settings.avoid_filesystems,
    )


def read_usage(allocated: Mapping[str, Any] | None) -> DatasetUsage | None:
    """Return what a pod holds: a share of the gateway beside which it was placed."""
    return DatasetUsage() if allocated and allocated.get("besideGateway") is True else None


def labelled_datasets(pod: Pod) -> tuple[str, ...]:
    """Return the datasets that the labels name, in the order of their numbers, each once."""
    numbered = [
        (int(match[1]), key, name)
        for key, name in (pod.metadata.labels or {}).items()
        if name and (match := _LABEL.fullmatch(key))
    ]
    return tuple(dict.fromkeys(f"{pod.metadata.namespace}/{it[2]}" for it in sorted(numbered)))


def _claims(pod: Pod) -> tuple[str, ...]:
    """Return the claims that the pod mounts; those made for it alone are no datasets."""
    claims = (it.persistent_volume_claim for it in pod.spec.volumes or ())
    return tuple(
        dict.fromkeys(
            f"{pod.metadata.namespace}/{it.claim_name}" for it in claims if it is not None
        )
    )


def _filesystem(pod: Pod, settings: DatasetSettings) -> FilesystemPolicy:
    text = pod.annotations.get(names.DATASET)
    if text is None:
        return settings.filesystem
    found = _FILESYSTEM.get(text.strip().lower())
    if found is None:
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
        raise InvalidRequestError(
            Problem(
                field=f"metadata.annotations[{names.DATASET}]",
                message=f'unknown word "{shown}", expected one of {", ".join(_FILESYSTEM)}',
            )
        )
    return found
