"""AdmissionReview of `admission.k8s.io/v1`: the request as it comes in, the answer as it goes out."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from berthmaster.api.objects import Struct

# Both old and new object may be near the storage limit of 1.5 MiB; facts 1.2 gives the number.
MAX_BODY_BYTES = 7 * 1024 * 1024


class GroupVersionKind(Struct, frozen=True):
    """Which kind the object is."""

    group: str = ""
    version: str = ""
    kind: str = ""


class UserInfo(Struct, frozen=True):
    """Who asks."""

    username: str = ""


class AdmissionRequest(Struct, frozen=True):
    """The part of the request that is read; the object stays raw until its kind is known."""

    uid: str
    kind: GroupVersionKind = GroupVersionKind()
    sub_resource: str = ""
    operation: str = ""
    name: str = ""
    namespace: str = ""
    user_info: UserInfo = UserInfo()
    dry_run: bool | None = None
    object: msgspec.Raw = msgspec.Raw(b"null")


class AdmissionReview(Struct, frozen=True):
    """The envelope."""

    api_version: str = ""
    kind: str = ""
    request: AdmissionRequest | None = None


decode_review = msgspec.json.Decoder(AdmissionReview).decode
_encode = msgspec.json.Encoder().encode


def allow(
    uid: str, patch: list[dict[str, Any]] | None = None, *, warnings: tuple[str, ...] = ()
) -> bytes:
    """Return the body of an answer that lets the object pass, changed by a JSON Patch if given."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(_encode(patch)).decode()
    if warnings:
        response["warnings"] = list(warnings)
    return _envelope(response)


def refuse(uid: str, message: str, *, code: int = 422) -> bytes:
    """Return the body of an answer that refuses the object with a message for its creator."""
    status = {"message": message, "code": code, "reason": "Invalid"}
    return _envelope({"uid": uid, "allowed": False, "status": status})


def _envelope(response: dict[str, Any]) -> bytes:
    return _encode(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    )
