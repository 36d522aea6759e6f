"""Datasets through the real control plane: both modes, a cache that is lost, and Datashim's absence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import PROJECT
from berthmaster_sandbox.world.datashim import install_datashim, write_dataset
from support.harbour import (
    INVENTORIES,
    create,
    events_about,
    inventory_of,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_event,
    until_reason,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

ZONE, REGION = "topology.kubernetes.io/zone", "topology.kubernetes.io/region"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
# A gateway's node, its neighbour in the zone, one in the region, and one elsewhere: all alike.
PLACES = {"gate": ("a", "eu"), "zone": ("a", "eu"), "region": ("b", "eu"), "far": ("c", "us")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(harbour: Sandbox) -> str:
    """Return a namespace; the programs ran before Datashim's kinds were there."""
    for name, (zone, region) in PLACES.items():
        labels = {"datasets": "yes", ZONE: zone, REGION: region}
        await harbour.create_nodes(1, labels=labels, name=f"ds-{name}", cpu="4")
    for group in names.DATASHIM_GROUPS:
        await install_datashim(harbour, group)
    namespace = await new_namespace(harbour, "datasets")
    return namespace


def reading(name: str, dataset: str, placement: str, cpu: str = "1") -> dict[str, Any]:
    pod = make_pod(
        name,
        placement=placement,
        select={"datasets": "yes"},
        labels={"dataset.0.id": dataset, "dataset.0.useas": "mount"},
    )
    pod["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    return pod


async def until_published(harbour: Sandbox, node: str, *datasets: str) -> None:
    async def here() -> list[str]:
        return [it["name"] for it in (await inventory_of(harbour, node)).get("datasets", ())]

    await until(here, lambda it: sorted(it) == sorted(datasets), 60)


async def until_seen(harbour: Sandbox, namespace: str, dataset: str, *, usable: bool) -> None:
    """Wait until the webhook decides by the dataset; the inventory reaches it a moment later."""

    async def decided() -> str:
        created = await harbour.client.create(
            f"/api/v1/namespaces/{namespace}/pods",
            reading("probe", dataset, "observe"),
            {"dryRun": "All"},
        )
        return str(created["metadata"]["annotations"].get("berthmaster.io/allocation", ""))

    word = '"mode":"gateway"' if usable else '"notUsable"'
    await until(decided, lambda text: word in text, 60)


async def test_preferred_pods_land_where_the_tiers_say(harbour: Sandbox, place: str) -> None:
    """Four CPUs on each node, two asked: the third pod no longer fits on the gateway's node."""
    await write_dataset(harbour.client, place, "tiers", gateways=["ds-gate"])
    await until_published(harbour, "ds-gate", "tiers")
    await until_seen(harbour, place, "tiers", usable=True)

    landed = []
    for number in range(5):
        name = f"tiers-{number}"
        await create(harbour, place, reading(name, "tiers", "preferred", cpu="2"))
        landed.append(await until_bound(harbour, place, name))

    assert landed == ["ds-gate", "ds-gate", "ds-zone", "ds-zone", "ds-region"]
    pod = await harbour.client.get(f"/api/v1/namespaces/{place}/pods/tiers-0")
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    assert list(affinity) == [PREFERRED]
    assert [it["weight"] for it in affinity[PREFERRED]] == [50, 25, 25]
    await harbour.kubectl("-n", place, "delete", "pod", "--all", "--wait=true")


async def test_required_pods_follow_the_cache_and_run_when_it_is_lost(
    harbour: Sandbox, place: str
) -> None:
    await write_dataset(harbour.client, place, "moving", gateways=["ds-region"])
    await until_published(harbour, "ds-region", "moving")
    await until_seen(harbour, place, "moving", usable=True)
    await until_reason(harbour, "ds-region", "Usable", condition="DatasetReady")

    await create(harbour, place, reading("first", "moving", "required"))
    assert await until_bound(harbour, place, "first") == "ds-region"

    await write_dataset(harbour.client, place, "moving", gateways=["gone"])
    await until_published(harbour, "ds-region")
    await until_seen(harbour, place, "moving", usable=False)
    await create(harbour, place, reading("second", "moving", "required"))
    assert await until_bound(harbour, place, "second")
    await until_event(harbour, "moving", "placements are out of date: stale", namespace=place)


async def test_a_file_system_is_followed_and_where_it_is_nowhere_nothing_is_refused(
    harbour: Sandbox, place: str
) -> None:
    await write_dataset(harbour.client, place, "files", data=["ds-far"])
    await until_published(harbour, "ds-far", "files")
    await create(harbour, place, reading("there", "files", "required"))
    assert await until_bound(harbour, place, "there") == "ds-far"

    pod = reading("none", "My_Data", "required")
    await create(harbour, place, pod)
    assert await until_bound(harbour, place, "none")


async def test_a_dataset_of_datashims_old_group_counts_as_one_of_its_new(
    harbour: Sandbox, place: str
) -> None:
    _, old = names.DATASHIM_GROUPS
    await write_dataset(harbour.client, place, "aged", gateways=["ds-region"], group=old)
    await until_published(harbour, "ds-region", "aged")
    await until_seen(harbour, place, "aged", usable=True)

    await create(harbour, place, reading("of-old", "aged", "required"))

    assert await until_bound(harbour, place, "of-old") == "ds-region"


async def test_no_secret_of_a_dataset_is_told_anywhere(harbour: Sandbox, place: str) -> None:
    await write_dataset(harbour.client, place, "untold", gateways=["gone"])
    await until_event(harbour, "untold", "placements are out of date: stale", namespace=place)
    told = json.dumps(
        [
            await events_about(harbour, "untold", place),
            (await harbour.client.get(INVENTORIES))["items"],
            (await harbour.client.get(f"/api/v1/namespaces/{place}/pods"))["items"],
        ]
    )

    assert "placements are out of date" in told
    assert "hush" not in told


async def test_placements_of_a_ceph_cache_are_kept_true_with_the_component_s_rights(
    harbour: Sandbox, place: str
) -> None:
    component = PROJECT / "config" / "components" / "dataset-placements"
    for name in ("placements-cluster-role", "placements-cluster-role-binding"):
        await harbour.kubectl("apply", "-f", str(component / f"{name}.yaml"))
    rook = await new_namespace(harbour, "rook-ceph")
    await write_dataset(
        harbour.client, place, "ceph", gateways=["gone"], plugin="ceph-cache-plugin"
    )
    gateway = make_pod("rgw", placement=None, labels={"app": "rook-ceph-rgw", "rgw": "ceph"})
    gateway["spec"]["nodeName"] = "ds-zone"
    await create(harbour, rook, gateway)
    operator = ("-n", "berthmaster-system", "set", "env", "deployment/berthmaster-operator")
    await harbour.kubectl(*operator, "BERTHMASTER_DATASET_PLACEMENTS=written")
    try:
        path = f"/apis/datashim.io/v1alpha1/namespaces/{place}/datasetsinternal/ceph"

        async def gateways() -> Any:
            found = await harbour.client.get(path)
            return found["status"]["caching"]["placements"]["gateways"]

        wanted = [{"key": "kubernetes.io/hostname", "value": "ds-zone"}]
        await until(gateways, lambda found: found == wanted, 90)
        await until_published(harbour, "ds-zone", "ceph")
    finally:
        await harbour.kubectl(*operator, "BERTHMASTER_DATASET_PLACEMENTS-")
