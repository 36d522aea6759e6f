"""PlacementPolicy: which pods are placed, how, and with which settings for each concern.

Every field has a documented default, so that a cluster without policies works. For one pod the
policy of the highest priority counts, then the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from berthmaster.api.names import DEFAULT_SCHEDULER
from berthmaster.api.schema import Cores, Duration, LabelSelector, Model, Rate
from berthmaster.api.xpu_names import DEFAULT_NAMES, XPUNames


class Mode(StrEnum):
    """What the answer does to the pod."""

    REQUIRED = "required"
    PREFERRED = "preferred"
    BIND = "bind"
    OBSERVE = "observe"
    OFF = "off"


class OnInvalid(StrEnum):
    """What happens to a pod whose request cannot be understood."""

    REFUSE = "refuse"
    WAIT = "wait"


class Strategy(StrEnum):
    """Which of two fitting nodes is better: the emptier or the fuller one."""

    LEAST_ALLOCATED = "LeastAllocated"
    MOST_ALLOCATED = "MostAllocated"


class TaintEffect(StrEnum):
    """The effects that keep pods away."""

    NO_SCHEDULE = "NoSchedule"
    NO_EXECUTE = "NoExecute"


class ExclusiveTaint(Model):
    """A taint of nodes on which nobody but Berthmaster places pods."""

    key: Annotated[str, Field(min_length=1, max_length=316, description="The taint's key.")]
    value: Annotated[str, Field(max_length=63, description="The taint's value.")] = ""
    effect: Annotated[TaintEffect, Field(description="The taint's effect.")] = (
        TaintEffect.NO_SCHEDULE
    )

    def __str__(self) -> str:
        value = f"={self.value}" if self.value else ""
        return f"{self.key}{value}:{self.effect}"


class BlockSizePolicy(StrEnum):
    """Which block sizes a pod may name."""

    STRICT = "Strict"
    NEAREST = "Nearest"


class UnknownModel(StrEnum):
    """What becomes of a disk for which no model is known."""

    REFUSE = "Refuse"
    DEFAULT = "Default"


BlockSize = Literal["512", "1k", "4k", "8k", "16k", "32k"]


class DefaultRequest(Model):
    """What pods ask of a disk that say nothing themselves."""

    read: Annotated[Rate, Field(description="Bytes read per second.")]
    write: Annotated[Rate, Field(description="Bytes written per second.")]
    block_size: Annotated[BlockSize, Field(description="The size of an access.")] = "4k"


class DiskIOSettings(Model):
    """Settings of the disk IO concern."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 1
    strategy: Annotated[Strategy, Field(description="Which fitting disk is better.")] = (
        Strategy.LEAST_ALLOCATED
    )
    ns_white_list: Annotated[
        tuple[Annotated[str, Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)], ...],
        Field(
            description="Namespaces whose pods are neither limited nor counted. "
            "The lists of all policies together form the cluster's list.",
            max_length=256,
        ),
    ] = ()
    block_size_policy: Annotated[
        BlockSizePolicy,
        Field(
            description="Strict: only 512, 1k, 4k, 8k, 16k and 32k. Nearest: any size, also as 4K, "
            "4Ki, 4096 or 4096B, counts as the next lower one of these."
        ),
    ] = BlockSizePolicy.STRICT
    default_block_size: Annotated[
        BlockSize | None,
        Field(description="Block size of a request that names none; absent: it is refused."),
    ] = None
    default_request: Annotated[
        DefaultRequest | None,
        Field(
            description="What a pod without a request asks of nodes whose disks are known; absent: "
            "5Mi read and 5Mi write, whatever the block size."
        ),
    ] = None
    unknown_model: Annotated[
        UnknownModel,
        Field(
            description="A disk without a model. Refuse: takes no pods. Default: each byte counts "
            "once, whatever the block size."
        ),
    ] = UnknownModel.REFUSE
    reserve_percent: Annotated[
        int,
        Field(ge=0, le=90, description="Share of each disk's capacity that pods leave free."),
    ] = 0
    stale_after: Annotated[
        Duration,
        Field(
            description="A driver without a sign of life for so long is stale: its report is set "
            "aside for our own books. The shortest of all policies counts for the cluster.",
            json_schema_extra={"default": "60s"},
        ),
    ] = Fraction(60)
    stale_safety_percent: Annotated[
        int,
        Field(
            ge=0,
            le=90,
            description="Share of a disk's capacity that is not given out while its driver is "
            "stale. The largest of all policies counts for the cluster.",
        ),
    ] = 0


