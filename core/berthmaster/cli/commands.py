"""What each command does: ask the cluster, make a report, say how it went by the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import msgspec
from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.inventory import NodeInventory, inventory_from_manifest
from berthmaster.api.objects import Pod, decode_pod
from berthmaster.cli import (
    bypass,
    capacity,
    cleaning,
    deciding,
    inspecting,
    observe_report,
    output,
    page,
    reaching,
    simulate,
    ungating,
    why,
)
from berthmaster.cli.contexts import find_namespace
from berthmaster.cli.errors import CommandError
from berthmaster.cli.manifests import Manifests, read_sources
from berthmaster.cli.observed import Tally
from berthmaster.cli.xpu_facts import gather
from berthmaster.cluster import kinds
from berthmaster.cluster.client import Client, JsonObject
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.snapshot import Snapshot, load_engine, read_all

Command = Callable[[argparse.Namespace], Awaitable[int]]

_ASKED_ABOUT = 5
_POD_WORDS = frozenset({"pod", "pods", "po"})


async def explain(arguments: argparse.Namespace) -> int:
    """`why POD`."""
    namespace, name = _pod_name(arguments)
    async with await _connect(arguments) as client:
        try:
            raw = await client.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
            pod = decode_pod(raw)
        except ApiError as error:
            _explain_missing(error, namespace, name)
        except msgspec.DecodeError as error:
            raise CommandError(f"pod {namespace}/{name} cannot be read: {error}") from error
        told = await _ask_leader(client, arguments, pod) if arguments.full else None
        recomputed: why.Recomputed | None = None
        notes: tuple[str, ...] = ()
        if why.needs_recomputing(pod):
            recomputed = why.recompute(pod, await load_engine(client))
        elif why.is_comparable(pod) and not arguments.recorded:
            recomputed, notes = await _compare(client, pod)
        inventory = await _inventory(client, pod.spec.node_name)
    report = why.build_report(
        pod, recomputed, inventory=inventory, nodes_shown=arguments.nodes, notes=notes
    )
    if told is not None:
        report = deciding.add_table(report, told, nodes_shown=arguments.nodes)
    output.show(report, as_json=_is_json(arguments))
    return 0


async def _ask_leader(client: Client, arguments: argparse.Namespace, pod: Pod) -> JsonObject:
    """Return the leader's table of the decision about a pod."""
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    async with reaching.reach(client, _way(arguments)) as leader:
        return await deciding.fetch(leader, pod.key, allocation.id if allocation else "")


async def report_bypass(arguments: argparse.Namespace) -> int:
    """`bypass`."""
    async with await _connect(arguments) as client:
        snapshot = await load_engine(client)
        pods = await bypass.list_bound(client)
    report = bypass.build_report(bypass.find(pods, snapshot.engine), notes=snapshot.notes)
    output.show(report, as_json=_is_json(arguments))
    return 0


async def show_page(arguments: argparse.Namespace) -> int:
    """`page`."""
    async with (
        await _connect(arguments) as client,
        reaching.reach(client, _way(arguments)) as leader,
    ):
        await page.serve(leader, arguments.port)
    return 0


def _way(arguments: argparse.Namespace) -> reaching.Way:
    return reaching.Way(
        address=arguments.address, kubeconfig=_kubeconfig(arguments), context=_context(arguments)
    )


async def simulate_pods(arguments: argparse.Namespace) -> int:
    """`simulate -f FILE`."""
    manifests, snapshot = await _load_what_if(arguments)
    results = simulate.simulate(manifests.workloads, snapshot)
    notes = (*manifests.notes, *_namespace_notes(manifests, snapshot), *snapshot.notes)
    report = simulate.build_report(results, nodes_shown=arguments.nodes, notes=notes)
    output.show(report, as_json=_is_json(arguments))
    codes = {it.exit_code for it in results}
    # Refused outweighs waiting: there would be no pod at all.
    return 1 if 1 in codes else max(codes)


