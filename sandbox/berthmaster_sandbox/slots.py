"""Ports and loopback blocks of one sandbox, so that several can run side by side.

A slot k owns the control plane's ports from 20000 + 20k on (below the range from which the kernel
picks ports for outgoing connections, so that a restarted API server finds its port free again),
the cluster IPs 127.(96+k).0.0/16, and the pod IPs 10.(244-k).0.0/16 with their loopback twins
127.(244-k).0.0/16 (see `addresses`). A slot is held by a name among the abstract sockets: these are
shared by exactly those who share the ports, whoever they are, and the kernel takes the name back
when the process ends. Its ports are tried too before it is handed out: others may use them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from berthmaster_sandbox.errors import NoRoomError

SLOT_COUNT = 32
FIRST_PORT = 20000
PORTS_PER_SLOT = 20
SLOT_NAME = "berthmaster-sandbox-slot"
FIRST_SERVICE_OCTET = 96
LAST_POD_OCTET = 244


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What one sandbox may use; everything follows from the slot's number."""

    index: int

    @property
    def first_port(self) -> int:
        """The first of the slot's ports."""
        return FIRST_PORT + PORTS_PER_SLOT * self.index

    @property
    def etcd_client_port(self) -> int:
        """Port on which etcd serves the API server."""
        return self.first_port

    @property
    def etcd_peer_port(self) -> int:
        """Port that etcd wants for peers that do not exist."""
        return self.first_port + 1

    @property
    def api_server_port(self) -> int:
        """Port of the API server."""
        return self.first_port + 2

    @property
    def scheduler_port(self) -> int:
        """Port of kube-scheduler's health and metrics."""
        return self.first_port + 3

    @property
    def controller_manager_port(self) -> int:
        """Port of kube-controller-manager's health and metrics."""
        return self.first_port + 4

    @property
    def kwok_port(self) -> int:
        """Port of kwok's own server."""
        return self.first_port + 5

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that a program of the control plane listens on."""
        return tuple(range(self.first_port, self.first_port + 6))

    @property
    def service_cidr(self) -> str:
        """Block of the cluster IPs; a local process can listen on each of them."""
        return f"127.{FIRST_SERVICE_OCTET + self.index}.0.0/16"

    @property
    def first_service_ip(self) -> str:
        """The cluster IP that the API server takes for the Service `kubernetes`."""
        return f"127.{FIRST_SERVICE_OCTET + self.index}.0.1"

    @property
    def pod_block(self) -> int:
        """The number x in the pod IPs 10.x.a.b of process nodes and their twins 127.x.a.b."""
        return LAST_POD_OCTET - self.index


def acquire_slot(
    owner: ExitStack,
    *,
    is_free: Callable[[Iterable[int]], bool] | None = None,
    count: int = SLOT_COUNT,
    name: str = SLOT_NAME,
) -> Slot:
    """Take the first free slot; `owner` gives it back when it closes, the kernel when we die.

    Raises NoRoomError if all are taken.
    """
    are_free = is_free or are_ports_free
    for index in range(count):
        slot = Slot(index=index)
        holder = _try_hold(f"{name}-{index}")
        if holder is None:
            continue
        if are_free(slot.ports):
            owner.enter_context(holder)
            return slot
        holder.close()
    raise NoRoomError(f"all {count} slots for sandboxes are taken; `berthmaster-sandbox status`")


def _try_hold(name: str) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0{name}")
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return holder


def are_ports_free(ports: Iterable[int]) -> bool:
    """True if a process could listen on each of the loopback ports now."""
    with ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As servers do: connections of an ended sandbox that linger do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