class ResourcesSettings(Model):
    """Settings of the resources concern."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 0


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


class DeviceStrategy(StrEnum):
    """Which devices of a node a share gets."""

    BINPACK = "Binpack"
    SPREAD = "Spread"
    NUMA_NODE = "NUMANode"
    BOARD = "Board"


class XPUNodeStrategy(StrEnum):
    """Which of two nodes is better for devices."""

    LEAST_FRAGMENT = "LeastFragment"
    BINPACK = "Binpack"
    SPREAD = "Spread"


class TopologyScore(StrEnum):
    """Which cards count as busy in the score of whole cards."""

    DOCUMENTED = "Documented"
    UPSTREAM = "Upstream"


class XPUSettings(Model):
    """Settings of the XPU concern."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 1
    device_strategy: Annotated[
        DeviceStrategy,
        Field(
            description="Devices of a share. Binpack: those with the least free memory that fit. "
            "Spread: those with the most. NUMANode: all on one NUMA node if possible, then Binpack. "
            "Board: all on one board if possible, then Binpack."
        ),
    ] = DeviceStrategy.BINPACK
    node_strategy: Annotated[
        XPUNodeStrategy,
        Field(
            description="Nodes. LeastFragment: that which keeps the largest free device. Binpack: "
            "the fuller. Spread: the emptier. Whole cards: that which needs the fewest further jobs "
            "to be full, with Spread the contrary."
        ),
    ] = XPUNodeStrategy.LEAST_FRAGMENT
    topology_score: Annotated[
        TopologyScore,
        Field(
            description="Whole cards: Documented counts all busy cards, Upstream those of the new "
            "pod alone, as HAMi's code does."
        ),
    ] = TopologyScore.DOCUMENTED
    max_handles: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="Most handles of a node's driver, one per card and one per slice; 0: not "
            "checked.",
        ),
    ] = 0
    plugins_without_identity: Annotated[
        tuple[Literal["xpushare", "hami-kunlun", "hami-vxpu"], ...],
        Field(
            max_length=3,
            description="Dialects whose device plugin is not told which pod it serves, and takes "
            "the oldest that waits: of pods that it could mistake for each other, one at a time "
            "goes to a node.",
        ),
    ] = ("xpushare", "hami-kunlun", "hami-vxpu")
    stale_after: Annotated[
        Duration,
        Field(
            description="How old an agent's heartbeat in NodeXPU may grow before what device plugins "
            "say counts instead. The shortest of all policies counts for the cluster.",
            json_schema_extra={"default": "90s"},
        ),
    ] = Fraction(90)
    names: Annotated[
        XPUNames | None,
        Field(
            description="What the dialects call things; absent: as xpushare and HAMi do. One for the "
            "cluster: of the policies that name it, the most important counts."
        ),
    ] = None

    @property
    def names_in_force(self) -> XPUNames:
        """Return the names, which are the same in every policy that `PolicySet.choose` returns."""
        return self.names or DEFAULT_NAMES


class DatasetTiers(Model):
    """What a node scores for a dataset by how near its cache is."""

    node: Annotated[int, Field(ge=0, le=100, description="The cache is on the node itself.")] = 100
    zone: Annotated[int, Field(ge=0, le=100, description="In the node's zone and region.")] = 50
    region: Annotated[
        int, Field(ge=0, le=100, description="In the node's region; 0: as upstream.")
    ] = 25

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if not self.node >= self.zone >= self.region:
            raise ValueError(
                f"expected node >= zone >= region, found {self.node}, {self.zone}, {self.region}"
            )
        return self


class FilesystemPolicy(StrEnum):
    """What becomes of nodes that do not have the data of a file-system dataset."""

    REQUIRE = "Require"
    PREFER = "Prefer"


class GatewayReading(StrEnum):
    """What tells that a gateway's node is overloaded."""

    DISK_IO = "DiskIO"
    NONE = "None"


