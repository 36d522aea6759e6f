"""The ledger: who holds what on which node, from the pods themselves.

    assumed --seen--> pending --bound--> bound --finished, deleted--> released
       |                                   ^
       `--lapsed, dropped                  `-- also pods that others bound

`assumed` is an answer whose pod the watch has not shown yet; it is matched by the decision id in the
pod's annotation. The pods are the only durable truth: after a restart `see` of every listed pod
rebuilds all but the assumed entries.

An assumed entry lapses only when its time to live has passed *and* the pod watch has provably
passed that moment (`watch_passed`): a pod that an API server stored late must be seen before its
room is given away. Where the watch gives no proof of life, nothing lapses and `may_decide` is false.

Time comes in as seconds of one monotonic clock. One caller at a time; nothing here waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from enum import Enum
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Node, Pod
from berthmaster.api.policy import Mode
from berthmaster.api.waits import ASSUME_TTL_S
from berthmaster.concerns.shape import AnyConcern, Holder, RelativeConcern
from berthmaster.placement.table import NodeTable

# Without a proof that the pod watch is alive for so long, deciding stops.
PROOF_OF_LIFE_S = 10.0

# An answer whose pod is not there so long after it, as far as the watch has come, was probably refused.
OVERDUE_S = 2.0

_FIRST_WINDOW = 2
_WINDOW_STEP = 2
_LARGEST_WINDOW = 1024
_OWNERS_REMEMBERED = 4096
_USAGES_REMEMBERED = 65536

Usages = tuple[tuple[int, Hashable], ...]


class State(Enum):
    """How certain a holding is."""

    ASSUMED = "assumed"
    PENDING = "pending"
    BOUND = "bound"


# No dataclass: there is one for each pod of the cluster, and the garbage collector is to pass them by.
class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One holding: a pod's, or an answer's."""

    holder: Holder
    node: str
    state: State
    usages: Usages
    decision_id: str = ""
    owner: Hashable = None
    # Before the first answer, and the last: the same unless an answer was written once more.
    assumed_s: float = 0.0
    answered_s: float = 0.0


