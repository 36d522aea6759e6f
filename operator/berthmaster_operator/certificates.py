"""Certificates for the webhook: made, checked, bundled. Pure: bytes and times in, bytes out.

An authority of our own (ECDSA P-256, one year) signs a leaf (90 days). Each is renewed when a third
of its life is left, so no leaf outlives its authority. Both begin an hour before they are made, for
clocks that go wrong. A bundle is the PEM text of every authority that is still trusted, newest first;
during a change of authority it holds two. Pairs may also come from elsewhere, with keys of any kind.

A `Pair` holds a private key: its text form leaves the key out, and nobody may log it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=365)
LEAF_LIFE = timedelta(days=90)
BACKDATE = timedelta(hours=1)
# What a bundle holds at most: replacing an authority again and again must not make it grow for ever.
MOST_AUTHORITIES = 16
_AUTHORITY_NAME = "berthmaster webhook authority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


def service_names(service: str, namespace: str) -> tuple[str, ...]:
    """Return the names by which a Service is called; the API server uses the `.svc` one."""
    return (
        f"{service}.{namespace}.svc",
        f"{service}.{namespace}.svc.cluster.local",
        f"{service}.{namespace}",
        service,
    )


def issue_authority(now: datetime) -> Pair:
    """Make a new authority, valid from an hour ago."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY_NAME)])
    builder = (
        _builder(name, key.public_key(), now, AUTHORITY_LIFE)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue_leaf(authority: Pair, dns_names: Sequence[str], now: datetime) -> Pair:
    """Make a server certificate for the names (IP addresses are allowed), signed by the authority.

    It ends with its authority at the latest.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = _load_key(authority.key)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_names[0][:64])])
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        _builder(name, key.public_key(), now, LEAF_LIFE, latest=issuer.not_valid_after_utc)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(map(_alternative, dns_names)), critical=False)
        .add_extension(authority_id, critical=False)
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def find_authority_fault(pair: Pair | None, now: datetime) -> str:
    """Return why the authority cannot be used any more, empty if it can."""
    if pair is None:
        return "missing"
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = _load_key(pair.key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "unreadable"
    if key.public_key() != certificate.public_key():
        return "key and certificate do not belong together"
    try:
        is_authority = certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        ).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        return "not an authority"
    return _age_fault(certificate, now)


def find_leaf_fault(
    pair: Pair | None, authority: Pair, dns_names: Sequence[str], now: datetime
) -> str:
    """Return why the leaf must be made anew, empty if it is good."""
    if pair is None:
        return "missing"
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = _load_key(pair.key)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        return "of another authority" if isinstance(error, InvalidSignature) else "unreadable"
    if key.public_key() != certificate.public_key():
        return "key and certificate do not belong together"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "without names"
    if not {_alternative(it) for it in dns_names} <= set(names):
        return "for other names"
    return _age_fault(certificate, now)


def find_foreign_fault(
    pair: Pair, authorities: bytes, dns_names: Sequence[str], now: datetime
) -> str:
    """Return why a pair and the authorities that somebody else issued cannot be used, else empty."""
    try:
        certificate = x509.load_pem_x509_certificates(pair.certificate)[0]
        key = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "tls.crt or tls.key cannot be read"
    if key.public_key() != certificate.public_key():
        return "tls.crt and tls.key do not belong together"
    try:
        x509.load_pem_x509_certificates(authorities)
    except ValueError:
        return "ca.crt holds no certificate: the API server has to be told whom to trust"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        names = x509.SubjectAlternativeName([])
    missing = [it for it in dns_names if _alternative(it) not in names]
    if missing:
        return f"tls.crt is not for {', '.join(missing)}"
    fault = _age_fault(certificate, now)
    # When to renew is its issuer's business.
    return "" if fault == "due for renewal" else f"tls.crt is {fault}" if fault else ""


def build_bundle(newest: bytes, older: Iterable[bytes], now: datetime) -> bytes:
    """Return one bundle: the newest authorities, then those of older bundles that are still valid."""
    kept = x509.load_pem_x509_certificates(newest)
    for text in older:
        try:
            found = x509.load_pem_x509_certificates(text)
        except ValueError:
            continue
        kept += [it for it in found if it not in kept and now < it.not_valid_after_utc]
    kept = list(dict.fromkeys(kept))[:MOST_AUTHORITIES]
    return b"".join(it.public_bytes(serialization.Encoding.PEM) for it in kept)


def is_trusted(bundle: bytes, authorities: bytes) -> bool:
    """Tell whether a bundle holds all these authorities; an unreadable bundle holds none."""
    try:
        found = x509.load_pem_x509_certificates(bundle)
        return all(it in found for it in x509.load_pem_x509_certificates(authorities))
    except ValueError:
        return False


def renew_at(certificate: bytes) -> datetime:
    """Return when a third of a certificate's life is left."""
    found = x509.load_pem_x509_certificates(certificate)[0]
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - life / 3


def ends_at(certificate: bytes) -> datetime:
    """Return when a certificate ends; of several, the first that ends."""
    return min(it.not_valid_after_utc for it in x509.load_pem_x509_certificates(certificate))


def _age_fault(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        return "not valid yet"
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if now >= certificate.not_valid_after_utc:
        return "expired"
    return "due for renewal" if now >= certificate.not_valid_after_utc - life / 3 else ""


def _builder(
    name: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
    *,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    begin = now - BACKDATE
    end = begin + life if latest is None else min(begin + life, latest)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return key


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
