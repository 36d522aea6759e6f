"""What the doctor concludes from facts; what a cluster of its own breaks is in end_to_end."""

from __future__ import annotations

import copy
import io
import json
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from berthmaster.api import crds, names
from berthmaster.api.objects import Pod
from berthmaster.cli import output
from berthmaster.cli.doctor import (
    datasets,
    definitions,
    gating,
    inventories,
    neighbours,
    pods,
    policies,
    programs,
    reporting,
    rights,
    workloads,
)
from berthmaster.cli.doctor.facts import Facts, Right, Unread
from berthmaster.cli.doctor.findings import Check, Finding, State
from berthmaster.cli.doctor.reading import describe
from cli.harbour import allocation, pod
from support.fake_api import Json

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
FACTS = Facts(
    now=NOW, cli_version="0.1.0", server_version="v1.36.3", system_namespace="berthmaster-system"
)
ROLES = Path(__file__).parents[2] / "config" / "base" / "rbac"


def found(check: Check, facts: Facts, state: State = State.WARNING) -> list[str]:
    """The words of all findings of a state; what is wrong has a way out."""
    findings = list(check(facts))
    for it in findings:
        assert it.way_out or it.state not in (State.WARNING, State.BROKEN)
    return [it.found for it in findings if it.state is state]


# Rights.


def roles() -> set[Right]:
    """What the roles in `config/` grant, bound to whom the bindings say."""
    manifests = [
        it
        for path in ROLES.glob("*.yaml")
        for it in yaml.safe_load_all(path.read_text())
        if it["kind"] != "Kustomization"
    ]
    by_key = {(it["kind"], it["metadata"]["name"]): it for it in manifests if "rules" in it}
    granted = set()
    for binding in (it for it in manifests if "roleRef" in it):
        role = by_key[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        namespace = role["metadata"].get("namespace", "")
        # Paths that are no resources are for readers, and nothing of ours needs them.
        for rule in (it for it in role["rules"] if "nonResourceURLs" not in it):
            granted |= {
                Right(subject["name"], verb, group, resource, namespace, name)
                for subject in binding["subjects"]
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in rule.get("resourceNames", [""])
            }
    return granted


def test_every_right_in_config_is_asked_for_and_no_other() -> None:
    asked, granted = set(rights.RIGHTS), roles()

    assert {str(it) for it in granted - asked} == set(), "add to RIGHTS in cli/doctor/rights.py"
    assert {str(it) for it in asked - granted} == set(), "take from RIGHTS in cli/doctor/rights.py"


def test_missing_rights_are_named_by_account() -> None:
    answers: dict[Right, bool | Unread] = dict.fromkeys(rights.RIGHTS, True)
    lacking = Right(names.OPERATOR_SERVICE_ACCOUNT, "patch", "", "nodes/status")
    answers[lacking] = False

    facts = replace(FACTS, rights=answers)

    assert found(rights.check, facts, State.BROKEN) == [
        "the service account berthmaster-operator may not patch nodes/status"
    ]
    assert found(rights.check, facts, State.OK) == [
        f"berthmaster-webhook may do all "
        f"{sum(it.account == 'berthmaster-webhook' for it in rights.RIGHTS)} things that it has to"
    ]


# Kinds.


def installed(name: str) -> Json:
    crd = next(
        (it for it in crds.render().values() if it["metadata"]["name"] == name),
        {"metadata": {"name": name}, "spec": {"versions": [{"name": "v1alpha1", "served": True}]}},
    )
    established = [{"type": "Established", "status": "True"}]
    return copy.deepcopy({**crd, "status": {"conditions": established}})


def test_schema_of_another_version_is_told_where_it_differs() -> None:
    whole = {name: installed(name) for name in definitions.ALL}
    assert found(definitions.check, replace(FACTS, definitions=whole)) == []

    name = "placementpolicies.berthmaster.io"
    schema = whole[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["description"] = "other words are no other schema"
    assert found(definitions.check, replace(FACTS, definitions=whole)) == []
    del schema["properties"]["spec"]["properties"]["priority"]
    assert found(definitions.check, replace(FACTS, definitions=whole)) == [
        f"{name} has the schema of another version: properties.spec.properties lacks priority"
    ]

    gone = {**whole, name: None}
    assert found(definitions.check, replace(FACTS, definitions=gone), State.BROKEN) == [
        f"the CustomResourceDefinition {name} is missing"
    ]


# Gate.


def test_cluster_without_mutating_policies_is_shown_the_way() -> None:
    facts = replace(FACTS, server_version="v1.34.1", admission_kinds=frozenset({gating.VALIDATING}))
    (first, *_) = gating.check(facts)
    assert first.state is State.BROKEN
    assert "v1.34.1) does not serve MutatingAdmissionPolicy" in first.found
    assert "config/components/pre-1.36" in first.way_out

    key = (gating.WEBHOOKS, names.GATE_CONFIGURATION)
    (first, *_) = gating.check(replace(facts, admission_objects={key: {}}))
    assert first.state is State.OK


# Programs.


def deployment(image: str, *, replicas: int = 1, available: int = 1, **fields: Any) -> Json:
    container = {"name": "c", "image": image, **fields}
    return {
        "metadata": {},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}},
        "status": {"availableReplicas": available},
    }


