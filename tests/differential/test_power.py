"""Our decisions by WAO's rules and by Peaks' against slow ones, on random worlds.

The slow rules are written from what upstream does, one node and one fraction at a time, and share no code
with ours. A world has the form of a decision case and goes through the case runner: what is compared begins
with objects, labels, exporters' pages and quantities as they are written.

    python -m pytest tests/differential/test_power.py
    DIFFERENTIAL_WORLDS=20000 python -m pytest tests/differential/test_power.py      for some minutes
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest

from berthmaster.cli.cases.judging import judge
from support.builders import make_container, make_node_manifest, make_pod_manifest

pytestmark = pytest.mark.timeout(3600)

Manifest = dict[str, Any]
# What a model is asked: where, by which name, and the features.
Ask = Callable[[str, str, list[float]], float | None]
Raw = dict[str, int | None]

WORLDS = int(os.environ.get("DIFFERENTIAL_WORLDS", "150"))
ERROR = None
OVERLOADED = -1
SETTLED = ("Running", "Succeeded", "Failed", "Unknown")
NO_CPU = "at least one container in the pod must have a requests.cpu or limits.cpu set"
UNITS = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)}


def quantity(text: str) -> Fraction:
    return Fraction(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else Fraction(text)


def cpu(container: Manifest, kind: str) -> Fraction:
    return quantity(container["resources"].get(kind, {}).get("cpu", "0"))


def on_node(case: Manifest, node: str) -> Iterator[Manifest]:
    return (it for it in case["cluster"]["pods"] if it["spec"].get("nodeName") == node)


def inventing(rng: Random, answers: list[Manifest]) -> Ask:
    """Return a model server that says anything, but the same to the same question; None is a failure."""

    def ask(where: str, model: str, inputs: list[float]) -> float | None:
        key = {"target": where, "model": model} if model else {"url": where}
        for it in answers:
            is_asked = key.items() <= it.items()
            if is_asked and np.allclose(it["inputs"], inputs, rtol=0, atol=1e-4):
                break
        else:
            it = {**key, "inputs": [round(value, 6) for value in inputs]}
            it |= {"watts": rng.randint(-80, 2000) / 8} if rng.random() < 0.95 else {"error": "?"}
            answers.append(it)
        watts: float | None = it.get("watts")
        return watts

    return ask


# WAO's second generation.


def need_of(pod: Manifest) -> Fraction:
    containers = pod["spec"]["containers"]
    return sum((cpu(it, "requests") or cpu(it, "limits") for it in containers), Fraction(0))


def v2_url(case: Manifest, node: str) -> str | None:
    """Return where the node's model is asked, "Fake", or None where nowhere."""
    configs = [it for it in case["cluster"]["resources"] if it["spec"]["nodeName"] == node]
    if not configs:
        return None
    predictor = configs[0]["spec"]["predictor"]
    term = predictor.get("powerConsumption", {"type": "", "endpoint": ""})
    type_, endpoint = term["type"], term["endpoint"]
    provider = predictor.get("powerConsumptionEndpointProvider")
    if provider is not None:
        found = case["metrics"]["redfishModels"].get(provider["endpoint"], {})
        if provider["type"] != "Redfish" or not {"Type", "Url", "Name", "Version"} <= set(found):
            return None
        path = f"/v2/models/{found['Name']}/versions/{found['Version']}/infer"
        type_, endpoint = found["Type"], found["Url"] + path
    if type_ == "Fake":
        return "Fake"
    named = dict.fromkeys(("models", "versions"), "")
    segments = endpoint.split("?")[0].split("/")
    for key, value in pairwise(segments):
        if key in named:
            named[key] = value
    if type_ != "V2InferenceProtocol" or not named["models"]:
        return None
    version = f"/versions/{named['versions']}" if named["versions"] else ""
    return f"{'/'.join(segments[:3])}/v2/models/{named['models']}{version}/infer"


