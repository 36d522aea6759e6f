"""The CRD files are what the models say, and upstream's kinds are as their drivers know them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.api import crds, names

FOLDER = Path(__file__).parents[2] / "crds"
OURS = crds.render()
UPSTREAM = ("nodediskdevices", "nodediskiostats")
# Kubernetes explains these itself.
TRIVIAL = frozenset({"metadata"})


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return loaded


def load_upstream(plural: str) -> dict[str, Any]:
    return load(f"{names.DISKIO_GROUP}_{plural}.yaml")


def root_of(crd: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every level of a schema below its root, with its path; items and values are `*`."""
    children = dict(schema.get("properties", {}))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            children["*"] = schema[key]
    for name, child in children.items():
        yield f"{path}.{name}", child
        yield from walk(child, f"{path}.{name}")


def test_every_file_is_in_the_kustomization() -> None:
    listed = load("kustomization.yaml")["resources"]

    assert sorted(listed) == sorted(
        path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    )


def test_our_files_are_those_that_the_models_render() -> None:
    assert set(OURS) == {path.name for path in FOLDER.glob(f"{names.GROUP}_*")}


@pytest.mark.parametrize("name", OURS)
def test_file_is_as_rendered(name: str) -> None:
    committed = (FOLDER / name).read_text(encoding="utf-8")

    assert committed == crds.render_text(OURS[name]), "run `make crds`"


@pytest.mark.parametrize("name", OURS)
def test_written_out_in_full(name: str) -> None:
    tokens = yaml.scan((FOLDER / name).read_text(encoding="utf-8"))

    assert not [it for it in tokens if isinstance(it, yaml.AnchorToken | yaml.AliasToken)]


@pytest.mark.parametrize("name", OURS)
def test_every_property_is_explained(name: str) -> None:
    unexplained = [
        path
        for path, schema in walk(root_of(load(name)))
        if not schema.get("description")
        and path.rpartition(".")[2] not in TRIVIAL
        and not path.endswith(".*")
    ]

    assert unexplained == []


@pytest.mark.parametrize("name", OURS)
def test_schema_is_structural(name: str) -> None:
    for path, schema in walk(root_of(load(name))):
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "title", "oneOf", "allOf"} & set(schema), path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert isinstance(schema.get(bound, True), bool), path


@pytest.mark.parametrize("name", OURS)
def test_status_is_written_apart(name: str) -> None:
    (version,) = load(name)["spec"]["versions"]

    assert version["subresources"] == {"status": {}}
    assert version["served"] is version["storage"] is True
    assert all(column["jsonPath"].startswith(".") for column in version["additionalPrinterColumns"])


@pytest.mark.parametrize("plural", UPSTREAM)
def test_upstream_kind_is_served_as_its_drivers_ask(plural: str) -> None:
    spec = load_upstream(plural)["spec"]
    kinds = {"nodediskdevices": "NodeDiskDevice", "nodediskiostats": "NodeDiskIOStats"}

    assert spec["group"] == names.DISKIO_GROUP == "diskio.x-k8s.io"
    assert spec["scope"] == "Namespaced"
    assert spec["names"]["plural"] == plural
    assert spec["names"]["kind"] == kinds[plural]
    (version,) = spec["versions"]
    assert version["name"] == "v1alpha1"
    assert version["served"] is version["storage"] is True
    assert version["subresources"] == {"status": {}}


# Upstream's plural of the reports is the singular: NodeDiskIOStats has nothing to add an s to.
@pytest.mark.parametrize(
    ("plural", "path", "type_"),
    [
        ("nodediskdevices", ".spec.nodeName", "string"),
        ("nodediskdevices", ".spec.devices", "object"),
        ("nodediskdevices", ".spec.devices.*.name", "string"),
        ("nodediskdevices", ".spec.devices.*.type", "string"),
        ("nodediskdevices", ".spec.devices.*.vendor", "string"),
        ("nodediskdevices", ".spec.devices.*.model", "string"),
        ("nodediskdevices", ".spec.devices.*.capacity.read", "quantity"),
        ("nodediskdevices", ".spec.devices.*.capacity.write", "quantity"),
        ("nodediskdevices", ".spec.devices.*.capacity.total", "quantity"),
        ("nodediskiostats", ".spec.nodeName", "string"),
        ("nodediskiostats", ".spec.reservedPods", "array"),
        ("nodediskiostats", ".spec.reservedPods.*", "string"),
        ("nodediskiostats", ".status.observedGeneration", "integer"),
        ("nodediskiostats", ".status.allocableBandwidth", "object"),
        ("nodediskiostats", ".status.allocableBandwidth.*.read", "quantity"),
        ("nodediskiostats", ".status.allocableBandwidth.*.write", "quantity"),
        ("nodediskiostats", ".status.allocableBandwidth.*.total", "quantity"),
    ],
)
def test_upstream_field_is_there(plural: str, path: str, type_: str) -> None:
    schema = dict(walk(root_of(load_upstream(plural))))[path]

    found = "quantity" if schema.get("x-kubernetes-int-or-string") else schema["type"]
    assert found == type_


def test_upstream_requires_only_what_it_always_did() -> None:
    required = {
        (plural, path): schema["required"]
        for plural in UPSTREAM
        for path, schema in walk(root_of(load_upstream(plural)))
        if "required" in schema
    }

    assert required == {
        ("nodediskdevices", ".spec.devices.*"): ["name"],
        ("nodediskiostats", ".spec"): ["nodeName"],
    }


@pytest.mark.parametrize("plural", UPSTREAM)
def test_upstream_file_names_source_and_licence(plural: str) -> None:
    text = (FOLDER / f"{names.DISKIO_GROUP}_{plural}.yaml").read_text(encoding="utf-8")
    head = text.splitlines()[0]

    assert head.startswith("# source: kubernetes-sigs/scheduler-plugins")
    assert head.endswith("licence: Apache-2.0")


def test_inventories_show_free_cpus_and_how_zones_are_used() -> None:
    version = OURS["berthmaster.io_nodeinventories.yaml"]["spec"]["versions"][0]
    columns = {it["name"]: it for it in version["additionalPrinterColumns"]}

    assert columns["Free-CPUs"]["jsonPath"] == ".status.freeZones"
    assert "priority" not in columns["Free-CPUs"]
    wide = [name for name, it in columns.items() if it.get("priority")]
    assert wide == ["NUMA-Policy", "NUMA-Scope"]
