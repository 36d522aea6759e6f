"""What is waited for after an installation is not given up for one refusal, and named at the end."""

from __future__ import annotations

import pytest

from berthmaster.cluster.errors import ApiError, UnreachableError
from berthmaster_sandbox import installing
from berthmaster_sandbox.errors import SandboxError


async def test_refusals_and_a_busy_api_server_are_waited_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception | bool] = [
        ApiError(403, "Forbidden", "no account yet"),
        UnreachableError("too slow"),
        True,
    ]

    async def check() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(installing, "_POLL_S", 0.0)
    await installing._until(check, "pods are not placed")
    assert answers == []


async def test_last_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> bool:
        raise ApiError(403, "Forbidden", "no account yet")

    monkeypatch.setattr(installing, "READY_DEADLINE_S", 0.0)
    with pytest.raises(SandboxError, match=r"pods are not placed: .*no account yet"):
        await installing._until(check, "pods are not placed")
