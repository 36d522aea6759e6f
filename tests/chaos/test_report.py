"""What a reader is told of a run, and that a seed decides its order."""

from __future__ import annotations

import random
from dataclasses import replace

from berthmaster_sandbox.chaos.faults import FAULTS
from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.recount import Kind, Violation
from berthmaster_sandbox.chaos.report import describe, write_report
from berthmaster_sandbox.chaos.storm import Outcome, draw_order

KILLED = Outcome(
    fault="leader-killed", began_s=0, lasted_s=0.04, first_s=31.2, creates=60, slowest_s=1.14
)
AGAIN = replace(KILLED, first_s=29.96, slowest_s=0.5, excused=2)
BAD = Outcome(
    fault="etcd-paused",
    began_s=0,
    lasted_s=10,
    violations=[Violation(Kind.PAST_THE_LINE, "n1", "5 of 4 cpu")],
)


def test_report_counts_by_kind_and_names_every_violation() -> None:
    report = write_report(
        Plan(seed=7, nodes=50), [KILLED, BAD, AGAIN], {"created": 1200}, seconds=600
    )

    assert "Seed 7, 50 nodes, 600 s; pods: 1200 created" in report
    assert "| leader-killed | 2 | 0.0 | 30.0..31.2 | 1.1 | 2 |" in report
    assert "| etcd-paused | 1 | 10.0 | never | 0.0 | 0 |" in report
    assert "| past the line | 1 |" in report
    assert "| lost | 0 |" in report
    assert "* etcd-paused: past the line: n1: 5 of 4 cpu" in report
    assert "first placement after never" in describe(BAD)


def test_seed_decides_the_order_of_all_faults() -> None:
    def order(seed: int) -> list[str]:
        rng = random.Random(seed)  # noqa: S311 - no secret
        return [it.name for _ in range(2) for it in draw_order(Plan(), rng)]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted([*FAULTS, *FAULTS])
    chosen = Plan(faults=("watches-cut", "all-down"))
    rng = random.Random(1)  # noqa: S311
    assert [it.name for it in draw_order(chosen, rng)] == ["watches-cut", "all-down"]
