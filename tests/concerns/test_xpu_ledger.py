"""No device past its memory, and no pod with another's device, in whatever order things happen.

Beside the ledger stand the cluster as it is stored and the nodes' device plugins, which find their pods as
the dialects say: the oldest that was assumed and has the size, or the first that is being allocated. What a
device really holds is read from the annotations that were written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from berthmaster.api.allocation import write_allocation
from berthmaster.api.names import ALLOCATION
from berthmaster.api.objects import pod_from_manifest
from berthmaster.concerns.shape import Placed
from berthmaster.concerns.xpu import CONCERN
from support.xpu_worlds import (
    CARDS,
    MEM,
    PREFIX,
    SLICE_MEM,
    SLICES,
    XPUWorld,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
)

SIZES = {"shares": (100, 100, 100), "cards": (98304,) * 4, "both": (98304,) * 3}
MANIFESTS = {
    "shares": make_xpu_node("shares", mem=300, count=3),
    "cards": make_xpu_node("cards", cards=4, registered=registered_cards(4)),
    "both": make_xpu_node("both", mem=3 * 98304, count=3, registered=registered_cards(3)),
}
ASKS: dict[str, tuple[dict[str, int], str]] = {
    "share 60": ({MEM: 60}, "1"),
    "share 40": ({MEM: 40}, "1"),
    "share 101 of 2": ({MEM: 101}, "2"),
    "share 150000 of 3": ({MEM: 150_000}, "3"),
    "card": ({CARDS: 1}, "1"),
    "cards": ({CARDS: 2}, "1"),
    "slice": ({SLICES: 1, SLICE_MEM: 24576}, "1"),
    "slices": ({SLICES: 2, SLICE_MEM: 49152}, "1"),
}
PICK = st.integers(0, 10**6)


@dataclass
class Stored:
    """A pod as the API server has it, or as an answer on its way would make it."""

    manifest: dict[str, Any]
    node: str
    is_served: bool = False
    decision: str = ""
    marks: dict[str, str] = field(default_factory=dict)


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.ill: dict[str, frozenset[int]] = dict.fromkeys(MANIFESTS, frozenset())
        self.answers: dict[str, Stored] = {}
        self.pods: dict[str, Stored] = {}
        self.start()

    def start(self) -> None:
        self.world = XPUWorld(pluginsWithoutIdentity=["xpushare", "hami-kunlun", "hami-vxpu"])
        self.ledger = self.world.engine.ledger
        for name in MANIFESTS:
            self.put_node(name)
        for pod in self.pods.values():
            self.see(pod)

    def put_node(self, name: str) -> None:
        self.world.put_node(MANIFESTS[name], unhealthy=self.ill[name])

    def see(self, pod: Stored) -> None:
        self.ledger.see(pod_from_manifest(pod.manifest))

    @rule(asks=st.lists(st.sampled_from(sorted(ASKS)), min_size=1, max_size=4))
    def admit(self, asks: list[str]) -> None:
        for it in asks:
            self.answer(it)

    def answer(self, asks: str) -> None:
        self.count += 1
        limits, label = ASKS[asks]
        manifest = make_xpu_pod(f"p{self.count}", limits, label=label)
        request = self.world.request(manifest, is_strict=True)
        decision = self.world.engine.decide(request, str(self.count))
        if decision.node is None:
            return
        pod = pod_from_manifest(manifest)
        self.ledger.assume(
            decision.id,
            node=decision.node,
            usages=self.ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name=pod.metadata.name,
            owner=None,
            now_s=0.0,
        )
        columns = self.world.engine.table.columns["xpu"]
        placed = Placed(node=decision.node, at_ns=self.count)
        marks = dict(CONCERN.annotations(columns, pod, decision.allocated["xpu"], placed))
        text = write_allocation(decision.allocation("required"))
        manifest["metadata"]["annotations"] = {**marks, ALLOCATION: text}
        manifest["status"]["phase"] = "Pending"
        answer = Stored(manifest, decision.node, decision=decision.id, marks=marks)
        self.answers[decision.id] = answer

    @precondition(lambda self: self.answers)
    @rule(
        picks=st.lists(
            st.tuples(PICK, st.sampled_from(["", "seen", "bound"])), min_size=1, max_size=4
        )
    )
    def store(self, picks: list[tuple[int, str]]) -> None:
        for pick, how in picks:
            if not self.answers:
                return
            answer = self.answers.pop(sorted(self.answers)[pick % len(self.answers)])
            self.pods[answer.manifest["metadata"]["uid"]] = answer
            if how == "bound":
                answer.manifest["spec"]["nodeName"] = answer.node
            if how:
                self.see(answer)

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def refuse(self, pick: int) -> None:
        answer = self.answers.pop(sorted(self.answers)[pick % len(self.answers)])
        self.ledger.drop(answer.decision)

    @precondition(lambda self: self.pods)
    @rule(pick=PICK)
    def bind(self, pick: int) -> None:
        pod = self.pick(pick)
        pod.manifest["spec"]["nodeName"] = pod.node
        self.see(pod)

    @rule(pick=PICK)
    def hand_out(self, pick: int) -> None:
        """Let the kubelet ask its device plugin for a pod, which it does not name."""
        waiting = [
            it
            for _, it in sorted(self.pods.items())
            if it.manifest["spec"].get("nodeName") and not it.is_served
        ]
        if not waiting:
            return
        pod = waiting[pick % len(waiting)]
        served = find_pod(list(self.pods.values()), pod)
        assert served is pod
        pod.is_served = True
        marks = pod.manifest["metadata"]["annotations"]
        if f"{PREFIX}_IDX" in marks:
            marks[f"{PREFIX}_ASSIGNED"] = "true"
        else:
            marks["hami.io/bind-phase"] = "success"
        self.see(pod)

    @precondition(lambda self: self.pods)
    @rule(pick=PICK, phase=st.sampled_from(["Running", "Succeeded", "Failed"]))
    def go_on(self, pick: int, phase: str) -> None:
        pod = self.pick(pick)
        if pod.is_served:
            pod.manifest["status"]["phase"] = phase
            self.see(pod)

    @precondition(lambda self: self.pods)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        pod = self.pick(pick)
        del self.pods[pod.manifest["metadata"]["uid"]]
        self.ledger.forget(pod_from_manifest(pod.manifest))

    @rule()
    def restart(self) -> None:
        """Take over: whatever was answered is stored by then, or never will be."""
        self.answers.clear()
        self.start()

    @rule(node=st.sampled_from(sorted(MANIFESTS)), ill=st.frozensets(st.integers(0, 3), max_size=2))
    def report(self, node: str, ill: frozenset[int]) -> None:
        self.ill[node] = ill
        self.put_node(node)

    @rule(node=st.sampled_from(sorted(MANIFESTS)))
    def replace_node(self, node: str) -> None:
        self.ledger.remove_node(node)
        self.put_node(node)

    def pick(self, number: int) -> Stored:
        return self.pods[sorted(self.pods)[number % len(self.pods)]]

    @invariant()
    def no_device_is_past_its_memory(self) -> None:
        held: dict[tuple[str, int], list[int]] = {}
        for pod in (*self.answers.values(), *self.pods.values()):
            if pod.manifest["status"]["phase"] in ("Succeeded", "Failed"):
                continue
            for index, mib in devices_of(pod):
                held.setdefault((pod.node, index), []).append(mib)
        for (node, index), amounts in held.items():
            size = SIZES[node][index]
            assert sum(it if it else size for it in amounts) <= size, (node, index, amounts)


def devices_of(pod: Stored) -> list[tuple[int, int]]:
    """Return (index, MiB) by the annotations; 0 MiB is the whole card."""
    marks = pod.marks
    if f"{PREFIX}_IDX" in marks:
        indices = [int(it) for it in marks[f"{PREFIX}_IDX"].split(",")]
        each, more = divmod(int(marks[f"{PREFIX}_POD"]), len(indices))
        return [(index, each + (at < more)) for at, index in enumerate(indices)]
    if "BAIDU_COM_DEVICE_IDX" in marks:
        return [(int(it), 0) for it in marks["BAIDU_COM_DEVICE_IDX"].split(",")]
    text = marks["hami.io/xpu-devices-to-allocate"].rstrip(";")
    devices = [it.split(",") for it in text.split(":") if it]
    return [(int(it[0].removeprefix("xpu-")), int(it[2])) for it in devices]


def find_pod(pods: list[Stored], asking: Stored) -> Stored | None:
    """Return the pod that the device plugin takes for the one that the kubelet starts."""
    here = [
        it
        for it in pods
        if it.manifest["spec"].get("nodeName") == asking.node
        and it.manifest["status"]["phase"] == "Pending"
    ]
    if f"{PREFIX}_IDX" in asking.marks:
        waiting = [
            it
            for it in here
            if f"{PREFIX}_IDX" in it.marks
            and it.manifest["metadata"]["annotations"][f"{PREFIX}_ASSIGNED"] == "false"
            and it.marks[f"{PREFIX}_POD"] == asking.marks[f"{PREFIX}_POD"]
        ]
        return min(waiting, key=lambda it: int(it.marks[f"{PREFIX}_ASSUME_TIME"]), default=None)
    is_cards = "BAIDU_COM_DEVICE_IDX" in asking.marks
    waiting = [
        it
        for it in here
        if it.manifest["metadata"]["annotations"].get("hami.io/bind-phase") == "allocating"
        and ("BAIDU_COM_DEVICE_IDX" in it.marks) == is_cards
    ]
    return waiting[0] if waiting else None


Cluster.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCluster = Cluster.TestCase
