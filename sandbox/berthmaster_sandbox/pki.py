"""Keys, certificates and kubeconfig files of one sandbox.

Owns a small certificate authority on ECDSA P-256 that lives as long as the sandbox's folder, and
knows which identities a control plane expects. Nothing here is meant for a real cluster: private
keys lie in files that only the user can read, and certificates last ten days, which is longer
than a sandbox and shorter than a habit.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=10)
# Clocks of nothing but this machine are involved; an hour covers a clock that was just set back.
BACKDATING = datetime.timedelta(hours=1)

API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, as files and as PEM text."""

    certificate_path: Path
    key_path: Path
    certificate_pem: bytes
    key_pem: bytes


class Authority:
    """A certificate authority whose files lie in one folder, readable by the user only."""

    def __init__(self, folder: Path, *, name: str = "ca") -> None:
        """Make a fresh authority and write `<name>.crt` into `folder`."""
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _build_name(f"berthmaster-sandbox-{name}", ())
        builder = _start_certificate(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_build_key_usage(is_authority=True), True)
        certificate = builder.sign(self._key, hashes.SHA256())
        self._identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            self._key.public_key()
        )
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.certificate_path = folder / f"{name}.crt"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self.certificate_path, self.certificate_pem)

    def issue_client(
        self, file_name: str, common_name: str, *, organizations: Sequence[str] = ()
    ) -> KeyPair:
        """Issue a certificate that Kubernetes reads as user (common name) and groups."""
        return self._issue(
            file_name,
            _build_name(common_name, organizations),
            ExtendedKeyUsageOID.CLIENT_AUTH,
            alternatives=(),
        )

    def issue_server(
        self,
        file_name: str,
        common_name: str,
        *,
        dns_names: Iterable[str] = (),
        addresses: Iterable[str] = (),
        organizations: Sequence[str] = (),
    ) -> KeyPair:
        """Issue a serving certificate for the DNS names and IP addresses given."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(item)) for item in addresses]
        return self._issue(
            file_name,
            _build_name(common_name, organizations),
            ExtendedKeyUsageOID.SERVER_AUTH,
            alternatives=alternatives,
        )

    def _issue(
        self,
        file_name: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        *,
        alternatives: Sequence[x509.GeneralName],
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _start_certificate(subject, self._name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_build_key_usage(is_authority=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        builder = builder.add_extension(self._identifier, False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair = KeyPair(
            certificate_path=self.folder / f"{file_name}.crt",
            key_path=self.folder / f"{file_name}.key",
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=_encode_key(key),
        )
        write_private(pair.certificate_path, pair.certificate_pem)
        write_private(pair.key_path, pair.key_pem)
        return pair


def issue_node_client(authority: Authority, node_name: str) -> KeyPair:
    """Issue what a kubelet shows to the API server: the node authorizer knows it by its name."""
    return authority.issue_client(
        f"node-{node_name}", f"system:node:{node_name}", organizations=["system:nodes"]
    )


def write_service_account_keys(folder: Path) -> tuple[Path, Path]:
    """Write the key that signs service-account tokens; return (private, public) paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    private_path, public_path = folder / "service-accounts.key", folder / "service-accounts.pub"
    write_private(private_path, _encode_key(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(public_path, public)
    return private_path, public_path


def write_kubeconfig(path: Path, *, server: str, authority: Authority, user: KeyPair) -> Path:
    """Write a self-contained kubeconfig (JSON, which is YAML) and return its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sandbox",
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "sandbox"}}],
        "clusters": [
            {
                "name": "sandbox",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": _encode_base64(authority.certificate_pem),
                },
            }
        ],
        "users": [
            {
                "name": "sandbox",
                "user": {
                    "client-certificate-data": _encode_base64(user.certificate_pem),
                    "client-key-data": _encode_base64(user.key_pem),
                },
            }
        ],
    }
    write_private(path, json.dumps(config, indent=2).encode())
    return path


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody but the user can read, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _start_certificate(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
    )


def _build_name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, item) for item in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _build_key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _encode_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
