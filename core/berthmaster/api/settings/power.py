"""Settings of the power concern."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from berthmaster.api.schema import Cores, Duration, Model


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
            "it, at 100. The smaller of this and minDifferenceShare counts.",
        ),
    ] = 1.0
    min_difference_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="LeastIncrease: the same as a share of what the pod costs on the best node, "
            "so that small pods, which cost less than a watt, find their node too.",
        ),
    ] = 0.01
    learn_usage: Annotated[
        bool,
        Field(
            description="LeastIncrease: count the share of its request that pods of the cluster use "
            "by the metrics, a tenth at least; false: the whole request."
        ),
    ] = True
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
