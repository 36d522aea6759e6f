"""Thresholds of probes, and asking a process."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from berthmaster_sandbox.kubelet.probing import (
    ProbeCounter,
    ProbeSpec,
    ProbeTarget,
    Verdict,
    check,
    find_port,
    named_ports,
    parse_probe,
)


async def answer_yes(command: Sequence[str], timeout_s: float) -> tuple[bool, str]:
    return command == ["true"], f"ran {command} for at most {timeout_s} s"


def target(**ports: int) -> ProbeTarget:
    return ProbeTarget(host="127.0.0.1", ports=ports, run_command=answer_yes)


def test_verdict_needs_a_row_of_equal_results() -> None:
    counter = ProbeCounter(ProbeSpec(success_threshold=2, failure_threshold=3))

    verdicts = [counter.observe(success=char == "+") for char in "--+---+++"]

    assert [verdict.value[0] for verdict in verdicts] == list("uuuuufuss")


def test_absent_timing_has_kubernetes_defaults() -> None:
    assert parse_probe({"periodSeconds": 0}) == ProbeSpec(
        initial_delay_s=0, period_s=10, timeout_s=1, success_threshold=1, failure_threshold=3
    )


def test_one_success_is_enough_by_default() -> None:
    assert ProbeCounter(parse_probe({})).observe(success=True) is Verdict.SUCCESS


def test_port_is_found_by_name_or_number() -> None:
    ports = named_ports({"ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 1}]})

    assert [find_port(value, ports) for value in ("web", 9, "10")] == [8080, 9, 10]
    with pytest.raises(ValueError, match="no container port is named 'other'"):
        find_port("other", ports)


@pytest.mark.parametrize(("status", "expected"), [(200, True), (302, True), (404, False)])
async def test_http_status_decides(status: int, expected: bool) -> None:
    async def reply(request: web.Request) -> web.Response:
        assert request.headers["X-Probe"] == "1"
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    application = web.Application()
    application.router.add_get("/ok", reply)
    async with TestServer(application, host="127.0.0.1") as server:
        action = {
            "path": "/ok",
            "port": "web",
            "httpHeaders": [{"name": "X-Probe", "value": "1"}],
        }
        success, message = await check({"httpGet": action}, target(web=server.port or 0))

    assert success is expected
    assert message == f"HTTP status {status}"


async def test_silent_server_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = {"httpGet": {"port": listener.getsockname()[1]}, "timeoutSeconds": 0.1}
        success, message = await check(probe, target())

    assert not success
    assert message == "no answer within 0.1 s"


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        pytest.param({"exec": {"command": ["true"]}}, True, id="exec"),
        pytest.param({"exec": {"command": ["false"]}}, False, id="exec fails"),
        pytest.param({"tcpSocket": {"port": 1}}, False, id="tcp refused"),
        pytest.param({"tcpSocket": {"port": "nobody"}}, False, id="unknown port"),
    ],
)
async def test_probe_kinds(probe: Mapping[str, Any], expected: bool) -> None:
    success, _ = await check(probe, target())

    assert success is expected
