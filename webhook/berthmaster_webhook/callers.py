"""Who may call: clients with a certificate of known authorities and, where names are given, of one of those.

An authority that signs certificates for everybody in the cluster does not tell the API server from others;
its name does.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from berthmaster.cluster.serving import new_server_context
from berthmaster_webhook.settings import SettingsError

_LONGEST_FILE = 1024 * 1024
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_context(client_ca_file: str, option: str) -> ssl.SSLContext:
    """Return a context for a server; with a file only clients of its authorities get in.

    Raises SettingsError, naming the option, when the file cannot be used.
    """
    context = new_server_context()
    if client_ca_file:
        text = read_file(client_ca_file, option).decode("ascii", "ignore")
        try:
            context.load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"{option} {client_ca_file}: expected PEM certificates: {error}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_file(path: str, option: str) -> bytes:
    """Return what a file begins with, up to 1 MiB. Raises SettingsError."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_LONGEST_FILE)
    except OSError as error:
        raise SettingsError(f"{option} {path}: {error.strerror}") from error


def only(common_names: Sequence[str]) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return a middleware that answers those whose certificate has one of the names, others by 403."""
    wanted = frozenset(common_names)

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport else None
        shown = {
            value
            for part in (certificate or {}).get("subject", ())
            for key, value in part
            if key == "commonName"
        }
        if shown.isdisjoint(wanted):
            return web.Response(status=403, text="this is for the API server")
        return await handler(request)

    return check