@pytest.mark.parametrize(
    ("operator", "webhook", "words"),
    [
        ("a/berthmaster:0.1.0", "a/berthmaster:0.1.0", None),
        ("localhost:5000/berthmaster:v0.1.0@sha256:ab", "berthmaster:0.1.0", None),
        (
            "berthmaster:0.1.0",
            "berthmaster:0.2.0",
            "the programs differ: berthmaster-operator 0.1.0, berthmaster-webhook 0.2.0",
        ),
        (
            "berthmaster:0.2.0",
            "berthmaster:0.2.0",
            "berthmaster-operator 0.2.0, berthmaster-webhook 0.2.0; this kubectl berth is 0.1.0 and "
            "may judge by other rules",
        ),
        (
            "berthmaster@sha256:ab",
            "berthmaster@sha256:cd",
            "the programs have different images: berthmaster-operator berthmaster@sha256:ab, "
            "berthmaster-webhook berthmaster@sha256:cd",
        ),
    ],
)
def test_versions_are_read_from_images(operator: str, webhook: str, words: str | None) -> None:
    facts = replace(
        FACTS,
        deployments={
            programs.OPERATOR: deployment(operator),
            programs.WEBHOOK: deployment(webhook),
        },
    )
    assert found(programs.check, facts) == ([] if words is None else [words])


def test_pod_that_cannot_start_says_why() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    labels = {"app.kubernetes.io/name": programs.WEBHOOK}
    stuck = {
        "metadata": {"name": "w-1", "labels": labels},
        "status": {"containerStatuses": [{"state": {"waiting": waiting}}]},
    }
    facts = replace(
        FACTS,
        deployments={programs.WEBHOOK: deployment("berthmaster:0.1.0", available=0)},
        program_pods=(stuck,),
    )
    assert (
        "berthmaster-webhook: 0 of 1 replicas are available: w-1 waits: ImagePullBackOff no such "
        "image; pods that ask wait at the gate"
    ) in found(programs.check, facts, State.BROKEN)


# Policies.


