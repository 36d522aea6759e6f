"""What the API server does with pods by config/'s policies alone: none of our programs runs."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.api.policy import policy_from_manifest
from berthmaster.cluster.client import ApiError, Client, PatchKind
from berthmaster_operator.bindings import build_binding
from berthmaster_sandbox.cluster import Sandbox
from config.applying import (
    ADMISSION,
    CONFIG,
    PLACEMENT_POLICIES,
    POLICY_BINDINGS,
    applied,
    eventually,
    make_namespace,
    remove,
    render,
)
from config.pods import DRY_RUN, FORGED, annotations_of, gates_of, make_pod, try_pod

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(180),
]


def asking(resource: str, name: str = "main") -> list[dict[str, Any]]:
    """Return a container that asks for one of a resource."""
    (container,) = make_pod()["spec"]["containers"]
    amounts = {resource: "1"}
    return [{**container, "name": name, "resources": {"limits": amounts, "requests": amounts}}]


WEBHOOK_USER = f"system:serviceaccount:{names.SYSTEM_NAMESPACE}:{names.WEBHOOK_SERVICE_ACCOUNT}"
OLD_SCHEDULER = "diskio-aware-scheduler"
FOREIGN = "kueue.x-k8s.io/admission"
# What the binding of a pod to its node is called by, today's way and the one before it.
WAYS_TO_BIND = ("pods/{name}/binding", "bindings")


@dataclass(frozen=True, kw_only=True)
class Harbour:
    """The cluster with config/ but without the programs; `webhook` has the webhook's rights."""

    sandbox: Sandbox
    client: Client
    webhook: Client
    namespace: str

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    async def try_pod(self, **changes: Any) -> dict[str, Any]:
        return await try_pod(self.client, self.namespace, make_pod(**changes))

    async def allocate(self, name: str, allocation: str = FORGED) -> dict[str, Any]:
        """Create a pod that nobody schedules, with an allocation as the webhook writes it."""
        await self.client.create(self.pods, make_pod(name, schedulerName="nobody"))
        return await self.webhook.patch(
            f"{self.pods}/{name}", annotated(names.ALLOCATION, allocation), PatchKind.MERGE
        )


def annotated(key: str, value: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {key: value}}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harbour(sandbox: Sandbox) -> AsyncIterator[Harbour]:
    client = sandbox.client
    rendered = await render(sandbox, "default")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(applied(client, rendered))
        webhook = await stack.enter_async_context(await sandbox.connect_as("webhook", WEBHOOK_USER))
        namespace = await make_namespace(client, harbour="open")
        stack.push_async_callback(remove, client, f"/api/v1/namespaces/{namespace}")
        made = Harbour(sandbox=sandbox, client=client, webhook=webhook, namespace=namespace)
        await wait_in_force(made)
        yield made


async def wait_in_force(harbour: Harbour) -> None:
    async def gates_and_drops() -> None:
        pod = await harbour.try_pod(mode="required", annotations={names.ALLOCATION: FORGED})
        assert gates_of(pod) == [names.GATE]
        assert names.ALLOCATION not in annotations_of(pod)

    async def protects() -> None:
        path = f"{harbour.pods}/guarded"
        forged = annotated(names.ALLOCATION, FORGED)
        try:
            await harbour.client.patch(path, forged, PatchKind.MERGE, DRY_RUN)
        except ApiError:
            return
        raise AssertionError("an allocation may be written by anybody")

    await eventually(gates_and_drops)
    await harbour.client.create(harbour.pods, make_pod("guarded", schedulerName="nobody"))
    await eventually(protects)


# What is applied.


@pytest.mark.parametrize("folder", ["default", "samples", "overlays/sandbox", "overlays/example"])
async def test_folder_renders(sandbox: Sandbox, folder: str) -> None:
    assert await render(sandbox, folder)


async def test_every_overlay_is_rendered_above() -> None:
    assert {path.name for path in CONFIG.glob("overlays/*")} == {"sandbox", "example"}


