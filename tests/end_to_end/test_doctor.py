"""`kubectl berth doctor` against deliberate breakages: it names the part, and its way out helps.

Each test breaks one thing in a whole installation, waits until the doctor says so, does what the
doctor says (the very command, where it is one), and waits until everything is well again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from berthmaster.cli.doctor.findings import Finding, State
from berthmaster.cli.doctor.gathering import gather
from berthmaster.cli.doctor.reporting import diagnose
from berthmaster_operator import certificates
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.installing import CONFIG, PROJECT
from berthmaster_sandbox.processes import build_environment
from berthmaster_sandbox.world.diskio import DiskWorld
from support.commands import BERTH, run
from support.harbour import (
    POLICIES,
    SYSTEM,
    apply_models,
    apply_policy,
    new_namespace,
    own_installation,
    scale_program,
    until,
    until_reason,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

NAMESPACE = "doctor"
NODE = "doctored"
DEADLINE_S = 90.0
# The least patient policy counts, so each one here has to be.
PATIENT = {"concerns": {"diskio": {"staleAfter": "1h"}}}
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
HOOK = f"{ADMISSION}/mutatingwebhookconfigurations/zz-berthmaster"
TLS_SECRET = f"/api/v1/namespaces/{SYSTEM}/secrets/berthmaster-webhook-tls"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """An installation of our own, in which nothing that others left is wrong."""
    async with own_installation() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[DiskWorld]:
    """One node whose disk is known, so that there is something to be fresh."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    # The simulated driver has no heartbeat, and nothing to say for minutes.
    await apply_policy(harbour, "patient", PATIENT)
    await harbour.create_nodes(1, name=NODE)
    async with DiskWorld(harbour.client) as running:
        await running.add_node(NODE, devices={"d": disk(1000, 1000, 2000)})
        await until_reason(harbour, NODE, "Reported")
        yield running


async def examine(harbour: Sandbox) -> list[Finding]:
    """Return what the doctor finds that is not ok."""
    findings = diagnose(await gather(harbour.client, namespace=NAMESPACE))
    return [it for it in findings if it.state is not State.OK]


async def until_well(harbour: Sandbox) -> None:
    await until(lambda: examine(harbour), lambda found: not found, DEADLINE_S)


async def until_found(
    harbour: Sandbox, part: str, words: str, *, state: State = State.BROKEN
) -> Finding:
    """Wait until the doctor says something with these words; return that finding."""

    def fitting(findings: list[Finding]) -> list[Finding]:
        return [it for it in findings if (it.part, it.state) == (part, state) and words in it.found]

    found = await until(lambda: examine(harbour), lambda it: bool(fitting(it)), DEADLINE_S)
    finding = fitting(found)[0]
    assert finding.way_out
    return finding


async def stop_operator(harbour: Sandbox) -> Finding:
    """Scale the operator to 0 and wait until it does nothing any more; return what to do."""
    await scale_program(harbour, "berthmaster-operator", 0)
    await until_found(harbour, "leader", "no operator leads")
    return await until_found(harbour, "programs", "berthmaster-operator is scaled to 0")