def v2_raw(case: Manifest, node: Manifest, ask: Ask) -> int | None:
    name, config, metrics = node["metadata"]["name"], case["config"], case["metrics"]
    usages = {it["metadata"]["name"]: it["usage"]["cpu"] for it in metrics["nodeMetrics"]}
    if name not in usages:
        return ERROR
    share = Fraction(str(config["podUsageAssumption"])) or Fraction(1, 2)
    waiting = (need_of(it) for it in on_node(case, name) if it["status"]["phase"] not in SETTLED)
    before = quantity(usages[name]) + share * sum(waiting, Fraction(0))
    after = before + need_of(case["pod"])
    capacity = quantity(node["status"]["capacity"]["cpu"])
    if after > capacity:
        return OVERLOADED
    sensors = metrics["customMetrics"].get(name, {})
    url = v2_url(case, name)
    if url is None or len(sensors) < 2:
        return ERROR
    scale = 100 / capacity if config["cpuUsageFormat"] == "Percent" else 1
    air = [float(quantity(sensors[key])) for key in ("inlet_temp", "delta_p")]
    low, high = (
        3.14 if url == "Fake" else ask(url, "", [float(it * scale), *air]) for it in (before, after)
    )
    return ERROR if low is None or high is None else max(int(high - low), 0)


def v2_scores(raw: Raw, base: int) -> dict[str, int]:
    good = [it for it in raw.values() if it is not None and it != OVERLOADED]
    scores = {}
    for name, value in raw.items():
        if value is None or value == OVERLOADED:
            scores[name] = 0 if value is None else 1
        elif max(good) == min(good):
            scores[name] = base
        else:
            scores[name] = 100 - (100 - base) * (value - min(good)) // (max(good) - min(good))
    return scores


# WAO's first generation.


def tenth(value: np.float32) -> float:
    """Round to one decimal as Go does: the number has 32 bits, its product with 10 has 64."""
    return math.copysign(math.floor(abs(float(value)) * 10 + 0.5), value) / 10


def v1_features(case: Manifest, node: Manifest) -> list[float] | None:
    labels, readings = node["metadata"]["labels"], case["trace"][node["metadata"]["name"]]
    features = []
    for at, sensor in enumerate(("ambient", "cpu1", "cpu2")):
        try:
            high, low = (np.float32(labels[f"{sensor}/{end}"]) for end in ("max", "min"))
        except (KeyError, ValueError):
            return None
        if readings is None or high == low:
            return None
        features.append(tenth((np.float32(readings[at]) - low) / (high - low)))
    return features


def v1_raw(case: Manifest, node: Manifest, ask: Ask) -> int | None:
    name, metrics = node["metadata"]["name"], case["metrics"]
    (usage,) = (
        it["usage"]["cpu"] for it in metrics["nodeMetrics"] if it["metadata"]["name"] == name
    )
    used, capacity = quantity(usage), quantity(node["status"]["capacity"]["cpu"])
    own = {
        it["metadata"]["name"]: sum(quantity(part["usage"]["cpu"]) for part in it["containers"])
        for it in metrics["podMetrics"]
    }
    for pod in on_node(case, name):
        # The scheduler's own snapshot has no finished pods.
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            continue
        assumed = Fraction(str(metrics["recentPodCPU"].get(pod["metadata"]["name"], 0)))
        seen = own.get(pod["metadata"]["name"], 0)
        used += assumed - seen if seen < assumed / 2 else 0
    first = case["pod"]["spec"]["containers"][0]
    request, limit = cpu(first, "requests"), cpu(first, "limits")
    features = v1_features(case, node)
    labels = node["metadata"]["labels"]
    where = [labels.get(f"tensorflow/{key}") for key in ("host", "port", "name")]
    if not (request or limit) or used + limit > capacity or features is None or None in where:
        return ERROR
    after = used + (request or limit * Fraction(85, 100))
    host, port, model = where
    low, high = (
        ask(f"{host}:{port}", str(model), [tenth(np.float32(float(it / capacity))), *features])
        for it in (used, after)
    )
    if low is None or high is None:
        return ERROR
    watts = int(np.float32(high) - np.float32(low))
    return watts if watts >= 0 else ERROR


