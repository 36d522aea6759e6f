"""Pods that are processes, Services that lead to them: on the real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from berthmaster.cluster.client import ApiError, Client
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.kubelet import Kubelet

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

T = TypeVar("T")
JsonObject = dict[str, Any]

DEADLINE_S = 40.0
EXTRA_NODE = "sandbox-99"
PYTHON = "berthmaster.io/sandbox/python"
SHELL = "berthmaster.io/sandbox/shell"
# Serves the working folder, which is empty, and an answer file if the test writes one.
WEB = ["python", "-m", "http.server", "8080", "--bind", "$(BERTHMASTER_BIND_ADDRESS)"]

# Asks the API server as the pod's service account and prints what was allowed.
READ_AS_ACCOUNT = """
import asyncio, os
from berthmaster.cluster.client import ApiError, Client

async def main():
    base = "/api/v1/namespaces/" + os.environ["NAMESPACE"]
    async with await Client.connect() as client:
        print("value", (await client.get(base + "/configmaps/greeting"))["data"]["word"])
        try:
            await client.get(base + "/pods")
        except ApiError as error:
            print("pods", error.status)

asyncio.run(main())
"""


def make_pod(name: str, *, image: str = PYTHON, **container: Any) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"berthmaster.io/sandbox": "process"},
            "tolerations": [{"key": "berthmaster.io/sandbox", "operator": "Exists"}],
            "terminationGracePeriodSeconds": 10,
            "containers": [{"name": "main", "image": image, **container}],
        },
    }


async def until(look: Callable[[], Awaitable[T | None]]) -> T:
    """Look until there is something to see."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.1)


class Scene:
    """One test's namespace and short words for what the tests do there."""

    def __init__(self, sandbox: Sandbox, namespace: str) -> None:
        self.sandbox = sandbox
        self.namespace = namespace
        self.base = f"/api/v1/namespaces/{namespace}"

    async def create_pod(self, pod: JsonObject) -> None:
        async def attempt() -> bool | None:
            try:
                await self.sandbox.client.create(f"{self.base}/pods", pod)
            except ApiError as error:
                # The namespace is young: its service account is made by a controller.
                if error.status == 403 and "serviceaccount" in error.message:
                    return None
                raise
            return True

        await until(attempt)

    async def get(self, name: str) -> JsonObject | None:
        """Return the pod, None if there is none."""
        try:
            return await self.sandbox.client.get(f"{self.base}/pods/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def pod_with(self, name: str, wanted: Callable[[JsonObject], bool]) -> JsonObject:
        async def look() -> JsonObject | None:
            pod = await self.get(name)
            return pod if pod is not None and wanted(pod) else None

        return await until(look)

    async def gone(self, name: str) -> None:
        async def look() -> bool | None:
            return True if await self.get(name) is None else None

        await until(look)

    def process_of(self, pod: JsonObject) -> int:
        kubelet = self.sandbox.kubelets[pod["spec"]["nodeName"]]
        pid = kubelet.find_process(self.namespace, pod["metadata"]["name"])
        assert pid is not None
        return pid

    def logs_of(self, pod: JsonObject) -> str:
        kubelet = self.sandbox.kubelets[pod["spec"]["nodeName"]]
        return kubelet.logs(self.namespace, pod["metadata"]["name"])

    async def create_service(self, name: str) -> str:
        """Create the Service of the pods labelled with its name; return its address."""
        service = {
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]},
        }
        created = await self.sandbox.client.create(f"{self.base}/services", service)
        return f"http://{created['spec']['clusterIP']}:8080/"


@pytest.fixture
def scene(sandbox: Sandbox, namespace: str) -> Scene:
    return Scene(sandbox, namespace)


def is_ready(pod: JsonObject) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def is_finished(pod: JsonObject) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def main_status(pod: JsonObject) -> JsonObject:
    statuses = pod["status"].get("containerStatuses")
    return dict(statuses[0]) if statuses else {"restartCount": 0, "state": {}}


def process_state(pid: int) -> str | None:
    """Return the letter of a process's state, None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return None


async def fetch(url: str) -> int | None:
    """Return the HTTP status; None when the connection was refused at once."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.get(url) as response:
                return response.status
        except aiohttp.ClientConnectorError as error:
            # Reset: the listener went while the connection stood in its queue.
            if not isinstance(error.os_error, ConnectionRefusedError | ConnectionResetError):
                raise
            return None


