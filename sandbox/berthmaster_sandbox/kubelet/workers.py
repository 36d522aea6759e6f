"""One pod's life on this node, from its first sight to its removal from the API server.

A worker has three duties that run side by side: containers in their order (init containers,
sidecars, then the others), volumes kept fresh, and a status that is patched when it differs from
the last one. Deletion ends the first two with grace and is confirmed by a DELETE without grace,
guarded by the pod's uid. Work for one pod is never done by two workers: the kubelet starts one
per uid.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind
from berthmaster_sandbox.addresses import AddressPool, bind_address
from berthmaster_sandbox.kubelet.containers import ContainerRunner
from berthmaster_sandbox.kubelet.environment import (
    ConfigError,
    Launch,
    Sources,
    build_launch,
    mount_variable,
    referenced_objects,
)
from berthmaster_sandbox.kubelet.processes import mark
from berthmaster_sandbox.kubelet.statuses import (
    PodSnapshot,
    build_status,
    find_phase,
    now_text,
    recall,
)
from berthmaster_sandbox.kubelet.volumes import (
    PodVolumes,
    build_kubeconfig,
    fetch,
    find_account_volume,
    write_private_file,
)

logger = logging.getLogger(__name__)

Pod = Mapping[str, Any]
Record = Callable[[Pod, str, str, bool], None]

RETRY_S = 1.0
# A real kubelet takes a minute; tokens and ConfigMaps may be this old.
REFRESH_S = 20.0
DEFAULT_GRACE_S = 30.0
# What processes get when the kubelet itself is told to end.
SHUTDOWN_GRACE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What all pods of the node share. `search_path` becomes their PATH."""

    node_name: str
    client: Client
    folder: Path
    server_url: str
    ca_path: Path
    images: Mapping[str, tuple[str, ...]]
    block: int
    addresses: AddressPool
    host_ip: str
    search_path: str
    record: Record


