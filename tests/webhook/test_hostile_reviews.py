"""Whatever is sent to the webhook and its gates: an answer in words, no crash, no second of thought."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.cluster.client import JsonObject
from berthmaster_webhook import gating
from berthmaster_webhook.admission import Admission, MalformedReviewError
from berthmaster_webhook.extender.protocol import MalformedError, read_bind, read_filter
from support.webhook_world import EPOCH, World, gated_manifest, make_review

# How long one review may keep all others waiting: the API server's patience is 1 s.
PATIENCE_S = 1.0
GATES = ("drop", "annotated")
ANNOTATIONS = (
    names.PLACEMENT,
    names.POLICY,
    names.POLICY_PRIORITY,
    names.REPLACED_SCHEDULER,
    names.ALLOCATION,
    names.DISKIO_REQUEST,
    names.DISK_READ,
    names.DISK_WRITE,
    names.DISK_BLOCK_SIZE,
    names.NUMA,
    names.DATASET,
    names.DROPPED,
    *names.FORGEABLE,
    *names.SPREAD_RATES,
    "wao.bitmedia.co.jp/owner",
)

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4)
    ),
    max_leaves=12,
)
quick = settings(
    deadline=PATIENCE_S * 1000,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in a JSON value."""
    below: Any = ()
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, list):
        below = enumerate(value)
    found = [path]
    for key, it in below:
        found += places_in(it, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copied = value.copy()
    copied[path[0]] = replaced(value[path[0]], path[1:], by)
    return copied


def rich_review() -> JsonObject:
    """Return a review in which much that we read is there."""
    pod = gated_manifest(
        annotations={names.PLACEMENT: "required", names.DISKIO_REQUEST: '{"rbps": "1Mi"}'},
        cpu="1",
    )
    pod["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": True}
    ]
    term = {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
    selector = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "zone"}
    pod["spec"] |= {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
            },
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [selector]},
        },
        "topologySpreadConstraints": [
            {**selector, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
    }
    review: JsonObject = json.loads(make_review(pod))
    return review


REVIEW = rich_review()
PLACES = places_in(REVIEW)


def all_answer(world: World, body: bytes) -> None:
    """Have every reader of bodies take it."""
    reply = Admission(world.tools, world.term).reply(body, epoch=EPOCH)
    assert reply.status in (200, 400)
    for act in GATES:
        with suppress(MalformedReviewError):
            json.loads(gating.answer(act, body))
    readers: tuple[Callable[[bytes], Any], ...] = (read_filter, read_bind)
    for read in readers:
        with suppress(MalformedError):
            read(body)


@quick
@given(body=st.binary(max_size=200) | any_json.map(lambda it: json.dumps(it).encode()))
async def test_noise(world: World, body: bytes) -> None:
    world.add_node("n1")
    all_answer(world, body)
    assert not world.state.ledger.assumed


@quick
@given(place=st.sampled_from(PLACES), by=any_json)
async def test_any_part_of_a_review_replaced(world: World, place: tuple[Any, ...], by: Any) -> None:
    world.add_node("n1", labels={"a": "b"})
    all_answer(world, json.dumps(replaced(REVIEW, place, by)).encode())


@quick
@given(length=st.integers(0, len(json.dumps(REVIEW))), tail=st.binary(max_size=5))
async def test_review_cut_off(world: World, length: int, tail: bytes) -> None:
    all_answer(world, json.dumps(REVIEW).encode()[:length] + tail)


@quick
@given(key=st.sampled_from(ANNOTATIONS), text=st.text(max_size=60))
async def test_any_text_in_what_we_read(world: World, key: str, text: str) -> None:
    world.add_node("n1")
    pod = gated_manifest(annotations={names.PLACEMENT: "required", key: text})
    all_answer(world, make_review(pod))


DEPTH = 100_000
SIZE = 2_500_000


def annotated(text: str) -> bytes:
    return make_review(
        gated_manifest(annotations={names.PLACEMENT: "required", names.DISKIO_REQUEST: text})
    )


def with_spec(**spec: Any) -> bytes:
    pod = gated_manifest()
    pod["spec"] |= spec
    return make_review(pod)


def containers(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"c{it}", "image": "i", "resources": {"requests": {"cpu": "1"}}}
        for it in range(count)
    ]


def terms(count: int) -> dict[str, Any]:
    expression = {"key": "a", "operator": "NotIn", "values": ["b"]}
    each = [{"matchExpressions": [expression]}] * count
    needed = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": each}}
    return {"nodeAffinity": needed}


HOSTILE = {
    "deep lists": b"[" * DEPTH,
    "deep objects": b'{"a":' * DEPTH,
    "deep pod": make_review(gated_manifest()).replace(
        b'"spec":', b'"x":' + b"[" * DEPTH + b"]" * DEPTH + b',"spec":', 1
    ),
    "deep annotation": annotated("[" * DEPTH),
    "half a character": make_review(gated_manifest()).replace(b'"default"', rb'"\ud800"'),
    "not UTF-8": make_review(gated_manifest()).replace(b'"default"', b'"\xff\xfe"'),
    "number without end": annotated(f'{{"rbps": "{"9" * SIZE}"}}'),
    "number of JSON without end": make_review(gated_manifest()).replace(
        b'"spec":', b'"x":1' + b"0" * SIZE + b',"spec":', 1
    ),
    "exponent": annotated('{"rbps": "1e999999999", "wbps": "1", "blocksize": "4k"}'),
    "blanks": annotated(" " * SIZE),
    "digits and blanks": annotated("1 " * (SIZE // 2)),
    "dots": annotated(f'{{"rbps": "1{"." * SIZE}"}}'),
    "containers": with_spec(containers=containers(5_000)),
    "node affinity": with_spec(affinity=terms(10_000)),
    "tolerations": with_spec(tolerations=[{"key": f"k{it}"} for it in range(50_000)]),
    "node selector": with_spec(nodeSelector={f"k{it}": "v" for it in range(20_000)}),
    "gates": with_spec(schedulingGates=[{"name": f"g{it}"} for it in range(50_000)]),
    "same key": b"{" + b'"kind":"AdmissionReview",' * 50_000 + b'"a":1}',
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_body(world: World, name: str) -> None:
    for number in range(50):
        world.add_node(f"n{number}")
    admission = Admission(world.tools, world.term)
    began_s = time.process_time()

    reply = admission.reply(HOSTILE[name], epoch=EPOCH)

    taken_s = time.process_time() - began_s
    assert reply.status in (200, 400)
    assert taken_s < PATIENCE_S
    all_answer(world, HOSTILE[name])