async def test_service_follows_readiness(scene: Scene) -> None:
    url = await scene.create_service("web")
    probe = {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    await scene.create_pod(make_pod("web", command=WEB, readinessProbe=probe))
    pod = await scene.pod_with("web", lambda pod: pod["status"]["phase"] == "Running")

    assert not is_ready(pod)
    assert await fetch(url) is None

    marker = Path(f"/proc/{scene.process_of(pod)}/cwd") / "ready"
    marker.touch()
    await scene.pod_with("web", is_ready)
    assert await until(lambda: fetch(url)) == 200

    marker.unlink()
    await scene.pod_with("web", lambda pod: not is_ready(pod))

    async def refused() -> bool | None:
        return True if await fetch(url) is None else None

    assert await until(refused)


async def test_process_has_the_rights_of_its_account(scene: Scene) -> None:
    client = scene.sandbox.client
    await client.create(
        f"{scene.base}/configmaps", {"metadata": {"name": "greeting"}, "data": {"word": "ahoy"}}
    )
    rules = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{scene.namespace}"
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}
    await client.create(f"{rules}/roles", {"metadata": {"name": "reader"}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": scene.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    await client.create(
        f"{rules}/rolebindings",
        {"metadata": {"name": "reader"}, "roleRef": role, "subjects": [subject]},
    )
    reference = {"fieldRef": {"fieldPath": "metadata.namespace"}}
    pod = make_pod(
        "reader",
        command=["python", "-c", READ_AS_ACCOUNT],
        env=[{"name": "NAMESPACE", "valueFrom": reference}],
    )
    pod["spec"]["restartPolicy"] = "Never"

    await scene.create_pod(pod)
    pod = await scene.pod_with("reader", is_finished)

    assert scene.logs_of(pod).splitlines() == ["value ahoy", "pods 403"]
    assert pod["status"]["phase"] == "Succeeded"


async def test_killed_process_is_started_again(scene: Scene) -> None:
    await scene.create_pod(make_pod("web", command=WEB))
    pod = await scene.pod_with("web", is_ready)
    killed = scene.process_of(pod)

    os.kill(killed, signal.SIGKILL)
    pod = await scene.pod_with(
        "web", lambda pod: main_status(pod)["restartCount"] == 1 and is_ready(pod)
    )

    assert scene.process_of(pod) != killed
    assert main_status(pod)["lastState"]["terminated"]["exitCode"] == 137


async def test_deleted_pod_ends_by_sigterm(scene: Scene) -> None:
    script = "trap 'echo ending; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    await scene.create_pod(make_pod("sh", image=SHELL, args=[script]))
    pod = await scene.pod_with("sh", is_ready)

    async def is_up() -> bool | None:
        return True if "up" in scene.logs_of(pod) else None

    await until(is_up)
    pid = scene.process_of(pod)

    await scene.sandbox.kubectl("delete", "pod", "-n", scene.namespace, "sh", timeout_s=DEADLINE_S)

    assert scene.logs_of(pod).splitlines() == ["up", "ending"]
    assert process_state(pid) is None


async def test_force_deleted_pod_ends_too(scene: Scene) -> None:
    await scene.create_pod(make_pod("forced", image=SHELL, args=["trap '' TERM; sleep 1000"]))
    pod = await scene.pod_with("forced", is_ready)
    pid = scene.process_of(pod)

    await scene.sandbox.client.delete(
        f"{scene.base}/pods/forced", body={"kind": "DeleteOptions", "gracePeriodSeconds": 0}
    )

    async def ended() -> bool | None:
        return True if process_state(pid) is None else None

    assert await until(ended)


async def test_pods_outlive_the_api_server(scene: Scene) -> None:
    await scene.create_pod(make_pod("web", command=WEB))
    pod = await scene.pod_with("web", is_ready)
    pid = scene.process_of(pod)

    await scene.sandbox.restart_apiserver()
    assert scene.process_of(pod) == pid
    os.kill(pid, signal.SIGKILL)

    await scene.pod_with("web", lambda pod: main_status(pod)["restartCount"] == 1 and is_ready(pod))


async def test_kubectl_reads_logs(scene: Scene) -> None:
    script = "echo one; echo two; test -e $TMPDIR/again && sleep 1000; touch $TMPDIR/again; exit 1"
    await scene.create_pod(make_pod("talk", image=SHELL, args=[script]))
    await scene.pod_with(
        "talk", lambda pod: main_status(pod)["restartCount"] == 1 and is_ready(pod)
    )

    async def read(*options: str) -> list[str]:
        words = ("logs", "-n", scene.namespace, "talk", *options)
        return (await scene.sandbox.kubectl(*words, timeout_s=DEADLINE_S)).stdout.split()

    async def has_spoken() -> bool | None:
        return True if await read() == ["one", "two"] else None

    assert await until(has_spoken)
    assert await read("--tail=1") == ["two"]
    assert await read("--previous") == ["one", "two"]


async def test_logs_are_for_the_api_server_only(scene: Scene) -> None:
    node = await scene.sandbox.client.get("/api/v1/nodes/sandbox-1")
    port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]

    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"https://127.0.0.1:{port}/containerLogs/a/b/c", ssl=False)


