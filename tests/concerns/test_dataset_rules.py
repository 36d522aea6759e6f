"""The dataset concern against the rules spelled out node by node, while everything changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.objects import pod_from_manifest
from support.dataset_reference import Rules, expect
from support.dataset_world import World, changes, first, make_pod, pods, policy_of, rules


@settings(max_examples=400, deadline=None)
@given(first, st.lists(changes, max_size=4), pods, rules)
def test_every_node_is_judged_by_the_rules(
    first: tuple[Any, ...],
    history: list[tuple[str, Any, Any]],
    pod_fields: dict[str, Any],
    rules: Rules,
) -> None:
    world, pod, policy = World(), make_pod(**pod_fields), policy_of(rules)
    for change in (*first, *history):
        world.change(*change)
        request = world.engine.read_request(pod_from_manifest(pod), policy)
        for verdict in world.engine.verdicts(request):
            wanted = expect(
                world.nodes[verdict.node],
                nodes=list(world.nodes.values()),
                resources=world.resources,
                pod=pod,
                rules=rules,
                busy=frozenset(world.busy),
            )
            if wanted.absent:
                assert verdict.reason is not None
                assert verdict.reason.text == (
                    f"Node does not have cache deployment for pod: {', '.join(wanted.absent)}"
                )
            else:
                assert verdict.reason is None
                assert verdict.scores.get("dataset", 0.0) == wanted.score
