"""A small kube-proxy: cluster IPs that are loopback addresses, forwarded to pods' processes.

The API server and every process on this machine reach a Service at its cluster IP, because the
sandbox takes cluster IPs from 127.0.0.0/8. For each TCP port of a Service that has an endpoint
to go to, this proxy listens there and forwards to the process that stands for the endpoint's pod
(`addresses.py`). Without an endpoint the port is closed, so that a caller is refused at once, as
by kube-proxy's reject rule, and never waits.

`plan_routes` decides and is pure; `ServiceProxy` watches and applies. Endpoints that are ready
take connections in turn; if none is, those that terminate and still serve do, by Kubernetes'
rule. A connection lasts until one side ends it, or its endpoint is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import Informer
from berthmaster_sandbox.addresses import AddressError, bind_address

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
# Ports that could not be bound are tried again after this time.
RETRY_S = 2.0
_BACKLOG = 1024

Object = Mapping[str, Any]
Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the connections to one cluster IP and port go.

    `backends` take new connections; `known` may keep the ones they have.
    """

    title: str
    backends: tuple[Endpoint, ...]
    known: frozenset[Endpoint]


def plan_routes(
    services: Iterable[Object], slices: Iterable[Object], *, block: int
) -> dict[Endpoint, Route]:
    """Return the route of each cluster IP and TCP port; one without backends is to be refused.

    Endpoints outside the sandbox's pod block, such as those of simulated nodes, are left out:
    nothing listens there.
    """
    by_service: dict[tuple[str, str], list[Object]] = {}
    for item in slices:
        metadata = item["metadata"]
        name = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
        if name:
            by_service.setdefault((metadata["namespace"], name), []).append(item)
    routes: dict[Endpoint, Route] = {}
    for service in services:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        spec = service["spec"]
        address = spec.get("clusterIP") or "None"
        if address == "None" or spec.get("type") == "ExternalName":
            continue
        own = by_service.get((namespace, name), [])
        for port in spec.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                title = f"{namespace}/{name}:{port['port']}"
                route = _plan_route(title, port.get("name") or "", own, block)
                routes[address, int(port["port"])] = route
    return routes


def _plan_route(title: str, port_name: str, slices: Iterable[Object], block: int) -> Route:
    ready: set[Endpoint] = set()
    draining: set[Endpoint] = set()
    known: set[Endpoint] = set()
    for item in slices:
        for port in _slice_ports(item, port_name):
            for endpoint in item.get("endpoints") or ():
                places = _places(endpoint, port, block)
                conditions = endpoint.get("conditions") or {}
                known.update(places)
                # Absent means ready, and serving means the same as ready then.
                if conditions.get("ready", True):
                    ready.update(places)
                elif conditions.get("serving") and conditions.get("terminating"):
                    draining.update(places)
    return Route(title=title, backends=tuple(sorted(ready or draining)), known=frozenset(known))


def _slice_ports(item: Object, port_name: str) -> Iterable[int]:
    for port in item.get("ports") or ():
        if (port.get("name") or "") == port_name and port.get("port"):
            yield int(port["port"])


def _places(endpoint: Object, port: int, block: int) -> set[Endpoint]:
    places = set()
    for address in endpoint.get("addresses") or ():
        with contextlib.suppress(AddressError):
            places.add((bind_address(address, block), port))
    return places