async def test_deaf_process_is_killed_with_its_children(scene: Scene) -> None:
    script = "trap '' TERM; sleep 1000 & echo $!; wait; while :; do sleep 0.1; done"
    pod = make_pod("deaf", image=SHELL, args=[script])
    pod["spec"]["terminationGracePeriodSeconds"] = 1
    await scene.create_pod(pod)
    pod = await scene.pod_with("deaf", is_ready)

    async def child() -> int | None:
        text = scene.logs_of(pod).strip()
        return int(text) if text else None

    child_pid = await until(child)
    await scene.sandbox.client.delete(f"{scene.base}/pods/deaf")
    await scene.gone("deaf")

    async def ended() -> bool | None:
        # An orphan that ended may wait for init to collect it.
        return True if process_state(child_pid) in (None, "Z") else None

    assert await until(ended)


async def test_foreign_image_never_runs(scene: Scene) -> None:
    await scene.create_pod(make_pod("foreign", image="nginx:latest", command=["sleep", "1000"]))

    def is_refused(pod: JsonObject) -> bool:
        # Before that it waits as ContainerCreating, like every pod.
        waiting = main_status(pod)["state"].get("waiting") or {}
        return waiting.get("reason") == "ErrImagePull"

    pod = await scene.pod_with("foreign", is_refused)

    waiting = main_status(pod)["state"]["waiting"]
    assert "not on the sandbox's list" in waiting["message"]
    assert pod["status"]["phase"] == "Pending"
    await scene.sandbox.client.delete(f"{scene.base}/pods/foreign")
    await scene.gone("foreign")


