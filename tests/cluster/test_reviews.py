from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.cluster.client import Client
from berthmaster.cluster.reviews import (
    LONGEST_TOKEN,
    MOST_REMEMBERED,
    MOST_REVIEWS,
    REMEMBERED_S,
    Doorkeeper,
)
from support.fake_api import FakeApi, Hang
from support.review_api import ACCESSES, GOOD_TOKEN, READER, TOKENS, ReviewApi

BEARER = f"Bearer {GOOD_TOKEN}"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[ReviewApi]:
    async with ReviewApi(may=["/metrics"]) as it:
        yield it


def status_of(refusal: Any) -> int:
    return 200 if refusal is None else refusal.status


async def test_who_may_is_let_in_and_asked_for_in_full(api: ReviewApi) -> None:
    assert await Doorkeeper(api.client).refuse(BEARER, "get", "/metrics") is None

    assert api.asked == [TOKENS, ACCESSES]
    assert api.specs[1] == {
        "user": READER,
        "uid": "u",
        "groups": ["system:serviceaccounts"],
        "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", GOOD_TOKEN, f"Bearer {'x' * 8193}"],
)
async def test_without_a_token_nobody_is_asked(api: ReviewApi, header: str) -> None:
    assert status_of(await Doorkeeper(api.client).refuse(header, "get", "/metrics")) == 401
    assert api.asked == []
    assert LONGEST_TOKEN == 8192


async def test_unknown_token_is_401_and_no_right_is_403(api: ReviewApi) -> None:
    door = Doorkeeper(api.client)

    unknown = await door.refuse("Bearer other", "get", "/metrics")
    elsewhere = await door.refuse(BEARER, "get", "/metrics/more")
    other_verb = await door.refuse(BEARER, "head", "/metrics")

    assert status_of(unknown) == 401
    assert status_of(elsewhere) == status_of(other_verb) == 403
    assert elsewhere is not None
    assert READER in elsewhere.text
    assert GOOD_TOKEN not in elsewhere.text


@pytest.mark.parametrize("path", [TOKENS, ACCESSES])
@pytest.mark.parametrize(
    "answer",
    [
        403,
        500,
        503,
        {},
        {"status": None},
        {"status": {"authenticated": "yes", "allowed": "yes"}},
        {"status": {"authenticated": True, "user": {"username": ""}, "allowed": False}},
        {"status": {"authenticated": True, "allowed": True, "denied": True}},
    ],
)
async def test_whatever_is_answered_but_yes_lets_nobody_in(
    api: ReviewApi, path: str, answer: Any
) -> None:
    api.answers[path] = answer

    refusal = await Doorkeeper(api.client).refuse(BEARER, "get", "/metrics")

    assert status_of(refusal) in (401, 403, 503)
    assert GOOD_TOKEN not in str(refusal)


async def test_nobody_to_ask_lets_nobody_in() -> None:
    async with Client.at("http://127.0.0.1:1") as client:
        assert status_of(await Doorkeeper(client).refuse(BEARER, "get", "/metrics")) == 503


async def test_who_was_let_in_is_remembered_for_a_while(api: ReviewApi) -> None:
    now_s = 0.0
    door = Doorkeeper(api.client, clock=lambda: now_s)
    await door.refuse(BEARER, "get", "/metrics")
    api.may = []

    now_s = REMEMBERED_S - 1
    within = await door.refuse(BEARER, "get", "/metrics")
    now_s = REMEMBERED_S
    after = await door.refuse(BEARER, "get", "/metrics")

    assert (status_of(within), status_of(after)) == (200, 403)
    assert len(api.asked) == 4


async def test_a_refusal_is_not_remembered(api: ReviewApi) -> None:
    door, api.may = Doorkeeper(api.client), []
    assert status_of(await door.refuse(BEARER, "get", "/metrics")) == 403

    api.may = ["/metrics"]

    assert await door.refuse(BEARER, "get", "/metrics") is None


async def test_memory_is_bounded_and_not_filled_by_strangers(api: ReviewApi) -> None:
    api.may = [f"/{number}" for number in range(MOST_REMEMBERED + 1)]
    door = Doorkeeper(api.client)
    for path in api.may[:MOST_REMEMBERED]:
        await door.refuse(BEARER, "get", path)
    for number in range(3):
        await door.refuse(f"Bearer stranger-{number}", "get", "/1")
    asked = len(api.asked)

    assert await door.refuse(BEARER, "get", "/0") is None
    assert len(api.asked) == asked
    await door.refuse(BEARER, "get", api.may[-1])
    # It took the place of the one that was let in first.
    assert await door.refuse(BEARER, "get", "/1") is None
    assert len(api.asked) == asked + 2
    await door.refuse(BEARER, "get", "/0")
    assert len(api.asked) == asked + 4


async def test_only_so_many_are_asked_about_at_once() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        door = Doorkeeper(client)
        for _ in range(MOST_REVIEWS):
            api.fail_next("POST", TOKENS, Hang.FOREVER)
        hanging = [
            asyncio.create_task(door.refuse(f"Bearer {number}", "get", "/metrics"))
            for number in range(MOST_REVIEWS)
        ]
        await api.until(lambda: api.count("POST", TOKENS) == MOST_REVIEWS)

        assert status_of(await door.refuse(BEARER, "get", "/metrics")) == 429
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
