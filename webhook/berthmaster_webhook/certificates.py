"""The serving certificate: read from its Secret through the API, watched, and changed while serving.

A new pair is tried on a context of its own first, so that a broken or half-written Secret leaves the
old one in use. New handshakes get the new pair at once; open connections keep theirs. Our own pod says
which pair it serves: an authority stays trusted until no replica needs it any more. The first pair is
served only after that was said, so that who has said nothing serves nothing.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import ssl
import tempfile
from pathlib import Path

import msgspec

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.api.objects import ObjectMeta, Struct
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_webhook.metrics import Metrics

logger = logging.getLogger(__name__)


class _Secret(Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


def new_server_context() -> ssl.SSLContext:
    """Return a context for a server, TLS 1.2 or newer, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Certificates:
    """Keeps `context` supplied with the newest usable pair.

    `loaded` is set when the first was loaded and our pod says so.
    """

    def __init__(self, client: Client, namespace: str, pod_name: str, metrics: Metrics) -> None:
        self.context = new_server_context()
        self.loaded = asyncio.Event()
        self._contexts = [self.context]
        self._client = client
        self._pod = f"/api/v1/namespaces/{namespace}/pods/{pod_name}"
        self._digest = ""
        self._changed = asyncio.Event()
        self._metrics = metrics
        self._serving: tuple[str, str] | None = None
        self._informer = Informer(
            client,
            f"/api/v1/namespaces/{namespace}/secrets",
            decode=msgspec.json.Decoder(_Secret).decode,
            key=lambda secret: secret.metadata.name,
            query={"fieldSelector": f"metadata.name={names.WEBHOOK_TLS_SECRET}"},
            on_event=self._take,
        )

    def serve_also(self, context: ssl.SSLContext) -> None:
        """Keep another context supplied with the same pairs; call it before `run`."""
        self._contexts.append(context)

    async def run(self) -> None:
        """Follow the Secret until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._informer.run())
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

    def _take(self, kind: EventKind, secret: _Secret) -> None:
        if kind is EventKind.DELETED or secret.metadata.name != names.WEBHOOK_TLS_SECRET:
            # The operator makes a new one; until then the old one serves.
            return
        data = secret.data or {}
        pair = (data.get("tls.crt", ""), data.get("tls.key", ""))
        if pair == self._serving:
            return
        try:
            certificate, key = (base64.b64decode(text, validate=True) for text in pair)
            load_pair(new_server_context(), certificate, key)
            for context in self._contexts:
                load_pair(context, certificate, key)
        except (OSError, ValueError) as error:
            self._metrics.certificate_loads.labels("failed").inc()
            # The error's text comes from OpenSSL and holds no key material.
            logger.error(
                "certificate not usable",
                extra={"secret": names.WEBHOOK_TLS_SECRET, "error": str(error)},
            )
            return
        self._serving = pair
        self._digest = certificate_digest(certificate)
        self._metrics.certificate_loads.labels("loaded").inc()
        logger.info("certificate loaded", extra={"version": secret.metadata.resource_version})
        self._changed.set()


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a PEM pair that exists in memory only; Python's ssl takes nothing but files.

    Raises ssl.SSLError (an OSError) when the pair is broken or does not belong together.
    """
    pem = key.rstrip() + b"\n" + certificate
    if hasattr(os, "memfd_create"):
        # A file without a name, gone with its descriptor: nothing of the key reaches a disk.
        descriptor = os.memfd_create("pair")
        with os.fdopen(descriptor, "wb", closefd=True) as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return
    # Readable by us alone, removed before anything else happens.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair"
        path.touch(mode=0o600)
        path.write_bytes(pem)
        context.load_cert_chain(path)
