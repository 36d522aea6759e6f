"""Load as a kube-apiserver makes it: HTTP/1.1 over TLS, connections kept and the last one used first.

The schedule is fixed before the run, and a request's latency counts from the time it was due whether or
not earlier ones were answered: an answer that comes late makes nobody else's figure better. A request
that finds no idle connection waits for the first that comes free while a new one is opened, as in Go's
client. What is not answered within the webhook's timeout is given up and its connection closed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# How many idle connections Go's client keeps per host, as kube-apiserver sets it.
_IDLE = 25
_WARM = 8
# Connections being opened at the same time: this process must not starve over handshakes.
_DIALS = 4
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
    timeout_s: float = 1.0

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
    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, exchange: Exchange) -> None:
        """Send a request; the connection must be idle."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._exchange = exchange
        exchange.sent_s = loop.time()
        self._timer = loop.call_at(exchange.due_s + self._pool.target.timeout_s, self.close)
        self._transport.write(self._pool.target.request(exchange.body))

    def close(self) -> None:
        """Give up what is under way."""
        if self._transport is not None:
            self._transport.abort()

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
        exchange.status = int(head.split(b" ", 2)[1])
        exchange.answer = body
        self._received.clear()
        self._finish(is_reusable=b"connection: close" not in fields)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._exchange is not None:
            self._finish(is_reusable=False)
        self._pool.forget(self)

    def _finish(self, *, is_reusable: bool) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        assert self._timer is not None
        self._timer.cancel()
        exchange.answered_s = asyncio.get_running_loop().time()
        self._pool.done(exchange)
        if is_reusable:
            self._pool.free(self)


class _Pool:
    """The connections of one run, and the requests that wait for one."""

    def __init__(self, target: Target, count: int, on_answer: Callable[[Exchange], None]) -> None:
        self.target = target
        self.opened = 0
        self.finished = asyncio.Event()
        self._open_requests = count
        self._on_answer = on_answer
        self._idle: list[_Connection] = []
        self._waiting: deque[Exchange] = deque()
        self._dials: set[asyncio.Task[None]] = set()

    def send(self, exchange: Exchange) -> None:
        """Send on an idle connection, else on the first that is."""
        if self._idle:
            self._idle.pop().send(exchange)
            return
        self._waiting.append(exchange)
        asyncio.get_running_loop().call_at(
            exchange.due_s + self.target.timeout_s, self._give_up, exchange
        )
        if len(self._dials) < _DIALS:
            self.dial()

    def dial(self) -> None:
        """Open one more connection."""
        task = asyncio.create_task(self._dial())
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self) -> None:
        target = self.target
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self),
            target.host,
            target.port,
            ssl=target.context,
            server_hostname=target.server_name,
        )
        self.opened += 1
        self.free(connection)

    def free(self, connection: _Connection) -> None:
        """Use a connection for whoever waits longest, or keep it."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        elif len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: _Connection) -> None:
        """Note that a connection is gone."""
        if connection in self._idle:
            self._idle.remove(connection)

    def done(self, exchange: Exchange) -> None:
        """Note that a request has come to its end, with an answer or without."""
        self._on_answer(exchange)
        self._open_requests -= 1
        if not self._open_requests:
            self.finished.set()

    def _give_up(self, exchange: Exchange) -> None:
        if exchange in self._waiting:
            self._waiting.remove(exchange)
            exchange.answered_s = asyncio.get_running_loop().time()
            self.done(exchange)

    async def close(self) -> None:
        """Close what is idle or being opened."""
        for task in self._dials:
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for connection in self._idle:
            connection.close()


async def run(
    target: Target,
    bodies: list[bytes],
    rate: float,
    *,
    on_answer: Callable[[Exchange], None] = lambda _: None,
) -> tuple[list[Exchange], int]:
    """Send the bodies at `rate` per second; return all exchanges and how many connections it took.

    `status` 0: no answer came in time. Begins with `_WARM` connections, as a server that has been at it.
    """
    loop = asyncio.get_running_loop()
    pool = _Pool(target, len(bodies), on_answer)
    for _ in range(_WARM):
        pool.dial()
    while pool.opened < _WARM:
        await asyncio.sleep(0.01)
    began_s = loop.time() + 0.05
    exchanges = [
        Exchange(number, began_s + number / rate, body) for number, body in enumerate(bodies)
    ]
    for exchange in exchanges:
        pause_s = exchange.due_s - loop.time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        pool.send(exchange)
    await pool.finished.wait()
    await pool.close()
    return exchanges, pool.opened
