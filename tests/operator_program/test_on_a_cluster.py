from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.cluster.client import ApiError, Client, PatchKind
from berthmaster_operator import certificates
from berthmaster_sandbox.cluster import Sandbox
from operator_program.kinds import install_kinds

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

T = TypeVar("T")

NODE = "sim-0001"
DEVICES = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskdevices"
STATS = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskiostats"
INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
POLICIES = "/apis/berthmaster.io/v1alpha1/placementpolicies"
MODELS = "/api/v1/namespaces/ioi-system/configmaps"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"
SECRETS = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/secrets"


async def eventually(probe: Callable[[], Awaitable[T]], *, within_s: float = 60.0) -> T:
    last: Exception | None = None
    loop = asyncio.get_running_loop()
    until_s = loop.time() + within_s
    while loop.time() < until_s:
        try:
            return await probe()
        except (AssertionError, ApiError, KeyError, TypeError) as error:
            last = error
            await asyncio.sleep(0.2)
    raise AssertionError(f"not within {within_s} s: {last!r}") from last


async def put(client: Client, collection: str, obj: dict[str, Any]) -> dict[str, Any]:
    try:
        return await client.create(collection, obj)
    except ApiError as error:
        if not error.is_already_exists:
            raise
        return await client.get(f"{collection}/{obj['metadata']['name']}")


async def is_absent(client: Client, path: str) -> bool:
    try:
        await client.get(path)
    except ApiError as error:
        return error.is_not_found
    return False


async def remove(client: Client, path: str) -> None:
    with contextlib.suppress(ApiError):
        await client.delete(path)


def device(node: str = NODE) -> dict[str, Any]:
    size = {"read": "1000Mi", "write": "1000Mi", "total": "2000Mi"}
    disk = {
        "name": "fake",
        "vendor": "Intel",
        "model": "P4510",
        "type": "emptyDir",
        "capacity": size,
    }
    return {
        "apiVersion": "diskio.x-k8s.io/v1alpha1",
        "kind": "NodeDiskDevice",
        "metadata": {"name": f"{node}-nodediskdevice", "namespace": "ioi-system"},
        "spec": {"nodeName": node, "devices": {"fakeDevice": disk}},
    }


def webhook_configuration() -> dict[str, Any]:
    service = {"name": names.WEBHOOK_SERVICE, "namespace": names.SYSTEM_NAMESPACE, "port": 10250}
    rule = {
        "operations": ["CREATE"],
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["pods"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": names.WEBHOOK_CONFIGURATION},
        "webhooks": [
            {
                "name": names.WEBHOOK_NAME,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "NoneOnDryRun",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 1,
                "clientConfig": {"service": service},
                "rules": [rule],
                "objectSelector": {"matchLabels": {"nobody": "has-this"}},
            }
        ],
    }


@pytest_asyncio.fixture(loop_scope="session")
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    cluster = sandbox.client
    await install_kinds(cluster)
    for name in ("ioi-system", names.SYSTEM_NAMESPACE):
        await put(
            cluster,
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        )
    models = (
        '[{"vendor": "Intel", "model": "P4510", "readRatio": {"32k": 1}, "writeRatio": {"32k": 1}}]'
    )
    await put(
        cluster,
        MODELS,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": names.DISK_MODELS_CONFIG_MAP, "namespace": "ioi-system"},
            "data": {"diskVendors": models},
        },
    )
    await put(cluster, WEBHOOKS, webhook_configuration())
    await put(cluster, DEVICES, device())
    yield cluster
    for path in (
        f"{DEVICES}/{NODE}-nodediskdevice",
        f"{STATS}/{NODE}-nodediskiostats",
        f"{INVENTORIES}/{NODE}",
        f"{WEBHOOKS}/{names.WEBHOOK_CONFIGURATION}",
        f"{MODELS}/{names.DISK_MODELS_CONFIG_MAP}",
    ):
        await remove(cluster, path)


class Operator:
    def __init__(self, sandbox: Sandbox, log: Path) -> None:
        self._sandbox = sandbox
        self._log = log
        self.process: asyncio.subprocess.Process | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    async def start(self) -> None:
        environment = {
            "KUBECONFIG": str(self._sandbox.kubeconfig),
            "PATH": os.environ["PATH"],
            "HOME": str(self._log.parent),
            "PYTHONSAFEPATH": "1",
        }
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "berthmaster_operator.main",
                "--bind-address", "127.0.0.1", "--health-port", str(self.port), "--metrics-port", "0",
                "--inventory-pause", "1", "--leftover-grace", "2",
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    async def stop(self) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 20)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest_asyncio.fixture(loop_scope="session")
async def operator(sandbox: Sandbox, client: Client, tmp_path: Path) -> AsyncIterator[Operator]:
    running = Operator(sandbox, tmp_path / "operator.log")
    await running.start()
    yield running
    if running.process is not None and running.process.returncode is None:
        await running.kill()
    # Shown when the test fails.
    print(running.log)


async def inventory_disk(client: Client) -> dict[str, Any]:
    disk: dict[str, Any] = (await client.get(f"{INVENTORIES}/{NODE}"))["status"]["disks"][0]
    return disk


async def condition(client: Client) -> dict[str, Any]:
    conditions = (await client.get(f"/api/v1/nodes/{NODE}"))["status"]["conditions"]
    ours: dict[str, Any] = next(
        it for it in [*conditions, {}] if it.get("type") == names.DISK_IO_READY_ON_NODE or not it
    )
    return ours


async def report(client: Client, *, read: str) -> dict[str, Any]:
    """Answer as a driver does: the present list is counted in these numbers."""
    path = f"{STATS}/{NODE}-nodediskiostats"
    stats = await client.get(path)
    bandwidth = {"fakeDevice": {"read": read, "write": "900Mi", "total": "1800Mi"}}
    status = {
        "observedGeneration": stats["metadata"]["generation"],
        "allocableBandwidth": bandwidth,
    }
    return await client.patch(f"{path}/status", {"status": status}, PatchKind.MERGE)


