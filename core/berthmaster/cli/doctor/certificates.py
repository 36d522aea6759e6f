"""The webhook's certificate: does the API server trust it, and for how much longer?"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.cli.doctor.calling import our_hook
from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    annotations_of,
    dig,
    metadata,
    name_of,
)
from berthmaster.cli.doctor.findings import Finding, Part, some

PART = Part("certificate")
_SYSTEM = names.SYSTEM_NAMESPACE
_LOGS = f"kubectl -n {_SYSTEM} logs deployment/berthmaster-operator"
_OPERATOR = f"the operator renews it within seconds while it runs: {_LOGS}"
_RENEW = (
    f"kubectl -n {_SYSTEM} delete secret {names.WEBHOOK_TLS_SECRET}   # the operator makes another"
)


def check(facts: Facts) -> Iterator[Finding]:
    """Look at the bundle, at the certificate, and at whether one covers the other."""
    configuration = facts.webhook_configuration
    bundle: list[x509.Certificate] | None = None
    if configuration is not None and not isinstance(configuration, Unread):
        hook = our_hook(configuration) or {}
        encoded = dig(hook, "clientConfig", "caBundle")
        if encoded:
            bundle = _parse(_decode(encoded))
            if not bundle:
                yield PART.broken("the caBundle of the webhook configuration is no PEM", _OPERATOR)
    secret = facts.tls_secret
    if isinstance(secret, Unread):
        yield PART.not_checked("the serving certificate", secret.why)
    elif secret is None:
        yield PART.broken(f"the Secret {names.WEBHOOK_TLS_SECRET} is missing", _OPERATOR)
    else:
        yield from _check_leaf(secret, bundle, facts)


def _check_leaf(
    secret: JsonObject, bundle: list[x509.Certificate] | None, facts: Facts
) -> Iterator[Finding]:
    text = _secret_text(secret, "tls.crt")
    chain = _parse(text)
    if not chain:
        yield PART.broken(f"the Secret {names.WEBHOOK_TLS_SECRET} holds no certificate", _RENEW)
        return
    leaf = chain[0]
    faults = list(_leaf_faults(leaf, chain[1:], bundle, facts))
    if not faults and bundle:
        faults += _check_remembered(_parse(_secret_text(secret, "ca.crt")), bundle)
    faults += _check_serving(text, facts)
    yield from faults
    if not faults:
        ends = leaf.not_valid_after_utc
        yield PART.ok(
            f"trusted by the API server, ends {ends:%Y-%m-%d %H:%M} UTC{_left(ends, facts)}"
        )


def _leaf_faults(
    leaf: x509.Certificate,
    between: list[x509.Certificate],
    bundle: list[x509.Certificate] | None,
    facts: Facts,
) -> Iterator[Finding]:
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if facts.now >= ends:
        yield PART.broken(f"it ended {ends:%Y-%m-%d %H:%M} UTC: every call fails", _RENEW)
    elif facts.now < begins:
        yield PART.broken(f"it is not valid before {begins:%Y-%m-%d %H:%M} UTC", _RENEW)
    elif ends - facts.now < (ends - begins) / 4:
        yield PART.warning(
            f"it ends {ends:%Y-%m-%d %H:%M} UTC{_left(ends, facts)} and should have been renewed",
            _OPERATOR,
        )
    wanted = f"{names.WEBHOOK_SERVICE}.{facts.system_namespace}.svc"
    if wanted not in _dns_names(leaf):
        yield PART.broken(f"it is not for {wanted}, by which the API server calls", _RENEW)
    if bundle and not any(_is_issued_by(it, bundle) for it in (leaf, *between)):
        yield PART.broken(
            f"it is of an authority that the caBundle of {names.WEBHOOK_CONFIGURATION} does not list: "
            "every call fails",
            _OPERATOR,
        )


def _check_remembered(
    remembered: list[x509.Certificate], bundle: list[x509.Certificate]
) -> Iterator[Finding]:
    """Look whether the bundle has every authority that the operator wants trusted."""
    if any(it not in bundle for it in remembered):
        yield PART.warning(
            f"the caBundle of {names.WEBHOOK_CONFIGURATION} lacks an authority that the Secret "
            f"{names.WEBHOOK_TLS_SECRET} lists: it was overwritten, or is just being changed",
            _OPERATOR,
        )


def _check_serving(text: bytes, facts: Facts) -> Iterator[Finding]:
    pods = facts.program_pods
    if pods is None or isinstance(pods, Unread):
        return
    digest = certificate_digest(text)
    behind = [
        name_of(pod)
        for pod in pods
        if annotations_of(pod).get(names.SERVING, digest) != digest
        and not metadata(pod).get("deletionTimestamp")
    ]
    if behind:
        yield PART.warning(
            f"{some(behind)} still serves another one",
            f"kubectl -n {_SYSTEM} logs {behind[0]}",
        )


def _left(ends: datetime, facts: Facts) -> str:
    return f" (in {(ends - facts.now).days} days)"


def _is_issued_by(certificate: x509.Certificate, bundle: list[x509.Certificate]) -> bool:
    for authority in bundle:
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return True
    return False


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _parse(text: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text) if text else []
    except ValueError:
        return []


def _secret_text(secret: JsonObject, key: str) -> bytes:
    return _decode(dig(secret, "data", key))


def _decode(text: object) -> bytes:
    try:
        return base64.b64decode(str(text or ""), validate=True)
    except (binascii.Error, ValueError):
        return b""
