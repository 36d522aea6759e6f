"""The ledger under random interleavings, judged by a small API server that knows the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from berthmaster.api.allocation import Allocation, write_allocation
from berthmaster.api.names import ALLOCATION
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import resources
from berthmaster.concerns.resources.request import ResourcesUsage, read_usage
from berthmaster.placement.engine import Engine
from berthmaster.placement.ledger import ASSUME_TTL_S, PROOF_OF_LIFE_S, Ledger, State
from support.builders import make_node, make_pod

POLICY = PlacementPolicySpec()
NODES = ("n0", "n1", "n2")
OWNERS = ("a", "b")
NODE_CPUS = 8
# An API server gives a request up by then; the time to live is longer.
REQUEST_TIMEOUT_S = 60.0
PICK = st.integers(0, 999)


@dataclass(frozen=True)
class Answer:
    """A decision under way to the API server."""

    id: str
    owner: str
    node: str
    cpus: int
    written_s: float


@dataclass(frozen=True)
class Event:
    """A change that the watch has not shown yet."""

    stored_s: float
    pod: Pod
    is_gone: bool = False


def pod_of(answer: Answer, *, bound_to: str = "", phase: str = "") -> Pod:
    allocation = write_allocation(Allocation(version=1, id=answer.id, node=answer.node))
    return make_pod(
        f"pod-{answer.id}",
        cpu=str(answer.cpus),
        node=bound_to,
        phase=phase,
        annotations={ALLOCATION: allocation},
    )


def cpus_of(pod: Pod) -> int:
    return dict(read_usage(pod)[0].amounts)["cpu"]


class Harbour(RuleBasedStateMachine):
    """The ledger beside the truth: what the API server stores, and what may still reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.count = 0
        self.nodes: dict[str, str] = {}
        self.foreign: set[str] = set()
        self.answers: dict[str, Answer] = {}
        self.stored: dict[str, Answer] = {}
        self.pods: dict[str, Pod] = {}
        self.events: list[Event] = []
        self.start()
        for name in NODES:
            self.put_node(name)

    def start(self) -> None:
        """Make a ledger that knows what a list shows."""
        self.engine = Engine([resources.CONCERN])
        self.ledger: Ledger = self.engine.ledger
        self.events = []
        self.assumed: dict[str, Answer] = {}
        self.windows: dict[str, int] = {}
        for name, uid in self.nodes.items():
            self.ledger.write_node(make_node(name, cpu=str(NODE_CPUS), uid=uid), None)
        for pod in self.pods.values():
            self.ledger.see(pod)
        self.prove()

    def put_node(self, name: str) -> None:
        self.count += 1
        self.nodes[name] = f"uid-{self.count}"
        self.ledger.write_node(make_node(name, cpu=str(NODE_CPUS), uid=self.nodes[name]), None)

    def prove(self) -> None:
        """Let our own heartbeat come through the watch."""
        self.shown_s = self.now_s
        self.ledger.watch_passed(self.now_s)

    def write(self, pod: Pod) -> None:
        self.pods[pod.metadata.uid] = pod
        self.events.append(Event(self.now_s, pod))

    def active(self, node: str) -> int:
        pods = [it for it in self.pods.values() if not it.is_finished]
        return sum(cpus_of(it) for it in pods if self.place_of(it) == node)

    def place_of(self, pod: Pod) -> str:
        answer = self.stored.get(pod.metadata.uid)
        return pod.spec.node_name or (answer.node if answer else "")

    # What users and the API server do.

    @rule(owner=st.sampled_from(OWNERS), cpus=st.integers(1, 4))
    def admit(self, owner: str, cpus: int) -> None:
        if not (self.ledger.may_decide(self.now_s) and self.ledger.admits(owner)):
            return
        self.count += 1
        pod = make_pod(f"new-{self.count}", cpu=str(cpus))
        decision = self.engine.decide(self.engine.read_request(pod, POLICY), str(self.count))
        if decision.node is None:
            return
        self.ledger.assume(
            decision.id,
            node=decision.node,
            usages=self.ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name="",
            owner=owner,
            now_s=self.now_s,
        )
        answer = Answer(decision.id, owner, decision.node, cpus, self.now_s)
        self.answers[answer.id] = self.assumed[answer.id] = answer

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def store(self, pick: int) -> None:
        answer = self.pick_answer(pick)
        del self.answers[answer.id]
        pod = pod_of(answer)
        self.stored[pod.metadata.uid] = answer
        self.write(pod)

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def refuse(self, pick: int) -> None:
        del self.answers[self.pick_answer(pick).id]

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def leave_unwritten(self, pick: int) -> None:
        answer = self.pick_answer(pick)
        del self.answers[answer.id]
        self.ledger.drop(answer.id)
        self.assumed.pop(answer.id, None)

    @precondition(lambda self: self.assumed)
    @rule(pick=PICK)
    def write_again(self, pick: int) -> None:
        """Repeat a patch of unknown outcome: it may have been stored by the first attempt."""
        known = sorted(self.assumed)
        old = self.assumed[known[pick % len(known)]]
        answer = replace(old, written_s=self.now_s)
        self.ledger.answered(answer.id, self.now_s)
        self.assumed[answer.id] = answer
        if answer.id in self.answers:
            self.answers[answer.id] = answer

    @precondition(lambda self: self.stored)
    @rule(
        pick=PICK,
        phase=st.sampled_from(["", "Running", "Succeeded", "Failed"]),
        elsewhere=st.sampled_from(["", "", *NODES]),
        grown=st.sampled_from([0, 0, 1]),
    )
    def run(self, pick: int, phase: str, elsewhere: str, grown: int) -> None:
        """Let a pod go on: bound, also where we did not send it, resized, finished."""
        uids = sorted(self.stored)
        uid = uids[pick % len(uids)]
        old, answer = self.pods[uid], self.stored[uid]
        node = old.spec.node_name or elsewhere or answer.node
        if old.is_finished:
            return
        if grown or node != answer.node:
            self.foreign.add(node)
        answer = self.stored[uid] = replace(answer, cpus=answer.cpus + grown)
        self.write(pod_of(answer, bound_to=node, phase=phase))

    @precondition(lambda self: self.pods)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        uids = sorted(self.pods)
        pod = self.pods.pop(uids[pick % len(uids)])
        self.stored.pop(pod.metadata.uid, None)
        self.events.append(Event(self.now_s, pod, is_gone=True))

    @rule(node=st.sampled_from(NODES), cpus=st.integers(1, 4))
    def bind_past_us(self, node: str, cpus: int) -> None:
        self.count += 1
        self.foreign.add(node)
        self.write(make_pod(f"foreign-{self.count}", cpu=str(cpus), node=node))

    @rule(node=st.sampled_from(NODES))
    def lose_or_add_node(self, node: str) -> None:
        if self.nodes.pop(node, None):
            self.ledger.remove_node(node)
        else:
            self.put_node(node)

    @rule(node=st.sampled_from(NODES))
    def replace_node(self, node: str) -> None:
        self.put_node(node)

    # What the watch shows, and time.

    @precondition(lambda self: self.events)
    @rule(count=st.integers(1, 4))
    def show(self, count: int) -> None:
        for event in self.events[:count]:
            if event.is_gone:
                self.ledger.forget(event.pod)
            else:
                self.ledger.see(event.pod)
            self.shown_s = max(self.shown_s, event.stored_s)
            self.confirm(event.pod)
        del self.events[:count]

    def confirm(self, pod: Pod) -> None:
        answer = self.assumed.pop(pod.metadata.uid.removeprefix("uid-pod-"), None)
        if answer is not None:
            self.windows[answer.owner] = self.windows.get(answer.owner, 2) + 2

    @rule()
    def show_all_and_prove(self) -> None:
        while self.events:
            self.show(4)
        self.prove()
        assert {it.holder.key for it in self.ledger if it.state is not State.ASSUMED} == {
            uid for uid, pod in self.pods.items() if not pod.is_finished and self.place_of(pod)
        }

    @precondition(lambda self: not self.events)
    @rule()
    def show_again(self) -> None:
        for pod in self.pods.values():
            self.ledger.see(pod)

    @rule(seconds=st.sampled_from([0.5, 5.0, 45.0, 75.0]), is_stalled=st.booleans())
    def wait(self, seconds: float, is_stalled: bool) -> None:
        self.now_s += seconds
        # The API server has given these requests up.
        for answer in list(self.answers.values()):
            if self.now_s > answer.written_s + REQUEST_TIMEOUT_S:
                del self.answers[answer.id]
        if not is_stalled:
            self.show_all_and_prove()
        self.lapse()

    def lapse(self) -> None:
        """Let the ledger give up what can no longer come, and nothing else."""
        ripe = {
            it.id
            for it in self.assumed.values()
            if it.written_s + ASSUME_TTL_S <= min(self.now_s, self.shown_s)
        }
        hidden = {event.pod.metadata.name.removeprefix("pod-") for event in self.events}

        lapsed = {entry.decision_id for entry in self.ledger.lapse(self.now_s)}

        assert lapsed <= ripe
        assert not lapsed & (hidden | set(self.answers))
        if self.shown_s == self.now_s:
            assert lapsed == ripe
        for decision_id in lapsed:
            self.windows[self.assumed.pop(decision_id).owner] = 1

    @rule(is_orderly=st.booleans())
    def restart(self, is_orderly: bool) -> None:
        if is_orderly:
            self.hand_over()
        else:
            self.crash()

    def crash(self) -> None:
        """Lose all but the pods; what was under way is stored or given up before we decide again."""
        for answer in list(self.answers.values()):
            del self.answers[answer.id]
        self.now_s += 65.0
        self.start()
        for name in self.nodes:
            row = self.engine.table.row_of(name)
            assert row is not None
            columns = self.engine.table.columns["resources"]
            assert columns.amounts(row, "cpu")[1] == self.active(name)

    def hand_over(self) -> None:
        """Give the assumed entries to a successor."""
        assumed = [(entry, self.assumed[key]) for key, entry in self.ledger.assumed.items()]
        self.start()
        for entry, answer in assumed:
            if f"uid-pod-{answer.id}" in self.pods:
                continue
            self.ledger.assume(
                entry.decision_id,
                node=entry.node,
                usages=entry.usages,
                namespace="default",
                name="",
                owner=entry.owner,
                now_s=entry.answered_s,
            )
            self.assumed[answer.id] = answer

    def pick_answer(self, pick: int) -> Answer:
        known = sorted(self.answers)
        return self.answers[known[pick % len(known)]]

    # What always holds.

    @invariant()
    def columns_are_the_sum_of_the_entries(self) -> None:
        columns = self.engine.table.columns["resources"]
        for name in self.nodes:
            row = self.engine.table.row_of(name)
            assert row is not None
            expected = {"cpu": 0, "pods": 0}
            for entry in self.ledger:
                for _, usage in entry.usages if entry.node == name else ():
                    assert isinstance(usage, ResourcesUsage)
                    for resource, amount in usage.amounts:
                        expected[resource] += amount
            found = {resource: columns.amounts(row, resource)[1] for resource in expected}
            assert found == expected
            assert len(self.ledger.on_node(name)) == expected["pods"]

    @invariant()
    def holdings_are_counted(self) -> None:
        assert self.ledger.holdings == {"resources": sum(len(it.usages) for it in self.ledger)}

    @invariant()
    def no_node_is_past_its_line(self) -> None:
        for name in self.nodes.keys() - self.foreign:
            coming = sum(it.cpus * 1000 for it in self.answers.values() if it.node == name)
            assert self.active(name) + coming <= NODE_CPUS * 1000

    @invariant()
    def assumed_entries_are_those_not_shown(self) -> None:
        assert set(self.ledger.assumed) == set(self.assumed)

    @invariant()
    def deciding_needs_proof_of_life(self) -> None:
        if self.ledger.may_decide(self.now_s):
            assert self.now_s - self.shown_s <= PROOF_OF_LIFE_S

    @invariant()
    def windows_follow_what_was_stored(self) -> None:
        for owner in OWNERS:
            unconfirmed = sum(it.owner == owner for it in self.assumed.values())
            assert self.ledger.admits(owner) == (unconfirmed < self.windows.get(owner, 2))


TestHarbour = Harbour.TestCase
TestHarbour.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
