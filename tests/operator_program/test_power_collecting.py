"""From configuration and servers to the power part of an inventory, and what is said where they fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from berthmaster.api.inventory import NodeInventoryStatus, PodUsage, PowerLink
from berthmaster.api.power import PowerNode
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import CpuUsageFormat
from berthmaster_operator.handlers import node_configs, power_models
from berthmaster_operator.power.book import Source
from berthmaster_operator.power.fetching import Fetcher
from berthmaster_operator.power.pod_usages import AssumedPod
from operator_program.power_worlds import GROUP, IPMI, PowerWorld, v1_labels
from support.meters import Meters, serve_meters

IDRAC = "/redfish/v1/Chassis/System.Embedded.1/Sensors/SystemBoardInletTemp"
SSM = "/redfish/v1/Chassis/1/Thermal"
INFER = "/v2/models/m/versions/v1/infer"


class World(PowerWorld):
    """With servers that play the node's meters and its model."""

    def __init__(self, meters: Meters, fetcher: Fetcher) -> None:
        super().__init__(fetcher)
        self.meters = meters


@pytest.fixture
async def world() -> AsyncIterator[World]:
    fetcher = Fetcher(timeout_s=2.0)
    async with serve_meters() as meters:
        yield World(meters, fetcher)
    await fetcher.close()


def v2(world: World, **changes: Any) -> dict[str, Any]:
    return {
        "powerConsumption": {
            "type": "V2InferenceProtocol",
            "endpoint": f"{world.meters.origin}{INFER}",
            **changes,
        }
    }


def infer(_request: object, body: Any) -> Any:
    """Predict 100 W, 10 W for each unit of CPU and 1 W for each degree."""
    rows = body["inputs"][0]["data"]
    return {"outputs": [{"data": [100 + 10 * cpu + inlet for cpu, inlet, _ in rows]}]}


async def test_v2_curve_comes_from_the_model_server(world: World) -> None:
    world.meters.answers = {
        IDRAC: {"Reading": 22},
        "/api/sensor/by_nodename/n1": {"code": 200, "sensor": [{"pressure": 0.01}]},
        INFER: infer,
    }
    world.configure(
        inlet={
            "type": "Redfish",
            "endpoint": world.meters.origin,
            "basicAuthSecret": {"name": "bmc"},
        },
        delta={"type": "DifferentialPressureAPI", "endpoint": world.meters.origin},
        **v2(world),
    )
    world.use(2)

    await world.turn()

    built = world.built()
    assert built.power is not None
    assert built.power.link is PowerLink.MODEL_SERVER
    assert built.power.curve is not None
    assert built.power.curve.watts[0] == 122
    assert built.power.curve.watts[-1] == 202
    assert built.power.values == {"deltaP": 0.01, "inlet": 22.0}
    assert [user for path, user, _ in world.meters.asked if path == IDRAC] == ["Basic dTpw"]
    assert built.power_now == "~142W ModelServer"
    wire = NodeInventoryStatus(power=built.power).to_wire()
    assert NodeInventoryStatus.model_validate(json.loads(json.dumps(wire))).power == built.power


async def test_percent_format_and_answers_are_asked_for_once(world: World) -> None:
    world.meters.answers = {INFER: infer}
    world.book.configure(CpuUsageFormat.PERCENT, 90)
    world.configure(**v2(world))
    world.use(2)

    await world.turn()
    asked = [body for path, _, body in world.meters.asked if path == INFER]
    await world.turn(20)

    assert asked[0]["inputs"][0]["data"][-1][0] == 100
    assert len([path for path, _, _ in world.meters.asked if path == INFER]) == len(asked) == 1


async def test_warmer_air_is_another_question(world: World) -> None:
    world.meters.answers = {IDRAC: {"Reading": 22}, INFER: infer}
    world.configure(inlet={"type": "Redfish", "endpoint": world.meters.origin}, **v2(world))
    world.use(2)
    await world.turn()
    world.meters.answers[IDRAC] = {"Reading": 25}

    await world.turn(16)

    power = world.built().power
    assert power is not None
    assert power.curve is not None
    assert power.curve.watts[0] == 125