async def test_a_node_goes_from_device_to_inventory(
    client: Client, operator: Operator, namespace: str
) -> None:
    async def first() -> None:
        stats = await client.get(f"{STATS}/{NODE}-nodediskiostats")
        owners = stats["metadata"]["ownerReferences"]
        assert (owners[0]["kind"], owners[0]["name"]) == ("Node", NODE)
        assert stats["spec"].get("reservedPods", []) == []
        disk = await inventory_disk(client)
        assert disk["capacity"]["read"] == "1000Mi"
        assert "allocable" not in disk
        assert (await condition(client))["reason"] == "OwnBooks"

    await eventually(first)
    pod = await client.create(
        f"/api/v1/namespaces/{namespace}/pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {
                "nodeName": NODE,
                "containers": [{"name": "c", "image": "none"}],
                "terminationGracePeriodSeconds": 0,
            },
        },
    )
    uid = pod["metadata"]["uid"]

    async def reserved() -> None:
        stats = await client.get(f"{STATS}/{NODE}-nodediskiostats")
        assert stats["spec"]["reservedPods"] == [uid]

    await eventually(reserved)
    await report(client, read="900Mi")

    async def accepted() -> None:
        disk = await inventory_disk(client)
        assert disk["allocable"]["read"] == "900Mi"
        assert disk["reportedPods"] == [uid]
        assert (await condition(client))["reason"] == "Reported"

    await eventually(accepted)
    made = await client.get(f"{DEVICES}/{NODE}-nodediskdevice")
    assert "finalizers" not in made["metadata"]
    assert "annotations" not in made["metadata"]

    await operator.kill()
    before = (await client.get(f"{STATS}/{NODE}-nodediskiostats"))["metadata"]["resourceVersion"]
    await operator.start()
    await asyncio.sleep(12)
    after = (await client.get(f"{STATS}/{NODE}-nodediskiostats"))["metadata"]["resourceVersion"]
    assert after == before, "a restart writes nothing where nothing moved"

    await client.delete(f"/api/v1/namespaces/{namespace}/pods/p")

    async def released() -> None:
        stats = await client.get(f"{STATS}/{NODE}-nodediskiostats")
        assert stats["spec"]["reservedPods"] == []

    await eventually(released)
    assert await operator.stop() == 0
    assert '"level": "error"' not in operator.log, operator.log


async def test_the_bundle_is_kept_in_the_configuration(client: Client, operator: Operator) -> None:
    async def bundle() -> bytes:
        found = await client.get(f"{WEBHOOKS}/{names.WEBHOOK_CONFIGURATION}")
        text = base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"])
        secret = await client.get(f"{SECRETS}/{names.WEBHOOK_TLS_SECRET}")
        assert secret["type"] == "kubernetes.io/tls"
        assert base64.b64decode(secret["data"]["ca.crt"]) == text
        return text

    first = await eventually(bundle)
    found = await client.get(f"{WEBHOOKS}/{names.WEBHOOK_CONFIGURATION}")
    assert found["webhooks"][0]["rules"], "the partial item left the rest alone"

    wipe = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
    await client.patch(f"{WEBHOOKS}/{names.WEBHOOK_CONFIGURATION}", wipe, PatchKind.JSON)
    assert await eventually(bundle) == first

    await client.delete(f"{SECRETS}/{names.WEBHOOK_TLS_SECRET}")
    assert await eventually(bundle) == first

    await client.delete(f"{SECRETS}/{names.WEBHOOK_CA_SECRET}")

    async def rotated() -> None:
        text = await bundle()
        assert text != first
        secret = await client.get(f"{SECRETS}/{names.WEBHOOK_CA_SECRET}")
        newest = base64.b64decode(secret["data"]["tls.crt"])
        assert certificates.is_trusted(text, newest)

    await eventually(rotated, within_s=40)
    assert "PRIVATE KEY" not in operator.log


async def test_a_policy_gets_a_binding_and_loses_it(client: Client, operator: Operator) -> None:
    policy = {
        "apiVersion": "berthmaster.io/v1alpha1",
        "kind": "PlacementPolicy",
        "metadata": {"name": "lab"},
        "spec": {"namespaceSelector": {"matchLabels": {"team": "lab"}}},
    }
    await put(client, POLICIES, policy)
    path = f"{BINDINGS}/{names.BINDING_PREFIX}lab"

    async def bound() -> None:
        found = await client.get(path)
        assert found["spec"]["policyName"] == names.SELECTED_POLICY
        assert found["spec"]["paramRef"]["name"] == "lab"
        selector = found["spec"]["matchResources"]["namespaceSelector"]
        assert selector == {"matchLabels": {"team": "lab"}}

    async def unbound() -> None:
        assert await is_absent(client, path)

    await eventually(bound)
    # One that is off keeps its pods from policies that it outranks; without selectors it has none.
    await client.patch(f"{POLICIES}/lab", {"spec": {"mode": "off"}}, PatchKind.MERGE)
    await eventually(bound)
    nobody = {"spec": {"mode": "required", "namespaceSelector": None}}
    await client.patch(f"{POLICIES}/lab", nobody, PatchKind.MERGE)
    await eventually(unbound)
    await client.delete(f"{POLICIES}/lab")


async def test_leftovers_of_an_absent_node_are_deleted(client: Client, operator: Operator) -> None:
    await put(client, DEVICES, device("nobody"))

    async def gone() -> None:
        assert await is_absent(client, f"{DEVICES}/nobody-nodediskdevice")

    await eventually(gone)
