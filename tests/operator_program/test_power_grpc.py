"""TensorFlow Serving asked by gRPC: well, and by servers that are dead, slow, broken or hostile."""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from berthmaster.api.inventory import PowerLink
from berthmaster.api.tf_serving import PREDICT, decode_response, encode_request
from berthmaster_operator import certificates
from berthmaster_operator.handlers import power_models
from berthmaster_operator.power.fetching import Credentials, Fetcher, FetchError
from berthmaster_sandbox.world.tf_serving import Behaviour, Form, TfServing, serve_tf
from operator_program.power_worlds import IPMI, PowerWorld, v1_labels
from support.meters import Meters, serve_meters

ROWS = ((0.0, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (1.0, 0.5, 0.5, 0.5))
QUESTION = encode_request(ROWS, model="konohana", version=1218, signature="s")


@pytest.fixture
async def server() -> AsyncIterator[TfServing]:
    async with serve_tf() as server:
        yield server


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(timeout_s=20.0)
    yield fetcher
    await fetcher.close()


@pytest.fixture
async def world(server: TfServing, fetcher: Fetcher) -> PowerWorld:
    """A node whose NodeConfig names a model on the server, and a PowerModel for where that fails."""
    world = PowerWorld(fetcher)
    endpoint = f"grpc://{server.origin}/v1/models/konohana/versions/1218"
    world.configure(powerConsumption={"type": "TensorFlowServing", "endpoint": endpoint})
    spec = {"exponential": {"k0": 300, "k1": -200, "k2": -0.05}}
    power_models.take(world.book, {"metadata": {"name": "r650"}, "spec": spec})
    world.use(1)
    return world


def links(fetcher: Fetcher) -> int:
    return len(fetcher._channels or ())


@pytest.mark.parametrize("form", Form)
async def test_question_arrives_and_its_answer_in_each_form(
    server: TfServing, fetcher: Fetcher, form: Form
) -> None:
    server.form = form
    secret = Credentials(username="u", password="p")  # noqa: S106 - of a test

    answer = await fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION, secret)

    assert decode_response(answer) == (100, 150, 200)
    [asked] = server.asked
    assert (asked.model, asked.version, asked.signature) == ("konohana", 1218, "s")
    assert (asked.rows, asked.authorization) == (ROWS, "Basic dTpw")


async def test_v1_is_asked_as_its_labels_say(
    server: TfServing, meters: Meters, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "berthmaster_operator.power.book._IPMI_PORT", meters.origin.rpartition(":")[2]
    )
    meters.answers = {"/metrics": IPMI}
    port = server.origin.rpartition(":")[2]
    world = PowerWorld(fetcher)
    world.see_node(**v1_labels(**{"tensorflow/port": port, "tensorflow/version": "7"}))
    world.use(4)

    await world.turn()

    power = world.built().power
    assert power is not None
    assert power.curve is not None
    assert (power.link, power.model) == (
        PowerLink.MODEL_SERVER,
        f"konohana 7 at grpc://{server.origin}",
    )
    assert power.curve.watts[5] == 150
    assert [it.version for it in server.asked] == [7]
    assert server.asked[0].rows[5] == (0.5, 0.5, 0.5, 0.5)


@pytest.fixture
async def meters() -> AsyncIterator[Meters]:
    async with serve_meters() as meters:
        yield meters


async def test_endpoint_of_a_node_config_is_asked_once(
    world: PowerWorld, server: TfServing
) -> None:
    server.watts = lambda row: 100 + 10 * row[0] + row[1]

    await world.turn()
    await world.turn(20)

    built = world.built()
    assert built.power is not None
    assert built.power.link is PowerLink.MODEL_SERVER
    assert built.power.curve is not None
    assert (built.power.curve.watts[0], built.power.curve.watts[-1]) == (115.5, 195.5)
    assert built.condition is not None
    assert (built.condition.status, built.condition.reason) == ("True", "ModelServer")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour.NAN, "none of its watts is plausible"),
        (Behaviour.NEGATIVE, "none of its watts is plausible"),
        (Behaviour.FEW, "its answer is no prediction: found 25 numbers, expected 26"),
        (Behaviour.WIDE, "no prediction: its outputs have the shape 26x2, expected one number"),
        (Behaviour.SHORT, "no prediction: found 96 bytes of values, expected 104"),
        (Behaviour.INTEGERS, "no prediction: its outputs are of type 3, expected float (1)"),
        (Behaviour.EMPTY, "no prediction: no outputs in it"),
        (Behaviour.MANY, "no prediction: found 2 outputs, none of them called outputs"),
        (Behaviour.RUBBISH, "no prediction: no PredictResponse: it ends within a field"),
        (Behaviour.LONG, "its answer is longer than 1048576 bytes"),
        (Behaviour.REFUSES, "status INTERNAL, expected OK"),
    ],
    ids=lambda it: it.name if isinstance(it, Behaviour) else "",
)
async def test_bad_server_falls_back_to_numbers(
    world: PowerWorld, server: TfServing, behaviour: Behaviour, words: str
) -> None:
    server.behaviour = behaviour

    await world.turn()

    built = world.built()
    assert built.power is not None
    assert built.power.link is PowerLink.MODEL
    assert f"konohana 1218 at grpc://{server.origin}: " in world.message()
    assert words in world.message()
    assert "watts by PowerModel r650" in world.message()
    assert "secret words" not in world.message()


