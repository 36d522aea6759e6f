"""Ask a cluster everything that the doctor looks at, at once and in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import decode_pod
from berthmaster.cli.doctor import (
    datasets,
    definitions,
    gating,
    leading,
    programs,
    topologies,
    workloads,
)
from berthmaster.cli.doctor.calling import our_hook
from berthmaster.cli.doctor.facts import (
    Datasets,
    Facts,
    Found,
    Right,
    Tried,
    Unread,
    annotations_of,
    dig,
    items,
)
from berthmaster.cli.doctor.probing import PROBE
from berthmaster.cli.doctor.reading import Reader
from berthmaster.cli.doctor.rights import RIGHTS
from berthmaster.cluster.client import Client

T = TypeVar("T")

_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_SYSTEM = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{names.SYSTEM_NAMESPACE}/leases"
_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_AT_ONCE = 16
# A path that follows its leader, and a Lease, are looked at twice before they are called wrong.
_SECOND_LOOK_S = 3.0
_LONGEST_LOOK_S = 16.0


async def gather(client: Client, *, namespace: str) -> Facts:
    """Read all facts; `namespace` is where the dry run is made.

    Raises ClusterError where the API server cannot be reached at all, or does not know us.
    """
    served = await client.get("/version")
    reader = Reader(client)
    (
        (defined, admission_kinds, admission_objects),
        (policy_bindings, mutating, validating),
        (secret, service, slices),
        (leases, deployments, program_pods),
        (policies, namespaces, nodes),
        (inventories, devices, seen_topologies, seen_datasets),
        (pending, running),
        (listed, rights, tried),
    ) = await asyncio.gather(
        _all(
            _by(definitions.ALL, lambda it: reader.get(_definition(it))),
            _admission_kinds(reader),
            _admission_objects(reader),
        ),
        _all(
            reader.list(f"{_ADMISSION}/{gating.MUTATING_BINDINGS}"),
            reader.list(f"{_ADMISSION}/{gating.WEBHOOKS}"),
            reader.list(f"{_ADMISSION}/validatingwebhookconfigurations"),
        ),
        _all(
            reader.get(f"{_SYSTEM}/secrets/{names.WEBHOOK_TLS_SECRET}"),
            reader.get(f"{_SYSTEM}/services/{names.WEBHOOK_SERVICE}"),
            reader.list(
                f"/apis/discovery.k8s.io/v1/namespaces/{names.SYSTEM_NAMESPACE}/endpointslices",
                {"labelSelector": f"kubernetes.io/service-name={names.WEBHOOK_SERVICE}"},
            ),
        ),
        _all(
            _by(leading.LEASES, lambda it: reader.get(f"{_LEASES}/{it}")),
            _by(programs.ALL, lambda it: reader.get(_deployment(it))),
            reader.list(f"{_SYSTEM}/pods"),
        ),
        _all(
            reader.list(f"/apis/{names.API_VERSION}/placementpolicies"),
            reader.list("/api/v1/namespaces"),
            reader.list("/api/v1/nodes"),
        ),
        _all(
            reader.list(f"/apis/{names.API_VERSION}/nodeinventories"),
            reader.list(f"/apis/{names.DISKIO_API_VERSION}/nodediskdevices"),
            reader.list_as(topologies.decode, topologies.PATH),
            _datasets(reader),
        ),
        _all(
            reader.list_as(decode_pod, "/api/v1/pods", {"fieldSelector": "status.phase=Pending"}),
            reader.list_as(decode_pod, "/api/v1/pods", {"fieldSelector": "status.phase=Running"}),
        ),
        _all(
            _by(workloads.KINDS, lambda it: reader.list(workloads.KINDS[it][0])),
            _ask_rights(reader, RIGHTS),
            _try(reader, namespace),
        ),
    )
    facts = Facts(
        now=datetime.now(UTC),
        cli_version=version("berthmaster"),
        server_version=str(served.get("gitVersion", "unknown")),
        system_namespace=names.SYSTEM_NAMESPACE,
        definitions=defined,
        admission_kinds=admission_kinds,
        admission_objects=admission_objects,
        policy_bindings=policy_bindings,
        mutating_webhooks=mutating,
        validating_webhooks=validating,
        tls_secret=secret,
        service=service,
        endpoint_slices=slices,
        leases=leases,
        deployments=deployments,
        program_pods=program_pods,
        policies=policies,
        namespaces=namespaces,
        nodes=nodes,
        inventories=inventories,
        devices=devices,
        topologies=seen_topologies,
        datasets=seen_datasets,
        pending_pods=pending,
        running_pods=running,
        workloads=listed,
        rights=rights,
        tried=tried,
        cuts=tuple(reader.cuts),
    )
    return await _look_twice(reader, facts)


async def _datasets(reader: Reader) -> dict[str, Datasets]:
    return {
        path: await reader.list_as(partial(datasets.decode, group, plural), path)
        for group, plural, path in datasets.PATHS
    }


async def _look_twice(reader: Reader, facts: Facts) -> Facts:
    """Read again what is about to be right, so that neither a take-over nor a clock looks broken."""
    now_s = facts.now.timestamp()
    stale = {
        name: lease
        for name, lease in facts.leases.items()
        if lease is not None
        and not isinstance(lease, Unread)
        and dig(lease, "spec", "holderIdentity")
        and leading.is_stale(lease, now_s)
    }
    renewed = dict.fromkeys(facts.leases, True)
    if not stale and _path_follows(facts):
        return replace(facts, renewed=renewed)
    durations = [float(dig(it, "spec", "leaseDurationSeconds") or 1) for it in stale.values()]
    await asyncio.sleep(min(_LONGEST_LOOK_S, max([_SECOND_LOOK_S, *durations])))
    leases = dict(await _by(facts.leases, lambda it: reader.get(f"{_LEASES}/{it}")))
    for name, before in stale.items():
        after = leases[name]
        if isinstance(after, Unread) or after is None:
            continue
        renewed[name] = dig(before, "spec", "renewTime") != dig(after, "spec", "renewTime")
    key = (gating.WEBHOOKS, names.WEBHOOK_CONFIGURATION)
    configuration = await reader.get(f"{_ADMISSION}/{'/'.join(key)}")
    return replace(
        facts,
        leases=leases,
        renewed=renewed,
        admission_objects={**facts.admission_objects, key: configuration},
    )


def _path_follows(facts: Facts) -> bool:
    configuration = facts.webhook_configuration
    lease = facts.leases.get(names.WEBHOOK_LEASE)
    if isinstance(configuration, Unread) or isinstance(lease, Unread):
        return True
    if configuration is None or lease is None:
        return True
    hook = our_hook(configuration) or {}
    epoch = dig(lease, "spec", "leaseTransitions") or 0
    return bool(dig(hook, "clientConfig", "service", "path") == f"{names.WEBHOOK_PATH}/{epoch}")


async def _admission_kinds(reader: Reader) -> frozenset[str] | Unread:
    found = await reader.get(_ADMISSION)
    if isinstance(found, Unread):
        return found
    return frozenset(str(it.get("name")) for it in items(found or {}, "resources"))


async def _admission_objects(reader: Reader) -> Mapping[tuple[str, str], Found]:
    keys = [(plural, name) for plural, wanted in gating.OBJECTS.items() for name in wanted]
    keys += [
        (gating.WEBHOOKS, names.WEBHOOK_CONFIGURATION),
        (gating.WEBHOOKS, names.GATE_CONFIGURATION),
    ]
    return await _by(keys, lambda key: reader.get(f"{_ADMISSION}/{key[0]}/{key[1]}"))


async def _ask_rights(reader: Reader, rights: Iterable[Right]) -> Mapping[Right, bool | Unread]:
    slots = asyncio.Semaphore(_AT_ONCE)
    answers: dict[Right, bool | Unread] = {}

    async def ask(right: Right) -> None:
        async with slots:
            answer = await reader.post(_REVIEWS, _review(right))
        if isinstance(answer, Unread):
            answers[right] = answer
        else:
            answers[right] = bool(dig(answer, "status", "allowed"))

    first, *rest = rights
    await ask(first)
    if isinstance(answers[first], Unread):
        # Who may not ask may not ask sixty times.
        return answers
    await asyncio.gather(*map(ask, rest))
    return answers


def _review(right: Right) -> dict[str, Any]:
    resource, _, subresource = right.resource.partition("/")
    group = "system:serviceaccounts"
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{names.SYSTEM_NAMESPACE}:{right.account}",
            "groups": [group, f"{group}:{names.SYSTEM_NAMESPACE}", "system:authenticated"],
            "resourceAttributes": {
                "verb": right.verb,
                "group": right.group,
                "resource": resource,
                "subresource": subresource,
                "namespace": right.namespace,
                "name": right.name,
            },
        },
    }


async def _try(reader: Reader, namespace: str) -> Tried | Unread:
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = await reader.post(path, PROBE, is_dry_run=True)
    if isinstance(made, Unread):
        return made
    if made is None:
        return Unread(f"the namespace {namespace} does not exist; -n chooses another")
    gates = items(made, "spec", "schedulingGates")
    allocation = read_allocation(str(annotations_of(made).get(names.ALLOCATION, "")))
    return Tried(
        is_gated=any(it.get("name") == names.GATE for it in gates),
        node=allocation.node if allocation is not None else "",
    )


async def _by(keys: Iterable[T], ask: Any) -> dict[T, Any]:
    """Ask something for each key at once."""
    wanted = list(keys)
    answers = await asyncio.gather(*map(ask, wanted))
    return dict(zip(wanted, answers, strict=True))


async def _all(*pending: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*pending))


def _definition(name: str) -> str:
    return f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"


def _deployment(name: str) -> str:
    return f"/apis/apps/v1/namespaces/{names.SYSTEM_NAMESPACE}/deployments/{name}"
