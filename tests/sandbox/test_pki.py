"""Certificates carry the identities that Kubernetes reads from them."""

from __future__ import annotations

import ipaddress
import json
import stat
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from berthmaster_sandbox.pki import Authority, issue_node_client, write_kubeconfig


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_kubelet_certificate_names_its_node(tmp_path: Path) -> None:
    subject = load(issue_node_client(Authority(tmp_path), "sandbox-1").certificate_pem).subject

    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert [item.value for item in names] == ["system:node:sandbox-1"]
    assert [item.value for item in groups] == ["system:nodes"]


def test_serving_certificate_covers_names_and_addresses(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    pair = authority.issue_server(
        "serving", "server", dns_names=["localhost"], addresses=["127.96.0.1"]
    )

    certificate = load(pair.certificate_pem)
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.value.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address("127.96.0.1")]
    certificate.verify_directly_issued_by(load(authority.certificate_pem))


def test_client_certificate_is_for_clients_only(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue_client("admin", "admin", organizations=["system:masters"])

    usage = load(pair.certificate_pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_private_keys_are_closed_to_others(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue_client("admin", "admin")

    assert stat.S_IMODE(pair.key_path.stat().st_mode) == 0o600


def test_kubeconfig_is_self_contained(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    user = authority.issue_client("admin", "admin")

    path = write_kubeconfig(
        tmp_path / "config", server="https://127.0.0.1:1", authority=authority, user=user
    )

    config = json.loads(path.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert str(tmp_path) not in path.read_text()