class GatewayOverload(Model):
    """When a gateway's node is busy; its own tier is then that of its zone."""

    reading: Annotated[
        GatewayReading,
        Field(
            description="DiskIO: what the IO driver reports as used of the busiest disk. None: no node "
            "is ever busy by a reading."
        ),
    ] = GatewayReading.DISK_IO
    above_percent: Annotated[
        int, Field(ge=1, le=100, description="Busy when the reading is above this.")
    ] = 80
    below_percent: Annotated[
        int, Field(ge=0, le=100, description="Not busy any more when it is below this.")
    ] = 65
    after: Annotated[
        Duration,
        Field(
            description="For how long the reading has to be above the line.",
            json_schema_extra={"default": "60s"},
        ),
    ] = Fraction(60)

    @model_validator(mode="after")
    def _has_a_gap(self) -> Self:
        if self.below_percent > self.above_percent:
            raise ValueError(
                f"expected belowPercent <= abovePercent, found {self.below_percent} and "
                f"{self.above_percent}"
            )
        return self


class DatasetSettings(Model):
    """Settings of the dataset concern."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 1
    tiers: Annotated[
        DatasetTiers, Field(description="Scores by nearness; the nearest location counts.")
    ] = DatasetTiers()
    filesystem: Annotated[
        FilesystemPolicy,
        Field(
            description="Datasets without a gateway. Require: pods go only where the data are. "
            "Prefer: nodes near the data score more. A pod's annotation berthmaster.io/dataset "
            "(require or prefer) beats this."
        ),
    ] = FilesystemPolicy.REQUIRE
    claims: Annotated[
        bool,
        Field(
            description="Whether a claim of a dataset's name counts as using it, without labels."
        ),
    ] = True
    spare_data_locations: Annotated[
        bool,
        Field(
            description="With a gateway, score nodes that hold the data behind it one less, so that "
            "data do not cross their link twice."
        ),
    ] = False
    pods_per_gateway: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="So many pods placed on a gateway's node for its data make it busy, before a "
            "reading shows it; 0: they are not counted.",
        ),
    ] = 0
    hold: Annotated[
        Duration,
        Field(
            description="For how long a pod waits at its gate for the cache of a dataset that is still "
            "being built, where it names the dataset by label; 0s: not at all.",
            json_schema_extra={"default": "0s"},
        ),
    ] = Fraction(0)
    mounts: Annotated[
        bool,
        Field(
            description="Whether we mount the datasets that labels name, for clusters that run Datashim's "
            "operator and not its label webhook; false: it does."
        ),
    ] = False
    overload: Annotated[
        GatewayOverload | None,
        Field(
            description="When a gateway's node is busy by a reading. One for the cluster: of the policies "
            "that name it, the most important counts; absent everywhere: the defaults."
        ),
    ] = None


class PowerRule(StrEnum):
    """How nodes are compared by what a pod would cost there."""

    LEAST_INCREASE = "LeastIncrease"
    WAO_V1 = "WAOv1"
    WAO_V2 = "WAOv2"
    PEAKS = "Peaks"


class CpuUsageFormat(StrEnum):
    """How CPU usage is put to a model server of WAO's second generation."""

    RAW = "Raw"
    PERCENT = "Percent"


class UnknownNodes(StrEnum):
    """How nodes rank whose power is not known."""

    NEUTRAL = "Neutral"
    LAST = "Last"


class PowerSettings(Model):
    """Settings of the power concern; the names of WAO's arguments are kept."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 1
    rule: Annotated[
        PowerRule,
        Field(
            description="LeastIncrease: the fewest additional watts, of the whole pod. WAOv1, WAOv2, "
            "Peaks: those systems' own arithmetic."
        ),
    ] = PowerRule.LEAST_INCREASE
    strict_upstream: Annotated[
        bool, Field(description="Decide as upstream does, its known defects included.")
    ] = False
    min_difference_watts: Annotated[
        float,
        Field(
            ge=0,
            le=10000,
            description="LeastIncrease: nodes that cost at most so much more than the best tie with "
            "it, at 100.",
        ),
    ] = 1.0
    watts_for_zero: Annotated[
        float | None,
        Field(
            gt=0,
            le=100000,
            description="LeastIncrease: so many watts above the tie score 0, and between them the "
            "score falls evenly; absent: it falls by the ratio of the increases.",
        ),
    ] = None
    unknown_nodes: Annotated[
        UnknownNodes,
        Field(
            description="LeastIncrease: nodes whose power is not known. Neutral: 50, below the best "
            "known one. Last: 0."
        ),
    ] = UnknownNodes.NEUTRAL
    default_request: Annotated[
        Cores,
        Field(
            description="LeastIncrease: CPU that a pod without a request counts.",
            json_schema_extra={"default": "100m"},
        ),
    ] = 100_000_000
    pod_usage_assumption: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="WAOv2: share of its CPU that a pod counts that is bound and not running; "
            "0 means 0.5.",
        ),
    ] = 0.5
    cpu_usage_format: Annotated[
        CpuUsageFormat | None,
        Field(
            description="How CPU usage is put to V2InferenceProtocol servers: cores or percent of "
            "capacity. One for the cluster: of the policies that name it, the most important "
            "counts; absent everywhere: Raw."
        ),
    ] = None
    score_base: Annotated[
        int, Field(ge=0, le=100, description="WAOv2: score of the worst node that is known.")
    ] = 20
    stale_after: Annotated[
        Duration,
        Field(
            description="A reading older than this is not reckoned with. The shortest of all "
            "policies counts for the cluster.",
            json_schema_extra={"default": "90s"},
        ),
    ] = Fraction(90)


class PodSpreadSettings(Model):
    """Settings of the podspread concern, WAO's way of spreading the first part of a workload."""

    owner_annotation: Annotated[
        bool,
        Field(
            description="Let the annotation of the ReplicaSet do, which is that of its Deployment, "
            "where the pod carries none."
        ),
    ] = False
    strict_upstream: Annotated[
        bool, Field(description="Count as upstream does, its known defects included.")
    ] = False