async def test_probe_that_worked_is_remembered(world: World) -> None:
    thermal = {"Temperatures": [{"Name": "System Temp", "ReadingCelsius": 21.5}]}
    world.meters.answers = {SSM: thermal}
    world.configure(inlet={"type": "Redfish", "endpoint": world.meters.origin})

    def probes() -> int:
        return sum(not path.endswith("/Power") for path, _, _ in world.meters.asked)

    await world.turn()
    first = probes()
    await world.turn(16)

    power = world.built().power
    assert power is not None
    assert power.values["inlet"] == 21.5
    assert (first, probes() - first) == (3, 1)


async def test_provider_names_the_model(world: World) -> None:
    model = {
        "Type": "V2InferenceProtocol",
        "Url": world.meters.origin,
        "Name": "m",
        "Version": "v1",
    }
    world.meters.answers = {
        "/redfish/v1/Systems": {"Members": [{"@odata.id": "/redfish/v1/Systems/S1"}]},
        "/redfish/v1/Systems/S1/MachineLearningModel": {"PowerConsumptionModel": model},
        INFER: infer,
    }
    provider = {"type": "Redfish", "endpoint": world.meters.origin}
    world.configure(powerConsumptionEndpointProvider=provider)
    world.use(1)

    await world.turn()

    power = world.built().power
    assert power is not None
    assert power.model == f"m v1 at {world.meters.origin}"


async def test_v1_reads_ipmi_and_asks_by_rest(world: World, monkeypatch: Any) -> None:
    port = world.meters.origin.rpartition(":")[2]
    monkeypatch.setattr("berthmaster_operator.power.book._IPMI_PORT", port)
    world.meters.answers = {
        "/metrics": IPMI,
        "/v1/models/konohana:predict": lambda _request, body: {
            "outputs": [[100 + 100 * row[0]] for row in body["inputs"]]
        },
    }
    others = {"tensorflow/port": port, "berthmaster.io/tensorflow-scheme": "http"}
    world.see_node(**v1_labels(**others))
    world.use(4)

    await world.turn()
    world.now_s += 7200

    built = world.built()
    assert built.power is not None
    assert built.power.values["ambient"] == 24
    # Hours later the answer is too old, v1's temperatures are not.
    assert built.power.curve is None
    await world.turn()
    power = world.built().power
    assert power is not None
    assert power.curve is not None
    assert power.curve.watts[5] == 150


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"outputs": [{"data": [float("nan")] * 26}]}, "none of its watts is plausible"),
        ({"outputs": [{"data": [-5.0] * 26}]}, "none of its watts is plausible"),
        ({"outputs": [{"data": [1.0]}]}, "found 1 numbers, expected"),
        ({"outputs": []}, "no outputs in it"),
        (b"x" * 10_000_000, "longer than"),
        (None, "status 404"),
    ],
    ids=["nan", "negative", "too-few", "empty", "ten-megabytes", "dead"],
)
async def test_bad_model_server_falls_back_to_numbers(
    world: World, answer: Any, words: str
) -> None:
    if answer is not None:
        text = answer if isinstance(answer, bytes) else json.dumps(answer)
        world.meters.answers = {INFER: text}
    spec = {"exponential": {"k0": 300, "k1": -200, "k2": -0.05}}
    power_models.take(world.book, {"metadata": {"name": "r650"}, "spec": spec})
    world.configure(**v2(world))
    world.use(1)

    await world.turn()

    built = world.built()
    assert built.power is not None
    assert built.power.link is PowerLink.MODEL
    assert built.power.curve is not None
    assert built.power.curve.watts[0] == 100
    assert words in world.message()
    assert "watts by PowerModel r650" in world.message()


async def test_failing_server_is_asked_less_and_less(world: World) -> None:
    world.configure(**v2(world))
    asked = []
    for _ in range(60):
        await world.turn(16)
        asked.append(len([1 for path, _, _ in world.meters.asked if path == INFER]))

    assert 3 <= asked[-1] <= 25


