"""Two sandboxes never share a port or a block of addresses."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from berthmaster_sandbox.errors import NoRoomError
from berthmaster_sandbox.slots import SLOT_COUNT, Slot, acquire_slot, are_ports_free


def test_slots_in_use_are_passed_over(tmp_path: Path) -> None:
    with ExitStack() as owner:
        taken = [acquire_slot(tmp_path, owner, is_free=lambda _: True).index for _ in range(3)]

    assert taken == [0, 1, 2]


def test_slot_comes_back_when_its_owner_ends(tmp_path: Path) -> None:
    with ExitStack() as owner:
        acquire_slot(tmp_path, owner, is_free=lambda _: True)
    with ExitStack() as owner:
        assert acquire_slot(tmp_path, owner, is_free=lambda _: True).index == 0


def test_slot_with_a_port_in_use_is_passed_over(tmp_path: Path) -> None:
    first = set(Slot(index=0).ports)

    with ExitStack() as owner:
        slot = acquire_slot(tmp_path, owner, is_free=lambda ports: not first & set(ports))
        assert slot.index == 1


def test_no_slot_left_is_said(tmp_path: Path) -> None:
    with ExitStack() as owner, pytest.raises(NoRoomError, match="2 slots"):
        acquire_slot(tmp_path, owner, is_free=lambda _: False, count=2)


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
