"""Settings of the NUMA concern; the names of upstream's arguments are kept."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from berthmaster.api.schema import Duration, Model


class NumaStrategy(StrEnum):
    """Which of two nodes is better; the first four are upstream's."""

    LEAST_ALLOCATED = "LeastAllocated"
    MOST_ALLOCATED = "MostAllocated"
    BALANCED_ALLOCATION = "BalancedAllocation"
    LEAST_NUMA_NODES = "LeastNUMANodes"
    PREDICTED_ZONE = "PredictedZone"


class NumaBooks(StrEnum):
    """How what pods hold is taken off what the updaters report."""

    PREDICTED = "Predicted"
    UPSTREAM = "Upstream"


class WhenMissing(StrEnum):
    """What becomes of nodes without topology."""

    PASS = "Pass"  # noqa: S105 - a word of a policy
    PREFER_KNOWN = "PreferKnown"
    REFUSE = "Refuse"


class WhenStale(StrEnum):
    """What becomes of nodes whose topology is out of date."""

    USE = "Use"
    REFUSE = "Refuse"


class RestrictedPolicy(StrEnum):
    """What becomes of nodes whose kubelet has the policy restricted."""

    PASS = "Pass"  # noqa: S105 - a word of a policy
    PREDICT = "Predict"


class ForeignPodsDetect(StrEnum):
    """Which pods of other schedulers make upstream's cache distrust a node."""

    ALL = "All"
    NONE = "None"
    ONLY_EXCLUSIVE_RESOURCES = "OnlyExclusiveResources"


class ResyncMethod(StrEnum):
    """Which pods upstream's cache takes a fingerprint over."""

    AUTODETECT = "Autodetect"
    ALL = "All"
    ONLY_EXCLUSIVE_RESOURCES = "OnlyExclusiveResources"


class InformerMode(StrEnum):
    """Which pods upstream's cache sees: all, or those that its scheduler shows it."""

    DEDICATED = "Dedicated"
    SHARED = "Shared"


class ResyncScope(StrEnum):
    """Whether upstream's cache looks at the kubelet's settings too."""

    ALL = "All"
    ONLY_RESOURCES = "OnlyResources"


class PreemptionMode(StrEnum):
    """Whether upstream simulates evictions."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"


class ResourceWeight(Model):
    """What a resource counts in the score."""

    name: Annotated[str, Field(min_length=1, max_length=316, description="The resource.")]
    weight: Annotated[
        int, Field(ge=0, le=100, description="Its weight; 0 counts as 1, as upstream has it.")
    ] = 1


_CPU_AND_MEMORY = (ResourceWeight(name="cpu"), ResourceWeight(name="memory"))


class NumaScoringStrategy(Model):
    """How fitting nodes are compared."""

    type: Annotated[
        NumaStrategy,
        Field(
            description="LeastAllocated spreads, MostAllocated packs, BalancedAllocation evens "
            "resources out, LeastNUMANodes wants few and near zones, PredictedZone packs the zone "
            "that the kubelet will take."
        ),
    ] = NumaStrategy.LEAST_ALLOCATED
    resources: Annotated[
        tuple[ResourceWeight, ...],
        Field(max_length=64, description="Weights; empty: cpu 1, memory 1. Others count 1."),
    ] = _CPU_AND_MEMORY


class NumaCache(Model):
    """Arguments of upstream's cache; they count with books Upstream only."""

    foreign_pods_detect: Annotated[
        ForeignPodsDetect, Field(description="Which foreign pods make a node unreliable.")
    ] = ForeignPodsDetect.ALL
    resync_method: Annotated[
        ResyncMethod, Field(description="Which pods the fingerprint is taken over.")
    ] = ResyncMethod.AUTODETECT
    informer_mode: Annotated[
        InformerMode, Field(description="Dedicated counts finished pods, Shared does not.")
    ] = InformerMode.DEDICATED
    resync_scope: Annotated[
        ResyncScope, Field(description="All: a changed kubelet setting is taken over at once.")
    ] = ResyncScope.ALL


class NumaSettings(Model):
    """Settings of the NUMA concern; the names of upstream's arguments are kept."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 1
    scoring_strategy: Annotated[
        NumaScoringStrategy, Field(description="How fitting nodes are compared.")
    ] = NumaScoringStrategy()
    books: Annotated[
        NumaBooks | None,
        Field(
            description="Predicted (the default): a pod that the report does not count yet is taken "
            "off the zone that its kubelet will choose. Upstream: one of upstream's three modes, as "
            "cacheResyncPeriodSeconds and discardReservedNodes say. One for the cluster: of the "
            "policies that name it, the most important counts, with its cache arguments."
        ),
    ] = None
    cache_resync_period_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=86400,
            description="With books Upstream: above 0, pods that no report counts are taken off "
            "every zone (over-reserve); 0: they are not taken off (passthrough).",
        ),
    ] = 0
    discard_reserved_nodes: Annotated[
        bool,
        Field(
            description="With books Upstream: a node with a placed pod that is not bound yet takes "
            "no other. Beats cacheResyncPeriodSeconds."
        ),
    ] = False
    cache: Annotated[NumaCache, Field(description="More arguments of upstream's cache.")] = (
        NumaCache()
    )
    preemption_mode: Annotated[
        PreemptionMode,
        Field(
            description="Taken over from old configurations; Berthmaster evicts nobody for a pod "
            "that waits, so both values act alike."
        ),
    ] = PreemptionMode.DISABLED
    strict_upstream: Annotated[
        bool, Field(description="Decide as upstream does, its known defects included.")
    ] = False
    when_missing: Annotated[
        WhenMissing,
        Field(
            description="Nodes without NodeResourceTopology. Pass: take pods, score 0. PreferKnown: "
            "the same, and every other node scores more. Refuse: take no pods that are aligned."
        ),
    ] = WhenMissing.PASS
    when_stale: Annotated[
        WhenStale,
        Field(
            description="Nodes whose topology does not reflect what runs there for longer than "
            "staleAfter. Use: our own books fill the gap. Refuse: take no pods that are aligned."
        ),
    ] = WhenStale.USE
    stale_after: Annotated[
        Duration,
        Field(
            description="How long a started pod may be missing from the topology.",
            json_schema_extra={"default": "180s"},
        ),
    ] = Fraction(180)
    restricted: Annotated[
        RestrictedPolicy | None,
        Field(
            description="Kubelets with policy restricted. Pass: nothing is refused, as upstream. "
            "Predict: refused where the kubelet would refuse. Unset: Pass with books Upstream or "
            "strictUpstream, else Predict."
        ),
    ] = None
    aligned_resources: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=316)], ...],
        Field(
            max_length=64,
            description="Which of cpu, memory and hugepages-* the kubelets align; empty: found out "
            "from each node's topology.",
        ),
    ] = ()

    @property
    def is_upstream(self) -> bool:
        """Return whether this policy asks for upstream's books."""
        return self.books is NumaBooks.UPSTREAM
