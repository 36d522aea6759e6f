"""Servers that are dead, slow, broken or hostile cost a bounded time, and say what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from berthmaster_operator.power.fetching import Credentials, Fetcher, FetchError
from berthmaster_operator.power.trust import read_hosts
from support.meters import Meters, serve_meters


@pytest.fixture
async def meters() -> AsyncIterator[Meters]:
    async with serve_meters() as meters:
        yield meters


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(timeout_s=20.0, max_bytes=1000)
    yield fetcher
    await fetcher.close()


async def test_json_and_text_come_whole(meters: Meters, fetcher: Fetcher) -> None:
    meters.answers = {"/a": {"b": [1]}, "/t": "text"}
    secret = Credentials(username="u", password="pass")  # noqa: S106 - of a test

    assert await fetcher.get_json(f"{meters.origin}/a", secret) == {"b": [1]}
    assert await fetcher.get_text(f"{meters.origin}/t") == "text"
    assert meters.asked[0][1] == "Basic dTpwYXNz"
    assert meters.asked[1][1] == ""
    assert "pass" not in repr(secret)


async def test_what_is_posted_arrives(meters: Meters, fetcher: Fetcher) -> None:
    meters.answers = {"/p": lambda _request, body: {"got": body}}

    assert await fetcher.post_json(f"{meters.origin}/p", {"x": 1}) == {"got": {"x": 1}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"x" * 10_000_000, "longer than 1000 bytes"),
        (b"NaN NaN", "no JSON"),
        (b"[" * 900, "no JSON"),
        (web.HTTPFound("http://169.254.169.254/"), "status 302, expected 200"),
        (web.HTTPInternalServerError(text="secret words of a server"), "status 500, expected 200"),
    ],
    ids=["ten-megabytes", "no-json", "deep-json", "redirect", "error"],
)
async def test_answers_that_cannot_be_used(
    meters: Meters, fetcher: Fetcher, answer: object, words: str
) -> None:
    def give(_request: web.Request, _body: object) -> object:
        if isinstance(answer, web.HTTPException):
            raise answer
        return answer

    meters.answers = {"/x": give}

    with pytest.raises(FetchError) as caught:
        await fetcher.get_json(f"{meters.origin}/x")

    assert words in str(caught.value)
    assert "secret words" not in str(caught.value)


async def test_hanging_server_costs_the_deadline(meters: Meters, fetcher: Fetcher) -> None:
    meters.hangs = {"/h"}
    fetcher._timeout_s = 0.5
    begun_s = asyncio.get_running_loop().time()

    with pytest.raises(FetchError, match=r"no answer within 0\.5 s"):
        await fetcher.get_json(f"{meters.origin}/h")

    assert asyncio.get_running_loop().time() - begun_s < 10


async def test_dead_server_is_told(fetcher: Fetcher) -> None:
    with pytest.raises(FetchError, match="cannot be connected to"):
        await fetcher.get_json("http://127.0.0.1:9/")


async def test_url_that_is_none_is_told(fetcher: Fetcher) -> None:
    with pytest.raises(FetchError, match="cannot be fetched"):
        await fetcher.get_json("http://[x/")


async def test_certificates_are_checked(tmp_path: Path) -> None:
    async with serve_meters(tmp_path) as meters:
        meters.answers = {"/a": 1}
        url = f"{meters.origin}/a"
        strict, trusting, blind = (
            Fetcher(),
            Fetcher(ca_file=tmp_path / "ca.pem"),
            Fetcher(unverified=read_hosts("bmc.example, 127.0.0.0/24")),
        )
        try:
            with pytest.raises(FetchError, match="--power-ca-file"):
                await strict.get_json(url)
            assert await trusting.get_json(url) == 1
            assert await blind.get_json(url) == 1
        finally:
            for each in (strict, trusting, blind):
                await each.close()


@pytest.mark.parametrize("text", ["10.0.0.1/8", "http://x", "a b"])
def test_hosts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        read_hosts(text)
