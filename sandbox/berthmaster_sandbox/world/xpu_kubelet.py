"""The kubelet of one host with XPUs: it admits pods one after another, and asks the plugins.

Written from the kubelet's own rules. It learns of bound pods, takes the oldest of those that wait, and
for every container in turn calls Allocate of each plugin whose resource the container asks for. A call
that fails, a plugin that is down, or fewer fake devices than asked turn the pod away with
UnexpectedAdmissionError. Its own books count fake devices only: which XPU is used is the plugins' affair,
and what really is stands in `books`. Time, the API server and the order of events are the runner's
(`xpu_playing.py` or `xpu.py`): `admit` is a generator of the effects of `xpu_plugins.py`.

Not played: the kubelet's checkpoint, preferred allocation, the topology manager (see `numa_kubelet.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from berthmaster_sandbox.world.numa_pods import ContainerView, Role
from berthmaster_sandbox.world.numa_verdicts import (
    UNEXPECTED_ADMISSION_ERROR,
    Admitted,
    Rejected,
    Verdict,
)
from berthmaster_sandbox.world.xpu_books import Books
from berthmaster_sandbox.world.xpu_hosts import Dialect, Host
from berthmaster_sandbox.world.xpu_plugins import PLUGINS, AllocateError, Look, Plugin, Work
from berthmaster_sandbox.world.xpu_pods import PodView


class XpuKubelet:
    """One host: the kubelet's queue and verdicts, the plugins, and the true books."""

    def __init__(
        self, host: Host, *, clock: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        self.host = host
        chance = rng if rng is not None else random.Random(0)  # noqa: S311 - no secret
        self.plugins: Mapping[Dialect, Plugin] = {
            it: PLUGINS[it](host, clock=clock, rng=chance) for it in host.dialects
        }
        self.books = Books(host)
        self.verdicts: dict[str, Verdict] = {}
        # Pods that were turned away, with the words.
        self.rejected: dict[str, Rejected] = {}
        self._waiting: dict[str, PodView] = {}
        # The pod that is being admitted, and whether it is over already.
        self._under_way = ""
        self._is_over = False
        # Fake devices held, by uid.
        self._held: dict[str, dict[Dialect, int]] = {}

    def change(self, host: Host) -> None:
        """Let the hardware be another, such as one that broke."""
        self.host = host
        self.books.change(host)
        for plugin in self.plugins.values():
            plugin.change(host)

    # What the kubelet knows.

    def learn(self, pod: PodView) -> None:
        """Take a bound pod over, safe to repeat; one that ended lets go of everything.

        One that runs without having been admitted was there before: it has what its annotations say.
        """
        if pod.body.is_finished:
            self.forget(pod.uid)
        elif pod.body.phase == "Running" and pod.uid not in self.verdicts:
            self._adopt(pod)
        elif not pod.body.is_going and pod.uid != self._under_way and pod.uid not in self.verdicts:
            self._waiting[pod.uid] = pod

    def forget(self, uid: str) -> None:
        """Let a pod be over; unknown ones are ignored."""
        if uid == self._under_way:
            # What it is being given is free again when its admission has come to its end.
            self._is_over = True
            return
        self._waiting.pop(uid, None)
        self._held.pop(uid, None)
        self.books.release(uid)

    def next_pod(self) -> PodView | None:
        """Return the oldest pod that waits, which is then to be admitted."""
        if not self._waiting:
            return None
        pod = min(self._waiting.values(), key=lambda it: (it.body.created, it.key))
        self._under_way, self._is_over = pod.uid, False
        return self._waiting.pop(pod.uid)

    @property
    def is_idle(self) -> bool:
        """Return whether no pod waits to be admitted."""
        return not self._waiting

    @property
    def down(self) -> tuple[Dialect, ...]:
        """Return the dialects whose plugin is dead."""
        return tuple(it for it, plugin in self.plugins.items() if not plugin.is_alive)

    def _adopt(self, pod: PodView) -> None:
        self.verdicts[pod.uid] = Admitted(zones={})
        for dialect in self.plugins:
            asking = [it for it in pod.body.containers if pod.amount(it, dialect)]
            if asking:
                self._held.setdefault(pod.uid, {})[dialect] = pod.peak(dialect)
                self.books.give(pod, asking[-1], dialect, pod.planned(dialect, self.host) or {})

    # Admission.

    def admit(self, pod: PodView) -> Work[Verdict]:
        """Admit a pod that waited, or turn it away."""
        verdict: Verdict = Admitted(zones={})
        for container in pod.body.containers:
            try:
                yield from self._allocate(pod, container)
            except AllocateError as error:
                verdict = Rejected(
                    reason=UNEXPECTED_ADMISSION_ERROR,
                    message=f"Allocate failed due to {error}, which is unexpected",
                    container=container.name,
                )
                break
        # A plugin finds nothing for a pod that was deleted by force, which then never runs.
        if self.books.is_unserved(pod.uid) and not (yield from self._is_there(pod)):
            self._is_over = True
        self._under_way = ""
        self.verdicts[pod.uid] = verdict
        if isinstance(verdict, Rejected):
            self.rejected[pod.uid] = verdict
        elif not self._is_over:
            self.books.complete(pod)
        if self._is_over or isinstance(verdict, Rejected):
            self.forget(pod.uid)
        return verdict

    def _is_there(self, pod: PodView) -> Work[bool]:
        pods: list[PodView] = yield Look()
        return any(it.uid == pod.uid for it in pods)

    def _allocate(self, pod: PodView, container: ContainerView) -> Work[None]:
        for dialect, plugin in self.plugins.items():
            count = pod.amount(container, dialect)
            if not count:
                continue
            self._take(pod, container, plugin, count)
            devices = yield from plugin.allocate(count)
            self.books.give(pod, container, dialect, devices)

    def _take(self, pod: PodView, container: ContainerView, plugin: Plugin, count: int) -> None:
        """Hold fake devices for a container; those of init containers that ended are used again."""
        dialect = plugin.dialect
        if not plugin.is_alive:
            raise AllocateError(
                "no healthy devices present; cannot allocate unhealthy devices " + plugin.resource
            )
        held = self._held.setdefault(pod.uid, {})
        before = _staying(pod, container, dialect)
        others = sum(it.get(dialect, 0) for uid, it in self._held.items() if uid != pod.uid)
        there = self.host.units(dialect, healthy_only=True) - others - before
        if count > there:
            raise AllocateError(
                f"requested number of devices unavailable for {plugin.resource}. "
                f"Requested: {count}, Available: {max(0, there)}"
            )
        held[dialect] = max(held.get(dialect, 0), before + count)


def _staying(pod: PodView, container: ContainerView, dialect: Dialect) -> int:
    """Return what containers before this one hold while it runs."""
    total = 0
    for other in pod.body.containers:
        if other.name == container.name:
            break
        if other.role is not Role.INIT:
            total += pod.amount(other, dialect)
    return total
