"""Decision cases of power: WAO's configuration, metrics and model answers of a case, as the operator has them.

What a collector would have read stands in `metrics`. A model server is played from the listed answers: to
an input that is not listed it gives none. CPU usages of listed inputs are asked for beside the usual grid,
so that a curve goes through each answer that upstream was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from berthmaster.api.inventory import NodeInventoryStatus, PowerLink, Reading
from berthmaster.api.ipmi import read_page
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.power import (
    CpuUsage,
    EndpointTerm,
    NodeConfig,
    PowerNode,
    label_config_of,
    node_config_from_manifest,
    power_node_from_manifest,
    template_from_manifest,
    usage_from_metrics,
)
from berthmaster.api.power_models import PowerModel, PowerModelSpec, choose_model
from berthmaster.api.quantities import NANO, parse_quantity
from berthmaster.api.settings.power import CpuUsageFormat, PowerRule, PowerSettings
from berthmaster.cli.cases.worlds import Case, CaseWorld, as_read, check_keys
from berthmaster.concerns.power import CONCERN
from berthmaster.concerns.power.inventory import Candidate, build_power
from berthmaster.concerns.power.models import curve_of_model
from berthmaster.concerns.power.questions import (
    FAKE_WATTS,
    Protocol,
    Question,
    UnaskableError,
    ask_by_labels,
    ask_by_term,
    curve_of,
    needs_temperatures,
    ref_of_term,
    term_of_redfish,
)
from berthmaster.concerns.power.templates import render_template

PLUGINS = ("MinimizePower", "NodeConfigTemplate", "Peaks")
# v1's constants; a case with others would not be upstream's.
_V1 = {
    "recentPodUsageThreshold": 0.5,
    "limitFraction": 0.85,
    "tieScore": 10,
    "temperatureRefreshMinutes": 15,
}
# Fetched values live shorter than any case lasts.
_CACHES = {"metricsCacheTTL", "predictorCacheTTL"}
_SETTINGS = {"podUsageAssumption", "cpuUsageFormat", "scoreBase"}
_CONFIG_KEYS = {"plugin", "generation", "nodePowerModel", *_V1, *_CACHES, *_SETTINGS}
_METRICS_KEYS = {
    *("now", "nodeMetrics", "podMetrics", "customMetrics", "ipmi", "ipmiLast"),
    *("recentPodCPU", "predictor", "redfishModels", "loadWatcher"),
}
_RULES = {"v1": PowerRule.WAO_V1, "v2": PowerRule.WAO_V2}
_SENSORS = {"inlet_temp": "inlet", "delta_p": "deltaP"}
_SAME_INPUT = 1e-4
_PORT = 9290

Metrics = Mapping[str, Any]


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    config, cluster, metrics = case["config"], case["cluster"], case.get("metrics") or {}
    check_keys(config, _CONFIG_KEYS, "config")
    check_keys(metrics, _METRICS_KEYS, "metrics")
    for key, value in _V1.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.{key}: expected {value}, found {config[key]}")
    peaks = config["plugin"] == "Peaks"
    settings = PowerSettings.model_validate(
        {
            **{key: config[key] for key in _SETTINGS if key in config},
            "rule": PowerRule.PEAKS if peaks else _RULES[config["generation"]],
            "strictUpstream": "quirk" in case,
        }
    )
    nodes = [power_node_from_manifest(it) for it in cluster["nodes"]]
    configs, made = _node_configs(cluster["resources"], nodes)
    usages = _usages(metrics.get("nodeMetrics") or ())
    allocated = _assumed(metrics, cluster)
    inventories = {}
    for node in nodes:
        readings = _readings(node, metrics, settings.rule)
        usage = usages.get(node.name)
        if peaks:
            candidate = _peaks_candidate(node, config.get("nodePowerModel") or {})
            usage = _watched(node, metrics.get("loadWatcher") or {})
        else:
            candidate = _asked(node, configs, readings, metrics, settings)
        built = build_power(
            usage=usage,
            readings=readings,
            candidates=[candidate],
            pod_usage=_pod_usages(metrics.get("podMetrics") or ()),
        )
        status = NodeInventoryStatus(power=built.power)
        inventories[node.name] = as_read(node.name, status)
    return CaseWorld(
        concern=CONCERN,
        settings=ConcernSettings(power=settings),
        inventories=inventories,
        allocated=allocated,
        made=made,
    )


def _node_configs(
    resources: Iterable[Mapping[str, Any]], nodes: Sequence[PowerNode]
) -> tuple[dict[str, NodeConfig], list[Mapping[str, Any]]]:
    """Return the NodeConfig that counts for each node, and all that there are with those of templates."""
    found: list[NodeConfig] = []
    made: list[NodeConfig] = []
    for resource in resources:
        if resource["kind"] == "NodeConfig":
            found.append(node_config_from_manifest(resource))
        elif resource["kind"] == "NodeConfigTemplate":
            made += render_template(template_from_manifest(resource), nodes)[0]
        elif resource["kind"] != "Secret":
            raise ValueError(f"cluster.resources: unknown kind {resource['kind']}")
    by_node: dict[str, NodeConfig] = {}
    for config in sorted([*found, *made], key=lambda it: it.order):
        by_node.setdefault(config.node_name, config)
    # A stored object of the same name is what the controller would write over.
    names_made = {(it.namespace, it.name) for it in made}
    kept = [it for it in found if (it.namespace, it.name) not in names_made]
    return by_node, [config.to_manifest() for config in (*made, *kept)]


def _usages(manifests: Iterable[Mapping[str, Any]]) -> dict[str, CpuUsage]:
    read = {it["metadata"]["name"]: usage_from_metrics(it) for it in manifests}
    return {name: usage for name, usage in read.items() if usage is not None}


def _pod_usages(manifests: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    read = {
        f"{it['metadata']['namespace']}/{it['metadata']['name']}": usage_from_metrics(it)
        for it in manifests
    }
    return {uid: usage.nanocores for uid, usage in read.items() if usage is not None}


def _assumed(
    metrics: Metrics, cluster: Mapping[str, Any]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return what v1 remembers of pods, which knows them by name alone, as what they were given."""
    remembered = metrics.get("recentPodCPU") or {}
    return {
        (it["metadata"].get("namespace", ""), it["metadata"]["name"]): {
            "assumed": str(remembered[it["metadata"]["name"]])
        }
        for it in cluster.get("pods", ())
        if it["metadata"]["name"] in remembered
    }