class PodWorker:
    """Runs one pod; `update` and `vanish` tell it what the API server says of the pod."""

    def __init__(self, pod: Pod, node: NodeSettings) -> None:
        self.pod = pod
        self._node = node
        metadata = pod["metadata"]
        self.uid = str(metadata["uid"])
        self.namespace = str(metadata["namespace"])
        self.name = str(metadata["name"])
        status = pod.get("status") or {}
        self._pod_ip = node.addresses.take(status.get("podIP"))
        self._start_time = str(status.get("startTime") or now_text())
        label = f"{self.namespace}_{self.name}_{self.uid}"
        self._folder = node.folder / "pods" / label
        self._log_folder = node.folder / "logs" / label
        self._volumes = PodVolumes(self._folder / "volumes", client=node.client)
        self._doomed = asyncio.Event()
        self._dirty = asyncio.Event()
        # The API server has the pod no more.
        self.is_gone = False
        # A pod that ended under an earlier kubelet is left as that one reported it.
        self._was_ended = status.get("phase") in ("Succeeded", "Failed")
        self._is_ended = self._was_ended
        self._last_sent: dict[str, Any] | None = None
        spec = pod["spec"]
        self._inits = [self._runner(item, is_init=True) for item in spec.get("initContainers", ())]
        self._mains = [self._runner(item, is_init=False) for item in spec["containers"]]
        self._failure: tuple[str, str] | None = None
        self.update(pod)

    # What the kubelet calls.

    def update(self, pod: Pod) -> None:
        """Take the pod as the API server now has it."""
        self.pod = pod
        self._dirty.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._doomed.set()

    def vanish(self) -> None:
        """Take note that the API server has the pod no more: its processes end at once."""
        self.is_gone = True
        for runner in self._runners:
            runner.kill()
        self._doomed.set()

    def log_path(self, container: str | None = None, *, previous: bool = False) -> Path:
        """Return a container's log, the first container's by default.

        Raises KeyError when the pod has no such container.
        """
        runner = self._find_runner(container)
        if not previous:
            return runner.log_path
        return runner.log_folder / f"{runner.snapshot.restarts - 1}.log"

    def _find_runner(self, container: str | None) -> ContainerRunner:
        if container is None:
            return self._mains[0]
        for runner in self._runners:
            if runner.name == container:
                return runner
        raise KeyError(f"pod {self._title} has no container {container}")

    def find_process(self, container: str | None = None) -> int | None:
        """Return the id of a container's process, or None when none is running."""
        runner = self._find_runner(container)
        return runner.pid

    async def run(self) -> None:
        """Run the pod until it is gone; cancelling ends its processes and leaves the object."""
        try:
            if not self._is_ended:
                await self._live()
            await self._doomed.wait()
            await self._confirm_deletion()
        finally:
            self._node.addresses.give_back(self._pod_ip)
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    # What containers call.

    @property
    def bind_address(self) -> str:
        """Where the pod's processes listen."""
        return bind_address(self._pod_ip, self._node.block)

    @property
    def work_folder(self) -> Path:
        """The processes' working folder, which is also their TMPDIR and HOME."""
        return self._folder / "tmp"

    def record(self, *, reason: str, message: str, is_warning: bool = False) -> None:
        """Post an Event about the pod."""
        self._node.record(self.pod, reason, message, is_warning)

    def changed(self) -> None:
        """Report the status soon."""
        self._dirty.set()

    async def build_launch(self, container: Mapping[str, Any], entrypoint: Sequence[str]) -> Launch:
        """Resolve the container's variables and arguments. Raises ConfigError, ClusterError."""
        config_maps, secrets = referenced_objects(container)
        sources = Sources(
            config_maps=await self._fetch_all("configmaps", config_maps),
            secrets=await self._fetch_all("secrets", secrets),
        )
        mounts = {
            mount["mountPath"]: str(
                self._volumes.folder_of(mount["name"]) / mount.get("subPath", "")
            )
            for mount in container.get("volumeMounts") or ()
        }
        status = {"podIP": self._pod_ip, "hostIP": self._node.host_ip}
        pod = {**self.pod, "status": {**(self.pod.get("status") or {}), **status}}
        return build_launch(
            pod,
            container,
            entrypoint=entrypoint,
            sources=sources,
            base_env=await self._base_env(container),
            mounts=mounts,
        )

    # The parts of a life.

    @property
    def _runners(self) -> list[ContainerRunner]:
        return [*self._inits, *self._mains]

    def _runner(self, container: Mapping[str, Any], *, is_init: bool) -> ContainerRunner:
        policy = self.pod["spec"].get("restartPolicy") or "Always"
        if is_init:
            # An init container that succeeded is not run again, whatever the pod's policy.
            own = container.get("restartPolicy")
            policy = own or ("Never" if policy == "Never" else "OnFailure")
        return ContainerRunner(
            container,
            snapshot=recall(container, self.pod),
            entrypoint=self._node.images.get(container.get("image") or ""),
            restart_policy=policy,
            log_folder=self._log_folder / container["name"],
            surroundings=self,
        )

    async def _live(self) -> None:
        reporter = asyncio.create_task(self._report())
        work = asyncio.create_task(self._work())
        doom = asyncio.create_task(self._doomed.wait())
        try:
            await asyncio.wait({work, doom}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._end_containers(self._grace_s())
            await work
        except asyncio.CancelledError:
            # Silence first: that these processes end with us must not be told as the pod's end.
            await _cancel(reporter)
            await self._end_containers(SHUTDOWN_GRACE_S)
            raise
        finally:
            await _cancel(work, doom, reporter)
        self._is_ended = True
        if not self.is_gone:
            await self._send_status()

    async def _work(self) -> None:
        """Run the containers to their end; returns early, with all ended, once doomed."""
        if not await self._prepare_volumes():
            return
        refresh = asyncio.create_task(self._refresh())
        tasks: list[asyncio.Task[None]] = []
        try:
            if await self._initialize(tasks):
                mains = [asyncio.create_task(runner.run()) for runner in self._mains]
                tasks += mains
                await self._wait_with_deadline(mains)
            await self._end_containers(self._grace_s())
            await asyncio.gather(*tasks)
        finally:
            await _cancel(refresh, *tasks)

    async def _initialize(self, tasks: list[asyncio.Task[None]]) -> bool:
        """Run init containers one after the other; say whether the others may start."""
        for runner in self._inits:
            task = asyncio.create_task(runner.run())
            tasks.append(task)
            if runner.name in self._sidecar_names():
                await self._until_started(runner, task)
            else:
                await task
                if runner.snapshot.exit_code != 0:
                    return False
            if self._doomed.is_set():
                return False
        return not self._doomed.is_set()

    async def _until_started(self, runner: ContainerRunner, task: asyncio.Task[None]) -> None:
        settled = asyncio.create_task(runner.started.wait())
        doom = asyncio.create_task(self._doomed.wait())
        try:
            await asyncio.wait({settled, doom, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(settled, doom)

    async def _wait_with_deadline(self, mains: Sequence[asyncio.Task[None]]) -> None:
        limit_s = self.pod["spec"].get("activeDeadlineSeconds")
        _, pending = await asyncio.wait(mains, timeout=limit_s)
        if pending:
            self._failure = ("DeadlineExceeded", "pod was active longer than allowed")

    async def _end_containers(self, grace_s: float) -> None:
        """End the main containers, then the sidecars, within one grace period for each."""
        await asyncio.gather(*(runner.stop(grace_s) for runner in self._mains))
        for runner in reversed(self._inits):
            await runner.stop(grace_s)

    async def _prepare_volumes(self) -> bool:
        """Lay out the pod's folders, however often it takes; False once the pod is doomed."""
        told = ""
        while not self._doomed.is_set():
            try:
                await self._lay_out()
            except (ConfigError, ClusterError) as error:
                if str(error) != told:
                    told = str(error)
                    self.record(reason="FailedMount", message=told, is_warning=True)
            else:
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._doomed.wait()
        return False

    async def _lay_out(self) -> None:
        await asyncio.to_thread(self.work_folder.mkdir, 0o700, parents=True, exist_ok=True)
        status = {"podIP": self._pod_ip, "hostIP": self._node.host_ip}
        await self._volumes.write(
            {**self.pod, "status": {**(self.pod.get("status") or {}), **status}}
        )

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self._lay_out()
            except (ConfigError, ClusterError) as error:
                # The files stay as they are until the next round.
                logger.info("volumes not refreshed: %s", error, extra={"pod": self._title})

    async def _base_env(self, container: Mapping[str, Any]) -> dict[str, str]:
        env = {
            "PATH": self._node.search_path,
            "LANG": "C.UTF-8",
            "HOME": str(self.work_folder),
            "TMPDIR": str(self.work_folder),
            "HOSTNAME": self.name,
            "PYTHONUNBUFFERED": "1",
            "BERTHMASTER_BIND_ADDRESS": self.bind_address,
            **mark(self._folder),
        }
        for mount in container.get("volumeMounts") or ():
            folder = self._volumes.folder_of(mount["name"])
            env[mount_variable(mount["name"])] = str(folder)
        volume = find_account_volume(container)
        if volume is not None:
            account = self._volumes.folder_of(volume)
            text = build_kubeconfig(
                server_url=self._node.server_url,
                ca_path=self._node.ca_path,
                token_path=account / "token",
                namespace=self.namespace,
            )
            path = self._folder / "kubeconfig"
            await asyncio.to_thread(write_private_file, path, text.encode())
            env["KUBECONFIG"] = str(path)
            env["BERTHMASTER_SERVICEACCOUNT_DIR"] = str(account)
        return env

    async def _fetch_all(
        self, resource: str, names: frozenset[str]
    ) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for name in sorted(names):
            obj = await fetch(self._node.client, resource, self.namespace, name)
            if obj is not None:
                found[name] = obj
        return found

    # Reports.

    async def _report(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not self.is_gone and not await self._send_status():
                await asyncio.sleep(RETRY_S)
                self._dirty.set()

    async def _send_status(self) -> bool:
        """Patch the status if it changed; say whether there is nothing left to send."""
        status = build_status(self.pod, self._snapshot(), now=now_text())
        if self._last_sent is not None and _same(status, self._last_sent):
            return True
        body = {"metadata": {"uid": self.uid}, "status": status}
        try:
            await self._node.client.patch(f"{self._path}/status", body, PatchKind.STRATEGIC)
        except ClusterError as error:
            # Gone, or another pod of this name: the watch will say so.
            if isinstance(error, ApiError) and error.status in (404, 409):
                return True
            logger.info("status not reported: %s", error, extra={"pod": self._title})
            return False
        self._last_sent = status
        return True

    async def _confirm_deletion(self) -> None:
        while not self.is_gone:
            # Until the final phase is stored, an owner may take the pod for lost work.
            is_told = self._was_ended or await self._send_status()
            if is_told and await self._delete():
                return
            await asyncio.sleep(RETRY_S)

    async def _delete(self) -> bool:
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.uid},
        }
        try:
            await self._node.client.delete(self._path, body=options)
        except ClusterError as error:
            if isinstance(error, ApiError) and error.status in (404, 409):
                return True
            logger.info("deletion not confirmed: %s", error, extra={"pod": self._title})
            return False
        return True

    def _snapshot(self) -> PodSnapshot:
        reason, message = self._failure or ("", "")
        return PodSnapshot(
            pod_ip=self._pod_ip,
            host_ip=self._node.host_ip,
            start_time=self._start_time,
            inits=tuple(runner.snapshot for runner in self._inits),
            mains=tuple(runner.snapshot for runner in self._mains),
            sidecar_names=self._sidecar_names(),
            reason=reason,
            message=message,
            is_failed=self._failure is not None and self._is_ended,
        )

    def _sidecar_names(self) -> frozenset[str]:
        inits = self.pod["spec"].get("initContainers") or ()
        return frozenset(item["name"] for item in inits if item.get("restartPolicy") == "Always")

    def _grace_s(self) -> float:
        asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
        if asked is None:
            asked = self.pod["spec"].get("terminationGracePeriodSeconds")
        return DEFAULT_GRACE_S if asked is None else float(asked)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def _title(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def phase(self) -> str:
        """The phase as reported next."""
        return find_phase(self._snapshot())


def build_search_path(programs: Path) -> str:
    """Return a PATH with the project's programs first and the system's after them."""
    return os.pathsep.join([str(programs), "/usr/local/bin", "/usr/bin", "/bin"])


def _same(status: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compare two statuses without the times at which conditions changed."""

    def key(item: Mapping[str, Any]) -> list[tuple[object, ...]]:
        return [
            (part["type"], part["status"], part["reason"], part["message"])
            for part in item["conditions"]
        ]

    names = (set(status) | set(other)) - {"conditions"}
    return key(status) == key(other) and all(status.get(k) == other.get(k) for k in names)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    # Failures were raised where the task was awaited.
    await asyncio.gather(*tasks, return_exceptions=True)
