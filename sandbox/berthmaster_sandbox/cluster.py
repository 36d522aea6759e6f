"""A whole cluster on this machine: what demo, tests and benchmarks hold in their hands.

`Sandbox.start` brings up, in this order, a folder and a slot of its own, the control plane, kwok
with simulated nodes, the service proxy and the kubelets whose pods are processes; leaving the
block ends them in the reverse order and removes the folder. The programs are children of this
process and die with it; the kubelets and the proxy are tasks of the running event loop, so the
loop must not be blocked for longer than a node may be silent (40 s).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from berthmaster.cluster.client import Client
from berthmaster_sandbox.binaries import Binaries, ensure_binaries
from berthmaster_sandbox.building import print_progress
from berthmaster_sandbox.controlplane import API_SERVER, BOOT_DEADLINE_S, ControlPlane
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.folders import (
    SandboxState,
    create_folder,
    find_base,
    lock_folder,
    write_state,
)
from berthmaster_sandbox.kubelet import Kubelet
from berthmaster_sandbox.kubelet.processes import MARK
from berthmaster_sandbox.ownership import TaskOwner
from berthmaster_sandbox.processes import ManagedProcess, build_environment, read_tail
from berthmaster_sandbox.services import ServiceProxy
from berthmaster_sandbox.simnodes import (
    KWOK,
    build_node,
    create_nodes,
    start_kwok,
    wait_nodes_ready,
)
from berthmaster_sandbox.slots import Slot, acquire_slot
from berthmaster_sandbox.warden import start_warden

KUBECTL_TIMEOUT_S = 120.0
READY_DEADLINE_S = 30.0

# What may run as a process here, with the entrypoint that a container's command replaces. The
# programs come from the folder of the running Python, as they do from the real images.
IMAGES: Mapping[str, tuple[str, ...]] = {
    "berthmaster.io/sandbox/python": ("python",),
    "berthmaster.io/sandbox/shell": ("/bin/sh", "-c"),
}

Report = Callable[[str], None]


class Sandbox:
    """A running cluster; made by `start` and not otherwise.

    `folder` holds logs, keys and data. `kubeconfig` is an administrator's. `client` acts as that
    administrator. `kubelets` are the process nodes by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        slot: Slot,
        binaries: Binaries,
        images: Mapping[str, tuple[str, ...]],
        api_server_flags: Mapping[str, object],
        pod_servers: Mapping[str, str],
        audited: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.slot = slot
        self.binaries = binaries
        self.plane = ControlPlane(
            folder,
            binaries=binaries,
            slot=slot,
            audited=audited,
            api_server_flags=api_server_flags,
        )
        self._pod_servers = pod_servers
        self.kubelets: dict[str, Kubelet] = {}
        self.tasks = TaskOwner()
        self._images = images
        self._client: Client | None = None
        self._kwok: ManagedProcess | None = None
        self._started_at = time.time()
        self._is_ready = False

    @classmethod
    @asynccontextmanager
    async def start(  # noqa: PLR0913 - each has a default
        cls,
        folder: Path | None = None,
        *,
        sim_nodes: int = 0,
        process_nodes: int = 3,
        verbose: bool = False,
        name: str | None = None,
        images: Mapping[str, tuple[str, ...]] = IMAGES,
        binaries: Binaries | None = None,
        audited: Sequence[str] = (),
        api_server_flags: Mapping[str, object] | None = None,
        pod_servers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """Yield a cluster whose nodes are Ready; end it and remove its folder on the way out.

        `folder`, when given, must be absent or empty and is kept afterwards. `images` are what may
        run on process nodes. What the users in `audited` ask of the API server goes to
        `plane.audit_path`. `api_server_flags` are further ones of kube-apiserver. `pod_servers` has, by
        process node, the URL that its pods take for the API server's, such as that of a relay in
        between. Missing programs are built first, which can take minutes and blocks the loop. Must be
        entered on the main thread. Raises SandboxError.
        """
        report: Report = print_progress if verbose else _ignore
        found = binaries or ensure_binaries()
        async with AsyncExitStack() as stack:
            locks = stack.enter_context(ExitStack())
            if folder is None:
                place = create_folder(find_base(), locks, name=name)
                stack.callback(shutil.rmtree, place, ignore_errors=True)
            else:
                place = _take_folder(folder, locks)
            slot = acquire_slot(locks)
            # Entered before everything else, so that it is told of the end after everything else.
            stack.enter_context(start_warden(f"{MARK}={place}{os.sep}"))
            sandbox = cls(
                place,
                slot=slot,
                binaries=found,
                images=images,
                audited=audited,
                api_server_flags=api_server_flags or {},
                pod_servers=pod_servers or {},
            )
            # From here on others can see it, and end it.
            sandbox._write_state(is_ready=False)
            stack.push_async_callback(sandbox._stop)
            await sandbox._boot(report, sim_nodes=sim_nodes, process_nodes=process_nodes)
            yield sandbox

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self.plane.server

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.plane.kubeconfig

    @property
    def ca_path(self) -> Path:
        """The certificate of the cluster's authority."""
        return self.plane.ca_path

    @property
    def client(self) -> Client:
        """An API client with the administrator's rights; it lives as long as the sandbox."""
        if self._client is None:
            raise SandboxError("the sandbox does not run yet")
        return self._client

    def describe(self) -> SandboxState:
        """Return what other processes are told of this sandbox."""
        return SandboxState(
            name=self.folder.name,
            pid=os.getpid(),
            server=self.server,
            kubeconfig=str(self.kubeconfig),
            binaries=str(self.binaries.folder),
            started_at=self._started_at,
            is_ready=self._is_ready,
        )

    async def kubectl(
        self,
        *args: str,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = KUBECTL_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator and return what it said.

        Raises SandboxError with its words if it fails and `check` is set, or exceeds `timeout_s`.
        """
        environment = build_environment({"KUBECONFIG": str(self.kubeconfig)})
        command = [str(self.binaries.kubectl), *args]
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                command,
                input=stdin,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise SandboxError(
                f"kubectl {' '.join(args)} took longer than {timeout_s} s"
            ) from error
        if check and done.returncode != 0:
            raise SandboxError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done

    async def connect_as(
        self, name: str, user: str, *, organizations: tuple[str, ...] = ()
    ) -> Client:
        """Return a client that acts as a user of these groups; the caller closes it."""
        path = self.plane.write_user_kubeconfig(name, user, organizations=organizations)
        return await Client.connect(str(path))

    async def create_nodes(  # noqa: PLR0913 - a node has as many independent properties
        self,
        count: int,
        *,
        cpu: str = "32",
        memory: str = "128Gi",
        pods: int = 110,
        labels: Mapping[str, str] | None = None,
        extended: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        name: str = "sim-{index:04d}",
        first: int = 1,
        wait: bool = True,
    ) -> list[str]:
        """Create simulated nodes, numbered from `first`, and return their names once Ready."""
        nodes: list[dict[str, Any]] = [
            build_node(
                name.format(index=index),
                cpu=cpu,
                memory=memory,
                pods=pods,
                labels=labels,
                extended=extended,
                taints=taints,
            )
            for index in range(first, first + count)
        ]
        names = await create_nodes(self.client, iter(nodes))
        if wait:
            await wait_nodes_ready(self.client, names)
        return sorted(names)

    async def kill_apiserver(self) -> None:
        """Kill the API server; everything else goes on and waits for it."""
        await self.plane.kill(API_SERVER)

    async def restart_apiserver(self) -> None:
        """Kill the API server if it runs, start it and return when it is ready."""
        await self.plane.kill(API_SERVER)
        await self.plane.launch(API_SERVER)

    def pause(self, name: str) -> None:
        """Freeze a process by its program's name, such as `kube-apiserver` or `kwok`."""
        self._find_process(name).pause()

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        self._find_process(name).resume()

    def list_processes(self) -> dict[str, ManagedProcess]:
        """Return the programs by name, whether they run or were killed."""
        kwok = {} if self._kwok is None else {KWOK: self._kwok}
        return {**self.plane.processes, **kwok}

    async def wait_failed(self) -> str:
        """Wait until something of the sandbox has ended on its own; say what it was."""
        failure = asyncio.ensure_future(self.tasks.wait_failed())
        try:
            while not failure.done():
                for process in self.list_processes().values():
                    if not process.is_running:
                        # The log itself is about to be removed.
                        return f"{process.name} has ended:\n{read_tail(process.log_path)}"
                await asyncio.wait([failure], timeout=0.5)
            return repr(failure.result())
        finally:
            failure.cancel()

    def _find_process(self, name: str) -> ManagedProcess:
        processes = self.list_processes()
        if name not in processes:
            raise SandboxError(f"no process called {name}, expected one of {sorted(processes)}")
        return processes[name]

    async def _boot(self, report: Report, *, sim_nodes: int, process_nodes: int) -> None:
        started = time.monotonic()
        await self.plane.start(deadline_s=BOOT_DEADLINE_S)
        report(f"the control plane is ready after {time.monotonic() - started:.1f} s")
        self._client = await Client.connect(str(self.kubeconfig))
        self._kwok = start_kwok(
            self.folder,
            binaries=self.binaries,
            slot=self.slot,
            kubeconfig=self.plane.write_user_kubeconfig(
                "kwok", "kwok", organizations=("system:masters",)
            ),
        )
        simulated = await self.create_nodes(sim_nodes, wait=False)
        proxy_client = await self.connect_as("kube-proxy", "system:kube-proxy")
        self.tasks.start("service proxy", _run_proxy(proxy_client, block=self.slot.pod_block))
        for index in range(1, process_nodes + 1):
            await self._start_kubelet(f"sandbox-{index}", index)
        names = [*simulated, *self.kubelets]
        await wait_nodes_ready(self.client, names)
        self._write_state(is_ready=True)
        report(f"{len(names)} nodes are ready after {time.monotonic() - started:.1f} s")

    async def _start_kubelet(self, node_name: str, index: int) -> None:
        path = self.plane.write_node_kubeconfig(node_name)
        client = await Client.connect(str(path))
        kubelet = Kubelet(
            node_name,
            client=client,
            folder=self.folder / "nodes" / node_name,
            server_url=self._pod_servers.get(node_name, self.server),
            ca_path=self.ca_path,
            images=self._images,
            pod_cidr_index=index,
            bind_block=self.slot.pod_block,
        )
        self.kubelets[node_name] = kubelet
        self.tasks.start(node_name, _run_kubelet(kubelet, client))

    def _write_state(self, *, is_ready: bool) -> None:
        self._is_ready = is_ready
        write_state(self.folder, self.describe())

    async def _stop(self) -> None:
        try:
            await self.tasks.close()
            if self._client is not None:
                await self._client.close()
        finally:
            if self._kwok is not None:
                await self._kwok.stop(grace_s=2)
            await self.plane.stop()


async def _run_proxy(client: Client, *, block: int) -> None:
    async with client:
        await ServiceProxy(client, block=block).run()


async def _run_kubelet(kubelet: Kubelet, client: Client) -> None:
    async with client:
        await kubelet.run()


def _take_folder(folder: Path, owner: ExitStack) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lock_folder(folder, owner)
    if any(path.name != "lock" for path in folder.iterdir()):
        raise SandboxError(f"{folder} is not empty")
    return folder.resolve()


def _ignore(_line: str) -> None:
    return None
