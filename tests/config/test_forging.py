"""Nobody but the webhook writes an allocation or the devices of a placed pod, by whatever way and as whoever.

Each way into a pod that the API server has, tried on the real one by those who come near pods: an
administrator of the cluster, one of the namespace, another service account of ours, a kubelet, kube-scheduler.
Nearly all of it is a dry run, which admission treats as the real thing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.cluster.client import ApiError, Client, PatchKind
from berthmaster_sandbox.cluster import Sandbox
from config.applying import RBAC, applied, eventually, make_namespace, remove, render
from config.pods import DRY_RUN, FORGED, annotations_of, make_pod

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(180),
]

NODE = "sim-0001"
DEVICES = "BAIDU_COM_XPU_MEM_IDX"
SERVED = "BAIDU_COM_XPU_MEM_ASSIGNED"
KEPT = {"mine": "stays", names.ALLOCATION: FORGED, DEVICES: "0", SERVED: "false"}
ACCOUNTS = f"system:serviceaccount:{names.SYSTEM_NAMESPACE}"
# User and groups.
ACTORS = {
    "cluster-admin": ("forger", ("system:masters",)),
    "namespace-admin": ("owner", ()),
    "operator": (f"{ACCOUNTS}:{names.OPERATOR_SERVICE_ACCOUNT}", ()),
    "kubelet": (f"system:node:{NODE}", ("system:nodes",)),
    "scheduler": ("system:kube-scheduler", ()),
}
REFUSALS = ("only Berthmaster's webhook writes it", "is for Berthmaster's webhook alone to write")

Attempt = Callable[[Client, str, dict[str, str | None]], Awaitable[Any]]


class Stage:
    """A namespace with one placed and bound pod, one placed one, one plain one, and everybody."""

    def __init__(self, client: Client, namespace: str, actors: dict[str, Client]) -> None:
        self.client = client
        self.actors = actors
        self.namespace = namespace
        self.pods = f"/api/v1/namespaces/{namespace}/pods"

    async def annotations(self, pod: str) -> dict[str, str]:
        return annotations_of(await self.client.get(f"{self.pods}/{pod}"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(sandbox: Sandbox) -> AsyncIterator[Stage]:
    client = sandbox.client
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(applied(client, await render(sandbox, "default")))
        actors = {
            name: await stack.enter_async_context(
                await sandbox.connect_as(f"forging-{name}", user, organizations=groups)
            )
            for name, (user, groups) in ACTORS.items()
        }
        webhook = await stack.enter_async_context(
            await sandbox.connect_as("forging-webhook", f"{ACCOUNTS}:berthmaster-webhook")
        )
        namespace = await make_namespace(client)
        stack.push_async_callback(remove, client, f"/api/v1/namespaces/{namespace}")
        await client.create(
            f"{RBAC}/namespaces/{namespace}/rolebindings",
            {
                "metadata": {"name": "owner"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "admin",
                },
                "subjects": [{"kind": "User", "name": "owner"}],
            },
        )
        made = Stage(client, namespace, actors)
        for name in ("placed", "bound", "plain"):
            pod = make_pod(name, annotations={"mine": "stays"}, schedulerName="nobody")
            await client.create(made.pods, pod)
        for name in ("placed", "bound"):
            await webhook.patch(f"{made.pods}/{name}", annotated(KEPT), PatchKind.MERGE)
        await client.create(f"{made.pods}/bound/binding", binding("bound", {}))
        await eventually(lambda: in_force(made))
        yield made


async def in_force(stage: Stage) -> None:
    patch = annotated({names.ALLOCATION: "x"})
    for part in ("", "/status"):
        path = f"{stage.pods}/placed{part}"
        try:
            await stage.client.patch(path, patch, PatchKind.MERGE, DRY_RUN)
        except ApiError:
            continue
        raise AssertionError("an allocation may be written by anybody")
    forged = make_pod(annotations={names.ALLOCATION: "x"})
    assert not annotations_of(await stage.client.create(stage.pods, forged, DRY_RUN))


def annotated(annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"metadata": {"annotations": annotations}, **more}


def binding(name: str, annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    }


def by_patch(kind: PatchKind, part: str) -> Attempt:
    async def attempt(client: Client, path: str, change: dict[str, str | None]) -> Any:
        return await client.patch(f"{path}{part}", annotated(change), kind, DRY_RUN)

    return attempt


def by_json_patch(part: str) -> Attempt:
    async def attempt(client: Client, path: str, change: dict[str, str | None]) -> Any:
        operations = [
            {"op": "remove" if value is None else "add", "value": value or "", "path": at(key)}
            for key, value in change.items()
        ]
        return await client.patch(f"{path}{part}", operations, PatchKind.JSON, DRY_RUN)

    return attempt


def at(key: str) -> str:
    return f"/metadata/annotations/{key.replace('/', '~1')}"


def by_apply(part: str) -> Attempt:
    async def attempt(client: Client, path: str, change: dict[str, str | None]) -> Any:
        kept = {key: value for key, value in change.items() if value is not None}
        body = annotated(kept, apiVersion="v1", kind="Pod")
        query: dict[str, str | bool] = {**DRY_RUN, "fieldManager": "forger", "force": True}
        return await client.patch(f"{path}{part}", body, PatchKind.APPLY, query)

    return attempt


def by_replace(part: str) -> Attempt:
    async def attempt(client: Client, path: str, change: dict[str, str | None]) -> Any:
        pod = await client.get(path)
        merged = {**annotations_of(pod), **change}
        pod["metadata"]["annotations"] = {k: v for k, v in merged.items() if v is not None}
        return await client.replace(f"{path}{part}", pod, DRY_RUN)

    return attempt


def by_binding(way: str) -> Attempt:
    async def attempt(client: Client, path: str, change: dict[str, str | None]) -> Any:
        pods, _, name = path.rpartition("/")
        where = (
            f"{path}/binding" if way == "pods/binding" else f"{pods.rpartition('/')[0]}/bindings"
        )
        brought = {key: value for key, value in change.items() if value is not None}
        return await client.create(where, binding(name, brought), DRY_RUN)

    return attempt


# Everything that changes a stored pod. The last ones take no annotations, so those stay as they are.
WAYS: dict[str, Attempt] = {
    f"{name} {part or '/'}": make(part)
    for part in ("", "/status")
    for name, make in {
        "merge": lambda part: by_patch(PatchKind.MERGE, part),
        "strategic": lambda part: by_patch(PatchKind.STRATEGIC, part),
        "json": by_json_patch,
        "apply": by_apply,
        "replace": by_replace,
    }.items()
}
BINDINGS: dict[str, Attempt] = {way: by_binding(way) for way in ("pods/binding", "bindings")}
WITHOUT_METADATA: dict[str, Attempt] = {
    f"{name} {part}": make(part)
    for part in ("/resize", "/ephemeralcontainers")
    for name, make in {
        "strategic": lambda part: by_patch(PatchKind.STRATEGIC, part),
        "replace": by_replace,
    }.items()
}
CHANGES: dict[str, dict[str, str | None]] = {
    "changed": {names.ALLOCATION: "another"},
    "emptied": {names.ALLOCATION: ""},
    "removed": {names.ALLOCATION: None},
    "another device": {DEVICES: "1"},
    "no device": {DEVICES: None},
    "more devices": {"hami.io/xpu-devices-allocated": "x"},
}


async def outcome(attempt: Awaitable[Any]) -> str:
    """Return `refused`, `denied` (by RBAC and the like), or the annotations that would be stored."""
    try:
        made = await attempt
    except ApiError as error:
        return "refused" if any(it in error.message for it in REFUSALS) else "denied"
    return json.dumps(annotations_of(made), sort_keys=True)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
async def test_even_an_administrator_of_the_cluster_is_refused(
    stage: Stage, way: str, change: str
) -> None:
    is_removal = None in CHANGES[change].values()
    if way.startswith("apply") and is_removal:
        # Who applies owns what they applied only.
        assert await stage.annotations("placed") == KEPT
        return
    admin = stage.actors["cluster-admin"]

    found = await outcome(WAYS[way](admin, f"{stage.pods}/placed", CHANGES[change]))

    assert found == "refused"


@pytest.mark.parametrize("way", WAYS)
async def test_none_is_added_to_a_pod_without(stage: Stage, way: str) -> None:
    admin = stage.actors["cluster-admin"]

    for value in ("x", ""):
        change: dict[str, str | None] = {names.ALLOCATION: value}
        assert await outcome(WAYS[way](admin, f"{stage.pods}/plain", change)) == "refused"


@pytest.mark.parametrize("way", BINDINGS)
async def test_no_binding_brings_one(stage: Stage, way: str) -> None:
    brought: tuple[dict[str, str | None], ...] = (
        {names.ALLOCATION: "x"},
        {DEVICES: "1"},
        {"hami.io/xpu-devices-allocated": "x"},
    )
    for actor in ("cluster-admin", "scheduler"):
        for pod in ("placed", "plain"):
            for change in brought:
                attempt = BINDINGS[way](stage.actors[actor], f"{stage.pods}/{pod}", change)
                found = await outcome(attempt)
                assert found == "refused"


@pytest.mark.parametrize("way", WITHOUT_METADATA)
async def test_other_subresources_change_no_annotation(stage: Stage, way: str) -> None:
    for change in CHANGES.values():
        admin = stage.actors["cluster-admin"]
        found = await outcome(WITHOUT_METADATA[way](admin, f"{stage.pods}/bound", change))
        assert found in ("refused", "denied", json.dumps(KEPT, sort_keys=True))


@pytest.mark.parametrize("actor", [it for it in ACTORS if it != "cluster-admin"])
async def test_nobody_else_gets_further(stage: Stage, actor: str) -> None:
    found = {}
    for pod in ("placed", "bound"):
        for way, attempt in (WAYS | BINDINGS | WITHOUT_METADATA).items():
            for change in ("changed", "another device"):
                done = attempt(stage.actors[actor], f"{stage.pods}/{pod}", CHANGES[change])
                found[pod, way, change] = await outcome(done)

    kept = json.dumps(KEPT, sort_keys=True)
    assert set(found.values()) <= {"refused", "denied", kept}, found
    # What RBAC alone would have let through.
    meets_us = {
        "namespace-admin": ("placed", "merge /", "changed"),
        "kubelet": ("bound", "strategic /status", "changed"),
        "scheduler": ("placed", "strategic /status", "changed"),
    }
    if actor in meets_us:
        assert found[meets_us[actor]] == "refused"
    assert await stage.annotations("bound") == KEPT


async def test_device_plugins_still_say_that_they_served(stage: Stage) -> None:
    change: dict[str, str | None] = {SERVED: "true", "hami.io/bind-phase": "success"}

    for way in ("strategic /", "merge /", "strategic /status"):
        admin = stage.actors["cluster-admin"]
        made = json.loads(await outcome(WAYS[way](admin, f"{stage.pods}/bound", change)))
        assert made == {**KEPT, **change}


# At creation, what is ours is dropped.


@pytest.mark.parametrize("actor", ["cluster-admin", "namespace-admin"])
@pytest.mark.parametrize("named", [True, False], ids=["name", "generateName"])
async def test_created_pod_keeps_nothing_of_ours(stage: Stage, actor: str, named: bool) -> None:
    name = f"new-{secrets.token_hex(3)}" if named else ""
    pod = make_pod(name, annotations=KEPT)

    made = await stage.actors[actor].create(stage.pods, pod, DRY_RUN)

    assert annotations_of(made).keys() == {"mine", names.DROPPED}


async def test_pod_created_by_applying_keeps_nothing_of_ours(stage: Stage) -> None:
    pod = make_pod("applied", annotations=KEPT)
    query = {**DRY_RUN, "fieldManager": "forger"}

    made = await stage.actors["namespace-admin"].patch(
        f"{stage.pods}/applied", pod, PatchKind.APPLY, query
    )

    assert annotations_of(made).keys() == {"mine", names.DROPPED}


async def test_pod_cannot_be_created_by_replacing(stage: Stage) -> None:
    pod = make_pod("replaced", annotations=KEPT)

    with pytest.raises(ApiError) as refusal:
        await stage.actors["cluster-admin"].replace(f"{stage.pods}/replaced", pod, DRY_RUN)
    assert refusal.value.status in (404, 409)


async def test_mirror_pod_of_a_kubelet_keeps_nothing_of_ours(stage: Stage) -> None:
    node = await stage.client.get(f"/api/v1/nodes/{NODE}")
    owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node["metadata"]["uid"]}
    pod = make_pod("mirror", annotations={**KEPT, names.MIRROR_POD: "digest"}, nodeName=NODE)
    pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    pod["spec"]["automountServiceAccountToken"] = False

    made = await stage.actors["kubelet"].create(stage.pods, pod, DRY_RUN)

    assert annotations_of(made).keys() == {"mine", names.MIRROR_POD, names.DROPPED}


async def test_a_crowd_of_annotations_does_not_get_a_forged_one_through(stage: Stage) -> None:
    # A dear expression would end unevaluated, and the policy with it.
    crowd = {f"{number:x}": "" for number in range(10_000)}

    made = await stage.actors["namespace-admin"].create(
        stage.pods, make_pod(annotations={**crowd, names.ALLOCATION: FORGED}), DRY_RUN
    )

    assert len(annotations_of(made)) == len(crowd)
    assert names.ALLOCATION not in annotations_of(made)


async def test_our_namespace_takes_no_pod_with_more_than_it_needs(stage: Stage) -> None:
    pods = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/pods"
    loose = make_pod("loose")
    del loose["spec"]["securityContext"]

    async def is_refused() -> None:
        with pytest.raises(ApiError, match='violates PodSecurity "restricted'):
            await stage.client.create(pods, loose, DRY_RUN)

    # Its service account may be on its way.
    await eventually(is_refused)


# What nodes have and what is wanted of them is not for users to write, either.


@pytest.mark.parametrize(
    ("group", "resource"),
    [
        ("berthmaster.io", "nodeinventories"),
        ("berthmaster.io", "nodeinventories/status"),
        ("berthmaster.io", "nodexpus"),
        ("berthmaster.io", "nodexpus/status"),
        ("berthmaster.io", "placementpolicies"),
        ("berthmaster.io", "powermodels"),
        ("diskio.x-k8s.io", "nodediskdevices"),
        ("diskio.x-k8s.io", "nodediskiostats"),
        ("diskio.x-k8s.io", "nodediskiostats/status"),
    ],
)
async def test_who_may_write_what_decisions_are_made_of(
    stage: Stage, group: str, resource: str
) -> None:
    kind, _, part = resource.partition("/")
    verbs = ("update", "patch") if part else ("create", "update", "patch", "delete")
    found = {
        actor: {verb for verb in verbs if await may(client, stage, group, kind, part, verb)}
        for actor, client in stage.actors.items()
        if actor != "cluster-admin"
    }

    # What the operator writes is asked for in its role, verb by verb (test_rbac).
    found.pop("operator")
    assert found == {"namespace-admin": set(), "kubelet": set(), "scheduler": set()}


async def may(
    client: Client, stage: Stage, group: str, resource: str, part: str, verb: str
) -> bool:
    attributes = {
        "namespace": stage.namespace if group == "diskio.x-k8s.io" else "",
        "group": group,
        "resource": resource,
        "subresource": part,
        "verb": verb,
    }
    review = await client.create(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
    )
    return bool(review["status"]["allowed"])