async def follow(harbour: Sandbox, finding: Finding) -> None:
    """Do what the doctor says, in the repository's folder, as the sandbox's administrator."""
    command = finding.way_out.partition("#")[0].strip()
    # What a sandbox was installed from is an overlay.
    command = command.replace("config/default", str(CONFIG.relative_to(PROJECT)))
    words = shlex.split(command)
    assert words[0] == "kubectl", f"no command: {finding.way_out}"
    process = await asyncio.create_subprocess_exec(
        str(harbour.binaries.kubectl),
        *words[1:],
        cwd=PROJECT,
        env=build_environment({"KUBECONFIG": str(harbour.kubeconfig)}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_whole_installation_is_well(harbour: Sandbox, world: DiskWorld) -> None:
    await until_well(harbour)
    code, output, errors = await run(harbour, BERTH, "doctor", "-n", NAMESPACE)

    assert (code, errors) == (0, "")
    assert output.startswith("Berthmaster is well: ")
    parts = {line[2:].partition("   ")[0] for line in output.splitlines() if " ok " in line}
    assert {
        "API server",
        "kinds",
        "rights",
        "programs",
        "versions",
        "leader",
        "service",
        "gate",
        "webhook call",
        "certificate",
        "other webhooks",
        "dry run",
        "policies",
        "disk IO",
        "NUMA",
        "opt-in",
    } <= parts


@pytest.mark.parametrize("program", ["operator", "webhook"])
async def test_program_scaled_to_nothing(program: str, harbour: Sandbox, world: DiskWorld) -> None:
    await scale_program(harbour, f"berthmaster-{program}", 0)

    finding = await until_found(harbour, "programs", f"berthmaster-{program} is scaled to 0")
    code, output, errors = await run(harbour, BERTH, "doctor")
    assert (code, errors) == (1, "")
    assert output.startswith("Berthmaster is broken: ")
    assert f"\n  programs:\n    {finding.way_out}\n" in output
    await until_found(harbour, "leader", f"no {program} leads")
    if program == "webhook":
        await until_found(harbour, "service", "leads nowhere")
        await until_found(harbour, "dry run", "created behind the gate", state=State.WARNING)
    await follow(harbour, finding)
    await until_well(harbour)


async def test_webhook_configuration_deleted(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.client.delete(HOOK)

    finding = await until_found(harbour, "webhook call", "zz-berthmaster is missing")
    await follow(harbour, finding)
    await until_well(harbour)


@pytest.mark.parametrize(
    ("plural", "name", "loss"),
    [
        (
            "mutatingadmissionpolicybindings",
            "berthmaster-gate-annotated",
            "pods that ask by annotation are not gated",
        ),
        (
            "validatingadmissionpolicies",
            "berthmaster-protect-allocation",
            "anybody can change an allocation",
        ),
    ],
)
async def test_admission_object_deleted(
    plural: str, name: str, loss: str, harbour: Sandbox, world: DiskWorld
) -> None:
    await harbour.client.delete(f"{ADMISSION}/{plural}/{name}")

    finding = await until_found(harbour, "gate", f"{name} is missing: {loss}")
    await follow(harbour, finding)
    await until_well(harbour)


async def test_service_selects_somebody_else(harbour: Sandbox, world: DiskWorld) -> None:
    patch = json.dumps({"spec": {"selector": {"app.kubernetes.io/name": "somebody"}}})
    await harbour.kubectl("-n", SYSTEM, "patch", "service/berthmaster-webhook", "-p", patch)

    finding = await until_found(
        harbour,
        "service",
        "app.kubernetes.io/name=somebody,berthmaster.io/role=leader, which the leader",
    )
    await follow(harbour, finding)
    await until_well(harbour)


async def test_role_binding_deleted(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.kubectl("delete", "clusterrolebinding", "berthmaster-webhook")

    finding = await until_found(
        harbour, "rights", "the service account berthmaster-webhook may not"
    )
    await follow(harbour, finding)
    await until_well(harbour)


async def test_bundle_overwritten_with_another_authority(
    harbour: Sandbox, world: DiskWorld
) -> None:
    # While the operator runs it puts the bundle right at once.
    operator = await stop_operator(harbour)
    other = base64.b64encode(certificates.issue_authority(datetime.now(UTC)).certificate).decode()
    patch = [{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": other}]
    await harbour.kubectl(
        "patch",
        "mutatingwebhookconfiguration/zz-berthmaster",
        "--type=json",
        "-p",
        json.dumps(patch),
    )

    finding = await until_found(harbour, "certificate", "of an authority that the caBundle")
    assert "the operator renews it within seconds while it runs" in finding.way_out
    await until_found(harbour, "dry run", "created behind the gate", state=State.WARNING)
    await follow(harbour, operator)
    await until_well(harbour)


async def test_expired_certificate(harbour: Sandbox, world: DiskWorld) -> None:
    operator = await stop_operator(harbour)
    past = datetime.now(UTC) - timedelta(days=400)
    leaf = certificates.issue_leaf(
        certificates.issue_authority(past),
        certificates.service_names("berthmaster-webhook", SYSTEM),
        past,
    )
    data = {"tls.crt": leaf.certificate, "tls.key": leaf.key}
    patch = {"data": {key: base64.b64encode(text).decode() for key, text in data.items()}}
    await harbour.kubectl(
        "-n", SYSTEM, "patch", "secret/berthmaster-webhook-tls", "-p", json.dumps(patch)
    )

    finding = await until_found(harbour, "certificate", "it ended")
    await follow(harbour, finding)
    await follow(harbour, operator)
    await until_well(harbour)


async def test_policy_that_never_reached_the_api_server(harbour: Sandbox, world: DiskWorld) -> None:
    operator = await stop_operator(harbour)
    selector = {"namespaceSelector": {"matchLabels": {"doctor": "unbound"}}}
    await apply_policy(harbour, "unbound", {**selector, **PATIENT})

    await until_found(harbour, "policies", "unbound opts no pod in")
    await until_found(harbour, "policies", "selects no namespace", state=State.WARNING)
    await follow(harbour, operator)
    await harbour.kubectl("label", "namespace", NAMESPACE, "doctor=unbound")
    await until_well(harbour)
    await harbour.client.delete(f"{POLICIES}/unbound")


async def test_silent_driver(harbour: Sandbox, world: DiskWorld) -> None:
    beat = (
        "-n",
        "ioi-system",
        "annotate",
        "--overwrite",
        f"nodediskiostats/{NODE}-nodediskiostats",
    )
    await harbour.kubectl(*beat, "berthmaster.io/heartbeat=1")
    await apply_policy(harbour, "impatient", {"concerns": {"diskio": {"staleAfter": "5s"}}})

    finding = await until_found(harbour, "disk IO", f"Stale on {NODE}", state=State.WARNING)
    assert f"spec.nodeName={NODE}" in finding.way_out
    await harbour.client.delete(f"{POLICIES}/impatient")
    await harbour.kubectl(*beat, "berthmaster.io/heartbeat=2")
    await until_well(harbour)


async def test_opt_in_on_the_deployment_instead_of_its_template(
    harbour: Sandbox, world: DiskWorld
) -> None:
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10"}]},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "annotations": {"berthmaster.io/placement": "required"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template,
        },
    }
    await harbour.client.create(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", deployment)

    finding = await until_found(
        harbour, "opt-in", f"Deployment {NAMESPACE}/web", state=State.WARNING
    )
    await follow(harbour, finding)
    await until_well(harbour)


async def test_foreign_webhook_after_ours(harbour: Sandbox, world: DiskWorld) -> None:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    foreign = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zzz-injector"},
        "webhooks": [
            {
                "name": "injector.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 30,
                # Nobody is called for it.
                "objectSelector": {"matchLabels": {"doctor": "nobody"}},
                "clientConfig": {"url": "https://127.0.0.1:1/"},
                "rules": [rule],
            }
        ],
    }
    await harbour.client.create(f"{ADMISSION}/mutatingwebhookconfigurations", foreign)

    await until_found(harbour, "other webhooks", "zzz-injector", state=State.WARNING)
    await harbour.client.delete(f"{ADMISSION}/mutatingwebhookconfigurations/zzz-injector")
    await until_well(harbour)


async def test_who_may_read_nothing_is_told_so(harbour: Sandbox, world: DiskWorld) -> None:
    await harbour.kubectl("-n", NAMESPACE, "create", "serviceaccount", "nobody")
    kubeconfig = await _kubeconfig_of(harbour, "nobody")

    code, output, errors = await run(
        harbour, BERTH, "doctor", "-n", NAMESPACE, "-o", "json", KUBECONFIG=str(kubeconfig)
    )

    assert (code, errors) == (0, "")
    found = json.loads(output)["findings"]
    unread = {it["found"] for it in found if it["state"] == "not checked"}
    assert {it["state"] for it in found} <= {"ok", "not checked"}
    assert (
        f"the serving certificate: needs get secrets/berthmaster-webhook-tls in {SYSTEM}" in unread
    )
    assert any("needs create subjectaccessreviews.authorization.k8s.io" in it for it in unread)
    assert f"a pod that asks: needs create pods in {NAMESPACE}" in unread


async def test_api_server_that_is_away_is_a_finding(harbour: Sandbox, world: DiskWorld) -> None:
    config = json.loads((await harbour.kubectl("config", "view", "--raw", "-o", "json")).stdout)
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    kubeconfig = harbour.folder / "doctor-away"
    kubeconfig.write_text(json.dumps(config))
    os.chmod(kubeconfig, 0o600)

    code, output, errors = await run(
        harbour, BERTH, "doctor", "-o", "json", KUBECONFIG=str(kubeconfig)
    )

    assert (code, errors) == (1, "")
    (finding,) = json.loads(output)["findings"]
    assert (finding["part"], finding["state"]) == ("API server", "broken")
    assert "cannot reach the cluster at https://127.0.0.1:1" in finding["found"]


async def _kubeconfig_of(harbour: Sandbox, account: str) -> Path:
    """Return a kubeconfig with the rights of a service account."""
    token = (await harbour.kubectl("-n", NAMESPACE, "create", "token", account)).stdout.strip()
    config = json.loads((await harbour.kubectl("config", "view", "--raw", "-o", "json")).stdout)
    for user in config["users"]:
        user["user"] = {"token": token}
    path = harbour.folder / f"doctor-{account}"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path
