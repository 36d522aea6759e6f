"""No token, key or password is in what anybody can read: logs at their most talkative, metrics, errors."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import generate_latest

from berthmaster.api import names
from berthmaster.cluster.client import Client, ClusterError
from berthmaster.cluster.reviews import Doorkeeper
from berthmaster.cluster.serving import ServedPair
from berthmaster.json_logs import JsonFormatter
from berthmaster_operator.certifying import CONFIGURATION, KEY, CertificateReconciler
from berthmaster_operator.metrics import Metrics as OperatorMetrics
from berthmaster_operator.model_fetching import FetchError as ModelFetchError
from berthmaster_operator.model_fetching import ModelFetcher
from berthmaster_operator.power.fetching import Credentials, Fetcher, FetchError
from berthmaster_sandbox.pki import Authority
from berthmaster_webhook.certificates import Certificates
from berthmaster_webhook.extender.guarding import read_guard
from berthmaster_webhook.metrics import Metrics as WebhookMetrics
from berthmaster_webhook.settings import SettingsError
from operator_program.stores import FakeStore
from support.fake_api import FakeApi, Refusal
from support.meters import serve_meters
from support.review_api import ACCESSES, GOOD_TOKEN, TOKENS, ReviewApi

NAMESPACE = "berthmaster-system"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
PASSWORD = "correct-horse-battery"  # noqa: S105 - of a test

Said = Callable[[], str]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What every logger has said since, as it is written, fields and tracebacks included."""
    caplog.set_level(logging.DEBUG)
    formatter = JsonFormatter()
    return lambda: "\n".join(formatter.format(record) for record in caplog.records)


def pieces(key: bytes) -> Iterable[str]:
    """Return what a private key would be known by: its lines, and the beginning of its base64."""
    yield base64.b64encode(key).decode()[60:120]
    yield from (line for line in key.decode().splitlines() if line and not line.startswith("-"))


def assert_untold(text: str, *secrets: str) -> None:
    assert text
    for secret in secrets:
        assert len(secret) > 8
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


@pytest.mark.parametrize("path", [TOKENS, ACCESSES])
@pytest.mark.parametrize("answer", [400, 401, 403, 422, 500, 503, {"status": {"error": "x"}}])
async def test_tokens_of_callers(said: Said, path: str, answer: Any) -> None:
    # This one repeats what it was asked, token included, in its errors.
    async with ReviewApi() as api:
        api.answers[path] = answer
        door = Doorkeeper(api.client)
        refusals = [
            await door.refuse(f"Bearer {token}", "get", "/metrics")
            for token in (GOOD_TOKEN, "a-stranger-to-you")
        ]

    assert_untold(f"{refusals}{vars(door)}{said()}", GOOD_TOKEN, "a-stranger-to-you")


async def test_own_token(said: Said) -> None:
    errors = []
    async with FakeApi() as api, Client.at(api.url, token=PASSWORD) as client:
        api.fail_next("GET", "/x", Refusal(401, "Unauthorized"))
        api.fail_next("GET", "/x", Refusal(403, "Forbidden"))
        for _ in range(2):
            try:
                await client.get("/x")
            except ClusterError as error:
                errors.append(f"{error} {error!r}")
        assert api.requests[0].headers["Authorization"] == f"Bearer {PASSWORD}"
    async with Client.at("http://127.0.0.1:1", token=PASSWORD) as client:
        with pytest.raises(ClusterError) as caught:
            await client.get("/x")
        errors.append(f"{caught.value} {client.base_url}")

    assert_untold("\n".join(errors) + said(), PASSWORD)


