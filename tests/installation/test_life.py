"""Two lives of an installation, from `kubectl apply -k` to a cluster without a trace of it.

The first gates by policies of the API server, the second by our own webhook as clusters before 1.36
need it, with a stand-in for cert-manager. What both do to the same pods is compared. The tests go on
from one another and run in this order.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError
from berthmaster_operator import certificates
from berthmaster_operator.certificates import is_trusted
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.installing import wait_installed
from berthmaster_sandbox.world.diskio import DiskWorld
from installation.living import (
    NEXT_IMAGE,
    NODE,
    NOWHERE,
    PATIENCE_S,
    Manifest,
    apply,
    berth,
    define_kind,
    is_refused,
    leader,
    leftovers,
    secret_names,
    try_pod,
    uninstall,
    until_decided,
    until_ready,
)
from support.harbour import (
    HOOK,
    POLICIES,
    PROGRAMS,
    SYSTEM,
    apply_models,
    apply_policy,
    create,
    make_pod,
    new_namespace,
    program_pids,
    program_pods,
    scale_program,
    until,
    until_bound,
    until_reason,
    until_waiting,
)
from support.overlays import write_overlay
from support.traffic import traffic

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(900),
]

LAB = "lab"
GATE_HOOK = HOOK.replace(names.WEBHOOK_CONFIGURATION, names.GATE_CONFIGURATION)
CERTIFICATES = f"/apis/cert-manager.io/v1/namespaces/{SYSTEM}/certificates"
SECRETS = f"/api/v1/namespaces/{SYSTEM}/secrets"
OLD_SCHEDULER = "diskio-aware-scheduler"


@dataclass
class Lives:
    """What one test leaves to the next."""

    first: Path
    second: Path
    fates: dict[str, Any] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lives(bare: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lives]:
    folder = tmp_path_factory.mktemp("overlays")
    await new_namespace(bare, LAB)
    await bare.kubectl("label", "namespace", LAB, "harbour=lab")
    for kind in ("PodMonitor", "PrometheusRule"):
        await define_kind(bare, "monitoring.coreos.com", "v1", kind, f"{kind.lower()}s")
    for kind in ("Issuer", "Certificate"):
        await define_kind(bare, "cert-manager.io", "v1", kind, f"{kind.lower()}s")
    yield Lives(
        first=write_overlay(folder / "first", "ha", "prometheus", "restricted-egress"),
        second=write_overlay(folder / "second", "ha", "pre-1.36", "cert-manager"),
    )


# What becomes of pods, whoever gates them.


def ship(*values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": "ship", "operator": "In", "values": list(values)}]}


SELECTING: dict[str, dict[str, Any]] = {
    "low": {"priority": 0, "podSelector": ship("a", "ab", "abc")},
    "high": {"priority": 5, "mode": "observe", "podSelector": ship("b", "ab")},
    "same-a": {"priority": 2, "podSelector": ship("abc")},
    "same-b": {"priority": 2, "mode": "bind", "podSelector": ship("abc")},
    "never": {"priority": 9, "mode": "off", "podSelector": ship("off")},
    "old": {"priority": -3, "schedulerNames": [OLD_SCHEDULER, 'odd"name']},
    "old-lab": {
        "priority": 1,
        "schedulerNames": [OLD_SCHEDULER],
        "namespaceSelector": {"matchLabels": {"harbour": "lab"}},
        "podSelector": ship("d", "ab"),
    },
    "settings": {"priority": -9},
}
LABELS = ("", "a", "b", "ab", "abc", "d", "off")
SCHEDULERS = ("", OLD_SCHEDULER, "another")
ASKS: tuple[dict[str, str], ...] = (
    {},
    {"mine": "stays"},
    {names.PLACEMENT: "required"},
    {names.PLACEMENT: "observe"},
    {names.PLACEMENT: "off"},
    {names.PLACEMENT: "sideways"},
    {names.ALLOCATION: "forged", "mine": "stays"},
)
ODD: tuple[dict[str, Any], ...] = (
    {"nodeName": NODE},
    {"schedulingGates": [{"name": "another.example.com/gate"}]},
    {"schedulingGates": [{"name": names.GATE}]},
)


def parity_pods() -> dict[str, tuple[str, Manifest]]:
    """Return pods by a name that tells what they are, with their namespaces; none fits anywhere."""
    found: dict[str, tuple[str, Manifest]] = {}

    def add(what: str, namespace: str, ask: dict[str, str], label: str, **spec: Any) -> Manifest:
        pod = make_pod("parity", placement=None, labels={"ship": label} if label else {})
        pod["metadata"]["annotations"] = dict(ask)
        pod["spec"].update({"nodeSelector": NOWHERE, **spec})
        found[what] = (namespace, pod)
        return pod

    for index, ask in enumerate(ASKS):
        for label, scheduler in itertools.product(LABELS, SCHEDULERS):
            # All of the crossings for two ways to ask, a few for the others.
            if index > 1 and (label, scheduler) not in (("", ""), ("ab", OLD_SCHEDULER)):
                continue
            named = {"schedulerName": scheduler} if scheduler else {}
            add(f"{ask} {label} {scheduler}", LAB, ask, label, **named)
    for index, odd in enumerate(ODD):
        for label in ("", "a"):
            ask = {} if label else {names.PLACEMENT: "required"}
            add(f"odd {index} {label}", LAB, ask, label, **odd)
    for label, ask in (("", {names.PLACEMENT: "required"}), ("a", {})):
        for kind in ("DaemonSet", "ReplicaSet"):
            pod = add(f"of a {kind} {label}", LAB, ask, label)
            owner = {"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "0-0"}
            pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    for ask in ({names.PLACEMENT: "required"}, {names.ALLOCATION: "forged"}):
        add(f"exempt {ask}", "kube-system", ask, "a", schedulerName=OLD_SCHEDULER)
    return found


async def fate(sandbox: Sandbox, namespace: str, pod: Manifest) -> Any:
    """Return what becomes of a pod: annotations, gates and scheduler, or the words of a refusal."""
    try:
        stored = await try_pod(sandbox, namespace, pod)
    except ApiError as error:
        # Which webhook said it is no part of the fate.
        return error.status, error.message.partition("denied the request: ")[2]
    return (
        stored["metadata"].get("annotations", {}),
        [it["name"] for it in stored["spec"].get("schedulingGates", ())],
        stored["spec"]["schedulerName"],
    )


async def fates(sandbox: Sandbox) -> dict[str, Any]:
    return {
        what: await fate(sandbox, namespace, pod)
        for what, (namespace, pod) in parity_pods().items()
    }


async def until_policies_act(sandbox: Sandbox) -> None:
    """Wait until each policy that selects something stamps a pod of its own."""
    probes = {
        "low": ("a", ""),
        "high": ("b", ""),
        "same-a": ("abc", ""),
        "never": ("off", ""),
        "old": ("", OLD_SCHEDULER),
        "old-lab": ("d", OLD_SCHEDULER),
    }

    async def stamped() -> set[str]:
        found = set()
        for label, scheduler in probes.values():
            pod = make_pod("probe", placement=None, labels={"ship": label}, select=NOWHERE)
            pod["spec"]["schedulerName"] = scheduler or names.DEFAULT_SCHEDULER
            try:
                stored = await try_pod(sandbox, LAB, pod)
            except ApiError:
                continue
            found.add(stored["metadata"].get("annotations", {}).get(names.POLICY, ""))
        return found

    await until(stamped, lambda it: it >= probes.keys(), 60)


async def apply_policies(sandbox: Sandbox) -> None:
    for name, spec in SELECTING.items():
        await apply_policy(sandbox, name, spec)
    await until_policies_act(sandbox)


# The first life.


async def test_two_replicas_of_each_are_installed(bare: Sandbox, lives: Lives) -> None:
    await apply(bare, lives.first)
    await wait_installed(bare)

    for name in PROGRAMS:
        pods = await until_ready(bare, name, 2)
        assert len({it["spec"]["nodeName"] for it in pods}) == 2, "apart from one another"
    assert await bare.kubectl("-n", SYSTEM, "get", "podmonitor,prometheusrule", "-o", "name")


async def test_pods_are_gated_by_policies(bare: Sandbox, lives: Lives) -> None:
    await apply_policies(bare)

    lives.fates = await fates(bare)

    assert len(lives.fates) > 60
    gates = [it[1] for it in lives.fates.values() if len(it) == 3]
    assert sum(names.GATE in it for it in gates) > 20
    assert sum(names.GATE not in it for it in gates) > 20


async def test_applying_again_resets_nothing(bare: Sandbox, lives: Lives) -> None:
    async def owned() -> list[Any]:
        hook = (await bare.client.get(HOOK))["webhooks"]
        leases = await bare.client.get(f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases")
        secrets = (await bare.client.get(SECRETS))["items"]
        bindings = await bare.client.get(
            "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"
        )
        return [
            hook,
            {
                it["metadata"]["name"]: it["metadata"]["resourceVersion"]
                for it in secrets
                # The scrapers' token comes from config/ itself, and is no secret of the operator.
                if it["type"] != "kubernetes.io/service-account-token"
            },
            {it["metadata"]["name"]: it["spec"]["holderIdentity"] for it in leases["items"]},
            {it["metadata"]["name"]: it["spec"] for it in bindings["items"]},
            [await program_pids(bare, name) for name in PROGRAMS],
        ]

    before = await owned()
    assert before[0][0]["clientConfig"]["caBundle"]

    said = await apply(bare, lives.first)

    assert "created" not in said
    # kubectl says `configured` where it wrote; only what the server completes may be rewritten alike.
    assert await owned() == before
    await apply(bare, lives.first, "--server-side", "--force-conflicts")
    assert await owned() == before


async def test_drain_ends_and_the_standby_takes_over(bare: Sandbox, lives: Lives) -> None:
    # Whichever node leads, it is drained; then the one that has taken over.
    for _ in range(2):
        node = await until(lambda: leader(bare), bool, 60)
        async with traffic(bare, LAB, node=NODE, per_second=4) as seen:
            await bare.kubectl(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data",
                "--force", "--timeout=90s", timeout_s=120,
            )  # fmt: skip
            # In good order: without the wait of 65 s that a crash costs.
            await until_led_elsewhere(bare, node)
            await until_decided(bare, LAB)
        await bare.kubectl("uncordon", node)
        assert seen.refused == []
        for name in seen.gated:
            assert await until_bound(bare, LAB, name, 60) == NODE
        await clear_pods(bare)
        for name in PROGRAMS:
            await until_ready(bare, name, 2)


async def until_led_elsewhere(sandbox: Sandbox, node: str) -> None:
    await until(lambda: leader(sandbox), lambda it: it not in ("", node), 30)


async def clear_pods(sandbox: Sandbox) -> None:
    await sandbox.client.delete(
        f"/api/v1/namespaces/{LAB}/pods", query={"gracePeriodSeconds": 0}, timeout_s=60
    )

    async def count() -> int:
        return len((await sandbox.client.get(f"/api/v1/namespaces/{LAB}/pods"))["items"])

    await until(count, lambda it: it == 0, 60)


async def test_upgrade_under_load_refuses_no_pod(bare: Sandbox, lives: Lives) -> None:
    before = [await program_pids(bare, name) for name in PROGRAMS]
    image, _, tag = NEXT_IMAGE.partition(":")
    newer = write_overlay(
        lives.first.parent / "newer",
        "ha",
        "prometheus",
        "restricted-egress",
        images=[{"name": image, "newTag": tag}],
    )

    async with traffic(bare, LAB, node=NODE, per_second=5) as seen:
        await apply(bare, newer)
        for name in PROGRAMS:
            await bare.kubectl(
                "-n", SYSTEM, "rollout", "status", f"deployment/{name}", "--timeout=120s",
                timeout_s=150,
            )  # fmt: skip
        await until_decided(bare, LAB)

    assert seen.refused == []
    assert seen.created > 30
    for name in PROGRAMS:
        for pod in await until_ready(bare, name, 2):
            assert pod["spec"]["containers"][0]["image"] == NEXT_IMAGE
    after = [await program_pids(bare, name) for name in PROGRAMS]
    assert all(not old & new for old, new in zip(before, after, strict=True))
    # Who came between two leaders was placed from the gate.
    for name in seen.gated:
        assert await until_bound(bare, LAB, name, 60) == NODE
    await clear_pods(bare)


async def test_removing_in_order_leaves_nothing(bare: Sandbox, lives: Lives) -> None:
    await apply_models(bare)
    async with DiskWorld(bare.client) as world:
        await world.add_node(NODE, devices={"d": disk(1000, 1000, 2000)})
        await until_reason(bare, NODE, "Reported")
        await create(bare, LAB, make_pod("waits", select=NOWHERE))
        await create(bare, LAB, make_pod("placed", on=NODE))
        await until_waiting(bare, LAB, "waits")
        assert await until_bound(bare, LAB, "placed") == NODE
    marks = await leftovers(bare)
    assert f"Node /{NODE}" in marks, "a condition of ours"

    folder = lives.first.parent
    await uninstall(bare, write_overlay(folder / "gating", base="base/admission"))
    said = await berth(bare, "ungate", "--all", "--yes")
    assert "waits" in said
    # As those remove it whose drivers stay.
    parts = ("ha", "prometheus", "restricted-egress")
    await uninstall(bare, write_overlay(folder / "programs", *parts, base="base"))
    said = await berth(bare, "clean")
    assert NODE in said
    stats = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskdevices"
    assert (await bare.client.get(stats))["items"], "what drivers publish stays"
    kinds = ("placementpolicies", "nodeinventories", "nodexpus", "powermodels")
    ours = [f"{it}.berthmaster.io" for it in kinds]
    await bare.kubectl("delete", "crd", *ours)

    async def left() -> list[str]:
        return [it for it in await leftovers(bare) if not it.startswith(f"Pod {LAB}/")]

    # Bindings and inventories go with what owns them.
    await until(left, lambda it: it == [], 60)
    pods = {
        it["metadata"]["name"]: it
        for it in (await bare.client.get(f"/api/v1/namespaces/{LAB}/pods"))["items"]
    }
    assert not pods["waits"]["spec"].get("schedulingGates")
    assert pods["placed"]["spec"]["nodeName"] == NODE
    plain = await create(bare, LAB, make_pod("after", on=NODE))
    assert not plain["spec"].get("schedulingGates")
    assert await until_bound(bare, LAB, "after") == NODE
    await clear_pods(bare)
    await bare.kubectl("delete", "namespace", "ioi-system", timeout_s=PATIENCE_S)


# The second life: our own gate, certificates of somebody else.


async def play_issuer(sandbox: Sandbox) -> bytes:
    """Issue what the Certificate asks for, as cert-manager would; return the new authority."""
    spec = (await sandbox.client.get(f"{CERTIFICATES}/berthmaster-webhook"))["spec"]
    now = datetime.now(UTC)
    authority = certificates.issue_authority(now)
    leaf = certificates.issue_leaf(authority, spec["dnsNames"], now)
    parts = {"tls.crt": leaf.certificate, "tls.key": leaf.key, "ca.crt": authority.certificate}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": spec["secretName"], "namespace": SYSTEM},
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(value).decode() for key, value in parts.items()},
    }
    await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
    return authority.certificate


async def bundles(sandbox: Sandbox) -> set[bytes]:
    """Return what the webhooks of both configurations trust."""
    return {
        base64.b64decode(it["clientConfig"].get("caBundle", ""))
        for path in (HOOK, GATE_HOOK)
        for it in (await sandbox.client.get(path))["webhooks"]
    }


async def test_foreign_issuer_and_own_gate_are_installed(bare: Sandbox, lives: Lives) -> None:
    await apply(bare, lives.second)
    authority = await play_issuer(bare)

    await until(lambda: bundles(bare), lambda it: it == {authority}, 60)
    await until_decided(bare, LAB)
    for name in PROGRAMS:
        await until_ready(bare, name, 2)
    assert names.WEBHOOK_CA_SECRET not in await secret_names(bare), "the operator issued one"
    policies = await bare.client.get(
        "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"
    )
    assert policies["items"] == []


async def test_own_gate_does_what_the_policies_do(bare: Sandbox, lives: Lives) -> None:
    await apply_policies(bare)

    found = await fates(bare)

    differences = {
        what: (lives.fates[what], found[what])
        for what in lives.fates
        if found[what] != lives.fates[what]
    }
    assert differences == {}


async def test_webhook_of_a_deleted_policy_goes(bare: Sandbox, lives: Lives) -> None:
    await bare.client.delete(f"{POLICIES}/never")

    async def hooks() -> set[str]:
        return {it["name"] for it in (await bare.client.get(GATE_HOOK))["webhooks"]}

    found = await until(hooks, lambda it: "never.policy.berthmaster.io" not in it, 30)
    assert {"annotated.berthmaster.io", "drop.berthmaster.io", "low.policy.berthmaster.io"} <= found
    assert "settings.policy.berthmaster.io" not in found
    # Applying again takes nothing from the operator.
    await apply(bare, lives.second)
    assert await hooks() == found
    assert b"" not in await bundles(bare)


async def test_foreign_authority_changes_without_a_failed_call(bare: Sandbox, lives: Lives) -> None:
    (before,) = await bundles(bare)
    await until_decided(bare, LAB)
    async with traffic(bare, LAB, node=NODE, per_second=10) as seen:
        after = await play_issuer(bare)
        both = await until(
            lambda: bundles(bare), lambda it: all(is_trusted(text, after) for text in it), 60
        )
        assert all(is_trusted(text, before) for text in both)
        await until(lambda: bundles(bare), lambda it: it == {after}, 90)

    # With failurePolicy Fail a call that fails is a pod that is refused.
    assert seen.about_certificates == []
    assert seen.refused == []
    assert seen.created > 100
    await clear_pods(bare)


async def test_with_the_webhook_down_only_opted_in_pods_are_refused(
    bare: Sandbox, lives: Lives
) -> None:
    await scale_program(bare, "berthmaster-webhook", 0)
    await until(lambda: program_pods(bare, "berthmaster-webhook"), lambda it: not it, 60)

    assert await is_refused(bare, LAB, make_pod("asks"))
    assert await is_refused(bare, LAB, make_pod("selected", placement=None, labels={"ship": "a"}))
    plain = await create(bare, LAB, make_pod("plain", placement=None, on=NODE))
    assert not plain["spec"].get("schedulingGates")
    forged = make_pod("exempt", labels={"ship": "a"}, select=NOWHERE)
    forged["metadata"]["annotations"][names.ALLOCATION] = "forged"
    for namespace in ("kube-system", "kube-node-lease"):
        stored = await try_pod(bare, namespace, forged)
        assert not stored["spec"].get("schedulingGates")

    await scale_program(bare, "berthmaster-webhook", 2)
    await until_decided(bare, LAB)


async def test_removing_without_ungating_leaves_gated_pods_and_a_way_out(
    bare: Sandbox, lives: Lives
) -> None:
    await create(bare, LAB, make_pod("stuck", select=NOWHERE))
    await until_waiting(bare, LAB, "stuck")

    await uninstall(bare, lives.second)

    path = f"/api/v1/namespaces/{LAB}/pods/stuck"
    stuck = await bare.client.get(path)
    assert [it["name"] for it in stuck["spec"]["schedulingGates"]] == [names.GATE]
    # The command needs nothing of what was removed.
    said = await berth(bare, "ungate", "--all", "--yes")
    assert "stuck" in said
    assert not (await bare.client.get(path))["spec"].get("schedulingGates")
    await berth(bare, "clean")
    await clear_pods(bare)
    await until(lambda: leftovers(bare), lambda it: it == [], 60)
