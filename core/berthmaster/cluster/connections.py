"""Where the cluster is and who we are there: from a kubeconfig file or from the pod's own account.

Loading is kubernetes_asyncio's, so every form of kubeconfig it knows works: several files in
KUBECONFIG, inline data, `tokenFile`, exec plugins, `tls-server-name`, `proxy-url`. This module adds
the order of search and the renewal of credentials: what `tokenFile`, an exec plugin or the mounted
service account token says is asked again after `REFRESH_S` seconds, and at once after a 401. A
renewal that fails keeps the old credentials and is logged; the API server is the judge of them.

Client certificates are read once per process. Proxy variables of the environment are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)

from berthmaster.cluster.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Kubernetes asks clients to read a bound token again at least once a minute.
REFRESH_S = 45.0
LOAD_TIMEOUT_S = 30.0
# The library has its own error class, and lets through whatever a malformed file provokes in it.
LOADER_FAULTS: tuple[type[Exception], ...] = (
    ConfigException,
    yaml.YAMLError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
)
HINT = "set KUBECONFIG or --kubeconfig"
_TOKEN = "BearerToken"  # noqa: S105 - the library's name of the field, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Describe how to reach one API server.

    `authorization(force)` returns the value of the Authorization header or None; `force` renews
    before it is due. `origin` tells the user where this came from.
    """

    base_url: str
    origin: str
    authorization: Callable[[bool], Awaitable[str | None]]
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    proxy: str | None = None


async def load_connection(
    kubeconfig: str | None = None, *, context: str | None = None
) -> Connection:
    """Find the cluster: the given file, else KUBECONFIG, else ~/.kube/config, else in-cluster.

    Raises ConfigurationError when none of them is there or what is there cannot be used.
    """
    configuration = _empty_configuration()
    paths = kubeconfig or os.environ.get("KUBECONFIG") or _default_kubeconfig()
    try:
        if paths is None:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return _connection(configuration, "the pod's service account", _in_cluster)
        renew = await _load_file(paths, context, configuration)
        return _connection(configuration, paths, renew)
    except LOADER_FAULTS as error:
        where = "no kubeconfig, and not in a pod" if paths is None else paths
        raise ConfigurationError(
            f"no usable cluster configuration ({where}): {error}; {HINT}"
        ) from error
    except TimeoutError as error:
        raise ConfigurationError(
            f"the credential plugin of {paths} did not answer; {HINT}"
        ) from error


def fixed_connection(base_url: str, *, token: str | None = None) -> Connection:
    """Describe an API server by its URL alone, for tests and for `kubectl proxy`."""

    async def authorization(force: bool) -> str | None:
        return None if token is None else f"Bearer {token}"

    return Connection(base_url=base_url.rstrip("/"), origin=base_url, authorization=authorization)


Renew = Callable[[Configuration, bool], Awaitable[None]]


async def _load_file(paths: str, context: str | None, configuration: Configuration) -> Renew:
    existing = _existing_files(paths)
    async with asyncio.timeout(LOAD_TIMEOUT_S):
        loader = await load_kube_config(
            config_file=existing,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )

    async def renew(target: Configuration, force: bool) -> None:
        # The loader itself keeps the answer of an exec plugin until that expires.
        if force and hasattr(loader, "exec_plugin_expiry"):
            del loader.exec_plugin_expiry
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            await loader.load_and_set(target)

    return renew


async def _in_cluster(target: Configuration, force: bool) -> None:
    load_incluster_config(client_configuration=target)  # type: ignore[no-untyped-call]


def _connection(configuration: Configuration, origin: str, renew: Renew) -> Connection:
    credentials = _Credentials(configuration, renew, origin)
    base_url = str(configuration.host).rstrip("/")
    return Connection(
        base_url=base_url,
        origin=origin,
        authorization=credentials.authorization,
        ssl_context=_ssl_context(configuration) if base_url.startswith("https") else None,
        server_hostname=configuration.tls_server_name,
        proxy=configuration.proxy,
    )


class _Credentials:
    """Keep the Authorization value fresh; concurrent requests share one renewal."""

    def __init__(self, configuration: Configuration, renew: Renew, origin: str) -> None:
        self._configuration = configuration
        self._renew = renew
        self._origin = origin
        self._read_at_s = time.monotonic()
        self._lock = asyncio.Lock()

    async def authorization(self, force: bool) -> str | None:
        asked_at_s = time.monotonic()
        if force or asked_at_s - self._read_at_s >= REFRESH_S:
            async with self._lock:
                if self._read_at_s < asked_at_s and (
                    force or asked_at_s - self._read_at_s >= REFRESH_S
                ):
                    await self._refresh(force)
        value = self._configuration.api_key.get(_TOKEN)
        return value.strip() if value else None

    async def _refresh(self, force: bool) -> None:
        try:
            await self._renew(self._configuration, force)
        # A plugin or a half-written file can fail in any way; the old credentials may still be
        # good, and if not, the API server's 401 reaches the caller.
        except Exception:
            logger.warning("credentials could not be renewed", extra={"origin": self._origin})
            logger.debug("renewal failed", exc_info=True)
        self._read_at_s = time.monotonic()


def _empty_configuration() -> Configuration:
    configuration = Configuration()
    # The constructor takes these from the environment.
    configuration.proxy = None
    return configuration


def _existing_files(paths: str) -> str:
    parts = [part for part in paths.split(os.pathsep) if part]
    existing = [part for part in parts if Path(part).expanduser().is_file()]
    if not existing:
        raise ConfigException(f"file not found: {paths}")
    return os.pathsep.join(existing)


def _default_kubeconfig() -> str | None:
    path = Path.home() / ".kube" / "config"
    return str(path) if path.exists() else None


def _ssl_context(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