def policy(name: str, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": spec}


TEAM = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
NAMESPACE = {"metadata": {"name": "a", "labels": {"team": "a"}}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([policy("a", **TEAM), policy("b", mode="observe", priority=1)], None),
        (
            [policy("stop", mode="off", priority=9, podSelector={}), policy("a", **TEAM)],
            "a never counts: stop selects all of its pods before it (priority 9 and 0), and is off",
        ),
        (
            [
                policy("a", **TEAM),
                policy("b", mode="observe", podSelector={"matchLabels": {"x": "y"}}),
            ],
            "a and b have the same priority 0, other settings, and may select the same pods; a "
            "counts, by its name",
        ),
        # One label cannot have two values.
        (
            [
                policy("a", podSelector={"matchLabels": {"x": "1"}}),
                policy("b", mode="observe", podSelector={"matchLabels": {"x": "2"}}),
            ],
            None,
        ),
        # A policy for a resource leaves other pods to the next.
        ([policy("xpu", priority=1, resourceNames=["a/x"]), policy("a", **TEAM)], None),
        (
            [
                policy("xpu", priority=1, resourceNames=["a/x", "a/y"]),
                policy("a", resourceNames=["a/y"]),
            ],
            "a never counts: xpu selects all of its pods before it (priority 1 and 0)",
        ),
        (
            [policy("a", resourceNames=["a/x"]), policy("b", mode="bind", resourceNames=["a/y"])],
            None,
        ),
        # A policy for an old scheduler leaves other pods to the next.
        ([policy("old", priority=1, schedulerNames=["old"]), policy("a", **TEAM)], None),
        (
            [policy("ghost", namespaceSelector={"matchLabels": {"team": "ghost"}})],
            "ghost selects no namespace that there is",
        ),
    ],
)
def test_policies_that_stand_in_each_others_way(given: list[Json], words: str | None) -> None:
    bindings: tuple[Json, ...] = tuple(
        {
            "metadata": {"name": f"berthmaster-policy-{it['metadata']['name']}"},
            "spec": {
                "policyName": names.SELECTED_POLICY,
                "paramRef": {"name": it["metadata"]["name"]},
                "matchResources": {
                    "namespaceSelector": it["spec"].get("namespaceSelector", {}),
                    "objectSelector": it["spec"].get("podSelector", {}),
                },
            },
        }
        for it in given
    )
    facts = replace(
        FACTS,
        policies=tuple(given),
        namespaces=(NAMESPACE,),
        admission_kinds=frozenset({gating.MUTATING_BINDINGS}),
        policy_bindings=bindings,
    )
    assert found(policies.check, facts) == ([] if words is None else [words])
    assert found(policies.check, facts, State.BROKEN) == []

    selecting = [it for it in given if len(it["spec"].keys() - {"mode", "priority"})]
    lost = found(policies.check, replace(facts, policy_bindings=()), State.BROKEN)
    assert len(lost) == len(selecting)

    if bindings and selecting:
        elsewhere = copy.deepcopy(bindings)
        for it in elsewhere:
            it["spec"]["matchResources"]["objectSelector"] = {"matchLabels": {"by": "hand"}}
        wrong = found(policies.check, replace(facts, policy_bindings=elsewhere), State.BROKEN)
        assert all("selects other pods than the policy" in it for it in wrong)
        assert len(wrong) == len(selecting)


# Pods.


def waiting(name: str, seconds: float, *, told: str = "", **fields: Any) -> Pod:
    condition = {
        "type": names.PLACED_CONDITION,
        "status": "False",
        "reason": "NoNodeFits",
        "message": told,
    }
    made = pod(name, gates=(names.GATE,), conditions=(condition,) if told else (), **fields)
    created = (NOW - timedelta(seconds=seconds)).isoformat()
    metadata = msgspec.structs.replace(made.metadata, creation_timestamp=created)
    return msgspec.structs.replace(made, metadata=metadata)


def test_pods_that_wait_for_long_say_why_and_the_unheard_are_an_alarm() -> None:
    facts = replace(
        FACTS,
        pending_pods=(
            waiting("short", 30),
            waiting("told", 600, told="0/3 nodes"),
            waiting("unheard", 300),
        ),
    )

    assert found(pods.check, facts) == [
        "default/told waits for more than 5 min, NoNodeFits: 0/3 nodes"
    ]
    assert found(pods.check, facts, State.BROKEN) == [
        "nobody has told default/unheard why it waits, for more than 120 s: the webhook's leader is "
        "away or stuck"
    ]


@pytest.mark.parametrize(("mode", "is_lost"), [("required", True), ("observe", False)])
def test_only_a_pod_that_was_sent_to_a_node_can_have_lost_it(mode: str, is_lost: bool) -> None:
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pending = pod(decision=allocation(mode=mode), conditions=(unschedulable,))

    told = found(pods.check, replace(FACTS, pending_pods=(pending,)))

    assert bool(told) is is_lost


@pytest.mark.parametrize(
    ("fields", "is_past"),
    [
        ({"mode": "required"}, True),
        ({"mode": "bind"}, True),
        ({"mode": "observe"}, False),
        ({"mode": "preferred"}, False),
        ({"mode": None}, False),
        ({"mode": "required", "decision": allocation()}, False),
        ({"mode": "required", "namespace": "kube-system"}, False),
    ],
)
def test_who_came_past_us(fields: Json, is_past: bool) -> None:
    assert pods.is_past_us(pod(node="node-a", phase="Running", **fields)) is is_past


# Opt-ins that nobody reads.


def workload(kind: str, annotations: Json, template: Json, **metadata: Any) -> Json:
    pods_ = {"metadata": template}
    spec = (
        {"jobTemplate": {"spec": {"template": pods_}}} if kind == "CronJob" else {"template": pods_}
    )
    return {
        "metadata": {"name": "w", "namespace": "n", "annotations": annotations, **metadata},
        "spec": spec,
    }


ASKS = {names.PLACEMENT: "required"}


