"""PowerModel: what nodes draw, as numbers. One that cannot be read is as if it were not there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import kopf
from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.power_models import power_model_from_manifest
from berthmaster_operator.power.book import PowerBook

PLURAL = "powermodels"
PATH = f"/apis/{names.API_VERSION}/{PLURAL}"

logger = logging.getLogger(__name__)


def take(book: PowerBook, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
    """Hand one object on; never raises on odd content, which the schema does not let pass."""
    metadata = manifest.get("metadata") or {}
    name = str(metadata.get("name", ""))
    if is_gone:
        book.lose_model(name, str(metadata.get("uid", "")))
        return
    try:
        model = power_model_from_manifest(manifest)
    except ValidationError as error:
        logger.warning("PowerModel cannot be read", extra={"object": name, "error": str(error)})
        book.lose_model(name)
        return
    book.see_model(model)


def register(registry: kopf.OperatorRegistry, book: PowerBook) -> None:
    """Have Kopf tell of every change."""

    async def power_model_changed(event: kopf.RawEvent, **_: object) -> None:
        take(book, event["object"], is_gone=event["type"] == "DELETED")

    kopf.on.event(names.GROUP, "v1alpha1", PLURAL, registry=registry)(power_model_changed)
