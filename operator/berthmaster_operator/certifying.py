"""Carry out what `rotation` plans: Secrets, the bundle in the webhook configurations, reports of pods.

The bundle is the only field that we own of `zz-berthmaster` (server-side apply of
`webhooks[name].clientConfig.caBundle`); applying `config/` again leaves it alone. The private key of
our own authority is in a Secret that the webhook does not read. Every write of a Secret is a create or
carries the resourceVersion that was read, so of two writers one loses and looks again.

With a foreign issuer, such as cert-manager, nothing is issued here: what it puts into its Secret is
copied into the webhook's once the API servers trust it. A webhook that read the issuer's Secret itself
would present a new authority's certificate before anybody could know that authority.
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
from berthmaster_operator import certificates, rotation
from berthmaster_operator.certificates import Pair
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.rotation import (
    Blocked,
    ForeignIssuer,
    IssueAuthority,
    OwnAuthority,
    Remember,
    Serve,
    Settled,
    Situation,
    Step,
    Trust,
    WaitTrusted,
)

logger = logging.getLogger(__name__)

KEY = "certificates"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
CONFIGURATION = f"{CONFIGURATIONS}/{names.WEBHOOK_CONFIGURATION}"
TIMEOUT_S = 10.0
# The informers tell of changes; this finds what they could not, and the renewal that is due.
RESYNC_S = 600.0
# A whole change of authority takes fewer; more would be two writers that do not agree.
_MOST_STEPS = 12
_APPLY: Query = {"fieldManager": names.OPERATOR_MANAGER, "force": True}
_MANAGED: Query = {"fieldManager": names.OPERATOR_MANAGER}


class Store(Creates, Gets, Patches, Replaces, Protocol):
    """Name the part of `Client` that is needed here."""


class Configuration(Protocol):
    """A webhook configuration of ours: what stands in it besides what `config/` applied."""

    name: str

    def entries(self, found: JsonObject, bundle: bytes) -> list[JsonObject]:
        """Return the webhooks with the fields that we own, as server-side apply wants them."""
        ...

    def is_outdated(self, found: JsonObject) -> bool:
        """Tell whether something else than a bundle has to be written."""
        ...


class BundleOnly:
    """A configuration of which we own nothing but the bundles."""

    def __init__(self, name: str) -> None:
        self.name = name

    def entries(self, found: JsonObject, bundle: bytes) -> list[JsonObject]:
        """Return each webhook's name with the bundle."""
        encoded = base64.b64encode(bundle).decode()
        return [
            {"name": name, "clientConfig": {"caBundle": encoded}} for name in _bundles_of(found)
        ]

    def is_outdated(self, found: JsonObject) -> bool:
        """Return False: there is nothing else."""
        return False