@pytest.mark.parametrize("folder", ["default", "samples", "overlays/sandbox", "overlays/example"])
async def test_server_accepts_folder_without_warning(harbour: Harbour, folder: str) -> None:
    done = await harbour.sandbox.kubectl(
        "apply", "--dry-run=server", "-k", str(CONFIG / folder), check=False
    )

    # kubectl complains about objects that were created without it.
    complaints = [line for line in done.stderr.splitlines() if "last-applied" not in line]
    assert (done.returncode, complaints) == (0, [])


async def test_expressions_pass_the_servers_type_check(harbour: Harbour) -> None:
    path = f"{ADMISSION}/validatingadmissionpolicies/berthmaster-protect-allocation"

    async def checked() -> dict[str, Any]:
        policy = await harbour.client.get(path)
        assert "typeChecking" in policy.get("status", {})
        return policy

    policy = await eventually(checked)
    assert policy["status"]["typeChecking"].get("expressionWarnings", []) == []


async def test_applying_again_changes_nothing(harbour: Harbour) -> None:
    folder = str(CONFIG / "base" / "admission")
    await harbour.sandbox.kubectl("apply", "-k", folder)

    done = await harbour.sandbox.kubectl("diff", "-k", folder, check=False)

    assert (done.returncode, done.stdout) == (0, "")


async def test_deleting_base_leaves_what_others_own(sandbox: Sandbox) -> None:
    base = await render(sandbox, "base")

    kinds = [(it["kind"], it["metadata"]["name"]) for it in base]
    assert "CustomResourceDefinition" not in dict(kinds)
    assert [name for kind, name in kinds if kind == "Namespace"] == [names.SYSTEM_NAMESPACE]


# Pods that ask by their own annotation.


@pytest.mark.parametrize(
    ("pod", "gates"),
    [
        pytest.param({"mode": "required"}, [names.GATE], id="required"),
        pytest.param({"mode": "bind"}, [names.GATE], id="bind"),
        pytest.param({"mode": "sideways"}, [names.GATE], id="unknown mode"),
        pytest.param({"annotations": {names.PLACEMENT: ""}}, [names.GATE], id="empty mode"),
        pytest.param({"mode": "preferred"}, [], id="preferred"),
        pytest.param(
            {"mode": "preferred", "containers": asking("kunlunxin.com/vxpu")},
            [names.GATE],
            id="preferred with devices",
        ),
        pytest.param({"mode": "preferred", "containers": asking("cpu")}, [], id="preferred, cpu"),
        pytest.param(
            {"mode": "observe", "containers": asking("kunlunxin.com/vxpu")},
            [],
            id="observe with devices",
        ),
        pytest.param({"mode": "observe"}, [], id="observe"),
        pytest.param({"mode": "off"}, [], id="off"),
        pytest.param({}, [], id="does not ask"),
        pytest.param({"annotations": {"a": "b"}}, [], id="other annotation"),
        pytest.param({"mode": "required", "owner": "ReplicaSet"}, [names.GATE], id="replicas"),
        pytest.param({"mode": "required", "owner": "DaemonSet"}, [], id="daemon"),
        pytest.param({"mode": "required", "nodeName": "sim-0001"}, [], id="bound"),
        pytest.param(
            {
                "mode": "required",
                "nodeName": "sim-0001",
                "annotations": {names.MIRROR_POD: "digest"},
            },
            [],
            id="mirror",
        ),
        pytest.param({"mode": "required", "gates": (names.GATE,)}, [names.GATE], id="ours already"),
        pytest.param(
            {"mode": "required", "gates": (FOREIGN,)}, [FOREIGN, names.GATE], id="beside another"
        ),
        pytest.param(
            {"mode": "required", "gates": (names.GATE, FOREIGN)},
            [names.GATE, FOREIGN],
            id="ours already, beside another",
        ),
        pytest.param({"gates": (names.GATE,)}, [names.GATE], id="gated by hand"),
    ],
)
async def test_gates(harbour: Harbour, pod: dict[str, Any], gates: list[str]) -> None:
    stored = await harbour.try_pod(**pod)

    assert gates_of(stored) == gates


