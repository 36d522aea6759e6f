"""An API server in a dictionary: versions, generations, status subresources, preconditions."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from berthmaster.cluster.client import ApiError, JsonObject, PatchKind, Query
from berthmaster.cluster.events import EventRecorder, ObjectRef


class FakeStore:
    """Objects by path. `writes` lists what was asked; `fail_next` makes requests fail first."""

    def __init__(self) -> None:
        self.objects: dict[str, JsonObject] = {}
        self.writes: list[tuple[str, str]] = []
        self.fail_next: list[Exception] = []
        # Paths of objects whose writes are refused.
        self.refused: set[str] = set()
        self._versions = itertools.count(1)

    def put(self, path: str, obj: JsonObject) -> JsonObject:
        """Store an object as somebody else."""
        before = self.objects.get(path)
        stored = copy.deepcopy(obj)
        version = next(self._versions)
        metadata = stored.setdefault("metadata", {})
        metadata.setdefault("name", path.rsplit("/", 1)[1])
        metadata.setdefault("uid", f"uid-{version}")
        metadata["resourceVersion"] = str(version)
        old_metadata = before["metadata"] if before is not None else {"generation": 0}
        is_changed = before is None or before.get("spec") != stored.get("spec")
        metadata["generation"] = old_metadata["generation"] + is_changed
        self.objects[path] = stored
        return copy.deepcopy(stored)

    async def get(
        self, path: str, query: Query | None = None, *, timeout_s: float = 10.0
    ) -> JsonObject:
        self._fail()
        return copy.deepcopy(self._find(path))

    async def create(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float = 10.0
    ) -> JsonObject:
        self._fail()
        assert isinstance(obj, dict)
        at = f"{path}/{obj['metadata']['name']}"
        self.writes.append(("create", at))
        self._refuse(at)
        if at in self.objects:
            raise ApiError(409, "AlreadyExists", at)
        return self.put(at, obj)

    async def replace(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float = 10.0
    ) -> JsonObject:
        self._fail()
        assert isinstance(obj, dict)
        self.writes.append(("replace", path))
        found = self._find(path)
        if obj["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", path)
        return self.put(path, obj)

    async def patch(
        self,
        path: str,
        body: object,
        kind: PatchKind,
        query: Query | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> JsonObject:
        self._fail()
        assert isinstance(body, dict)
        self.writes.append(("patch", path))
        at = path.removesuffix("/status")
        self._refuse(at)
        if at not in self.objects and kind is PatchKind.APPLY:
            return self.put(at, body)
        found = copy.deepcopy(self._find(at))
        uid = body.get("metadata", {}).get("uid", found["metadata"]["uid"])
        if uid != found["metadata"]["uid"]:
            raise ApiError(409, "Conflict", path)
        if kind is PatchKind.APPLY and at != path:
            merged = _apply_status(found, body["status"])
        elif kind is PatchKind.MERGE:
            wanted = {key: body[key] for key in (("status",) if at != path else ("spec",))}
            merged = _merge(found, wanted)
        else:
            merged = _merge_lists(found, body)
        if merged == found:
            return found
        return self.put(at, merged)

    async def delete(
        self,
        path: str,
        *,
        body: object = None,
        query: Query | None = None,
        timeout_s: float = 10.0,
    ) -> JsonObject:
        self._fail()
        self.writes.append(("delete", path))
        found = self._find(path)
        wanted = body.get("preconditions", {}).get("uid") if isinstance(body, dict) else None
        if wanted is not None and wanted != found["metadata"]["uid"]:
            raise ApiError(409, "Conflict", path)
        return self.objects.pop(path)

    def _find(self, path: str) -> JsonObject:
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.objects[path]

    def _refuse(self, path: str) -> None:
        if path in self.refused:
            raise ApiError(422, "Invalid", f"{path} is refused")

    def _fail(self) -> None:
        if self.fail_next:
            raise self.fail_next.pop(0)


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _apply_status(found: JsonObject, status: JsonObject) -> JsonObject:
    """Take over an applied status; entries of `devices` are merged by index, as a CRD may say."""
    merged: JsonObject = copy.deepcopy(found)
    before = {it["index"]: it for it in merged.get("status", {}).get("devices") or ()}
    devices = [{**before.get(it["index"], {}), **it} for it in status.get("devices", ())]
    merged["status"] = {**merged.get("status", {}), **status, "devices": devices}
    return merged


def _merge_lists(found: JsonObject, body: JsonObject) -> JsonObject:
    """Merge `status.conditions` by type and `webhooks` by name, as the API server does."""
    merged: JsonObject = copy.deepcopy(
        _merge(found, {key: body[key] for key in body if key == "spec"})
    )
    for at, key in (("conditions", "type"), ("webhooks", "name")):
        wanted = body.get("status", {}).get(at) if at == "conditions" else body.get(at)
        if wanted is None:
            continue
        holder = merged.setdefault("status", {}) if at == "conditions" else merged
        entries = {it[key]: it for it in holder.get(at) or ()}
        for entry in wanted:
            if entry.get("$patch") == "delete":
                entries.pop(entry[key], None)
            else:
                entries[entry[key]] = _merge(entries.get(entry[key]), entry)
        holder[at] = list(entries.values())
    return merged


class Notes(EventRecorder):
    """Events as a list of (kind, reason, note)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def record(
        self, regarding: ObjectRef, reason: str, note: str, *, action: str, type_: Any = "Normal"
    ) -> None:
        self.lines.append((regarding.kind, reason, note))
