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
from berthmaster.api.waits import ASSUME_TTL_S, REQUEST_TIMEOUT_S
from berthmaster.concerns import resources
from berthmaster.concerns.resources.request import ResourcesUsage, read_usage
from berthmaster.placement.engine import Engine
from berthmaster.placement.ledger import (
    OVERDUE_S,
    PROOF_OF_LIFE_S,
    Ledger,
    State,
)
from support.builders import make_node, make_pod

POLICY = PlacementPolicySpec()
NODES = ("n0", "n1", "n2")
OWNERS = ("a", "b")
# One of them creates in batches, as controllers do.
CONTROLLER = "b"
# Pods of fixed names, as of a StatefulSet; all others are named by the API server.
NAMES = ("web-0", "web-1")
NODE_CPUS = 8
PICK = st.integers(0, 999)


@dataclass(frozen=True)
class Answer:
    """A decision under way to the API server."""

    id: str
    owner: str
    node: str
    cpus: int
    written_s: float
    name: str = ""

    @property
    def uid(self) -> str:
        return f"uid-pod-{self.id}"


@dataclass(frozen=True)
class Event:
    """A change that the watch has not shown yet."""

    stored_s: float
    pod: Pod
    is_gone: bool = False


def pod_of(answer: Answer, *, bound_to: str = "", phase: str = "") -> Pod:
    allocation = write_allocation(Allocation(version=1, id=answer.id, node=answer.node))
    return make_pod(
        answer.name or f"pod-{answer.id}",
        uid=answer.uid,
        cpu=str(answer.cpus),
        node=bound_to,
        phase=phase,
        annotations={ALLOCATION: allocation},
    )


def cpus_of(pod: Pod) -> int:
    return dict(read_usage(pod)[0].amounts)["cpu"]