def v1_scores(raw: Raw) -> dict[str, int]:
    good = [it for it in raw.values() if it is not None]
    span = max(good, default=0) - min(good, default=0)
    return {
        name: 0 if it is None else 100 - 100 * (it - min(good)) // span if span else 10
        for name, it in raw.items()
    }


# Peaks.


def peaks_raw(case: Manifest, node: Manifest) -> int:
    name, config = node["metadata"]["name"], case["config"]
    watched = case["metrics"]["loadWatcher"].get(name, ())
    percents = [
        it["value"]
        for it in watched
        if it["type"] == "CPU" and it["operator"] in ("Average", "Latest")
    ]
    model = config["nodePowerModel"].get(name)
    requested = sum((cpu(it, "requests") for it in case["pod"]["spec"]["containers"]), Fraction(0))
    if not percents or model is None:
        return 0
    capacity = quantity(node["status"]["capacity"]["cpu"])
    after = percents[0] + 100 * requested / capacity
    if after > 100:
        return 0
    rise = math.exp(model["k2"] * float(after)) - math.exp(model["k2"] * percents[0])
    return int(model["k1"] * rise * 1e15)


def peaks_scores(raw: Raw) -> dict[str, int]:
    costs = {name: it or 0 for name, it in raw.items()}
    low, high = min(costs.values()), max(costs.values())
    if low == high:
        return dict.fromkeys(costs, 100 if low else 0)
    return {name: 100 - 100 * (it - low) // (high - low) for name, it in costs.items()}


# Worlds.


def make_pod(rng: Random, name: str, node: str = "") -> Manifest:
    amounts = ["0", "100m", "0.7", "1", "1500m", "2", "2500000u", "4"]
    containers = [
        make_container(
            f"c{at}",
            requests={"cpu": rng.choice(amounts)} if rng.random() < 0.7 else {},
            limits={"cpu": rng.choice(amounts)} if rng.random() < 0.5 else {},
        )
        for at in range(rng.choice([1, 1, 2, 3]))
    ]
    phase = rng.choice([*SETTLED, "Pending", "Pending"])
    pod = make_pod_manifest(name, node=node, phase=phase, containers=containers)
    # Cases know pods by name.
    del pod["metadata"]["uid"]
    return pod


def make_world(rng: Random, config: Manifest) -> Manifest:
    """Return a case without what one rule alone needs: some nodes, pods on them, and one pod more."""
    names = [f"n{at}" for at in range(rng.randint(1, 5))]
    nodes = [make_node_manifest(it, cpu=rng.choice(["2", "7500m", "8", "48"])) for it in names]
    return {
        "config": config,
        "cluster": {
            "nodes": nodes,
            "pods": [make_pod(rng, f"p{at}", rng.choice(names)) for at in range(rng.randint(0, 5))],
            "resources": [],
        },
        "metrics": {"now": "2026-01-01T00:00:05Z"},
        "pod": make_pod(rng, "incoming"),
        # The defects of upstream included.
        "quirk": "all",
    }


def usage_metrics(rng: Random, name: str, cores: Fraction) -> Manifest:
    nanocores = round(max(cores, Fraction(0)) * 10**9)
    spellings = [f"{nanocores}n"]
    spellings += [f"{nanocores // 10**6}m"] if nanocores % 10**6 == 0 else []
    usage = {"cpu": rng.choice(spellings)}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "timestamp": "2026-01-01T00:00:00Z",
        "usage": usage,
        "containers": [{"name": "c0", "usage": usage}],
    }


def usages_of(rng: Random, case: Manifest, reserved: Callable[[str], Fraction]) -> list[Manifest]:
    """Return NodeMetrics, often so that the pod just fits or just does not."""
    found = []
    for node in case["cluster"]["nodes"]:
        capacity, name = quantity(node["status"]["capacity"]["cpu"]), node["metadata"]["name"]
        room = capacity - reserved(name)
        cores = rng.choice([room, room - Fraction(1, 10**6), room + Fraction(1, 10**6)])
        if rng.random() < 0.7 or cores < 0:
            cores = capacity * rng.randint(0, 40) / 80
        metrics = usage_metrics(rng, name, cores)
        found.append({key: it for key, it in metrics.items() if key != "containers"})
    return found


