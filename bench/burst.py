"""Bursts of Guaranteed pods onto nodes with NUMA zones: is any torn, and how many more could be placed?

    python bench/burst.py                           2,000 pods onto 200 nodes of mixed policies
    python bench/burst.py --everything              also init containers, sidecars, devices of several zones
    python bench/burst.py --sandbox --seeds 1       on a real control plane, for minutes

An event clock plays it in seconds (`benching/bursts.py`): kubelets that know nothing of us admit, their
updaters' reports are written five seconds late, and a perfect packer of the same pods in the same order
says how many there was room for. It is an online packer: it knows every kubelet's true state at once, asks
the kubelet itself, chooses by our scores, and never moves a pod.

With `--sandbox` the same nodes and pods are a real control plane's (`benching/cluster_bursts.py`), with the
webhook and the operator installed, and everything is counted from the API server's objects.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benching import figures
from benching.bursts import EVERYTHING, TRAITS, Outcome, Plan, play, play_perfectly
from benching.cluster_bursts import play_on_a_cluster
from berthmaster_sandbox.world.numa_machines import TOPOLOGY_POLICIES
from berthmaster_sandbox.world.numa_verdicts import TOPOLOGY_AFFINITY_ERROR


def main() -> None:
    """Print a row per seed, and the placed and the torn by policy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--jitter", type=float, default=1.0, help="kubelets' delays differ by so many s"
    )
    parser.add_argument("--everything", action="store_true", help="pods and devices of every kind")
    parser.add_argument("--sandbox", action="store_true", help="on a real control plane")
    given = parser.parse_args()
    summary, details = [], []
    for seed in given.seeds:
        plan = Plan(
            nodes=given.nodes,
            pods=given.pods,
            jitter_s=given.jitter,
            seed=seed,
            traits=EVERYTHING if given.everything else TRAITS,
        )
        began_s = time.process_time()
        ours = asyncio.run(play_on_a_cluster(plan)) if given.sandbox else play(plan)
        perfect = play_perfectly(plan)
        summary.append(_summary(plan, ours, perfect, time.process_time() - began_s))
        details += _by_policy(plan, ours, perfect)
    header = (
        *("seed", "pods", "perfect", "ours", "ratio", "at once", "TopologyAffinityError"),
        *("other rejections", "overfilled", "CPU s"),
    )
    by_policy = ("seed", "policy", "perfect", "ours", "TopologyAffinityError", "other rejections")
    figures.report("Bursts", figures.table(header, summary), figures.table(by_policy, details))


def _summary(plan: Plan, ours: Outcome, perfect: Outcome, seconds: float) -> tuple[object, ...]:
    torn = ours.count_rejected(TOPOLOGY_AFFINITY_ERROR)
    placed, there = ours.placed.total(), perfect.placed.total()
    return (
        *(plan.seed, f"{plan.pods:,}", f"{there:,}", f"{placed:,}", f"{placed / there:.3f}"),
        *(
            f"{ours.at_once:,}" if ours.at_once else "-",
            torn,
            ours.rejections.total() - torn,
            len(ours.overfilled),
        ),
        f"{seconds:.1f}",
    )


def _by_policy(plan: Plan, ours: Outcome, perfect: Outcome) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for policy in TOPOLOGY_POLICIES:
        torn = ours.count_rejected(TOPOLOGY_AFFINITY_ERROR, policy)
        everything = sum(it for (of, _), it in ours.rejections.items() if of == policy)
        placed = (perfect.placed[policy], ours.placed[policy])
        rows.append((plan.seed, policy, *placed, torn, everything - torn))
    return rows


if __name__ == "__main__":
    main()
