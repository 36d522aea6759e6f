"""`clean`: take the conditions that Berthmaster wrote off the nodes, after it was removed.

Nobody else does: a Node's conditions stay until somebody deletes them, and the operator must not do it
when it stops, since it stops at every upgrade. Conditions of others stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import Node
from berthmaster.cli.output import Report, Table
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError

PREFIX = f"{names.GROUP}/"
AGAIN = "a running operator writes them anew: remove config/base first"
_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """The result for one node; `error` is empty where it worked."""

    node: str
    conditions: tuple[str, ...]
    error: str = ""


class _Page(msgspec.Struct):
    items: list[Node] | None = None


_PAGE = msgspec.json.Decoder(_Page)


async def clean_nodes(client: Client, *, is_dry_run: bool = False) -> list[Cleaned]:
    """Take our conditions off every node that has some.

    What fails for one node stands in its result. Raises ClusterError when nodes cannot be listed.
    """
    found = [it async for it in _find(client)]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def clean(node: str, types: tuple[str, ...]) -> Cleaned:
        async with slots:
            return await _clean(client, node, types, is_dry_run=is_dry_run)

    return list(await asyncio.gather(*(clean(*it) for it in found)))


async def _find(client: Client) -> AsyncIterator[tuple[str, tuple[str, ...]]]:
    async for page in client.list_pages("/api/v1/nodes"):
        for node in _PAGE.decode(page).items or ():
            types = (it.type for it in node.status.conditions or ())
            ours = tuple(sorted(it for it in types if it.startswith(PREFIX)))
            if ours:
                yield node.metadata.name, ours


async def _clean(client: Client, node: str, types: tuple[str, ...], *, is_dry_run: bool) -> Cleaned:
    conditions = [{"type": it, "$patch": "delete"} for it in types]
    try:
        await client.patch(
            f"/api/v1/nodes/{node}/status",
            {"status": {"conditions": conditions}},
            PatchKind.STRATEGIC,
            {"dryRun": "All"} if is_dry_run else None,
        )
    except ApiError as error:
        if not error.is_not_found:
            return Cleaned(node=node, conditions=types, error=str(error))
    except OutcomeUnknownError as error:
        return Cleaned(node=node, conditions=types, error=str(error))
    return Cleaned(node=node, conditions=types)


def build_report(results: list[Cleaned], *, is_dry_run: bool = False) -> Report:
    """Return what was done."""
    done = [it for it in results if not it.error]
    remarks = [AGAIN] if done else []
    if is_dry_run:
        remarks.append("dry run: nothing was changed")
    data = {
        "dryRun": is_dry_run,
        "nodes": [
            {"node": it.node, "conditions": list(it.conditions), "error": it.error}
            for it in results
        ],
    }
    if not results:
        return Report(sentence="No node has a condition of ours.", data=data)
    table = Table(
        title="Nodes",
        headers=("NODE", "CONDITIONS", "OUTCOME"),
        rows=tuple((it.node, ", ".join(it.conditions), it.error or "clean") for it in results),
    )
    can = "can be " if is_dry_run else ""
    return Report(
        sentence=f"{len(done)} of {len(results)} nodes {can}cleaned.",
        tables=(table,),
        remarks=tuple(remarks),
        data=data,
    )