async def test_failed_liveness_restarts_the_process(scene: Scene) -> None:
    probe = {
        "exec": {"command": ["sh", "-c", "test ! -e $TMPDIR/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    script = "rm -f $TMPDIR/sick; sleep 1000"
    pod = make_pod("sick", image=SHELL, args=[script], livenessProbe=probe)
    pod["spec"]["terminationGracePeriodSeconds"] = 1
    await scene.create_pod(pod)
    pod = await scene.pod_with("sick", is_ready)

    (Path(f"/proc/{scene.process_of(pod)}/cwd") / "sick").touch()

    await scene.pod_with("sick", lambda pod: main_status(pod)["restartCount"] >= 1)


async def test_pod_waits_for_its_config_and_sees_it_as_files(scene: Scene) -> None:
    mount = {"name": "app", "mountPath": "/etc/app"}
    pod = make_pod("config", command=["cat", "/etc/app/word"], volumeMounts=[mount])
    pod["spec"]["volumes"] = [{"name": "app", "configMap": {"name": "app"}}]
    pod["spec"]["restartPolicy"] = "Never"
    await scene.create_pod(pod)

    async def complaint() -> str | None:
        events = await scene.sandbox.client.get(f"{scene.base}/events")
        found = [item["message"] for item in events["items"] if item["reason"] == "FailedMount"]
        return next((text for text in found if "configmap 'app'" in text), None)

    assert await until(complaint) == "configmap 'app' not found"
    await scene.sandbox.client.create(
        f"{scene.base}/configmaps", {"metadata": {"name": "app"}, "data": {"word": "ahoy"}}
    )
    pod = await scene.pod_with("config", is_finished)

    assert scene.logs_of(pod) == "ahoy"


async def test_init_containers_come_first(scene: Scene) -> None:
    def container(name: str, script: str, **more: Any) -> JsonObject:
        mount = {"name": "shared", "mountPath": "/shared"}
        return {"name": name, "image": SHELL, "args": [script], "volumeMounts": [mount], **more}

    pod = make_pod("inits")
    pod["spec"] |= {
        "restartPolicy": "Never",
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [
            container("first", "echo first >> /shared/order"),
            container(
                "sidecar", "echo sidecar >> /shared/order; sleep 1000", restartPolicy="Always"
            ),
        ],
        "containers": [
            container(
                "main", "until grep -q sidecar /shared/order; do sleep 0.1; done; cat /shared/order"
            )
        ],
        "terminationGracePeriodSeconds": 1,
    }

    await scene.create_pod(pod)
    pod = await scene.pod_with("inits", is_finished)

    assert pod["status"]["phase"] == "Succeeded", json.dumps(pod["status"])
    assert scene.logs_of(pod).split() == ["first", "sidecar"]


@contextlib.asynccontextmanager
async def run_kubelet(scene: Scene, folder: Path) -> AsyncIterator[Kubelet]:
    """Run one more node beside the sandbox's own."""
    sandbox = scene.sandbox
    kubeconfig = sandbox.plane.write_node_kubeconfig(EXTRA_NODE)
    async with await Client.connect(str(kubeconfig)) as client:
        kubelet = Kubelet(
            EXTRA_NODE,
            client=client,
            folder=folder,
            server_url=sandbox.server,
            ca_path=sandbox.ca_path,
            images={SHELL: ("/bin/sh", "-c")},
            pod_cidr_index=99,
            bind_block=sandbox.slot.pod_block,
        )
        task = asyncio.create_task(kubelet.run())
        try:
            yield kubelet
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=DEADLINE_S)


async def test_restarted_kubelet_starts_its_pods_again(scene: Scene, tmp_path: Path) -> None:
    stays = make_pod("stays", image=SHELL, args=["sleep 1000"])
    once = make_pod("once", image=SHELL, args=["exit 0"])
    once["spec"]["restartPolicy"] = "Never"
    for pod in (stays, once):
        pod["spec"]["nodeSelector"] = {"kubernetes.io/hostname": EXTRA_NODE}
        await scene.create_pod(pod)

    async with run_kubelet(scene, tmp_path) as kubelet:
        before = await scene.pod_with("stays", is_ready)
        await scene.pod_with("once", is_finished)
        pid = kubelet.find_process(scene.namespace, "stays") or 0
    assert process_state(pid) is None

    async with run_kubelet(scene, tmp_path):
        after = await scene.pod_with(
            "stays", lambda pod: main_status(pod)["restartCount"] == 1 and is_ready(pod)
        )
        assert after["status"]["podIP"] == before["status"]["podIP"]
        finished = await scene.pod_with("once", is_finished)
        assert main_status(finished)["restartCount"] == 0
        for name in ("stays", "once"):
            await scene.sandbox.client.delete(f"{scene.base}/pods/{name}")
            await scene.gone(name)
    await scene.sandbox.client.delete(f"/api/v1/nodes/{EXTRA_NODE}")


async def test_deployment_rolls_over(scene: Scene) -> None:
    pod = make_pod("roll", command=WEB, readinessProbe={"tcpSocket": {"port": 8080}})
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "roll"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "roll"}},
            "template": template,
        },
    }
    deployments = f"/apis/apps/v1/namespaces/{scene.namespace}/deployments"
    url = await scene.create_service("roll")
    await scene.sandbox.client.create(deployments, deployment)

    target = ("-n", scene.namespace, "deployment/roll")
    await scene.sandbox.kubectl("rollout", "status", "--timeout=40s", *target)
    await scene.sandbox.kubectl("rollout", "restart", *target)
    await scene.sandbox.kubectl("rollout", "status", "--timeout=40s", *target)

    assert await until(lambda: fetch(url)) == 200
