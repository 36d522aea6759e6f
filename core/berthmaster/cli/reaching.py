"""The way to the leader's port for readers, with a token of its own and its certificate checked.

The token is a short-lived one of the ServiceAccount berthmaster-viewer, made with the user's own rights:
whoever may make it may look. The certificate has to be by the authority that the API server trusts for the
webhook, so the token goes to nobody else. The port is reached through `kubectl port-forward`, or where
the user says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from berthmaster.api import names
from berthmaster.cli.errors import CommandError
from berthmaster.cluster.client import Client

TOKEN_LIFE_S = 3600
_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
_FORWARD_TIMEOUT_S = 20.0
_MOST_BYTES = 64 * 2**20
_FORWARDING = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")
_HOST = f"berthmaster-webhook.{names.SYSTEM_NAMESPACE}.svc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to reach the leader: `address` (HOST:PORT), or kubectl with these settings where it is empty."""

    address: str = ""
    kubeconfig: str | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the leader said: status of HTTP, content type, body."""

    status: int
    kind: str
    body: bytes


class Leader:
    """The leader's port for readers."""

    def __init__(self, session: aiohttp.ClientSession, address: str, context: ssl.SSLContext):
        self._session = session
        self._address = address
        self._context = context

    async def get(self, path: str, **query: str) -> Answer:
        """Return an answer whatever its status. Raises CommandError where there is none."""
        try:
            async with self._session.get(
                f"https://{self._address}{path}",
                params=query,
                ssl=self._context,
                server_hostname=_HOST,
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_MOST_BYTES)
                return Answer(response.status, response.content_type, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            raise CommandError(f"no answer from the leader at {self._address}: {said}") from error

    async def get_json(self, path: str, **query: str) -> dict[str, Any] | None:
        """Return the object that is answered, None for 404. Raises CommandError for any other answer."""
        answer = await self.get(path, **query)
        if answer.status == 404:
            return None
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace").strip()
            raise CommandError(f"the leader refused {path}: {answer.status} {said}")
        found: dict[str, Any] = json.loads(answer.body)
        return found


@asynccontextmanager
async def reach(client: Client, way: Way) -> AsyncIterator[Leader]:
    """Yield the leader. Raises ApiError (a right is missing), CommandError (no leader, no way)."""
    context = await _trust(client)
    token = await _make_token(client)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=_TIMEOUT) as session:
        if way.address:
            yield Leader(session, way.address, context)
            return
        async with _forward(await _find_leader(client), way) as port:
            yield Leader(session, f"127.0.0.1:{port}", context)


async def _trust(client: Client) -> ssl.SSLContext:
    path = (
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
        f"{names.WEBHOOK_CONFIGURATION}"
    )
    for hook in (await client.get(path)).get("webhooks") or ():
        bundle = (hook.get("clientConfig") or {}).get("caBundle")
        with suppress(binascii.Error, ssl.SSLError, UnicodeDecodeError):
            if bundle:
                return ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    raise CommandError(
        f"{names.WEBHOOK_CONFIGURATION} names no authority yet, so nobody can tell who the leader is; "
        "`kubectl berth doctor` says what is missing"
    )


async def _make_token(client: Client) -> str:
    path = (
        f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/serviceaccounts/"
        f"{names.VIEWER_SERVICE_ACCOUNT}/token"
    )
    made = await client.create(path, {"spec": {"expirationSeconds": TOKEN_LIFE_S}})
    token: str = made["status"]["token"]
    return token


async def _find_leader(client: Client) -> str:
    path = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/pods"
    selector = f"{names.ROLE_LABEL}={names.ROLE_LEADER}"
    found = (await client.get(path, {"labelSelector": selector})).get("items") or ()
    if not found:
        raise CommandError("no replica of the webhook leads; `kubectl berth doctor` says why")
    name: str = found[0]["metadata"]["name"]
    return name


@asynccontextmanager
async def _forward(pod: str, way: Way) -> AsyncIterator[int]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise CommandError("kubectl is not in the PATH; --address names another way to port 8443")
    command = [kubectl, "-n", names.SYSTEM_NAMESPACE, "port-forward", f"pod/{pod}"]
    command += [f":{names.METRICS_PORT}", "--address=127.0.0.1"]
    command += ["--kubeconfig", way.kubeconfig] if way.kubeconfig else []
    command += ["--context", way.context] if way.context else []
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield await _read_port(process)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def _read_port(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(_FORWARD_TIMEOUT_S):
            while process.stdout is not None and (line := await process.stdout.readline()):
                if match := _FORWARDING.match(line):
                    return int(match[1])
            _, errors = await process.communicate()
            said = errors.decode(errors="replace").strip()
    except TimeoutError:
        said = f"no port within {_FORWARD_TIMEOUT_S:.0f} s"
    raise CommandError(f"kubectl port-forward: {said or 'it ended'}; or name a way with --address")