def _readings(node: PowerNode, metrics: Metrics, rule: PowerRule) -> dict[str, Reading]:
    now_s = datetime.fromisoformat(metrics["now"]).timestamp() if "now" in metrics else 0.0
    if rule is not PowerRule.WAO_V1:
        served = (metrics.get("customMetrics") or {}).get(node.name) or {}
        return {
            _SENSORS[key]: Reading(value=float(parse_quantity(value)), sampled_s=now_s)
            for key, value in served.items()
        }
    last = (metrics.get("ipmiLast") or {}).get(node.name)
    if last is None or needs_temperatures(last["ageMinutes"] * 60):
        text = (metrics.get("ipmi") or {}).get(f"{node.address}:{_PORT}")
        found = read_page(text).v1_temperatures() if isinstance(text, str) else None
        if found is not None:
            return {key: Reading(value=it, sampled_s=now_s) for key, it in found.items()}
    if last is None:
        return {}
    sampled_s = now_s - last["ageMinutes"] * 60
    return {
        key: Reading(value=it, sampled_s=sampled_s)
        for key, it in last.items()
        if key != "ageMinutes"
    }


def _asked(
    node: PowerNode,
    configs: Mapping[str, NodeConfig],
    readings: Mapping[str, Reading],
    metrics: Metrics,
    settings: PowerSettings,
) -> Candidate:
    answers = metrics.get("predictor") or ()
    try:
        if settings.rule is PowerRule.WAO_V1:
            labels = label_config_of(node.labels)
            listed_tenths = [round(it["inputs"][0] * 10) for it in answers]
            question = ask_by_labels(
                labels, readings, node.capacity_nanocores, more_tenths=listed_tenths
            )
        elif node.name not in configs:
            raise UnaskableError("no NodeConfig names this node")
        else:
            term = _power_term(configs[node.name], metrics.get("redfishModels") or {})
            used = settings.cpu_usage_format or CpuUsageFormat.RAW
            listed = _listed_cores(term, answers, node.capacity_nanocores, used)
            question = ask_by_term(
                term, readings, node.capacity_nanocores, usage_format=used, more_cores=listed
            )
    except UnaskableError as error:
        return Candidate(link=PowerLink.MODEL_SERVER, problem=str(error))
    watts = [_answer(question, inputs, answers) for inputs in question.inputs]
    return Candidate(
        link=PowerLink.MODEL_SERVER,
        model=str(question.ref),
        curve=curve_of(question.cores, watts),
    )