@pytest.mark.parametrize(
    ("kind", "made", "words", "way_out"),
    [
        ("Deployment", workload("Deployment", ASKS, {"annotations": ASKS}), "", ""),
        (
            "StatefulSet",
            workload("StatefulSet", ASKS, {}),
            "StatefulSet n/w carries berthmaster.io/placement in its own metadata",
            'kubectl patch -n n statefulset/w --type merge -p \'{"spec": {"template": ',
        ),
        (
            "CronJob",
            workload("CronJob", ASKS, {}),
            "CronJob n/w carries",
            '-p \'{"spec": {"jobTemplate": {"spec": {"template": {"metadata": ',
        ),
        ("Job", workload("Job", ASKS, {}), "Job n/w carries", "create the Job anew"),
        # Made by a CronJob, which is told of.
        ("Job", workload("Job", ASKS, {}, ownerReferences=[{"controller": True}]), "", ""),
        (
            "Deployment",
            workload("Deployment", {}, {"labels": ASKS}),
            "the pods of Deployment n/w carry berthmaster.io/placement as a label",
            "kubectl patch -n n deployment/w",
        ),
        (
            "DaemonSet",
            workload("DaemonSet", {}, {"annotations": ASKS}),
            "pods of DaemonSets are exempt",
            "take the annotation off",
        ),
    ],
)
def test_opt_in_that_nobody_reads(kind: str, made: Json, words: str, way_out: str) -> None:
    findings = list(workloads.check(replace(FACTS, workloads={kind: (made,)})))
    told = [it for it in findings if it.state is State.WARNING]
    assert bool(told) is bool(words)
    for it in told:
        assert words in it.found
        assert way_out in it.way_out


def test_what_somebody_wrote_on_a_workload_stays_one_word_in_the_shell() -> None:
    evil = {names.DISKIO_REQUEST: "'; touch /tmp/owned; echo '"}

    (told,) = workloads.check(replace(FACTS, workloads={"Deployment": (workload("", evil, {}),)}))

    *words, patch = shlex.split(told.way_out)
    assert words[:2] == ["kubectl", "patch"]
    assert json.loads(patch)["spec"]["template"]["metadata"]["annotations"] == evil


# Inventories.


def device(node: str, *, age_s: float = 3600) -> Json:
    created = (NOW - timedelta(seconds=age_s)).isoformat()
    return {
        "metadata": {"name": f"{node}-d", "namespace": "ioi-system", "creationTimestamp": created},
        "spec": {"nodeName": node},
    }


def known(node: str, status: str = "True", reason: str = "Reported") -> Json:
    condition = {"type": "DiskIOReady", "status": status, "reason": reason, "message": "words"}
    return {"metadata": {"name": node}, "status": {"disks": [], "conditions": [condition]}}


def test_devices_that_came_to_nothing() -> None:
    facts = replace(
        FACTS,
        nodes=tuple({"metadata": {"name": it}} for it in ("a", "b", "c")),
        inventories=(known("a"), known("b", "False", "Stale")),
        devices=(device("a"), device("b"), device("c"), device("new", age_s=5), device("ghost")),
    )

    assert found(inventories.check, facts, State.BROKEN) == [
        "c has a NodeDiskDevice and no disks in a NodeInventory"
    ]
    assert found(inventories.check, facts) == [
        "Stale on b: words",
        "NodeDiskDevices name nodes that do not exist: "
        "ioi-system/new-d (new), ioi-system/ghost-d (ghost)",
    ]
    assert found(inventories.check, facts, State.OK) == ["1 node with fresh reports"]


def test_driver_of_which_nobody_can_tell_is_no_fault() -> None:
    facts = replace(FACTS, inventories=(known("a", "Unknown", "Stale"), known("b")))

    assert found(inventories.check, facts) == []
    assert found(inventories.check, facts, State.NOT_CHECKED) == [
        "whether the driver lives on a: words"
    ]


def test_no_driver_is_a_warning_once_somebody_needs_one() -> None:
    assert found(inventories.check, FACTS, State.OK) == [
        "no node has a NodeDiskDevice: pods that ask for disk IO would wait"
    ]
    asking = waiting("asks", 30, request="{}")
    assert found(inventories.check, replace(FACTS, pending_pods=(asking,))) == [
        "no node has a NodeDiskDevice, and default/asks waits for one"
    ]


# Other webhooks.


