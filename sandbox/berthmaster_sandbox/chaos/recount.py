"""The independent count: what the API server's objects say of our promises.

Written from the architecture and from upstream's rules, with none of the ledger's code. A pod *holds* what
it asks for on the node that it is bound to or, not bound yet, that its allocation names, until it has
finished or is gone. Pure: values in, violations out.

    past the line   what pods hold of a node is more than there is: its allocatable, its disk, a device
    allocation      a bound pod that asked for us has none, one of another node, or one that others have, too
    turned away     a kubelet had no room for a pod that was sent to it
    failed creation a create was refused or failed for another reason than a quota
    no reason       a pod waits at our gate and does not say why
    lost            a pod is neither placed nor waiting, or does not run, or a controller's pods do not come
    ended           a process of ours ended, and the fault has ended none

`no reason` and `lost` need time to come true, so they count only when they stay (`storm.py`), and not of pods
younger than `YOUNG_S`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from fractions import Fraction
from math import ceil
from typing import Any

from berthmaster.api import names
from berthmaster.api.quantities import parse_quantity

Obj = Mapping[str, Any]

MIB = 2**20
# What a pod without a request of its own takes of its node's disk, each way.
DISK_DEFAULT = 5 * MIB
# Modes in which we decide for good.
BINDING_MODES = ("required", "bind")
FINISHED = ("Succeeded", "Failed")
# A pod has so long to be placed, or to say why it is not, and to run.
YOUNG_S = 10.0
QUOTA = "exceeded quota"
# Two creates at once count the same quota; the API server refuses one, which is then tried again.
QUOTA_CONFLICT = "Operation cannot be fulfilled on resourcequotas"


class Kind(Enum):
    """Name what may be wrong; the value is for people."""

    PAST_THE_LINE = "past the line"
    ALLOCATION = "allocation"
    TURNED_AWAY = "turned away"
    FAILED_CREATION = "failed creation"
    NO_REASON = "no reason"
    LOST = "lost"
    ENDED = "ended"

    @property
    def may_pass(self) -> bool:
        """Return whether this is wrong only when it stays."""
        return self in (Kind.NO_REASON, Kind.LOST)


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: the kind's words, whose it is, and the numbers."""

    kind: Kind
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.who}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What a disk can do, in bytes per second, and how much one byte costs by block size."""

    read: int
    write: int
    total: int
    read_ratio: Mapping[str, Fraction] = field(default_factory=dict)
    write_ratio: Mapping[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The world's lines that are not in a Node: disks by node, and MiB by device by node."""

    disks: Mapping[str, Disk] = field(default_factory=dict)
    devices: Mapping[str, Mapping[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The API server's objects as JSON has them; `events` are those of the reason FailedCreate."""

    nodes: Sequence[Obj] = ()
    pods: Sequence[Obj] = ()
    deployments: Sequence[Obj] = ()
    jobs: Sequence[Obj] = ()
    events: Sequence[Obj] = ()
    # The PlacementPolicies that are there, and when each was made.
    policies: Mapping[str, str] = field(default_factory=dict)
    # Those that are always to be there again: what they ask for, nobody has taken back.
    standing: frozenset[str] = frozenset()
    # When that was, as Unix time.
    at_s: float = 0.0


def recount(seen: Seen, lines: Lines) -> list[Violation]:
    """Return every broken promise that the objects show."""
    return [
        *_past_node_lines(seen),
        *_past_disk_lines(seen, lines),
        *_past_device_lines(seen, lines),
        *_allocations(seen),
        *_lost_pods(seen),
        *_short_controllers(seen),
        *_without_reason(seen),
    ]


def key_of(obj: Obj) -> str:
    """Return `namespace/name`."""
    meta = obj["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"


def is_finished(pod: Obj) -> bool:
    """Return whether a pod has ended."""
    return pod.get("status", {}).get("phase") in FINISHED


def annotation(pod: Obj, key: str) -> str | None:
    """Return a pod's annotation, None where it has none."""
    found: str | None = (pod["metadata"].get("annotations") or {}).get(key)
    return found


def decided(pod: Obj) -> Mapping[str, Any]:
    """Return the allocation that the pod carries, empty if none can be read."""
    try:
        found = json.loads(annotation(pod, names.ALLOCATION) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("v") == 1 else {}


def is_young(pod: Obj, now_s: float) -> bool:
    """Return whether a pod was created only just now."""
    created = pod["metadata"].get("creationTimestamp")
    return bool(created) and now_s - datetime.fromisoformat(created).timestamp() < YOUNG_S


def place_of(pod: Obj) -> str:
    """Return the node where a pod holds something, empty if nowhere."""
    if is_finished(pod):
        return ""
    return str(pod["spec"].get("nodeName") or decided(pod).get("node") or "")


def asks(pod: Obj) -> bool:
    """Return whether we decide for the pod."""
    return annotation(pod, names.PLACEMENT) in BINDING_MODES


def is_gated(pod: Obj) -> bool:
    """Return whether our gate holds the pod."""
    return any(it["name"] == names.GATE for it in pod["spec"].get("schedulingGates") or ())


def condition(pod: Obj, type_: str) -> Obj:
    """Return a pod's condition, empty if it has none of that type."""
    found = pod.get("status", {}).get("conditions") or ()
    return next((it for it in found if it["type"] == type_), {})


# The line.


def _past_node_lines(seen: Seen) -> Iterator[Violation]:
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for pod in seen.pods:
        if place := place_of(pod):
            held[place].update(_requests(pod))
    for node in seen.nodes:
        name = node["metadata"]["name"]
        there = {
            key: parse_quantity(text) for key, text in node["status"].get("allocatable", {}).items()
        }
        for resource, amount in held[name].items():
            if amount > there.get(resource, 0):
                what = f"{float(amount):g} of {float(there.get(resource, 0)):g} {resource}"
                yield Violation(Kind.PAST_THE_LINE, name, what)


def _requests(pod: Obj) -> dict[str, Any]:
    """Return what the pod asks of its node: the most that runs at once, and one pod."""
    spec = pod["spec"]
    running: Counter[str] = Counter()
    for container in spec["containers"]:
        running.update(_amounts(container))
    peak = dict(running)
    for container in spec.get("initContainers") or ():
        for resource, amount in _amounts(container).items():
            peak[resource] = max(peak.get(resource, 0), amount)
    return {**peak, "pods": 1}


def _amounts(container: Obj) -> dict[str, Any]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {key: parse_quantity(text) for key, text in asked.items()}


def _past_disk_lines(seen: Seen, lines: Lines) -> Iterator[Violation]:
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for pod in seen.pods:
        place = place_of(pod)
        if place in lines.disks:
            read, write = _disk_request(pod, lines.disks[place])
            used[place][0] += read
            used[place][1] += write
    for node, (read, write) in used.items():
        disk = lines.disks[node]
        for dimension, amount, there in (
            ("read", read, disk.read),
            ("write", write, disk.write),
            ("total", read + write, disk.total),
        ):
            if amount > there:
                what = f"disk {dimension}: {amount / MIB:g} of {there / MIB:g} MiB/s"
                yield Violation(Kind.PAST_THE_LINE, node, what)


def _disk_request(pod: Obj, disk: Disk) -> tuple[int, int]:
    text = annotation(pod, names.DISKIO_REQUEST)
    if not text:
        return DISK_DEFAULT, DISK_DEFAULT
    said = json.loads(text)
    size = said["blocksize"]
    read = parse_quantity(said["rbps"]) * disk.read_ratio.get(size, 1)
    write = parse_quantity(said["wbps"]) * disk.write_ratio.get(size, 1)
    return ceil(read), ceil(write)


def _past_device_lines(seen: Seen, lines: Lines) -> Iterator[Violation]:
    used: dict[tuple[str, int], int] = Counter()
    for pod in seen.pods:
        place = place_of(pod)
        for device in decided(pod).get("allocated", {}).get("xpu", {}).get("devices", ()):
            if place:
                used[place, int(device["i"])] += int(device["mem"])
    for (node, index), amount in used.items():
        there = lines.devices.get(node, {}).get(index, 0)
        if amount > there:
            what = f"device {index}: {amount} of {there} MiB"
            yield Violation(Kind.PAST_THE_LINE, node, what)


# Allocations.


def _allocations(seen: Seen) -> Iterator[Violation]:
    owners: dict[str, list[str]] = defaultdict(list)
    for pod in seen.pods:
        found = decided(pod)
        if found:
            owners[str(found.get("id"))].append(key_of(pod))
        place = pod["spec"].get("nodeName")
        if not place or not asks(pod) or _was_let_go(pod, seen):
            continue
        if not found:
            yield Violation(Kind.ALLOCATION, key_of(pod), f"is on {place} without an allocation")
        elif found.get("node") != place:
            what = f"is on {place}, its allocation says {found.get('node')}"
            yield Violation(Kind.ALLOCATION, key_of(pod), what)
    for id_, keys in owners.items():
        if len(keys) > 1:
            yield Violation(Kind.ALLOCATION, ", ".join(sorted(keys)), f"share decision {id_}")


def _was_let_go(pod: Obj, seen: Seen) -> bool:
    """Return whether a policy that was taken away asked for the pod: it goes its way unchanged then.

    So it is where one of the same name was made since, but not where a policy only vanished with its kind.
    """
    policy = annotation(pod, names.POLICY)
    if policy is None or policy in seen.standing:
        return False
    made = seen.policies.get(policy)
    return made is None or made >= pod["metadata"].get("creationTimestamp", "")


# What is lost, and what waits.


def _lost_pods(seen: Seen) -> Iterator[Violation]:
    for pod in seen.pods:
        phase = pod.get("status", {}).get("phase", "")
        if phase == "Failed":
            status = pod["status"]
            what = f"{status.get('reason')}: {status.get('message', '')}"
            yield Violation(Kind.TURNED_AWAY, key_of(pod), what)
        if is_finished(pod) or is_gated(pod) or _is_passing(pod, seen.at_s):
            continue
        if pod["spec"].get("nodeName"):
            if phase != "Running":
                yield Violation(Kind.LOST, key_of(pod), f"is bound and {phase}")
        elif condition(pod, "PodScheduled").get("reason") != "Unschedulable":
            what = "is not at the gate and nobody says why it is not bound"
            yield Violation(Kind.LOST, key_of(pod), what)


def _is_passing(pod: Obj, now_s: float) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp")) or is_young(pod, now_s)


def _short_controllers(seen: Seen) -> Iterator[Violation]:
    """Find Deployments and Jobs whose pods are not there, and no quota says why."""
    quota = {_subject(it) for it in seen.events if QUOTA in _words(it)}
    live: Counter[str] = Counter()
    for pod in seen.pods:
        if not is_finished(pod) and not pod["metadata"].get("deletionTimestamp"):
            app = (pod["metadata"].get("labels") or {}).get("app", "")
            live[f"{pod['metadata'].get('namespace', '')}/{app}"] += 1
    for deployment in seen.deployments:
        key, wanted = key_of(deployment), int(deployment["spec"].get("replicas", 1))
        # A ReplicaSet is called like its Deployment and a hash.
        is_refused = any(it.rpartition("-")[0] == key for it in quota)
        if live[key] < wanted and not is_refused:
            yield Violation(Kind.LOST, key, f"has {live[key]} of {wanted} pods")
    for job in seen.jobs:
        key = key_of(job)
        ended = [it["type"] for it in job.get("status", {}).get("conditions") or ()]
        if "Failed" in ended:
            yield Violation(Kind.LOST, key, "the Job has failed")
        elif "Complete" not in ended and not live[key] and key not in quota:
            done = job.get("status", {}).get("succeeded", 0)
            what = f"has no pods, {done} of {job['spec'].get('completions')} have succeeded"
            yield Violation(Kind.LOST, key, what)


def _without_reason(seen: Seen) -> Iterator[Violation]:
    for pod in seen.pods:
        if not is_gated(pod) or _is_passing(pod, seen.at_s):
            continue
        placed = condition(pod, names.PLACED_CONDITION)
        if placed.get("status") != "False" or not placed.get("message"):
            yield Violation(Kind.NO_REASON, key_of(pod), "waits at the gate and does not say why")


# Our own programs.


def count_ends(pods: Iterable[Obj]) -> dict[str, int]:
    """Return how often processes of each pod have ended, by the pod's name."""
    return {
        pod["metadata"]["name"]: sum(
            map(_ends_of, pod.get("status", {}).get("containerStatuses") or ())
        )
        for pod in pods
    }


def _ends_of(container: Obj) -> int:
    # It is counted when it is started anew, which may be long after its end.
    state = container.get("state") or {}
    is_over = "terminated" in state or ("waiting" in state and bool(container.get("lastState")))
    return int(container.get("restartCount", 0)) + is_over


def new_ends(before: Mapping[str, int], now: Mapping[str, int]) -> list[Violation]:
    """Return whose processes have ended between two counts."""
    return [
        Violation(Kind.ENDED, name, f"its process ended, {count - before.get(name, 0)} times")
        for name, count in now.items()
        if count > before.get(name, 0)
    ]


# Creations.


def failed_creations(events: Iterable[Obj], excused: Sequence[str] = ()) -> list[Violation]:
    """Return the controllers' creations that failed for no quota and for none of these words.

    What names us is never excused.
    """
    found = []
    for event in events:
        words = _words(event)
        if is_failure(words, excused):
            found.append(Violation(Kind.FAILED_CREATION, _subject(event), words))
    return found


def is_failure(words: str, excused: Sequence[str]) -> bool:
    """Return whether what was said of a failed create is held against us."""
    if QUOTA in words or QUOTA_CONFLICT in words:
        return False
    if names.GROUP in words or "berthmaster" in words:
        return True
    return not any(it in words for it in excused)


def _words(event: Obj) -> str:
    return str(event.get("note") or event.get("message") or "")


def _subject(event: Obj) -> str:
    found = event.get("regarding") or event.get("involvedObject") or {}
    return f"{found.get('namespace', '')}/{found.get('name', '')}"
