"""Datashim as it looks from outside: its kinds, and what its operator and a cache plugin write into them.

It is played by whoever tells it what to write; no dataset is ever mounted or cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from berthmaster.api import names
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import PROJECT, install_kinds

GROUP = names.DATASHIM_GROUPS[0]


async def install_datashim(sandbox: Sandbox, group: str = GROUP) -> None:
    """Install the kinds of one group."""
    folder = PROJECT / "crds" / "datashim"
    plurals = (names.DATASETS, names.DATASETS_INTERNAL)
    await install_kinds(sandbox, *(folder / f"{group}_{it}.yaml" for it in plurals))


async def write_dataset(
    client: Client,
    namespace: str,
    name: str,
    *,
    gateways: Sequence[str] = (),
    data: Sequence[str] = (),
    caching: str = "Pending",
    plugin: str = "",
    group: str = GROUP,
) -> None:
    """Write a provisioned Dataset and its DatasetInternal, whose placements are nodes by name.

    Both hold a secret, `hush`, as Datashim's users may write it there.
    """
    placements = {
        "gateways": [_entry(it) for it in gateways],
        "datalocations": [_entry(it) for it in data],
    }
    annotations = {"dlf-plugin-name": plugin} if plugin else {}
    how_far = {"caching": {"status": caching}, "provision": {"status": "OK"}}
    where = {"caching": {"placements": placements}}
    for kind, plural, status in (
        ("Dataset", names.DATASETS, how_far),
        ("DatasetInternal", names.DATASETS_INTERNAL, where),
    ):
        path = f"/apis/{group}/{names.DATASHIM_VERSION}/namespaces/{namespace}/{plural}"
        manifest = {
            "apiVersion": f"{group}/{names.DATASHIM_VERSION}",
            "kind": kind,
            "metadata": {"namespace": namespace, "name": name, "annotations": annotations},
            "spec": {"local": {"type": "COS", "bucket": name, "secretAccessKey": "hush"}},
        }
        try:
            await client.create(path, manifest)
        except ApiError as error:
            if not error.is_already_exists:
                raise
        await client.patch(f"{path}/{name}/status", {"status": status}, PatchKind.MERGE)


def _entry(node: str) -> dict[str, Any]:
    return {"key": names.HOSTNAME_LABEL, "value": node}