def make_v2(rng: Random) -> tuple[Manifest, Raw]:
    config: Manifest = {"plugin": "MinimizePower", "generation": "v2"} | {
        "podUsageAssumption": rng.choice([0, 0.25, 0.3, 0.8, 1]),
        "cpuUsageFormat": rng.choice(["Raw", "Percent"]),
        "scoreBase": rng.choice([20, 50]),
    }
    case = make_world(rng, config)
    share = Fraction(str(config["podUsageAssumption"])) or Fraction(1, 2)

    def reserved(node: str) -> Fraction:
        waiting = (it for it in on_node(case, node) if it["status"]["phase"] not in SETTLED)
        return need_of(case["pod"]) + share * sum(map(need_of, waiting), Fraction(0))

    paths = ["v2/models/m/versions/3/infer"] * 6 + ["v2/models/m", "predict"]
    paths += ["a/models/x/models/m?q=1", "v2/models/m/versions/"]
    for at, node in enumerate(case["cluster"]["nodes"]):
        predictor: Manifest = {}
        if rng.random() < 0.9:
            type_ = rng.choice(["V2InferenceProtocol"] * 8 + ["Fake", "v2inferenceprotocol", ""])
            endpoint = f"http://{rng.choice(['shared', f'own{at}'])}:8080/{rng.choice(paths)}"
            predictor["powerConsumption"] = {"type": type_, "endpoint": endpoint}
        if rng.random() < 0.2:
            provider = {"type": "Redfish", "endpoint": f"https://bmc{at}"}
            predictor["powerConsumptionEndpointProvider"] = provider
        if rng.random() < 0.95:
            spec = {"nodeName": node["metadata"]["name"], "predictor": predictor}
            metadata = {"name": f"c{at}", "namespace": "wao-system"}
            resource = {"kind": "NodeConfig", "metadata": metadata, "spec": spec}
            case["cluster"]["resources"].append(resource)
    model = {"Type": "V2InferenceProtocol", "Url": "http://found", "Name": "m", "Version": "1"}
    names = [it["metadata"]["name"] for it in case["cluster"]["nodes"]]
    case["metrics"] |= {
        "nodeMetrics": [it for it in usages_of(rng, case, reserved) if rng.random() < 0.95],
        "customMetrics": {
            it: {"inlet_temp": rng.choice(["22", "24500m", "0"]), "delta_p": "12m"}
            for it in names
            if rng.random() < 0.95
        },
        "redfishModels": {
            f"https://bmc{at}": model for at in range(len(names)) if rng.random() < 0.8
        },
        "predictor": [],
    }
    ask = inventing(rng, case["metrics"]["predictor"])
    raw = {it["metadata"]["name"]: v2_raw(case, it, ask) for it in case["cluster"]["nodes"]}
    case["expect"] = {"scores": v2_scores(raw, config["scoreBase"])}
    if not need_of(case["pod"]):
        case["expect"] = {
            "feasible": dict.fromkeys(raw, False),
            "reasons": dict.fromkeys(raw, NO_CPU),
        }
    return case, raw


def make_page(rng: Random, readings: list[float]) -> str:
    """Return an ipmi_exporter's page in one of the forms that the format allows."""
    names = dict(zip(("Ambient", "CPU1", "CPU2"), readings, strict=True))
    form = rng.choice(
        ['{{id="1",name="{}"}} {}', '{{ name = "{}" , zone="a}}b"}}  {:e} 1700000000000']
    )
    lines = [f"ipmi_temperature_celsius{form.format(*it)}" for it in names.items()]
    lines += [
        'ipmi_temperature_celsius{id="9",name="CPU1 Core Rem"} 99',
        'ipmi_fan_speed_rpm{name="CPU1"} 1',
    ]
    rng.shuffle(lines)
    return "\n".join(["# TYPE ipmi_temperature_celsius gauge", *lines, ""])