class ServiceProxy:
    """Listens for all Services of one sandbox.

    `client` needs to list and watch Services and EndpointSlices of all namespaces, for example as
    the user `system:kube-proxy`; `block` is the second number of the sandbox's pod addresses.
    """

    def __init__(self, client: Client, *, block: int) -> None:
        self._client = client
        self._block = block
        self._listeners: dict[Endpoint, _Listener] = {}
        self._complained: set[Endpoint] = set()
        self._dirty = asyncio.Event()
        self._services = self._informer("/api/v1/services")
        self._slices = self._informer("/apis/discovery.k8s.io/v1/endpointslices")

    async def run(self) -> None:
        """Watch and forward until cancelled; all listeners and connections end with it."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._services.run())
                group.create_task(self._slices.run())
                group.create_task(self._apply_forever())
        finally:
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()

    def _informer(self, path: str) -> Informer[Object]:
        decoder: msgspec.json.Decoder[Object] = msgspec.json.Decoder(dict[str, Any])
        return Informer(
            self._client,
            path,
            decode=decoder.decode,
            key=lambda item: str(item["metadata"]["uid"]),
            version=lambda item: str(item["metadata"]["resourceVersion"]),
            on_event=lambda _kind, _item: self._dirty.set(),
            on_sync=self._dirty.set,
        )

    async def _apply_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not (self._services.synced.is_set() and self._slices.synced.is_set()):
                continue
            routes = plan_routes(
                self._services.store.values(), self._slices.store.values(), block=self._block
            )
            is_complete = await self.apply(routes)
            if not is_complete:
                asyncio.get_running_loop().call_later(RETRY_S, self._dirty.set)

    async def apply(self, routes: Mapping[Endpoint, Route]) -> bool:
        """Open, change and close listeners; say whether all ports could be bound."""
        for place in [place for place in self._listeners if place not in routes]:
            self._listeners.pop(place).close()
        is_complete = True
        for place, route in routes.items():
            listener = self._listeners.get(place)
            if listener is not None:
                listener.update(route)
                if not route.backends:
                    listener.stop_listening()
            elif route.backends:
                listener = self._listeners[place] = _Listener(place, route)
            if route.backends and listener is not None:
                is_complete = await self._open(place, listener) and is_complete
        return is_complete

    async def _open(self, place: Endpoint, listener: _Listener) -> bool:
        try:
            await listener.listen()
        except PermissionError:
            # It will not be allowed later either.
            self._complain(place, f"{listener.title} is not served: its port needs privileges")
        except OSError as error:
            self._complain(place, f"{listener.title} cannot be served yet: {error}")
            return False
        else:
            self._complained.discard(place)
        return True

    def _complain(self, place: Endpoint, message: str) -> None:
        if place not in self._complained:
            self._complained.add(place)
            logger.warning("%s", message, extra={"address": f"{place[0]}:{place[1]}"})


class _Listener:
    """One cluster IP and port: its socket, its turn, its connections."""

    def __init__(self, place: Endpoint, route: Route) -> None:
        self._place = place
        self._route = route
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def title(self) -> str:
        return self._route.title

    async def listen(self) -> None:
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Side(self), *self._place, backlog=_BACKLOG, reuse_address=True
        )

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        self.stop_listening()
        for connection in list(self._connections):
            connection.abort()

    def update(self, route: Route) -> None:
        self._route = route
        for connection in list(self._connections):
            if connection.backend is not None and connection.backend not in route.known:
                connection.abort()

    def accept(self, client: _Side) -> None:
        connection = _Connection(self, client)
        self._connections.add(connection)
        connection.start()

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def next_backends(self) -> list[Endpoint]:
        """Return all backends, the one whose turn it is first."""
        backends = self._route.backends
        if not backends:
            return []
        self._turn = (self._turn + 1) % len(backends)
        return [*backends[self._turn :], *backends[: self._turn]]


class _Connection:
    """A client's connection and the one to its backend."""

    def __init__(self, listener: _Listener, client: _Side) -> None:
        self._listener = listener
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self.backend: Endpoint | None = None
        client.connection = self

    def start(self) -> None:
        self._task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        """Connect to a backend, the next one if one refuses; reset the client if all do."""
        loop = asyncio.get_running_loop()
        for backend in self._listener.next_backends():
            self.backend = backend
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    _, side = await loop.create_connection(lambda: _Side(None), *backend)
            except (OSError, TimeoutError):
                continue
            side.connection = self
            side.pair_with(self._client)
            return
        self.abort()

    def abort(self) -> None:
        """Reset both sides."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        peer = self._client.peer
        self._client.reset()
        if peer is not None:
            peer.reset()
        self._listener.forget(self)

    def side_lost(self, side: _Side, error: Exception | None) -> None:
        """End the other side as this one ended: reset for reset, close for close."""
        peer = side.peer
        if error is not None or peer is None:
            self.abort()
        else:
            peer.close()
        self._listener.forget(self)


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection; hands on what it reads to the other."""

    def __init__(self, listener: _Listener | None) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._is_finished = False
        self.connection: _Connection | None = None
        self.peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._listener is not None:
            # Nothing is read before there is somebody to hand it to.
            self._transport.pause_reading()
            self._listener.accept(self)

    def pair_with(self, client: _Side) -> None:
        """Begin to forward between this side and the client's."""
        if client._transport is None or client._transport.is_closing():
            self.reset()
            return
        self.peer, client.peer = client, self
        client._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer._transport is not None:
            self.peer._transport.write(data)

    def eof_received(self) -> bool:
        """Hand on the half-close; True keeps this side open for writing."""
        self._is_finished = True
        peer = self.peer
        if peer is None or peer._transport is None or peer._transport.is_closing():
            return False
        peer._transport.write_eof()
        if peer._is_finished:
            # Both halves are done; what is still to be written is written first.
            peer.close()
            return False
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer._transport is not None:
            self.peer._transport.pause_reading()

    def resume_writing(self) -> None:
        peer = self.peer
        if peer is not None and peer._transport is not None and not peer._transport.is_closing():
            peer._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.connection is not None:
            self.connection.side_lost(self, exc)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with a TCP reset, so that the other end does not take it for a regular end."""
        if self._transport is None or self._transport.is_closing():
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
