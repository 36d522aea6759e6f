"""Somebody else's validating webhook, which takes its time and allows everything.

It comes after us in every create, so what we have answered is stored late.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from berthmaster.cluster.client import Client
from berthmaster_sandbox.pki import Authority

NAME = "somebody-else"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
TIMEOUT_S = 10


class SlowWebhook:
    """Asked for every new pod of the chaos namespaces within `async with`; `folder` is for its keys."""

    def __init__(self, client: Client, folder: Path, *, delay_s: float) -> None:
        self._client = client
        self._folder = folder
        self._delay_s = delay_s
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Serve, and have it asked."""
        authority = Authority(self._folder, name=NAME)
        pair = authority.issue_server(NAME, NAME, addresses=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_path, pair.key_path)
        app = web.Application()
        app.router.add_post("/", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=self._delay_s + 1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        port = self._runner.addresses[0][1]
        await self._client.create(CONFIGURATIONS, self._configuration(authority, port))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Have it asked no more, answer what was asked, and stop."""
        await self._client.delete(f"{CONFIGURATIONS}/{NAME}")
        if self._runner is not None:
            await self._runner.cleanup()

    def _configuration(self, authority: Authority, port: int) -> dict[str, object]:
        bundle = base64.b64encode(authority.certificate_pem).decode()
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
        }
        webhook = {
            "name": "slow.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "timeoutSeconds": TIMEOUT_S,
            "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": bundle},
            "namespaceSelector": {"matchLabels": {"chaos": "yes"}},
            "rules": [rule],
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": NAME},
            "webhooks": [webhook],
        }

    async def _answer(self, request: web.Request) -> web.Response:
        review = await request.json()
        await asyncio.sleep(self._delay_s)
        answer = {"uid": review["request"]["uid"], "allowed": True}
        return web.json_response(
            {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}
        )
