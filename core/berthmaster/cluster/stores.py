"""What a caller needs of the API client, a protocol per verb: `class Store(Gets, Patches, Protocol)`.

`Client` has them all. Whoever takes a store says with these which verbs it uses, and a test gives it
something that has just those. All raise `ClusterError` as `Client` does; timeouts are seconds.
"""

from __future__ import annotations

from typing import Protocol

from berthmaster.cluster.client import JsonObject, PatchKind, Query


class Gets(Protocol):
    """Reads objects."""

    async def get(self, path: str, query: Query | None = None, *, timeout_s: float) -> JsonObject:
        """Read one object."""
        ...


class Creates(Protocol):
    """Creates objects."""

    async def create(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        """Create one object; 409 if it exists."""
        ...


class Replaces(Protocol):
    """Replaces objects."""

    async def replace(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        """Replace one object; 409 if its resourceVersion is stale."""
        ...


class Patches(Protocol):
    """Patches objects."""

    async def patch(
        self,
        path: str,
        body: object,
        kind: PatchKind,
        query: Query | None = None,
        *,
        timeout_s: float,
    ) -> JsonObject:
        """Patch one object."""
        ...


class Deletes(Protocol):
    """Deletes objects."""

    async def delete(
        self, path: str, *, body: object = None, query: Query | None = None, timeout_s: float
    ) -> JsonObject:
        """Delete one object."""
        ...
