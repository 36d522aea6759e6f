"""`kubectl inspect xpushare [-d] [NODE]`: who shares which device, in the layout that its users know.

The text is that of the tool of the same name, to the byte; nodes and pods are in order, where that tool
has them in any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from berthmaster.cli.tab_stops import lay_out
from berthmaster.cli.xpu_facts import XPUNodeFacts, XPUPodFacts, gather
from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ClusterError

_CLUSTER = "Allocated/Total XPU Memory In Cluster:"
# Memory in numbers so small is counted in GiB.
_LARGEST_GIB = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return asyncio.run(_run(arguments))
    except ClusterError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


async def _run(arguments: argparse.Namespace) -> int:
    async with await Client.connect(arguments.kubeconfig, context=arguments.context) as client:
        facts, _ = await gather(client, arguments.node or "")
    nodes = [it for it in facts if it.allocatable_mib]
    if arguments.node and not nodes:
        print(f"error: node {arguments.node} has no XPU memory to share", file=sys.stderr)
        return 1
    sys.stdout.write(render(nodes, arguments.output, details=arguments.d, pods=arguments.pods))
    return 0


def render(nodes: Sequence[XPUNodeFacts], form: str, *, details: bool, pods: bool) -> str:
    """Return what is printed about nodes that share memory."""
    if form == "json":
        return json.dumps(to_data(nodes), indent=2, ensure_ascii=False) + "\n"
    if form == "yaml":
        text: str = yaml.safe_dump(to_data(nodes), sort_keys=False)
        return text
    if details:
        return render_details(nodes)
    return render_pods(nodes) if pods else render_summary(nodes)


def render_summary(nodes: Sequence[XPUNodeFacts]) -> str:
    """Return a line for each node with its devices, and the cluster's sum."""
    width = max((_count(it) for it in nodes), default=0)
    has_pending = any(_pending(it) for it in nodes)
    pending = "PENDING(Allocated)\t" if has_pending else ""
    devices = "".join(f"XPU{index}(Allocated/Total)\t" for index in range(width))
    header = f"NAME\tIPADDRESS\t{devices}{pending}XPU Memory({_unit(nodes)})"
    rows = [_row(it, width, has_pending=has_pending) for it in nodes]
    dashes = "-" * (len(rows[0]) + 1 + 20) if rows else ""
    return lay_out([header, *rows, dashes, _CLUSTER, f"{_sum(nodes)}\t"])


def render_details(nodes: Sequence[XPUNodeFacts]) -> str:
    """Return a block for each node with a line for each pod, and the cluster's sum."""
    lines: list[str] = []
    dashes = ""
    for node in nodes:
        pods = [_pod_row(node, it) for it in _pods(node)]
        dashes = dashes or "-" * (sum(len(it) + 1 for it in pods) + 10)
        devices = "".join(f"XPU{index}(Allocated)\t" for index in range(_count(node)))
        pending = "Pending(Allocated)\t" if _pending(node) else ""
        used, total = _used(node), node.allocatable_mib
        lines += [
            "",
            f"NAME:\t{node.name}",
            f"IPADDRESS:\t{node.address}",
            "",
            f"NAME\tNAMESPACE\t{devices}{pending}",
            *pods,
            f"Allocated :\t{used} ({_percent(used, total)}%)\t",
            f"Total :\t{total} \t",
            dashes,
        ]
    return lay_out([*lines, "", "", f"{_CLUSTER}\t{_sum(nodes)}\t"])


def render_pods(nodes: Sequence[XPUNodeFacts]) -> str:
    """Return a line for each pod: where it is, and what it has of which device."""
    rows = [
        f"{it.namespace}\t{it.name}\t{node.name}\t{_shares(it)}"
        for node in nodes
        for it in _pods(node)
    ]
    return lay_out(["NAMESPACE\tNAME\tNODE\tXPUS(Allocated)", *rows])


def to_data(nodes: Iterable[XPUNodeFacts]) -> dict[str, Any]:
    """Return all of it for programs."""
    return {
        "nodes": [
            {
                "name": node.name,
                "address": node.address,
                "totalMiB": node.allocatable_mib,
                "usedMiB": _used(node),
                "pendingMiB": _pending(node),
                "devices": [
                    {
                        "index": index,
                        "totalMiB": _total(node, index),
                        "usedMiB": _used_of(node, index),
                    }
                    for index in range(_count(node))
                ],
                "pods": [
                    {
                        "namespace": it.namespace,
                        "name": it.name,
                        "devices": [{"index": index, "usedMiB": mib} for index, mib in it.held.mib],
                        "pendingMiB": it.pending_mib,
                    }
                    for it in _pods(node)
                ],
            }
            for node in nodes
        ]
    }


def _row(node: XPUNodeFacts, width: int, *, has_pending: bool) -> str:
    devices = "".join(f"{_used_of(node, index)}/{_total(node, index)}\t" for index in range(width))
    pending = f"{_pending(node) or ''}\t" if has_pending else ""
    return f"{node.name}\t{node.address}\t{devices}{pending}{_used(node)}/{node.allocatable_mib}"


def _pod_row(node: XPUNodeFacts, pod: XPUPodFacts) -> str:
    devices = "".join(f"{pod.mib.get(index, 0)}\t" for index in range(_count(node)))
    pending = f"{pod.pending_mib}\t" if _pending(node) else ""
    return f"{pod.name}\t{pod.namespace}\t{devices}{pending}"


def _shares(pod: XPUPodFacts) -> str:
    shares = [f"XPU{index}: {mib}" for index, mib in pod.held.mib]
    return ", ".join([*shares, f"pending: {pod.pending_mib}"] if pod.pending_mib else shares)


def _pods(node: XPUNodeFacts) -> Iterator[XPUPodFacts]:
    return (it for it in node.pods if it.is_bound)


def _count(node: XPUNodeFacts) -> int:
    return node.count or len(node.xpus)


def _total(node: XPUNodeFacts, index: int) -> int:
    """Return a device's memory: the true size where an agent tells it, else an equal part."""
    if node.node.source == "Agent":
        return next((it.memory_mib for it in node.xpus if it.index == index), 0)
    return node.allocatable_mib // node.count if index < node.count else 0


def _used_of(node: XPUNodeFacts, index: int) -> int:
    return sum(it.mib.get(index, 0) for it in _pods(node))


def _pending(node: XPUNodeFacts) -> int:
    return sum(it.pending_mib for it in _pods(node))


def _used(node: XPUNodeFacts) -> int:
    return sum(sum(it.mib.values()) + it.pending_mib for it in _pods(node))


def _sum(nodes: Sequence[XPUNodeFacts]) -> str:
    used, total = sum(map(_used, nodes)), sum(it.allocatable_mib for it in nodes)
    return f"{used}/{total} ({_percent(used, total)}%)"


def _percent(used: int, total: int) -> int:
    return 100 * used // total if total else 0


def _unit(nodes: Sequence[XPUNodeFacts]) -> str:
    sizes = [_total(it, 0) for it in nodes]
    return "GiB" if sizes and max(sizes) <= _LARGEST_GIB else "MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl inspect xpushare",
        description="Show which pods share which accelerators, node by node.",
    )
    parser.add_argument("node", nargs="?", metavar="NODE", help="only this node")
    parser.add_argument("-d", action="store_true", help="a line for each pod")
    parser.add_argument("--pods", action="store_true", help="pods, each with its devices")
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    parser.add_argument("--kubeconfig", help="file to use instead of KUBECONFIG or ~/.kube/config")
    parser.add_argument("--context", help="context of the kubeconfig to use")
    return parser


if __name__ == "__main__":
    sys.exit(main())
