"""From the bytes of an AdmissionReview to the bytes of its answer.

Nothing here waits: a decision is made on what is in memory. Whatever stands in the way of a decision
leaves the gate on the pod, and the queue decides later; only what the user has to correct is refused.
What an answer takes is assumed in the ledger before the answer is returned, so the caller has to
drop it (`Reply.decision_id`) if the answer is surely not sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from berthmaster.api import names
from berthmaster.api.admission import (
    MAX_BODY_BYTES,
    AdmissionRequest,
    allow,
    decode_review,
    refuse,
)
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Pod, decode_pod
from berthmaster.api.policy import Mode, OnInvalid
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.placement import affinity
from berthmaster.placement.injecting import add
from berthmaster.placement.opting import describe_refusal, unknown_mode, why_exempt
from berthmaster.placement.shapes import PodRequest
from berthmaster_webhook import deciding
from berthmaster_webhook.binding import bound_as_required, why_not_bind
from berthmaster_webhook.deciding import Operations, Tools
from berthmaster_webhook.effective import (
    Effective,
    Standing,
    foreign_gates,
    read_effective,
)
from berthmaster_webhook.outcomes import Outcome

logger = logging.getLogger(__name__)

_EXPECTED = "expected an AdmissionReview of admission.k8s.io/v1"
# The API server cuts warnings above 256 characters; good practice is 120.
_WARNING_CHARS = 120
_MOST_WARNINGS = 4
_NO_MODE = "none"

_decode_any = msgspec.json.Decoder(dict[str, Any]).decode


class Term(Protocol):
    """Say whether this process may decide."""

    def why_not(self) -> Outcome | None:
        """Return what forbids to decide at this instant, None if nothing does."""

    def answers_for(self, epoch: int | None) -> bool:
        """Return whether requests that come by this epoch's path are ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP answer; `decision_id` is set where the answer holds room in the ledger.

    `closes_connection`: the API server should come back on another one, since this is no leader's.
    """

    status: int
    body: bytes
    outcome: Outcome
    mode: str = _NO_MODE
    decision_id: str | None = None
    closes_connection: bool = False


class MalformedReviewError(Exception):
    """Say why a body is no AdmissionReview that can be answered."""


class Admission:
    """Answers reviews of pods that are being created.

    `goes_first` says whether a pod that waits has an older right to the node that was found for one.
    """

    def __init__(
        self,
        tools: Tools,
        term: Term,
        goes_first: Callable[[Pod, str], bool] = lambda _pod, _node: False,
    ) -> None:
        self._tools = tools
        self._term = term
        self._goes_first = goes_first

    def reply(self, body: bytes, *, epoch: int | None) -> Reply:
        """Return the answer to a body that came by the path of `epoch` (None: by no epoch's)."""
        if len(body) > MAX_BODY_BYTES:
            text = f"the body has {len(body)} bytes, expected at most {MAX_BODY_BYTES}"
            return Reply(status=413, body=text.encode(), outcome=Outcome.MALFORMED)
        try:
            request = read_review(body)
            pod = _read_pod(request)
            if pod is None:
                return _pass(request, Outcome.UNTOUCHED)
            case = _Case(self._tools, self._term, self._goes_first, request, pod, epoch)
            reply = case.answer()
        except MalformedReviewError as error:
            return Reply(status=400, body=str(error).encode(), outcome=Outcome.MALFORMED)
        self._tools.metrics.decisions.labels(reply.mode, str(reply.outcome)).inc()
        is_ours = self._term.answers_for(epoch) and self._term.why_not() is not Outcome.STOPPING
        return reply if is_ours else replace(reply, closes_connection=True)


def read_review(body: bytes) -> AdmissionRequest:
    """Return the request in a review.

    Raises:
        MalformedReviewError: it is not JSON, is cut, or is another kind of object.
    """
    try:
        review = decode_review(body)
    # Deep nesting, broken escapes and surrogates each have an exception of their own.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedReviewError(f"the body cannot be read: {error}; {_EXPECTED}") from error
    if (review.kind, review.api_version) != ("AdmissionReview", "admission.k8s.io/v1"):
        found = f"{review.kind or 'no kind'} of {review.api_version or 'no apiVersion'}"
        raise MalformedReviewError(f"found {found}, {_EXPECTED}")
    if review.request is None or not review.request.uid:
        raise MalformedReviewError(f"the review has no request with a uid; {_EXPECTED}")
    return review.request


def _read_pod(request: AdmissionRequest) -> Pod | None:
    kind = request.kind
    is_pod = (kind.group, kind.version, kind.kind) == ("", "v1", "Pod")
    if not is_pod or request.operation != "CREATE" or request.sub_resource:
        return None
    try:
        pod = decode_pod(request.object)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedReviewError(f"request.object is not a Pod: {error}") from error
    # At creation the namespace may stand in the request only.
    namespace = request.namespace or pod.metadata.namespace
    return msgspec.structs.replace(
        pod, metadata=msgspec.structs.replace(pod.metadata, namespace=namespace)
    )


def _pass(request: AdmissionRequest, outcome: Outcome) -> Reply:
    return Reply(status=200, body=allow(request.uid), outcome=outcome)


def _read_any(
    read: Callable[[msgspec.Raw], Mapping[str, Any]], raw: msgspec.Raw
) -> Mapping[str, Any]:
    try:
        return read(raw)
    # What a decision needs of a pod is well formed, but not all else of it.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedReviewError(f"request.object cannot be read: {error}") from error


class _Case:
    """One pod that is being created."""

    def __init__(
        self,
        tools: Tools,
        term: Term,
        goes_first: Callable[[Pod, str], bool],
        request: AdmissionRequest,
        pod: Pod,
        epoch: int | None,
    ) -> None:
        self._tools = tools
        self._term = term
        self._goes_first = goes_first
        self._request = request
        self._pod = pod
        self._epoch = epoch
        self._has_gate = names.GATE in pod.gates
        self._prepared: Operations = []
        # The pod as JSON data, or at first the parts of it that answers change, once somebody has asked
        # for it; to be read only.
        self._decoded: Mapping[str, Any] | None = None
        self._is_whole = False

    def answer(self) -> Reply:
        state, pod = self._tools.state, self._pod
        if why_exempt(pod, self._tools.own_namespace):
            return _pass(self._request, Outcome.UNTOUCHED)
        if not self._has_gate and read_allocation(pod.annotations.get(names.ALLOCATION)):
            # Our own output, shown once more.
            return _pass(self._request, Outcome.UNTOUCHED)
        if not state.is_synced:
            return self._leave(Outcome.NOT_SYNCED)
        effective = read_effective(state, pod)
        if effective.standing is not Standing.KNOWN:
            return self._leave(Outcome.NOT_SYNCED)
        if effective.mode is Mode.OFF:
            return self._change(self._ungate(), Outcome.UNTOUCHED, effective)
        if foreign_gates(pod) and effective.mode is not Mode.OBSERVE:
            return self._leave(Outcome.FOREIGN_GATE, effective)
        refusal = self._prepare(effective)
        if refusal is not None:
            return refusal
        try:
            request = self._read_request(effective)
        except InvalidRequestError as error:
            return self._invalid(effective, error)
        if effective.mode is Mode.OBSERVE:
            return self._observe(effective, request)
        return self._place(effective, request)

    def _prepare(self, effective: Effective) -> Reply | None:
        """Add what concerns add to the pod, and go on with it as it is then; or refuse it."""
        for it in self._tools.state.engine.prepare(self._whole, self._pod, effective.policy.spec):
            if not it.is_allowed:
                return Reply(
                    status=200,
                    body=refuse(self._request.uid, it.message, code=it.code),
                    outcome=Outcome.INVALID,
                    mode=_mode_label(effective),
                )
            self._prepared += map(dict, it.operations)
        if self._prepared:
            self._decoded = add(self._whole(), self._prepared)
            prepared = msgspec.Raw(msgspec.json.encode(self._decoded))
            self._request = msgspec.structs.replace(self._request, object=prepared)
            self._pod = _read_pod(self._request) or self._pod
        return None

    def _read_request(self, effective: Effective) -> PodRequest:
        if effective.mode is None:
            raise unknown_mode(effective.text)
        spec = effective.policy.spec
        if not effective.may_wait:
            spec = spec.without_hold()
        return self._tools.state.engine.read_request(self._pod, spec)

    def _why_not(self) -> Outcome | None:
        if not self._term.answers_for(self._epoch):
            return self._term.why_not() or Outcome.WRONG_EPOCH
        return self._term.why_not()

    def _observe(self, effective: Effective, request: PodRequest) -> Reply:
        """Say what would have been done; nothing is enforced and nothing assumed."""
        raw, operations = self._raw(), self._ungate()
        if self._why_not() is None:
            decision = deciding.decide(self._tools, self._pod, request)
            if decision.node is not None:
                text = deciding.annotation_of(decision, Mode.OBSERVE)
                operations = affinity.annotate(raw, names.ALLOCATION, text) + operations
        return self._change(operations, Outcome.OBSERVED, effective)

    def _place(self, effective: Effective, request: PodRequest) -> Reply:
        tools, pod = self._tools, self._pod
        why_not = self._why_not()
        if why_not is not None:
            return self._leave(why_not, effective)
        namespace, name = pod.metadata.namespace, pod.metadata.name
        owner = _owner_of(pod, self._request)
        ledger = tools.state.ledger
        if not self._request.dry_run:
            if name and ledger.in_flight(namespace, name) is not None:
                return self._repeat(effective, request)
            if name and ledger.knows(namespace, name):
                return self._leave(Outcome.NAME_KNOWN, effective)
            if not ledger.admits(owner):
                return self._leave(Outcome.WINDOW_FULL, effective)
            if effective.may_wait and deciding.pause_of(tools, pod) is not None:
                return self._leave(Outcome.OWNER_PAUSED, effective)
        decision = deciding.decide(tools, pod, request)
        raw = self._raw()
        if decision.node is None or not affinity.can_pin(raw, decision.node):
            self._log(Outcome.NOWHERE, decision.id, why=decision.describe())
            return self._leave(Outcome.NOWHERE, effective)
        if effective.may_wait and self._goes_first(pod, decision.node):
            return self._leave(Outcome.BEHIND, effective)
        mode, note = self._mode_on(effective, decision.node)
        answer = deciding.make_answer(tools, pod, request, decision, owner, mode=mode, note=note)
        operations = deciding.placing(raw, answer)
        if self._request.dry_run:
            return self._change(operations, Outcome.DRY_RUN, effective, warning=note)
        tools.answers.assume(answer, tools.clock())
        self._log(Outcome.PLACED, decision.id, node=decision.node, score=decision.score, mode=mode)
        return self._change(
            operations, Outcome.PLACED, effective, decision_id=decision.id, warning=note
        )

    def _mode_on(self, effective: Effective, node: str) -> tuple[Mode, str]:
        """Return what the answer does to the pod, and what its owner should know about that."""
        if effective.mode is not Mode.BIND:
            return effective.mode or Mode.REQUIRED, ""
        state = self._tools.state
        why_not = why_not_bind(
            self._pod, node, state.nodes.store.get(node), state.policies.exclusive_taints
        )
        return (Mode.REQUIRED, bound_as_required(why_not)) if why_not else (Mode.BIND, "")

    def _repeat(self, effective: Effective, request: PodRequest) -> Reply:
        """Give the answer of the decision under way again, if it is the same pod that asks."""
        metadata = self._pod.metadata
        answer = self._tools.answers.in_flight(metadata.namespace, metadata.name)
        raw = self._raw()
        if answer is None or answer.request != request or not affinity.can_pin(raw, answer.node):
            return self._leave(Outcome.NAME_KNOWN, effective)
        self._tools.answers.repeat(answer.decision_id, self._tools.clock())
        return self._change(deciding.placing(raw, answer), Outcome.REPEATED, effective)

    def _invalid(self, effective: Effective, error: InvalidRequestError) -> Reply:
        if effective.mode in (Mode.OBSERVE, Mode.PREFERRED):
            warning = f"{names.PLACEMENT}: {effective.mode} has no effect: {error}"
            return self._change(self._ungate(), Outcome.INVALID, effective, warning=warning)
        if effective.policy.spec.on_invalid is OnInvalid.WAIT:
            return self._leave(Outcome.WAITS_INVALID, effective)
        return Reply(
            status=200,
            body=refuse(self._request.uid, describe_refusal(self._pod, error)),
            outcome=Outcome.INVALID,
            mode=_mode_label(effective),
        )

    def _leave(self, outcome: Outcome, effective: Effective | None = None) -> Reply:
        """Let the pod be created undecided: behind the gate, or as it is where its mode never waits."""
        operations: Operations = []
        if effective is not None and not effective.may_wait:
            operations = self._ungate()
        elif effective is not None and not self._has_gate:
            operations = _add_gate(self._pod)
        return self._change(operations, outcome, effective)

    def _change(
        self,
        operations: Operations,
        outcome: Outcome,
        effective: Effective | None,
        *,
        decision_id: str | None = None,
        warning: str = "",
    ) -> Reply:
        words = (*((warning,) if warning else ()), *self._advice(effective))
        warnings = tuple(it[:_WARNING_CHARS] for it in words[:_MOST_WARNINGS])
        return Reply(
            status=200,
            body=allow(self._request.uid, [*self._prepared, *operations], warnings=warnings),
            outcome=outcome,
            mode=_mode_label(effective),
            decision_id=decision_id,
        )

    def _advice(self, effective: Effective | None) -> tuple[str, ...]:
        """Return what the pod's owner should know of it, if it opted in."""
        if effective is None or effective.mode in (None, Mode.OFF):
            return ()
        return self._tools.state.engine.advise(self._pod, effective.policy.spec)

    def _ungate(self) -> Operations:
        return deciding.ungating(self._raw()) if self._has_gate else []

    def _whole(self) -> Mapping[str, Any]:
        if self._decoded is None or not self._is_whole:
            self._decoded = _read_any(_decode_any, self._request.object)
            self._is_whole = True
        return self._decoded

    def _raw(self) -> Mapping[str, Any]:
        if self._decoded is None:
            self._decoded = _read_any(affinity.read_parts, self._request.object)
        return self._decoded

    def _log(self, outcome: Outcome, decision_id: str, **fields: object) -> None:
        logger.info(
            "decided",
            extra={
                "pod": self._pod.key,
                "decision": decision_id,
                "outcome": str(outcome),
                "dry_run": bool(self._request.dry_run),
                **fields,
            },
        )


def _owner_of(pod: Pod, request: AdmissionRequest) -> Hashable:
    controller = pod.metadata.controller()
    if controller is not None and controller.uid:
        return controller.uid
    return (request.user_info.username, pod.metadata.namespace)


def _mode_label(effective: Effective | None) -> str:
    if effective is None or effective.mode is None:
        return _NO_MODE
    return str(effective.mode)


def _add_gate(pod: Pod) -> Operations:
    gate = {"name": names.GATE}
    if pod.spec.scheduling_gates is None:
        return [{"op": "add", "path": "/spec/schedulingGates", "value": [gate]}]
    return [{"op": "add", "path": "/spec/schedulingGates/-", "value": gate}]
