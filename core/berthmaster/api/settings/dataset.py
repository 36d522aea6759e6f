"""Settings of the dataset concern."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Self

from pydantic import Field, model_validator

from berthmaster.api.schema import Duration, Model


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
    CPU = "CPU"
    NONE = "None"


class GatewayOverload(Model):
    """When a gateway's node is busy; its own tier is then that of its zone."""

    reading: Annotated[
        GatewayReading,
        Field(
            description="DiskIO: what the IO driver reports as used of the busiest disk. CPU: what "
            "metrics.k8s.io says is used of the node's CPUs. None: no node is ever busy by a reading."
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
    avoid_filesystems: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="By how much less a node with the data of a file system scores for pods that name "
            "no dataset; 10 is a mild preference, 0: none.",
        ),
    ] = 0
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
