"""PlacementPolicy: which pods are placed, how, and with which settings for each concern.

Every field has a documented default, so that a cluster without policies works. For one pod the
policy of the highest priority counts, then the first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field

from berthmaster.api.names import DEFAULT_SCHEDULER
from berthmaster.api.schema import Duration, LabelSelector, Model
from berthmaster.api.settings.dataset import DatasetSettings
from berthmaster.api.settings.diskio import DiskIOSettings
from berthmaster.api.settings.numa import NumaSettings
from berthmaster.api.settings.podspread import PodSpreadSettings
from berthmaster.api.settings.power import PowerSettings
from berthmaster.api.settings.resources import ResourcesSettings
from berthmaster.api.settings.xpu import XPUSettings
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