@pytest.mark.parametrize("namespace", names.EXEMPT_NAMESPACES)
async def test_exempt_namespace_is_not_gated(harbour: Harbour, namespace: str) -> None:
    async def attempt() -> dict[str, Any]:
        # The namespace's service account may be on its way.
        return await try_pod(harbour.client, namespace, make_pod(mode="required"))

    assert gates_of(await eventually(attempt)) == []


# An allocation is ours to write.


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param({}, id="does not ask"),
        pytest.param({"mode": "required"}, id="asks"),
        pytest.param({"mode": "observe"}, id="observes"),
        pytest.param({"nodeName": "sim-0001"}, id="bound"),
        pytest.param({"owner": "DaemonSet"}, id="daemon"),
    ],
)
async def test_forged_allocation_is_dropped(harbour: Harbour, pod: dict[str, Any]) -> None:
    mine = {"mine": "stays", names.ALLOCATION: FORGED}
    stored = await harbour.try_pod(**pod, annotations=mine)

    assert names.ALLOCATION not in annotations_of(stored)
    assert annotations_of(stored)["mine"] == "stays"


async def test_forged_devices_are_dropped_and_noted(harbour: Harbour) -> None:
    forged = dict.fromkeys(names.FORGEABLE, "0")
    for allocation in ({}, {names.ALLOCATION: FORGED}):
        stored = await harbour.try_pod(annotations={"mine": "stays", **forged, **allocation})

        assert annotations_of(stored) == {
            "mine": "stays",
            names.DROPPED: ",".join(names.FORGEABLE),
        }


async def test_forged_allocation_is_dropped_in_exempt_namespaces(harbour: Harbour) -> None:
    pod = make_pod(annotations={names.ALLOCATION: FORGED})
    stored = await try_pod(harbour.client, "kube-system", pod)

    assert names.ALLOCATION not in annotations_of(stored)


@pytest.mark.parametrize("value", ["another", "", None], ids=["changed", "emptied", "removed"])
@pytest.mark.parametrize("part", ["", "/status"], ids=["pod", "status"])
async def test_stored_allocation_cannot_be_edited(
    harbour: Harbour, part: str, value: str | None
) -> None:
    name = f"kept-{secrets.token_hex(4)}"
    await harbour.allocate(name)

    with pytest.raises(ApiError, match="only Berthmaster's webhook writes it") as refusal:
        await harbour.client.patch(
            f"{harbour.pods}/{name}{part}", annotated(names.ALLOCATION, value), PatchKind.MERGE
        )
    assert refusal.value.status == 403


@pytest.mark.parametrize("value", [FORGED, ""], ids=["forged", "empty"])
@pytest.mark.parametrize("part", ["", "/status"], ids=["pod", "status"])
async def test_allocation_cannot_be_added(harbour: Harbour, part: str, value: str) -> None:
    with pytest.raises(ApiError, match="only Berthmaster's webhook writes it"):
        await harbour.client.patch(
            f"{harbour.pods}/guarded{part}", annotated(names.ALLOCATION, value), PatchKind.MERGE
        )


@pytest.mark.parametrize("way", WAYS_TO_BIND)
async def test_allocation_cannot_be_brought_by_a_binding(harbour: Harbour, way: str) -> None:
    name = f"held-{secrets.token_hex(4)}"
    await harbour.allocate(name)

    for pod in ("guarded", name):
        with pytest.raises(ApiError, match="only Berthmaster's webhook writes it"):
            await bind(harbour, pod, way, {names.ALLOCATION: "another"})