def id_of(pod: Pod) -> str:
    return pod.metadata.uid.removeprefix("uid-pod-")


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
        # Of a mark that was put on our own pod and has not come back.
        self.marked_s: float | None = None
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
        self.marked_s = None
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

    @rule(
        owner=st.sampled_from(OWNERS),
        cpus=st.integers(1, 4),
        name=st.sampled_from(["", "", *NAMES]),
    )
    def admit(self, owner: str, cpus: int, name: str) -> None:
        """Answer a create: of a name in flight with the same decision, of a known one with none."""
        if not self.ledger.may_decide(self.now_s):
            return
        under_way = self.ledger.in_flight("default", name) if name else None
        if under_way is not None:
            self.give_again(self.assumed[under_way])
            return
        if (name and self.ledger.knows("default", name)) or not self.ledger.admits(owner):
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
            name=name,
            owner=owner,
            now_s=self.now_s,
            in_batches=owner == CONTROLLER,
        )
        if owner == CONTROLLER and not self.unconfirmed(owner):
            self.windows[owner] = min(self.windows.get(owner, 2), 2)
        answer = Answer(decision.id, owner, decision.node, cpus, self.now_s, name)
        self.answers[answer.id] = self.assumed[answer.id] = answer

    def unconfirmed(self, owner: str) -> list[Answer]:
        return [it for it in self.assumed.values() if it.owner == owner]

    @rule(cpus=st.integers(1, 4))
    def try_dry(self, cpus: int) -> None:
        """Decide and reserve nothing."""
        before = list(self.ledger)
        pod = make_pod("dry", cpu=str(cpus))
        self.engine.decide(self.engine.read_request(pod, POLICY), "dry")
        assert list(self.ledger) == before

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def store(self, pick: int) -> None:
        self.store_answer(self.pick_answer(pick))

    def store_answer(self, answer: Answer) -> None:
        """Store the pod of an answer, or refuse it where one of its name is there."""
        del self.answers[answer.id]
        pod = pod_of(answer)
        if any(it.metadata.name == pod.metadata.name for it in self.pods.values()):
            return
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
        assert self.ledger.answered(answer.id, self.now_s)
        self.assumed[answer.id] = answer
        if answer.id in self.answers:
            self.answers[answer.id] = answer

    def give_again(self, old: Answer) -> None:
        """Answer the same create once more, whatever became of the first."""
        answer = replace(old, written_s=self.now_s)
        assert self.ledger.answered(answer.id, self.now_s)
        self.assumed[answer.id] = answer
        if answer.uid not in self.stored:
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
        """Take a pod away; its name is free again, also for another uid."""
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
        answer = self.assumed.pop(id_of(pod), None)
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

    @rule()
    def mark_own_pod(self) -> None:
        self.marked_s = self.now_s

    @precondition(lambda self: self.marked_s is not None)
    @rule()
    def show_mark(self) -> None:
        """Let a mark come back late, with all that was stored before it and nothing after."""
        assert self.marked_s is not None
        self.show(sum(event.stored_s <= self.marked_s for event in self.events))
        self.shown_s = max(self.shown_s, self.marked_s)
        self.ledger.watch_passed(self.marked_s)
        self.marked_s = None

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
        hidden = {id_of(event.pod) for event in self.events}

        lapsed = {entry.decision_id for entry in self.ledger.lapse(self.now_s)}

        assert lapsed <= ripe
        assert not lapsed & (hidden | set(self.answers))
        if self.shown_s == self.now_s:
            assert lapsed == ripe
        for decision_id in lapsed:
            self.windows[self.assumed.pop(decision_id).owner] = 1

    @rule(is_orderly=st.booleans(), stored=st.sets(PICK, max_size=3))
    def restart(self, is_orderly: bool, stored: set[int]) -> None:
        if is_orderly:
            self.hand_over()
        else:
            self.crash(stored)

    def crash(self, stored: set[int]) -> None:
        """Lose all but the pods; what was under way is stored or given up before we decide again."""
        for pick in stored:
            if self.answers:
                self.store(pick)
        self.answers.clear()
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
            if answer.uid in self.pods:
                continue
            self.ledger.assume(
                entry.decision_id,
                node=entry.node,
                usages=entry.usages,
                namespace="default",
                name=answer.name,
                owner=entry.owner,
                now_s=self.now_s,
                is_given=True,
            )
            # It may be stored as late as before, and is held as if it had been given now.
            self.assumed[answer.id] = replace(answer, written_s=self.now_s)

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
            unconfirmed, window = self.unconfirmed(owner), self.windows.get(owner, 2)
            if any(it.written_s + OVERDUE_S <= self.shown_s for it in unconfirmed):
                window = min(window, 2)
            assert self.ledger.admits(owner) == (len(unconfirmed) < window)

    @invariant()
    def names_in_flight_are_of_assumed_entries(self) -> None:
        named = {it.name: it.id for it in self.assumed.values() if it.name}
        found = {name: self.ledger.in_flight("default", name) for name in NAMES}
        assert {name: it for name, it in found.items() if it is not None} == named


TestHarbour = Harbour.TestCase
TestHarbour.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)


def assume(ledger: Ledger, number: int, now_s: float) -> None:
    ledger.assume(
        f"d{number}", node="n0", usages=(), namespace="default", name="", owner="a", now_s=now_s
    )


def ledger_with_open_window() -> Ledger:
    """Return a ledger in which three pods of owner `a` were seen, and four more answers were given."""
    ledger = Engine([resources.CONCERN]).ledger
    for number in range(3):
        assume(ledger, number, 100.0)
        ledger.see(pod_of(Answer(f"d{number}", "a", "n0", 1, 100.0)))
    for number in range(3, 7):
        assume(ledger, number, 200.0)
    return ledger


def test_window_is_small_while_an_answer_is_overdue() -> None:
    ledger = ledger_with_open_window()

    ledger.watch_passed(200.0 + OVERDUE_S - 0.1)
    assert ledger.admits("a")
    ledger.watch_passed(200.0 + OVERDUE_S)
    assert not ledger.admits("a")

    for number in range(3, 7):
        ledger.drop(f"d{number}")
    assert ledger.admits("a")


def test_answer_that_is_written_again_is_not_the_oldest() -> None:
    ledger = ledger_with_open_window()
    ledger.answered("d3", 250.0)

    ledger.watch_passed(200.0 + OVERDUE_S)

    assert not ledger.admits("a")
