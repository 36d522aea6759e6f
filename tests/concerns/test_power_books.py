"""What pods count until metrics show them, whatever happens in whatever order, against plain bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus, Power, PowerCurve
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.concerns import power
from berthmaster.placement.engine import Engine
from support.builders import make_node, make_pod_manifest

NODES = ("a", "b")
CORE = 10**9
GRAIN_S = 15
WINDOW_S = 30
CURVE = PowerCurve(cores=(0.0, 64.0), watts=(100.0, 420.0))
cpus = st.integers(1, 4)
nodes = st.sampled_from(NODES)


@dataclass
class Held:
    """A pod as the plain books have it; `since_s` None: not running."""

    node: str
    cpu: int
    since_s: int | None = None
    is_seen: bool = False
    # Once shown it is not kept any more, until all is counted anew.
    is_shown: bool = False


class PowerBooks(RuleBasedStateMachine):
    """Answers, pods, starts, ends, samples, nodes that come and go, and restarts."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 1_000_000
        self.serial = 0
        self.held: dict[str, Held] = {}
        # When each node's usage was sampled; None: nothing is known of its power.
        self.sampled_s: dict[str, int | None] = dict.fromkeys(NODES)
        self.there = set(NODES)
        self.restart()

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(node=nodes, cpu=cpus)
    def answer(self, node: str, cpu: int) -> None:
        self.serial += 1
        name = f"p{self.serial}"
        pod = pod_from_manifest(make_pod_manifest(name, cpu=str(cpu)))
        self.engine.ledger.assume(
            f"d-{name}",
            node=node,
            usages=self.engine.ledger.usages_of(pod, {}),
            namespace="default",
            name=name,
            owner=None,
            now_s=float(self.now_s),
        )
        self.held[name] = Held(node=node, cpu=cpu)

    @precondition(lambda self: any(not it.is_seen for it in self.held.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(
            st.sampled_from(sorted(n for n, it in self.held.items() if not it.is_seen))
        )
        self.engine.ledger.drop(f"d-{name}")
        del self.held[name]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), is_running=st.booleans())
    def see(self, data: st.DataObject, is_running: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        it = self.held[name]
        if not it.is_seen:
            self.engine.ledger.drop(f"d-{name}")
            it.is_seen = True
        if is_running and it.since_s is None:
            it.since_s = self.now_s
        self.engine.ledger.see(self._pod(name))
        self._show(it)

    @precondition(lambda self: any(it.is_seen for it in self.held.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, it in self.held.items() if it.is_seen)))
        self.engine.ledger.forget(self._pod(name))
        del self.held[name]

    @rule(node=nodes)
    def sample(self, node: str) -> None:
        self.sampled_s[node] = self.now_s
        self.there.add(node)
        self._write(node)

    @rule(node=nodes)
    def lose_node(self, node: str) -> None:
        self.there.discard(node)
        self._forget_what_was_shown(node)
        self.engine.ledger.remove_node(node)

    @rule()
    def restart(self) -> None:
        """Know nothing but what is stored: nodes, inventories, pods; answers under way are gone."""
        self.engine = Engine([power.CONCERN])
        self.held = {name: it for name, it in self.held.items() if it.is_seen}
        self._forget_what_was_shown(*NODES)
        for node in sorted(self.there):
            self._write(node)
        for name in self.held:
            self.engine.ledger.see(self._pod(name))

    @invariant()
    def sums_are_those_of_the_plain_books(self) -> None:
        columns = self.engine.table.columns["power"]
        for node in self.there:
            row = self.engine.table.row_of(node)
            assert row is not None
            here = [it for it in self.held.values() if it.node == node]
            unseen = sum(it.cpu for it in here if not it.is_shown)
            pending = sum(it.cpu for it in here if it.since_s is None)
            assert columns.unseen[row] == unseen * CORE
            assert columns.pending[row] == pending * CORE
            usage_cores = 1.0 if self.sampled_s[node] is not None else None
            if usage_cores is not None and usage_cores + unseen <= 64:
                assert abs(columns.before[row] - (100 + 5 * (usage_cores + unseen))) < 1e-6

    def _forget_what_was_shown(self, *nodes: str) -> None:
        for it in self.held.values():
            if it.node in nodes:
                it.is_shown = False

    def _write(self, node: str) -> None:
        at_s = self.sampled_s[node]
        inventory = None
        if at_s is not None:
            known = Power(curve=CURVE, usage=CORE, usage_sampled_s=at_s, usage_window_s=WINDOW_S)
            inventory = NodeInventory(name=node, status=NodeInventoryStatus(power=known))
        self.engine.ledger.write_node(make_node(node, cpu="64"), inventory)
        for it in self.held.values():
            if it.node == node:
                self._show(it)

    def _show(self, it: Held) -> None:
        """Note whether metrics show a pod; starts are told apart in steps, the later one counting."""
        if it.since_s is None or it.node not in self.there:
            return
        sampled_s = self.sampled_s[it.node]
        since_s = -(-it.since_s // GRAIN_S) * GRAIN_S
        it.is_shown = it.is_shown or sampled_s is None or since_s <= sampled_s - WINDOW_S

    def _pod(self, name: str) -> Pod:
        it = self.held[name]
        manifest = make_pod_manifest(
            name,
            cpu=str(it.cpu),
            node=it.node,
            phase="Pending" if it.since_s is None else "Running",
        )
        if it.since_s is not None:
            since = datetime.fromtimestamp(it.since_s, UTC).isoformat()
            manifest["status"]["conditions"] = [
                {"type": "Initialized", "status": "True", "lastTransitionTime": since}
            ]
        return pod_from_manifest(manifest)


TestPowerBooks = PowerBooks.TestCase
TestPowerBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
