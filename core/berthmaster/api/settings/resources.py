"""Settings of the resources concern."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from berthmaster.api.schema import Model


class ResourcesSettings(Model):
    """Settings of the resources concern."""

    weight: Annotated[
        int, Field(ge=0, le=100, description="Share in the score; 0: breaks ties only.")
    ] = 0
