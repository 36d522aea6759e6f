"""One guarded patch of one pod, sent until its fate is known.

The patch tests uid and resourceVersion, so it takes effect at most once, however often it is sent. While
its outcome is unknown it is repeated identically; when a repetition is refused, a look at the pod says
whether an earlier copy had arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Protocol

import msgspec

from berthmaster.api.objects import Pod
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import JsonObject, PatchKind
from berthmaster.cluster.errors import ApiError, ClusterError, OutcomeUnknownError
from berthmaster.cluster.stores import Gets, Patches
from berthmaster.placement import affinity
from berthmaster_webhook.telling import about

logger = logging.getLogger(__name__)

PATCH_TIMEOUT_S = 10.0


class Fate(Enum):
    """What became of a patch."""

    DONE = "done"
    # The pod changed, or the API server does not take the patch: surely without effect.
    REFUSED = "refused"
    # The pod is gone, or another one of its name is there: surely without effect.
    GONE = "gone"
    # We may not, or need not, send any more; an earlier copy may have had its effect, or still may.
    ABANDONED = "abandoned"


class PodStore(Gets, Patches, Protocol):
    """Name the part of `Client` that is needed here."""


def raw_of(pod: Pod) -> dict[str, Any]:
    """Return a decoded pod as plain data.

    What we do not decode is missing, which is why it may only be patched under `affinity.guard`:
    all levels that a pin touches are decoded.
    """
    raw: dict[str, Any] = msgspec.to_builtins(pod)
    return raw


def pod_path(pod: Pod) -> str:
    """Return the path of a pod."""
    return f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}"


async def send_until_known(
    store: PodStore,
    pod: Pod,
    operations: list[affinity.Operation],
    *,
    may_send: Callable[[], bool],
    is_done: Callable[[JsonObject], bool],
    backoff: Backoff,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Fate:
    """Send a patch, guarded by uid and version, until it is known what became of it.

    `may_send` is asked before each copy. `is_done` looks at the stored pod for the patch's effect. `pause` waits between two copies.
    """
    body = [*affinity.guard(raw_of(pod)), *operations]
    path = pod_path(pod)
    was_unknown = False
    while may_send():
        wish_s = None
        try:
            await store.patch(path, body, PatchKind.JSON, timeout_s=PATCH_TIMEOUT_S)
            return Fate.DONE
        except ApiError as error:
            wish_s = error.retry_after_s
            if error.is_unknown:
                was_unknown = True
            elif error.status not in {401, 429, 503}:
                if not was_unknown:
                    return Fate.GONE if error.is_not_found else Fate.REFUSED
                fate = await _look(store, pod, is_done)
                if fate is not None:
                    return fate
            _log(pod, error)
        except ClusterError as error:
            was_unknown = was_unknown or isinstance(error, OutcomeUnknownError)
            _log(pod, error)
        await pause(backoff.next_s(wish_s))
    return Fate.ABANDONED


async def _look(store: PodStore, pod: Pod, is_done: Callable[[JsonObject], bool]) -> Fate | None:
    """Return what became of a patch one of whose copies was refused, None if that cannot be seen."""
    try:
        stored = await store.get(pod_path(pod), timeout_s=PATCH_TIMEOUT_S)
    except ApiError as error:
        return Fate.GONE if error.is_not_found else None
    except ClusterError:
        return None
    if (stored.get("metadata") or {}).get("uid") != pod.metadata.uid:
        return Fate.GONE
    if is_done(stored):
        return Fate.DONE
    # In the version that the patch was made for, so it was not refused for that: an earlier copy may
    # still be under way in the API server.
    is_same = stored["metadata"].get("resourceVersion") == pod.metadata.resource_version
    return Fate.ABANDONED if is_same else Fate.REFUSED


def _log(pod: Pod, error: ClusterError) -> None:
    logger.warning("patch not through yet", extra=about(pod, error=str(error)))
