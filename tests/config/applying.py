"""Parts of config/ on the real API server: rendered by kubectl, created, polled, and taken away.

The cluster is shared, so only objects that were not there are created, and those are deleted in
the reverse order, to the end, before the next module starts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from berthmaster.cluster.client import ApiError, Client
from berthmaster_sandbox.cluster import Sandbox

T = TypeVar("T")
Manifest = dict[str, Any]

CONFIG = Path(__file__).parents[2] / "config"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PLACEMENT_POLICIES = "/apis/berthmaster.io/v1alpha1/placementpolicies"
POLICY_BINDINGS = f"{ADMISSION}/mutatingadmissionpolicybindings"
# In the order in which they are created.
COLLECTIONS = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "Namespace": "/api/v1/namespaces",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Role": RBAC + "/namespaces/{namespace}/roles",
    "RoleBinding": RBAC + "/namespaces/{namespace}/rolebindings",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "MutatingWebhookConfiguration": f"{ADMISSION}/mutatingwebhookconfigurations",
    "MutatingAdmissionPolicy": f"{ADMISSION}/mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": POLICY_BINDINGS,
    "ValidatingAdmissionPolicy": f"{ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{ADMISSION}/validatingadmissionpolicybindings",
}
WITHIN_S = 30.0
_POLL_S = 0.1


async def eventually(probe: Callable[[], Awaitable[T]], *, within_s: float = WITHIN_S) -> T:
    """Return what the probe returns once it does not complain any more."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + within_s
    while True:
        try:
            return await probe()
        except (AssertionError, ApiError) as error:
            if loop.time() > until_s:
                raise AssertionError(f"not within {within_s:g} s: {error}") from error
        await asyncio.sleep(_POLL_S)


async def render(sandbox: Sandbox, folder: str) -> list[Manifest]:
    done = await sandbox.kubectl("kustomize", str(CONFIG / folder))
    return list(yaml.safe_load_all(done.stdout))


@asynccontextmanager
async def applied(client: Client, objects: Iterable[Manifest]) -> AsyncIterator[None]:
    """Create those of the objects whose kind is in `COLLECTIONS`; take them away at the end."""
    order = list(COLLECTIONS)
    chosen = sorted(
        (it for it in objects if it["kind"] in COLLECTIONS), key=lambda it: order.index(it["kind"])
    )
    made: list[str] = []
    try:
        for manifest in chosen:
            path = collection_of(manifest)
            if await _create(client, path, manifest):
                made.append(f"{path}/{manifest['metadata']['name']}")
            if manifest["kind"] == "CustomResourceDefinition":
                await eventually(partial(_is_served, client, manifest))
        yield
    finally:
        for path in reversed(made):
            await remove(client, path)
        for path in reversed(made):
            await eventually(partial(is_absent, client, path), within_s=60)


def collection_of(manifest: Manifest) -> str:
    return COLLECTIONS[manifest["kind"]].format(**manifest["metadata"])


async def remove(client: Client, path: str) -> None:
    try:
        await client.delete(path)
    except ApiError as error:
        if not error.is_not_found:
            raise


async def is_absent(client: Client, path: str) -> None:
    try:
        await client.get(path)
    except ApiError as error:
        if error.is_not_found:
            return
        raise
    raise AssertionError(f"{path} is still there")


async def make_namespace(client: Client, **labels: str) -> str:
    """Create a namespace that pods can be created in; its deletion is the caller's."""
    name = f"test-{secrets.token_hex(4)}"
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    await client.create("/api/v1/namespaces", body)
    await eventually(lambda: client.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
    return name


async def _create(client: Client, path: str, manifest: Manifest) -> bool:
    try:
        await client.create(path, manifest)
    except ApiError as error:
        if not error.is_already_exists:
            raise
        return False
    return True


async def _is_served(client: Client, definition: Manifest) -> None:
    spec = definition["spec"]
    version = spec["versions"][0]["name"]
    await client.get(f"/apis/{spec['group']}/{version}/{spec['names']['plural']}")
