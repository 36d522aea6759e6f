"""What this replica serves with, and that its own pod says so.

An authority stays trusted until no replica needs it any more, by what their pods say. The first pair is
served only after that was said, so that who has said nothing serves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.serving import ServedPair
from berthmaster_webhook.metrics import Metrics

logger = logging.getLogger(__name__)


class Certificates:
    """Keeps `context` supplied with the newest usable pair.

    `loaded` is set when the first was loaded and our pod says so.
    """

    def __init__(self, client: Client, namespace: str, pod_name: str, metrics: Metrics) -> None:
        self.loaded = asyncio.Event()
        self._client = client
        self._pod = f"/api/v1/namespaces/{namespace}/pods/{pod_name}"
        self._digest = ""
        self._changed = asyncio.Event()
        self._metrics = metrics
        self._pair = ServedPair(
            client,
            namespace,
            on_loaded=self._take,
            on_broken=metrics.certificate_loads.labels("failed").inc,
        )
        self.context = self._pair.context

    def serve_also(self, context: ssl.SSLContext) -> None:
        """Keep another context supplied with the same pairs; call it before `run`."""
        self._pair.serve_also(context)

    async def run(self) -> None:
        """Follow the Secret until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pair.run())
            tasks.create_task(self._report())

    async def _report(self) -> None:
        """Write onto our pod which pair is served, whenever that changes."""
        reported, backoff = "", Backoff(first_s=0.2, cap_s=5.0)
        while True:
            await self._changed.wait()
            self._changed.clear()
            while reported != self._digest:
                digest = self._digest
                patch = {"metadata": {"annotations": {names.SERVING: digest}}}
                try:
                    await self._client.patch(self._pod, patch, PatchKind.MERGE)
                except ClusterError as error:
                    logger.warning("certificate not reported yet", extra={"error": str(error)})
                    await asyncio.sleep(backoff.next_s())
                    continue
                reported = digest
            self.loaded.set()

    def _take(self, certificate: bytes) -> None:
        self._digest = certificate_digest(certificate)
        self._metrics.certificate_loads.labels("loaded").inc()
        self._changed.set()
