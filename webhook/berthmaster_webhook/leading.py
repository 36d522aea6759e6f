"""One decision maker at a time: the life of a leader, from acquiring the Lease to handing it over.

    start: take the role label off our own pod
    acquired: take it off all other pods; put it on ours and see that in the pod watch, which shows
        that everything older has been seen, too; take over what a predecessor handed over, or else
        wait until no answer of his can be stored any more; turn the webhook's path to this epoch, and
        look from then on that label and path are still as they should be
    lost: stop at once, take the label off
    stop: stop deciding; once drained, release the Lease with what is still assumed
    a leader's label gone: look at the Lease at once, since he may have released it

`why_not` is asked before each decision and each write. It relies on the elector's CLOCK_BOOTTIME
alone, so a process that was stopped finds itself no longer leader before it does anything. What it had
sent before may still arrive: a path is turned only in the version that was read, and labels that were
taken off or put on too late are put right by whoever leads.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client, JsonObject, PatchKind
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.informers import EventKind
from berthmaster.cluster.leases import Acquired, Acquisition, LeaderElector, make_identity
from berthmaster.placement.ledger import PROOF_OF_LIFE_S
from berthmaster_webhook.answers import HandoverError
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.guarding import guarded
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.proving import WatchProof
from berthmaster_webhook.settings import Settings
from berthmaster_webhook.state import Help

logger = logging.getLogger(__name__)

HEARTBEAT_AFTER_S = 3.0
TICK_S = 1.0
# Somebody may delete the webhook configuration and apply it again, or take the label off our pod, as a
# leader before us may that was stopped in between: no request would reach us, and each pod would take
# the slow way.
MARKS_CHECK_S = 15.0
_HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_HOOK = f"{_HOOKS}/{names.WEBHOOK_CONFIGURATION}"
_LEADING = {names.ROLE_LABEL: names.ROLE_LEADER}


class Leadership:
    """Seeks and keeps the Lease, and says whether this process may decide."""

    def __init__(self, client: Client, settings: Settings, tools: Tools, proof: WatchProof) -> None:
        self._client = client
        self._tools = tools
        self._proof = proof
        self._settings = settings
        self._pods = f"/api/v1/namespaces/{settings.namespace}/pods"
        self.elector = LeaderElector(
            client,
            settings.namespace,
            names.WEBHOOK_LEASE,
            make_identity(settings.pod_name),
            duration_s=settings.lease_duration_s,
            renew_deadline_s=settings.lease_renew_deadline_s,
            retry_s=settings.lease_retry_s,
            on_acquired=self._begin,
            on_lost=self._end,
        )
        # Called when deciding begins.
        self.on_ready: list[Callable[[], None]] = []
        # The epoch for which everything is in place.
        self._ready_epoch: int | None = None
        # Until when answers of a leader before us may still be stored; infinite: not known yet.
        self._wait_end_s = math.inf
        self._is_stopping = False
        # Pods that the watch has shown with the role label.
        self._labelled: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._lead: asyncio.Task[None] | None = None
        self._election: asyncio.Task[None] | None = None

    async def run(self, eligible: Callable[[], Awaitable[None]]) -> None:
        """Seek the Lease once `eligible` returns, and lead, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._insist(self._drop_own_label)
            await eligible()
            self._election = tasks.create_task(self._elect())
            tasks.create_task(self._beat())
            tasks.create_task(self._keep_books())

    def why_not(self) -> Outcome | None:
        """Return what forbids to decide at this instant, None if nothing does."""
        if self._is_stopping:
            return Outcome.STOPPING
        acquired = self.elector.acquired
        if acquired is None:
            return Outcome.NOT_LEADER
        if self._ready_epoch != acquired.transitions:
            return Outcome.TAKING_OVER
        if not self._tools.state.is_synced:
            return Outcome.NOT_SYNCED
        if not self._tools.state.ledger.may_decide(self._tools.clock()):
            return Outcome.WATCH_SILENT
        return None

    @property
    def leads(self) -> bool:
        """Return whether it is for us to speak of the cluster's pods, also while deciding is forbidden.

        So it is while we stop, until the Lease is handed over, and never of one who did not lead.
        """
        acquired = self.elector.acquired
        return acquired is not None and self._ready_epoch == acquired.transitions

    def answers_for(self, epoch: int | None) -> bool:
        """Return whether requests that come by this epoch's path are ours."""
        acquired = self.elector.acquired
        return acquired is not None and epoch == acquired.transitions

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Look at the Lease at once when a pod loses the role label: its Lease may be free."""
        metadata = pod.metadata
        if metadata.namespace != self._settings.namespace:
            return
        labels = metadata.labels or {}
        if kind is not EventKind.DELETED and labels.get(names.ROLE_LABEL) == names.ROLE_LEADER:
            self._labelled.add(metadata.name)
        elif metadata.name in self._labelled:
            self._labelled.remove(metadata.name)
            self.elector.look_soon()

    def stop(self) -> None:
        """Decide nothing from here on."""
        self._is_stopping = True

    async def hand_over(self) -> None:
        """Give the Lease to a successor, with what is still assumed; call it when all is drained."""
        self.stop()
        is_ready = self.leads
        if self._lead is not None:
            # The path is the successor's from here on.
            self._lead.cancel()
        if self._election is not None:
            self._election.cancel()
            await asyncio.wait([self._election])
        # A leader that was still waiting for its own predecessor's answers cannot vouch for them.
        packed = self._tools.answers.pack() if is_ready else None
        released = await self.elector.release(None if packed is None else {names.HANDOVER: packed})
        logger.info(
            "lease released" if released else "no lease to release",
            extra={"assumed": len(self._tools.state.ledger.assumed), "handed": packed is not None},
        )
        try:
            await self._drop_own_label()
        except ClusterError as error:
            logger.warning("role label not removed", extra={"error": str(error)})

    async def _elect(self) -> None:
        try:
            await self.elector.run()
        except asyncio.CancelledError:
            # `hand_over` cancels the election alone; the group must not take that for an end.
            if not self._is_stopping:
                raise

    def _begin(self, acquired: Acquired) -> None:
        if self._lead is not None:
            self._lead.cancel()
        self._plan_wait(acquired)
        # The elector runs in this group, so it is there.
        if self._tasks is not None:
            self._lead = self._tasks.create_task(self._take_over(acquired))

    async def _end(self) -> None:
        self._ready_epoch = None
        if self._lead is not None:
            self._lead.cancel()
        try:
            await self._drop_own_label()
        except ClusterError as error:
            # Whoever leads next takes it off as well.
            logger.warning("role label not removed", extra={"error": str(error)})

    def _plan_wait(self, acquired: Acquired) -> None:
        """Say until when to wait; what only a look at the cluster can shorten comes later."""
        if acquired.kind is not Acquisition.REGAINED:
            self._wait_end_s = self._tools.clock() + self._settings.takeover_wait_s
        # Otherwise nobody led between: our own ledger knows everything that we answered, and the wait
        # for whoever led before us, if it is not over yet, ends when it would have.

    async def _take_over(self, acquired: Acquired) -> None:
        epoch, leads = acquired.transitions, self.elector.is_leader
        await self._insist(self._drop_other_labels, may=leads)
        await self._insist(lambda: self._proof.prove(_LEADING), may=leads)
        if acquired.kind is Acquisition.CREATED:
            await self._insist(self._skip_wait_of_first)
        elif acquired.kind is Acquisition.RELEASED:
            self._take_handover(acquired)
        wait_s = self._wait_end_s - self._tools.clock()
        if wait_s > 0:
            logger.info("waiting for answers of the leader before", extra={"wait_s": wait_s})
            # At once: each pooled connection to one who was stopped costs a create its full timeout.
            await self._insist(lambda: self._turn_path(epoch), may=leads)
            await asyncio.sleep(self._wait_end_s - self._tools.clock())
            # What was stored during the wait has been seen as well.
            await self._insist(self._proof.prove)
        self._ready_epoch = epoch
        self._tools.metrics.leader_term.set(epoch)
        logger.info("deciding", extra={"epoch": epoch, "how": acquired.kind.value})
        for listener in self.on_ready:
            guarded(listener, "leadership not told")
        while True:
            await self._insist(lambda: self._turn_path(epoch), may=leads)
            await asyncio.sleep(MARKS_CHECK_S)
            await self._insist(self._check_labels, may=leads)

    def _take_handover(self, acquired: Acquired) -> None:
        packed = acquired.annotations.get(names.HANDOVER)
        if packed is None:
            return
        try:
            taken = self._tools.answers.take_over(packed, self._tools.clock())
        except HandoverError as error:
            logger.warning("hand-over not usable", extra={"error": str(error)})
            return
        # The boundary of a hand-over: to wait is safe, and to hold a part of it is, too.
        except Exception:
            logger.exception("hand-over not taken")
            return
        self._wait_end_s = self._tools.clock()
        logger.info("hand-over taken", extra={"entries": taken})

    async def _skip_wait_of_first(self) -> None:
        """Wait for nobody if there never was a leader: no Lease, no path, no pod that one placed.

        The pods count because Lease and path go together when everything is deleted and installed
        again, and an answer from before may still be on its way then.
        """
        hook = await self._find_hook()
        if hook is None or _path_of(hook) is not None:
            return
        if not any(entry.decision_id for entry in self._tools.state.ledger):
            self._wait_end_s = self._tools.clock()

    async def _turn_path(self, epoch: int) -> None:
        """Let requests come by this epoch's path, if that is not so already.

        Without a webhook configuration there are no requests, and the queue places all pods.
        """
        hook, path = await self._find_hook(), f"{names.WEBHOOK_PATH}/{epoch}"
        if hook is None or _path_of(hook) == path or not self.answers_for(epoch):
            return
        await self._client.patch(
            _HOOK,
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                # With the uid, so that one deleted meanwhile is not made anew from this, and the version,
                # so that this is refused where a later leader has turned the path since.
                "metadata": {
                    "name": names.WEBHOOK_CONFIGURATION,
                    "uid": hook["metadata"]["uid"],
                    "resourceVersion": hook["metadata"]["resourceVersion"],
                },
                "webhooks": [
                    {"name": names.WEBHOOK_NAME, "clientConfig": {"service": {"path": path}}}
                ],
            },
            PatchKind.APPLY,
            {"fieldManager": names.LEADER_MANAGER, "force": True},
        )
        logger.info("webhook path turned", extra={"webhook_path": path})

    async def _find_hook(self) -> JsonObject | None:
        """Return the webhook configuration, None if it or our webhook in it is not there."""
        try:
            found = await self._client.get(_HOOK)
        except ApiError as error:
            if not error.is_not_found:
                raise
            return None
        return found if _our_hook(found) else None

    async def _drop_own_label(self) -> None:
        await self._drop_label(self._settings.pod_name)

    async def _drop_other_labels(self) -> None:
        await self._drop_labels(await self._find_labelled() - {self._settings.pod_name})

    async def _check_labels(self) -> None:
        """See that our pod has the role label, and no other."""
        labelled, own = await self._find_labelled(), self._settings.pod_name
        if own not in labelled:
            patch = {"metadata": {"labels": _LEADING}}
            await self._client.patch(f"{self._pods}/{own}", patch, PatchKind.MERGE)
        await self._drop_labels(labelled - {own})

    async def _find_labelled(self) -> set[str]:
        selector = f"{names.ROLE_LABEL}={names.ROLE_LEADER}"
        found = await self._client.get(self._pods, {"labelSelector": selector})
        return {pod["metadata"]["name"] for pod in found.get("items") or ()}

    async def _drop_labels(self, pods: set[str]) -> None:
        for name in pods:
            # Stopped in between we may wake under another leader, whose label this would be.
            if self.elector.is_leader():
                await self._drop_label(name)

    async def _drop_label(self, name: str) -> None:
        patch = {"metadata": {"labels": {names.ROLE_LABEL: None}}}
        try:
            await self._client.patch(f"{self._pods}/{name}", patch, PatchKind.MERGE)
        except ApiError as error:
            if not error.is_not_found:
                raise

    async def _insist(
        self, act: Callable[[], Awaitable[None]], *, may: Callable[[], bool] = lambda: True
    ) -> None:
        """Do it until it succeeds; each failure is logged and followed by a growing pause.

        While it may not be done it is put off.
        """
        backoff = Backoff(first_s=0.2, cap_s=5.0)
        while True:
            if not may():
                await asyncio.sleep(backoff.next_s())
                continue
            try:
                return await act()
            except (ClusterError, TimeoutError) as error:
                wait_s = backoff.next_s(
                    error.retry_after_s if isinstance(error, ApiError) else None
                )
                logger.warning(
                    "step failed, trying again",
                    extra={"error": str(error) or "timed out", "retry_in_s": round(wait_s, 2)},
                )
                await asyncio.sleep(wait_s)

    async def _beat(self) -> None:
        """Prove that the pod watch lives whenever nothing else has proven it for 3 s."""
        ledger, clock = self._tools.state.ledger, self._tools.clock
        while True:
            await asyncio.sleep(TICK_S / 2)
            is_fresh = ledger.may_decide(clock() + PROOF_OF_LIFE_S - HEARTBEAT_AFTER_S)
            if self.elector.is_leader() and not is_fresh:
                try:
                    await self._proof.prove()
                except (ClusterError, TimeoutError) as error:
                    logger.warning("no proof of life", extra={"error": str(error) or "timed out"})
                # The boundary of one beat: without proof nothing is decided, and the next may give it.
                except Exception:
                    logger.exception("no proof of life, trying again")

    async def _keep_books(self) -> None:
        """Let lapse what can no longer come, and keep the gauges."""
        state, metrics = self._tools.state, self._tools.metrics
        while True:
            await asyncio.sleep(TICK_S)
            metrics.leader.set(self.why_not() is None)
            silence_s = state.ledger.silence_s(self._tools.clock())
            metrics.watch_silence.set(silence_s if self.elector.is_leader() else 0.0)
            guarded(self._let_lapse, "answers could not lapse, trying again")
            metrics.assumed_pods.set(len(state.ledger.assumed))

    def _let_lapse(self) -> None:
        state = self._tools.state
        # During a list pods that exist may not have been shown yet.
        if state.is_synced:
            lapsed = state.ledger.lapse(self._tools.clock())
            self._tools.metrics.lapsed.inc(len(lapsed))
            for entry in lapsed:
                logger.info("answer lapsed", extra={"decision": entry.decision_id})
                state.tell_help(Help(entry.node))
        self._tools.answers.prune()


def _our_hook(configuration: JsonObject) -> dict[str, Any]:
    hooks = configuration.get("webhooks") or ()
    return next((it for it in hooks if it.get("name") == names.WEBHOOK_NAME), {})


def _path_of(configuration: JsonObject) -> str | None:
    service = (_our_hook(configuration).get("clientConfig") or {}).get("service") or {}
    return service.get("path") or None
