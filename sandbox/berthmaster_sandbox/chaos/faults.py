"""The faults, a class per kind. `prepare` looks who is to be hit; `strike` hits, and returns when it is over.

Owns what each does to the cluster, and which failures of creates are the control plane's own meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Any, ClassVar

from berthmaster.api import names
from berthmaster.cluster.client import ApiError, PatchKind
from berthmaster_sandbox.chaos.scene import (
    HOOK,
    OPERATOR,
    REPLICAS,
    SYSTEM,
    WEBHOOK,
    Scene,
    until,
)
from berthmaster_sandbox.chaos.slow_webhook import SlowWebhook
from berthmaster_sandbox.controlplane import API_SERVER, ETCD
from berthmaster_sandbox.installing import PROJECT

# The Lease is 6 s; whoever is away for longer has lost it.
BEYOND_THE_LEASE_S = 10.0
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{names.SYSTEM_NAMESPACE}/leases"
CA = f"{SYSTEM}/secrets/{names.WEBHOOK_CA_SECRET}"
TLS = f"{SYSTEM}/secrets/{names.WEBHOOK_TLS_SECRET}"
HOUR_S = 3600.0
# A leader believes in its pod watch, and in its Lease, for so long without any news of them.
PROOF_OF_LIFE_S = 10.0
TRUST_S = 4.0
# What creates say that exceed the API server's request timeout, which is lower here than elsewhere.
TOO_LATE = (
    "unable to return a response in the time allotted",
    "INTERNAL_ERROR; received from peer",
)
# What creates say while the API server or its storage is away or has just come back.
AWAY = (
    *TOO_LATE,
    "cannot reach the cluster",
    "its answer is lost",
    "connection refused",
    "connection reset",
    "EOF",
    "Timeout",
    "timed out",
    "context deadline exceeded",
    "context canceled",
    "etcdserver",
    "storage is (re)initializing",
    "not yet ready",
    "TLS handshake",
    "http2:",
)


class Fault(ABC):
    """One kind of fault. Its `name` is for options and the report, its docstring for readers."""

    name: ClassVar[str]
    # What failed creates may say while the control plane itself is hit.
    excuses: ClassVar[tuple[str, ...]] = ()
    # So long decisions go on as if nothing were. Placements count from then on.
    bites_after_s: ClassVar[float] = 0.0
    # Whether it ends a process of ours, which then is no fault of the process.
    kills: ClassVar[bool] = False

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene = scene
        self.rng = rng
        # When it bites (monotonic seconds), where that is known only while it is made.
        self.bites_s: float | None = None

    async def prepare(self) -> None:
        """Find out what `strike` needs to know; the fault begins after it."""
        return

    @abstractmethod
    async def strike(self) -> None:
        """Make the fault, and undo what does not undo itself."""


class LeaderKilled(Fault):
    """`kill -9` of the webhook that leads."""

    name = "leader-killed"
    kills = True
    program: ClassVar[str] = WEBHOOK

    async def prepare(self) -> None:
        """Find the leader's process."""
        self.pid = await find_leader(self.scene, self.program)

    async def strike(self) -> None:
        """Kill it; its kubelet starts it anew."""
        os.kill(self.pid, signal.SIGKILL)


class OperatorKilled(LeaderKilled):
    """`kill -9` of the operator that leads."""

    name = "operator-killed"
    program = OPERATOR


