"""A mark that is stored and does not come back means that the watch has missed it."""

from __future__ import annotations

import time

import pytest

from berthmaster.cluster.client import Client
from berthmaster.concerns import registry
from berthmaster.placement.engine import Engine
from berthmaster_webhook import proving
from berthmaster_webhook.proving import WatchProof
from support.fake_api import FakeApi

PODS = "/api/v1/namespaces/harbour/pods"


@pytest.mark.asyncio
async def test_mark_that_does_not_come_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "SEEN_TIMEOUT_S", 0.05)
    told: list[str] = []
    async with FakeApi() as api, Client.at(api.url) as client:
        api.objects[PODS] = {}
        api.put(PODS, {"metadata": {"namespace": "harbour", "name": "own"}})
        proof = WatchProof(
            client,
            Engine(registry.load(), assume_ttl_s=70).ledger,
            namespace="harbour",
            pod_name="own",
            clock=time.monotonic,
            on_silent=lambda: told.append("silent"),
        )

        with pytest.raises(TimeoutError):
            await proof.prove()

        assert told == ["silent"]
