"""What can go wrong between us and the API server, one class per different reaction of the caller.

    ClusterError
    ├── ConfigurationError     no cluster is configured, or what is configured cannot be read: give up
    ├── ApiError               the API server answered, and the answer is no: read status and reason
    ├── UnreachableError       nothing was changed: the request was never sent, or it only reads
    └── OutcomeUnknownError    a write was sent and its answer is lost: it may have happened or not

Exceptions of aiohttp, of the kubeconfig loader and of JSON decoding never leave this package; they
are the `__cause__` of these. No message contains a header, a token or a request body.
"""

from __future__ import annotations

from collections.abc import Mapping


class ClusterError(Exception):
    """Be the base of all errors that this package raises on purpose."""


class ConfigurationError(ClusterError):
    """Say that there is no usable cluster configuration; trying again does not help."""


class UnreachableError(ClusterError):
    """Say that the API server gave no answer and that no object was changed by the attempt."""


class OutcomeUnknownError(ClusterError):
    """Say that a write was sent but never answered: repeat it identically or read before deciding."""


class ApiError(ClusterError):
    """Carry a refusal of the API server.

    `reason` is the word of Kubernetes' Status object (`Conflict`, `AlreadyExists`, `Expired`, ...),
    empty if the answer was not a Status. `retry_after_s` is the server's wish in seconds, from the
    Retry-After header or else from the Status. `details` is the Status' `details`, as sent.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after_s: float | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.details: Mapping[str, object] = details if details is not None else {}

    @property
    def is_conflict(self) -> bool:
        """Tell whether somebody else changed the object first (409, but not AlreadyExists)."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_already_exists(self) -> bool:
        """Tell whether a create met an object of the same name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_not_found(self) -> bool:
        """Tell whether the object or the kind does not exist."""
        return self.status == 404

    @property
    def is_gone(self) -> bool:
        """Tell whether the resourceVersion or continue token is too old: list anew."""
        return self.status == 410

    @property
    def is_invalid(self) -> bool:
        """Tell whether the object or patch was refused as such (422, also a failed JSON Patch test)."""
        return self.status == 422

    @property
    def is_unknown(self) -> bool:
        """Tell whether the write may have happened nevertheless.

        A 504 is the API server's own "timed out": a webhook or the storage may still finish it. So
        is a 500 whose message says that the storage timed out, hence every 500 counts.
        """
        return self.status in {500, 502, 504}

    @property
    def is_retryable(self) -> bool:
        """Tell whether the same request may succeed later without anything being changed by us."""
        return self.status in {429, 500, 502, 503, 504}