class LeaderFrozen(LeaderKilled):
    """SIGSTOP of the webhook that leads, for longer than its Lease, then SIGCONT."""

    name = "leader-frozen"
    kills = False

    async def strike(self) -> None:
        """Let it wake up as a leader of yesterday."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(BEYOND_THE_LEASE_S)
        finally:
            os.kill(self.pid, signal.SIGCONT)


class ApiServerKilled(Fault):
    """`kill -9` of the API server, which is back after some seconds."""

    name = "api-server-killed"
    # Controllers, too, are refused until it has read who may do what.
    excuses = (*AWAY, 'cannot create resource "pods"')

    async def strike(self) -> None:
        """Kill it, wait, start it."""
        await self.scene.sandbox.plane.kill(API_SERVER)
        await asyncio.sleep(self.rng.uniform(1.0, 5.0))
        # On a busy machine its start takes minutes: every client is at its door.
        await self.scene.sandbox.plane.launch(API_SERVER, deadline_s=300)


class EtcdPaused(Fault):
    """etcd stands still for longer than a Lease: no write ends, no watch moves."""

    name = "etcd-paused"
    excuses = AWAY

    async def strike(self) -> None:
        """Freeze and thaw it."""
        self.scene.sandbox.pause(ETCD)
        try:
            await asyncio.sleep(BEYOND_THE_LEASE_S)
        finally:
            self.scene.sandbox.resume(ETCD)


class WatchesCut(Fault):
    """Every connection between our pods and the API server is reset."""

    name = "watches-cut"

    async def strike(self) -> None:
        """Cut them all at once, three times."""
        for _ in range(3):
            for relay in self.scene.relays.values():
                relay.cut()
            await asyncio.sleep(self.rng.uniform(0.2, 2.0))


class LeaderHalfOpen(Fault):
    """The leader's connections are left half-open: nothing comes, and nothing says so."""

    name = "leader-half-open"
    bites_after_s = PROOF_OF_LIFE_S

    async def prepare(self) -> None:
        """Find the leader's node."""
        self.node = (await self.scene.leader())["spec"]["nodeName"]

    async def strike(self) -> None:
        """Freeze what there is on the leader's node; new connections work."""
        self.scene.relays[self.node].freeze()


class AllHalfOpen(Fault):
    """All connections of all our pods are left half-open."""

    name = "all-half-open"
    bites_after_s = PROOF_OF_LIFE_S

    async def strike(self) -> None:
        """Freeze what there is; new connections work."""
        for relay in self.scene.relays.values():
            relay.freeze()


class LeaseTaken(Fault):
    """A stranger writes himself into the webhook's Lease, and is not heard of again."""

    name = "lease-taken"
    bites_after_s = TRUST_S

    async def strike(self) -> None:
        """Write whatever the leader has written since."""

        async def write() -> bool:
            lease = await self.scene.client.get(f"{LEASES}/{WEBHOOK}")
            spec = lease["spec"]
            spec["holderIdentity"] = "a-stranger_0"
            spec["renewTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            try:
                await self.scene.client.replace(f"{LEASES}/{WEBHOOK}", lease)
            except ApiError as error:
                if not error.is_conflict:
                    raise
                return False
            return True

        await until(write, "the Lease could not be written")


class ForeignWebhookSlow(Fault):
    """Somebody else's validating webhook takes 5 s for every pod: answers of ours are stored late."""

    name = "foreign-webhook-slow"
    excuses = TOO_LATE
    lasts_s = 15.0

    async def strike(self) -> None:
        """Install it and remove it."""
        folder = self.scene.sandbox.folder / "slow-webhook"
        async with SlowWebhook(self.scene.client, folder, delay_s=5.0):
            await asyncio.sleep(self.lasts_s)


class ClockStepped(Fault):
    """The wall clock of all our programs jumps an hour ahead, an hour back, and to where it was."""

    name = "clock-stepped"

    async def strike(self) -> None:
        """Step it."""
        for offset_s in (HOUR_S, -HOUR_S, 0.0):
            self.scene.clock.set(offset_s)
            await asyncio.sleep(self.rng.uniform(4.0, 7.0) if offset_s else 0.0)


class CertificatesRotated(Fault):
    """The serving certificate is deleted, and a new authority is asked for."""

    name = "certificates-rotated"

    async def prepare(self) -> None:
        """Remember what is trusted."""
        self.before = await self._trusted()

    async def strike(self) -> None:
        """Return when the new authority alone is trusted, and its certificate is there."""
        await self.scene.client.delete(TLS)
        await until(lambda: exists(self.scene, TLS), "there is no new certificate")
        mark = {"metadata": {"annotations": {names.RENEW: "now"}}}
        await self.scene.client.patch(CA, mark, PatchKind.MERGE)
        await until(self._is_done, "the authority was not renewed")

    async def _trusted(self) -> str:
        hook = await self.scene.client.get(HOOK)
        return str(hook["webhooks"][0]["clientConfig"].get("caBundle", ""))

    async def _is_done(self) -> bool:
        """Return whether authority, bundle and certificate are of one piece, and new."""
        authority: str = (await self.scene.client.get(CA))["data"]["tls.crt"]
        leaf: str = (await self.scene.client.get(TLS))["data"]["ca.crt"]
        return await self._trusted() == authority == leaf != self.before


class PoliciesChanged(Fault):
    """Policies appear, change what counts, outrank each other, and go, within seconds."""

    name = "policies-changed"
    settings: ClassVar[dict[str, Any]] = {
        "podSelector": {"matchLabels": {"placed-by": "policy"}},
        "namespaceSelector": {"matchLabels": {"chaos": "yes"}},
    }

    async def strike(self) -> None:
        """Write, rewrite and delete a policy of a higher and then a lower rank."""
        for priority in (100, -100):
            for weight in (0, 10):
                concerns = {"diskio": {"weight": weight}, "resources": {"weight": 10 - weight}}
                spec = {**self.settings, "priority": priority, "concerns": concerns}
                await self.scene.write_policy("chaos-passing", spec)
                await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            await self.scene.client.delete(
                f"/apis/{names.API_VERSION}/placementpolicies/chaos-passing"
            )
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))


