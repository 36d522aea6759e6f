from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from berthmaster_operator import certificates
from berthmaster_operator.certificates import Pair

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAMES = certificates.service_names("hook", "ns")
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def authority() -> Pair:
    return certificates.issue_authority(NOW)


@pytest.fixture(scope="module")
def leaf(authority: Pair) -> Pair:
    return certificates.issue_leaf(authority, NAMES, NOW)


def test_new_pairs_have_no_fault(authority: Pair, leaf: Pair) -> None:
    assert certificates.find_authority_fault(authority, NOW) == ""
    assert certificates.find_leaf_fault(leaf, authority, NAMES, NOW) == ""


def test_text_form_hides_the_key(leaf: Pair) -> None:
    assert "key" not in repr(leaf)


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        (-2 * HOUR, "not valid yet"),
        (timedelta(days=59), ""),
        (timedelta(days=60), "due for renewal"),
        (timedelta(days=90), "expired"),
    ],
    ids=["early", "young", "old", "over"],
)
def test_age_of_a_leaf(authority: Pair, leaf: Pair, after: timedelta, fault: str) -> None:
    assert certificates.find_leaf_fault(leaf, authority, NAMES, NOW + after) == fault


def test_renewal_comes_at_a_third_left(leaf: Pair) -> None:
    assert certificates.renew_at(leaf.certificate) == NOW - HOUR + timedelta(days=60)


def test_faults_of_a_leaf_are_found(authority: Pair, leaf: Pair) -> None:
    other = certificates.issue_authority(NOW)
    strange = certificates.issue_leaf(other, NAMES, NOW)
    mixed = Pair(certificate=leaf.certificate, key=strange.key)
    broken = Pair(certificate=leaf.certificate[:100], key=leaf.key)

    def fault(pair: Pair | None, names: tuple[str, ...] = NAMES) -> str:
        return certificates.find_leaf_fault(pair, authority, names, NOW)

    assert fault(None) == "missing"
    assert fault(strange) == "of another authority"
    assert fault(mixed) == "key and certificate do not belong together"
    assert fault(broken) == "unreadable"
    assert fault(leaf, ("else",)) == "for other names"


def test_faults_of_an_authority_are_found(authority: Pair, leaf: Pair) -> None:
    mixed = Pair(certificate=authority.certificate, key=leaf.key)

    assert certificates.find_authority_fault(None, NOW) == "missing"
    assert certificates.find_authority_fault(leaf, NOW) == "not an authority"
    assert "belong together" in certificates.find_authority_fault(mixed, NOW)
    garbage = Pair(certificate=b"x", key=b"y")
    assert certificates.find_authority_fault(garbage, NOW) == "unreadable"


def test_bundle_keeps_living_authorities(authority: Pair) -> None:
    newer = certificates.issue_authority(NOW)

    bundle = certificates.build_bundle(newer.certificate, [authority.certificate, b"junk"], NOW)

    assert certificates.is_trusted(bundle, authority.certificate)
    assert certificates.is_trusted(bundle, newer.certificate)
    late = NOW + certificates.AUTHORITY_LIFE
    bundle = certificates.build_bundle(newer.certificate, [bundle], late)
    assert not certificates.is_trusted(bundle, authority.certificate)
    assert not certificates.is_trusted(b"junk", authority.certificate)


async def test_pair_serves_real_tls(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = certificates.issue_authority(now)
    leaf = certificates.issue_leaf(authority, (*NAMES, "127.0.0.1"), now)
    path = tmp_path / "pair.pem"
    path.write_bytes(leaf.certificate + leaf.key)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(path)
    calling = ssl.create_default_context(cadata=authority.certificate.decode())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=calling, server_hostname="hook.ns.svc"
        )
        assert await reader.read() == b"ok"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
