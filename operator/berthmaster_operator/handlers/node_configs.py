"""WAO's NodeConfigs and NodeConfigTemplates of both groups, which differ in nothing but the group.

Read only: templates are rendered in memory and nothing is written back, so upstream's own controller
may go on or be gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.power import node_config_from_manifest, template_from_manifest
from berthmaster_operator.power.book import ObjectKey, PowerBook

CONFIGS, TEMPLATES = "nodeconfigs", "nodeconfigtemplates"
PATHS = {
    (group, plural): f"/apis/{group}/v1beta1/{plural}"
    for group in names.WAO_GROUPS
    for plural in (CONFIGS, TEMPLATES)
}


def key_of(group: str, manifest: Mapping[str, Any]) -> ObjectKey:
    """Return what tells an object from others of its kind."""
    metadata = manifest.get("metadata") or {}
    return (group, str(metadata.get("namespace", "")), str(metadata.get("name", "")))


def uid_of(manifest: Mapping[str, Any]) -> str:
    """Return what tells an object from its successor."""
    return str((manifest.get("metadata") or {}).get("uid", ""))


def take_config(
    book: PowerBook, group: str, manifest: Mapping[str, Any], *, is_gone: bool = False
) -> None:
    """Hand a NodeConfig on; never raises on odd content."""
    key = key_of(group, manifest)
    if is_gone:
        book.lose_config(key, uid_of(manifest))
    else:
        book.see_config(key, node_config_from_manifest(manifest))


def take_template(
    book: PowerBook, group: str, manifest: Mapping[str, Any], *, is_gone: bool = False
) -> None:
    """Hand a NodeConfigTemplate on; never raises on odd content."""
    key = key_of(group, manifest)
    if is_gone:
        book.lose_template(key, uid_of(manifest))
    else:
        book.see_template(key, template_from_manifest(manifest))


TAKES = {CONFIGS: take_config, TEMPLATES: take_template}


def register(registry: kopf.OperatorRegistry, book: PowerBook) -> None:
    """Have Kopf tell of every change."""
    for group, plural in PATHS:
        _register(registry, book, group, plural)


def _register(registry: kopf.OperatorRegistry, book: PowerBook, group: str, plural: str) -> None:
    take = TAKES[plural]

    async def changed(event: kopf.RawEvent, **_: object) -> None:
        take(book, group, event["object"], is_gone=event["type"] == "DELETED")

    kopf.on.event(group, "v1beta1", plural, registry=registry, id=f"{group}/{plural}")(changed)
