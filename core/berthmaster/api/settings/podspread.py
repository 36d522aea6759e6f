"""Settings of WAO's PodSpread."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from berthmaster.api.schema import Model


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
