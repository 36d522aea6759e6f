"""The answers whose pods have not been seen yet: to repeat them, and to hand them to a successor.

The ledger knows what each of them holds; here is what it was given for. An answer is kept as long as
the ledger assumes it. For the hand-over all of them become one text, compressed because pods of one
workload are alike; it is bounded, and above the bound the successor has to wait instead.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Affinity, ObjectMeta, Pod, PodSpec, PodStatus
from berthmaster.api.policy import Mode
from berthmaster.concerns.shape import NodeTerms
from berthmaster.placement.ledger import Ledger
from berthmaster.placement.shapes import PodRequest

MAX_HANDOVER_BYTES = 200 * 1024
# A text of ours stays far below; one that was tampered with must not eat the memory.
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024


class HandoverError(Exception):
    """Say that a hand-over cannot be read: the successor has to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a pod's owner should know of its answer, as an Event says it."""

    reason: str
    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One decision that was, or is being, given; `annotation` is the allocation's text.

    `mode` is what it does to the pod: `required`, `preferred` or `bind`; `preferences` are weights of
    1..100 by node for `preferred`, and `terms` what concerns say for themselves; `notes` are what the pod's owner should know; `beside` are further
    annotations to write, for programs that do not read the allocation.
    """

    decision_id: str
    node: str
    pod: Pod
    owner: Hashable
    request: PodRequest
    allocated: dict[str, dict[str, Any]]
    annotation: str
    mode: Mode = Mode.REQUIRED
    preferences: Mapping[str, int] = field(default_factory=dict)
    terms: NodeTerms = field(default_factory=NodeTerms)
    notes: tuple[Note, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """One assumed entry of a predecessor."""

    id: str
    node: str
    pod: Pod
    allocated: dict[str, dict[str, Any]] = {}


class _Handover(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    entries: list[Handed]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Handover).decode


class Answers:
    """Answers by decision id."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._answers: dict[str, Answer] = {}
        self._repeated: set[str] = set()
        self._notes: dict[str, tuple[Note, ...]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def assume(self, answer: Answer, now_s: float, *, is_given: bool = False) -> None:
        """Hold the room for an answer that is about to be given, or was by a predecessor."""
        metadata = answer.pod.metadata
        controller = metadata.controller()
        self._ledger.assume(
            answer.decision_id,
            node=answer.node,
            usages=self._ledger.usages_of(answer.pod, answer.allocated),
            namespace=metadata.namespace,
            name=metadata.name,
            owner=answer.owner,
            now_s=now_s,
            is_given=is_given,
            in_batches=controller is not None and answer.owner == controller.uid,
        )
        self._answers[answer.decision_id] = answer
        if answer.notes:
            self._notes[answer.decision_id] = answer.notes

    def repeat(self, decision_id: str, now_s: float) -> None:
        """Note that an answer is given once more: it lives on from here, and is not dropped."""
        self._ledger.answered(decision_id, now_s)
        self._repeated.add(decision_id)

    def drop(self, decision_id: str) -> str:
        """Give back what an answer holds that was surely never given; return the node, empty if none.

        One that was repeated stays until it is seen or lapses: the other copy may arrive.
        """
        entry = self._ledger.assumed.get(decision_id)
        if entry is None or decision_id in self._repeated:
            return ""
        self._ledger.drop(decision_id)
        self._answers.pop(decision_id, None)
        return entry.node

    def take_notes(self, pod: Pod) -> tuple[Note, ...]:
        """Return once what the owner of a pod that is seen now should know of its answer."""
        if not self._notes:
            return ()
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        return () if allocation is None else self._notes.pop(allocation.id, ())

    def in_flight(self, namespace: str, name: str) -> Answer | None:
        """Return the answer that is under way for a pod of this name."""
        decision_id = self._ledger.in_flight(namespace, name)
        return None if decision_id is None else self._answers.get(decision_id)

    def prune(self) -> None:
        """Forget the answers that the ledger does not assume any more."""
        assumed = self._ledger.assumed
        if len(self._answers) > len(assumed):
            self._answers = {key: it for key, it in self._answers.items() if key in assumed}
            self._repeated &= self._answers.keys()
            self._notes = {key: it for key, it in self._notes.items() if key in assumed}

    def pack(self) -> str | None:
        """Return what a successor must hold, None if that is too much for an annotation."""
        self.prune()
        assumed = self._ledger.assumed
        entries = [_handed(it) for it in self._answers.values()]
        # Whatever is assumed has an answer; if one is lacking all the same, the successor has to wait.
        if len(entries) < len(assumed):
            return None
        text = _encode(_Handover(v=1, entries=entries))
        packed = base64.b64encode(zlib.compress(text, 6)).decode()
        return packed if len(packed) <= MAX_HANDOVER_BYTES else None

    def take_over(self, packed: str, now_s: float) -> int:
        """Hold what a predecessor had answered and nobody has seen; return how many entries.

        Call it when the watch has shown everything that was stored before the hand-over.

        Raises:
            HandoverError: the text cannot be read.
        """
        seen = {entry.decision_id for entry in self._ledger}
        taken = 0
        for handed in _unpack(packed):
            if handed.id in seen or handed.id in self._ledger.assumed:
                continue
            answer = Answer(
                decision_id=handed.id,
                node=handed.node,
                pod=handed.pod,
                owner=("handed over", handed.pod.metadata.namespace),
                # It matches no request, so a create that is repeated now waits at the gate.
                request=(),
                allocated=handed.allocated,
                annotation="",
            )
            self.assume(answer, now_s, is_given=True)
            taken += 1
        return taken


def _handed(answer: Answer) -> Handed:
    """Return the answer with only those parts of its pod that tell what it uses."""
    metadata, spec = answer.pod.metadata, answer.pod.spec
    annotations = {
        key: text for key, text in answer.pod.annotations.items() if key != names.ALLOCATION
    }
    pod = Pod(
        metadata=ObjectMeta(
            name=metadata.name,
            namespace=metadata.namespace,
            labels=metadata.labels,
            annotations=annotations or None,
        ),
        spec=PodSpec(
            containers=spec.containers,
            init_containers=spec.init_containers,
            overhead=spec.overhead,
            resources=spec.resources,
            host_network=spec.host_network,
            affinity=_repelling(spec.affinity),
            volumes=spec.volumes,
        ),
        status=PodStatus(),
    )
    return Handed(id=answer.decision_id, node=answer.node, pod=pod, allocated=answer.allocated)


def _repelling(affinity: Affinity | None) -> Affinity | None:
    """Return what of an affinity goes on to matter to others once its pod is placed."""
    if affinity is None or affinity.pod_anti_affinity is None:
        return None
    return Affinity(pod_anti_affinity=affinity.pod_anti_affinity)


def _unpack(packed: str) -> Iterator[Handed]:
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(base64.b64decode(packed, validate=True), _MAX_UNPACKED_BYTES)
        if not stream.eof:
            raise HandoverError("the hand-over is cut or too long")
        handover = _decode(text)
    except (binascii.Error, zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise HandoverError(f"the hand-over cannot be read: {error}") from error
    if handover.v != 1:
        raise HandoverError(f"the hand-over has version {handover.v}, expected 1")
    yield from handover.entries
