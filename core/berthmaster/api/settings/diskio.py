"""Settings of the disk IO concern."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from berthmaster.api.schema import Duration, Model, Rate


class Strategy(StrEnum):
    """Which of two fitting nodes is better: the emptier or the fuller one."""

    LEAST_ALLOCATED = "LeastAllocated"
    MOST_ALLOCATED = "MostAllocated"


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
