"""A cluster of paper with one of our programs beside it, each a process of its own, all over TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benching import fake_cluster
from berthmaster.api import names
from berthmaster_sandbox.pki import Authority, KeyPair, write_kubeconfig
from berthmaster_sandbox.processes import ManagedProcess, build_environment, start_process
from berthmaster_sandbox.scraping import read_metrics

SERVICE = "berthmaster-webhook.berthmaster-system.svc"
HOOK = (
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"
    f"{names.WEBHOOK_CONFIGURATION}"
)
_BENCH = Path(__file__).resolve().parents[1]
_POLL_S = 0.02


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


def program_path(program: str) -> Path:
    """Return where one of our programs is, beside this Python."""
    return Path(sys.executable).parent / program


@dataclass(slots=True, kw_only=True)
class PaperWorld:
    """A running API server of paper, and what is needed to talk to it and to start programs."""

    folder: Path
    api: ManagedProcess
    url: str
    kubeconfig: Path
    ca_path: Path
    session: aiohttp.ClientSession

    def start(self, program: str, *arguments: str) -> ManagedProcess:
        """Start one of our programs as its own process, with the cluster's kubeconfig."""
        environment = build_environment(
            {
                "KUBECONFIG": str(self.kubeconfig),
                "POD_NAMESPACE": "berthmaster-system",
                "POD_NAME": f"{program.rpartition('-')[2]}-0",
                "BERTHMASTER_BIND_ADDRESS": "127.0.0.1",
            }
        )
        return start_process(
            program,
            [program_path(program), *arguments],
            folder=self.folder,
            environment=environment,
        )

    def start_webhook(self, port: int, probe_port: int, metrics_port: int) -> ManagedProcess:
        """Start the webhook; there was no leader before whose answers it would have to wait for."""
        return self.start(
            "berthmaster-webhook",
            f"--port={port}",
            f"--probe-port={probe_port}",
            f"--metrics-port={metrics_port}",
            "--takeover-wait=0",
        )

    def server_context(self) -> ssl.SSLContext:
        """Return a context that trusts this world's authority."""
        return ssl.create_default_context(cafile=str(self.ca_path))

    async def counters(self) -> dict[str, Any]:
        """Return what the API server has counted."""
        return await self.get("bench/counters")

    async def get(self, path: str) -> dict[str, Any]:
        """Return what the API server has at a path."""
        async with self.session.get(f"{self.url}/{path}") as response:
            response.raise_for_status()
            found: dict[str, Any] = await response.json()
            return found

    async def post(self, path: str, body: bytes) -> None:
        """Send something to the benchmarks' own paths."""
        async with self.session.post(f"{self.url}/bench/{path}", data=body) as response:
            response.raise_for_status()


@asynccontextmanager
async def paper_world(
    nodes: int, pods: int, *, drivers: bool = False, life_s: float = 30.0
) -> AsyncIterator[PaperWorld]:
    """Yield a running cluster of so many nodes and pods; end it and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="berthmaster-bench-"))
    authority = Authority(folder / "pki")
    serving = authority.issue_server("api", "kube-apiserver", addresses=["127.0.0.1"])
    secret = folder / "secret.json"
    secret.write_text(json.dumps(_tls_secret(authority)))
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    kubeconfig = write_kubeconfig(
        folder / "kubeconfig",
        server=url,
        authority=authority,
        user=authority.issue_client("us", "us"),
    )
    api = start_process(
        "fake-api",
        [
            sys.executable,
            "-m",
            fake_cluster.__name__,
            *(f"--nodes={nodes}", f"--pods={pods}", f"--life={life_s}", f"--port={port}"),
            *(f"--certificate={serving.certificate_path}", f"--key={serving.key_path}"),
            f"--secret={secret}",
            *(["--drivers"] if drivers else []),
        ],
        folder=folder,
        environment=build_environment({"PYTHONPATH": str(_BENCH)}),
    )
    context = ssl.create_default_context(cafile=str(authority.certificate_path))
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
    try:
        await wait_answer(api, session, f"{url}/version", deadline_s=120)
        yield PaperWorld(
            folder=folder,
            api=api,
            url=url,
            kubeconfig=kubeconfig,
            ca_path=authority.certificate_path,
            session=session,
        )
    finally:
        await session.close()
        await api.kill()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def stopped_at_end(process: ManagedProcess) -> AsyncIterator[ManagedProcess]:
    """Stop a process at the end of the block."""
    try:
        yield process
    finally:
        await process.stop(grace_s=15)


async def wait_answer(
    process: ManagedProcess, session: aiohttp.ClientSession, url: str, *, deadline_s: float
) -> float:
    """Wait until a URL answers 200; return when, in monotonic seconds. Raises TimeoutError."""
    async with asyncio.timeout(deadline_s):
        while True:
            process.check_alive()
            with suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return time.monotonic()
            await asyncio.sleep(_POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsPage:
    """Where a program's metrics are read; an API server of paper takes any token."""

    session: aiohttp.ClientSession
    port: int
    host: str = "127.0.0.1"
    token: str = "anybody"  # noqa: S105 - for paper

    async def read(self) -> dict[str, float]:
        """Return the metrics by name with labels, none while the program does not serve them yet."""
        try:
            text = await read_metrics(self.session, self.host, self.token, port=self.port)
        except aiohttp.ClientConnectorError:
            return {}
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (it.rpartition(" ") for it in lines)}


def _tls_secret(authority: Authority) -> dict[str, Any]:
    pair: KeyPair = authority.issue_server("webhook", SERVICE, dns_names=[SERVICE])
    data = {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "berthmaster-webhook-tls", "namespace": "berthmaster-system"},
        "data": {key: base64.b64encode(pem).decode() for key, pem in data.items()},
    }