class Ledger:
    """Holdings by node, kept in step with the node table's columns."""

    def __init__(self, table: NodeTable, *, assume_ttl_s: float = ASSUME_TTL_S) -> None:
        self._table = table
        self._assume_ttl_s = assume_ttl_s
        self._entries: dict[str, Entry] = {}
        self._by_node: dict[str, set[str]] = {}
        self._assumed: dict[str, Entry] = {}
        self._in_flight: dict[tuple[str, str], str] = {}
        self._known: dict[tuple[str, str], str] = {}
        # Decision ids in the order of their answers.
        self._unconfirmed: dict[Hashable, dict[str, None]] = {}
        self._windows: OrderedDict[Hashable, int] = OrderedDict()
        self._interned: dict[Usages, Usages] = {}
        self._holdings = [0] * len(table.concerns)
        self._passed_s = float("-inf")
        self._only_scoring = frozenset(
            index
            for index, concern in enumerate(table.concerns)
            if isinstance(concern, RelativeConcern) and concern.only_scores
        )

    # What nodes have.

    def write_node(self, node: Node, inventory: NodeInventory | None) -> int:
        """Take over a node's state and charge it with what is held there; return its row."""
        row, fresh = self._table.write(node, inventory)
        if fresh:
            for key in self._by_node.get(node.metadata.name, ()):
                self._charge(row, self._entries[key])
        return row

    def remove_node(self, name: str) -> None:
        """Forget a node; its pods keep their entries until they are gone themselves."""
        self._table.remove(name)

    # What was answered.

    def may_decide(self, now_s: float) -> bool:
        """Return whether the pod watch gave proof of life within the last `PROOF_OF_LIFE_S`."""
        return self.silence_s(now_s) <= PROOF_OF_LIFE_S

    def silence_s(self, now_s: float) -> float:
        """Return the time since the pod watch last gave proof of life, infinite where it never did."""
        return now_s - self._passed_s

    def admits(self, owner: Hashable) -> bool:
        """Return whether the owner's window has room for one more unconfirmed answer.

        It starts at 2, grows by 2 with each pod that is seen and falls to 1 when an answer lapses, so
        that creates which are refused cannot hold much room. While an answer is overdue it is not
        above 2, whatever it has grown to.
        """
        unconfirmed = self._unconfirmed.get(owner)
        if not unconfirmed:
            return True
        window = self._windows.get(owner, _FIRST_WINDOW)
        oldest = self._assumed[next(iter(unconfirmed))]
        if oldest.answered_s + OVERDUE_S <= self._passed_s:
            window = min(window, _FIRST_WINDOW)
        return len(unconfirmed) < window

    def assume(  # noqa: PLR0913 - an entry has as many independent properties
        self,
        decision_id: str,
        *,
        node: str,
        usages: Usages,
        namespace: str,
        name: str,
        owner: Hashable,
        now_s: float,
        is_given: bool = False,
        in_batches: bool = False,
    ) -> None:
        """Hold a node's room for an answer that is about to be given, or was by a predecessor.

        The pod of one that `is_given` already may have been stored before `now_s`, so the sight of it
        proves nothing about the watch. An owner that creates `in_batches`, as controllers do, knows what
        became of one batch before it begins the next; so where nothing is unconfirmed a batch begins,
        and its window with it: what the last one has grown to would be held by refused creates.
        """
        if decision_id in self._entries:
            raise ValueError(f"decision {decision_id} is in the ledger already")
        if in_batches and owner not in self._unconfirmed:
            self._set_window(owner, min(self._windows.get(owner, _FIRST_WINDOW), _FIRST_WINDOW))
        entry = Entry(
            holder=Holder(key=decision_id, namespace=namespace, name=name),
            node=node,
            state=State.ASSUMED,
            usages=usages,
            decision_id=decision_id,
            owner=owner,
            assumed_s=float("-inf") if is_given else now_s,
            answered_s=now_s,
        )
        self._add(entry)
        self._assumed[decision_id] = entry
        self._unconfirmed.setdefault(owner, {})[decision_id] = None
        if name:
            self._in_flight[namespace, name] = decision_id

    def answered(self, decision_id: str, now_s: float) -> bool:
        """Restart the time to live: the answer was only now written, or is written once more.

        False if it is not assumed any more: it was seen, or has lapsed.
        """
        entry = self._assumed.get(decision_id)
        if entry is None:
            return False
        renewed = msgspec.structs.replace(entry, answered_s=now_s)
        self._assumed[decision_id] = self._entries[decision_id] = renewed
        unconfirmed = self._unconfirmed[entry.owner]
        del unconfirmed[decision_id]
        unconfirmed[decision_id] = None
        return True

    def drop(self, decision_id: str) -> None:
        """Give back what was assumed for an answer that was never written."""
        if decision_id in self._assumed:
            self._discard(decision_id)

    def in_flight(self, namespace: str, name: str) -> str | None:
        """Return the id of the decision that is under way for a pod of this name."""
        return self._in_flight.get((namespace, name))

    def knows(self, namespace: str, name: str) -> bool:
        """Return whether a pod of this name exists as far as the watch has shown."""
        return (namespace, name) in self._known

    # What the pod watch shows.

    def see(self, pod: Pod) -> None:
        """Take over a pod as the watch or a list shows it; safe to repeat, in any order of pods."""
        metadata = pod.metadata
        self._known[metadata.namespace, metadata.name] = metadata.uid
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        # Reckoned first: if that fails, what was assumed goes on holding the room.
        entry = None if pod.is_finished else self._entry_of(pod, allocation)
        self._put(entry, metadata.uid, self._confirm(allocation))

    def forget(self, pod: Pod) -> None:
        """Release a pod whose object is gone."""
        metadata = pod.metadata
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        if self._known.get((metadata.namespace, metadata.name)) == metadata.uid:
            del self._known[metadata.namespace, metadata.name]
        self._put(None, metadata.uid, self._confirm(allocation))

    def watch_passed(self, at_s: float) -> None:
        """Note the proof that the watch has shown everything stored before `at_s`."""
        self._passed_s = max(self._passed_s, at_s)

    def lapse(self, now_s: float) -> tuple[Entry, ...]:
        """Release assumed entries whose pod can no longer appear, and return them."""
        until = min(now_s, self._passed_s) - self._assume_ttl_s
        lapsed = tuple(entry for entry in self._assumed.values() if entry.answered_s <= until)
        for entry in lapsed:
            self._discard(entry.decision_id)
            self._set_window(entry.owner, 1)
        return lapsed

    # What is held.

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, key: str) -> Entry | None:
        """Return a holding by pod uid, or by decision id while it is assumed."""
        return self._entries.get(key)

    def held_for(self, pod: Pod) -> Entry | None:
        """Return what a pod holds, or what is assumed for it while it has not been seen."""
        entry = self._entries.get(pod.metadata.uid)
        if entry is not None or not self._assumed:
            return entry
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        return None if allocation is None else self._assumed.get(allocation.id)

    def on_node(self, name: str) -> tuple[Entry, ...]:
        """Return the holdings on a node."""
        return tuple(self._entries[key] for key in self._by_node.get(name, ()))

    @property
    def holdings(self) -> Mapping[str, int]:
        """Return how many pods and answers hold something of each concern."""
        counts = zip(self._table.concerns, self._holdings, strict=True)
        return {concern.name: count for concern, count in counts}

    @property
    def assumed(self) -> Mapping[str, Entry]:
        """Return the assumed entries by decision id."""
        return self._assumed

    def frees(self, before: Entry, after: Entry | None) -> bool:
        """Return whether a holding that became another, or ended, may have left room for others."""
        if after is None or before.node != after.node:
            return True
        if before.usages == after.usages:
            return False
        return self._refusing(before.usages) != self._refusing(after.usages)

    def usages_of(self, pod: Pod, allocated: Mapping[str, Mapping[str, Any]]) -> Usages:
        """Return what a pod holds per concern, equal values shared."""
        usages = tuple(
            (index, usage)
            for index, concern in enumerate(self._table.concerns)
            if (usage := concern.usage(pod, allocated.get(concern.name))) is not None
        )
        if len(self._interned) > _USAGES_REMEMBERED:
            self._interned.clear()
        return self._interned.setdefault(usages, usages)

    def _refusing(self, usages: Usages) -> Usages:
        return tuple(it for it in usages if it[0] not in self._only_scoring)

    def _entry_of(self, pod: Pod, allocation: Allocation | None) -> Entry | None:
        """Return what the pod holds: where it is bound, else where we sent it, else nothing."""
        node = pod.spec.node_name
        if not node:
            if allocation is None or allocation.mode == Mode.OBSERVE:
                return None
            node = allocation.node
        ours = allocation is not None and allocation.node == node
        return Entry(
            holder=Holder(
                key=pod.metadata.uid,
                namespace=pod.metadata.namespace,
                name=pod.metadata.name,
                started_s=pod.metadata.created_s,
            ),
            node=node,
            state=State.BOUND if pod.spec.node_name else State.PENDING,
            usages=self.usages_of(pod, allocation.allocated if allocation and ours else {}),
            decision_id=allocation.id if allocation is not None else "",
        )

    def _confirm(self, allocation: Allocation | None) -> Entry | None:
        """Take an answer for given, since its pod is there; return what it still holds."""
        entry = self._assumed.get(allocation.id) if allocation is not None else None
        if entry is None:
            return None
        self._settle(entry)
        self._set_window(entry.owner, self._windows.get(entry.owner, _FIRST_WINDOW) + _WINDOW_STEP)
        # The pod was stored after the first answer, perhaps not after the last one, so that is the
        # moment that the watch has come past.
        self.watch_passed(entry.assumed_s)
        return entry

    def _put(self, entry: Entry | None, key: str, confirmed: Entry | None) -> None:
        """Let an entry stand for what is held by its key, or else for the answer that its pod confirms."""
        known = self._entries.get(key)
        if known is None:
            known = confirmed
        elif confirmed is not None and confirmed is not known:
            self._remove(confirmed)
        if known is not None and entry is not None and known.node == entry.node:
            self._replace(known, entry)
            return
        if known is not None:
            self._remove(known)
        if entry is not None:
            self._add(entry)

    def _discard(self, decision_id: str) -> None:
        entry = self._assumed[decision_id]
        self._settle(entry)
        self._remove(entry)

    def _settle(self, entry: Entry) -> None:
        """Wait for an answer's pod no more."""
        decision_id = entry.decision_id
        del self._assumed[decision_id]
        unconfirmed = self._unconfirmed[entry.owner]
        del unconfirmed[decision_id]
        if not unconfirmed:
            del self._unconfirmed[entry.owner]
        name = (entry.holder.namespace, entry.holder.name)
        if self._in_flight.get(name) == decision_id:
            del self._in_flight[name]

    def _add(self, entry: Entry) -> None:
        self._entries[entry.holder.key] = entry
        self._by_node.setdefault(entry.node, set()).add(entry.holder.key)
        for index, _ in entry.usages:
            self._holdings[index] += 1
        row = self._table.row_of(entry.node)
        if row is not None:
            self._charge(row, entry)

    def _remove(self, entry: Entry) -> None:
        key = entry.holder.key
        del self._entries[key]
        for index, _ in entry.usages:
            self._holdings[index] -= 1
        held = self._by_node[entry.node]
        held.discard(key)
        if not held:
            del self._by_node[entry.node]
        row = self._table.row_of(entry.node)
        if row is not None:
            for index, usage in entry.usages:
                concern = self._table.concerns[index]
                concern.release(self._table.columns[concern.name], row, entry.holder, usage)
            self._table.touch(row)

    def _replace(self, before: Entry, after: Entry) -> None:
        """Let one entry stand for another on its node; concerns for which both are the same leave it alone."""
        is_renamed = before.holder.key != after.holder.key
        if is_renamed:
            del self._entries[before.holder.key]
            held = self._by_node[after.node]
            held.discard(before.holder.key)
            held.add(after.holder.key)
        self._entries[after.holder.key] = after
        if not is_renamed and before.usages == after.usages:
            return
        row = self._table.row_of(after.node)
        old, new = dict(before.usages), dict(after.usages)
        is_changed = False
        for index in {**old, **new}:
            self._holdings[index] += (index in new) - (index in old)
            if row is None or (not is_renamed and old.get(index) == new.get(index)):
                continue
            concern: AnyConcern = self._table.concerns[index]
            columns = self._table.columns[concern.name]
            if old.get(index) == new.get(index):
                is_changed |= concern.rename(columns, row, before.holder, after.holder, new[index])
                continue
            if index in old:
                concern.release(columns, row, before.holder, old[index])
            if index in new:
                concern.charge(columns, row, after.holder, new[index])
            is_changed = True
        if row is not None and is_changed:
            self._table.touch(row)

    def _charge(self, row: int, entry: Entry) -> None:
        for index, usage in entry.usages:
            concern: AnyConcern = self._table.concerns[index]
            concern.charge(self._table.columns[concern.name], row, entry.holder, usage)
        self._table.touch(row)

    def _set_window(self, owner: Hashable, size: int) -> None:
        self._windows[owner] = min(size, _LARGEST_WINDOW)
        self._windows.move_to_end(owner)
        if len(self._windows) > _OWNERS_REMEMBERED:
            self._windows.popitem(last=False)
