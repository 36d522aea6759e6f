"""Proof that the pod watch has come past a moment: our own pod, patched then and seen now.

The API server tells changes of one kind in the order in which they were stored. So when the watch
shows a mark that we put on our pod, it has shown every pod that was stored before the mark was sent.
During a list that proves nothing until the list is complete, hence the two steps `take_pod` and
`take_current`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.informers import EventKind
from berthmaster.placement.ledger import Ledger

PATCH_TIMEOUT_S = 3.0
SEEN_TIMEOUT_S = 10.0


class WatchProof:
    """Marks our own pod and tells the ledger when the mark comes back. Clock: monotonic seconds.

    `on_silent` is called when a mark that was stored does not come back: the watch has missed it.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        *,
        namespace: str,
        pod_name: str,
        clock: Callable[[], float],
        on_silent: Callable[[], None],
    ) -> None:
        self._client = client
        self._on_silent = on_silent
        self._ledger = ledger
        self._own = (namespace, pod_name)
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod_name}"
        self._clock = clock
        self._prefix = secrets.token_hex(4)
        self._sent_s: dict[int, float] = {}
        self._count = 0
        self._shown = 0
        self._proven = 0
        self._moved = asyncio.Event()

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Look for our mark on a pod that the watch or a list shows."""
        if (pod.metadata.namespace, pod.metadata.name) != self._own:
            return
        prefix, _, number = pod.annotations.get(names.HEARTBEAT, "").partition("-")
        if prefix == self._prefix and number.isdecimal():
            self._shown = max(self._shown, int(number))

    def take_current(self) -> None:
        """Note that everything shown so far is complete up to the last change."""
        if self._shown <= self._proven:
            return
        for number in [number for number in self._sent_s if number <= self._shown]:
            self._ledger.watch_passed(self._sent_s.pop(number))
        self._proven = self._shown
        self._moved.set()

    async def prove(self, labels: Mapping[str, str | None] | None = None) -> None:
        """Mark our pod, together with labels if given, and wait until the watch has shown it.

        Raises ApiError, UnreachableError, OutcomeUnknownError, and TimeoutError when the mark does
        not come back within 10 s.
        """
        self._count += 1
        number = self._count
        self._sent_s[number] = self._clock()
        metadata: dict[str, object] = {"annotations": {names.HEARTBEAT: f"{self._prefix}-{number}"}}
        if labels:
            metadata["labels"] = dict(labels)
        await self._client.patch(
            self._path, {"metadata": metadata}, PatchKind.MERGE, timeout_s=PATCH_TIMEOUT_S
        )
        try:
            async with asyncio.timeout(SEEN_TIMEOUT_S):
                while self._proven < number:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            self._on_silent()
            raise
