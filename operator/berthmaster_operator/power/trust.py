"""Whose certificates are believed: authorities, and hosts whose certificates cannot be checked, as BMCs often have them.

Both ways of speaking to servers, HTTP and gRPC, go by the same.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Names that OpenSSL gives to certificates in a folder: a hash and a number.
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")


class Trust:
    """The machine's authorities, those of a file beside them, and hosts and networks that are not checked."""

    def __init__(self, *, ca_file: Path | None = None, unverified: Iterable[str] = ()) -> None:
        self._ca_file = ca_file
        self._hosts, self._networks = _split(unverified)

    def is_unverified(self, host: str) -> bool:
        """Tell whether a host's certificate is not checked."""
        if host in self._hosts:
            return True
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def make_context(self) -> ssl.SSLContext:
        """Return what checks certificates by all the authorities."""
        context = ssl.create_default_context()
        if self._ca_file is not None:
            context.load_verify_locations(self._ca_file)
        return context

    def read_authorities(self) -> bytes:
        """Return all the authorities as PEM, for a library that has its own list. Raises OSError."""
        paths = ssl.get_default_verify_paths()
        files = [Path(paths.cafile)] if paths.cafile else []
        if paths.capath:
            files += [it for it in Path(paths.capath).iterdir() if _HASHED.fullmatch(it.name)]
        found = [it.read_bytes() for it in files if it.is_file()]
        if self._ca_file is not None:
            found.append(self._ca_file.read_bytes())
        return b"\n".join(found)


def read_hosts(text: str) -> tuple[str, ...]:
    """Return the hosts and networks of a comma-separated list.

    Raises:
        ValueError: an entry has more than a host's name, an address or a network in it.
    """
    entries = tuple(it.strip().lower() for it in text.split(",") if it.strip())
    for entry in entries:
        if "/" in entry:
            _read_network(entry)
        elif not entry.replace(".", "").replace("-", "").replace(":", "").isalnum():
            raise ValueError(f'"{entry}" is no host, address or network such as 10.0.100.0/24')
    return entries


def _read_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f'"{text}" is no host or network: {error}') from error


def _split(entries: Iterable[str]) -> tuple[frozenset[str], tuple[Network, ...]]:
    hosts: set[str] = set()
    networks: list[Network] = []
    for entry in entries:
        if "/" in entry:
            networks.append(ipaddress.ip_network(entry))
        else:
            hosts.add(entry)
    return frozenset(hosts), tuple(networks)
