"""However many nodes are asked about at once, each gets the answer that it gets alone."""

from __future__ import annotations

import numpy as np
import pytest

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.numa import NumaStrategy
from berthmaster.api.topology import topology_from_manifest
from berthmaster.concerns.numa import CONCERN
from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.inventory import build_topology
from berthmaster_sandbox.world.numa_random import NumaCase, build_case
from berthmaster_sandbox.world.numa_reports import ReportHabits

CASES = tuple(build_case(seed) for seed in range(60))
ROWS = np.arange(len(CASES))


def write(columns: NumaColumns, row: int, case: NumaCase) -> None:
    built = build_topology(topology_from_manifest(case.report(ReportHabits())))
    inventory = NodeInventory(
        name=f"n{row}",
        status=NodeInventoryStatus(topology=built.topology, zones=built.zones),
    )
    columns.write_node(row, node_from_manifest(case.node_manifest()), inventory)


@pytest.fixture
def columns() -> NumaColumns:
    found = CONCERN.new_columns()
    found.resize(len(CASES))
    for row, case in enumerate(CASES):
        write(found, row, case)
    return found


@pytest.mark.parametrize("mode", ["", "strict"])
@pytest.mark.parametrize("strategy", list(NumaStrategy))
def test_many_nodes_are_judged_as_each_alone(
    columns: NumaColumns, strategy: NumaStrategy, mode: str
) -> None:
    policy = PlacementPolicySpec.model_validate(
        {"concerns": {"numa": {"scoringStrategy": {"type": strategy}}}}
    )
    # Nodes that left, and came back elsewhere in their blocks.
    for row in range(0, len(CASES), 7):
        columns.clear(row)
    for row in range(0, len(CASES), 14):
        write(columns, row, CASES[row])
    refused = scored = 0
    for case in CASES[:12]:
        annotations = {"berthmaster.io/numa": mode} if mode else {}
        metadata = {**case.next_pod["metadata"], "annotations": annotations}
        pod = pod_from_manifest({**case.next_pod, "metadata": metadata})
        request = CONCERN.request(pod, policy)
        if request is None:
            continue
        codes = CONCERN.filter(columns, ROWS, request)
        scores = CONCERN.score(columns, ROWS, request)
        few = ROWS[::9]
        assert CONCERN.filter(columns, few, request).tolist() == codes[few].tolist()
        assert CONCERN.score(columns, few, request).tolist() == scores[few].tolist()
        for row in ROWS.tolist():
            alone = np.array([row])
            assert CONCERN.filter(columns, alone, request)[0] == codes[row]
            assert CONCERN.score(columns, alone, request)[0] == scores[row]
        refused += int(np.count_nonzero(codes))
        scored += len(set(scores.tolist()))
    assert refused > 50
    assert scored > 11
