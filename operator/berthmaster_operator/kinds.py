"""Which kinds Kopf watches: those whose CustomResourceDefinition is established.

Kopf's own way is to ask the API server which kinds there are at each event of a CRD. But the API server tells
of a kind only some moments after that; Kopf does not ask again, asks nothing when it has to list the CRDs
anew, and keeps what the slower of two answers said. So a kind that was deleted and came back could stay
unwatched. Here an informer keeps the CRDs, and what they say is told to Kopf again with each change. That
a kind's path is not served yet, or not any more, is answered in `watching`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import kopf
import msgspec

# Kopf takes them as an argument, but does not export the class.
from kopf._cogs.structs.references import Insights, Selector

from berthmaster.api.objects import Condition, Struct
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import Informer

logger = logging.getLogger(__name__)

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# With its schema a CRD may have some hundred KB, and a cluster may have a thousand.
PAGE_LIMIT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A CustomResourceDefinition: the kinds that are served by it, one of each version."""

    name: str
    version: str
    kinds: frozenset[kopf.Resource]


class _Meta(Struct, frozen=True):
    name: str
    resource_version: str = ""


class _Names(Struct, frozen=True):
    plural: str
    kind: str


class _Version(Struct, frozen=True):
    name: str
    served: bool


class _Spec(Struct, frozen=True):
    group: str
    names: _Names
    scope: str
    versions: list[_Version]


class _Status(Struct, frozen=True):
    conditions: list[Condition] | None = None


class _Manifest(Struct, frozen=True):
    metadata: _Meta
    spec: _Spec
    status: _Status = _Status()


_decode = msgspec.json.Decoder(_Manifest).decode


def decode_definition(raw: bytes) -> Definition:
    """Read a CustomResourceDefinition. Raises msgspec.DecodeError for what is none."""
    found = _decode(raw)
    spec = found.spec
    is_established = any(
        it.type == "Established" and it.status == "True" for it in found.status.conditions or ()
    )
    return Definition(
        name=found.metadata.name,
        version=found.metadata.resource_version,
        kinds=frozenset(
            kopf.Resource(
                spec.group,
                it.name,
                spec.names.plural,
                kind=spec.names.kind,
                namespaced=spec.scope == "Namespaced",
            )
            for it in spec.versions
            if it.served and is_established
        ),
    )


class Kinds:
    """The kinds there are.

    `informer` belongs to whoever runs it; `insights` are for one run of Kopf, and say what it watches.
    `on_change` is called when that changes.
    """

    def __init__(self, client: Client, on_change: Callable[[], None] = lambda: None) -> None:
        self.insights = Insights()
        self._on_change = on_change
        self._changed = asyncio.Event()
        self.informer = Informer(
            client,
            DEFINITIONS,
            decode=decode_definition,
            key=lambda it: it.name,
            version=lambda it: it.version,
            page_limit=PAGE_LIMIT,
            on_event=lambda _kind, _definition: self._changed.set(),
        )

    async def follow(self, registry: kopf.OperatorRegistry) -> None:
        """Have Kopf watch what is there of the kinds that have handlers, until cancelled.

        What Kopf found by itself at its start stays until the CRDs have been listed.
        """
        insights, selectors = self.insights, registry._watching.get_all_selectors()
        await insights.ready_resources.wait()
        await self.informer.synced.wait()
        while True:
            self._changed.clear()
            async with insights.revised:
                there = self.select(selectors)
                if there != insights.watched_resources:
                    logger.info("watching", extra={"kinds": " ".join(sorted(map(repr, there)))})
                    insights.watched_resources.clear()
                    insights.watched_resources.update(there)
                    insights.revised.notify_all()
                    self._on_change()
            await self._changed.wait()

    def select(self, selectors: Collection[Selector]) -> set[kopf.Resource]:
        """Return what is there of the selected kinds."""
        there = [kind for it in self.informer.store.values() for kind in it.kinds]
        return {kind for selector in selectors for kind in selector.select(there)}
