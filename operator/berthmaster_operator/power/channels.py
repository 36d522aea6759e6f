"""gRPC to model servers: a channel for each that is spoken to, closed when nobody uses it any more.

A channel does nothing by itself: it repeats no call, asks nobody how to behave (service configuration) or whom to go
through (proxies), takes no compressed answers and none above a size. One over which a call failed is closed, since when
to try again is for the caller's pauses to say; that is also how a hanging server's connection ends. What is idle
is closed after a while, the longest idle first where there are many.

gRPC checks every certificate. For a host whose certificate is not to be checked, the one that it shows is fetched
first and trusted for that channel alone, under the name that is in it.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from berthmaster_operator.power.fetching import (
    UNCHECKED,
    UNCONNECTED,
    FetchError,
    too_long,
)
from berthmaster_operator.power.trust import Trust

# Its library writes to stderr what the conditions of nodes say better, in no form that logs have.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

# How the library begins its words where no server was reached, and what is in them where it was not the right one.
_UNCONNECTED = ("failed to connect to all addresses", "errors resolving")
_UNCHECKED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
_UNUSABLE = (
    "its certificate, which is not checked, has expired or has no name in it; gRPC takes none like "
    "that: renew it"
)
_UNUSED_S = 30.0
_MOST_UNUSED = 64


@dataclass(slots=True, kw_only=True)
class _Link:
    """A channel, how many calls go over it, and when the last ended, by the loop's clock."""

    channel: Any
    users: int = 0
    used_s: float = 0.0


class Channels:
    """Calls servers. Make it where an event loop runs; call `close` at the end."""

    def __init__(self, trust: Trust, *, max_bytes: int) -> None:
        self._trust = trust
        self._max_bytes = max_bytes
        self._authorities: bytes | None = None
        # The longest unused first.
        self._links: dict[str, _Link] = {}

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._links)

    async def close(self) -> None:
        """End what is open; calls that are still going fail."""
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            await link.channel.close()

    async def call(
        self, origin: str, method: str, message: bytes, headers: Mapping[str, str]
    ) -> bytes:
        """Return the answer to a message. Raises `FetchError`; the caller sets the deadline."""
        link = self._links.get(origin)
        if link is None:
            link = self._links[origin] = _Link(channel=await self._connect(origin))
        link.users += 1
        is_good = False
        try:
            metadata = [(key.lower(), value) for key, value in headers.items()]
            answer: bytes = await link.channel.unary_unary(method)(message, metadata=metadata)
            is_good = True
            return answer
        except grpc.aio.AioRpcError as error:
            raise FetchError(self._words(error, urlsplit(origin).hostname or "")) from error
        finally:
            link.users -= 1
            await self._put_back(origin, link, is_good=is_good)

    async def _put_back(self, origin: str, link: _Link, *, is_good: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._links.get(origin) is link:
            del self._links[origin]
            if is_good:
                link.used_s = now_s
                self._links[origin] = link
        idle = [key for key, it in self._links.items() if not it.users]
        old = [key for key in idle if now_s - self._links[key].used_s > _UNUSED_S]
        ended = [self._links.pop(key) for key in {*old, *idle[:-_MOST_UNUSED]}]
        if not link.users and self._links.get(origin) is not link:
            ended.append(link)
        for it in ended:
            await it.channel.close()

    async def _connect(self, origin: str) -> Any:
        parts = urlsplit(origin)
        # Always by name or address, whatever a name may look like: never a socket file.
        target = f"dns:///{parts.netloc}"
        options = [
            ("grpc.max_receive_message_length", self._max_bytes),
            # Nothing but plain bytes.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            # Connections go when they are idle, also of the last channel, behind which no call looks after it.
            ("grpc.client_idle_timeout_ms", int(_UNUSED_S * 1000)),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.primary_user_agent", "berthmaster-operator"),
        ]
        if parts.scheme == "grpc":
            return grpc.aio.insecure_channel(target, options=options)
        if self._trust.is_unverified(parts.hostname or ""):
            trusted, name = await _fetch_certificate(parts.hostname or "", parts.port or 0)
            options.append(("grpc.ssl_target_name_override", name))
        else:
            if self._authorities is None:
                self._authorities = await asyncio.to_thread(self._trust.read_authorities)
            trusted = self._authorities
        credentials = grpc.ssl_channel_credentials(root_certificates=trusted)
        return grpc.aio.secure_channel(target, credentials, options=options)

    def _words(self, error: Any, host: str) -> str:
        """Return what went wrong; the library's own words tell what no status does, and are not shown."""
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return too_long(self._max_bytes)
        if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_UNCONNECTED):
            if not any(it in details for it in _UNCHECKED):
                return UNCONNECTED
            return _UNUSABLE if self._trust.is_unverified(host) else UNCHECKED
        return f"status {code.name}, expected OK"


async def _fetch_certificate(host: str, port: int) -> tuple[bytes, str]:
    """Return the certificate that a host shows, as PEM, and a name that is in it; raises `FetchError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError as error:
        raise FetchError(UNCONNECTED) from error
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    try:
        name = _name_in(x509.load_der_x509_certificate(shown))
    except ValueError as error:
        raise FetchError("its certificate cannot be read") from error
    if not name:
        raise FetchError(_UNUSABLE)
    return ssl.DER_cert_to_PEM_cert(shown).encode(), name


def _name_in(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(found[0].value) if found else ""
    by_name = names.get_values_for_type(x509.DNSName)
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return next(iter([*by_name, *addresses]), "").replace("*", "any", 1)
