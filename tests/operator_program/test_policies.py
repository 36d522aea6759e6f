from __future__ import annotations

from typing import Any

from berthmaster_operator.fleet import Fleet
from berthmaster_operator.handlers.placement_policies import PolicyHandler
from operator_program.stores import Notes
from operator_program.worlds import make_policy


def at_version(version: int, **diskio: Any) -> Any:
    policy = make_policy(**diskio)
    policy["metadata"]["resourceVersion"] = str(version)
    return policy


async def test_late_page_of_a_list_does_not_bring_an_older_policy_back() -> None:
    changed: list[str] = []
    fleet = Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=lambda _: None)
    handler = PolicyHandler(fleet, Notes(), changed.append)

    handler.take(at_version(10, nsWhiteList=["new"]))
    handler.take(at_version(9, nsWhiteList=["old"]))

    assert fleet.white_list == {"new"}
    assert changed == ["p"]


async def test_policy_made_anew_counts_whatever_its_version() -> None:
    fleet = Fleet(diskio_namespace="ioi-system", clock=lambda: 0.0, on_dirty=lambda _: None)
    handler = PolicyHandler(fleet, Notes(), lambda _: None)
    anew = at_version(9, nsWhiteList=["new"])
    anew["metadata"]["uid"] = "another"

    handler.take(at_version(10, nsWhiteList=["old"]))
    handler.take(anew)

    assert fleet.white_list == {"new"}
