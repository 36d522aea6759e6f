"""`ungate` removes our gate and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berthmaster.api.names import GATE
from berthmaster.cli import output
from berthmaster.cli.ungating import Outcome, Ungated, build_report, ungate_all, ungate_pod
from berthmaster.cluster.client import ApiError, Client
from cli.harbour import PODS, furnish, manifest
from support.fake_api import Cut, FakeApi, Json, Refusal

POD_PATH = "/api/v1/namespaces/default/pods/pod1"


def sent_patches(api: FakeApi) -> list[list[dict[str, object]]]:
    return [json.loads(it.body) for it in api.requests if it.method == "PATCH"]


async def test_patch_tests_uid_and_gate_before_removing() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest(gates=("other", GATE)))

        result = await ungate_pod(client, "default", "pod1")

    assert result.outcome is Outcome.UNGATED
    assert result.left == ("other",)
    assert sent_patches(api) == [
        [
            {"op": "test", "path": "/metadata/uid", "value": "uid-pod1"},
            {"op": "test", "path": "/spec/schedulingGates/1/name", "value": GATE},
            {"op": "remove", "path": "/spec/schedulingGates/1"},
        ]
    ]


async def test_pod_without_our_gate_is_left_alone() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest(gates=("other",)))

        result = await ungate_pod(client, "default", "pod1")

    assert result.outcome is Outcome.NO_GATE
    assert sent_patches(api) == []


async def test_changed_pod_is_read_again() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest(gates=(GATE,)))
        api.fail_next("PATCH", POD_PATH, Refusal(422, "Invalid", "test failed"))

        result = await ungate_pod(client, "default", "pod1")

    assert result.outcome is Outcome.UNGATED
    assert len(sent_patches(api)) == 2


async def test_lost_answer_is_looked_up() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest(gates=(GATE,)))
        api.fail_next("PATCH", POD_PATH, Cut.AFTER)

        result = await ungate_pod(client, "default", "pod1")

    assert result.outcome is Outcome.UNGATED


async def test_missing_pod_is_an_error() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest("another"))

        with pytest.raises(ApiError) as caught:
            await ungate_pod(client, "default", "pod1")

    assert caught.value.is_not_found


async def test_all_takes_gated_pods_only() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(
            api,
            manifest("pod1", gates=(GATE,)),
            manifest("pod2", gates=("other",)),
            manifest("pod3", gates=(GATE,), namespace="team-b"),
            manifest("pod4"),
        )
        api.fail_next("PATCH", POD_PATH, Refusal(403, "Forbidden", "no"))

        results = await ungate_all(client)

    assert results is not None
    assert [(it.key, it.outcome) for it in results] == [
        ("default/pod1", Outcome.FAILED),
        ("team-b/pod3", Outcome.UNGATED),
    ]
    assert [it.query["fieldSelector"] for it in api.requests if it.path == PODS] == [
        "status.phase=Pending"
    ]


async def test_all_lets_the_most_important_go_first_then_the_oldest() -> None:
    def gated(name: str, priority: int | None, created: str) -> Json:
        found = manifest(name, gates=(GATE,), priority=priority)
        found["metadata"]["creationTimestamp"] = created
        return found

    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(
            api,
            gated("young", None, "2026-01-02T00:00:00Z"),
            gated("old", 0, "2026-01-01T00:00:00Z"),
            gated("important", 1000, "2026-01-03T00:00:00Z"),
        )

        results = await ungate_all(client)

    assert results is not None
    assert [it.key for it in results] == ["default/important", "default/old", "default/young"]


async def test_all_asks_before_it_changes_anything() -> None:
    asked: list[list[str]] = []

    def refuse(keys: list[str]) -> bool:
        asked.append(keys)
        return False

    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest("pod1", gates=(GATE,)))
        assert await ungate_all(client, confirm=refuse) is None
        assert {it.method for it in api.requests} == {"GET"}

        api.remove(PODS, "pod1")
        assert await ungate_all(client, confirm=refuse) == []
    assert asked == [["default/pod1"]]


async def test_all_has_few_requests_under_way_at_once_whatever_there_is() -> None:
    """1,000 pods: the API server is asked by a few hands, and every pod is let go once."""
    at_once = highest = 0
    pods = [manifest(f"pod-{number:04}", gates=(GATE,)) for number in range(1000)]

    class Counting(Client):
        async def patch(self, *arguments: Any, **options: Any) -> Any:
            nonlocal at_once, highest
            at_once += 1
            highest = max(highest, at_once)
            try:
                return await super().patch(*arguments, **options)
            finally:
                at_once -= 1

    async with FakeApi() as api, Counting.at(api.url) as client:
        furnish(api, *pods)
        results = await ungate_all(client)

    assert results is not None
    assert [it.outcome for it in results] == [Outcome.UNGATED] * 1000
    assert sum(it.method == "PATCH" for it in api.requests) == 1000
    assert 2 <= highest <= 16


async def test_dry_run_is_passed_on() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        furnish(api, manifest(gates=(GATE,)))

        await ungate_pod(client, "default", "pod1", is_dry_run=True)

    assert [it.query for it in api.requests if it.method == "PATCH"] == [{"dryRun": "All"}]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "No pod carries our gate."),
        (
            [Ungated(key="a/b", outcome=Outcome.UNGATED)],
            "a/b is ungated; kube-scheduler places it by itself.",
        ),
        (
            [Ungated(key="a/b", outcome=Outcome.UNGATED, left=("x",))],
            "a/b is ungated; still held by x.",
        ),
        (
            [Ungated(key="a/b", outcome=Outcome.NO_GATE)],
            "a/b carries no gate of ours, nothing was changed.",
        ),
        (
            [
                Ungated(key="a/b", outcome=Outcome.UNGATED),
                Ungated(key="a/c", outcome=Outcome.FAILED, error="403 Forbidden: no"),
            ],
            "1 of 2 gated pods ungated.",
        ),
    ],
)
def test_report_says_what_was_done(results: list[Ungated], expected: str) -> None:
    report = build_report(results)

    assert "can be" not in report.sentence
    assert "can be ungated" in build_report(results, is_dry_run=True).sentence or not any(
        it.outcome is Outcome.UNGATED for it in results
    )
    assert report.sentence == expected
    warned = "was not checked before" in output.render_plain(report)
    assert warned is any(it.outcome is Outcome.UNGATED for it in results)