async def test_keys_that_are_served_or_cannot_be(said: Said, tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue_server("hook", "hook", dns_names=["hook"])
    other = Authority(tmp_path / "other").issue_server("hook", "hook", dns_names=["hook"])
    metrics, broken = WebhookMetrics(), asyncio.Event()
    async with FakeApi() as api, Client.at(api.url) as client:
        api.put(PODS, {"metadata": {"name": "hook-0", "namespace": NAMESPACE}})
        api.put(SECRETS, secret(pair.certificate_pem, pair.key_pem))
        certificates = Certificates(client, NAMESPACE, "hook-0", metrics)
        watched = ServedPair(client, NAMESPACE, on_loaded=lambda _: None, on_broken=broken.set)
        tasks = [asyncio.create_task(it.run()) for it in (certificates, watched)]
        await asyncio.wait_for(certificates.loaded.wait(), 10)
        await api.until_watched(SECRETS, 2)
        # A key of another certificate; one that is cut off; one that is not even base64.
        for key in (other.key_pem, pair.key_pem[:-60]):
            broken.clear()
            api.put(SECRETS, secret(pair.certificate_pem, key))
            await asyncio.wait_for(broken.wait(), 10)
        on_pod = str(api.objects[PODS])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    text = said() + on_pod + metrics.render().decode()
    assert "certificate not usable" in text
    assert_untold(text, *pieces(pair.key_pem), *pieces(other.key_pem))


def secret(certificate: bytes, key: bytes) -> dict[str, Any]:
    data = {"tls.crt": certificate, "tls.key": key}
    return {
        "metadata": {"name": names.WEBHOOK_TLS_SECRET, "namespace": NAMESPACE},
        "data": {name: base64.b64encode(pem).decode() for name, pem in data.items()},
    }


async def test_keys_that_are_made(said: Said) -> None:
    store, metrics = FakeStore(), OperatorMetrics()
    hooks = [{"name": names.WEBHOOK_NAME, "clientConfig": {"service": {"name": "s"}}}]
    store.put(CONFIGURATION, {"webhooks": hooks})
    store.objects[f"/api/v1/namespaces/{NAMESPACE}/pods"] = {"items": []}
    now_s = 1_800_000_000.0
    reconciler = CertificateReconciler(
        store, NAMESPACE, may_write=lambda: True, metrics=metrics, clock=lambda: now_s
    )
    for _ in range(4):
        await reconciler.reconcile(KEY)
        now_s += 60

    made = [
        base64.b64decode(obj["data"]["tls.key"])
        for path, obj in store.objects.items()
        if path.startswith(SECRETS)
    ]
    assert len(made) == 2
    told = said() + generate_latest(metrics.registry).decode()
    for key in made:
        assert_untold(told, *pieces(key))
    # No other object has them, the configuration of the webhook least of all.
    elsewhere = str({k: v for k, v in store.objects.items() if not k.startswith(SECRETS)})
    for key in made:
        assert_untold(elsewhere, *pieces(key))


async def test_passwords_of_meters(said: Said) -> None:
    credentials = Credentials(username="root", password=PASSWORD)
    errors = [repr(credentials)]

    def refuse(request: web.Request, _body: object) -> object:
        raise web.HTTPUnauthorized(text=f"no: {dict(request.headers)}")

    async with serve_meters() as meters:
        fetcher = Fetcher(timeout_s=5, max_bytes=1000)
        meters.answers = {"/refuses": refuse, "/no-json": b"x"}
        with_login = meters.origin.replace("://", f"://root:{PASSWORD}@")
        for url in (
            f"{meters.origin}/refuses",
            f"{meters.origin}/no-json",
            f"{with_login}/refuses",
            f"http://root:{PASSWORD}@127.0.0.1:9/",
            f"http://root:{PASSWORD}@[x/",
        ):
            with pytest.raises(FetchError) as caught:
                await fetcher.get_json(url, credentials if "@" not in url else None)
            errors.append(str(caught.value))
        await fetcher.close()

    assert_untold("\n".join(errors) + said(), PASSWORD, f"root:{PASSWORD}")


async def test_passwords_in_the_urls_of_models(said: Said) -> None:
    fetcher = ModelFetcher(["https://models.example.com"])
    errors = []
    for url in (f"https://u:{PASSWORD}@models.example.com/m", f"{PASSWORD}://models.example.com/"):
        with pytest.raises(ModelFetchError) as caught:
            await fetcher.fetch(url, "0" * 64)
        errors.append(str(caught.value))
    await fetcher.close()

    assert_untold("\n".join(errors) + said() + "end", f"u:{PASSWORD}", f"{PASSWORD}@")


@pytest.mark.parametrize("token", ["too short but", f"{PASSWORD} with blanks"])
def test_extenders_token(tmp_path: Path, said: Said, token: str) -> None:
    path = tmp_path / "token"
    path.write_text(token)

    with pytest.raises(SettingsError) as caught:
        read_guard(str(path))

    assert_untold(f"{caught.value}{said()}", token)