async def test_secret_that_cannot_be_read_is_not_left_out(world: World) -> None:
    inlet = {
        "type": "Redfish",
        "endpoint": world.meters.origin,
        "basicAuthSecret": {"name": "other"},
    }
    world.meters.answers = {IDRAC: {"Reading": 22}}
    world.configure(inlet=inlet)

    await world.turn()

    assert "Secret wao-system/other cannot be read" in world.message()
    assert world.meters.asked == []


@pytest.mark.parametrize("value", [float("nan"), 900, None, "warm", True])
async def test_implausible_inlet_is_none(world: World, value: object) -> None:
    world.meters.answers = {IDRAC: json.dumps({"Reading": value})}
    world.configure(inlet={"type": "Redfish", "endpoint": world.meters.origin})

    await world.turn()

    power = world.built().power
    assert power is not None
    assert "inlet" not in power.values
    assert "no inlet temperature of any known vendor" in world.message()


async def test_stale_usage_is_said_and_left_out(world: World) -> None:
    world.configure()
    world.use(2)

    assert world.built().power_now is not None
    world.now_s += 91

    built, _ = world.book.build("n1", now_s=world.now_s)
    assert built.power is not None
    assert built.power.usage is None
    assert built.condition is not None
    assert (built.condition.status, built.condition.reason) == ("False", "NoUsage")
    assert "the CPU usage is older than 90 s" in built.condition.message


async def test_usage_from_the_future_is_not_believed(world: World) -> None:
    world.configure()
    world.use(2, sampled_s=world.now_s + 3600)

    power = world.built().power
    assert power is not None
    assert power.usage is None


async def test_usage_is_news_when_it_moves_or_shows_a_pod(world: World) -> None:
    world.configure()
    world.use(2)
    world.dirty.clear()

    world.now_s += 15
    world.use(2.01)
    assert world.dirty == []

    world.began = {world.now_s}
    world.now_s += 30
    world.use(2.02)
    assert world.dirty == ["n1"]

    world.now_s += 15
    world.use(3)
    assert world.dirty == ["n1", "n1"]


async def test_usage_of_a_pod_that_v1_placed_is_asked_for_until_it_is_known(world: World) -> None:
    world.configure()
    pods = [
        AssumedPod(uid=it, namespace="ns", name=it, node="n1", assumed=2 * NANO)
        for it in ("gone", "odd", "busy")
    ]
    for pod in pods:
        world.book.pods.see(pod)
    found = {
        "timestamp": "1970-01-12T13:46:40Z",
        "window": "15s",
        "containers": [{"name": "c", "usage": {"cpu": "600m"}}, {"usage": {"cpu": "700m"}}],
    }
    world.secrets.pods = {pods[1].metrics_path: {"containers": 3}, pods[2].metrics_path: found}

    await world.collector.take_pod_metrics()

    power = world.built().power
    assert power is not None
    assert power.pod_usage == (PodUsage(uid="busy", usage=2 * NANO),)
    assert [it.uid for it in world.book.pods.next(9)] == ["gone", "odd"]


async def test_metrics_are_read_page_by_page(world: World) -> None:
    item = {
        "metadata": {"name": "n1"},
        "usage": {"cpu": "1500m"},
        "timestamp": "1970-01-12T13:46:40Z",
        "window": "15s",
    }
    world.configure()
    world.secrets.pages = [
        json.dumps({"items": [{"metadata": 3}, {}]}).encode(),
        json.dumps({"items": [item]}).encode(),
    ]

    await world.collector.take_metrics()

    power = world.built().power
    assert power is not None
    assert power.usage == 1_500_000_000


