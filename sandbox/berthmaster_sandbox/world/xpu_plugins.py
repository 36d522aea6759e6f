"""The device plugins of the three dialects: which pod an Allocate is for, and what it is given.

The kubelet's Allocate carries a number of fake devices and no pod, so every plugin guesses. Written from
the dialects' rules alone:

* xpushare: of the Pending pods bound here with an assume time and assigned "false" the oldest by
  assume time whose total equals the number. It writes assigned "true" and the time. Without such a pod
  the call succeeds all the same: on a host of one device with that device, else with none at all.
* vXPU: no lock on the node says whose turn it is, so the first listed Pending pod of this node in
  bind phase "allocating", whatever its size. What it has served is struck from the annotation; when
  nothing is left the phase is "success". Another number of cards than asked fails pod and call.
* whole cards: the oldest Pending pod by bind time whose next container has as many cards; how far a
  pod is served is in memory only, and the phase is "success" after its last container. Without such a
  pod the call fails. (Kunlun's own plugin is not public: this is what HAMi's annotations allow.)

A plugin is a generator of effects: it waits, looks at the API server's pods, and writes annotations, and
whoever runs it says how. After a crash a call that was under way ends in `PluginGoneError`, and the next
life knows only what the annotations say. Times are seconds, memory is MiB.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any, ClassVar, TypeVar

from berthmaster_sandbox.world.xpu_hosts import RESOURCES, Dialect, Host
from berthmaster_sandbox.world.xpu_pods import (
    ASSIGNED,
    ASSUME_TIME,
    BIND_PHASE,
    BIND_TIME,
    CARDS_ALLOCATED,
    CARDS_IDX,
    IDX,
    VGPU_NODE,
    VGPU_TIME,
    VXPU_TO_ALLOCATE,
    Devices,
    PodView,
    encode_entries,
    parse_entries,
    parse_indices,
    spread,
)

ALLOCATING, SUCCESS, FAILED = "allocating", "success", "failed"
PENDING = "Pending"


@dataclass(frozen=True, slots=True)
class Wait:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the API server for the Pending pods of the node; answered with a list of `PodView`."""


@dataclass(frozen=True, slots=True)
class Write:
    """Patch a pod's annotations; answered with whether the pod was there."""

    pod: PodView
    annotations: Mapping[str, str]


Effect = Wait | Look | Write
T = TypeVar("T")
Work = Generator[Effect, Any, T]


class AllocateError(Exception):
    """An Allocate that failed; the kubelet turns its pod away."""


class PluginGoneError(AllocateError):
    """The plugin died in the call."""


class Plugin(ABC):
    """One dialect's plugin on one host, over all of its lives; `clock` is seconds since the epoch."""

    dialect: ClassVar[Dialect]

    def __init__(self, host: Host, *, clock: Callable[[], float], rng: random.Random) -> None:
        self._host = host
        self._clock = clock
        self._rng = rng
        self.is_alive = True
        self.lives = 1
        # Allocate calls of all lives, for whoever wants to know that there were some.
        self.calls = 0

    @property
    def resource(self) -> str:
        """Return the resource for which the kubelet calls."""
        return RESOURCES[self.dialect]

    def change(self, host: Host) -> None:
        """Let the hardware be another, such as one that broke."""
        self._host = host

    def crash(self) -> None:
        """Die at once; a call that is under way fails at its next step."""
        self.is_alive = False

    def restart(self) -> None:
        """Live again, without any memory; a living one goes on."""
        if not self.is_alive:
            self.is_alive = True
            self.lives += 1
            self._forget()

    def allocate(self, count: int) -> Work[Devices]:
        """Give so many fake devices to whatever pod this is for; return MiB by device index.

        Raises:
            AllocateError: the call failed.
        """
        self.calls += 1
        life = self.lives
        habits = self._host.habits
        # Whether this call is the plugin's end, and in which of its steps.
        is_last = self._rng.random() < habits.crash_probability
        ends_at = self._rng.randint(1, 3) if is_last else 0
        call = self._serve(count)
        answer: Any = None
        yield Wait(habits.allocate_s + self._rng.random() * habits.allocate_jitter_s)
        for step in count_from(1):
            if step == ends_at:
                self.crash()
            if not self.is_alive or self.lives != life:
                raise PluginGoneError(
                    "rpc error: code = Unavailable desc = error reading from server"
                )
            try:
                effect = call.send(answer)
            except StopIteration as done:
                devices: Devices = done.value
                return devices
            answer = yield effect
        raise AssertionError("counting has no end")

    @abstractmethod
    def _serve(self, count: int) -> Work[Devices]:
        """Do what this dialect's plugin does in an Allocate."""

    def _forget(self) -> None:  # noqa: B027 - most have nothing to lose
        """Lose what is only in memory."""


