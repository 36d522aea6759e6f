"""What a kubelet answers to a pod, and what stands in its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOPOLOGY_AFFINITY_ERROR = "TopologyAffinityError"
UNEXPECTED_ADMISSION_ERROR = "UnexpectedAdmissionError"
SMT_ALIGNMENT_ERROR = "SMTAlignmentError"
TOPOLOGY_MESSAGE = "Resources cannot be allocated with Topology locality"


class AllocationError(Exception):
    """A manager has not got what a container is to have; the message is the kubelet's."""


class SmtAlignmentError(Exception):
    """Whole cores are demanded and cannot be given; the message is the kubelet's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one container has.

    `cpus` counts exclusive CPUs by zone; `memory` has, by resource name, the zones a block is bound to
    and its bytes; `devices` has device ids by resource name.
    """

    cpus: Mapping[int, int] = field(default_factory=dict)
    memory: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The pod may run; `zones` are those where each container has something of its own."""

    zones: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The pod is Failed, with the kubelet's reason and message; `container` is where it ended."""

    reason: str
    message: str
    container: str = ""


Verdict = Admitted | Rejected