@pytest.mark.parametrize("way", WAYS_TO_BIND)
async def test_pod_with_an_allocation_is_bound(harbour: Harbour, way: str) -> None:
    name = f"bound-{secrets.token_hex(4)}"
    await harbour.allocate(name)

    await bind(harbour, name, way, {"mine": "stays"})

    stored = await harbour.client.get(f"{harbour.pods}/{name}")
    assert stored["spec"]["nodeName"] == "sim-0001"
    assert annotations_of(stored)[names.ALLOCATION] == FORGED


@pytest.mark.parametrize("part", ["resize", "ephemeralcontainers"])
async def test_other_subresources_leave_the_allocation(harbour: Harbour, part: str) -> None:
    name = f"part-{secrets.token_hex(4)}"
    await harbour.allocate(name)

    # Refused or without effect, as the API server likes.
    with contextlib.suppress(ApiError):
        await harbour.client.patch(
            f"{harbour.pods}/{name}/{part}", annotated(names.ALLOCATION, "x"), PatchKind.STRATEGIC
        )

    stored = await harbour.client.get(f"{harbour.pods}/{name}")
    assert annotations_of(stored)[names.ALLOCATION] == FORGED


async def test_other_updates_of_such_a_pod_are_free(harbour: Harbour) -> None:
    name = f"free-{secrets.token_hex(4)}"
    await harbour.allocate(name)
    path = f"{harbour.pods}/{name}"
    condition = {"type": "mine", "status": "True"}

    await harbour.client.patch(path, {"metadata": {"labels": {"a": "b"}}}, PatchKind.MERGE)
    await harbour.client.patch(path, annotated("mine", "too"), PatchKind.MERGE)
    await harbour.client.patch(
        f"{path}/status", {"status": {"conditions": [condition]}}, PatchKind.STRATEGIC
    )
    await harbour.client.replace(path, await harbour.client.get(path))
    await harbour.client.delete(path, query={"gracePeriodSeconds": 0})


async def test_pod_without_allocation_is_not_looked_at(harbour: Harbour) -> None:
    name = f"plain-{secrets.token_hex(4)}"
    await harbour.client.create(harbour.pods, make_pod(name, schedulerName="nobody"))
    path = f"{harbour.pods}/{name}"

    await harbour.client.patch(path, annotated("mine", "too"), PatchKind.MERGE)
    await harbour.client.patch(f"{path}/status", {"status": {"message": "x"}}, PatchKind.MERGE)
    await bind(harbour, name, WAYS_TO_BIND[0], {})


async def bind(
    harbour: Harbour, name: str, way: str, annotations: dict[str, str]
) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{harbour.namespace}/{way.format(name=name)}"
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "sim-0001"},
    }
    return await harbour.client.create(path, body)


# Nobody listens where the webhook should be.


@pytest.mark.parametrize("mode", ["required", "observe", ""])
async def test_creation_goes_on_without_a_webhook(harbour: Harbour, mode: str) -> None:
    took_s: list[float] = []
    for _ in range(5):
        started = time.monotonic()
        pod = await harbour.client.create(harbour.pods, make_pod(mode=mode))
        took_s.append(time.monotonic() - started)
        assert gates_of(pod) == ([names.GATE] if mode == "required" else [])

    assert sorted(took_s)[2] < 0.5, "the webhook's time limit is 1 s"


async def test_gated_pod_waits_and_says_so(harbour: Harbour) -> None:
    pod = await harbour.client.create(harbour.pods, make_pod(mode="required"))
    path = f"{harbour.pods}/{pod['metadata']['name']}"

    async def condition() -> dict[str, Any]:
        stored = await harbour.client.get(path)
        found = [it for it in stored["status"]["conditions"] if it["type"] == "PodScheduled"]
        assert found
        return dict(found[0])

    seen = await eventually(condition)
    assert (seen["status"], seen["reason"]) == ("False", "SchedulingGated")


# Pods that a PlacementPolicy selects.


