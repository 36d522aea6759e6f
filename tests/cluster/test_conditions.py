from __future__ import annotations

from datetime import UTC, datetime

from berthmaster.cluster.conditions import Condition, condition_patch, merged_conditions

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WAITING = Condition(type="berthmaster.io/Placed", status="False", reason="NoNode", message="0/3")


def old(**changes: str) -> dict[str, object]:
    return {
        "type": "berthmaster.io/Placed",
        "status": "False",
        "reason": "NoNode",
        "message": "0/3",
        "lastTransitionTime": "2025-01-01T00:00:00Z",
        **changes,
    }


def test_new_condition_says_when_and_for_whom() -> None:
    patch = condition_patch(WAITING, [{"type": "Ready", "status": "True"}], now=NOW, uid="u")

    assert patch == {
        "metadata": {"uid": "u"},
        "status": {"conditions": [old(lastTransitionTime="2026-01-02T03:04:05Z")]},
    }


def test_same_condition_needs_no_patch() -> None:
    assert condition_patch(WAITING, [old()], now=NOW) is None
    assert merged_conditions(WAITING, [old()], now=NOW) is None


def test_new_reason_is_no_transition() -> None:
    patch = condition_patch(WAITING, [old(reason="Other")], now=NOW)

    assert patch is not None
    assert "lastTransitionTime" not in patch["status"]["conditions"][0]


def test_new_status_is_a_transition() -> None:
    merged = merged_conditions(WAITING, [{"type": "Ready"}, old(status="True")], now=NOW)

    assert merged == [{"type": "Ready"}, old(lastTransitionTime="2026-01-02T03:04:05Z")]


def test_heartbeat_alone_touches_nothing_else() -> None:
    patch = condition_patch(WAITING, [old()], now=NOW, heartbeat=True)

    assert patch == {
        "status": {
            "conditions": [
                {"type": "berthmaster.io/Placed", "lastHeartbeatTime": "2026-01-02T03:04:05Z"}
            ]
        }
    }
