"""`simulate` and `capacity`: the decision of now for pods that do not exist, and nothing changed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster.api import names
from cli.harbour import NODES, POLICIES, furnish, inventory, manifest, rates
from cli.test_main import KUBECONFIG, environment, run_against
from support.builders import make_node_manifest
from support.fake_api import FakeApi, Json, Refusal

BIG = rates("400Mi", "100Mi")


def wanted(name: str = "new", *, kind: str = "Pod", replicas: int = 1, **fields: Any) -> Json:
    """A manifest as users write it: no uid, no status; `fields` are those of `manifest`."""
    found = manifest(name, **fields)
    labels = fields.get("labels", {})
    pod = {
        "metadata": {"annotations": found["metadata"]["annotations"], "labels": labels},
        "spec": found["spec"],
    }
    if kind == "Pod":
        pod["metadata"]["name"] = name
        return {"apiVersion": "v1", "kind": "Pod", **pod}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "template": pod},
    }


def held(name: str, node: str, request: str) -> Json:
    """A pod that runs and holds part of its node's disk."""
    return manifest(name, mode=None, request=request, node=node, phase="Running")


async def ask(
    api: FakeApi, folder: Path, command: str, *documents: Json, options: tuple[str, ...] = ()
) -> tuple[int, Any, str]:
    """Run a command on documents; return exit code, data or text, errors."""
    file = folder / "pods.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    code, out, err = await run_against(
        api, folder, command, "-f", str(file), "-n", "default", "-o", "json", *options
    )
    return code, json.loads(out) if out else None, err


async def simulate(api: FakeApi, folder: Path, document: Json) -> tuple[int, Json]:
    code, data, err = await ask(api, folder, "simulate", document)
    assert err == ""
    return code, data["workloads"][0]


async def test_pod_that_fits_gets_the_decision_and_nothing_is_written(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, held("other", "node-a", rates("100Mi", "100Mi")))
        code, found = await simulate(api, tmp_path, wanted(request=BIG))

        assert code == 0
        assert found["outcome"] == "Placed"
        # 900Mi are free for reading and writing: (400/900 + 100/900) / 2 is 27.8 %.
        assert found["sentence"] == (
            "default/new would go to node-a: disk IO 72 of 100; 2 nodes refused: "
            "1 disk IO read bandwidth is not enough, "
            "1 node(s) without disk io aware support cannot schedule disk io aware workload."
        )
        assert found["decision"]["allocated"]["diskio"]["device"] == "fakeDevice"
        assert {it["node"]: it["fits"] for it in found["nodes"]} == {
            "node-a": True,
            "node-b": False,
            "node-c": False,
        }
        assert {request.method for request in api.requests} == {"GET"}


