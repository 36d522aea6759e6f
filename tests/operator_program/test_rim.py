"""Settings, logs, health, handlers: the small parts at the edge."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import kopf
import pytest
from aiohttp.test_utils import TestClient, TestServer

from berthmaster.cluster.reviews import Doorkeeper
from berthmaster.json_logs import JsonFormatter
from berthmaster_operator import health, watching
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers import node_disk_devices, node_disk_io_stats
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.settings import Settings, read_settings
from operator_program.stores import Notes
from support.review_api import GOOD_TOKEN, ReviewApi, shown


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=lambda _: None)


def test_command_line_wins_over_environment() -> None:
    environment = {"POD_NAMESPACE": "a", "BERTHMASTER_BIND_ADDRESS": "127.1.2.3"}

    found = read_settings(["--namespace", "b", "--settle", "0.5"], environment)

    assert (found.namespace, found.bind_address, found.settle_s) == ("b", "127.1.2.3", 0.5)
    assert read_settings([], {}) == Settings()


def test_choices_come_from_the_environment_and_are_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = read_settings(
        [], {"BERTHMASTER_LOG_LEVEL": "warning", "BERTHMASTER_CERTIFICATE_ISSUER": "secret"}
    )
    assert (found.log_level, found.certificate_issuer, found.gates) == (
        "WARNING",
        "secret",
        "policy",
    )

    with pytest.raises(SystemExit):
        read_settings([], {"BERTHMASTER_GATES": "fence"})
    words = '"fence" is not one of policy, webhook (environment: BERTHMASTER_GATES)'
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--health-port", "x"],
        ["--workers", "0"],
        ["--settle", "-1"],
        ["--what"],
        ["--model-origins", "models.example.com"],
        ["--model-ca-file", "/nowhere"],
    ],
)
def test_wrong_arguments_end_the_start(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, {})
    assert arguments[0] in capsys.readouterr().err


def test_origins_are_a_list() -> None:
    found = read_settings(["--model-origins", "https://A.example, https://b.example:8443"], {})

    assert found.model_origins == ("https://a.example", "https://b.example:8443")
    json.dumps(found.as_fields())


def test_log_line_is_one_json_object() -> None:
    record = logging.makeLogRecord({"msg": "hello %s", "args": ("you",), "node": "n1"})
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()

    line = json.loads(JsonFormatter().format(record))

    assert (line["message"], line["node"]) == ("hello you", "n1")
    assert "ValueError: why" in line["traceback"]


@pytest.mark.parametrize("odd", ["\ud800", {1: "\ud800"}, object(), {"a": {2, 3}}, 10**30])
def test_log_line_is_json_whatever_it_is_given(odd: object) -> None:
    record = logging.makeLogRecord({"msg": "hello", "odd": odd, "node": "n1"})

    line = json.loads(JsonFormatter().format(record))

    assert (line["message"], line["node"]) == ("hello", "n1")
    assert line["odd"]


async def test_health_pages() -> None:
    because = "not yet"
    app = health.build_probes(lambda: because)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/healthz")).status == 200
        answer = await client.get("/readyz")
        assert (answer.status, await answer.text()) == (503, "not yet\n")
        because = ""
        assert (await client.get("/readyz")).status == 200
        assert (await client.get("/metrics")).status == 404


async def test_metrics_are_for_those_who_may_read_them() -> None:
    rendered = []
    async with ReviewApi(may=["/metrics"]) as api:
        app = health.build_metrics(
            Doorkeeper(api.client), Metrics(), refresh=lambda: rendered.append(1)
        )
        async with TestClient(TestServer(app)) as client:
            assert (await client.get("/metrics")).status == 401
            assert not rendered
            answer = await client.get("/metrics", headers=shown(GOOD_TOKEN))
            text = await answer.text()

    assert answer.status == 200
    assert "berthmaster_diskio_stale_drivers 0.0" in text
    assert rendered == [1]


def test_kopf_only_watches(fleet: Fleet) -> None:
    registry = kopf.OperatorRegistry()
    node_disk_devices.register(registry, fleet, Notes())
    node_disk_io_stats.register(registry, fleet)
    PolicyHandler(fleet, Notes(), lambda _: None).register(registry)

    assert len(registry._watching.get_all_handlers()) == 3
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    settings = watching.kopf_settings()
    assert not settings.posting.enabled
    assert settings.peering.standalone


def test_node_that_a_driver_names_no_more_is_forgotten(fleet: Fleet) -> None:
    """A driver that names a new node each time must not leave one behind with each."""
    for node in ("n1", "n2", "n3"):
        metadata = {"namespace": "n", "name": "d", "uid": "u"}
        manifest = {"metadata": metadata, "spec": {"nodeName": node}}
        node_disk_devices.take(fleet, manifest)
        node_disk_io_stats.take(fleet, manifest)
        assert fleet.strays == 1

    assert [state.name for state in fleet] == ["n3"]


def test_device_that_stops_naming_its_node_is_taken_from_it(fleet: Fleet) -> None:
    manifest = {"metadata": {"name": "d", "namespace": "n", "uid": "u"}}
    node_disk_devices.take(fleet, {**manifest, "spec": {"nodeName": "n1"}})
    assert fleet.known_objects("device") == {("n", "d"): "u"}

    node_disk_devices.take(fleet, manifest)

    assert not fleet.known_objects("device")
    assert fleet.find("n1") is None


def test_bad_policy_leaves_the_old_one_and_is_told(fleet: Fleet) -> None:
    notes, changed = Notes(), list[str]()
    handler = PolicyHandler(fleet, notes, changed.append)
    good: dict[str, Any] = {"metadata": {"name": "p", "uid": "u"}, "spec": {"priority": 3}}
    handler.take(good)

    handler.take({**good, "spec": {"priority": "high"}})

    assert fleet.policies["p"].spec.priority == 3
    assert notes.lines[0][1] == "BadField"
    assert "spec.priority" in notes.lines[0][2]
    handler.take(good, is_gone=True)
    assert not fleet.policies
    assert changed == ["p", "p"]