async def test_hanging_server_costs_the_deadline_and_falls_back_to_numbers(
    world: PowerWorld, server: TfServing, fetcher: Fetcher
) -> None:
    server.behaviour = Behaviour.HANGS
    fetcher._timeout_s = 0.5

    await world.turn()

    assert "no answer within 0.5 s" in world.message()
    assert "watts by PowerModel r650" in world.message()


async def test_unknown_model_is_told(world: PowerWorld, server: TfServing) -> None:
    server.model = "other"

    await world.turn()

    assert "status NOT_FOUND, expected OK" in world.message()


@pytest.mark.parametrize("origin", ["127.0.0.1:9", "no-such-host.invalid:8500", "[::1]:9"])
async def test_dead_server_is_told(fetcher: Fetcher, origin: str) -> None:
    with pytest.raises(FetchError, match="it cannot be connected to"):
        await fetcher.call(f"grpc://{origin}", PREDICT, QUESTION)


async def test_compressed_answers_are_not_taken(fetcher: Fetcher) -> None:
    message = gzip.compress(bytes(100))
    answer = b"\x01" + len(message).to_bytes(4, "big") + message

    async with serve_frames(answer, encoding="gzip") as origin:
        with pytest.raises(FetchError, match="status INTERNAL, expected OK"):
            await fetcher.call(origin, PREDICT, QUESTION)
    async with serve_frames(b"\x00\x00\x00\x00\x02ok", encoding="identity") as origin:
        assert await fetcher.call(origin, PREDICT, QUESTION) == b"ok"


@asynccontextmanager
async def serve_frames(answer: bytes, *, encoding: str) -> AsyncIterator[str]:
    """Answer each call with bytes as they are, as no library of gRPC would: HTTP/2 by hand (RFC 9113, 7541)."""

    def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
        return (
            len(data).to_bytes(3, "big") + bytes([kind, flags, *stream.to_bytes(4, "big")]) + data
        )

    def header(name: str, value: str) -> bytes:
        return bytes([0, len(name), *name.encode(), len(value), *value.encode()])

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            writer.write(frame(4, 0, 0))
            while True:
                begin = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(begin[:3], "big"))
                kind, flags = begin[3], begin[4]
                if kind == 4 and not flags:
                    writer.write(frame(4, 1, 0))
                elif kind == 0 and flags & 1:
                    # 0x88 is ":status: 200".
                    headers = b"\x88" + header("content-type", "application/grpc")
                    writer.write(frame(1, 4, 1, headers + header("grpc-encoding", encoding)))
                    writer.write(frame(0, 0, 1, answer))
                    writer.write(frame(1, 5, 1, header("grpc-status", "0")))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.close()
            await writer.wait_closed()


async def test_authorities_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    fetcher = Fetcher(ca_file=tmp_path / "gone.pem")

    with pytest.raises(FetchError, match=r"it cannot be fetched \(FileNotFoundError\)"):
        await fetcher.call("grpcs://127.0.0.1:9", PREDICT, QUESTION)


async def test_web_server_is_no_model_server(fetcher: Fetcher, meters: Meters) -> None:
    with pytest.raises(FetchError, match="it cannot be connected to"):
        await fetcher.call(meters.origin.replace("http", "grpc"), PREDICT, QUESTION)


async def test_outcomes_are_counted_as_those_of_others(
    world: PowerWorld, server: TfServing
) -> None:
    server.behaviour = Behaviour.REFUSES
    await world.turn()
    server.behaviour = Behaviour.WELL
    await world.turn(20)

    page = world.metrics.render()
    for outcome in ("failed", "ok"):
        assert f'power_fetches_total{{outcome="{outcome}",source="model"}} 1' in str(page)


async def test_failing_server_is_asked_less_and_less(world: PowerWorld, server: TfServing) -> None:
    server.behaviour = Behaviour.REFUSES
    for _ in range(40):
        await world.turn(16)

    assert 3 <= len(server.asked) <= 20


