"""The control plane of one sandbox: etcd, kube-apiserver, kube-scheduler, kube-controller-manager.

Owns their keys, their flags, the order in which they start and stop, and the waiting for their
health. They run as any cluster's would: Node and RBAC authorization, NodeRestriction, a service
account for each controller, the node-lifecycle controller on. What differs is loopback, an etcd
without fsync (a sandbox is thrown away) and no leader election. For tests of bad days each
process can be killed, restarted, frozen and thawed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from berthmaster_sandbox.binaries import Binaries
from berthmaster_sandbox.errors import BootError
from berthmaster_sandbox.pki import (
    API_SERVER_NAMES,
    Authority,
    KeyPair,
    issue_node_client,
    write_kubeconfig,
    write_service_account_keys,
)
from berthmaster_sandbox.processes import ManagedProcess, start_process
from berthmaster_sandbox.slots import Slot

# Generous: on an idle machine all is ready after 5 s, on a busy one after 20.
BOOT_DEADLINE_S = 90.0
PROBE_TIMEOUT_S = 2.0
PROBE_INTERVAL_S = 0.05
STOP_GRACE_S = 8.0
SCHEDULER_QPS = 1000
# Longer than any simulated node is silent on a machine that has too much to do; by default it is 50 s, and nodes called lost
# for want of CPU cost so much that more are lost.
NODE_SILENCE_S = 500

# By this name the API server shows itself to webhooks: to all that are Services.
WEBHOOK_CLIENT = "kube-apiserver-webhook-client"
_WEBHOOK_HOSTS = ("*.svc:10250", "*.svc")

ETCD = "etcd"
API_SERVER = "kube-apiserver"
SCHEDULER = "kube-scheduler"
CONTROLLER_MANAGER = "kube-controller-manager"


class ControlPlane:
    """Start with `start`, end with `stop`; between the two the API server is at `server`."""

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Binaries,
        slot: Slot,
        audited: Sequence[str] = (),
        api_server_flags: Mapping[str, object] | None = None,
    ) -> None:
        """Make keys and kubeconfig files below `folder`; nothing runs yet.

        What the users in `audited` ask of the API server goes to `audit_path`, a JSON object per line.
        `api_server_flags` are further flags of kube-apiserver by name, such as `request-timeout`.
        """
        self.folder = folder
        self.slot = slot
        self.server = f"https://127.0.0.1:{slot.api_server_port}"
        self.processes: dict[str, ManagedProcess] = {}
        self._binaries = binaries
        self.audit_path = folder / "audit.jsonl"
        self._audited = list(audited)
        self._keys = folder / "pki"
        self._authority = Authority(self._keys)
        self.ca_path = self._authority.certificate_path
        self._admin = self._authority.issue_client(
            "admin", "sandbox-admin", organizations=["system:masters"]
        )
        self.kubeconfig = self._write_kubeconfig("admin", self._admin)
        self._api_server_flags = dict(api_server_flags or {})
        self._commands = self._build_commands()
        self._first_api_server = self._commands[API_SERVER]

    async def start(self, *, deadline_s: float = BOOT_DEADLINE_S) -> None:
        """Start everything and return when all of it is healthy. Raises BootError."""
        deadline = time.monotonic() + deadline_s
        self._launch(ETCD)
        etcd = f"http://127.0.0.1:{self.slot.etcd_client_port}/health"
        await self._wait_healthy(ETCD, etcd, deadline=deadline)
        self._launch(API_SERVER)
        await self._wait_healthy(API_SERVER, f"{self.server}/readyz", deadline=deadline)
        self._launch(SCHEDULER)
        self._launch(CONTROLLER_MANAGER)
        for name, port in (
            (SCHEDULER, self.slot.scheduler_port),
            (CONTROLLER_MANAGER, self.slot.controller_manager_port),
        ):
            url = f"https://127.0.0.1:{port}/healthz"
            await self._wait_healthy(name, url, deadline=deadline)

    async def stop(self) -> None:
        """End everything, what depends on others first; return when nothing is left."""
        clients = [self.processes.get(name) for name in (SCHEDULER, CONTROLLER_MANAGER)]
        await asyncio.gather(*(process.stop(grace_s=2) for process in clients if process))
        for name in (API_SERVER, ETCD):
            if name in self.processes:
                await self.processes[name].stop(grace_s=STOP_GRACE_S)

    async def kill(self, name: str = API_SERVER) -> None:
        """End one process as a crash would, without a word to it."""
        await self.processes[name].kill()

    async def launch(self, name: str = API_SERVER, *, deadline_s: float = BOOT_DEADLINE_S) -> None:
        """Start a process that was killed; the API server is waited for. Raises BootError."""
        self._launch(name)
        if name == API_SERVER:
            deadline = time.monotonic() + deadline_s
            await self._wait_healthy(name, f"{self.server}/readyz", deadline=deadline)

    async def configure_api_server(self, flags: Mapping[str, object]) -> None:
        """Start the API server anew with these flags besides those it began with; none: as it began.

        Raises BootError.
        """
        self._commands[API_SERVER] = [*self._first_api_server, *_build_flags(flags)]
        await self.kill(API_SERVER)
        await self.launch(API_SERVER)

    async def configure_scheduler(
        self, configuration: Mapping[str, Any] | None, *, deadline_s: float = BOOT_DEADLINE_S
    ) -> None:
        """Start kube-scheduler anew with a KubeSchedulerConfiguration, None: with its defaults.

        Only what differs need be said, such as `extenders` or `profiles`. Raises BootError.
        """
        flags = self._scheduler_flags
        if configuration is not None:
            path = self._write("scheduler", self._complete(configuration))
            # The file replaces these.
            replaced = ("kubeconfig", "kube-api-qps", "kube-api-burst", "leader-elect")
            flags = {key: value for key, value in flags.items() if key not in replaced}
            flags["config"] = path
        self._commands[SCHEDULER] = _build_command(self._binaries.kube_scheduler, flags)
        await self.kill(SCHEDULER)
        await self.launch(SCHEDULER)
        url = f"https://127.0.0.1:{self.slot.scheduler_port}/healthz"
        await self._wait_healthy(SCHEDULER, url, deadline=time.monotonic() + deadline_s)

    def _complete(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": str(self._scheduler_flags["kubeconfig"]),
                "qps": SCHEDULER_QPS,
                "burst": 2 * SCHEDULER_QPS,
            },
            "leaderElection": {"leaderElect": False},
            **configuration,
        }

    def pause(self, name: str) -> None:
        """Freeze a process: its connections stay open and nothing answers on them."""
        self.processes[name].pause()

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        self.processes[name].resume()

    def write_user_kubeconfig(
        self, name: str, user: str, *, organizations: tuple[str, ...] = ()
    ) -> Path:
        """Write a kubeconfig whose bearer the API server takes for `user` in these groups."""
        pair = self._authority.issue_client(name, user, organizations=organizations)
        return self._write_kubeconfig(name, pair)

    def write_node_kubeconfig(self, node_name: str) -> Path:
        """Write a kubeconfig with a kubelet's own and limited rights."""
        pair = issue_node_client(self._authority, node_name)
        return self._write_kubeconfig(f"node-{node_name}", pair)

    def _write_kubeconfig(self, name: str, user: KeyPair) -> Path:
        path = self.folder / "kubeconfigs" / f"{name}.yaml"
        return write_kubeconfig(path, server=self.server, authority=self._authority, user=user)

    def _launch(self, name: str) -> None:
        command = self._commands[name]
        self.processes[name] = start_process(name, command, folder=self.folder)

    async def _wait_healthy(self, name: str, url: str, *, deadline: float) -> None:
        process = self.processes[name]
        context = ssl.create_default_context(cafile=str(self.ca_path))
        context.load_cert_chain(self._admin.certificate_path, self._admin.key_path)
        limit = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=limit) as session:
            while True:
                process.check_alive()
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url, ssl=context) as response:
                        if response.status == 200:
                            return
                if time.monotonic() > deadline:
                    raise BootError(
                        f"{name} did not become ready in time; its log is {process.log_path}"
                    )
                await asyncio.sleep(PROBE_INTERVAL_S)

    def _build_commands(self) -> dict[str, list[str]]:
        serving = self._authority.issue_server(
            "serving",
            "kube-apiserver",
            dns_names=API_SERVER_NAMES,
            addresses=["127.0.0.1", self.slot.first_service_ip],
        )
        self._scheduler_flags = self._build_scheduler_flags(serving)
        signing_key, verifying_key = write_service_account_keys(self._keys)
        return {
            ETCD: self._build_etcd(),
            API_SERVER: self._build_api_server(serving, signing_key, verifying_key),
            SCHEDULER: _build_command(self._binaries.kube_scheduler, self._scheduler_flags),
            CONTROLLER_MANAGER: self._build_controller_manager(serving, signing_key),
        }

    def _build_etcd(self) -> list[str]:
        client = f"http://127.0.0.1:{self.slot.etcd_client_port}"
        peer = f"http://127.0.0.1:{self.slot.etcd_peer_port}"
        flags = {
            "name": "sandbox",
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"sandbox={peer}",
            "quota-backend-bytes": 8_000_000_000,
            "log-level": "error",
        }
        return [*_build_command(self._binaries.etcd, flags), "--unsafe-no-fsync"]

    def _build_api_server(
        self, serving: KeyPair, signing_key: Path, verifying_key: Path
    ) -> list[str]:
        to_kubelets = self._authority.issue_client(
            "kubelet-client", "kube-apiserver-kubelet-client", organizations=["system:masters"]
        )
        front_authority = Authority(self._keys, name="front-proxy-ca")
        front = front_authority.issue_client("front-proxy-client", "front-proxy-client")
        flags = {
            "etcd-servers": f"http://127.0.0.1:{self.slot.etcd_client_port}",
            "secure-port": self.slot.api_server_port,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            "client-ca-file": self.ca_path,
            "tls-cert-file": serving.certificate_path,
            "tls-private-key-file": serving.key_path,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": verifying_key,
            "service-account-signing-key-file": signing_key,
            "service-cluster-ip-range": self.slot.service_cidr,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "kubelet-client-certificate": to_kubelets.certificate_path,
            "kubelet-client-key": to_kubelets.key_path,
            "requestheader-client-ca-file": front_authority.certificate_path,
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "proxy-client-cert-file": front.certificate_path,
            "proxy-client-key-file": front.key_path,
            "admission-control-config-file": self._write_admission_configuration(),
            **self._api_server_flags,
        }
        if self._audited:
            flags["audit-policy-file"] = self._write_audit_policy()
            flags["audit-log-path"] = self.audit_path
            # One file; by default the API server begins another after 100 MB.
            flags["audit-log-maxsize"] = 0
        return _build_command(self._binaries.kube_apiserver, flags)

    def _write_admission_configuration(self) -> Path:
        """Have the API server show webhooks a certificate, to those that ask for one."""
        pair = self._authority.issue_client("webhook-client", WEBHOOK_CLIENT)
        shown = {
            "client-certificate": str(pair.certificate_path),
            "client-key": str(pair.key_path),
        }
        users = [{"name": host, "user": shown} for host in _WEBHOOK_HOSTS]
        kubeconfig = self._write("webhooks", {"apiVersion": "v1", "kind": "Config", "users": users})
        configuration = {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": str(kubeconfig),
        }
        plugins = ("MutatingAdmissionWebhook", "ValidatingAdmissionWebhook")
        return self._write(
            "admission",
            {
                "apiVersion": "apiserver.config.k8s.io/v1",
                "kind": "AdmissionConfiguration",
                "plugins": [{"name": it, "configuration": configuration} for it in plugins],
            },
        )

    def _write_audit_policy(self) -> Path:
        rules = [
            {"level": "Metadata", "users": self._audited, "omitStages": ["RequestReceived"]},
            {"level": "None"},
        ]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}
        return self._write("audit-policy", policy)

    def _write(self, name: str, configuration: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(configuration), encoding="utf-8")
        return path

    def _build_scheduler_flags(self, serving: KeyPair) -> dict[str, object]:
        flags = self._build_client_flags("system:kube-scheduler", serving)
        flags["secure-port"] = self.slot.scheduler_port
        return {**flags, "kube-api-qps": SCHEDULER_QPS, "kube-api-burst": 2 * SCHEDULER_QPS}

    def _build_controller_manager(self, serving: KeyPair, signing_key: Path) -> list[str]:
        flags = self._build_client_flags("system:kube-controller-manager", serving)
        flags["secure-port"] = self.slot.controller_manager_port
        flags |= {
            "use-service-account-credentials": "true",
            "service-account-private-key-file": signing_key,
            "root-ca-file": self.ca_path,
            "service-cluster-ip-range": self.slot.service_cidr,
            "kube-api-qps": 500,
            "kube-api-burst": 1000,
            "node-monitor-grace-period": f"{NODE_SILENCE_S}s",
            "node-startup-grace-period": f"{NODE_SILENCE_S}s",
        }
        return _build_command(self._binaries.kube_controller_manager, flags)

    def _build_client_flags(self, user: str, serving: KeyPair) -> dict[str, object]:
        kubeconfig = self.write_user_kubeconfig(user.removeprefix("system:"), user)
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": "127.0.0.1",
            "tls-cert-file": serving.certificate_path,
            "tls-private-key-file": serving.key_path,
            "leader-elect": "false",
        }


def _build_command(program: Path, flags: Mapping[str, object]) -> list[str]:
    return [str(program), *_build_flags(flags)]


def _build_flags(flags: Mapping[str, object]) -> list[str]:
    return [f"--{key}={value}" for key, value in flags.items()]
