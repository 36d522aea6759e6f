"""Random worlds of nodes and datasets, and an engine that is told of every change in them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from berthmaster.api.objects import node_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.cli.cases.dataset import build_inventories
from berthmaster.concerns.dataset import CONCERN
from berthmaster.placement.engine import Engine
from support.dataset_reference import HOST, NEW, OLD, REGION, ZONE, Rules

Manifest = dict[str, Any]
NODES = [f"n{index}" for index in range(6)]
NAMES = ["a", "b", "c"]

nodes = st.fixed_dictionaries(
    {
        ZONE: st.sampled_from(["z1", "z2", ""]),
        REGION: st.sampled_from(["r1", "r2", ""]),
        # The label may differ from the node's name, be that of another node, or be absent.
        HOST: st.sampled_from(["", "h1", "h2", "n1"]),
        "rack": st.sampled_from(["", "k1"]),
        "busy": st.sampled_from([False, False, True]),
    }
)
entries = st.lists(
    st.one_of(
        st.sampled_from([*NODES, "h1", "h2", "gone", ""]).map(
            lambda it: {"key": HOST, "value": it}
        ),
        st.just({"key": "rack", "value": "k1"}),
        st.just({"key": ZONE, "value": "z1"}),
        st.just({}),
    ),
    max_size=3,
)
provisions = st.sampled_from([*["OK"] * 12, "Pending", "ok"])
cachings = st.sampled_from([*["OK", "Pending"] * 6, "Disabled", "Failed", ""])
datasets = st.fixed_dictionaries(
    {
        "provision": provisions,
        "caching": cachings,
        "gateways": st.one_of(st.just([]), entries),
        "datalocations": entries,
    }
)
changes = st.one_of(
    st.tuples(st.just("node"), st.sampled_from(NODES), nodes),
    st.tuples(st.just("no node"), st.sampled_from(NODES[3:]), st.none()),
    st.tuples(
        st.just("dataset"),
        st.tuples(st.sampled_from([NEW, OLD]), st.sampled_from(NAMES)),
        st.one_of(st.none(), datasets),
    ),
)
pods = st.fixed_dictionaries(
    {
        "labels": st.dictionaries(
            st.sampled_from(
                [
                    "dataset.0.id",
                    "dataset.10.id",
                    "dataset.9.id",
                    "dataset.1.id.x",
                    "mydataset.0.id",
                ]
            ),
            st.sampled_from([*NAMES, *NAMES, "ghost"]),
            min_size=1,
        ),
        "claims": st.lists(st.sampled_from([*NAMES, "plain"]), max_size=2),
    }
)
rules = st.builds(
    Rules,
    region=st.sampled_from([25, 0]),
    zone=st.sampled_from([50, 33]),
    requires=st.booleans(),
    counts_claims=st.booleans(),
    spares_data=st.booleans(),
)


class World:
    """The manifests as they are, and an engine that was told of every change on the way."""

    def __init__(self) -> None:
        self.nodes: dict[str, Manifest] = {}
        self.busy: set[str] = set()
        self.datasets: dict[tuple[str, str], Manifest] = {}
        self.engine = Engine([CONCERN])

    def change(self, kind: str, name: Any, what: Any) -> None:
        if kind == "dataset":
            self.datasets.pop(name, None)
            if what is not None:
                self.datasets[name] = what
        elif kind == "no node":
            self.nodes.pop(name, None)
            self.busy.discard(name)
            self.engine.ledger.remove_node(name)
        else:
            labels = {key: it for key, it in what.items() if key != "busy" and it}
            self.nodes[name] = {"metadata": {"name": name, "uid": name, "labels": labels}}
            (self.busy.add if what["busy"] else self.busy.discard)(name)
        self.publish()

    def publish(self) -> None:
        inventories = build_inventories(self.resources, self.nodes.values())
        for name, manifest in self.nodes.items():
            inventory = inventories[name]
            busy = {"gateway_busy": name in self.busy}
            status = inventory.status.model_copy(update=busy)
            self.engine.ledger.write_node(
                node_from_manifest(manifest), inventory.model_copy(update={"status": status})
            )

    @property
    def resources(self) -> list[Manifest]:
        found = []
        for (group, name), it in self.datasets.items():
            metadata = {"namespace": "ml", "name": name}
            found.append(
                {
                    "apiVersion": group,
                    "kind": "Dataset",
                    "metadata": metadata,
                    "status": {
                        "provision": {"status": it["provision"]},
                        "caching": {"status": it["caching"]},
                    },
                }
            )
            placements = {key: it[key] for key in ("gateways", "datalocations") if it[key]}
            found.append(
                {
                    "apiVersion": group,
                    "kind": "DatasetInternal",
                    "metadata": metadata,
                    "status": {"caching": {"placements": placements}},
                }
            )
        return found


def make_pod(labels: dict[str, str], claims: list[str]) -> Manifest:
    volumes = [
        {"name": f"v{index}", "persistentVolumeClaim": {"claimName": it}}
        for index, it in enumerate(claims)
    ]
    return {
        "metadata": {"namespace": "ml", "name": "train", "labels": labels},
        "spec": {"containers": [], "volumes": volumes},
    }


def policy_of(rules: Rules) -> PlacementPolicySpec:
    settings = {
        "tiers": {"node": rules.node, "zone": rules.zone, "region": rules.region},
        "filesystem": "Require" if rules.requires else "Prefer",
        "claims": rules.counts_claims,
        "spareDataLocations": rules.spares_data,
    }
    return PlacementPolicySpec.model_validate({"concerns": {"dataset": settings}})


first = st.tuples(
    *[st.tuples(st.just("node"), st.just(name), nodes) for name in NODES],
    *[st.tuples(st.just("dataset"), st.just((NEW, name)), datasets) for name in NAMES],
)
