"""Cluster IPs on loopback: the plan, and connections through a real listener."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from berthmaster.cluster.client import Client
from berthmaster_sandbox.services import Route, ServiceProxy, plan_routes

# Far from the blocks that sandboxes take, and from another run of these tests.
BLOCK = 33
DEADLINE_S = 5.0
Endpoint = tuple[str, int]
_hosts = itertools.count(1)


def make_service(*ports: int, **spec: Any) -> dict[str, Any]:
    listed = [{"port": port, "name": f"p{port}"} for port in ports]
    return {
        "metadata": {"namespace": "n", "name": "s"},
        "spec": {"clusterIP": "127.96.0.9", "ports": listed, **spec},
    }


def make_slice(*endpoints: dict[str, Any], port: int = 8080, name: str = "p80") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": name, "port": port}],
        "endpoints": list(endpoints),
    }


def make_endpoint(host: int, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [f"10.{BLOCK}.1.{host}"], "conditions": conditions}


def plan(*slices: dict[str, Any], **spec: Any) -> dict[Endpoint, Route]:
    return plan_routes([make_service(80, **spec)], slices, block=BLOCK)


def backends(*slices: dict[str, Any]) -> list[str]:
    return [host for host, _ in plan(*slices)["127.96.0.9", 80].backends]


def test_ready_endpoints_are_backends() -> None:
    route = plan(make_slice(make_endpoint(2, ready=True), make_endpoint(3, ready=False)))

    assert route["127.96.0.9", 80].backends == ((f"127.{BLOCK}.1.2", 8080),)
    assert (f"127.{BLOCK}.1.3", 8080) in route["127.96.0.9", 80].known


def test_endpoint_without_conditions_is_ready() -> None:
    assert backends(make_slice(make_endpoint(2))) == [f"127.{BLOCK}.1.2"]


def test_draining_endpoints_serve_when_no_other_does() -> None:
    draining = make_endpoint(2, ready=False, serving=True, terminating=True)

    assert backends(make_slice(draining)) == [f"127.{BLOCK}.1.2"]
    assert backends(make_slice(draining, make_endpoint(3))) == [f"127.{BLOCK}.1.3"]


def test_slices_of_one_service_are_joined() -> None:
    found = backends(make_slice(make_endpoint(3)), make_slice(make_endpoint(2)))

    assert found == [f"127.{BLOCK}.1.2", f"127.{BLOCK}.1.3"]


def test_simulated_pods_are_no_backends() -> None:
    assert backends(make_slice({"addresses": ["10.200.0.5"]})) == []


def test_port_is_matched_by_name() -> None:
    assert backends(make_slice(make_endpoint(2), name="other")) == []


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"clusterIP": "None"}, id="headless"),
        pytest.param({"type": "ExternalName"}, id="external"),
        pytest.param({"ports": [{"port": 53, "protocol": "UDP"}]}, id="udp"),
    ],
)
def test_service_without_tcp_address_has_no_route(spec: dict[str, Any]) -> None:
    assert plan(**spec) == {}


@pytest.fixture
async def proxy() -> AsyncIterator[ServiceProxy]:
    # Routes are applied by hand, so nobody answers the client and nobody asks.
    async with Client.at("http://127.0.0.1:9") as client:
        proxy = ServiceProxy(client, block=BLOCK)
        yield proxy
        await proxy.apply({})


@contextlib.asynccontextmanager
async def run_backend(greeting: bytes = b"") -> AsyncIterator[Endpoint]:
    """Answer each connection with a greeting and, at its end, with what it said."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(greeting)
            writer.write(await reader.read())
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    # Each backend has an address of its own, so that a slow end of one disturbs no other.
    host = f"127.{BLOCK}.{os.getpid() % 250}.{next(_hosts)}"
    server = await asyncio.start_server(answer, host, 0)
    async with server:
        yield host, server.sockets[0].getsockname()[1]


async def find_free_place() -> Endpoint:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return "127.0.0.1", port


def route_to(*targets: Endpoint, known: frozenset[Endpoint] | None = None) -> Route:
    return Route(title="n/s:80", backends=targets, known=frozenset(targets) | (known or set()))


@contextlib.asynccontextmanager
async def connect(
    place: Endpoint,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(*place)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def converse(place: Endpoint, text: bytes) -> bytes:
    async with connect(place) as (reader, writer):
        writer.write(text)
        writer.write_eof()
        return await reader.read()


async def test_half_closed_connection_is_answered(proxy: ServiceProxy) -> None:
    place = await find_free_place()
    text = os.urandom(1 << 20)
    async with run_backend(b"hello ") as backend:
        assert await proxy.apply({place: route_to(backend)})

        assert await converse(place, text) == b"hello " + text


async def test_connections_take_turns(proxy: ServiceProxy) -> None:
    place = await find_free_place()
    async with run_backend(b"1") as first, run_backend(b"2") as second:
        await proxy.apply({place: route_to(first, second)})

        answers = [await converse(place, b"") for _ in range(4)]

    assert sorted(answers) == [b"1", b"1", b"2", b"2"]


async def test_dead_backend_is_skipped(proxy: ServiceProxy) -> None:
    place, nowhere = await find_free_place(), await find_free_place()
    async with run_backend(b"1") as backend:
        await proxy.apply({place: route_to(backend, nowhere)})

        assert [await converse(place, b"") for _ in range(3)] == [b"1"] * 3


async def test_service_without_endpoint_refuses(proxy: ServiceProxy) -> None:
    place = await find_free_place()
    async with run_backend() as backend:
        await proxy.apply({place: route_to(backend)})
        await proxy.apply({place: route_to()})

        with pytest.raises(ConnectionRefusedError):
            await converse(place, b"")

        await proxy.apply({place: route_to(backend)})
        assert await converse(place, b"back") == b"back"


async def test_all_dead_backends_reset_the_client(proxy: ServiceProxy) -> None:
    place, nowhere = await find_free_place(), await find_free_place()
    await proxy.apply({place: route_to(nowhere)})

    with pytest.raises(ConnectionError):
        await converse(place, b"x")


async def test_removed_endpoint_loses_its_connections(proxy: ServiceProxy) -> None:
    place = await find_free_place()
    async with run_backend(b"1") as first, run_backend(b"2") as second:
        await proxy.apply({place: route_to(first)})
        async with connect(place) as (reader, _writer):
            assert await reader.readexactly(1) == b"1"

            await proxy.apply({place: route_to(second)})

            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_unready_endpoint_keeps_its_connections(proxy: ServiceProxy) -> None:
    place = await find_free_place()
    async with run_backend(b"1") as first, run_backend(b"2") as second:
        await proxy.apply({place: route_to(first)})
        async with connect(place) as (reader, writer):
            assert await reader.readexactly(1) == b"1"

            await proxy.apply({place: route_to(second, known=frozenset({first}))})

            writer.write(b"still")
            writer.write_eof()
            assert await reader.read() == b"still"


async def test_port_in_use_is_reported_and_tried_again(proxy: ServiceProxy) -> None:
    async with run_backend() as taken, run_backend(b"1") as backend:
        assert not await proxy.apply({taken: route_to(backend)})