@asynccontextmanager
async def policy(harbour: Harbour, name: str, **spec: Any) -> AsyncIterator[str]:
    """Have a PlacementPolicy with the binding that the operator's own code makes for it."""
    client = harbour.client
    body = {
        "apiVersion": names.API_VERSION,
        "kind": "PlacementPolicy",
        "metadata": {"name": f"{name}-{secrets.token_hex(3)}"},
        "spec": spec,
    }
    created = await client.create(PLACEMENT_POLICIES, body)
    binding = build_binding(policy_from_manifest(created))
    assert binding is not None
    paths = [
        f"{PLACEMENT_POLICIES}/{created['metadata']['name']}",
        f"{POLICY_BINDINGS}/{binding['metadata']['name']}",
    ]
    try:
        await client.create(POLICY_BINDINGS, binding)
        yield created["metadata"]["name"]
    finally:
        for path in reversed(paths):
            await remove(client, path)


def selecting(*labels: str) -> dict[str, Any]:
    expression = {"key": "ship", "operator": "In", "values": list(labels)}
    return {"matchExpressions": [expression]}


async def selected(harbour: Harbour, name: str, **pod: Any) -> dict[str, Any]:
    """Return what the API server makes of a pod once the policy of this name is in force."""

    async def attempt() -> dict[str, Any]:
        stored = await harbour.try_pod(**pod)
        assert annotations_of(stored).get(names.POLICY) == name
        return stored

    return await eventually(attempt)


@pytest.mark.parametrize(
    ("mode", "gates"),
    [("required", [names.GATE]), ("bind", [names.GATE]), ("preferred", []), ("observe", [])],
)
async def test_policy_stamps_and_gates_by_mode(
    harbour: Harbour, mode: str, gates: list[str]
) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "stamps", mode=mode, podSelector=selecting(ship)) as name:
        for annotations in ({}, {"mine": "stays"}):
            stored = await selected(harbour, name, labels={"ship": ship}, annotations=annotations)

            assert annotations_of(stored) == {
                **annotations,
                names.PLACEMENT: mode,
                names.POLICY: name,
                names.POLICY_PRIORITY: "0",
            }
            assert gates_of(stored) == gates


async def test_policy_opts_in_by_resource(harbour: Harbour) -> None:
    async with policy(harbour, "devices", resourceNames=["kunlunxin.com/xpu"]) as name:
        stored = await selected(harbour, name, containers=asking("kunlunxin.com/xpu"))
        inits = {"initContainers": asking("kunlunxin.com/xpu", name="first")}
        first = await harbour.try_pod(**inits)
        other = await harbour.try_pod(containers=asking("cpu"))

    assert gates_of(stored) == gates_of(first) == [names.GATE]
    assert names.POLICY not in annotations_of(other)


