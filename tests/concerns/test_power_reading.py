"""What WAO's objects, exporters and model servers say, and what they say when they are broken."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.inventory import PowerLink, Reading
from berthmaster.api.ipmi import read_page
from berthmaster.api.power import (
    CpuUsage,
    EndpointTerm,
    NodeConfig,
    NodeConfigTerms,
    PowerNode,
    label_config_of,
    node_config_from_manifest,
    parse_go_duration_s,
    template_from_manifest,
    usage_from_metrics,
)
from berthmaster.api.power_models import PowerModel, PowerModelSpec, choose_model
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import CpuUsageFormat
from berthmaster.concerns.power.inventory import (
    Candidate,
    build_power,
    fresh_readings,
    settle,
)
from berthmaster.concerns.power.models import MeasuredLine, curve_of_model
from berthmaster.concerns.power.questions import (
    Question,
    UnaskableError,
    ask_by_labels,
    ask_by_term,
    curve_of,
    ref_of_term,
    term_of_redfish,
)
from berthmaster.concerns.power.templates import TemplateError, render, render_terms

LABELS = {
    **{"ambient/min": "11.5", "ambient/max": "36.5", "cpu1/min": "24", "cpu1/max": "42"},
    **{"cpu2/min": "23", "cpu2/max": "49", "tensorflow/host": "10.9.0.1"},
    **{"tensorflow/port": "8500", "tensorflow/name": "konohana"},
}
EIGHT = 8 * NANO
NODE = PowerNode(
    name="worker-3",
    labels={"kubernetes.io/hostname": "worker-3.rack.example"},
    address="10.0.7.1",
    capacity_nanocores=EIGHT,
)
UPSTREAM = Path(__file__).parents[3] / "shared" / "upstream" / "power"
anything: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "nodeName",
                    "metricsCollector",
                    "inletTemp",
                    "predictor",
                    "powerConsumption",
                    "type",
                    "endpoint",
                    "template",
                    "nodeSelector",
                    "usage",
                    "cpu",
                    "containers",
                    "timestamp",
                    "window",
                    "outputs",
                    "data",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def reading(value: float, sampled_s: float = 0.0) -> Reading:
    return Reading(value=value, sampled_s=sampled_s)


V1_READINGS = {"ambient": reading(24), "cpu1": reading(33), "cpu2": reading(36)}
V2_READINGS = {"inlet": reading(22), "deltaP": reading(7.5)}


@settings(deadline=None)
@given(anything)
def test_odd_objects_never_raise(value: Any) -> None:
    manifest = value if isinstance(value, dict) else {"spec": value, "metadata": value}

    node_config_from_manifest(manifest)
    template_from_manifest(manifest)
    usage_from_metrics(manifest)


@settings(deadline=None)
@given(anything, st.sampled_from(["8500", "8501"]))
def test_odd_answers_are_told(value: Any, port: str) -> None:
    labels = {**LABELS, "tensorflow/port": port}
    question = ask_by_labels(label_config_of(labels), V1_READINGS, EIGHT)

    for answer in (value, {"outputs": value}, {"outputs": [{"data": value}]}):
        try:
            watts = question.read_answer(answer)
        except ValueError:
            continue
        assert len(watts) == len(question.inputs)


def test_node_config_is_read_and_written_back() -> None:
    manifest = {
        "apiVersion": "node.waok8s.github.io/v1beta1",
        "kind": "NodeConfig",
        "metadata": {"name": "c", "namespace": "wao-system"},
        "spec": {
            "nodeName": "worker-0",
            "metricsCollector": {
                "inletTemp": {
                    "type": "Redfish",
                    "endpoint": "https://10.0.0.1",
                    "basicAuthSecret": {"name": "s"},
                    "fetchInterval": "10s",
                },
                "deltaP": {"type": "Fake", "endpoint": ""},
            },
            "predictor": {"powerConsumption": {"type": "Fake", "endpoint": ""}},
        },
    }

    config = node_config_from_manifest(manifest)

    assert config.to_manifest() == manifest
    assert config.terms.inlet_temp.fetch_interval_s == 10
    assert config.problems == ()


@pytest.mark.skipif(not UPSTREAM.exists(), reason="upstream's samples are not beside the project")
@pytest.mark.parametrize(
    "file",
    ["sample-nodeconfig.yaml", "sample-nodeconfigtemplate.yaml"],
)
def test_upstream_samples_have_no_faults(file: str) -> None:
    for manifest in yaml.safe_load_all((UPSTREAM / file).read_text(encoding="utf-8")):
        is_template = manifest["kind"] == "NodeConfigTemplate"
        read = (template_from_manifest if is_template else node_config_from_manifest)(manifest)

        assert read.problems == ()
        assert read.terms.inlet_temp.type


def test_faults_name_field_and_way_out() -> None:
    config = node_config_from_manifest(
        {"spec": {"metricsCollector": {"inletTemp": {"fetchInterval": "soon"}, "deltaP": 3}}}
    )

    assert config.problems == (
        "spec.nodeName: missing, expected the name of a Node",
        "spec.metricsCollector.inletTemp.fetchInterval: expected a duration such as 15s, found "
        "'soon'; 15s is used",
        "spec.metricsCollector.deltaP: expected an object, found int",
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("", None), ("15", None)],
)
def test_go_durations(text: str, seconds: float | None) -> None:
    assert parse_go_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpu1/max": None}, "label cpu1/max: missing"),
        ({"cpu1/max": "hot"}, 'label cpu1/max: found "hot", expected degrees Celsius'),
        ({"cpu1/max": "24"}, "labels cpu1/min and cpu1/max: both are 24"),
        ({"cpu1/max": "nan"}, 'label cpu1/max: found "nan"'),
        ({"cpu1/max": "4_2"}, 'label cpu1/max: found "4_2"'),
        ({"tensorflow/port": None}, "tensorflow/port: false"),
        ({"tensorflow/port": "grpc"}, 'label tensorflow/port: found "grpc", expected a number'),
        (
            {"berthmaster.io/tensorflow-scheme": "rest"},
            'label berthmaster.io/tensorflow-scheme: found "rest", expected grpc, grpcs, http or https',
        ),
    ],
)
def test_labels_that_cannot_be_used(change: dict[str, str | None], words: str) -> None:
    labels = {key: it for key, it in {**LABELS, **change}.items() if it is not None}

    with pytest.raises(UnaskableError) as caught:
        ask_by_labels(label_config_of(labels), V1_READINGS, EIGHT)

    assert words in str(caught.value)


def test_v1_asks_by_rest_with_rounded_features() -> None:
    labels = {**LABELS, "tensorflow/version": "1218", "tensorflow/signature": "konohana"}
    labels["tensorflow/port"] = "8501"
    question = ask_by_labels(label_config_of(labels), V1_READINGS, EIGHT)

    assert question.ref.url == "http://10.9.0.1:8501/v1/models/konohana/versions/1218:predict"
    assert question.inputs[5] == (0.5, 0.5, 0.5, 0.5)
    assert question.cores[5] == 4.0
    assert question.body()["signature_name"] == "konohana"
    answer = [[100.0 + at] for at in range(len(question.inputs))]
    assert question.read_answer({"outputs": answer})[1] == 101.0
    assert question.read_answer({"predictions": answer})[1] == 101.0


@pytest.mark.parametrize(
    ("port", "scheme", "base"),
    [
        ("8500", None, "grpc://10.9.0.1:8500"),
        ("30500", None, "grpc://10.9.0.1:30500"),
        ("8501", None, "http://10.9.0.1:8501"),
        ("8501", "grpc", "grpc://10.9.0.1:8501"),
        ("8443", "grpcs", "grpcs://10.9.0.1:8443"),
        ("30501", "http", "http://10.9.0.1:30501"),
        ("443", "https", "https://10.9.0.1:443"),
    ],
)
def test_v1_is_asked_by_grpc_unless_the_port_or_a_label_says_rest(
    port: str, scheme: str | None, base: str
) -> None:
    labels = {**LABELS, "tensorflow/port": port}
    if scheme is not None:
        labels["berthmaster.io/tensorflow-scheme"] = scheme

    ref = ask_by_labels(label_config_of(labels), V1_READINGS, EIGHT).ref

    assert (ref.base, ref.url == ref.base) == (base, base.startswith("grpc"))


@pytest.mark.parametrize(
    ("version", "signature", "sent"),
    [
        (None, None, b"\x0a\x0a\x0a\x08konohana"),
        ("1218", "s", b"\x0a\x12\x0a\x08konohana\x12\x03\x08\xc2\x09\x1a\x01s"),
        ("newest", None, b"\x0a\x0a\x0a\x08konohana"),
    ],
)
def test_v1_names_model_version_and_signature_in_its_message(
    version: str | None, signature: str | None, sent: bytes
) -> None:
    given = {"tensorflow/version": version, "tensorflow/signature": signature}
    labels = {**LABELS, **{key: it for key, it in given.items() if it is not None}}

    message = ask_by_labels(label_config_of(labels), V1_READINGS, EIGHT).message()

    assert message.startswith(sent + b"\x12")


def test_answer_by_grpc_is_read_and_counted() -> None:
    question = ask_by_labels(label_config_of(LABELS), V1_READINGS, EIGHT)
    # A float tensor of shape 2x1: outputs 1, key 1, value 2, dtype 1, shape 2, float_val 5.
    answer = bytes.fromhex("0a210a076f75747075747312160801120812020802120208012a080000164300004843")

    with pytest.raises(ValueError, match="found 2 numbers, expected 21"):
        question.read_answer(answer)
    assert replace(question, inputs=question.inputs[:2]).read_answer(answer) == (150.0, 200.0)


@pytest.mark.parametrize(
    ("ambient", "feature"),
    [
        # (t - 11.5) / 25: 0.25 and 0.65 are a half or more in 32 bits, 0.35 is less; not clamped.
        (17.75, 0.3),
        (20.25, 0.3),
        (27.75, 0.6),
        (32.75, 0.9),
        (5.25, -0.3),
        (49.0, 1.5),
    ],
)
def test_v1_rounds_half_away_from_zero_in_32_bits(ambient: float, feature: float) -> None:
    readings = {**V1_READINGS, "ambient": reading(ambient)}

    question = ask_by_labels(label_config_of(LABELS), readings, EIGHT)

    assert question.inputs[0][1] == feature


def test_v1_asks_for_twice_the_capacity_and_what_is_wanted_beside() -> None:
    """A limit has to fit beside the usage; a request without one does not, as far as v1 is concerned."""
    question = ask_by_labels(label_config_of(LABELS), V1_READINGS, EIGHT, more_tenths=[3, 27])

    assert [it[0] for it in question.inputs][-3:] == [1.9, 2.0, 2.7]
    assert question.cores[-2:] == (16.0, 21.6)


def test_points_that_a_curve_cannot_tell_apart_are_asked_for_once() -> None:
    term = EndpointTerm(type="V2InferenceProtocol", endpoint="http://h/v2/models/m")

    question = ask_by_term(term, V2_READINGS, EIGHT, more_cores=[7.99985, 3.5])

    assert question.cores[-1] == 7.99985
    assert 3.5 in question.cores
    assert 7.6 in question.cores


def test_v2_asks_for_the_curve_in_percent() -> None:
    term = EndpointTerm(
        type="V2InferenceProtocol",
        endpoint="https://u:p@mlserver:8080/prefix/v2/models/m/versions/v1/infer?x=1",
    )

    question = ask_by_term(term, V2_READINGS, EIGHT, usage_format=CpuUsageFormat.PERCENT)

    assert question.ref.url == "https://mlserver:8080/v2/models/m/versions/v1/infer"
    assert question.inputs[-1] == (100.0, 22.0, 7.5)
    assert question.cores[-1] == 8.0
    tensor = question.body()["inputs"][0]
    assert tensor["shape"] == [len(question.inputs), 3]
    numbers = [float(at) for at in range(len(question.inputs))]
    assert question.read_answer({"outputs": [{"data": numbers}]}) == tuple(numbers)
    assert question.read_answer({"outputs": [{"data": [[it] for it in numbers]}]}) == tuple(numbers)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h/v2/models/a/models/b", "http://h/v2/models/b/infer"),
        ("http://h/v2/models/a/versions/", "http://h/v2/models/a/infer"),
        ("http://h/versions/1/models/a", "http://h/v2/models/a/versions/1/infer"),
    ],
)
def test_last_model_and_version_of_an_endpoint_count(endpoint: str, url: str) -> None:
    assert ref_of_term(EndpointTerm(type="V2InferenceProtocol", endpoint=endpoint)).url == url


@pytest.mark.parametrize(
    ("type_", "endpoint", "words"),
    [
        ("V2InferenceProtocol", "http://h/v2/", "model name is not specified"),
        ("V2InferenceProtocol", "file:///etc/passwd", "expected http(s)://host:port"),
        ("V2InferenceProtocol", "http://[", "expected http(s)://host:port"),
        ("v2", "http://h/v2/models/m", "unknown endpoint type: v2"),
        ("V2InferenceProtocol", "grpc://h:8500/models/m", "expected http(s)://host:port"),
        ("TensorFlowServing", "unix:///run/s/models/m", "expected grpc(s) or http(s)://host:port"),
        ("TensorFlowServing", "grpc:///models/m", "expected grpc(s) or http(s)://host:port"),
        ("TensorFlowServing", "grpc://h:port/models/m", "expected grpc(s) or http(s)://host:port"),
        ("TensorFlowServing", "grpc://h:8500/", "model name is not specified"),
        ("TensorFlowServing", "grpc://h/models/m/versions/v1", 'version "v1", expected a whole'),
    ],
)
def test_endpoints_that_cannot_be_asked(type_: str, endpoint: str, words: str) -> None:
    with pytest.raises(UnaskableError) as caught:
        ref_of_term(EndpointTerm(type=type_, endpoint=endpoint))

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "url", "sent"),
    [
        ("grpc://h:9/v1/models/m", "grpc://h:9", ("m", "", "")),
        ("grpc://u:p@h/models/m/versions/7", "grpc://h:8500", ("m", "7", "")),
        ("grpcs://[fd00::1]/models/m", "grpcs://[fd00::1]:8500", ("m", "", "")),
        ("grpc://h:9/models/m?signature_name=s&x=1", "grpc://h:9", ("m", "", "s")),
        ("https://h/v1/models/m:predict", "https://h/v1/models/m:predict", ("m", "", "")),
        (
            "http://h:8501/v1/models/m/versions/7:predict",
            "http://h:8501/v1/models/m/versions/7:predict",
            ("m", "7", ""),
        ),
    ],
)
def test_tensorflow_serving_in_an_endpoint(
    endpoint: str, url: str, sent: tuple[str, str, str]
) -> None:
    ref = ref_of_term(EndpointTerm(type="TensorFlowServing", endpoint=endpoint))

    assert (ref.url, (ref.model, ref.version, ref.signature)) == (url, sent)


def test_redfish_names_the_model_and_the_secret_stays() -> None:
    answer = {"Type": "V2InferenceProtocol", "Url": "http://p", "Name": "m", "Version": "v1"}

    term = term_of_redfish(answer, EndpointTerm(secret="s"))  # noqa: S106

    assert (term.endpoint, term.secret) == ("http://p/v2/models/m/versions/v1/infer", "s")
    with pytest.raises(UnaskableError, match="Version missing or empty"):
        term_of_redfish({**answer, "Version": ""}, None)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("https://10.0.{{ add .IPv4.Octet3 10 }}.{{.IPv4.Octet4}}", "https://10.0.17.1"),
        ('{{ trimPrefix "worker-" .Hostname }}', "3.rack.example"),
        ('{{ .Hostname | trimSuffix ".rack.example" | upper }}', "WORKER-3"),
        ('{{ printf "%03d" (add (atoi .IPv4.Octet3) 1) }}', "008"),
        ("a {{- .IPv4.Octet4 -}} b", "a1b"),
        ('{{ default "x" "" }}{{ `y` }}{{/* remark */}}', "xy"),
        ('{{ replace "." "-" .IPv4.Address }}', "10-0-7-1"),
        ("{{ sub 3 .IPv4.Octet3 }}", "-4"),
    ],
)
def test_templates(text: str, rendered: str) -> None:
    term = EndpointTerm(type="Fake", endpoint=text)

    terms, faults = render_terms(NodeConfigTerms(inlet_temp=term), NODE)

    assert (terms.inlet_temp.endpoint, faults) == (rendered, ())


@pytest.mark.parametrize(
    "text", ["{{ .Nope }}", "{{ explode 1 }}", "{{ add 1", "{{ div 1 0 }}", "{{ ( }}", "{{ 1 2 }}"]
)
def test_field_that_fails_stays_as_written_and_is_told(text: str) -> None:
    written = EndpointTerm(type="{{ .Hostname }}", endpoint=text)

    terms, faults = render_terms(NodeConfigTerms(power=written), NODE)

    assert terms.power == EndpointTerm(type="worker-3.rack.example", endpoint=text)
    assert len(faults) == 1
    assert faults[0].startswith(f'powerConsumption.endpoint: "{text}": ')


@given(st.text(alphabet='{}.() |"`addxIPv4Octet1 \\', max_size=40))
def test_templates_only_fail_in_one_way(text: str) -> None:
    with suppress(TemplateError):
        assert len(render(text, {".IPv4.Octet1": "1"})) <= 4096


def test_ipmi_page_with_odd_lines() -> None:
    page = read_page(
        'ipmi_temperature_celsius{id="1",name="Ambient"} 24\n'
        'ipmi_temperature_celsius{name="CPU1",id="2"} 33 1700000000000\n'
        'ipmi_temperature_celsius{id="3",name="CPU2"} NaN\n'
        'ipmi_temperature_celsius{id="4",name="01-Inlet Ambient"} 26.5\n'
        'ipmi_temperature_celsius{id="5",name="Broken Inlet"} 4000\n'
        "ipmi_dcmi_power_consumption_current_watts 142\n"
        'ipmi_temperature_celsius{id="6",name="x" 1\nnonsense\n'
    )

    assert page.v1_temperatures() is None
    assert page.temperatures == {"Ambient": 24, "CPU1": 33, "01-Inlet Ambient": 26.5}
    assert page.watts == 142


def test_reading_of_exactly_minus_one_counts_as_missing() -> None:
    lines = [f'ipmi_temperature_celsius{{name="{it}"}}' for it in ("Ambient", "CPU1", "CPU2")]

    assert read_page("".join(f"{it} -1.5\n" for it in lines)).v1_temperatures() is not None
    assert read_page("".join(f"{it} -1\n" for it in lines)).v1_temperatures() is None


def test_template_of_a_node_that_says_nothing() -> None:
    text = "{{ .Hostname }} {{ .IPv4.Address }} {{ .IPv4.Octet4 }}"
    written = NodeConfigTerms(inlet_temp=EndpointTerm(endpoint=text))

    silent, _ = render_terms(written, PowerNode(name="n"))
    ipv6, _ = render_terms(written, PowerNode(name="n", address="a.b.c.d.e"))

    assert silent.inlet_temp.endpoint == "undefined.example.com x.x.x.x x"
    assert ipv6.inlet_temp.endpoint == "undefined.example.com a.b.c.d.e x"


def test_of_several_node_configs_the_oldest_counts_then_namespace_and_name() -> None:
    found = [
        NodeConfig(namespace=namespace, name=name, node_name="n", created=created)
        for namespace, name, created in (
            ("a", "a", "2026-01-02T00:00:00Z"),
            ("b", "a", "2026-01-01T00:00:00Z"),
            ("a", "c", "2026-01-01T00:00:00Z"),
            ("a", "b", "2026-01-01T00:00:00Z"),
        )
    ]

    ordered = sorted(found, key=lambda it: it.order)

    assert [(it.namespace, it.name) for it in ordered] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "a"),
        ("a", "a"),
    ]


def test_labels_of_an_ipmi_page_hold_any_text() -> None:
    page = read_page(
        ' ipmi_temperature_celsius { zone="a}b,c", name = "Ambient" , id="1" } 2.4e+01 -5\n'
        'ipmi_temperature_celsius{rack="r,name=",name="CPU1"}33\n'
        'ipmi_temperature_celsius{sensor_name="CPU2"} 36\n'
        'ipmi_temperature_celsius_total{name="CPU2"} 36\n'
    )

    assert page.temperatures == {"Ambient": 24, "CPU1": 33}


def test_usage_without_a_time_is_none() -> None:
    usage = {"usage": {"cpu": "312345678n"}, "timestamp": "2024-01-01T00:00:00Z", "window": "15s"}

    assert usage_from_metrics(usage) == CpuUsage(
        nanocores=312345678, sampled_s=1704067200.0, window_s=15.0
    )
    assert usage_from_metrics({**usage, "timestamp": "then"}) is None
    assert usage_from_metrics({**usage, "usage": {"cpu": "-1"}}) is None


def test_implausible_watts_are_gaps_and_watts_below_zero_are_kept() -> None:
    curve = curve_of([0, 1, 2, 3], [100.0, math.nan, -5.0, 1e9])

    assert curve is not None
    assert (curve.cores, curve.watts, curve.gaps) == ((0, 2), (100, -5), (1, 3))
    assert curve_of([0, 1], [None, math.inf]) is None


@pytest.mark.parametrize(
    ("spec", "at_idle", "at_full"),
    [
        ({"exponential": {"k0": 471.74, "k1": -91.5, "k2": -0.0719}}, 380.24, 471.67),
        ({"polynomial": {"coefficients": [100, 50, 25]}}, 100, 175),
        (
            {
                "table": {
                    "points": [{"cpuPercent": 10, "watts": 90}, {"cpuPercent": 90, "watts": 170}]
                }
            },
            90,
            170,
        ),
    ],
    ids=["exponential", "polynomial", "table"],
)
def test_models_as_numbers(spec: dict[str, Any], at_idle: float, at_full: float) -> None:
    curve = curve_of_model(PowerModelSpec.model_validate(spec), EIGHT)

    assert curve is not None
    assert (curve.cores[0], curve.cores[-1]) == (0, 8)
    assert curve.watts[0] == pytest.approx(at_idle, abs=0.01)
    assert curve.watts[-1] == pytest.approx(at_full, abs=0.01)


def test_model_that_overflows_has_no_curve_there() -> None:
    spec = PowerModelSpec.model_validate({"exponential": {"k0": 1, "k1": 1, "k2": 50}})

    curve = curve_of_model(spec, EIGHT)

    assert curve is not None
    assert curve.cores == (0.0,)


def test_most_important_model_that_selects_the_node_counts() -> None:
    models = [
        PowerModel(name="b", spec=PowerModelSpec()),
        PowerModel(name="a", spec=PowerModelSpec()),
        PowerModel(
            name="z",
            spec=PowerModelSpec.model_validate(
                {"priority": 1, "nodeSelector": {"matchLabels": {"kind": "big"}}}
            ),
        ),
    ]

    assert [getattr(choose_model(models, it), "name", "") for it in ({}, {"kind": "big"})] == [
        "a",
        "z",
    ]


def test_line_through_measurements() -> None:
    line = MeasuredLine()
    for step in range(12):
        assert line.curve(EIGHT) is None
        line.add(step / 20, 100 + 80 * step / 20)

    curve = line.curve(EIGHT)

    assert curve is not None
    assert curve.watts == pytest.approx((100, 180))


def test_old_readings_and_those_from_the_future_are_left_out() -> None:
    readings = {"inlet": reading(22, 900), "deltaP": reading(7, 1200), "cpu1": reading(30, 0)}

    fresh, words = fresh_readings(readings, now_s=1000, max_age_s={"inlet": 90})

    assert set(fresh) == {"cpu1"}
    assert words == ("inlet is older than 90 s", "deltaP is from the future")


def test_chain_takes_the_first_curve_and_says_why() -> None:
    curve = curve_of([0, 8], [100, 180])
    built = build_power(
        usage=CpuUsage(nanocores=NANO, sampled_s=1, window_s=15),
        readings={},
        candidates=[
            Candidate(link=PowerLink.MODEL_SERVER, problem="m at http://h: timed out"),
            Candidate(link=PowerLink.MODEL, model="r650", curve=curve),
        ],
    )

    assert built.power is not None
    assert built.condition is not None
    assert (built.power.link, built.power_now) == (PowerLink.MODEL, "~110W Model")
    assert (built.condition.status, built.condition.reason) == ("True", "Model")
    assert built.condition.message == "watts by r650; m at http://h: timed out"


def test_nothing_is_said_of_a_node_without_configuration() -> None:
    built = build_power(
        usage=CpuUsage(nanocores=NANO, sampled_s=1, window_s=15), readings={}, candidates=[]
    )

    assert (built.power, built.condition) == (None, None)


def test_small_moves_are_not_published() -> None:
    curve = curve_of([0, 8], [100, 180])

    def power_at(nanocores: int, sampled_s: float) -> Any:
        return build_power(
            usage=CpuUsage(nanocores=nanocores, sampled_s=sampled_s, window_s=15),
            readings={"inlet": reading(22, sampled_s)},
            candidates=[Candidate(link=PowerLink.MODEL, model="m", curve=curve)],
        ).power

    old, near, far = power_at(NANO, 1), power_at(NANO + 10**7, 16), power_at(2 * NANO, 16)

    def settled(new: Any, *, is_awaited: bool = False) -> Any:
        return settle(old, new, capacity_nanocores=EIGHT, is_awaited=is_awaited)

    assert settled(near) is old
    assert settled(far) is far
    assert settled(near, is_awaited=True) is near


def test_question_of_one_point_is_a_batch() -> None:
    ref = ref_of_term(EndpointTerm(type="Fake"))

    question = Question(ref=ref, cores=(0.0,), inputs=((0.0,),))

    with pytest.raises(ValueError, match="found 2 numbers, expected 1"):
        question.read_answer({"outputs": [{"data": [1.0, 2.0]}]})
