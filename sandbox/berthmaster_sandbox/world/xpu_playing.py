"""Hosts with XPUs in memory: an event clock, and the pods as an API server would have them.

For property tests and seeded simulation. Whoever uses it plays scheduler and user: creates pods, binds
them, ends them, and sees every change that kubelets and plugins make. Each host has a queue of what
is to happen there: `advance` lets time pass and everything happen in its order, `step` lets the next thing
of one host happen, however late, so that a test may interleave hosts and its own acts as it likes.

    scene = XpuScene([make_host("xpu-a")], on_change=see)
    scene.create(manifest); scene.annotate(uid, {...}); scene.bind(uid, "xpu-a")
    scene.advance(10)
    assert scene.findings == [] and scene.rejected == {}

Pods are JSON data as in a watch. Times are seconds on the scene's own clock.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from berthmaster_sandbox.world.numa_verdicts import Admitted, Rejected, Verdict
from berthmaster_sandbox.world.xpu_books import Fault, Finding
from berthmaster_sandbox.world.xpu_hosts import Dialect, Host
from berthmaster_sandbox.world.xpu_kubelet import XpuKubelet
from berthmaster_sandbox.world.xpu_plugins import Effect, Look, Plugin, Wait, Work, Write
from berthmaster_sandbox.world.xpu_pods import PodView, read_pod

Manifest = dict[str, Any]
# Gets the pod as it is now, and whether it is gone.
OnChange = Callable[[Manifest, bool], None]
# Any moment will do; plugins write times of this clock.
EPOCH_S = 1_700_000_000.0


@dataclass(order=True, slots=True)
class _Event:
    at_s: float
    rank: int
    act: Callable[[], None] = field(compare=False)


@dataclass(slots=True)
class _Place:
    """One host: its kubelet, what is to happen, and the admission that is under way."""

    kubelet: XpuKubelet
    events: list[_Event] = field(default_factory=list)
    pod: PodView | None = None
    work: Work[Verdict] | None = None
    # The pod under way is deleted, and goes when its admission is over.
    ends_after_admission: bool = False
    # Lives of plugins whose successor is due.
    reviving: set[tuple[Dialect, int]] = field(default_factory=set)


class XpuScene:
    """Kubelets and plugins of some hosts, and their pods. The seed is that of all chance."""

    def __init__(
        self, hosts: Iterable[Host], *, seed: int = 0, on_change: OnChange | None = None
    ) -> None:
        self.now_s = EPOCH_S
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._on_change = on_change
        self._ranks = itertools.count()
        self._pods: dict[str, Manifest] = {}
        self._places = {
            host.name: _Place(XpuKubelet(host, clock=self._clock, rng=self._rng)) for host in hosts
        }

    # Scheduler and user.

    @property
    def pods(self) -> Mapping[str, Manifest]:
        """Return the pods by uid, those that are over among them until they are deleted."""
        return self._pods

    def create(self, manifest: Manifest) -> str:
        """Store a pod and return its uid; one with a node name is bound at once."""
        pod = copy.deepcopy(manifest)
        meta = pod["metadata"]
        uid: str = meta.setdefault("uid", f"uid-{meta['name']}")
        meta.setdefault("namespace", "default")
        meta.setdefault("creationTimestamp", _stamp(self.now_s))
        pod.setdefault("status", {})["phase"] = "Pending"
        self._pods[uid] = pod
        self._tell(uid)
        self._be_bound(uid)
        return uid

    def annotate(self, uid: str, annotations: Mapping[str, str]) -> bool:
        """Merge annotations into a pod; return whether it is there."""
        pod = self._pods.get(uid)
        if pod is None:
            return False
        known = pod["metadata"].get("annotations") or {}
        pod["metadata"]["annotations"] = {**known, **annotations}
        self._tell(uid)
        return True

    def bind(self, uid: str, node: str) -> None:
        """Bind a pod that is not bound; its kubelet will hear of it."""
        self._pods[uid]["spec"]["nodeName"] = node
        self._tell(uid)
        self._be_bound(uid)

    def finish(self, uid: str, phase: str = "Succeeded") -> bool:
        """End a Running pod by itself; return whether it was running."""
        pod = self._pods.get(uid)
        if pod is None or pod["status"]["phase"] != "Running":
            return False
        pod["status"]["phase"] = phase
        self._places[pod["spec"]["nodeName"]].kubelet.forget(uid)
        self._tell(uid)
        return True

    def delete(self, uid: str) -> None:
        """Delete a pod: bound ones go when their kubelet has ended them."""
        pod = self._pods[uid]
        place = self._places.get(pod["spec"].get("nodeName", ""))
        if place is None or pod["status"]["phase"] in {"Succeeded", "Failed"}:
            self._remove(uid)
        elif "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = _stamp(self.now_s)
            self._tell(uid)
            self._later(place, place.kubelet.host.habits.stop_s, lambda: self._end(place, uid))

    # Time, and trouble.

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and everything that is due happen in its order."""
        until_s = self.now_s + seconds
        while True:
            due = [it for it in self._places.values() if it.events and it.events[0].at_s <= until_s]
            if not due:
                break
            self._happen(min(due, key=lambda it: it.events[0]))
        self.now_s = until_s

    def step(self, node: str) -> bool:
        """Let the next thing on a node happen now; return whether there was one."""
        place = self._places[node]
        if not place.events:
            return False
        self._happen(place)
        return True

    def settle(self, *, most_s: float = 3600.0) -> None:
        """Let everything happen that is to happen; raises `TimeoutError` when it never ends."""
        until_s = self.now_s + most_s
        while any(it.events for it in self._places.values()):
            if self.now_s > until_s:
                raise TimeoutError(f"the scene is not quiet after {most_s} s")
            self.advance(1.0)

    def crash(self, node: str, dialect: Dialect) -> None:
        """Kill a plugin at once; it comes back by itself after its habit."""
        place = self._places[node]
        place.kubelet.plugins[dialect].crash()
        self._revive_later(place)

    def restart(self, node: str) -> None:
        """Bring back every plugin of a node."""
        for plugin in self._places[node].kubelet.plugins.values():
            plugin.restart()

    # The judge.

    @property
    def findings(self) -> list[Finding]:
        """Return everything that ever was wrong on any host."""
        return [it for place in self._places.values() for it in place.kubelet.books.findings]

    def found(self, fault: Fault) -> list[Finding]:
        """Return the findings of one kind."""
        return [it for it in self.findings if it.fault is fault]

    @property
    def rejected(self) -> dict[str, Rejected]:
        """Return the pods that kubelets turned away, by uid."""
        every = (place.kubelet.rejected for place in self._places.values())
        return {uid: it for rejected in every for uid, it in rejected.items()}

    def kubelet(self, node: str) -> XpuKubelet:
        """Return a node's kubelet, to be read."""
        return self._places[node].kubelet

    # What happens.

    def _clock(self) -> float:
        return self.now_s

    def _later(self, place: _Place, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(place.events, _Event(self.now_s + seconds, next(self._ranks), act))

    def _jitter(self, most_s: float) -> float:
        return self._rng.random() * most_s

    def _happen(self, place: _Place) -> None:
        event = heapq.heappop(place.events)
        self.now_s = max(self.now_s, event.at_s)
        event.act()
        self._revive_later(place)

    def _be_bound(self, uid: str) -> None:
        place = self._places.get(self._pods[uid]["spec"].get("nodeName", ""))
        if place is not None:
            habits = place.kubelet.host.habits
            wait_s = habits.pickup_s + self._jitter(habits.pickup_jitter_s)
            self._later(place, wait_s, lambda: self._learn(place, uid))

    def _learn(self, place: _Place, uid: str) -> None:
        if uid in self._pods:
            place.kubelet.learn(read_pod(self._pods[uid]))
            self._admit_next(place)

    def _admit_next(self, place: _Place) -> None:
        if place.work is None:
            place.pod = place.kubelet.next_pod()
            if place.pod is not None:
                place.work = place.kubelet.admit(place.pod)
                self._later(place, 0.0, lambda: self._go_on(place, None))

    def _go_on(self, place: _Place, answer: Any) -> None:
        """Take an admission one effect further."""
        work, pod = place.work, place.pod
        if work is None or pod is None:
            return
        try:
            effect = work.send(answer)
        except StopIteration as done:
            place.work = None
            self._report(place, pod, done.value)
            if place.ends_after_admission:
                place.ends_after_admission = False
                self._end(place, pod.uid)
            self._admit_next(place)
            return
        wait_s = effect.seconds if isinstance(effect, Wait) else 0.0
        result = self._do(place, effect)
        self._later(place, wait_s, lambda: self._go_on(place, result))

    def _do(self, place: _Place, effect: Effect) -> Any:
        match effect:
            case Look():
                name = place.kubelet.host.name
                views = [read_pod(it) for it in self._pods.values()]
                return [it for it in views if it.body.node == name and it.body.phase == "Pending"]
            case Write(pod=pod, annotations=annotations):
                return self.annotate(pod.uid, annotations)
            case Wait():
                return None

    def _report(self, place: _Place, pod: PodView, verdict: Verdict) -> None:
        habits = place.kubelet.host.habits
        wait_s = habits.verdict_s + self._jitter(habits.verdict_jitter_s)
        if isinstance(verdict, Admitted):
            self._later(place, habits.start_s + wait_s, lambda: self._set_phase(pod.uid, "Running"))
        else:
            self._later(place, wait_s, lambda: self._set_phase(pod.uid, "Failed"))

    def _set_phase(self, uid: str, phase: str) -> None:
        pod = self._pods.get(uid)
        if pod is not None and pod["status"]["phase"] == "Pending":
            pod["status"]["phase"] = phase
            self._tell(uid)

    def _end(self, place: _Place, uid: str) -> None:
        """Let a deleted pod be gone, once its admission is over."""
        if place.work is not None and place.pod is not None and place.pod.uid == uid:
            place.ends_after_admission = True
            return
        place.kubelet.forget(uid)
        self._remove(uid)

    def _remove(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is not None and self._on_change is not None:
            self._on_change(copy.deepcopy(pod), True)

    def _revive_later(self, place: _Place) -> None:
        """See to it that every dead plugin has a next life."""
        for dialect in place.kubelet.down:
            plugin = place.kubelet.plugins[dialect]
            key = (dialect, plugin.lives)
            if key not in place.reviving:
                place.reviving.add(key)
                restart_s = place.kubelet.host.habits.restart_s
                self._later(place, restart_s, partial(_revive, plugin, plugin.lives))

    def _tell(self, uid: str) -> None:
        if self._on_change is not None:
            self._on_change(copy.deepcopy(self._pods[uid]), False)


def _stamp(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def _revive(plugin: Plugin, life: int) -> None:
    if plugin.lives == life:
        plugin.restart()
