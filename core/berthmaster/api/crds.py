"""Our CRDs, rendered from the models: `python -m berthmaster.api.crds crds` writes them.

The models say the types, limits, defaults and most descriptions; this says the rest: names, columns,
rules across fields, words for fields that explain themselves to readers of Python. The result is a structural schema as the API server wants it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from berthmaster.api import names
from berthmaster.api.inventory import NodeInventoryStatus
from berthmaster.api.node_xpus import NodeXPUSpec, NodeXPUStatus
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.power_models import PowerModelSpec

Schema = dict[str, Any]

_CONCERNS = ("diskio", "numa", "xpu", "dataset", "podspread", "power", "resources")
_DROPPED = ("title", "$defs")
_SELECTORS = ("namespaceSelector", "podSelector")
_ONE_OF_VALUES = {
    "rule": "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
    "message": "operators In and NotIn need values",
}
_POLICY_RULES = [
    {
        "rule": "!has(self.mode) || self.mode != 'off' || has(self.namespaceSelector) || has(self.podSelector) || "
        "(has(self.schedulerNames) && size(self.schedulerNames) > 0) || "
        "(has(self.resourceNames) && size(self.resourceNames) > 0)",
        "message": "mode off needs a namespaceSelector, a podSelector, schedulerNames or resourceNames: "
        "without any the policy selects no pod and only gives settings",
    }
]
# CEL makes a record of all fields of a device each time that it reads one of them, so each id is read once, into a
# list that the list around it gives a name to.
_NODE_XPU_RULES = [
    {
        "rule": "[self.map(one, one.id)].all(ids, ids.all(id, ids.exists_one(other, other == id)))",
        "message": "ids must be unique; devices of one board share its serial number: add -0, -1 to it",
    }
]
_TIER_RULES = [
    {
        "rule": "self.node >= self.zone && self.zone >= self.region",
        "message": "a nearer tier must not score less: expected node >= zone >= region",
    }
]
_OVERLOAD_RULES = [
    {
        "rule": "self.belowPercent <= self.abovePercent",
        "message": "expected belowPercent <= abovePercent",
    }
]
# For `kubectl explain`, by model and field.
_WORDS = {
    "Bandwidth": {
        "read": "Bytes read per second.",
        "write": "Bytes written per second.",
        "total": "Bytes read and written per second, both together.",
    },
    "Disk": {
        "vendor": "First half of the key of the disk's model function.",
        "model": "Second half of the key of the disk's model function.",
    },
    "DiskSource": {
        "deviceGeneration": "metadata.generation of the NodeDiskDevice.",
        "statsGeneration": "metadata.generation of the NodeDiskIOStats.",
        "observedGeneration": "The generation of NodeDiskIOStats that its last report counts.",
    },
    "Exponential": {
        "k0": "Watts of the node under full load, about.",
        "k1": "k0 + k1 are the watts of the idle node.",
        "k2": "How fast watts rise with usage, per percent.",
    },
    "LabelSelector": {
        "matchLabels": "Labels that must all be there with these values.",
        "matchExpressions": "Expressions that must all hold.",
    },
    "LabelSelectorRequirement": {
        "key": "The label's key.",
        "operator": "How the label's value relates to `values`.",
        "values": "What the value is compared with; needed by In and NotIn.",
    },
    "NodeInventoryStatus": {
        "conditions": "Whether each concern's part can be relied upon, and why."
    },
    "NodeXPUStatus": {
        "observedGeneration": "The generation of `spec` that the status speaks of.",
        "conditions": "Whether the devices are known, fresh and not past their memory.",
    },
    "XPUSource": {"generation": "metadata.generation of the NodeXPU."},
    "XPUTotals": {
        "devices": "Devices.",
        "healthy": "Devices that can be used.",
        "memoryMiB": "Memory of all.",
        "allocatedMiB": "What pods have.",
        "freeMiB": "What is left on healthy devices.",
        "largestFreeMiB": "What one pod can still get of one device.",
        "pendingMiB": "What bound pods without a device ask for.",
    },
    "StatusCondition": {
        "type": "What the condition is about.",
        "status": "Whether it holds.",
        "reason": "Why, in one word for programs.",
        "message": "Why, in words for people.",
        "observedGeneration": "The generation that the condition speaks of.",
        "lastTransitionTime": "When `status` last changed.",
    },
}
_LIMITS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_API_VERSION = "Group and version of this object's schema."
_KIND = "The kind of this object."


def schema_of(model: type[BaseModel]) -> Schema:
    """Return a model as a structural schema: references inlined, no nulls, no titles."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _render(schema, schema.get("$defs", {}))


