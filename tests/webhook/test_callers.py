"""Who gets through to the webhook, over real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from berthmaster.cluster.serving import load_pair
from berthmaster_sandbox.pki import Authority, KeyPair
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.callers import make_context
from berthmaster_webhook.server import Routes
from berthmaster_webhook.settings import SettingsError
from support.webhook_world import EPOCH, World, gated_manifest, make_review

OPTION = "--client-ca-file"
API_SERVER = "kube-apiserver-webhook-client"
OLD = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)


@asynccontextmanager
async def webhook(
    world: World, authority: Authority, *, callers: str = "", names: tuple[str, ...] = ()
) -> AsyncIterator[int]:
    """Serve as the webhook does; yield the port."""
    context = make_context(callers, OPTION)
    pair = authority.issue_server("hook", "hook", addresses=["127.0.0.1"])
    load_pair(context, pair.certificate_pem, pair.key_pem)
    world.add_node("n1")
    routes = Routes(Admission(world.tools, world.term), world.tools, list, callers_names=names)
    runner = web.AppRunner(routes.admission_app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def call(port: int, authority: Authority, pair: KeyPair | None) -> int:
    """Return the answer's status, 0 where TLS refuses."""
    context = ssl.create_default_context(cafile=str(authority.certificate_path))
    if pair is not None:
        context.load_cert_chain(pair.certificate_path, pair.key_path)
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(
                f"https://127.0.0.1:{port}/place/{EPOCH}?timeout=5s",
                data=make_review(gated_manifest()),
                ssl=context,
            ) as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0


async def test_only_who_shows_a_certificate_of_the_authority(world: World, tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    async with webhook(world, ours, callers=str(ours.certificate_path)) as port:
        assert await call(port, ours, ours.issue_client("api", API_SERVER)) == 200
        assert await call(port, ours, others.issue_client("api", API_SERVER)) == 0
        assert await call(port, ours, None) == 0
        # A server's certificate of the same authority is no client's.
        assert await call(port, ours, ours.issue_server("server", API_SERVER, dns_names=["a"])) == 0

    assert len(world.state.ledger.assumed) == 1


async def test_of_an_authority_that_signs_for_everybody_the_name_counts(
    world: World, tmp_path: Path
) -> None:
    ours = Authority(tmp_path)
    callers = str(ours.certificate_path)
    async with webhook(world, ours, callers=callers, names=("other", API_SERVER)) as port:
        assert await call(port, ours, ours.issue_client("api", API_SERVER)) == 200
        assert await call(port, ours, ours.issue_client("user", "system:node:n1")) == 403

    assert len(world.state.ledger.assumed) == 1


async def test_without_the_setting_all_may_call(world: World, tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    async with webhook(world, ours) as port:
        assert await call(port, ours, None) == 200


@pytest.mark.parametrize("content", [None, b"", b"nothing", b"\xff" * 10])
def test_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=f"{OPTION} {path}"):
        make_context(str(path), OPTION)


async def test_old_versions_and_weak_ciphers_of_tls_are_refused(
    world: World, tmp_path: Path
) -> None:
    ours = Authority(tmp_path)
    spoken = {}
    async with webhook(world, ours) as port:
        for name, version, ciphers in (
            ("TLS 1.0", ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
            ("TLS 1.1", ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
            ("without forward secrecy", ssl.TLSVersion.TLSv1_2, "kRSA:@SECLEVEL=0"),
            ("CBC", ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"),
            ("TLS 1.2", ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"),
            ("TLS 1.3", ssl.TLSVersion.TLSv1_3, "ECDHE+AESGCM"),
        ):
            context = ssl.create_default_context(cafile=str(ours.certificate_path))
            with (
                pytest.warns(DeprecationWarning, match="deprecated")
                if version in OLD
                else nullcontext()
            ):
                context.minimum_version = context.maximum_version = version
            context.set_ciphers(ciphers)
            spoken[name] = await handshakes(port, context)

    assert [name for name, is_spoken in spoken.items() if is_spoken] == ["TLS 1.2", "TLS 1.3"]


async def handshakes(port: int, context: ssl.SSLContext) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (ssl.SSLError, ConnectionError):
        return False
    writer.close()
    return True