async def test_preferring_policy_gates_pods_that_ask_for_devices(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    selector = selecting(ship)
    async with policy(harbour, "prefers", mode="preferred", podSelector=selector) as name:
        stored = await selected(
            harbour, name, labels={"ship": ship}, containers=asking("baidu.com/xpu-mem")
        )

    assert gates_of(stored) == [names.GATE]


async def test_policy_without_mode_gates(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "default", podSelector=selecting(ship)) as name:
        stored = await selected(harbour, name, labels={"ship": ship})

    assert annotations_of(stored)[names.PLACEMENT] == "required"
    assert gates_of(stored) == [names.GATE]


async def test_pods_outside_the_selectors_are_untouched(harbour: Harbour) -> None:
    ship, berth = secrets.token_hex(4), secrets.token_hex(4)
    inside = await make_namespace(harbour.client, berth=berth)
    outside = await make_namespace(harbour.client, berth="other")
    spec = {"podSelector": selecting(ship), "namespaceSelector": {"matchLabels": {"berth": berth}}}
    pod = make_pod(labels={"ship": ship})
    try:
        async with policy(harbour, "narrow", **spec):

            async def in_force() -> None:
                assert gates_of(await try_pod(harbour.client, inside, pod)) == [names.GATE]

            await eventually(in_force)
            other_label = make_pod(labels={"ship": "other"})
            for namespace, body in ((inside, other_label), (inside, make_pod()), (outside, pod)):
                stored = await try_pod(harbour.client, namespace, body)
                assert (gates_of(stored), annotations_of(stored)) == ([], {})
    finally:
        for namespace in (inside, outside):
            await remove(harbour.client, f"/api/v1/namespaces/{namespace}")


@pytest.mark.parametrize("mode", ["required", "observe"])
async def test_old_schedulers_pods_are_taken_over(harbour: Harbour, mode: str) -> None:
    old = f"{OLD_SCHEDULER}-{mode}"
    spec = {"mode": mode, "schedulerNames": ["nobodys", old]}
    async with policy(harbour, "taken", **spec) as name:
        stored = await selected(harbour, name, schedulerName=old)

        assert stored["spec"]["schedulerName"] == names.DEFAULT_SCHEDULER
        assert annotations_of(stored) == {
            names.PLACEMENT: mode,
            names.POLICY: name,
            names.POLICY_PRIORITY: "0",
            names.REPLACED_SCHEDULER: old,
        }
        assert gates_of(stored) == ([names.GATE] if mode == "required" else [])
        for spared in ({}, {"schedulerName": "somebody"}):
            stored = await harbour.try_pod(**spared)
            assert (gates_of(stored), annotations_of(stored)) == ([], {})
            assert stored["spec"]["schedulerName"] == spared.get(
                "schedulerName", names.DEFAULT_SCHEDULER
            )


async def test_selected_pod_keeps_its_own_word(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "modest", podSelector=selecting(ship)) as name:
        await selected(harbour, name, labels={"ship": ship})

        for mode, gates in (("off", []), ("observe", []), ("bind", [names.GATE])):
            stored = await harbour.try_pod(mode=mode, labels={"ship": ship})
            assert annotations_of(stored) == {names.PLACEMENT: mode}
            assert gates_of(stored) == gates


@pytest.mark.parametrize(
    "exempt",
    [
        pytest.param({"owner": "DaemonSet"}, id="daemon"),
        pytest.param({"nodeName": "sim-0001"}, id="bound"),
        pytest.param(
            {"nodeName": "sim-0001", "annotations": {names.MIRROR_POD: "digest"}}, id="mirror"
        ),
    ],
)
async def test_exempt_pods_are_not_selected(harbour: Harbour, exempt: dict[str, Any]) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "exempt", podSelector=selecting(ship)) as name:
        await selected(harbour, name, labels={"ship": ship})

        stored = await harbour.try_pod(**exempt, labels={"ship": ship})

    assert gates_of(stored) == []
    assert annotations_of(stored) == exempt.get("annotations", {})


async def test_exempt_namespaces_are_not_selected(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "system", podSelector=selecting(ship)) as name:
        await selected(harbour, name, labels={"ship": ship})

        for namespace in names.EXEMPT_NAMESPACES:
            pod = make_pod(labels={"ship": ship})
            stored = await try_pod(harbour.client, namespace, pod)
            assert (gates_of(stored), annotations_of(stored)) == ([], {})


async def test_selected_pods_gates_are_kept(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "gates", podSelector=selecting(ship)) as name:
        for gates, expected in (
            ((FOREIGN,), [FOREIGN, names.GATE]),
            ((names.GATE,), [names.GATE]),
            ((names.GATE, FOREIGN), [names.GATE, FOREIGN]),
        ):
            stored = await selected(harbour, name, labels={"ship": ship}, gates=gates)
            assert gates_of(stored) == expected


