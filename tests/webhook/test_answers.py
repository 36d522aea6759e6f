from __future__ import annotations

import base64
import zlib

import pytest

from berthmaster.api import names
from berthmaster_webhook import answers
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.answers import HandoverError
from support.builders import make_pod_manifest
from support.webhook_world import EPOCH, World, gated_manifest, make_review


def place(world: World, name: str, **fields: object) -> None:
    pod = gated_manifest(name, **fields)
    user = {"username": f"user of {name}"}
    Admission(world.tools, world.term).reply(make_review(pod, userInfo=user), epoch=EPOCH)


async def test_handed_over_room_stays_held(world: World) -> None:
    world.add_node("n1", cpu="3", memory="8Gi")
    place(world, "a", cpu="2", annotations={names.PLACEMENT: "required", "x": "y"})
    packed = world.tools.answers.pack()
    heir = World()
    heir.add_node("n1", cpu="3", memory="8Gi")
    assert packed is not None

    taken = heir.tools.answers.take_over(packed, heir.now_s)

    (before,), (after,) = world.state.ledger.on_node("n1"), heir.state.ledger.on_node("n1")
    assert taken == 1
    assert (before.holder, before.usages) == (after.holder, after.usages)
    await heir.close()


async def test_sight_of_a_handed_over_pod_proves_nothing_of_the_watch(world: World) -> None:
    """It may have been stored before the hand-over was taken."""
    world.add_node("n1")
    place(world, "a")
    packed = world.tools.answers.pack()
    assert packed is not None
    (answer,) = world.tools.answers._answers.values()
    heir = World()
    heir.add_node("n1")
    heir.now_s += 20
    heir.tools.answers.take_over(packed, heir.now_s)

    heir.show(make_pod_manifest("a", annotations={names.ALLOCATION: answer.annotation}))

    assert not heir.state.ledger.assumed
    assert not heir.state.ledger.may_decide(heir.now_s)
    await heir.close()


async def test_entries_that_were_seen_are_not_held_twice(world: World) -> None:
    world.add_node("n1")
    place(world, "a")
    packed = world.tools.answers.pack()
    assert packed is not None

    assert world.tools.answers.take_over(packed, world.now_s) == 0


async def test_handed_over_entries_are_handed_on(world: World) -> None:
    world.add_node("n1")
    place(world, "a", cpu="1")
    packed = world.tools.answers.pack()
    heir = World()
    assert packed is not None
    heir.tools.answers.take_over(packed, heir.now_s)

    assert heir.tools.answers.pack() == packed
    await heir.close()


async def test_too_much_for_an_annotation_is_not_packed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("n1")
    place(world, "a")
    monkeypatch.setattr(answers, "MAX_HANDOVER_BYTES", 10)

    assert world.tools.answers.pack() is None


def _packed(text: bytes) -> str:
    return base64.b64encode(zlib.compress(text)).decode()


@pytest.mark.parametrize(
    "packed",
    [
        "",
        "no base64!",
        base64.b64encode(b"x").decode(),
        _packed(b"{}"),
        _packed(b'{"v":2,"entries":[]}'),
    ],
)
async def test_unusable_handover_is_an_error(world: World, packed: str) -> None:
    with pytest.raises(HandoverError):
        world.tools.answers.take_over(packed, world.now_s)