class XpusharePlugin(Plugin):
    """gpushare's plugin with XPUs for GPUs, and several devices for a pod."""

    dialect = Dialect.XPUSHARE

    def _serve(self, count: int) -> Work[Devices]:
        pods: list[PodView] = yield Look()
        picked = self._pick(pods, count)
        size_mib = count * self._host.memory_unit_mib
        if picked is None:
            only = self._host.devices[0] if len(self._host.devices) == 1 else None
            return {only.index: size_mib} if only is not None else {}
        indices = parse_indices(picked.annotations.get(IDX))
        if not indices or any(self._host.device(it) is None for it in indices):
            return {}
        now_ns = str(int(self._clock() * 1e9))
        is_there = yield Write(picked, {ASSIGNED: "true", ASSUME_TIME: now_ns})
        return spread(size_mib, indices) if is_there else {}

    def _pick(self, pods: list[PodView], count: int) -> PodView | None:
        candidates = [
            it
            for it in pods
            if it.body.phase == PENDING
            and it.body.node == self._host.name
            and it.total_units > 0
            and ASSUME_TIME in it.annotations
            and it.annotations.get(ASSIGNED) == "false"
        ]
        candidates.sort(key=lambda it: _number(it.annotations[ASSUME_TIME]))
        return next((it for it in candidates if it.total_units == count), None)


class VxpuPlugin(Plugin):
    """HAMi's plugin for slices."""

    dialect = Dialect.VXPU

    def _serve(self, count: int) -> Work[Devices]:
        pods: list[PodView] = yield Look()
        picked = self._pick(pods)
        if picked is None:
            raise AllocateError(f"no binding pod found on node {self._host.name}")
        containers = parse_entries(picked.annotations.get(VXPU_TO_ALLOCATE))
        place = next((at for at, entries in enumerate(containers) if entries), None)
        if place is None:
            raise AllocateError("device request not found")
        entries = containers[place]
        devices = [self._host.named(it.id) for it in entries]
        if len(entries) != count or None in devices:
            yield Write(picked, {BIND_PHASE: FAILED})
            raise AllocateError(
                f"pod {picked.key}: {len(entries)} devices annotated, {count} asked for"
                if len(entries) != count
                else f"pod {picked.key}: unknown device among {[it.id for it in entries]}"
            )
        containers[place] = []
        yield Write(picked, {VXPU_TO_ALLOCATE: encode_entries(containers)})
        if not any(containers):
            yield Write(picked, {BIND_PHASE: SUCCESS})
        return {
            device.index: entry.memory_mib
            for device, entry in zip(devices, entries, strict=True)
            if device is not None
        }

    def _pick(self, pods: list[PodView]) -> PodView | None:
        return next(
            (
                it
                for it in sorted(pods, key=lambda it: it.key)
                if it.body.phase == PENDING
                and BIND_TIME in it.annotations
                and it.annotations.get(BIND_PHASE) == ALLOCATING
                and it.annotations.get(VGPU_NODE) == self._host.name
            ),
            None,
        )


class CardPlugin(Plugin):
    """A plugin for whole cards that reads HAMi's annotations."""

    dialect = Dialect.KUNLUN

    def __init__(self, host: Host, *, clock: Callable[[], float], rng: random.Random) -> None:
        super().__init__(host, clock=clock, rng=rng)
        # Cards handed out so far, by uid.
        self._served: dict[str, int] = {}

    def _forget(self) -> None:
        self._served.clear()

    def _serve(self, count: int) -> Work[Devices]:
        pods: list[PodView] = yield Look()
        picked = self._pick(pods, count)
        if picked is None:
            raise AllocateError(f"no pod with {count} cards found on node {self._host.name}")
        indices = parse_indices(picked.annotations.get(CARDS_IDX))
        first = self._served.get(picked.uid, 0)
        chosen = [self._host.device(it) for it in indices[first : first + count]]
        if None in chosen:
            raise AllocateError(f"pod {picked.key}: unknown card among {indices}")
        self._served[picked.uid] = first + count
        if first + count == len(indices):
            yield Write(picked, {BIND_PHASE: SUCCESS})
        return {it.index: it.memory_mib for it in chosen if it is not None}

    def _pick(self, pods: list[PodView], count: int) -> PodView | None:
        candidates = [
            it
            for it in pods
            if it.body.phase == PENDING
            and it.body.node == self._host.name
            and it.annotations.get(BIND_PHASE) not in {SUCCESS, FAILED}
            and self._next_size(it) == count
        ]
        return min(candidates, key=_bound_at, default=None)

    def _next_size(self, pod: PodView) -> int:
        """Return how many cards the pod's next container has, 0 when all are served."""
        served = self._served.get(pod.uid, 0)
        total = len(parse_indices(pod.annotations.get(CARDS_IDX)))
        sizes = [len(it) for it in parse_entries(pod.annotations.get(CARDS_ALLOCATED)) if it]
        for size in sizes if sum(sizes) == total else [total]:
            if served <= 0:
                return size
            served -= size
        return 0


def _bound_at(pod: PodView) -> tuple[int, str]:
    said = pod.annotations.get(BIND_TIME) or pod.annotations.get(VGPU_TIME) or ""
    return (_number(said), pod.key)


def _number(text: str) -> int:
    """Return a time as Go's ParseUint would, 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(2**64)) else 0


PLUGINS: Mapping[Dialect, type[Plugin]] = {
    it.dialect: it for it in (XpusharePlugin, VxpuPlugin, CardPlugin)
}
