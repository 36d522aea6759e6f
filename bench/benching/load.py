"""Load as a kube-apiserver makes it: HTTP/1.1 over TLS, connections kept and the last one used first.

The schedule is fixed before the run. A request is sent at its time whether or not earlier ones were
answered, on a new connection if none is idle, and its latency counts from the time it was due: an
answer that comes late makes nobody else's figure better.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

_END = b"\r\n\r\n"


@dataclass(slots=True)
class Exchange:
    """One request: when it was due, sent and answered (seconds of the loop's clock)."""

    number: int
    due_s: float
    body: bytes
    sent_s: float = 0.0
    answered_s: float = 0.0
    status: int = 0
    answer: bytes = b""

    @property
    def latency_ms(self) -> float:
        """Return the time from when it was due to the last byte of its answer."""
        return (self.answered_s - self.due_s) * 1000


@dataclass(slots=True, kw_only=True)
class Target:
    """Where requests go, and how they look."""

    host: str
    port: int
    path: str
    server_name: str
    context: ssl.SSLContext
    connections: int = 0
    idle: list[_Connection] = field(default_factory=list)

    def request(self, body: bytes) -> bytes:
        """Return the request's bytes."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.server_name}:{self.port}\r\n"
            "User-Agent: kube-apiserver-admission\r\nAccept: application/json, */*\r\n"
            f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n"
            "Accept-Encoding: gzip\r\n\r\n"
        )
        return head.encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self, target: Target, done: Callable[[Exchange], None]) -> None:
        self._target = target
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._exchange: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, exchange: Exchange, at_s: float) -> None:
        """Send a request; the connection must be idle."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.sent_s = at_s
        self._transport.write(self._target.request(exchange.body))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(_END)
        exchange = self._exchange
        if not end or exchange is None:
            return
        fields = head.lower()
        _, _, rest = fields.partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return
        exchange.answered_s = asyncio.get_running_loop().time()
        exchange.status = int(head.split(b" ", 2)[1])
        exchange.answer = body
        self._received.clear()
        self._exchange = None
        if b"connection: close" not in fields:
            self._target.idle.append(self)
        self._done(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._target.idle:
            self._target.idle.remove(self)
        if self._exchange is not None:
            self._exchange.answered_s = asyncio.get_running_loop().time()
            self._done(self._exchange)


async def run(
    target: Target,
    bodies: list[bytes],
    rate: float,
    *,
    on_answer: Callable[[Exchange], None] = lambda _: None,
    limit_s: float = 30.0,
) -> list[Exchange]:
    """Send the bodies at `rate` per second; return all exchanges, those without an answer too.

    Waits for the last answers for `limit_s`; `status` 0: the connection was lost or nothing came.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time() + 0.05
    exchanges = [
        Exchange(number, began_s + number / rate, body) for number, body in enumerate(bodies)
    ]
    open_ones = len(exchanges)
    finished = asyncio.Event()

    def done(exchange: Exchange) -> None:
        nonlocal open_ones
        open_ones -= 1
        on_answer(exchange)
        if not open_ones:
            finished.set()

    async def send(exchange: Exchange) -> None:
        if target.idle:
            target.idle.pop().send(exchange, loop.time())
            return
        target.connections += 1
        _, connection = await loop.create_connection(
            lambda: _Connection(target, done),
            target.host,
            target.port,
            ssl=target.context,
            server_hostname=target.server_name,
        )
        connection.send(exchange, loop.time())

    async with asyncio.TaskGroup() as tasks:
        for exchange in exchanges:
            pause_s = exchange.due_s - loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            if target.idle:
                target.idle.pop().send(exchange, loop.time())
            else:
                tasks.create_task(send(exchange))
    try:
        async with asyncio.timeout(limit_s):
            await finished.wait()
    except TimeoutError:
        for exchange in exchanges:
            exchange.answered_s = exchange.answered_s or loop.time()
    return exchanges
