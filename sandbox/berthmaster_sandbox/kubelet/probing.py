"""Probes: when a container counts as started, ready and alive.

`ProbeCounter` owns the thresholds and is pure; `check` asks the process once. Who is asked and
how often is the container's business, see `containers.py`. A gRPC probe is answered by a TCP
connection, for want of a client.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

RunCommand = Callable[[Sequence[str], float], Awaitable[tuple[bool, str]]]


class Verdict(enum.Enum):
    """What a row of probe results amounts to."""

    UNDECIDED = "undecided"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """The timing of a probe, with Kubernetes' defaults."""

    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """What a probe asks: the process behind `host`, its named ports, a way to run commands."""

    host: str
    ports: Mapping[str, int]
    run_command: RunCommand


class ProbeCounter:
    """Turns single results into verdicts: as many equal ones in a row as the threshold says."""

    def __init__(self, spec: ProbeSpec) -> None:
        self._spec = spec
        self._last: bool | None = None
        self._row = 0

    def observe(self, *, success: bool) -> Verdict:
        """Count one result and say whether it completes a row."""
        self._row = self._row + 1 if success is self._last else 1
        self._last = success
        if success:
            return Verdict.SUCCESS if self._row >= self._spec.success_threshold else _OPEN
        return Verdict.FAILURE if self._row >= self._spec.failure_threshold else _OPEN


_OPEN = Verdict.UNDECIDED


def parse_probe(probe: Mapping[str, Any]) -> ProbeSpec:
    """Read a probe's timing; a field that is absent or zero has its default."""
    return ProbeSpec(
        initial_delay_s=float(probe.get("initialDelaySeconds") or 0),
        period_s=float(probe.get("periodSeconds") or 10),
        timeout_s=float(probe.get("timeoutSeconds") or 1),
        success_threshold=int(probe.get("successThreshold") or 1),
        failure_threshold=int(probe.get("failureThreshold") or 3),
    )


def named_ports(container: Mapping[str, Any]) -> dict[str, int]:
    """Return the container's ports that have a name."""
    return {
        port["name"]: int(port["containerPort"])
        for port in container.get("ports") or ()
        if port.get("name")
    }


def find_port(value: object, ports: Mapping[str, int]) -> int:
    """Return the port that a probe names by number or by name; ValueError if there is none."""
    if isinstance(value, int):
        return value
    text = str(value)
    if text in ports:
        return ports[text]
    if text.isdigit():
        return int(text)
    raise ValueError(f"no container port is named {text!r}")


async def check(probe: Mapping[str, Any], target: ProbeTarget) -> tuple[bool, str]:
    """Ask once and return success with a message; bounded by the probe's own timeout."""
    timeout_s = parse_probe(probe).timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(probe, target, timeout_s)
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except (OSError, ValueError, aiohttp.ClientError) as error:
        return False, str(error) or type(error).__name__


async def _ask(probe: Mapping[str, Any], target: ProbeTarget, timeout_s: float) -> tuple[bool, str]:
    if "httpGet" in probe:
        return await http_get(probe["httpGet"], target)
    if "exec" in probe:
        return await target.run_command(probe["exec"].get("command") or (), timeout_s)
    socket_probe = probe.get("tcpSocket") or probe.get("grpc") or {}
    port = find_port(socket_probe.get("port"), target.ports)
    _, writer = await asyncio.open_connection(target.host, port)
    writer.close()
    return True, "connected"


async def http_get(action: Mapping[str, Any], target: ProbeTarget) -> tuple[bool, str]:
    """GET as the kubelet does: certificates are not verified, 200 to 399 is success."""
    port = find_port(action.get("port"), target.ports)
    scheme = str(action.get("scheme") or "HTTP").lower()
    path = str(action.get("path") or "/")
    headers = {item["name"]: item["value"] for item in action.get("httpHeaders") or ()}
    headers.setdefault("User-Agent", "kube-probe/sandbox")
    url = f"{scheme}://{target.host}:{port}/{path.lstrip('/')}"
    connector = aiohttp.TCPConnector(ssl=_unverified(), force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, trust_env=False) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        return 200 <= response.status < 400, f"HTTP status {response.status}"


@functools.cache
def _unverified() -> ssl.SSLContext:
    # Probes go to the pod itself, whose certificate names its Service.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
