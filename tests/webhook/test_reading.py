from __future__ import annotations

from aiohttp.test_utils import TestClient, TestServer

from berthmaster.cluster.reviews import Doorkeeper
from berthmaster_webhook import reading
from support.review_api import GOOD_TOKEN, ReviewApi, shown
from support.webhook_world import World


async def test_metrics_are_for_those_who_may_read_them(world: World) -> None:
    async with ReviewApi(may=["/metrics"]) as api:
        app = reading.build_app(Doorkeeper(api.client), world.tools.metrics)
        async with TestClient(TestServer(app)) as client:
            without = await client.get("/metrics")
            text = await (await client.get("/metrics", headers=shown(GOOD_TOKEN))).text()

    assert without.status == 401
    assert "berthmaster_assumed_pods 0.0" in text


async def test_no_path_is_told_of_before_its_right_is_shown(world: World) -> None:
    async with ReviewApi() as api:
        app = reading.build_app(Doorkeeper(api.client), world.tools.metrics)
        async with TestClient(TestServer(app)) as client:
            statuses = [
                (await client.request(method, path, headers=headers)).status
                for method, path in (
                    ("GET", "/nowhere"),
                    ("POST", "/metrics"),
                    ("HEAD", "/metrics"),
                )
                for headers in ({}, shown(GOOD_TOKEN))
            ]

    assert statuses == [401, 403] * 3