class ConcernSettings(Model):
    """Settings per concern."""

    diskio: DiskIOSettings = DiskIOSettings()
    numa: NumaSettings = NumaSettings()
    xpu: XPUSettings = XPUSettings()
    dataset: DatasetSettings = DatasetSettings()
    podspread: PodSpreadSettings = PodSpreadSettings()
    power: PowerSettings = PowerSettings()
    resources: ResourcesSettings = ResourcesSettings()


class PlacementPolicySpec(Model):
    """What a policy says."""

    priority: Annotated[
        int,
        Field(
            ge=-1_000_000,
            le=1_000_000,
            description="The highest of the policies that select a pod counts.",
        ),
    ] = 0
    mode: Annotated[
        Mode, Field(description="What the answer does to the pods that this policy selects.")
    ] = Mode.REQUIRED
    namespace_selector: Annotated[
        LabelSelector | None, Field(description="Namespaces whose pods are placed.")
    ] = None
    pod_selector: Annotated[LabelSelector | None, Field(description="Pods that are placed.")] = None
    scheduler_names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...],
        Field(
            max_length=64,
            description="Old scheduler names whose pods are placed; the name is replaced by "
            "default-scheduler when the pod is created.",
        ),
    ] = ()
    resource_names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=316)], ...],
        Field(
            max_length=32,
            description="Resources, such as baidu.com/xpu-mem: pods are placed that ask for one of "
            "them in any container.",
        ),
    ] = ()
    on_invalid: Annotated[
        OnInvalid, Field(description="refuse: at creation. wait: the pod waits and says why.")
    ] = OnInvalid.REFUSE
    pin_patience: Annotated[
        Duration,
        Field(
            description="How long a placed pod may be Unschedulable before it is given up.",
            json_schema_extra={"default": "60s"},
        ),
    ] = Fraction(60)
    exclusive_taints: Annotated[
        tuple[ExclusiveTaint, ...],
        Field(
            max_length=16,
            description="Taints of nodes on which nobody but Berthmaster places pods: there, and "
            "only there, pods of mode bind get their node at once, past kube-scheduler. The lists "
            "of all policies together form the cluster's list.",
        ),
    ] = ()
    concerns: ConcernSettings = ConcernSettings()

    @property
    def hold_s(self) -> float:
        """Return for how long a pod may wait for the cache of a dataset."""
        return float(self.concerns.dataset.hold)

    def without_hold(self) -> PlacementPolicySpec:
        """Return the same for a pod that waits for no cache, or has waited for long enough."""
        if not self.concerns.dataset.hold:
            return self
        dataset = self.concerns.dataset.model_copy(update={"hold": Fraction(0)})
        concerns = self.concerns.model_copy(update={"dataset": dataset})
        return self.model_copy(update={"concerns": concerns})

    @property
    def selects_anything(self) -> bool:
        """Return whether the policy opts pods in; one without selectors only gives settings."""
        return bool(
            self.namespace_selector is not None
            or self.pod_selector is not None
            or self.scheduler_names
            or self.resource_names
        )


