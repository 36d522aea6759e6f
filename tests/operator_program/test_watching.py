"""Kopf starts where a container puts it: no user name, no home, nothing but a pod's name."""

from __future__ import annotations

import asyncio
import getpass

import kopf
import pytest

from berthmaster_operator import watching


async def test_user_of_a_container_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's uid is no line of /etc/passwd, and a cluster may choose another one."""

    def refuse() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", refuse)
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**_: object) -> kopf.ConnectionInfo:
        # Nobody listens there, and nobody has to: Kopf is stopped before it has asked.
        return kopf.ConnectionInfo(server="http://127.0.0.1:1")

    stop = asyncio.Event()
    stop.set()

    async with asyncio.timeout(60):
        await watching.run(registry, name="operator-1", stop=stop, restore_signals=lambda: None)
