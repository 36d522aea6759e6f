"""Keep the webhook's certificates and the bundle in its configuration good, in the safe order.

    authority Secret --bundle--> MutatingWebhookConfiguration --(seen by API servers)--> leaf Secret

The bundle goes first: the webhook must never present a certificate of an authority that the
configuration does not list. So a leaf of an authority that was not in the bundle before is written
only `PROPAGATION_S` after the bundle; where no bundle stood at all nothing worked anyway, and
nobody waits. The bundle is the only field that we own of the configuration (server-side apply of
`webhooks[name].clientConfig.caBundle`); applying `config/` again leaves it alone.

The private key of the authority is in a Secret that the webhook does not read. Every write is a
create or carries the resourceVersion that was read, so of two writers one loses and looks again.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from berthmaster.api import names
from berthmaster.cluster.client import JsonObject, PatchKind, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.stores import Creates, Gets, Patches, Replaces
from berthmaster_operator import certificates
from berthmaster_operator.certificates import Pair
from berthmaster_operator.metrics import Metrics

logger = logging.getLogger(__name__)

KEY = "certificates"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
CONFIGURATION = f"{CONFIGURATIONS}/{names.WEBHOOK_CONFIGURATION}"
TIMEOUT_S = 10.0
# API servers follow a changed webhook configuration by watch, within a second or two.
PROPAGATION_S = 10.0
# The informers tell of changes; this finds what they could not, and the renewal that is due.
RESYNC_S = 600.0
_APPLY: Query = {"fieldManager": names.OPERATOR_MANAGER, "force": True}
_MANAGED: Query = {"fieldManager": names.OPERATOR_MANAGER}


class Store(Creates, Gets, Patches, Replaces, Protocol):
    """Name the part of `Client` that is needed here."""


class CertificateReconciler:
    """Hold the three objects together; its queue has the one key `KEY`."""

    def __init__(
        self,
        store: Store,
        namespace: str,
        *,
        may_write: Callable[[], bool],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"
        self._namespace = namespace
        self._dns_names = certificates.service_names(names.WEBHOOK_SERVICE, namespace)
        self._may_write = may_write
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        # The authority that had to be added to a living bundle, and when that was done.
        self._added: tuple[bytes, float] | None = None

    async def reconcile(self, _key: str) -> float | None:
        """Do what is due; return in how many seconds to look again. Raises ClusterError."""
        if not self._may_write():
            return None
        now = self._wall_clock()
        authority, bundle = await self._ensure_authority(now)
        if not self._may_write():
            return None
        await self._ensure_bundle(authority, bundle)
        wait_s = self._propagation_left_s(authority)
        if wait_s > 0:
            return wait_s
        if not self._may_write():
            return None
        leaf = await self._ensure_leaf(authority, bundle, now)
        self._metrics.certificate_expiry.set(certificates.ends_at(leaf.certificate).timestamp())
        due_s = (certificates.renew_at(leaf.certificate) - now).total_seconds()
        return max(1.0, min(due_s, RESYNC_S))

    async def _ensure_authority(self, now: datetime) -> tuple[Pair, bytes]:
        stored = await self._find(f"{self._secrets}/{names.WEBHOOK_CA_SECRET}")
        pair, old_bundle = _read_pair(stored), _read(stored, "ca.crt")
        fault = certificates.find_authority_fault(pair, now)
        if pair is not None and not fault:
            bundle = certificates.build_bundle(pair.certificate, [old_bundle], now)
            if bundle == old_bundle:
                return pair, bundle
        else:
            logger.info("new webhook authority", extra={"because": fault})
            # What was trusted stays trusted until it ends, so that the leaf in use does.
            older = [pair.certificate, old_bundle] if pair is not None else [old_bundle]
            pair = certificates.issue_authority(now)
            bundle = certificates.build_bundle(pair.certificate, older, now)
        await self._write_secret(
            names.WEBHOOK_CA_SECRET, stored, _secret_data(pair, bundle), type_="Opaque"
        )
        return pair, bundle

    async def _ensure_bundle(self, authority: Pair, bundle: bytes) -> None:
        """Write the bundle into every webhook of the configuration that lacks a part of it."""
        configuration = await self._find(CONFIGURATION)
        if configuration is None:
            # Not installed (yet): the informer tells when it is.
            return
        before = {
            str(hook.get("name", "")): _decode((hook.get("clientConfig") or {}).get("caBundle"))
            for hook in configuration.get("webhooks") or ()
        }
        if not before or all(text == bundle for text in before.values()):
            return
        is_change = any(
            text and not certificates.is_trusted(text, authority.certificate)
            for text in before.values()
        )
        encoded = base64.b64encode(bundle).decode()
        body = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {
                "name": names.WEBHOOK_CONFIGURATION,
                "uid": configuration["metadata"]["uid"],
            },
            "webhooks": [{"name": name, "clientConfig": {"caBundle": encoded}} for name in before],
        }
        await self._store.patch(CONFIGURATION, body, PatchKind.APPLY, _APPLY, timeout_s=TIMEOUT_S)
        self._metrics.count_write("MutatingWebhookConfiguration", "apply")
        if is_change:
            self._added = (authority.certificate, self._clock())

    def _propagation_left_s(self, authority: Pair) -> float:
        if self._added is None or self._added[0] != authority.certificate:
            return 0.0
        return self._added[1] + PROPAGATION_S - self._clock()

    async def _ensure_leaf(self, authority: Pair, bundle: bytes, now: datetime) -> Pair:
        stored = await self._find(f"{self._secrets}/{names.WEBHOOK_TLS_SECRET}")
        pair = _read_pair(stored)
        fault = certificates.find_leaf_fault(pair, authority, self._dns_names, now)
        if pair is not None and not fault and _read(stored, "ca.crt") == bundle:
            return pair
        if pair is None or fault:
            logger.info("new webhook certificate", extra={"because": fault})
            pair = certificates.issue_leaf(authority, self._dns_names, now)
        await self._write_secret(
            names.WEBHOOK_TLS_SECRET, stored, _secret_data(pair, bundle), type_="kubernetes.io/tls"
        )
        return pair

    async def _find(self, path: str) -> JsonObject | None:
        try:
            return await self._store.get(path, timeout_s=TIMEOUT_S)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise

    async def _write_secret(
        self, name: str, stored: JsonObject | None, data: dict[str, str], *, type_: str
    ) -> None:
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self._namespace},
            "type": type_,
            "data": data,
        }
        if stored is None:
            await self._store.create(self._secrets, body, _MANAGED, timeout_s=TIMEOUT_S)
            self._metrics.count_write("Secret", "create")
            return
        # The type of a Secret cannot change; labels and the like that others set stay.
        body["metadata"] = {
            key: value for key, value in stored["metadata"].items() if key != "managedFields"
        }
        body["type"] = stored.get("type", type_)
        await self._store.replace(f"{self._secrets}/{name}", body, _MANAGED, timeout_s=TIMEOUT_S)
        self._metrics.count_write("Secret", "update")


def _read_pair(secret: Mapping[str, Any] | None) -> Pair | None:
    certificate, key = _read(secret, "tls.crt"), _read(secret, "tls.key")
    return Pair(certificate=certificate, key=key) if certificate and key else None


def _read(secret: Mapping[str, Any] | None, key: str) -> bytes:
    return _decode(((secret or {}).get("data") or {}).get(key))


def _decode(text: object) -> bytes:
    try:
        return base64.b64decode(text) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _secret_data(pair: Pair, bundle: bytes) -> dict[str, str]:
    parts = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": bundle}
    return {key: base64.b64encode(value).decode() for key, value in parts.items()}