def hooks(name: str, timeout_s: int, *, policy_: str = "Never", resource: str = "pods") -> Json:
    rule = {"apiGroups": ["*"], "operations": ["CREATE"], "resources": [resource]}
    return {
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": f"{name}.example.com",
                "timeoutSeconds": timeout_s,
                "reinvocationPolicy": policy_,
                "rules": [rule],
            }
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "mutating", "validating", "words"),
    [
        # Before ours an answer is not on its way yet; services are no pods.
        ([], [hooks("a", 30), hooks("zzz", 30, resource="services")], [hooks("v", 30)], []),
        (["--takeover-wait=35"], [hooks("a", 30)], [hooks("v", 30), hooks("w", 20)], []),
        (
            ["--takeover-wait", "34"],
            [],
            [hooks("v", 30)],
            ["--takeover-wait is 34 s, and webhooks after ours may take 30 s: "],
        ),
        (
            ["--takeover-wait=40", "--assume-ttl=30"],
            [hooks("a", 25, policy_="IfNeeded")],
            [hooks("v", 10)],
            ["--assume-ttl is 30 s, and webhooks after ours may take 35 s: "],
        ),
        ([], [hooks("zzz", 30)], [], ["zzz (zzz.example.com) sees pods after they were placed"]),
    ],
)
def test_timeouts_of_others_against_our_waits(
    arguments: list[str], mutating: list[Json], validating: list[Json], words: list[str]
) -> None:
    facts = replace(
        FACTS,
        deployments={programs.WEBHOOK: deployment("b:0.1.0", args=arguments)},
        mutating_webhooks=(hooks("zz-berthmaster", 1), *mutating),
        validating_webhooks=tuple(validating),
    )
    told = found(neighbours.check, facts)
    assert len(told) == len(words)
    assert all(it.startswith(start) for it, start in zip(told, words, strict=True))


# What could not be read, and how it looks.


def test_nothing_that_could_be_read_is_never_taken_for_absent() -> None:
    unread = Unread("needs everything")
    facts = Facts(
        now=NOW,
        cli_version="0.1.0",
        server_version="v1.36.3",
        system_namespace="berthmaster-system",
        definitions=dict.fromkeys(definitions.ALL, unread),
        admission_kinds=unread,
        admission_objects={(gating.WEBHOOKS, names.WEBHOOK_CONFIGURATION): unread},
        policy_bindings=unread,
        mutating_webhooks=unread,
        validating_webhooks=unread,
        tls_secret=unread,
        service=unread,
        endpoint_slices=unread,
        leases={names.WEBHOOK_LEASE: unread, names.OPERATOR_LEASE: unread},
        deployments=dict.fromkeys(programs.ALL, unread),
        program_pods=unread,
        policies=unread,
        namespaces=unread,
        nodes=unread,
        inventories=unread,
        devices=unread,
        topologies=unread,
        datasets={path: unread for _, _, path in datasets.PATHS},
        pending_pods=unread,
        running_pods=unread,
        workloads=dict.fromkeys(workloads.KINDS, unread),
        rights=dict.fromkeys(rights.RIGHTS, unread),
        tried=unread,
    )

    api_server, *others = reporting.diagnose(facts)

    assert api_server.state is State.OK
    assert {it.state for it in others} == {State.NOT_CHECKED}
    assert all("needs everything" in it.found for it in others)
    assert reporting.build_report([api_server, *others]).sentence.startswith(
        "Berthmaster is well as far as could be checked: "
    )


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/v1/nodes", "nodes"),
        ("/api/v1/namespaces/a", "namespaces/a"),
        ("/api/v1/namespaces/a/secrets/b", "secrets/b in a"),
        ("/apis/apps/v1/namespaces/a/deployments/b", "deployments.apps/b in a"),
        ("/apis/apps/v1/deployments", "deployments.apps"),
    ],
)
def test_rights_are_named_as_people_ask_for_them(path: str, words: str) -> None:
    assert describe(path) == words


@pytest.mark.parametrize("width", [60, 160])
def test_commands_are_never_broken_into_lines(width: int) -> None:
    command = "kubectl " + "very-long-argument " * 10
    finding = Finding(part="gate", state=State.BROKEN, found="words " * 30, way_out=command)
    report = reporting.build_report([finding, finding])
    stream = io.StringIO()

    output.render_rich(report, stream, width=width)

    assert stream.getvalue().count(command.rstrip()) == 1
    assert output.render_plain(report).count(command) == 1
    assert report.data["findings"][0]["wayOut"] == command