class KindsDeleted(Fault):
    """The CRDs are deleted with all their objects, ours and upstream's, and installed again."""

    name = "kinds-deleted"

    async def strike(self) -> None:
        """Delete and restore; vendors then publish anew, and policies are applied anew."""
        crds = str(PROJECT / "crds")
        await self.scene.sandbox.kubectl("delete", "-k", crds, "--wait=true")
        self.bites_s = time.monotonic()
        await asyncio.sleep(self.rng.uniform(0.0, 5.0))
        await self.scene.sandbox.kubectl("apply", "-k", crds)
        await self.scene.sandbox.kubectl("wait", "--for=condition=Established", "crd", "--all")
        await self.scene.write_policies()
        await self.scene.publish_anew()


class AllDown(Fault):
    """Every replica of both programs is gone for a minute."""

    name = "all-down"

    async def strike(self) -> None:
        """Scale to nothing, wait, and scale back."""
        for program in REPLICAS:
            await self.scene.scale(program, 0)
        await until(self._are_gone, "our pods do not go")
        self.bites_s = time.monotonic()
        await asyncio.sleep(self.scene.plan.down_s)
        for program, replicas in REPLICAS.items():
            await self.scene.scale(program, replicas)

    async def _are_gone(self) -> bool:
        return not [it for program in REPLICAS for it in await self.scene.program_pods(program)]


class RolledOver(Fault):
    """A rolling upgrade of both programs."""

    name = "rolled-over"

    async def strike(self) -> None:
        """Restart one pod after the other, as `kubectl rollout restart` does."""
        for program in REPLICAS:
            deployment = f"deployment/{program}"
            await self._kubectl("rollout", "restart", deployment)
        for program in REPLICAS:
            await self._kubectl("rollout", "status", f"deployment/{program}", "--timeout=170s")

    async def _kubectl(self, *arguments: str) -> None:
        await self.scene.sandbox.kubectl("-n", names.SYSTEM_NAMESPACE, *arguments, timeout_s=180)


async def find_leader(scene: Scene, program: str = WEBHOOK) -> int:
    """Return the process that leads."""

    async def find() -> int | None:
        return scene.pid_of(await scene.leader(program))

    return await until(find, f"the leader of {program} has no process")


async def exists(scene: Scene, path: str) -> bool:
    """Return whether there is such an object."""
    try:
        await scene.client.get(path)
    except ApiError as error:
        if not error.is_not_found:
            raise
        return False
    return True


FAULTS: dict[str, type[Fault]] = {
    it.name: it
    for it in (
        LeaderKilled,
        OperatorKilled,
        LeaderFrozen,
        ApiServerKilled,
        EtcdPaused,
        WatchesCut,
        LeaderHalfOpen,
        AllHalfOpen,
        LeaseTaken,
        ForeignWebhookSlow,
        ClockStepped,
        CertificatesRotated,
        PoliciesChanged,
        KindsDeleted,
        AllDown,
        RolledOver,
    )
}