async def test_priority_then_name_counts_in_any_order(harbour: Harbour) -> None:
    """The API server shuffles the bindings at each change, so each new one is another throw."""
    ship = secrets.token_hex(4)
    ranks = [
        ("c", 0, "required"),
        ("b", 0, "observe"),
        ("a", -7, "required"),
        ("e", 10, "required"),
        ("d", 10, "preferred"),
        ("f", 9, "bind"),
        ("g", 11, "bind"),
        ("h", 1_000_000, "observe"),
    ]
    made: list[tuple[int, str, str]] = []
    async with AsyncExitStack() as stack:
        for prefix, priority, mode in ranks:
            own = secrets.token_hex(4)
            spec = {"mode": mode, "priority": priority, "podSelector": selecting(ship, own)}
            name = await stack.enter_async_context(policy(harbour, prefix, **spec))
            made.append((-priority, name, mode))
            await selected(harbour, name, labels={"ship": own})
            first_priority, first, first_mode = min(made)

            pod = await harbour.try_pod(labels={"ship": ship}, gates=(FOREIGN,))

            assert annotations_of(pod) == {
                names.PLACEMENT: first_mode,
                names.POLICY: first,
                names.POLICY_PRIORITY: str(-first_priority),
            }
            waits = first_mode in ("required", "bind")
            assert gates_of(pod) == ([FOREIGN, names.GATE] if waits else [FOREIGN])


@pytest.mark.parametrize("priorities", [(0, 5), (5, 0)], ids=["selector-first", "scheduler-first"])
async def test_outranked_take_over_is_undone(harbour: Harbour, priorities: tuple[int, int]) -> None:
    ship, old = secrets.token_hex(4), f"{OLD_SCHEDULER}-{secrets.token_hex(4)}"
    by_name = {"priority": priorities[0], "schedulerNames": [old]}
    by_label = {"priority": priorities[1], "mode": "observe", "podSelector": selecting(ship)}
    both = {"schedulerName": old, "labels": {"ship": ship}}
    async with (
        policy(harbour, "name", **by_name) as taker,
        policy(harbour, "label", **by_label) as it,
    ):
        await selected(harbour, taker, schedulerName=old)
        await selected(harbour, it, labels={"ship": ship})

        stored = await harbour.try_pod(**both)

    if priorities[0] > priorities[1]:
        assert annotations_of(stored)[names.REPLACED_SCHEDULER] == old
        assert stored["spec"]["schedulerName"] == names.DEFAULT_SCHEDULER
        assert gates_of(stored) == [names.GATE]
    else:
        assert names.REPLACED_SCHEDULER not in annotations_of(stored)
        assert stored["spec"]["schedulerName"] == old
        assert gates_of(stored) == []


@pytest.mark.parametrize("priority", ["-1", "1", "none", "99999999999999999999", ""])
async def test_forged_stamp_is_overruled_or_gated(harbour: Harbour, priority: str) -> None:
    ship = secrets.token_hex(4)
    forged = {names.POLICY: "forged", names.POLICY_PRIORITY: priority}
    async with policy(harbour, "real", podSelector=selecting(ship)) as name:
        await selected(harbour, name, labels={"ship": ship})

        alone = await harbour.try_pod(labels={"ship": ship}, annotations=forged)
        asking = await harbour.try_pod(labels={"ship": ship}, annotations=forged, mode="required")

    assert annotations_of(alone)[names.POLICY] == name
    assert annotations_of(asking)[names.POLICY] == (name if priority == "-1" else "forged")
    for stored in (alone, asking):
        assert gates_of(stored) == [names.GATE]


async def test_binding_of_a_deleted_policy_touches_nothing(harbour: Harbour) -> None:
    ship = secrets.token_hex(4)
    async with policy(harbour, "gone", podSelector=selecting(ship)) as name:
        await selected(harbour, name, labels={"ship": ship})
        await remove(harbour.client, f"{PLACEMENT_POLICIES}/{name}")

        async def untouched() -> dict[str, Any]:
            stored = await harbour.try_pod(labels={"ship": ship})
            assert gates_of(stored) == []
            return stored

        assert annotations_of(await eventually(untouched)) == {}
