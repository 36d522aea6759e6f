"""`bind`: devices are chosen, written onto the pod, and the pod is bound. Three writes in this order.

    choose and hold  -->  annotations (guarded by uid and version)  -->  Binding

What is chosen is held before anything is written, so that no other decision takes it. A patch that was
refused gives it back; a Binding that was surely refused takes the annotations off again, unless the pod
has changed meanwhile. Where nobody can know, everything stays: the next `filter` offers this node alone,
and `bind` goes on where it was. A device plugin that is not told which pod it serves gets pods that it
could mistake for each other one after the other, so `bind` waits a while for the one before.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import msgspec

from berthmaster.api import names
from berthmaster.api.json_pointer import escape
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import JsonObject, PatchKind
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.informers import EventKind
from berthmaster.cluster.stores import Creates, Gets, Patches
from berthmaster.placement import affinity
from berthmaster.placement.shapes import PodRequest
from berthmaster_webhook import deciding
from berthmaster_webhook.admission import Term
from berthmaster_webhook.answers import Answer
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.extender.asking import is_waiting, read_asks
from berthmaster_webhook.extender.filtering import UNKNOWN_NODE, why_not
from berthmaster_webhook.extender.protocol import BindArgs
from berthmaster_webhook.sending import Fate, pod_path, raw_of, send_until_known

logger = logging.getLogger(__name__)

# kube-scheduler waits 5 s for an extender unless it is told otherwise.
PATIENCE_S = 3.0
WRITE_TIMEOUT_S = 4.0
_ATTEMPTS = 4
_OWNER = "extender"


class RefusedError(Exception):
    """Say why a pod is not bound; kube-scheduler tries it again."""


class BindStore(Gets, Patches, Creates, Protocol):
    """Name the part of `Client` that is needed here."""


class Binding:
    """Binds pods, each at most once at a time."""

    def __init__(
        self, tools: Tools, term: Term, store: BindStore, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._tools = tools
        self._term = term
        self._store = store
        self._patience_s = patience_s
        self._busy: set[str] = set()
        self._change = asyncio.Event()

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take note that some pod has changed: the one waited for may have been served."""
        del kind, pod
        if self._busy:
            self._change.set()
            self._change = asyncio.Event()

    async def bind(self, args: BindArgs) -> None:
        """Bind a pod to a node with devices of that node.

        Raises:
            RefusedError: it is not bound, or nobody knows.
        """
        if args.uid in self._busy:
            raise RefusedError(f"pod {args.namespace}/{args.name} is being bound already")
        self._busy.add(args.uid)
        try:
            await self._bind(args)
        finally:
            self._busy.discard(args.uid)

    async def _bind(self, args: BindArgs) -> None:
        for _ in range(_ATTEMPTS):
            # Our own memory has of pods only what placement needs again.
            pod = await self._read(args)
            answer = await self._choose(pod, args.node)
            fate = Fate.DONE if answer is None else await self._write(pod, answer)
            if fate is Fate.DONE:
                await self._bind_chosen(pod, args.node, answer)
                return
            if fate is not Fate.REFUSED:
                raise RefusedError(f"pod {pod.key}: its devices could not be written: {fate.value}")
        raise RefusedError(f"pod {args.namespace}/{args.name} changes all the time")

    async def _read(self, args: BindArgs) -> Pod:
        path = f"/api/v1/namespaces/{args.namespace}/pods/{args.name}"
        try:
            pod = msgspec.convert(await self._store.get(path, timeout_s=WRITE_TIMEOUT_S), Pod)
        except (ClusterError, msgspec.ValidationError) as error:
            raise RefusedError(f"pod {args.namespace}/{args.name}: {error}") from error
        if pod.metadata.uid != args.uid:
            raise RefusedError(
                f"The pod {args.name} in ns {args.namespace}'s uid is {pod.metadata.uid}, "
                f"and it's not equal with expected {args.uid}"
            )
        return pod

    # Which devices.

    async def _choose(self, pod: Pod, node: str) -> Answer | None:
        """Hold devices for a pod; None where it has them already or asks for none."""
        held = self._tools.state.ledger.held_for(pod)
        if held is not None:
            if held.node != node:
                raise RefusedError(f"pod {pod.key} has its devices on node {held.node}")
            return None
        asks = read_asks(self._tools, pod)
        if not asks:
            return None
        await self._until_served(asks, node)
        tools = self._tools
        with tools.metrics.decision_duration.time():
            decision = tools.state.engine.decide(asks, tools.make_id(), only=node)
        answer = deciding.make_answer(tools, pod, asks, decision, _OWNER, mode=Mode.REQUIRED)
        tools.answers.assume(answer, tools.clock())
        logger.info(
            "decided",
            extra={"pod": pod.key, "decision": decision.id, "node": node, "from": "extender"},
        )
        return answer

    async def _until_served(self, asks: PodRequest, node: str) -> None:
        """Wait until the node fits; raises RefusedError when it does not, or not soon."""
        engine = self._tools.state.engine
        end_s = self._tools.clock() + self._patience_s
        while True:
            self._check_term()
            found = engine.find(asks, [node])
            if found.unknown:
                raise RefusedError(f"{node}: {UNKNOWN_NODE}")
            (code,) = found.codes
            if not code:
                return
            left_s = end_s - self._tools.clock()
            if not is_waiting(code) or left_s <= 0:
                raise RefusedError(engine.explain(asks, node, code)[1].text)
            try:
                async with asyncio.timeout(left_s):
                    await self._change.wait()
            except TimeoutError:
                continue

    def _check_term(self) -> None:
        reason = why_not(self._tools, self._term)
        if reason:
            raise RefusedError(reason)

    # Writes.

    async def _write(self, pod: Pod, answer: Answer) -> Fate:
        tools = self._tools
        annotations = {names.ALLOCATION: answer.annotation, **answer.beside}
        end_s = tools.clock() + WRITE_TIMEOUT_S

        def may_send() -> bool:
            return (
                tools.clock() < end_s
                and self._term.why_not() is None
                and tools.state.ledger.answered(answer.decision_id, tools.clock())
            )

        fate = await send_until_known(
            self._store,
            pod,
            affinity.annotate_all(raw_of(pod), annotations),
            may_send=may_send,
            is_done=lambda stored: deciding.has_effect(stored, answer),
            backoff=Backoff(first_s=0.1, cap_s=1.0),
        )
        if fate in (Fate.REFUSED, Fate.GONE):
            deciding.give_back(self._tools, answer.decision_id)
        if fate is Fate.ABANDONED:
            # The watch may have shown what became of the patch before its answer came.
            entry = tools.state.ledger.entry(pod.metadata.uid)
            if entry is not None and entry.decision_id == answer.decision_id:
                return Fate.DONE
        return fate

    async def _bind_chosen(self, pod: Pod, node: str, answer: Answer | None) -> None:
        metadata = {
            "name": pod.metadata.name,
            "namespace": pod.metadata.namespace,
            "uid": pod.metadata.uid,
        }
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
        try:
            await self._store.create(f"{pod_path(pod)}/binding", body, timeout_s=WRITE_TIMEOUT_S)
        except ClusterError as error:
            await self._look_after(pod, node, answer, error)

    async def _look_after(
        self, pod: Pod, node: str, answer: Answer | None, error: ClusterError
    ) -> None:
        """Find out whether the pod was bound all the same; take back what was written if not."""
        try:
            stored = await self._store.get(pod_path(pod), timeout_s=WRITE_TIMEOUT_S)
        except ClusterError:
            stored = {}
        is_same = (stored.get("metadata") or {}).get("uid") == pod.metadata.uid
        if is_same and (stored.get("spec") or {}).get("nodeName") == node:
            return
        is_sure = isinstance(error, ApiError) and not error.is_unknown
        if is_same and is_sure and answer is not None and deciding.has_effect(stored, answer):
            await self._take_off(pod, stored, answer)
        raise RefusedError(f"pod {pod.key} is not bound to {node}: {error}") from error

    async def _take_off(self, pod: Pod, stored: JsonObject, answer: Answer) -> None:
        if (stored.get("spec") or {}).get("nodeName"):
            # Somebody else has bound it; what it is charged with now follows from where it is.
            return
        known = stored["metadata"]["annotations"]
        keys = [it for it in (names.ALLOCATION, *answer.beside) if it in known]
        operations = [
            {"op": "remove", "path": f"/metadata/annotations/{escape(it)}"} for it in keys
        ]
        body = [*affinity.guard(stored), *operations]
        try:
            await self._store.patch(pod_path(pod), body, PatchKind.JSON, timeout_s=WRITE_TIMEOUT_S)
        except ClusterError as error:
            # The pod goes on holding its devices there, and is offered that node alone.
            logger.warning("not taken off", extra={"pod": pod.key, "error": str(error)})
        else:
            deciding.give_back(self._tools, answer.decision_id)