def _render(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    options = [it for it in node.get("anyOf", ()) if it.get("type") != "null"]
    if options and "x-kubernetes-int-or-string" not in node:
        # Either absent or of the one type that is not null.
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _render({**options[0], **rest}, definitions)
    words = _WORDS.get(node.get("title", ""), {})
    rendered: Schema = {}
    for key, value in sorted(node.items()):
        if key in _DROPPED or (key == "default" and value in (None, [], {})):
            continue
        if key == "properties":
            rendered[key] = {
                name: _render({**_described(words.get(name)), **it}, definitions)
                for name, it in value.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            rendered[key] = _render(value, definitions)
        elif key == "default":
            rendered[key] = _default(value)
        elif key in _LIMITS:
            # In the API server's dialect a bound is a number, and whether it counts itself a flag.
            rendered |= {_LIMITS[key]: value, key: True}
        else:
            rendered[key] = value
    return rendered


def _described(words: str | None) -> Schema:
    return {"description": words} if words else {}


def _default(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _default(it) for key, it in value.items() if it not in (None, [], {})}
    return value


def _policy_schema() -> Schema:
    spec = schema_of(PlacementPolicySpec)
    spec["x-kubernetes-validations"] = _POLICY_RULES
    for name in _SELECTORS:
        expressions = spec["properties"][name]["properties"]["matchExpressions"]
        expressions["maxItems"] = 64
        expressions["items"]["x-kubernetes-validations"] = [_ONE_OF_VALUES]
        expressions["items"]["properties"]["values"]["maxItems"] = 256
    disk = spec["properties"]["concerns"]["properties"]["diskio"]["properties"]
    disk["nsWhiteList"]["x-kubernetes-list-type"] = "set"
    dataset = spec["properties"]["concerns"]["properties"]["dataset"]["properties"]
    dataset["tiers"]["x-kubernetes-validations"] = _TIER_RULES
    dataset["overload"]["x-kubernetes-validations"] = _OVERLOAD_RULES
    spec["properties"]["schedulerNames"]["x-kubernetes-list-type"] = "set"
    # So that the API server fills the defaults below where a user left the level out.
    spec["properties"]["concerns"]["default"] = {name: {} for name in _CONCERNS}
    for name in _CONCERNS:
        spec["properties"]["concerns"]["properties"][name]["default"] = {}
    return _with_root(
        {"spec": {**spec, "default": {}}}, "Which pods are placed, how, and with which settings."
    )


def _inventory_schema() -> Schema:
    status = schema_of(NodeInventoryStatus)
    for name, keys in (
        ("disks", ["id"]),
        ("zones", ["id"]),
        ("xpus", ["index"]),
        ("datasets", ["namespace", "name"]),
        ("conditions", ["type"]),
    ):
        status["properties"][name]["x-kubernetes-list-type"] = "map"
        status["properties"][name]["x-kubernetes-list-map-keys"] = keys
    return _with_root({"status": status}, "What one node has, as its exporters report it.")


def _node_xpu_schema() -> Schema:
    spec, status = schema_of(NodeXPUSpec), schema_of(NodeXPUStatus)
    for part, name, key in (
        (spec, "devices", "index"),
        (status, "devices", "index"),
        (status, "conditions", "type"),
    ):
        part["properties"][name]["x-kubernetes-list-type"] = "map"
        part["properties"][name]["x-kubernetes-list-map-keys"] = [key]
    spec["properties"]["devices"]["x-kubernetes-validations"] = _NODE_XPU_RULES
    return _with_root({"spec": spec, "status": status}, "A node's accelerators, and who has them.")


def _power_model_schema() -> Schema:
    spec = schema_of(PowerModelSpec)
    expressions = spec["properties"]["nodeSelector"]["properties"]["matchExpressions"]
    expressions["maxItems"] = 64
    expressions["items"]["x-kubernetes-validations"] = [_ONE_OF_VALUES]
    expressions["items"]["properties"]["values"]["maxItems"] = 256
    forms = ("exponential", "polynomial", "table")
    spec["x-kubernetes-validations"] = [
        {
            "rule": f"[{', '.join(f'has(self.{it})' for it in forms)}].filter(it, it).size() == 1",
            "message": f"expected one of {', '.join(forms)}",
        }
    ]
    return _with_root(
        {"spec": spec}, "What nodes draw at some CPU usage, for where no model server is."
    )


def _with_root(parts: Mapping[str, Schema], description: str) -> Schema:
    properties = {
        "apiVersion": {"description": _API_VERSION, "type": "string"},
        "kind": {"description": _KIND, "type": "string"},
        "metadata": {"type": "object"},
        **parts,
    }
    return {"type": "object", "description": description, "properties": properties}


def _crd(
    kind: str,
    plural: str,
    short: str,
    schema: Schema,
    columns: Sequence[tuple[str, str, str]],
    wide: Sequence[tuple[str, str, str]] = (),
) -> Schema:
    """Return a CRD; `columns` are name, type and path, `wide` those that only `-o wide` shows."""
    columns = [*columns, ("Age", "date", ".metadata.creationTimestamp")]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["berthmaster"],
            },
            "scope": "Cluster",
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path}
                        for name, type_, path in columns
                    ]
                    + [
                        {"name": name, "type": type_, "jsonPath": path, "priority": 1}
                        for name, type_, path in wide
                    ],
                }
            ],
        },
    }


