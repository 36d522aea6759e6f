"""Two addresses for one pod: the one that Kubernetes is told, the one that a process can bind.

The API server refuses loopback addresses in endpoints, and an unprivileged process can bind no
others. So the pod `10.x.a.b` is the process that listens on `127.x.a.b`; `x` is the sandbox's
own block, which keeps two sandboxes on one machine apart. This module owns that mapping. It
opens no socket.
"""

from __future__ import annotations

import ipaddress

_POD_NETWORK = 10
_LOOPBACK_NETWORK = 127

# The first and last host number given to a pod of one node: .0, .1 and .255 are left alone.
FIRST_HOST = 2
LAST_HOST = 254


class AddressError(ValueError):
    """An address is outside the sandbox's blocks, or none is left."""


def pod_address(block: int, node_index: int, host: int) -> str:
    """Return the address that Kubernetes sees: `pod_address(244, 1, 7)` is `10.244.1.7`."""
    return str(ipaddress.IPv4Address(bytes((_POD_NETWORK, block, node_index, host))))


def bind_address(pod_ip: str, block: int) -> str:
    """Return where the process of the pod listens: `10.244.1.7` becomes `127.244.1.7`.

    Raises AddressError when the address is not a pod's of this block, for example because it
    belongs to a simulated node where nothing listens.
    """
    try:
        packed = ipaddress.IPv4Address(pod_ip).packed
    except ValueError as error:
        raise AddressError(f"{pod_ip!r} is not an IPv4 address") from error
    if packed[0] != _POD_NETWORK or packed[1] != block:
        raise AddressError(f"{pod_ip} is not in 10.{block}.0.0/16")
    return str(ipaddress.IPv4Address(bytes((_LOOPBACK_NETWORK, *packed[1:]))))


class AddressPool:
    """The pod addresses of one node, given out in turn so that a fresh one is not yesterday's."""

    def __init__(self, block: int, node_index: int) -> None:
        self._block = block
        self._node_index = node_index
        self._used: set[str] = set()
        self._next = FIRST_HOST

    def take(self, preferred: str | None = None) -> str:
        """Reserve an address, `preferred` if it is ours and free.

        Raises AddressError when all of the node's addresses are in use.
        """
        span = LAST_HOST - FIRST_HOST + 1
        candidates = [
            pod_address(
                self._block, self._node_index, FIRST_HOST + (self._next - FIRST_HOST + step) % span
            )
            for step in range(span)
        ]
        if preferred is not None and preferred in candidates and preferred not in self._used:
            self._used.add(preferred)
            return preferred
        for candidate in candidates:
            if candidate not in self._used:
                self._used.add(candidate)
                self._next = int(candidate.rsplit(".", 1)[1]) + 1
                return candidate
        raise AddressError(f"no pod address left in 10.{self._block}.{self._node_index}.0/24")

    def give_back(self, address: str) -> None:
        """Free an address; giving back a free one is harmless."""
        self._used.discard(address)
