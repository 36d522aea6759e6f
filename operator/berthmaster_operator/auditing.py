"""List the custom kinds: at start, when kinds came or went, and now and then to find what a watch did not tell.

At start nothing may be written before every kind was listed; Kopf does not say when it has listed,
so the lists are made here. Later, Kopf lists anew after a broken watch but says nothing of objects
that vanished meanwhile; an audit finds them. So it does where Kopf stopped to watch a kind, and with that forgot
what it had heard and not handed on. An audit compares with what was known when it began: what
came or changed since is left to the watch.

A vendor's kind whose CRD is not installed has no objects. Ours must be installed: without
PlacementPolicies the white list is not known, and with a wrong one nothing may be written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from berthmaster.api.power import NodeConfig, NodeConfigTemplate
from berthmaster.cluster.client import Client, read_items
from berthmaster.cluster.errors import ApiError, UnreachableError
from berthmaster_operator.datasets.mapping import DatasetMap
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers import (
    datasets,
    node_configs,
    node_disk_devices,
    node_disk_io_stats,
    node_resource_topologies,
    node_xpus,
    placement_policies,
    power_models,
)
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from berthmaster_operator.power.book import ObjectKey, PowerBook
from berthmaster_operator.sightings import decode_identity

logger = logging.getLogger(__name__)

Key = TypeVar("Key")

# Kinds come and go in bursts.
SETTLE_S = 5.0


async def until_due(kinds_changed: asyncio.Event, every_s: float) -> bool:
    """Wait for the next audit: until a moment after kinds changed, or for `every_s`; return whether they did."""
    with suppress(TimeoutError):
        async with asyncio.timeout(every_s):
            await kinds_changed.wait()
            await asyncio.sleep(SETTLE_S)
    have_changed = kinds_changed.is_set()
    kinds_changed.clear()
    return have_changed


async def audit(client: Client, fleet: Fleet, policies: PolicyHandler) -> int:
    """List all custom kinds, hand every object on, drop what vanished; return how many that were.

    Raises ClusterError: the audit is incomplete and nothing was dropped for the kind that failed.
    """
    dropped = 0
    # There are one of each for every node, and reading them all again would take seconds.
    take_all = partial(_take_all, client, known=fleet.known_versions())
    before = fleet.known_objects("device")
    uids = await take_all(node_disk_devices.PATH, lambda it: node_disk_devices.take(fleet, it))
    for key in _vanished(before, fleet.known_objects("device"), uids):
        fleet.lose_device(*key)
        dropped += 1
    before = fleet.known_objects("stats")
    uids = await take_all(node_disk_io_stats.PATH, lambda it: node_disk_io_stats.take(fleet, it))
    for key in _vanished(before, fleet.known_objects("stats"), uids):
        fleet.lose_stats(*key)
        dropped += 1
    before = fleet.known_objects("topology")
    uids = await take_all(
        node_resource_topologies.PATH, lambda it: node_resource_topologies.take(fleet, it)
    )
    for _, name in _vanished(before, fleet.known_objects("topology"), uids):
        fleet.lose_topology(name)
        dropped += 1
    for group, plural in datasets.KINDS:
        dropped += await _audit_datasets(client, fleet.datasets, group, plural)
    before = fleet.known_objects("node_xpu")
    uids = await take_all(node_xpus.PATH, lambda it: node_xpus.take(fleet, it), is_required=True)
    for _, name in _vanished(before, fleet.known_objects("node_xpu"), uids):
        fleet.lose_node_xpu(name, before["", name])
        dropped += 1
    dropped += await _audit_power(client, fleet.power)
    known = {name: policy.uid for name, policy in fleet.policies.items()}
    uids = await _take_all(client, placement_policies.PATH, policies.take, is_required=True)
    for name, uid in known.items():
        policy = fleet.policies.get(name)
        if uid not in uids and policy is not None and policy.uid == uid:
            policies.take({"metadata": {"name": name}}, is_gone=True)
            dropped += 1
    return dropped


async def _audit_datasets(client: Client, found: DatasetMap, group: str, plural: str) -> int:
    kind, _ = datasets.PLURALS[plural]
    before = found.known(kind, group)
    uids = await _take_all(
        client,
        datasets.path_of(group, plural),
        lambda it: datasets.take(found, group, plural, it),
    )
    vanished = _vanished(before, found.known(kind, group), uids)
    for namespace, name in vanished:
        found.lose(kind, group, f"{namespace}/{name}")
    return len(vanished)


async def _audit_power(client: Client, book: PowerBook) -> int:
    dropped = 0
    for (group, plural), path in node_configs.PATHS.items():
        before = _known_configs(book, group, plural)
        uids = await _take_all(client, path, partial(node_configs.TAKES[plural], book, group))
        lose = book.lose_config if plural == node_configs.CONFIGS else book.lose_template
        for key in _vanished(before, _known_configs(book, group, plural), uids):
            lose(key)
            dropped += 1
    models = {name: it.uid for name, it in book.models.items()}
    uids = await _take_all(client, power_models.PATH, partial(power_models.take, book))
    now = {name: it.uid for name, it in book.models.items()}
    for name in _vanished(models, now, uids):
        book.lose_model(name)
        dropped += 1
    return dropped


def _known_configs(book: PowerBook, group: str, plural: str) -> dict[ObjectKey, str]:
    known: Mapping[ObjectKey, NodeConfig | NodeConfigTemplate] = (
        book.configs if plural == node_configs.CONFIGS else book.templates
    )
    return {key: it.uid for key, it in known.items() if key[0] == group}


def _vanished(before: Mapping[Key, str], now: Mapping[Key, str], uids: set[str]) -> list[Key]:
    return [key for key, uid in before.items() if uid not in uids and now.get(key) == uid]


async def _take_all(
    client: Client,
    path: str,
    take: Callable[[Mapping[str, Any]], object],
    *,
    known: Mapping[str, str] = MappingProxyType({}),
    is_required: bool = False,
) -> set[str]:
    """Hand on what is listed but for what is `known`, by uid, in this version; return all uids."""
    uids: set[str] = set()
    try:
        async with aclosing(client.list_pages(path)) as pages:
            async for page in pages:
                for raw in read_items(page):
                    uid, version = decode_identity(raw)
                    uids.add(uid)
                    if known.get(uid) != version:
                        take(msgspec.json.decode(raw))
    except ApiError as error:
        if not error.is_not_found or is_required:
            raise
        logger.warning("kind is not installed", extra={"path": path})
    except msgspec.DecodeError as error:
        raise UnreachableError(f"no list at {path}: {error}") from error
    return uids
