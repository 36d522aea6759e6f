"""The pods of the demo as they change, and the patience with which a story waits for one.

Owns when each pod was created and when the watch showed it bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from berthmaster.api.objects import Pod, decode_pod
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer

NAMESPACE = "harbour"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DEADLINE_S = 30.0


class StoryError(Exception):
    """A story did not come out as it is written."""


class PodWatch:
    """All pods of the demo as they change; run it as a task."""

    def __init__(self, client: Client) -> None:
        self._created: dict[str, float] = {}
        self._bound: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._informer = Informer(
            client,
            PODS,
            decode=decode_pod,
            key=lambda pod: pod.metadata.name,
            on_event=self._see,
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._informer.run()

    async def synced(self) -> None:
        """Return when the first list is complete."""
        await asyncio.wait_for(self._informer.synced.wait(), DEADLINE_S)

    @property
    def pods(self) -> Mapping[str, Pod]:
        """Return the pods by name."""
        return self._informer.store

    def pod(self, name: str) -> Pod:
        """Return a pod that exists."""
        return self._informer.store[name]

    def note_creation(self, name: str) -> None:
        """Start a pod's clock."""
        self._created[name] = time.monotonic()

    def bound_after_s(self, name: str) -> float | None:
        """Return how long after its creation the watch showed the pod bound."""
        bound, created = self._bound.get(name), self._created.get(name)
        return None if bound is None or created is None else bound - created

    async def until(self, name: str, check: Callable[[Pod], bool], what: str) -> Pod:
        """Return the pod once it passes the check; raises StoryError after `DEADLINE_S`."""
        _, pod = await self.until_any(name, lambda it: it.metadata.name == name and check(it), what)
        return pod

    async def until_any(
        self, prefix: str, check: Callable[[Pod], bool], what: str
    ) -> tuple[str, Pod]:
        """Return the first pod of that prefix that passes the check."""
        found: list[tuple[str, Pod]] = []

        def look() -> bool:
            found[:] = [it for it in self.pods.items() if it[0].startswith(prefix) and check(it[1])]
            return bool(found)

        await self._wait(look, f"{prefix}: not {what} after {DEADLINE_S:.0f} s")
        return found[0]

    async def until_gone(self, name: str) -> None:
        """Return once the pod's object is gone."""
        await self._wait(lambda: name not in self.pods, f"{name}: not gone")

    async def _wait(self, check: Callable[[], bool], complaint: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not check():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise StoryError(complaint) from error

    def _see(self, kind: EventKind, pod: Pod) -> None:
        del kind
        name = pod.metadata.name
        now = time.monotonic()
        self._created.setdefault(name, now)
        if pod.spec.node_name:
            self._bound.setdefault(name, now)
        self._changed.set()