async def count_capacity(arguments: argparse.Namespace) -> int:
    """`capacity -f FILE`."""
    manifests, snapshot = await _load_what_if(arguments)
    if len(manifests.workloads) > 1:
        found = ", ".join(it.key for it in manifests.workloads)
        raise CommandError(f"capacity counts pods of one shape, found {found}; give one of them")
    notes = (*manifests.notes, *_namespace_notes(manifests, snapshot), *snapshot.notes)
    counted = capacity.measure(manifests.workloads[0], snapshot, bound=arguments.max)
    report = capacity.build_report(counted, nodes_shown=arguments.nodes, notes=notes)
    output.show(report, as_json=_is_json(arguments))
    return 0


async def ungate(arguments: argparse.Namespace) -> int:
    """`ungate POD | --all`."""
    is_dry_run = arguments.dry_run
    async with await _connect(arguments) as client:
        if arguments.all:
            namespace = getattr(arguments, "namespace", None)
            may_ask = sys.stdin.isatty() and sys.stderr.isatty()
            confirm = _confirm if may_ask and not (is_dry_run or arguments.yes) else None
            found = await ungating.ungate_all(
                client, namespace, is_dry_run=is_dry_run, confirm=confirm
            )
            if found is None:
                raise CommandError("nothing was changed")
            results = found
        else:
            namespace, name = _pod_name(arguments)
            try:
                results = [
                    await ungating.ungate_pod(client, namespace, name, is_dry_run=is_dry_run)
                ]
            except ApiError as error:
                _explain_missing(error, namespace, name)
    output.show(ungating.build_report(results, is_dry_run=is_dry_run), as_json=_is_json(arguments))
    return int(any(it.outcome is ungating.Outcome.FAILED for it in results))


async def examine(arguments: argparse.Namespace) -> int:
    """`doctor`."""
    from berthmaster.cli.doctor import gathering, reporting

    namespace = getattr(arguments, "namespace", None) or find_namespace(
        _kubeconfig(arguments), _context(arguments)
    )
    async with await _connect(arguments) as client:
        try:
            findings = reporting.diagnose(await gathering.gather(client, namespace=namespace))
        except ClusterError as error:
            findings = reporting.unreachable(error)
    output.show(reporting.build_report(findings), as_json=_is_json(arguments))
    return int(reporting.is_broken(findings))


async def clean(arguments: argparse.Namespace) -> int:
    """`clean`."""
    async with await _connect(arguments) as client:
        results = await cleaning.clean_nodes(client, is_dry_run=arguments.dry_run)
    report = cleaning.build_report(results, is_dry_run=arguments.dry_run)
    output.show(report, as_json=_is_json(arguments))
    return int(any(it.error for it in results))


async def report_observed(arguments: argparse.Namespace) -> int:
    """`observe-report [NAMESPACE ...]`."""
    given = getattr(arguments, "namespace", None)
    namespaces = list(dict.fromkeys((*arguments.namespaces, *((given,) if given else ()))))
    notes: list[str] = []
    async with await _connect(arguments) as client:
        snapshot = await load_engine(client)
        tally = Tally(snapshot, most_judged=arguments.judge)
        there = [it for it in namespaces if it in snapshot.namespace_labels]
        paths = [f"/api/v1/namespaces/{it}/pods" for it in there]
        if not namespaces:
            paths = [kinds.PODS.path]
        # Listed once more, so that no pod is kept; what moves meanwhile is not judged.
        for path in paths:
            async for pod in read_all(client, kinds.PODS, notes, path=path):
                tally.take(pod)
    notes += [f"the namespace {it} does not exist" for it in namespaces if it not in there]
    report = observe_report.build_report(tally, notes=(*snapshot.notes, *notes))
    output.show(report, as_json=_is_json(arguments))
    return 0


async def inspect(arguments: argparse.Namespace) -> int:
    """`inspect [NODE]`."""
    node = arguments.node or ""
    async with await _connect(arguments) as client:
        nodes, _ = await gather(client, node)
    output.show(inspecting.build_report(nodes, node), as_json=_is_json(arguments))
    return int(bool(node) and not nodes)


