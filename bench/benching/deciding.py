"""One decision as the webhook makes it, from the parsed pod to the charge in the ledger, and its time."""

from __future__ import annotations

import time

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.placement.engine import Engine


def decide_and_charge(engine: Engine, pod: Pod, policy: PlacementPolicySpec) -> float:
    """Place a pod that fits somewhere; return milliseconds of CPU. Its name is the decision's id."""
    metadata = pod.metadata
    started = time.process_time_ns()
    decision = engine.decide(engine.read_request(pod, policy), metadata.name)
    assert decision.node is not None
    engine.ledger.assume(
        decision.id,
        node=decision.node,
        usages=engine.ledger.usages_of(pod, decision.allocated),
        namespace=metadata.namespace,
        name=metadata.name,
        owner=None,
        now_s=0.0,
    )
    return (time.process_time_ns() - started) / 1e6