def make_v1(rng: Random) -> tuple[Manifest, Raw]:
    case = make_world(rng, {"plugin": "MinimizePower", "generation": "v1"})
    limit = cpu(case["pod"]["spec"]["containers"][0], "limits")
    pods = [it["metadata"]["name"] for it in case["cluster"]["pods"]]
    metrics = case["metrics"] | {
        "nodeMetrics": usages_of(rng, case, lambda _: limit),
        "podMetrics": [
            usage_metrics(rng, it, Fraction(rng.randint(0, 8), 8))
            for it in pods
            if rng.random() < 0.7
        ],
        "recentPodCPU": {it: rng.choice([0.425, 0.5, 1.7]) for it in pods if rng.random() < 0.5},
    }
    metrics |= {"ipmi": {}, "ipmiLast": {}, "predictor": []}
    case |= {"metrics": metrics, "trace": {}}
    for at, node in enumerate(case["cluster"]["nodes"]):
        name, address = node["metadata"]["name"], f"10.0.0.{at}"
        labels = {"ambient/max": "36.5", "ambient/min": "11.5", "cpu1/max": "42", "cpu1/min": "24"}
        labels |= {"cpu2/max": "23", "cpu2/min": "49", "tensorflow/host": f"m{at}"}
        labels |= {"tensorflow/port": "8500", "tensorflow/name": "konohana"}
        if rng.random() < 0.1:
            labels[rng.choice(list(labels)[:6])] = rng.choice(["24", "42C", "23", "11.5"])
        if rng.random() < 0.1:
            del labels[rng.choice(list(labels))]
        node["metadata"]["labels"] = labels
        node["status"]["addresses"] = [
            {"type": "Hostname", "address": "9.9.9.9"},
            {"type": "InternalIP", "address": address},
        ]
        now, last = ([rng.randint(40, 200) / 4 for _ in range(3)] for _ in range(2))
        age, is_up = rng.choice([None, 14, 15, 600]), rng.random() < 0.9
        metrics["ipmi"][f"{address}:9290"] = make_page(rng, now) if is_up else {"error": "refused"}
        if age is not None:
            metrics["ipmiLast"][name] = {
                **dict(zip(("ambient", "cpu1", "cpu2"), last, strict=True)),
                "ageMinutes": age,
            }
        is_fetched = is_up and (age is None or age >= 15)
        case["trace"][name] = now if is_fetched else last if age is not None else None
    ask = inventing(rng, metrics["predictor"])
    raw = {it["metadata"]["name"]: v1_raw(case, it, ask) for it in case["cluster"]["nodes"]}
    case["expect"] = {"scores": v1_scores(raw)}
    return case, raw


def make_peaks(rng: Random) -> tuple[Manifest, Raw]:
    case = make_world(rng, {"plugin": "Peaks"})
    names = [it["metadata"]["name"] for it in case["cluster"]["nodes"]]
    case["config"]["nodePowerModel"] = {
        it: {"k0": 100, "k1": rng.choice([-91.5, -50.0]), "k2": rng.choice([-0.072, -0.02])}
        for it in names
        if rng.random() < 0.9
    }
    case["metrics"]["loadWatcher"] = {
        it: [
            {
                "type": rng.choice(["CPU"] * 9 + ["Memory"]),
                "operator": operator,
                "value": rng.randint(0, 100),
            }
            for operator in ("Std", rng.choice(["Average", "Latest"]))
        ]
        for it in names
        if rng.random() < 0.9
    }
    raw: Raw = {it["metadata"]["name"]: peaks_raw(case, it) for it in case["cluster"]["nodes"]}
    case["expect"] = {"scores": peaks_scores(raw)}
    return case, raw


@pytest.mark.parametrize("make", [make_v1, make_v2, make_peaks], ids=["WAOv1", "WAOv2", "Peaks"])
def test_random_worlds(make: Callable[[Random], tuple[Manifest, Raw]]) -> None:
    worlds = [(seed, *make(Random(seed))) for seed in range(WORLDS)]  # noqa: S311

    differing = {seed: found for seed, case, _ in worlds if (found := judge(case))}

    assert differing == {}
    # The worlds are worth comparing: in many of them nodes differ by what the pod costs.
    telling = [raw for _, _, raw in worlds if len({it for it in raw.values() if it and it > 0}) > 1]
    assert len(telling) > WORLDS / 20
