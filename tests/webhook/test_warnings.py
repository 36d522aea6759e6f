"""What the creator of a pod is told beside the answer, whatever the answer is."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster_webhook.outcomes import Outcome
from support.webhook_world import World, ask, gated_manifest, response_of

GPU = "vendor.com/gpu"


def wanting(name: str = "c", mode: str = "required", **fields: Any) -> dict[str, Any]:
    """A pod with a device whose container lacks a limit of memory."""
    limits = {"cpu": "1", GPU: "1"}
    containers = [{"name": name, "resources": {"limits": limits, "requests": limits}}]
    return gated_manifest(annotations={names.PLACEMENT: mode}, containers=containers, **fields)


@pytest.mark.parametrize(
    ("devices", "outcome"), [("8", Outcome.PLACED), ("0", Outcome.NOWHERE)], ids=str
)
async def test_pod_that_will_not_be_aligned_is_warned_of(
    world: World, devices: str, outcome: Outcome
) -> None:
    world.add_node("n1", others={GPU: devices})
    world.add_zones("n1", "4", "4")

    reply = ask(world, wanting())

    assert reply.outcome is outcome
    assert response_of(reply)["warnings"] == [
        f"NUMA: {GPU} and CPUs will not be aligned: container c lacks a limit of memory"
    ]


async def test_warnings_are_short_whatever_names_are_long(world: World) -> None:
    world.add_node("n1", others={GPU: "8"})
    world.add_zones("n1", "4")

    (warning,) = response_of(ask(world, wanting("c" * 63)))["warnings"]

    assert len(warning) <= 120


async def test_nobody_is_warned_where_no_zones_are_known_or_nothing_is_asked_of_us(
    world: World,
) -> None:
    world.add_node("n1", others={GPU: "8"})
    assert "warnings" not in response_of(ask(world, wanting()))

    world.add_zones("n1", "4")
    assert "warnings" in response_of(ask(world, wanting(uid="2")))
    assert "warnings" not in response_of(ask(world, wanting(mode="off", uid="3")))
