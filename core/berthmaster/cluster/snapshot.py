"""The whole cluster at one moment, in an engine: what would be decided now, for people and tools.

Owns the listing of everything that decisions depend on. It is a picture and no ledger: lists are
made one beside the other and are a moment apart, answers in flight at the leader are not in it,
and nothing here is ever written. The webhook does not use it; it watches.

Kinds that are not installed, and objects that cannot be read, leave a note and nothing else: who asks
why a pod waits must get an answer in a half-installed cluster, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from pydantic import ValidationError

from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Node, Pod
from berthmaster.api.policy import PlacementPolicy, PolicySet
from berthmaster.cluster import kinds
from berthmaster.cluster.client import ApiError, Client, UnreachableError, read_items
from berthmaster.cluster.kinds import Kind
from berthmaster.concerns import registry
from berthmaster.concerns.shape import AnyConcern, Surrounding
from berthmaster.placement.engine import Engine

T = TypeVar("T")

DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An engine that knows all nodes and holdings, and what else a decision asks.

    `notes` are sentences about what could not be read.
    """

    engine: Engine
    policies: PolicySet
    namespace_labels: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()

    def policy_of(self, pod: Pod) -> PlacementPolicy:
        """Return the policy that counts for a pod."""
        metadata = pod.metadata
        return self.policies.choose(
            metadata.labels or {},
            self.namespace_labels.get(metadata.namespace, {}),
            scheduler_name=pod.asked_scheduler,
            resources=pod.asked_resources,
        )


async def load_engine(
    client: Client,
    *,
    concerns: Sequence[AnyConcern] | None = None,
    deadline_s: float = DEADLINE_S,
) -> Snapshot:
    """List what decisions depend on, and feed it to a fresh engine.

    Raises ClusterError: refused, or no answer within `deadline_s` seconds in all.
    """
    notes: list[str] = []
    try:
        async with asyncio.timeout(deadline_s):
            # One after the other: the parts of a big cluster need not be in flight together.
            nodes = await _list(client, kinds.NODES, notes)
            inventories = await _list(client, kinds.INVENTORIES, notes)
            policies = await _list(client, kinds.POLICIES, notes)
            namespaces = await _list(client, kinds.NAMESPACES, notes)
            surroundings: list[Surrounding] = list(namespaces)
            for kind in kinds.SURROUNDINGS:
                surroundings += await _list(client, kind, notes, is_optional=True)
            policy_set = PolicySet(policies)
            engine = build_engine(
                registry.load() if concerns is None else concerns,
                nodes=nodes,
                inventories=inventories,
                policies=policy_set,
                surroundings=surroundings,
                notes=notes,
            )
            # Of these there are the most: none is kept beside the books.
            async for pod in read_all(client, kinds.PODS, notes):
                with _leaving_out(f"the pod {pod.key}", notes):
                    engine.ledger.see(pod)
    except TimeoutError as error:
        raise UnreachableError(
            f"the cluster at {client.base_url} could not be listed within {deadline_s:g} s"
        ) from error
    return Snapshot(
        engine=engine,
        policies=policy_set,
        namespace_labels={it.metadata.name: it.metadata.labels or {} for it in namespaces},
        notes=tuple(notes),
    )


def build_engine(
    concerns: Sequence[AnyConcern],
    *,
    nodes: Iterable[Node],
    inventories: Iterable[NodeInventory],
    policies: PolicySet,
    pods: Iterable[Pod] = (),
    surroundings: Iterable[Surrounding] = (),
    notes: list[str] | None = None,
) -> Engine:
    """Return an engine that knows these objects; pure.

    What a concern trips over leaves a note in `notes`; without these it is raised.
    """
    engine = Engine(concerns)
    engine.configure(policies.specs)
    for found in surroundings:
        with _leaving_out(f"one {type(found).__name__}", notes):
            engine.observe(found)
    by_node = {it.name: it for it in inventories}
    for node in nodes:
        inventory = by_node.get(node.metadata.name)
        # An inventory that outlived its node says nothing about a new one of the same name.
        is_of_another = inventory is not None and inventory.node_uid not in {
            "",
            node.metadata.uid,
        }
        written = False
        with _leaving_out(f"the node {node.metadata.name}", notes):
            engine.ledger.write_node(node, None if is_of_another else inventory)
            written = True
        if not written:
            # Taken over in part it would look emptier than it is.
            engine.ledger.remove_node(node.metadata.name)
    for pod in pods:
        with _leaving_out(f"the pod {pod.key}", notes):
            engine.ledger.see(pod)
    return engine


@contextmanager
def _leaving_out(what: str, notes: list[str] | None) -> Iterator[None]:
    """Go on without one object that a concern trips over, as the webhook does."""
    try:
        yield
    except Exception as error:
        if notes is None:
            raise
        notes.append(f"{what} cannot be judged and is left out: {_brief(error)}")


async def read_all(
    client: Client,
    kind: Kind[T],
    notes: list[str],
    *,
    path: str = "",
    is_optional: bool = False,
) -> AsyncIterator[T]:
    """Yield all objects of a kind, page by page, by default of the whole cluster.

    What cannot be read, and a kind that is not there, leave a note. Raises ClusterError.
    """
    try:
        async for page in client.list_pages(path or kind.path):
            for item in read_items(page):
                try:
                    found = kind.decode(bytes(item))
                # The boundary of one object, whatever its decoder trips over.
                except Exception as error:  # noqa: BLE001
                    notes.append(
                        f"one of {kind.plural} cannot be read and is left out: {_brief(error)}"
                    )
                else:
                    yield found
    except ApiError as error:
        if is_optional and error.status == 403:
            # Who asks need not have all the rights of the webhook for an answer about most pods.
            notes.append(f"you may not list {kind.plural}: this is judged as if there were none")
            return
        if not error.is_not_found:
            raise
        if not kind.is_optional:
            notes.append(
                f"the API server knows no {kind.plural}: are Berthmaster's CRDs installed?"
            )
    except msgspec.DecodeError as error:
        raise UnreachableError(
            f"the answer to a list of {kind.plural} is not JSON: {error}"
        ) from error


async def _list(
    client: Client, kind: Kind[T], notes: list[str], *, is_optional: bool = False
) -> list[T]:
    return [it async for it in read_all(client, kind, notes, is_optional=is_optional)]


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) or type(error).__name__
