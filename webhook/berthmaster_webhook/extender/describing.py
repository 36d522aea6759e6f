"""Nodes that come whole in a request and that we do not know, taken as they are described.

Cluster Autoscaler asks so about nodes that it might add: nobody is on them, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import Node
from berthmaster.api.policy import PolicySet
from berthmaster.concerns.xpu import CONCERN
from berthmaster.concerns.xpu.inventory import NodeDevices, build_xpus
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import Ask, PodRequest


def make_engine(nodes: Iterable[Node], policies: PolicySet) -> Engine:
    """Return an engine that knows these nodes' accelerators and nothing else."""
    engine = Engine([CONCERN])
    engine.configure(policies.specs)
    for node in nodes:
        engine.ledger.write_node(node, describe(node, policies))
    return engine


def asks_there(asks: PodRequest) -> PodRequest:
    """Return asks of accelerators as an engine with that concern alone has them."""
    return tuple(Ask(0, ask.weight, ask.request) for ask in asks)


def describe(node: Node, policies: PolicySet) -> NodeInventory:
    """Return what a Node alone tells of its accelerators."""
    name = node.metadata.name
    devices = NodeDevices(
        name=name,
        capacity=node.status.capacity or {},
        allocatable=node.status.allocatable or {},
        annotations=node.metadata.annotations or {},
    )
    found = build_xpus(devices, None, policies.xpu_names)
    status = NodeInventoryStatus(xpu=found.xpu, xpus=found.xpus)
    return NodeInventory(name=name, status=status)