async def test_certificates_are_checked(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = certificates.issue_authority(now)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    ours, theirs = (
        certificates.issue_leaf(authority, (name,), now) for name in ("127.0.0.1", "bmc.example")
    )
    strict, trusting, blind = (
        Fetcher(timeout_s=20.0),
        Fetcher(timeout_s=20.0, ca_file=tmp_path / "ca.pem"),
        Fetcher(timeout_s=20.0, unverified=("bmc.example", "127.0.0.0/24")),
    )

    async def ask(fetcher: Fetcher, server: TfServing) -> tuple[float, ...]:
        return decode_response(await fetcher.call(f"grpcs://{server.origin}", PREDICT, QUESTION))

    try:
        async with serve_tf(key=ours.key, certificate=ours.certificate) as server:
            with pytest.raises(FetchError, match="--power-ca-file"):
                await ask(strict, server)
            assert await ask(trusting, server) == (100, 150, 200)
            assert await ask(blind, server) == (100, 150, 200)
            with pytest.raises(FetchError, match="cannot be connected to"):
                await trusting.call(f"grpc://{server.origin}", PREDICT, QUESTION)
        async with serve_tf(key=theirs.key, certificate=theirs.certificate) as server:
            # Of the right authority, under another name.
            with pytest.raises(FetchError, match="--power-unverified"):
                await ask(trusting, server)
            assert await ask(blind, server) == (100, 150, 200)
        with pytest.raises(FetchError, match="cannot be connected to"):
            await blind.call("grpcs://127.0.0.1:9", PREDICT, QUESTION)
    finally:
        for each in (strict, trusting, blind):
            await each.close()


async def test_certificate_that_grpc_never_takes_is_told() -> None:
    long_ago = datetime.now(UTC) - timedelta(days=4000)
    authority = certificates.issue_authority(long_ago)
    leaf = certificates.issue_leaf(authority, ("127.0.0.1",), long_ago)
    fetcher = Fetcher(timeout_s=20.0, unverified=("127.0.0.1",))
    try:
        async with serve_tf(key=leaf.key, certificate=leaf.certificate) as server:
            with pytest.raises(FetchError, match="not checked, has expired or has no name in it"):
                await fetcher.call(f"grpcs://{server.origin}", PREDICT, QUESTION)
    finally:
        await fetcher.close()


async def test_one_channel_serves_all_calls_to_a_server(
    server: TfServing, fetcher: Fetcher
) -> None:
    calls = [fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION) for _ in range(40)]

    answers = await asyncio.gather(*calls)

    assert len(set(answers)) == 1
    assert len(server.asked) == 40
    assert len(server.peers) == 1
    assert fetcher._channels is not None
    [link] = fetcher._channels._links.values()
    await fetcher.close()
    assert link.channel.get_state().name == "SHUTDOWN"


async def test_no_more_than_16_calls_at_once(server: TfServing) -> None:
    server.behaviour = Behaviour.HANGS
    fetcher = Fetcher(timeout_s=30.0)
    calls = [
        asyncio.ensure_future(fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION))
        for _ in range(20)
    ]
    async with asyncio.timeout(20):
        while len(server.asked) < 16:
            await asyncio.sleep(0.01)

    # Those that got no turn are still there when all others have gone.
    for call in calls[:16]:
        call.cancel()
    async with asyncio.timeout(20):
        while len(server.asked) < 20:
            await asyncio.sleep(0.01)
    assert server.most_at_once == 16
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await fetcher.close()


async def test_channel_of_a_failed_call_is_closed(server: TfServing, fetcher: Fetcher) -> None:
    await fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION)
    assert links(fetcher) == 1
    server.behaviour = Behaviour.HANGS
    fetcher._timeout_s = 0.5

    with pytest.raises(FetchError, match="no answer within"):
        await fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION)

    assert links(fetcher) == 0
    # The server is told that nobody waits any more.
    async with asyncio.timeout(20):
        await server.was_left.wait()


async def test_unused_channels_are_closed(
    server: TfServing, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_tf() as other:
        await fetcher.call(f"grpc://{other.origin}", PREDICT, QUESTION)
        await fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION)
        assert links(fetcher) == 2
        assert fetcher._channels is not None
        channels = [it.channel for it in fetcher._channels._links.values()]

        monkeypatch.setattr("berthmaster_operator.power.channels._MOST_UNUSED", 1)
        await fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION)
        assert links(fetcher) == 1

        monkeypatch.setattr("berthmaster_operator.power.channels._UNUSED_S", -1.0)
        await fetcher.call(f"grpc://{other.origin}", PREDICT, QUESTION)
        assert links(fetcher) == 0
        assert {it.get_state().name for it in channels} == {"SHUTDOWN"}


async def test_cancelled_call_ends_at_once_and_cleanly(server: TfServing) -> None:
    server.behaviour = Behaviour.HANGS
    fetcher = Fetcher(timeout_s=60.0)
    call = asyncio.ensure_future(fetcher.call(f"grpc://{server.origin}", PREDICT, QUESTION))
    async with asyncio.timeout(20):
        await server.is_waiting.wait()

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await fetcher.close()

    assert links(fetcher) == 0
    async with asyncio.timeout(20):
        await server.was_left.wait()


async def test_missing_package_is_said_with_the_way_out(
    world: PowerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So an import fails as if the package were not there.
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "berthmaster_operator.power.channels", raising=False)

    await world.turn()

    assert "the package grpcio is missing here: install berthmaster[grpc]" in world.message()
    assert "or name the server's REST port" in world.message()
    assert "watts by PowerModel r650" in world.message()
