"""What depends on more than a row stays right while everything changes: kept results equal new ones."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.objects import Namespace, ObjectMeta, Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.storage import (
    claim_from_manifest,
    csi_node_from_manifest,
    storage_class_from_manifest,
    volume_from_manifest,
)
from berthmaster.concerns.resources import CONCERN
from berthmaster.concerns.shape import Surrounding
from berthmaster.placement.engine import Engine
from concerns.judged import HOST, ZONE, far, labelled, near, spread, term
from support.builders import make_node

Manifest = dict[str, Any]

NODES = [f"n{index}" for index in range(5)]
APPS = [{"app": "web"}, {"app": "db"}]
apps, zones = st.sampled_from(APPS), st.sampled_from(["a", "b", ""])
WEB, DB = APPS
LATE = storage_class_from_manifest(
    {
        "metadata": {"name": "late"},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
)
CLAIMS = ["c0", "c1"]


def using(*names: str) -> Manifest:
    return {"volumes": [{"name": it, "persistentVolumeClaim": {"claimName": it}} for it in names]}


# What is asked again and again: each kind of question, and some that share their local part.
ASKED = [
    labelled("asked", labels, **fields)
    for labels in APPS
    for fields in (
        {},
        {"affinity": near(term(DB))},
        {"affinity": near(term(WEB, HOST, namespaceSelector={"matchLabels": {"team": "sea"}}))},
        {"affinity": far(term(DB), term(WEB, HOST))},
        {"topologySpreadConstraints": [spread(WEB), spread(WEB, HOST, 2)]},
        using("c0"),
        using("c0", "c1"),
    )
]

held = st.fixed_dictionaries(
    {
        "labels": apps,
        "is_leaving": st.booleans(),
        "namespace": st.sampled_from(["default", "other"]),
        "spec": st.sampled_from(
            [{}, {"affinity": far(term(WEB))}, {"affinity": far(term(DB, HOST))}, using("c1")]
        ),
    }
)
changes = st.one_of(
    st.tuples(st.just("node"), st.sampled_from(NODES), zones),
    st.tuples(st.just("no node"), st.sampled_from(NODES)),
    st.tuples(st.just("pod"), st.integers(0, 7), st.sampled_from(NODES), held),
    st.tuples(st.just("no pod"), st.integers(0, 7)),
    st.tuples(st.just("namespace"), st.sampled_from(["default", "other"]), st.booleans()),
    st.tuples(
        st.just("volume"),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.integers(1, 3),
        st.booleans(),
    ),
    st.tuples(st.just("no volume"), st.integers(0, 3)),
    st.tuples(st.just("claim"), st.sampled_from(CLAIMS), st.integers(-1, 3), st.integers(1, 3)),
    st.tuples(st.just("no claim"), st.sampled_from(CLAIMS)),
    st.tuples(st.just("limit"), st.sampled_from(NODES), st.integers(0, 2)),
    st.tuples(st.just("ask")),
)


class World:
    """What is there, as values: to be told change by change, or all at once."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.pods: dict[int, Pod] = {}
        self.found: dict[tuple[str, str], Surrounding] = {("class", "late"): LATE}

    def change(self, engine: Engine, kind: str, *what: Any) -> None:
        if kind == "node":
            name, zone = what
            self.nodes[name] = zone
            engine.ledger.write_node(self.node(name), None)
        elif kind == "no node":
            self.nodes.pop(what[0], None)
            engine.ledger.remove_node(what[0])
        elif kind == "pod":
            self.put(engine, *what)
        elif kind == "no pod":
            if what[0] in self.pods:
                engine.ledger.forget(self.pods.pop(what[0]))
        elif kind == "ask":
            verdicts(engine)
        elif kind.startswith("no "):
            key = (kind.removeprefix("no "), str(what[0]))
            if key in self.found:
                engine.observe(self.found.pop(key), is_gone=True)
        else:
            self.found[kind, str(what[0])] = _make(kind, *what)
            engine.observe(self.found[kind, str(what[0])])

    def node(self, name: str) -> Any:
        zone = self.nodes[name]
        return make_node(name, labels={HOST: name, **({ZONE: zone} if zone else {})})

    def put(self, engine: Engine, index: int, node: str, fields: Manifest) -> None:
        pod = pod_from_manifest(
            labelled(
                f"there-{index}",
                fields["labels"],
                is_leaving=fields["is_leaving"],
                namespace=fields["namespace"],
                node=node,
                **fields["spec"],
            )
        )
        self.pods[index] = pod
        engine.ledger.see(pod)

    def build(self) -> Engine:
        engine = Engine([CONCERN])
        for found in self.found.values():
            engine.observe(found)
        for pod in self.pods.values():
            engine.ledger.see(pod)
        for name in reversed(sorted(self.nodes)):
            engine.ledger.write_node(self.node(name), None)
        return engine


def _make(kind: str, *what: Any) -> Surrounding:
    if kind == "namespace":
        name, is_sea = what
        return Namespace(
            metadata=ObjectMeta(name=name, labels={"team": "sea" if is_sea else "land"})
        )
    if kind == "volume":
        index, zone, size, is_free = what
        where = [{"key": ZONE, "operator": "In", "values": [zone]}]
        spec = {
            "storageClassName": "late",
            "capacity": {"storage": f"{size}Gi"},
            "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": where}]}},
            "csi": {"driver": "csi", "volumeHandle": f"h{index}"},
        }
        phase = {"phase": "Available" if is_free else "Released"}
        return volume_from_manifest(
            {"metadata": {"name": f"v{index}"}, "spec": spec, "status": phase}
        )
    if kind == "claim":
        name, index, size = what
        bound = {"pv.kubernetes.io/bind-completed": "yes"} if index >= 0 else {}
        spec = {
            "storageClassName": "late",
            "volumeName": f"v{index}" if index >= 0 else "",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{size}Gi"}},
        }
        metadata = {"namespace": "default", "name": name, "annotations": bound}
        return claim_from_manifest({"metadata": metadata, "spec": spec})
    name, count = what
    drivers = [{"name": "csi", "nodeID": name, "allocatable": {"count": count}}]
    return csi_node_from_manifest({"metadata": {"name": name}, "spec": {"drivers": drivers}})


def verdicts(engine: Engine) -> list[dict[str, str]]:
    found = []
    for manifest in ASKED:
        request = engine.read_request(pod_from_manifest(manifest), PlacementPolicySpec())
        found.append(
            {it.node: it.reason.text if it.reason else "" for it in engine.verdicts(request)}
        )
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(changes, max_size=40))
def test_kept_results_equal_new_ones(history: list[tuple[Any, ...]]) -> None:
    world, engine = World(), Engine([CONCERN])
    engine.observe(LATE)
    verdicts(engine)

    for change in history:
        world.change(engine, *change)

    assert verdicts(engine) == verdicts(world.build())