def render() -> dict[str, Schema]:
    """Return our CRDs by file name."""
    disk_io, topology = (
        f".status.conditions[?(@.type=='{it}')]"
        for it in (names.DISK_IO_READY, names.TOPOLOGY_READY)
    )
    inventories = _crd(
        "NodeInventory",
        "nodeinventories",
        "ninv",
        _inventory_schema(),
        [
            ("Free-Disk", "string", ".status.freeDisk"),
            ("Free-CPUs", "string", ".status.freeZones"),
            ("XPUs", "string", ".status.xpuSummary"),
            ("Power", "string", ".status.powerNow"),
            ("Disk-IO", "string", f"{disk_io}.status"),
            ("Reason", "string", f"{disk_io}.reason"),
            ("Topology", "string", f"{topology}.reason"),
        ],
        wide=[
            ("NUMA-Policy", "string", ".status.topology.policy"),
            ("NUMA-Scope", "string", ".status.topology.scope"),
        ],
    )
    node_xpus = _crd(
        "NodeXPU",
        "nodexpus",
        "nxpu",
        _node_xpu_schema(),
        [
            ("Devices", "integer", ".status.totals.devices"),
            ("Healthy", "integer", ".status.totals.healthy"),
            ("Total", "integer", ".status.totals.memoryMiB"),
            ("Allocated", "integer", ".status.totals.allocatedMiB"),
            ("Largest-Free", "integer", ".status.totals.largestFreeMiB"),
            ("Source", "string", ".spec.source"),
        ],
    )
    policies = _crd(
        "PlacementPolicy",
        "placementpolicies",
        "berth",
        _policy_schema(),
        [("Mode", "string", ".spec.mode"), ("Priority", "integer", ".spec.priority")],
    )
    power_models = _crd(
        "PowerModel",
        "powermodels",
        "pwr",
        _power_model_schema(),
        [("Priority", "integer", ".spec.priority")],
    )
    return {
        f"{names.GROUP}_{crd['spec']['names']['plural']}.yaml": crd
        for crd in (inventories, node_xpus, policies, power_models)
    }


def render_text(crd: Schema) -> str:
    """Return a CRD as the text of its file."""
    head = "# Written by `make crds` from the models in core/berthmaster/api; change those.\n"
    return head + yaml.dump(crd, Dumper=_PlainDumper, sort_keys=False, width=100)


class _PlainDumper(yaml.SafeDumper):
    """Writes equal parts in full instead of referring to the first."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def main(folder: Path) -> None:
    """Write our CRDs into a folder."""
    for name, crd in render().items():
        (folder / name).write_text(render_text(crd), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