def _power_term(config: NodeConfig, models: Mapping[str, Any]) -> EndpointTerm:
    """Return where the model is asked: what the provider says, if there is one, else what is written."""
    provider, term = config.terms.provider, config.terms.power
    if provider is None:
        return term or EndpointTerm()
    if provider.type == "Fake":
        return EndpointTerm(type="Fake")
    if provider.type != "Redfish":
        raise UnaskableError(f"unknown endpoint type: {provider.type}")
    return term_of_redfish(models.get(provider.endpoint), term)


def _listed_cores(
    term: EndpointTerm,
    answers: Iterable[Mapping[str, Any]],
    capacity_nanocores: int,
    usage_format: CpuUsageFormat,
) -> list[float]:
    ref = ref_of_term(term)
    percent = usage_format is CpuUsageFormat.PERCENT
    scale = capacity_nanocores / NANO / 100 if percent else 1.0
    return [it["inputs"][0] * scale for it in answers if it.get("url") == ref.url]


def _answer(
    question: Question, inputs: Sequence[float], answers: Iterable[Mapping[str, Any]]
) -> float | None:
    ref = question.ref
    if ref.protocol is Protocol.FAKE:
        return FAKE_WATTS
    for it in answers:
        if ref.protocol is Protocol.V2:
            is_asked = it.get("url") == ref.url
        else:
            target = ref.base.partition("://")[2]
            is_asked = (it.get("target"), it.get("model")) == (target, ref.model)
        is_same = all(
            abs(left - right) <= _SAME_INPUT
            for left, right in zip(it["inputs"], inputs, strict=True)
        )
        if is_asked and is_same and str(it.get("version", ref.version)) == ref.version:
            return it.get("watts")
    return None


def _peaks_candidate(node: PowerNode, models: Mapping[str, Mapping[str, float]]) -> Candidate:
    """Return Peaks' model of a node, which is in its argument, as a PowerModel that selects the node."""
    own = models.get(node.name)
    spec = PowerModelSpec.model_validate({"exponential": own} if own is not None else {})
    model = choose_model([PowerModel(name=node.name, spec=spec)], node.labels)
    if model is None or model.spec.exponential is None:
        return Candidate(link=PowerLink.MODEL, problem="no PowerModel selects this node")
    return Candidate(
        link=PowerLink.MODEL,
        model=model.name,
        curve=curve_of_model(model.spec, node.capacity_nanocores),
        exponential=model.spec.exponential,
    )


def _watched(
    node: PowerNode, watched: Mapping[str, Sequence[Mapping[str, Any]]]
) -> CpuUsage | None:
    """Return the usage that the load watcher gives in percent: the first average or latest one."""
    for it in watched.get(node.name) or ():
        if it["type"] == "CPU" and it["operator"] in ("Average", "Latest"):
            share = parse_quantity(it["value"]) / 100
            return CpuUsage(
                nanocores=round(share * node.capacity_nanocores), sampled_s=0.0, window_s=0.0
            )
    return None
