"""What the components and the example overlay are made of, built by kubectl as users build them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.api import names
from berthmaster_operator.certifying import webhook_names
from berthmaster_sandbox.cluster import Sandbox
from support.overlays import COMPONENTS, CONFIG, build, write_overlay

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

Manifest = dict[str, Any]


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (it for it in objects if (it["kind"], it["metadata"]["name"]) == (kind, name))
    return found


def load(path: str) -> Manifest:
    loaded: Manifest = yaml.safe_load((CONFIG / path).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("component", COMPONENTS)
async def test_component_builds_alone(sandbox: Sandbox, tmp_path: Path, component: str) -> None:
    plain = await build(sandbox, write_overlay(tmp_path / "plain", base="default"))
    with_it = await build(sandbox, write_overlay(tmp_path / "with", component, base="default"))

    assert plain != with_it
    elsewhere = {
        (it["metadata"]["namespace"], it["kind"])
        for it in with_it
        if it["metadata"].get("namespace", names.SYSTEM_NAMESPACE) != names.SYSTEM_NAMESPACE
    }
    # In others' namespaces the operator may read what it has to, and nothing of ours runs there.
    assert {kind for _, kind in elsewhere} == {"Role", "RoleBinding"}
    assert {namespace for namespace, _ in elsewhere} == {
        "ioi-system",
        "kube-system",
        *(["wao-system"] if component == "wao" else []),
    }


async def test_all_components_build_together(sandbox: Sandbox, tmp_path: Path) -> None:
    objects = await build(sandbox, write_overlay(tmp_path, *COMPONENTS, base="default"))

    operator = find(objects, "Deployment", "berthmaster-operator")["spec"]
    (container,) = operator["template"]["spec"]["containers"]
    variables = {it["name"]: it.get("value") for it in container["env"]}
    assert operator["replicas"] == 2
    assert (
        variables.items()
        >= {"BERTHMASTER_CERTIFICATE_ISSUER": "secret", "BERTHMASTER_GATES": "webhook"}.items()
    )
    assert "POD_NAME" in variables
    assert not [it for it in objects if it["kind"].startswith("MutatingAdmissionPolicy")]
    assert [it for it in objects if it["kind"].startswith("ValidatingAdmissionPolicy")]


async def test_example_is_what_a_user_would_write(sandbox: Sandbox) -> None:
    objects = await build(sandbox, CONFIG / "overlays" / "example")

    for name in ("berthmaster-operator", "berthmaster-webhook"):
        spec = find(objects, "Deployment", name)["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        assert spec["replicas"] == 2
        assert container["image"] == "registry.example.com/platform/berthmaster:0.1.0"
        assert {"name": "BERTHMASTER_LOG_LEVEL", "value": "warning"} in container["env"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert find(objects, "PlacementPolicy", "databases")


# ha


@pytest.mark.parametrize("program", ["operator", "webhook"])
async def test_disruption_budget_cannot_block_the_last_or_a_broken_one(program: str) -> None:
    spec = load(f"components/ha/{program}-pod-disruption-budget.yaml")["spec"]

    # With minAvailable a single replica could never be evicted.
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# cert-manager


async def test_certificate_is_for_every_name_that_is_called() -> None:
    spec = load("components/cert-manager/webhook-certificate.yaml")["spec"]

    assert tuple(spec["dnsNames"]) == webhook_names(names.SYSTEM_NAMESPACE)
    assert spec["secretName"] == names.ISSUED_SECRET
    assert spec["privateKey"]["rotationPolicy"] == "Always"


async def test_operator_reads_what_was_issued_and_nothing_more() -> None:
    (rule,) = load("components/cert-manager/issued-role.yaml")["rules"]

    assert rule["resourceNames"] == [names.ISSUED_SECRET]
    assert rule["verbs"] == ["get", "list", "watch"]


# prometheus


@pytest.mark.parametrize("program", ["operator", "webhook"])
async def test_monitors_scrape_ports_that_exist(program: str) -> None:
    monitor = load(f"components/prometheus/{program}-pod-monitor.yaml")["spec"]
    pod = load(f"base/{program}/deployment.yaml")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (endpoint,) = monitor["podMetricsEndpoints"]

    assert endpoint["port"] in {it["name"] for it in container["ports"]}
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


# pre-1.36


def squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip())


async def test_own_gate_has_the_conditions_of_the_policy() -> None:
    policy = load("base/admission/gate-annotated-policy.yaml")["spec"]["matchConditions"]
    configuration = load("components/pre-1.36/gate-webhook-configuration.yaml")
    (hook,) = (it for it in configuration["webhooks"] if it["name"] == "annotated.berthmaster.io")
    (exempt,) = hook["namespaceSelector"]["matchExpressions"]

    wanted = {it["name"]: squeeze(it["expression"]) for it in policy}
    found = {it["name"]: squeeze(it["expression"]) for it in hook["matchConditions"]}
    # By selector instead, so that exempt namespaces do not depend on an expression.
    assert wanted.pop("not-exempt-namespace")
    assert set(exempt["values"]) == set(names.EXEMPT_NAMESPACES)
    assert exempt["operator"] == "NotIn"
    # An error in a condition refuses the pod here, so each one is guarded by itself.
    guard = "!has(object.metadata.annotations) || "
    assert found.pop("not-a-mirror") == guard + wanted.pop("not-a-mirror")
    assert found == wanted


async def test_no_webhook_that_may_refuse_matches_exempt_namespaces() -> None:
    configuration = load("components/pre-1.36/gate-webhook-configuration.yaml")

    for hook in configuration["webhooks"]:
        (exempt,) = hook["namespaceSelector"]["matchExpressions"]
        assert set(exempt["values"]) == set(names.EXEMPT_NAMESPACES)
        assert (hook["failurePolicy"], exempt["operator"]) in (("Fail", "NotIn"), ("Ignore", "In"))


# Network policies


def all_manifests(folder: str) -> list[Manifest]:
    return [
        it
        for path in (CONFIG / folder).rglob("*.yaml")
        for it in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("program", ["operator", "webhook"])
async def test_network_policy_opens_exactly_the_ports_that_are_served(program: str) -> None:
    pod = load(f"base/{program}/deployment.yaml")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    policy = load(f"base/network/{program}-network-policy.yaml")["spec"]

    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == {it["containerPort"] for it in container["ports"]}
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


async def test_no_file_grants_secrets_at_large() -> None:
    for manifest in all_manifests("components"):
        for rule in manifest.get("rules", ()) if "Role" in manifest.get("kind", "") else ():
            # What is created has no name yet.
            is_creation = rule["verbs"] == ["create"] and "secrets" not in rule["resources"]
            is_status = all(it.endswith("/status") for it in rule["resources"])
            # NodeConfigs name Secrets of WAO's own namespace as they like; who has them opens it.
            is_of_wao = manifest["metadata"].get("namespace") == "wao-system"
            is_known = rule.get("resourceNames") or (is_of_wao and rule["verbs"] == ["get"])
            assert is_known or is_creation or is_status, rule
            assert not [it for part in rule.values() for it in part if "*" in it], rule


# extender


async def test_extender_is_served_where_service_and_policies_say(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    objects = await build(sandbox, write_overlay(tmp_path, "extender", base="default"))

    pod = find(objects, "Deployment", "berthmaster-webhook")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    variables = {it["name"]: it.get("value") for it in container["env"]}
    ports = {it["containerPort"] for it in container["ports"]}
    port = int(variables["BERTHMASTER_EXTENDER_PORT"])
    service = find(objects, "Service", "berthmaster-extender")["spec"]
    opened = {
        it["port"]
        for policy in ("berthmaster-extender", "berthmaster-webhook")
        for rule in find(objects, "NetworkPolicy", policy)["spec"]["ingress"]
        for it in rule["ports"]
    }
    assert port in ports == opened
    assert [it["targetPort"] for it in service["ports"]] == [port]
    assert service["selector"]["berthmaster.io/role"] == "leader"
    (mount,) = (it for it in container["volumeMounts"] if it["name"] == "extender")
    assert variables["BERTHMASTER_EXTENDER_CLIENT_CA_FILE"] == f"{mount['mountPath']}/ca.crt"


async def test_only_the_extender_may_bind(sandbox: Sandbox, tmp_path: Path) -> None:
    plain = await build(sandbox, write_overlay(tmp_path / "plain", base="default"))
    with_it = await build(sandbox, write_overlay(tmp_path / "with", "extender", base="default"))

    def binders(objects: list[Manifest]) -> list[str]:
        roles = [it for it in objects if it["kind"] in ("Role", "ClusterRole")]
        return [
            it["metadata"]["name"]
            for it in roles
            if any("pods/binding" in rule.get("resources", ()) for rule in it["rules"])
        ]

    assert binders(plain) == []
    assert binders(with_it) == ["berthmaster-extender"]