COMMANDS: dict[str, Command] = {
    "why": explain,
    "bypass": report_bypass,
    "page": show_page,
    "simulate": simulate_pods,
    "capacity": count_capacity,
    "inspect": inspect,
    "doctor": examine,
    "observe-report": report_observed,
    "ungate": ungate,
    "clean": clean,
}


async def _connect(arguments: argparse.Namespace) -> Client:
    return await Client.connect(_kubeconfig(arguments), context=_context(arguments))


async def _compare(client: Client, pod: Pod) -> tuple[why.Recomputed | None, tuple[str, ...]]:
    """Return what nodes say of a pod that was decided; who may not list them gets a note instead."""
    try:
        return why.recompute(pod, await load_engine(client)), ()
    except ApiError as error:
        return None, (f"nodes are not compared: {error}",)


async def _inventory(client: Client, node: str) -> NodeInventory | None:
    """Return a node's inventory; None where it is not there, or not for us to read."""
    if not node:
        return None
    try:
        path = f"/apis/{names.API_VERSION}/nodeinventories/{node}"
        return inventory_from_manifest(await client.get(path))
    except (ClusterError, ValidationError):
        return None


async def _load_what_if(arguments: argparse.Namespace) -> tuple[Manifests, Snapshot]:
    """Read the manifests first: what is wrong with them needs no cluster."""
    given = getattr(arguments, "namespace", None)
    namespace = given or find_namespace(_kubeconfig(arguments), _context(arguments))
    manifests = read_sources(arguments.filenames, namespace, is_forced=given is not None)
    async with await _connect(arguments) as client:
        return manifests, await load_engine(client)


def _namespace_notes(manifests: Manifests, snapshot: Snapshot) -> tuple[str, ...]:
    asked = {it.pod.metadata.namespace for it in manifests.workloads}
    missing = sorted(asked - snapshot.namespace_labels.keys())
    return tuple(f"the namespace {it} does not exist" for it in missing)


def _confirm(keys: list[str]) -> bool:
    """Ask on the terminal whether these pods shall go; the answer to a program is its output."""
    shown = ", ".join(keys[:_ASKED_ABOUT]) + (", ..." if len(keys) > _ASKED_ABOUT else "")
    count = "1 pod" if len(keys) == 1 else f"{len(keys)} pods"
    print(f"{count} at the gate: {shown}\n{ungating.MEANING}.", file=sys.stderr)
    print("Let them go? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _explain_missing(error: ApiError, namespace: str, name: str) -> NoReturn:
    if error.is_not_found:
        raise CommandError(
            f"pod {namespace}/{name} not found; -n chooses another namespace, "
            f"`kubectl get pods -n {namespace}` lists what is there"
        ) from error
    raise error


def _pod_name(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return namespace and name: `-n` and the name, or `namespace/name`, or `pod/name`."""
    first, slash, rest = arguments.pod.partition("/")
    name = rest if slash else first
    if not name or not first or "/" in name:
        raise CommandError(f'"{arguments.pod}" is no pod, expected NAME or NAMESPACE/NAME')
    given = getattr(arguments, "namespace", None)
    if slash and first not in _POD_WORDS:
        if given is not None and given != first:
            raise CommandError(f'"{arguments.pod}" and -n {given} name different namespaces')
        return first, name
    if given is None:
        given = find_namespace(_kubeconfig(arguments), _context(arguments))
    return given, name


def _kubeconfig(arguments: argparse.Namespace) -> str | None:
    path = getattr(arguments, "kubeconfig", None)
    return str(Path(path).expanduser()) if path else None


def _context(arguments: argparse.Namespace) -> str | None:
    context: str | None = getattr(arguments, "context", None)
    return context


def _is_json(arguments: argparse.Namespace) -> bool:
    return getattr(arguments, "output", "text") == "json"
