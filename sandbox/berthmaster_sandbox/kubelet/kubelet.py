"""The kubelet of one node: watches its pods and gives each a worker.

It holds the node's rights only: its client authenticates as `system:node:<name>`. Pods of other
nodes are never seen. Events leave through a queue, so that an API server that is away delays no
container; what does not fit is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from berthmaster.cluster.client import Client, ClusterError
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.addresses import AddressError, AddressPool
from berthmaster_sandbox.kubelet.nodes import NodeKeeper, build_node
from berthmaster_sandbox.kubelet.processes import kill_marked
from berthmaster_sandbox.kubelet.serving import serve_logs
from berthmaster_sandbox.kubelet.statuses import now_text
from berthmaster_sandbox.kubelet.workers import NodeSettings, PodWorker, build_search_path

logger = logging.getLogger(__name__)

HOST_IP = "127.0.0.1"
RETRY_S = 2.0
_EVENT_QUEUE = 500
_PODS_DECODER: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class Kubelet:
    """Run the pods of one node as processes of this machine.

    `client` must authenticate as `system:node:<node_name>` of the group `system:nodes`. `images`
    is the sandbox's list: for each image that may run here its entrypoint, which a container's
    `command` replaces. `pod_cidr_index` and `bind_block` give the node's pods the addresses
    10.<block>.<index>.n, their processes 127.<block>.<index>.n. `folder` is the node's own, for
    logs and volumes; `programs` comes first in PATH, by default the running Python's folder.

    Processes of an earlier kubelet that used the same folder are killed at the start.
    """

    def __init__(  # noqa: PLR0913 - a node has as many independent properties
        self,
        node_name: str,
        *,
        client: Client,
        folder: Path,
        server_url: str,
        ca_path: Path,
        images: Mapping[str, tuple[str, ...]],
        pod_cidr_index: int,
        bind_block: int,
        programs: Path | None = None,
        version: str = "v1.36.3",
    ) -> None:
        self._client = client
        self._folder = folder.resolve()
        self._version = version
        self._node_name = node_name
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_EVENT_QUEUE)
        self._settings = NodeSettings(
            node_name=node_name,
            client=client,
            folder=self._folder,
            server_url=server_url,
            ca_path=ca_path.resolve(),
            images=images,
            block=bind_block,
            addresses=AddressPool(bind_block, pod_cidr_index),
            host_ip=HOST_IP,
            search_path=build_search_path(programs or Path(sys.executable).parent),
            record=self._record,
        )

    async def run(self) -> None:
        """Run until cancelled. The node's processes end with it, their pods' objects stay."""
        leftovers = await asyncio.to_thread(kill_marked, self._folder)
        if leftovers:
            logger.info("killed %d processes of an earlier kubelet", leftovers)
        async with serve_logs(
            self,
            folder=self._folder / "serving",
            ca_path=self._settings.ca_path,
            host=HOST_IP,
        ) as port:
            await self._serve_node(port)

    async def _serve_node(self, port: int) -> None:
        node = build_node(self._node_name, host_ip=HOST_IP, port=port, version=self._version)
        keeper = NodeKeeper(node, client=self._client)
        await keeper.register()
        pods = Informer(
            self._client,
            "/api/v1/pods",
            decode=_PODS_DECODER.decode,
            key=lambda pod: str(pod["metadata"]["uid"]),
            version=lambda pod: str(pod["metadata"]["resourceVersion"]),
            query={"fieldSelector": f"spec.nodeName={self._node_name}"},
            on_event=self._on_pod,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keeper.run())
                group.create_task(self._post_events())
                group.create_task(pods.run())
        finally:
            await self._end_workers()

    def logs(
        self, namespace: str, name: str, container: str | None = None, *, previous: bool = False
    ) -> str:
        """Return what a container has written, of the pod's first container by default.

        `previous` asks for the run before the present one. Logs of pods that are gone stay in the
        node's folder under `logs/` and are found as long as no newer pod has the name. Raises
        KeyError when there is no such pod or container.
        """
        path = self.log_path(namespace, name, container, previous=previous)
        try:
            return path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def find_process(self, namespace: str, name: str, container: str | None = None) -> int | None:
        """Return the process id of a running container, None between two runs.

        Raises KeyError when there is no such pod or container.
        """
        return self._find_worker(namespace, name).find_process(container)

    def is_running(self, namespace: str, name: str, container: str, path: Path) -> bool:
        """Say whether a container still writes to a log."""
        try:
            worker = self._find_worker(namespace, name)
        except KeyError:
            return False
        is_current = worker.log_path(container) == path
        return is_current and worker.find_process(container) is not None

    def _find_worker(self, namespace: str, name: str) -> PodWorker:
        for worker in reversed(self._workers.values()):
            if (worker.namespace, worker.name) == (namespace, name):
                return worker
        raise KeyError(f"no pod {namespace}/{name} on node {self._node_name}")

    def log_path(self, namespace: str, name: str, container: str | None, *, previous: bool) -> Path:
        """Return the file that `logs` reads. Raises KeyError as that does."""
        try:
            worker = self._find_worker(namespace, name)
        except KeyError:
            return self._find_old_log(namespace, name, container)
        return worker.log_path(container, previous=previous)

    def _find_old_log(self, namespace: str, name: str, container: str | None) -> Path:
        pattern = f"{namespace}_{name}_*/{container or '*'}/*.log"
        found = (self._folder / "logs").glob(pattern)
        latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if latest is None:
            raise KeyError(f"no log of {namespace}/{name} on node {self._node_name}")
        return latest

    def _on_pod(self, kind: EventKind, pod: dict[str, Any]) -> None:
        uid = str(pod["metadata"]["uid"])
        worker = self._workers.get(uid)
        if kind is EventKind.DELETED:
            if worker is not None:
                worker.vanish()
            if uid not in self._tasks:
                self._workers.pop(uid, None)
        elif worker is not None:
            # Also when its work is done: late news of a pod must not start it a second time.
            worker.update(pod)
        else:
            self._start_worker(pod)

    def _start_worker(self, pod: dict[str, Any]) -> None:
        uid = str(pod["metadata"]["uid"])
        try:
            worker = self._workers[uid] = PodWorker(pod, self._settings)
        except AddressError as error:
            self._record(pod, "FailedCreatePodSandBox", str(error), True)
            return
        self._tasks[uid] = asyncio.create_task(self._guard(worker))

    async def _guard(self, worker: PodWorker) -> None:
        while True:
            try:
                await worker.run()
                break
            except Exception:
                # One pod's trouble is not the node's: its processes are gone, the log says why.
                logger.exception("pod failed", extra={"pod": f"{worker.namespace}/{worker.name}"})
            await asyncio.sleep(RETRY_S)
            if worker.is_gone:
                break
            worker = self._workers[worker.uid] = PodWorker(worker.pod, self._settings)
        self._tasks.pop(worker.uid, None)
        if worker.is_gone:
            self._workers.pop(worker.uid, None)

    async def _end_workers(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _record(self, pod: Mapping[str, Any], reason: str, message: str, is_warning: bool) -> None:
        metadata = pod["metadata"]
        now = now_text()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{metadata['name'][:200]}.",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if is_warning else "Normal",
            "source": {"component": "kubelet", "host": self._node_name},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        if not self._events.full():
            self._events.put_nowait(event)

    async def _post_events(self) -> None:
        while True:
            event = await self._events.get()
            namespace = event["metadata"]["namespace"]
            try:
                await self._client.create(f"/api/v1/namespaces/{namespace}/events", event)
            except ClusterError as error:
                logger.debug("event lost: %s", error)
