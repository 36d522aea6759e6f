"""Datasets: which of Datashim's can pods be placed by, and what is in the way of the others?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import msgspec

from berthmaster.api import names
from berthmaster.api.datasets import (
    Dataset,
    DatasetInternal,
    dataset_from_manifest,
    internal_from_manifest,
)
from berthmaster.cli.doctor.facts import Facts, Unread, metadata, name_of
from berthmaster.cli.doctor.findings import Finding, Part, some
from berthmaster.concerns.dataset.inventory import DatasetState, Located, NodeIndex, choose, locate

PART = Part("datasets")
# By path: each kind in each group.
PATHS = tuple(
    (group, plural, f"/apis/{group}/{names.DATASHIM_VERSION}/{plural}")
    for group in names.DATASHIM_GROUPS
    for plural in (names.DATASETS, names.DATASETS_INTERNAL)
)
_WAYS_OUT = {
    DatasetState.STALE: "kubectl -n {namespace} get datasetsinternal.{group} {name} -o yaml   "
    "# status.caching.placements; or config/components/dataset-placements",
    DatasetState.NO_PLACEMENT: "see the log of the cache plugin that has {namespace}/{name}",
}
_DESCRIBE = "kubectl -n {namespace} get datasets.{group} {name} -o yaml   # its status says more"
# Somebody chose it so.
_CHOSEN = (DatasetState.CACHING_DISABLED,)
_decode = msgspec.json.Decoder(dict[str, object]).decode


def decode(group: str, plural: str, raw: bytes) -> Dataset | DatasetInternal:
    """Read an object of either kind; raises `msgspec.DecodeError` on what is no JSON object."""
    manifest = {**_decode(raw), "apiVersion": f"{group}/{names.DATASHIM_VERSION}"}
    if plural == names.DATASETS:
        return dataset_from_manifest(manifest)
    return internal_from_manifest(manifest)


def check(facts: Facts) -> Iterator[Finding]:
    """Locate every dataset as the operator does, and tell those that nothing is placed by."""
    found: list[Dataset | DatasetInternal] = []
    for path, read in facts.datasets.items():
        if isinstance(read, Unread):
            yield PART.not_checked(path.rpartition("/")[2], read.why)
            return
        found += read or ()
    datasets = _by_key([it for it in found if isinstance(it, Dataset)])
    if not datasets:
        yield PART.ok("there are no Datasets: nothing is placed by them")
        return
    if isinstance(facts.nodes, Unread):
        yield PART.not_checked("where datasets are", facts.nodes.why)
        return
    internals = {(it.group, it.key): it for it in found if isinstance(it, DatasetInternal)}
    labels = {name_of(it): metadata(it).get("labels") or {} for it in facts.nodes or ()}
    index = NodeIndex(labels)
    by_state: dict[DatasetState, list[tuple[Dataset, Located]]] = defaultdict(list)
    for key in sorted(datasets):
        dataset = choose(datasets[key])
        if dataset is not None:
            located = locate(dataset, internals.get((dataset.group, key)), index)
            by_state[located.state].append((dataset, located))
    for state, those in sorted(by_state.items()):
        yield _tell(state, those)
    partly = [dataset.key for dataset, located in by_state[DatasetState.USABLE] if located.stale]
    if partly:
        yield PART.warning(
            f"some placements of {some(partly)} are no nodes any more",
            _way_out(DatasetState.STALE, next(iter(datasets[partly[0]]))),
        )


def _tell(state: DatasetState, those: list[tuple[Dataset, Located]]) -> Finding:
    keys = some([dataset.key for dataset, _ in those])
    if state is DatasetState.USABLE or state in _CHOSEN:
        return PART.ok(f"{state}: {keys}")
    dataset, located = those[0]
    words = located.describe() if len(those) == 1 else str(state)
    return PART.warning(
        f"{keys}: {words}; pods that name them are placed as if they did not",
        _way_out(state, dataset),
    )


def _way_out(state: DatasetState, dataset: Dataset) -> str:
    return _WAYS_OUT.get(state, _DESCRIBE).format(
        namespace=dataset.namespace, name=dataset.name, group=dataset.group
    )


def _by_key(datasets: list[Dataset]) -> Mapping[str, list[Dataset]]:
    found: dict[str, list[Dataset]] = defaultdict(list)
    for it in datasets:
        found[it.key].append(it)
    return found