async def test_templates_make_configurations_and_stored_ones_win(world: World) -> None:
    template = {
        "metadata": {"name": "t", "namespace": "wao-system"},
        "spec": {
            "nodeSelector": {"matchLabels": {"pool": "a"}},
            "template": {
                "metricsCollector": {
                    "inletTemp": {"type": "Redfish", "endpoint": "http://{{ .Hostnam }}"}
                },
                "predictor": {"powerConsumption": {"type": "Fake", "endpoint": ""}},
            },
        },
    }
    world.see_node(pool="a")
    node_configs.take_template(world.book, GROUP, template)

    assert ".Hostnam does not exist; it stays as written" in world.message()

    world.configure(powerConsumption={"type": "Fake", "endpoint": "x"})
    terms = world.book.terms_of("n1")
    assert terms is not None
    assert terms.inlet_temp.type == "Fake"

    node_configs.take_config(
        world.book, GROUP, {"metadata": {"name": "c", "namespace": "wao-system"}}, is_gone=True
    )
    node_configs.take_template(world.book, GROUP, template, is_gone=True)
    assert world.built().power is None


async def test_measured_watts_make_a_line_where_nothing_else_is(world: World) -> None:
    world.configure(powerConsumption={"type": "", "endpoint": ""})
    job = next(it for it in world.book.jobs() if it.source is Source.INLET)
    for step in range(14):
        world.use(step / 4)
        world.book.take_readings(job, {"watts": 100 + 10 * step / 4}, now_s=world.now_s)
        world.now_s += 15
    world.use(2)

    built = world.built()

    assert built.power is not None
    assert built.power.link is PowerLink.MEASURED
    assert built.power.curve is not None
    assert built.power.curve.watts[0] == pytest.approx(100, abs=2)


@pytest.mark.parametrize(
    ("answer", "watts"),
    [
        ({"PowerControl": [{"PowerConsumedWatts": 142}]}, 142),
        ({"PowerControl": [{"PowerConsumedWatts": -3}]}, None),
        ({"PowerControl": 3}, None),
    ],
)
async def test_watts_of_a_bmc_are_read_where_no_server_tells_them(
    world: World, answer: Any, watts: float | None
) -> None:
    path = "/redfish/v1/Chassis/System.Embedded.1/Power"
    world.meters.answers = {IDRAC: {"Reading": 22}, path: answer, INFER: infer}
    inlet = {"type": "Redfish", "endpoint": world.meters.origin}
    world.configure(inlet=inlet)
    await world.turn()

    power = world.built().power
    assert power is not None
    assert power.values.get("watts") == watts
    assert power.values["inlet"] == 22

    world.meters.asked.clear()
    world.configure(inlet=inlet, **v2(world))
    await world.turn()
    assert path not in [asked for asked, _, _ in world.meters.asked]


async def test_a_turn_starts_a_bounded_number_of_jobs(world: World) -> None:
    fake = {"type": "Fake", "endpoint": ""}
    for index in range(100):
        name = f"m{index}"
        world.book.see_node(PowerNode(name=name, capacity_nanocores=8 * NANO))
        spec = {
            "nodeName": name,
            "metricsCollector": {"inletTemp": fake, "deltaP": fake},
            "predictor": {},
        }
        metadata = {"name": name, "namespace": "wao-system"}
        node_configs.take_config(world.book, GROUP, {"metadata": metadata, "spec": spec})
    world.collector.start_due()
    world.now_s += 60

    assert world.book.round_s == 7.5
    assert len(world.collector.start_due()) == 40
    assert len(world.collector.start_due()) == 40


async def test_only_the_changed_node_is_asked_anew(world: World) -> None:
    for name in ("m0", "m1"):
        world.book.see_node(PowerNode(name=name, capacity_nanocores=8 * NANO))
        fake = {"type": "Fake", "endpoint": ""}
        spec = {
            "nodeName": name,
            "metricsCollector": {"inletTemp": fake, "deltaP": fake},
            "predictor": {"powerConsumption": fake},
        }
        metadata = {"name": name, "namespace": "wao-system"}
        node_configs.take_config(world.book, GROUP, {"metadata": metadata, "spec": spec})
    await world.turn()

    world.book.see_node(PowerNode(name="m0", capacity_nanocores=16 * NANO))

    assert [(it.job.node, it.job.source) for it in world.collector.start_due()] == [
        ("m0", Source.MODEL)
    ]