class CertificateReconciler:
    """Hold the objects together; its queue has the one key `KEY`."""

    def __init__(
        self,
        store: Store,
        namespace: str,
        *,
        may_write: Callable[[], bool],
        metrics: Metrics,
        is_foreign: bool = False,
        configurations: tuple[Configuration, ...] = (BundleOnly(names.WEBHOOK_CONFIGURATION),),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._namespace = namespace
        self._dns_names = webhook_names(namespace)
        self._may_write = may_write
        self._metrics = metrics
        self._is_foreign = is_foreign
        self._configurations = configurations
        self._clock = clock
        self._wall_clock = wall_clock
        # Authorities that all configurations trust, and since when we have seen it.
        self._in_place: tuple[bytes, float] | None = None
        # What the last look found, for the writes.
        self._ca_secret: JsonObject | None = None
        self._tls_secret: JsonObject | None = None
        self._found: list[tuple[Configuration, JsonObject]] = []

    async def reconcile(self, _key: str) -> float | None:
        """Take steps until nothing is due; return when to look again. Raises ClusterError."""
        for _ in range(_MOST_STEPS):
            if not self._may_write():
                self._metrics.certificate_expiry.clear()
                self._in_place = None
                return None
            situation = await self._look()
            step = rotation.plan(situation)
            match step:
                case WaitTrusted(wait_s):
                    return wait_s
                case Blocked(because):
                    logger.warning("certificates cannot be used", extra={"because": because})
                    return RESYNC_S
                case Settled(awaited):
                    if awaited:
                        logger.info("replicas still serve another", extra={"replicas": awaited})
                    return self._rest(situation)
            if not self._may_write():
                return None
            await self._take(step, situation)
        logger.warning("certificates do not settle, somebody else may be writing them")
        return RESYNC_S

    def _rest(self, situation: Situation) -> float:
        expiry = self._metrics.certificate_expiry
        authorities = rotation.authorities_of(situation.issuer)
        expiry.labels("authority").set(certificates.ends_at(authorities).timestamp())
        due = []
        if situation.leaf is not None:
            leaf = situation.leaf.certificate
            expiry.labels("serving").set(certificates.ends_at(leaf).timestamp())
            due.append(leaf)
        if not self._is_foreign:
            due.append(authorities)
        due_s = [(certificates.renew_at(it) - situation.now).total_seconds() for it in due]
        return max(1.0, min(*due_s, RESYNC_S))

    # Looking.

    async def _look(self) -> Situation:
        self._tls_secret = await self._find(f"{self._secrets}/{names.WEBHOOK_TLS_SECRET}")
        issuer = await self._look_for_issuer()
        self._found = []
        for configuration in self._configurations:
            # Not installed (yet): the informer tells when it is.
            found = await self._find(f"{CONFIGURATIONS}/{configuration.name}")
            if found is not None:
                self._found.append((configuration, found))
        bundles = [text for _, found in self._found for text in _bundles_of(found).values()]
        return Situation(
            now=self._wall_clock(),
            dns_names=self._dns_names,
            issuer=issuer,
            leaf=_read_pair(self._tls_secret),
            trusted=_read(self._tls_secret, "ca.crt"),
            bundles=bundles if self._found else None,
            is_outdated=any(it.is_outdated(found) for it, found in self._found),
            in_place_s=self._time_in_place(rotation.authorities_of(issuer), bundles),
            serving=await self._look_for_replicas(),
        )

    async def _look_for_issuer(self) -> OwnAuthority | ForeignIssuer:
        if self._is_foreign:
            secret = await self._find(f"{self._secrets}/{names.ISSUED_SECRET}")
            return ForeignIssuer(pair=_read_pair(secret), authorities=_read(secret, "ca.crt"))
        self._ca_secret = await self._find(f"{self._secrets}/{names.WEBHOOK_CA_SECRET}")
        return OwnAuthority(
            pair=_read_pair(self._ca_secret),
            is_renewal_asked=names.RENEW in _annotations(self._ca_secret),
        )

    async def _look_for_replicas(self) -> dict[str, str]:
        """Return what each webhook says that it serves; who serves nothing has said nothing."""
        found = await self._store.get(
            self._pods, {"labelSelector": names.WEBHOOK_LABEL}, timeout_s=TIMEOUT_S
        )
        return {
            pod["metadata"]["name"]: _annotations(pod)[names.SERVING]
            for pod in found.get("items") or ()
            if names.SERVING in _annotations(pod) and not self._is_over(pod)
        }

    def _is_over(self, pod: JsonObject) -> bool:
        """Tell whether a pod has ended, or should have: its node may never say so."""
        deleted = pod["metadata"].get("deletionTimestamp")
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return True
        return bool(deleted) and datetime.fromisoformat(deleted) < self._wall_clock()

    def _time_in_place(self, authorities: bytes, bundles: list[bytes]) -> float:
        if not authorities or not all(certificates.is_trusted(it, authorities) for it in bundles):
            self._in_place = None
            return 0.0
        if self._in_place is None or self._in_place[0] != authorities:
            self._in_place = (authorities, self._clock())
        return self._clock() - self._in_place[1]

    # Acting.

    async def _take(self, step: Step, situation: Situation) -> None:
        match step:
            case IssueAuthority(because):
                logger.info("new webhook authority", extra={"because": because})
                await self._write_authority(certificates.issue_authority(situation.now))
            case Remember(bundle) if situation.leaf is not None:
                await self._write_leaf(situation.leaf, bundle)
            case Trust(bundle):
                logger.info("webhook authorities to trust", extra={"authorities": _count(bundle)})
                for configuration, found in self._found:
                    await self._apply(configuration, found, bundle)
            case Serve(because, bundle):
                logger.info("new webhook certificate", extra={"because": because})
                await self._write_leaf(self._next_leaf(situation), bundle)

    def _next_leaf(self, situation: Situation) -> Pair:
        pair = situation.issuer.pair
        # The plan has seen it; this is for the type checker.
        assert pair is not None  # noqa: S101
        if isinstance(situation.issuer, ForeignIssuer):
            return pair
        return certificates.issue_leaf(pair, self._dns_names, situation.now)

    async def _apply(self, configuration: Configuration, found: JsonObject, bundle: bytes) -> None:
        body = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {
                "name": configuration.name,
                # So that one deleted meanwhile is not made anew from this.
                "uid": found["metadata"]["uid"],
            },
            "webhooks": configuration.entries(found, bundle),
        }
        path = f"{CONFIGURATIONS}/{configuration.name}"
        await self._store.patch(path, body, PatchKind.APPLY, _APPLY, timeout_s=TIMEOUT_S)
        self._metrics.count_write("MutatingWebhookConfiguration", "apply")

    async def _write_authority(self, pair: Pair) -> None:
        await self._write_secret(
            names.WEBHOOK_CA_SECRET, self._ca_secret, _secret_data(pair), type_="Opaque"
        )

    async def _write_leaf(self, pair: Pair, bundle: bytes) -> None:
        data = {**_secret_data(pair), "ca.crt": base64.b64encode(bundle).decode()}
        await self._write_secret(
            names.WEBHOOK_TLS_SECRET, self._tls_secret, data, type_="kubernetes.io/tls"
        )

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
        metadata = {
            key: value for key, value in stored["metadata"].items() if key != "managedFields"
        }
        # What was asked for is being done.
        metadata["annotations"] = {
            key: value for key, value in _annotations(stored).items() if key != names.RENEW
        }
        body["metadata"] = metadata
        body["type"] = stored.get("type", type_)
        await self._store.replace(f"{self._secrets}/{name}", body, _MANAGED, timeout_s=TIMEOUT_S)
        self._metrics.count_write("Secret", "update")


def webhook_names(namespace: str) -> tuple[str, ...]:
    """Return all names by which API servers call the webhook."""
    return (
        *certificates.service_names(names.WEBHOOK_SERVICE, namespace),
        f"{names.GATE_SERVICE}.{namespace}.svc",
    )


def _bundles_of(configuration: JsonObject) -> dict[str, bytes]:
    return {
        str(hook.get("name", "")): _decode((hook.get("clientConfig") or {}).get("caBundle"))
        for hook in configuration.get("webhooks") or ()
    }


def _annotations(obj: JsonObject | None) -> dict[str, str]:
    return ((obj or {}).get("metadata") or {}).get("annotations") or {}


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


def _count(bundle: bytes) -> int:
    return bundle.count(b"-----BEGIN CERTIFICATE-----")


def _secret_data(pair: Pair) -> dict[str, str]:
    parts = {"tls.crt": pair.certificate, "tls.key": pair.key}
    return {key: base64.b64encode(value).decode() for key, value in parts.items()}
