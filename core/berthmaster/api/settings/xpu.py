"""Settings of the XPU concern."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from berthmaster.api.schema import Duration, Model
from berthmaster.api.xpu_names import DEFAULT_NAMES, XPUNames


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
    assign_timeout: Annotated[
        Duration,
        Field(
            description="How long a pod may be bound before its device plugin has handed out its "
            "devices, until that is told of; it keeps them. The shortest of all policies counts for the "
            "cluster.",
            json_schema_extra={"default": "300s"},
        ),
    ] = Fraction(300)
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
