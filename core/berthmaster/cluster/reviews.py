"""Who may read what a program of ours serves over HTTP: the API server says, request by request.

The caller shows a bearer token. A TokenReview tells whose it is, a SubjectAccessReview whether that one
may use the verb on the path, a `nonResourceURLs` of RBAC, as with kube-rbac-proxy and the metrics of
Kubernetes' own programs. Whoever cannot be asked about is not let in.

Who was let in is remembered for `REMEMBERED_S` by the token's digest, for at most `MOST_REMEMBERED`. A
refusal is asked for anew each time, for `MOST_REVIEWS` callers at once: strangers can neither push out
who is known, nor use up the client's connections, nor press the API server through us.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ApiError, ClusterError

REMEMBERED_S = 60.0
MOST_REMEMBERED = 256
MOST_REVIEWS = 4
REVIEW_TIMEOUT_S = 5.0
LONGEST_TOKEN = 8192
_TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: a status of HTTP and words for who asked."""

    status: int
    text: str


_NO_TOKEN = Refusal(401, "expected the header Authorization: Bearer TOKEN")
_UNKNOWN = Refusal(401, "the API server does not know this token")
_BUSY = Refusal(429, "too many callers are being looked up, try again")
_NOBODY_TO_ASK = Refusal(503, "the API server cannot be asked who you are")


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _Identity(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)


class _Access(msgspec.Struct):
    allowed: bool = False
    denied: bool = False


class Doorkeeper:
    """Lets callers in, or says why not."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[bytes, str, str], float] = {}
        self._reviews = 0

    async def refuse(self, authorization: str, verb: str, path: str) -> Refusal | None:
        """Return why the header's bearer may not use the verb (`get`) on the path, None if they may."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > LONGEST_TOKEN:
            return _NO_TOKEN
        key = (hashlib.sha256(token.encode("utf-8", "replace")).digest(), verb, path)
        if self._known.get(key, 0.0) > self._clock():
            return None
        if self._reviews >= MOST_REVIEWS:
            return _BUSY
        self._reviews += 1
        try:
            refusal = await self._review(token, verb, path)
        except ApiError as error:
            # 400 and 422: what was sent as a token cannot be one.
            refusal = _UNKNOWN if error.status in (400, 422) else _NOBODY_TO_ASK
        except (ClusterError, msgspec.ValidationError):
            refusal = _NOBODY_TO_ASK
        finally:
            self._reviews -= 1
        if refusal is None:
            self._remember(key)
        return refusal

    async def _review(self, token: str, verb: str, path: str) -> Refusal | None:
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        answer = await self._client.create(_TOKEN_REVIEWS, asked, timeout_s=REVIEW_TIMEOUT_S)
        identity = msgspec.convert(answer.get("status") or {}, _Identity)
        user = identity.user
        if not identity.authenticated or not user.username:
            return _UNKNOWN
        spec = {
            "user": user.username,
            "uid": user.uid,
            "groups": user.groups or [],
            "extra": user.extra or {},
            "nonResourceAttributes": {"path": path, "verb": verb},
        }
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": spec,
        }
        answer = await self._client.create(_ACCESS_REVIEWS, asked, timeout_s=REVIEW_TIMEOUT_S)
        access = msgspec.convert(answer.get("status") or {}, _Access)
        if access.allowed and not access.denied:
            return None
        return Refusal(403, f"{user.username} may not {verb} {path}")

    def _remember(self, key: tuple[bytes, str, str]) -> None:
        self._known.pop(key, None)
        while len(self._known) >= MOST_REMEMBERED:
            # The one that was let in longest ago.
            del self._known[next(iter(self._known))]
        self._known[key] = self._clock() + REMEMBERED_S
