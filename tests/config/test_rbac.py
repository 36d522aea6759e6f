"""Roles give no more than is used, and the programs run as a strict cluster wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.api import names

BASE = Path(__file__).parents[2] / "config" / "base"
ROLES = sorted(BASE.glob("rbac/*-role.yaml"))
BINDINGS = sorted(BASE.glob("rbac/*-role-binding.yaml"))
DEPLOYMENTS = sorted(BASE.glob("*/deployment.yaml"))
ACCOUNTS = {names.OPERATOR_SERVICE_ACCOUNT, names.WEBHOOK_SERVICE_ACCOUNT}


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def name_of(path: Path) -> str:
    return str(path.relative_to(BASE))


def reads(rule: dict[str, Any], resource: str) -> bool:
    return resource in rule["resources"] and bool({"get", "list", "watch"} & set(rule["verbs"]))


def rules() -> list[tuple[str, dict[str, Any]]]:
    return [
        (load(path)["kind"], {"apiGroups": [], "resources": [], **rule})
        for path in ROLES
        for rule in load(path)["rules"]
    ]


def test_roles_are_found() -> None:
    assert {load(path)["metadata"]["name"] for path in ROLES} >= ACCOUNTS
    assert len(BINDINGS) == 7
    # Who reads metrics is the cluster's to say.
    assert len(ROLES) == len(BINDINGS) + 1


@pytest.mark.parametrize("path", ROLES, ids=name_of)
def test_no_wildcard(path: Path) -> None:
    for rule in load(path)["rules"]:
        assert set(rule) <= {"apiGroups", "resources", "resourceNames", "nonResourceURLs", "verbs"}
        for part in rule.values():
            assert part, rule
            assert not [word for word in part if "*" in word], rule


@pytest.mark.parametrize("path", ROLES, ids=name_of)
def test_each_rule_has_its_reason(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    begun = [index for index, line in enumerate(lines) if line.startswith("  - ")]

    assert len(begun) == len(load(path)["rules"])
    for index in begun:
        assert lines[index - 1].startswith("  # "), f"line {index + 1}: {lines[index]}"


def test_secrets_are_read_by_name_only() -> None:
    secret = [(kind, rule) for kind, rule in rules() if "secrets" in rule["resources"]]

    assert secret
    for kind, rule in secret:
        assert kind == "Role", rule
        assert rule.get("resourceNames") or rule["verbs"] == ["create"], rule


def test_the_authoritys_key_is_not_for_the_webhook() -> None:
    readable = [
        name
        for rule in load(BASE / "rbac" / "webhook-role.yaml")["rules"]
        if reads(rule, "secrets")
        for name in rule["resourceNames"]
    ]

    assert readable == [names.WEBHOOK_TLS_SECRET]


def test_nobody_can_raise_their_own_rights() -> None:
    for _, rule in rules():
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), rule
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"], rule
        assert not {"pods/exec", "serviceaccounts/token"} & set(rule["resources"]), rule


def test_only_our_webhook_configuration_is_touched() -> None:
    kinds = {"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}
    touched = [rule.get("resourceNames") for _, rule in rules() if kinds & set(rule["resources"])]

    # By the operator and by the webhook.
    assert touched == [[names.WEBHOOK_CONFIGURATION]] * 2


@pytest.mark.parametrize("path", BINDINGS, ids=name_of)
def test_binding_names_a_role_and_an_account_of_ours(path: Path) -> None:
    binding = load(path)
    there = {(load(it)["kind"], load(it)["metadata"]["name"]) for it in ROLES}
    (subject,) = binding["subjects"]

    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in there
    assert subject["kind"] == "ServiceAccount"
    assert subject["name"] in ACCOUNTS | {names.VIEWER_SERVICE_ACCOUNT}
    assert subject["namespace"] == names.SYSTEM_NAMESPACE


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=name_of)
def test_deployment_is_restricted(path: Path) -> None:
    pod = load(path)["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod.get("volumes", ()))


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=name_of)
def test_deployment_is_probed_and_bounded(path: Path) -> None:
    pod = load(path)["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["serviceAccountName"] in ACCOUNTS
    assert {"livenessProbe", "readinessProbe"} <= set(container)
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_system_namespace_enforces_what_deployments_keep() -> None:
    namespace = load(BASE / "namespace.yaml")

    assert namespace["metadata"]["name"] == names.SYSTEM_NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
