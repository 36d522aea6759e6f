"""An API server that knows one token, and says what its bearer may read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from berthmaster.cluster.client import Client

GOOD_TOKEN = "good-token"  # noqa: S105 - of this API server alone
READER = "system:serviceaccount:monitoring:prometheus"
TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESSES = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def shown(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


class ReviewApi:
    """Answers reviews; `answers` replaces what a path is answered with, an int being a status."""

    def __init__(self, *, may: Sequence[str] = ()) -> None:
        self.may = may
        self.asked: list[str] = []
        self.specs: list[Any] = []
        self.answers: dict[str, Any] = {}
        app = web.Application()
        app.router.add_post(TOKENS, self._answer)
        app.router.add_post(ACCESSES, self._answer)
        self._server = TestServer(app)

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        self.client = Client.at(str(self._server.make_url("")).rstrip("/"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._server.close()

    async def _answer(self, request: web.Request) -> web.Response:
        spec = (await request.json())["spec"]
        self.asked.append(request.path)
        self.specs.append(spec)
        if request.path in self.answers:
            answer = self.answers[request.path]
            if isinstance(answer, int):
                return web.Response(status=answer, text=f"about {json.dumps(spec)}")
            return web.json_response(answer, status=201)
        if request.path == TOKENS:
            status: dict[str, Any] = {"authenticated": spec["token"] == GOOD_TOKEN}
            if status["authenticated"]:
                extra = {"authentication.kubernetes.io/credential-id": ["JTI=1"]}
                status["user"] = {
                    "username": READER,
                    "uid": "u",
                    "groups": ["system:serviceaccounts"],
                    "extra": extra,
                }
        else:
            asked = spec["nonResourceAttributes"]
            status = {"allowed": asked["path"] in self.may and asked["verb"] == "get"}
        return web.json_response({"status": status}, status=201)
