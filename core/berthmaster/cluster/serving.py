"""TLS of what our programs serve: one pair from its Secret, read through the API, changed while serving.

A new pair is tried on a context of its own first, so that a broken or half-written Secret leaves the
old one in use. New handshakes get the new pair at once; open connections keep theirs.
"""

from __future__ import annotations

import base64
import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from berthmaster.api import names
from berthmaster.api.objects import ObjectMeta, Struct
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer

logger = logging.getLogger(__name__)

# Of TLS 1.2; all that TLS 1.3 has are good. Each gives forward secrecy and authenticates what it encrypts.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class _Secret(Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


def new_server_context() -> ssl.SSLContext:
    """Return a context for a server, TLS 1.2 or newer, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class ServedPair:
    """Keeps contexts supplied with the newest usable pair of the webhook's Secret.

    `on_loaded` gets each certificate, PEM, once it is served; `on_broken` is told of each pair that is not.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        *,
        on_loaded: Callable[[bytes], None],
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = new_server_context()
        self._contexts = [self.context]
        self._on_loaded = on_loaded
        self._on_broken = on_broken
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
        await self._informer.run()

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
            # The error's text comes from OpenSSL and holds no key material.
            logger.error(
                "certificate not usable",
                extra={"secret": names.WEBHOOK_TLS_SECRET, "error": str(error)},
            )
            self._on_broken()
            return
        self._serving = pair
        logger.info("certificate loaded", extra={"version": secret.metadata.resource_version})
        self._on_loaded(certificate)


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