class PlacementPolicy(Model):
    """A named policy."""

    name: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    spec: PlacementPolicySpec = PlacementPolicySpec()

    def selects(
        self,
        labels: Mapping[str, str],
        namespace_labels: Mapping[str, str],
        *,
        scheduler_name: str = DEFAULT_SCHEDULER,
        resources: frozenset[str] = frozenset(),
    ) -> bool:
        """Return whether the policy covers a pod.

        `scheduler_name` is the one that the pod was created with, before a policy replaced it;
        `resources` are those that its containers ask for.
        """
        spec = self.spec
        if spec.scheduler_names and scheduler_name not in spec.scheduler_names:
            return False
        if spec.resource_names and resources.isdisjoint(spec.resource_names):
            return False
        if spec.namespace_selector and not spec.namespace_selector.matches(namespace_labels):
            return False
        return spec.pod_selector is None or spec.pod_selector.matches(labels)


DEFAULT_POLICY = PlacementPolicy(name="")


def policy_from_manifest(manifest: Mapping[str, Any]) -> PlacementPolicy:
    """Build a policy from a parsed object.

    Raises:
        pydantic.ValidationError: a field is wrong; the error lists the paths.
    """
    metadata = manifest.get("metadata") or {}
    return PlacementPolicy(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        resource_version=metadata.get("resourceVersion", ""),
        spec=PlacementPolicySpec.model_validate(manifest.get("spec") or {}),
    )


def find_xpu_names(specs: Iterable[PlacementPolicySpec]) -> XPUNames:
    """Return the names of the XPU dialects: of policies by importance, those of the first with some."""
    named = (it.concerns.xpu.names for it in specs)
    return next((it for it in named if it is not None), DEFAULT_NAMES)


class PolicySet:
    """All policies of a cluster together: which one counts for a pod, and what all say jointly.

    The disk IO white lists are one list for the cluster, so each policy that `choose` returns
    carries all of them; so it does the names of the XPU dialects. One list are the taints of exclusive
    nodes, too: `exclusive_taints`.
    """

    def __init__(self, policies: Iterable[PlacementPolicy] = ()) -> None:
        ordered = sorted(policies, key=lambda it: (-it.spec.priority, it.name))
        self.white_list = tuple(
            sorted({name for it in ordered for name in it.spec.concerns.diskio.ns_white_list})
        )
        self.exclusive_taints = tuple(
            dict.fromkeys(taint for it in ordered for taint in it.spec.exclusive_taints)
        )
        self.xpu_names = find_xpu_names(it.spec for it in ordered)
        self._policies = tuple(self._with_joint(it) for it in ordered)
        self._default = self._with_joint(DEFAULT_POLICY)

    @property
    def specs(self) -> tuple[PlacementPolicySpec, ...]:
        """Return what each policy says, the most important first."""
        return tuple(policy.spec for policy in self._policies)

    def choose(
        self,
        labels: Mapping[str, str],
        namespace_labels: Mapping[str, str],
        *,
        scheduler_name: str = DEFAULT_SCHEDULER,
        resources: frozenset[str] = frozenset(),
    ) -> PlacementPolicy:
        """Return the policy that counts: highest priority, then name; else the defaults.

        A policy without selectors counts for every pod that asks by itself.
        """
        for policy in self._policies:
            if policy.selects(
                labels, namespace_labels, scheduler_name=scheduler_name, resources=resources
            ):
                return policy
        return self._default

    def taken_over_by(
        self,
        labels: Mapping[str, str],
        namespace_labels: Mapping[str, str],
        *,
        scheduler_name: str = DEFAULT_SCHEDULER,
        resources: frozenset[str] = frozenset(),
    ) -> PlacementPolicy | None:
        """Return the policy that opts in a pod which does not ask by itself, if there is one."""
        for policy in self._policies:
            if policy.spec.selects_anything and policy.selects(
                labels, namespace_labels, scheduler_name=scheduler_name, resources=resources
            ):
                return policy
        return None

    def __iter__(self) -> Iterator[PlacementPolicy]:
        return iter(self._policies)

    def _with_joint(self, policy: PlacementPolicy) -> PlacementPolicy:
        diskio = policy.spec.concerns.diskio.model_copy(update={"ns_white_list": self.white_list})
        xpu = policy.spec.concerns.xpu.model_copy(update={"names": self.xpu_names})
        concerns = policy.spec.concerns.model_copy(update={"diskio": diskio, "xpu": xpu})
        spec = policy.spec.model_copy(update={"concerns": concerns})
        return policy.model_copy(update={"spec": spec})
