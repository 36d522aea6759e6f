"""Decisions against the simulated device plugins, in whatever order things happen.

The webhook's engine and ledger decide; the simulated world has kubelets, plugins that look for their pod as
their dialect says, and crashes. Between the two are an API server's pods, a scheduler that binds when it
likes, and a watch that is late. The judge is the world: no device past its memory, no pod with another's
devices, none without, and nobody turned away but by a plugin that was dead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from berthmaster.api import names
from berthmaster.api.allocation import write_allocation
from berthmaster.api.objects import Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import DEFAULT_POLICY, PolicySet
from berthmaster.concerns.shape import Placed
from berthmaster.concerns.xpu import CONCERN
from berthmaster.placement.engine import Engine
from berthmaster_sandbox.world.xpu_hosts import Dialect, make_host
from berthmaster_sandbox.world.xpu_playing import XpuScene
from berthmaster_webhook.extender.describing import describe
from support.xpu_nodes import make_host_manifest
from support.xpu_pods import make_card_pod, make_limited_pod, make_share_pod, make_slice_pod

BOTH = (Dialect.KUNLUN, Dialect.VXPU)
HOSTS = (
    make_host("xpu-share", devices=2, memory_mib=100),
    make_host("xpu-cards", devices=8, dialects=BOTH),
    make_host("xpu-mixed", devices=2, dialects=(Dialect.XPUSHARE, Dialect.VXPU)),
)
CRASHED = ("code = Unavailable", "no healthy devices present")
PICK = st.integers(0, 10**6)


def make_pod(kind: str, name: str) -> dict[str, Any]:
    match kind:
        case "cards":
            return make_card_pod(name, 2)
        case "card":
            return make_card_pod(name, 1)
        case "slice":
            return make_slice_pod(name, 1, 24576)
        case "slices":
            return make_slice_pod(name, 2, 49152)
        case "containers":
            one = {"kunlunxin.com/vxpu": "1", "kunlunxin.com/vxpu-memory": "24576"}
            return make_limited_pod(name, one, {"cpu": "1"}, one)
        case "two cards each":
            one, two = ({"kunlunxin.com/xpu": it} for it in ("1", "2"))
            return make_limited_pod(name, one, two)
        case "wide share":
            return make_share_pod(name, 75, count=2)
        case _:
            return make_share_pod(name, int(kind))


KINDS = (
    "cards", "card", "slice", "slices", "containers", "two cards each", "wide share", "40", "60",
)  # fmt: skip


@dataclass
class Answer:
    """An answer under way to the API server, that may be stored or be lost."""

    decision: str
    node: str
    pod: dict[str, Any]
    annotations: dict[str, str] = field(default_factory=dict)


class Interleavings(RuleBasedStateMachine):
    """Everything that can happen, one thing at a time."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.unseen: deque[tuple[Pod, bool]] = deque()
        self.answers: list[Answer] = []
        self.unbound: dict[str, str] = {}
        self.count = 0
        self.scene = XpuScene(HOSTS, seed=seed, on_change=self.note_change)
        self.engine = self.make_engine()

    def note_change(self, manifest: dict[str, Any], is_gone: bool) -> None:
        self.unseen.append((pod_from_manifest(manifest), is_gone))

    def make_engine(self) -> Engine:
        engine = Engine([CONCERN])
        for host in HOSTS:
            node = node_from_manifest(make_host_manifest(host))
            engine.ledger.write_node(node, describe(node, PolicySet()))
        return engine

    # The webhook.

    @rule(kind=st.sampled_from(KINDS))
    def admit(self, kind: str) -> None:
        self.count += 1
        manifest = make_pod(kind, f"pod-{self.count}")
        pod = pod_from_manifest(manifest)
        request = self.engine.read_request(pod, DEFAULT_POLICY.spec)
        decision = self.engine.decide(request, f"{self.count:012x}")
        if decision.node is None:
            return
        ledger, allocated = self.engine.ledger, decision.allocated["xpu"]
        ledger.assume(
            decision.id,
            node=decision.node,
            usages=ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name=manifest["metadata"]["name"],
            owner="anyone",
            now_s=float(self.count),
        )
        beside = CONCERN.annotations(
            self.engine.table.columns["xpu"],
            pod,
            allocated,
            Placed(node=decision.node, at_ns=10**18 + self.count),
        )
        allocation = write_allocation(decision.allocation("required"))
        annotations = {names.ALLOCATION: allocation, **beside}
        self.answers.append(Answer(decision.id, decision.node, manifest, annotations))

    @precondition(lambda self: self.unseen)
    @rule(most=st.integers(1, 8))
    def see(self, most: int) -> None:
        for _ in range(min(most, len(self.unseen))):
            pod, is_gone = self.unseen.popleft()
            (self.engine.ledger.forget if is_gone else self.engine.ledger.see)(pod)

    @rule()
    def restart(self) -> None:
        """Decide anew only when every answer of the one before is stored or lost for good."""
        while self.answers:
            self.store(0)
        self.unseen.clear()
        self.engine = self.make_engine()
        for manifest in self.scene.pods.values():
            self.engine.ledger.see(pod_from_manifest(manifest))

    # The API server and the scheduler.

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def store(self, pick: int) -> None:
        answer = self.answers.pop(pick % len(self.answers))
        known = answer.pod["metadata"].get("annotations") or {}
        answer.pod["metadata"]["annotations"] = {**known, **answer.annotations}
        uid = self.scene.create(answer.pod)
        self.unbound[uid] = answer.node

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def lose(self, pick: int) -> None:
        """A later webhook refuses the pod; its room lapses when that is certain."""
        answer = self.answers.pop(pick % len(self.answers))
        self.engine.ledger.drop(answer.decision)

    @precondition(lambda self: self.unbound)
    @rule(pick=PICK)
    def bind(self, pick: int) -> None:
        uid = sorted(self.unbound)[pick % len(self.unbound)]
        self.scene.bind(uid, self.unbound.pop(uid))

    # Kubelets and plugins.

    @rule(pick=PICK, steps=st.integers(1, 6))
    def step(self, pick: int, steps: int) -> None:
        host = HOSTS[pick % len(HOSTS)]
        for _ in range(steps):
            self.scene.step(host.name)

    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        host = HOSTS[pick % len(HOSTS)]
        self.scene.crash(host.name, host.dialects[pick % len(host.dialects)])

    @rule(pick=PICK)
    def revive(self, pick: int) -> None:
        self.scene.restart(HOSTS[pick % len(HOSTS)].name)

    # Users.

    @precondition(lambda self: self.scene.pods)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        uids = sorted(self.scene.pods)
        self.scene.finish(uids[pick % len(uids)])

    @precondition(lambda self: self.scene.pods)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        uids = sorted(self.scene.pods)
        uid = uids[pick % len(uids)]
        self.unbound.pop(uid, None)
        self.scene.delete(uid)

    # The judge.

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.scene.findings == []

    @invariant()
    def only_dead_plugins_turn_away(self) -> None:
        strange = [
            it.message
            for it in self.scene.rejected.values()
            if not any(words in it.message for words in CRASHED)
        ]
        assert strange == []

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        while self.answers:
            self.store(0)
        while self.unbound:
            self.bind(0)
        self.scene.settle()
        self.nothing_is_wrong()
        self.only_dead_plugins_turn_away()


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestInterleavings = Interleavings.TestCase