async def test_pod_that_fits_nowhere_is_told_what_would_help(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(
            api,
            held("large", "node-a", rates("700Mi", "100Mi")),
            held("small", "node-a", rates("100Mi", "100Mi")),
        )
        code, found = await simulate(api, tmp_path, wanted(request=BIG))

        assert code == 3
        assert found["outcome"] == "Nowhere"
        assert (
            "nearest is node-a, read short by 200Mi (asks 400Mi, free 200Mi of 1000Mi)"
            in found["sentence"]
        )
        helping = {it["where"]: it["what"] for it in found["help"]}
        assert helping["node-a"] == "the end of default/large"
        assert "asking for less: read short by 300Mi" in helping["node-b"]
        assert "NodeDiskDevice" in helping["1 node"]


async def test_replicas_are_placed_one_after_the_other(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        code, found = await simulate(
            api, tmp_path, wanted("web", kind="Deployment", replicas=3, request=BIG)
        )

        assert code == 3
        assert (found["outcome"], found["placed"], found["byNode"]) == ("Partly", 2, {"node-a": 2})
        assert found["sentence"].startswith(
            "Deployment default/web would come up with 2 of 3 pods, the next waits for a node, "
            "0 of 3 would do: "
        )
        # What makes room is never a pod that does not exist.
        assert found["help"][0]["what"].startswith("more room, or asking for less: read short by")


async def test_documents_are_decided_beside_those_before_them(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        first = wanted("first", kind="StatefulSet", replicas=2, request=BIG)
        service: Json = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
        code, data, _ = await ask(
            api, tmp_path, "simulate", service, first, wanted("second", request=BIG)
        )

        assert code == 3
        assert [it["outcome"] for it in data["workloads"]] == ["Placed", "Nowhere"]
        assert "Service web is left out: it has no pod template" in data["notes"]


async def test_policies_opt_in_by_namespace_and_by_scheduler_as_in_the_cluster(
    tmp_path: Path,
) -> None:
    async with FakeApi() as api:
        furnish(api)
        plain = wanted(mode=None, request=BIG)
        code, found = await simulate(api, tmp_path, plain)
        assert (code, found["outcome"], found["mode"]) == (0, "NotOurs", None)
        assert "no policy selects it" in found["sentence"]

        selector = {"matchLabels": {"team": "a"}}
        spec: Json = {"namespaceSelector": selector, "mode": "observe"}
        api.put(POLICIES, {"metadata": {"name": "team-a"}, "spec": spec})
        code, found = await simulate(api, tmp_path, plain)
        assert (found["outcome"], found["takenOverBy"]) == ("Observed", "team-a")
        assert "node-a would be recorded" in found["sentence"]

        spec = {"schedulerNames": ["old"], "priority": 5}
        api.put(POLICIES, {"metadata": {"name": "old"}, "spec": spec})
        code, found = await simulate(
            api, tmp_path, wanted(mode=None, request=BIG, schedulerName="old")
        )
        assert (found["outcome"], found["takenOverBy"], found["policy"]) == ("Placed", "old", "old")


async def test_a_preference_never_waits(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        code, found = await simulate(api, tmp_path, wanted(mode="preferred", request=BIG))
        assert (code, found["outcome"]) == (0, "Preferred")
        assert found["sentence"].startswith("default/new would prefer node-a: disk IO")

        huge = rates("2Gi", "1Mi")
        code, found = await simulate(api, tmp_path, wanted(mode="preferred", request=huge))
        assert code == 0
        assert "no node fits, so none is preferred" in found["sentence"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "requried"}, 'unknown mode "requried", expected one of required, preferred'),
        ({"request": '{"rbps": "1Mi"}'}, f"metadata.annotations[{names.DISKIO_REQUEST}].wbps"),
    ],
)
async def test_invalid_request_has_the_words_of_admission(
    fields: Json, words: str, tmp_path: Path
) -> None:
    async with FakeApi() as api:
        furnish(api)
        code, found = await simulate(api, tmp_path, wanted(**fields))

        assert (code, found["outcome"]) == (1, "Invalid")
        assert found["sentence"].startswith("default/new would be refused: default/new: ")
        assert words in found["sentence"]
        assert "or set the annotation berthmaster.io/placement: off" in found["sentence"]

        _, counted, err = await ask(api, tmp_path, "capacity", wanted(**fields))
        assert counted is None
        assert words in err

        # By the policy that gives settings to all, such a pod waits instead.
        api.put(POLICIES, {"metadata": {"name": "all"}, "spec": {"onInvalid": "wait"}})
        code, found = await simulate(api, tmp_path, wanted(**fields))
        assert code == 3
        assert "would wait because its request cannot be understood" in found["sentence"]


async def test_annotation_on_the_deployment_itself_is_called_misplaced(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        document = wanted("web", kind="Deployment", mode=None)
        document["metadata"]["annotations"] = {names.PLACEMENT: "required"}
        _, data, _ = await ask(api, tmp_path, "simulate", document)

        assert data["workloads"][0]["outcome"] == "NotOurs"
        assert any(
            it.startswith("Deployment web carries berthmaster.io/placement in its own metadata")
            for it in data["notes"]
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Service\nmetadata: {name: a}\n", "makes pods: Service a is left out"),
        ("kind: Deployment\nmetadata: {name: a}\nspec: {}\n", "Deployment a has no spec.template"),
        ("kind: Pod\nmetadata: {name: a}\nspec: {}\n", "spec.containers is missing or empty"),
        ("kind: Pod\nspec: {containers: [{name: 1}]}\n", "cannot be read: Expected `str`"),
        ("- a\n", "expected an object, found list"),
        ("{", "is neither YAML nor JSON"),
        ("\x00", "is neither YAML nor JSON"),
        ("metadata: {name: a}\n", "an object has no kind; give a Pod or one of Deployment,"),
        (
            "kind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: [{name: c}]}\n",
            "b/a is of the namespace b, and -n says default",
        ),
    ],
)
async def test_file_that_makes_no_pod_is_one_clear_line(
    text: str, words: str, tmp_path: Path
) -> None:
    async with FakeApi() as api:
        file = tmp_path / "pods.yaml"
        file.write_text(text)
        code, out, err = await run_against(
            api, tmp_path, "simulate", "-f", str(file), "-n", "default"
        )

        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
        assert api.requests == []


async def test_capacity_counts_until_nothing_fits_and_says_what_stops_each_node(
    tmp_path: Path,
) -> None:
    async with FakeApi() as api:
        furnish(api, held("other", "node-a", rates("100Mi", "100Mi")))
        api.put(NODES, make_node_manifest("node-d", unschedulable=True))
        code, data, _ = await ask(api, tmp_path, "capacity", wanted(request=BIG))

        assert code == 0
        # 900Mi of node-a hold two of 400Mi; 100Mi stay there and 100Mi on node-b.
        assert (data["count"], data["isBoundMet"]) == (2, False)
        nodes = {it["node"]: it for it in data["nodes"]}
        assert {name: it["fit"] for name, it in nodes.items()} == {
            "node-a": 2,
            "node-b": 0,
            "node-c": 0,
            "node-d": 0,
        }
        assert nodes["node-a"]["concern"] == "diskio"
        assert "asks 400Mi, free 100Mi of 1000Mi" in nodes["node-a"]["detail"]
        assert nodes["node-d"]["reason"] == "node(s) were unschedulable"
        assert data["fragments"] == []
        assert {request.method for request in api.requests} == {"GET"}


async def test_capacity_names_room_that_exists_only_in_sum(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        for name in ("node-e", "node-f", "node-g"):
            api.put(NODES, make_node_manifest(name))
            api.put("/apis/berthmaster.io/v1alpha1/nodeinventories", inventory(name, 300))
        _, data, _ = await ask(api, tmp_path, "capacity", wanted(request=BIG))

        # 1000 - 2 * 400, 100 and three times 300 are 1200 for reading.
        assert data["count"] == 2
        assert data["fragments"] == [
            {"reason": "disk IO read bandwidth is not enough", "nodes": 5, "pods": 3}
        ]


async def test_capacity_stops_at_its_bound_and_says_so(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        _, data, _ = await ask(
            api, tmp_path, "capacity", wanted(request=rates("1Mi", "1Mi")), options=("--max", "7")
        )

        assert (data["count"], data["isBoundMet"]) == (7, True)


async def test_capacity_of_a_pod_that_is_never_placed_is_refused(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        code, _, err = await ask(api, tmp_path, "capacity", wanted(kind="DaemonSet"))

        assert code == 1
        assert "pods of DaemonSets are exempt" in err


async def test_reads_stdin_and_answers_for_people(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        config = tmp_path / "config"
        config.write_text(KUBECONFIG.replace("SERVER", api.url))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "berthmaster.cli.main",
            "capacity",
            "-f",
            "-",
            "--context",
            "one",
            env=environment(config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate(json.dumps(wanted(request=BIG)).encode())
        assert process.returncode == 0
        assert out.decode().startswith("2 more pods like default/new fit, on 1 of 3 nodes.\n")


async def test_who_may_not_list_volumes_gets_an_answer_and_a_note(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api)
        api.fail_next("GET", "/api/v1/persistentvolumes", Refusal(403, "Forbidden", "no"))
        code, data, _ = await ask(api, tmp_path, "simulate", wanted(request=BIG))

        assert code == 0
        note = "you may not list persistentvolumes: this is judged as if there were none"
        assert note in data["notes"]
