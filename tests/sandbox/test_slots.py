"""Two sandboxes never share a port or a block of addresses."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from berthmaster_sandbox.errors import NoRoomError
from berthmaster_sandbox.slots import SLOT_COUNT, Slot, acquire_slot, are_ports_free


@pytest.fixture
def name() -> str:
    """Apart from the slots of sandboxes that run on this machine."""
    return f"berthmaster-test-{secrets.token_hex(8)}"


def test_slots_in_use_are_passed_over(name: str) -> None:
    with ExitStack() as owner:
        taken = [acquire_slot(owner, name=name, is_free=lambda _: True).index for _ in range(3)]

    assert taken == [0, 1, 2]


def test_slot_comes_back_when_its_owner_ends(name: str) -> None:
    with ExitStack() as owner:
        acquire_slot(owner, name=name, is_free=lambda _: True)
    with ExitStack() as owner:
        assert acquire_slot(owner, name=name, is_free=lambda _: True).index == 0


def test_slot_comes_back_when_its_process_is_killed(name: str) -> None:
    script = (
        "import sys, contextlib; from berthmaster_sandbox.slots import acquire_slot\n"
        "owner = contextlib.ExitStack()\n"
        "print(acquire_slot(owner, name=sys.argv[1], is_free=lambda _: True).index, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"0\n"
        with ExitStack() as owner:
            assert acquire_slot(owner, name=name, is_free=lambda _: True).index == 1
        other.kill()

    with ExitStack() as owner:
        assert acquire_slot(owner, name=name, is_free=lambda _: True).index == 0


def test_slot_with_a_port_in_use_is_passed_over(name: str) -> None:
    first = set(Slot(index=0).ports)

    with ExitStack() as owner:
        slot = acquire_slot(owner, name=name, is_free=lambda ports: not first & set(ports))
        assert slot.index == 1


def test_no_slot_left_is_said(name: str) -> None:
    with ExitStack() as owner, pytest.raises(NoRoomError, match="2 slots"):
        acquire_slot(owner, name=name, is_free=lambda _: False, count=2)


def test_slots_are_disjoint() -> None:
    slots = [Slot(index=index) for index in range(SLOT_COUNT)]

    ports = [port for slot in slots for port in slot.ports]
    octets = [int(slot.service_cidr.split(".")[1]) for slot in slots]
    octets += [slot.pod_block for slot in slots]
    assert len(set(ports)) == len(ports)
    assert len(set(octets)) == len(octets)
    assert all(0 < octet < 256 for octet in octets)


def test_listening_port_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not are_ports_free([listener.getsockname()[1]])
