"""The disk's books: reports that lag, lead or contradict never let it be given twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from berthmaster.api.diskio import device_from_manifest, stats_from_manifest
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import node_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.diskio import Strategy
from berthmaster.concerns.diskio import CONCERN, reasons
from berthmaster.concerns.diskio.columns import DiskIOColumns
from berthmaster.concerns.diskio.inventory import build_disks
from berthmaster.concerns.diskio.models import DiskModels, read_models
from berthmaster.concerns.diskio.request import DiskIORequest
from berthmaster.concerns.diskio.shapes import Usage
from berthmaster.concerns.shape import Holder

CAPACITY = 1000
ROW = np.array([0])
NODE = node_from_manifest({"metadata": {"name": "n", "uid": "n"}})
MODELS = read_models(
    {"diskVendors": '[{"vendor": "V", "model": "M", "readRatio": {"4k": 2}, "writeRatio": {}}]'}
)


def make_device(**changes: Any) -> dict[str, Any]:
    disk = {"name": "d", "vendor": "V", "model": "M", "type": "emptyDir",
            "capacity": {"read": str(CAPACITY), "write": str(CAPACITY), "total": "1500"}}  # fmt: skip
    return {
        "metadata": {"name": "n-nodediskdevice", "namespace": "ioi-system", "generation": 1},
        "spec": {"nodeName": "n", "devices": {"d": {**disk, **changes}}},
    }


def make_stats(generation: int, observed: int | None, pods: list[str], read: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "n-nodediskiostats", "generation": generation},
        "spec": {"nodeName": "n", "reservedPods": pods},
        "status": {
            "observedGeneration": observed,
            "allocableBandwidth": {"d": {"read": read, "write": read, "total": 2 * read}},
        },
    }


def inventory(stats: dict[str, Any] | None, previous: NodeInventoryStatus | None = None,
              models: DiskModels = MODELS, **device: Any) -> NodeInventory:  # fmt: skip
    built = build_disks(
        device_from_manifest(make_device(**device)),
        None if stats is None else stats_from_manifest(stats),
        models,
        previous=previous,
    )
    return NodeInventory(
        name="n",
        status=NodeInventoryStatus.model_validate(
            {"disks": [disk.to_wire() for disk in built.disks or ()],
             "sources": {"diskio": built.source.to_wire() if built.source else None}}
        ),
    )  # fmt: skip


def holder(key: str) -> Holder:
    return Holder(key=key, namespace="default", name=key)


def new_columns() -> DiskIOColumns:
    columns = DiskIOColumns()
    columns.resize(1)
    return columns


def test_lagging_report_is_ignored() -> None:
    columns = new_columns()
    columns.charge(0, holder("p"), Usage(40, 40, "32k"))

    columns.write_node(0, NODE, inventory(make_stats(3, 2, [], 1000)))

    # The model's read ratio of 4k covers 32k as well: 40 becomes 80.
    assert columns.free[:, 0].tolist() == [920, 960, 1380]


def test_lagging_report_leaves_the_last_accepted_one() -> None:
    first = inventory(make_stats(2, 2, ["p"], 500))
    later = inventory(make_stats(3, 2, ["p", "q"], 900), previous=first.status)
    columns = new_columns()
    columns.charge(0, holder("p"), Usage(100, 100, "4k"))
    columns.charge(0, holder("q"), Usage(10, 10, "4k"))

    columns.write_node(0, NODE, later)

    assert columns.free[:, 0].tolist() == [480, 490, 970]


def test_report_before_the_reservation_is_written_does_not_wipe_it_out() -> None:
    columns = new_columns()
    columns.write_node(0, NODE, inventory(make_stats(1, 1, [], 1000)))
    columns.charge(0, holder("fresh"), Usage(300, 300, "4k"))

    columns.write_node(0, NODE, inventory(make_stats(1, 1, [], 995)))

    assert columns.free[:, 0].tolist() == [395, 695, 990 + 0 * 2 + 100]


def test_released_pod_gives_back_what_the_report_still_counts() -> None:
    columns = new_columns()
    columns.charge(0, holder("p"), Usage(100, 100, "4k"))
    columns.write_node(0, NODE, inventory(make_stats(1, 1, ["p"], 700)))
    assert columns.free[:, 0].tolist() == [700, 700, 1400]

    columns.release(0, holder("p"), Usage(100, 100, "4k"))

    assert columns.free[:, 0].tolist() == [900, 800, 1500]


def test_released_pod_is_given_back_once() -> None:
    columns = new_columns()
    usage = Usage(300, 0, "")
    columns.charge(0, holder("a"), usage)
    first = inventory(make_stats(2, 2, ["a"], 600))
    columns.write_node(0, NODE, first)
    columns.release(0, holder("a"), usage)
    assert columns.free[0, 0] == 900

    # It is there again, and the report counts it.
    columns.charge(0, holder("a"), usage)
    assert columns.free[0, 0] == 600

    # It goes, and the next report does not count it any more.
    columns.release(0, holder("a"), usage)
    columns.write_node(0, NODE, inventory(make_stats(3, 3, [], 700), previous=first.status))
    assert columns.free[0, 0] == 700


def test_model_that_arrives_is_counted_at_once() -> None:
    columns = new_columns()
    columns.write_node(0, NODE, inventory(None, models=DiskModels()))
    columns.charge(0, holder("p"), Usage(100, 100, "4k"))
    assert columns.free[:, 0].tolist() == [900, 900, 1300]

    columns.write_node(0, NODE, inventory(None))

    assert columns.free[:, 0].tolist() == [800, 900, 1200]


def test_changed_capacity_ends_a_lagging_report() -> None:
    first = inventory(make_stats(1, 1, [], 995))
    lagging = make_stats(2, 1, [], 995)
    smaller = dict.fromkeys(("read", "write", "total"), "500")

    cases: tuple[tuple[dict[str, Any], int], ...] = (({}, 995), ({"capacity": smaller}, 500))
    for changes, free in cases:
        columns = new_columns()
        columns.write_node(0, NODE, inventory(lagging, previous=first.status, **changes))
        assert columns.free[0, 0] == free


def test_faulty_model_keeps_the_function_of_the_same_disk_only() -> None:
    before = inventory(None).status
    faulty = read_models({"diskVendors": "["})

    for changes, is_kept in (({}, True), ({"model": "other"}, False), ({"vendor": "W"}, False)):
        (disk,) = inventory(None, before, faulty, **changes).status.disks or ()
        assert (disk.function is not None) is is_kept


def test_negative_report_refuses_even_nothing() -> None:
    columns = new_columns()

    columns.write_node(0, NODE, inventory(make_stats(1, 1, [], -5)))

    assert columns.free[:, 0].tolist() == [-5, -5, -10]


def test_report_without_its_disk_and_with_unknown_disk_is_left_alone() -> None:
    stats = make_stats(1, 1, [], 10)
    stats["status"]["allocableBandwidth"] = {"other": {"read": 1}, "d2": None}
    columns = new_columns()

    columns.write_node(0, NODE, inventory(stats))

    assert columns.free[:, 0].tolist() == [1000, 1000, 1500]


def test_names_without_end_still_give_a_condition_that_can_be_stored() -> None:
    built = build_disks(
        device_from_manifest(make_device(vendor="v" * 40_000, type="others")), None, MODELS
    )
    also = build_disks(
        device_from_manifest(make_device(vendor="v" * 40_000, model=7)), None, MODELS
    )

    for condition in (built.condition, also.condition):
        assert condition is not None
        assert len(condition.message) < 10_000


class Books(RuleBasedStateMachine):
    """Pods come and go, the list is written late, the driver answers late or twice.

    The driver of this test counts the pods of its list exactly, so whatever the order of events,
    what is free can never exceed what pods that exist leave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns = new_columns()
        self.pods: dict[str, Usage] = {}
        self.ever: dict[str, Usage] = {}
        self.generation = 1
        self.listed: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.current: NodeInventoryStatus | None = None
        self.columns.write_node(0, NODE, inventory(None))

    @rule(
        read=st.integers(0, 60), write=st.integers(0, 60), size=st.sampled_from(["4k", "512", ""])
    )
    def start(self, read: int, write: int, size: str) -> None:
        key = f"p{len(self.ever)}"
        usage = Usage(read, write, size)
        self.ever[key] = self.pods[key] = usage
        self.columns.charge(0, holder(key), usage)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pods)))
        usage = self.pods.pop(key)
        self.columns.release(0, holder(key), usage)
        self.columns.release(0, holder(key), usage)

    @rule()
    def write_list(self) -> None:
        self.listed = sorted(self.pods)
        self.generation += 1

    @rule()
    def driver_answers(self) -> None:
        used = [self.columns.needed(0, self.ever[key]) for key in self.listed]
        read = CAPACITY - sum(pair[0] for pair in used)
        write = CAPACITY - sum(pair[1] for pair in used)
        stats = make_stats(self.generation, self.generation, list(self.listed), 0)
        stats["status"]["allocableBandwidth"]["d"] = {
            "read": read, "write": write, "total": 1500 - (2 * CAPACITY - read - write)
        }  # fmt: skip
        self.reports.append(stats)

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def report_arrives(self, data: st.DataObject) -> None:
        report = data.draw(st.sampled_from(self.reports))
        # The list is ahead of a late report: its generation is the present one.
        late = {**report, "metadata": {**report["metadata"], "generation": self.generation}}
        late["spec"] = {"nodeName": "n", "reservedPods": list(self.listed)}
        taken = inventory(late, previous=self.current)
        self.current = taken.status
        self.columns.write_node(0, NODE, taken)

    @invariant()
    def free_is_what_the_pods_leave(self) -> None:
        used = [self.columns.needed(0, usage) for usage in self.pods.values()]
        read, write = (sum(pair[side] for pair in used) for side in (0, 1))
        for dimension, (whole, taken) in enumerate(
            ((CAPACITY, read), (CAPACITY, write), (1500, read + write))
        ):
            assert self.columns.free[dimension, 0] <= max(0, whole - taken)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def ask(read: int, **changes: Any) -> DiskIORequest:
    usage = Usage(read, 0, "32k")
    return DiskIORequest(usage, True, Strategy.LEAST_ALLOCATED, **changes)


def test_policy_lets_a_disk_without_a_model_count_bytes_as_they_are() -> None:
    columns = new_columns()
    columns.write_node(0, NODE, inventory(None, models=DiskModels()))

    assert list(CONCERN.filter(columns, ROW, ask(1000))) == [reasons.NO_MODEL]
    asked = ask(1000, needs_model=False)
    assert list(CONCERN.filter(columns, ROW, asked)) == [0]
    assert list(CONCERN.score(columns, ROW, asked)) == [50]
    assert CONCERN.allocate(columns, 0, asked, {})["read"] == 1000
    assert list(CONCERN.filter(columns, ROW, ask(1001, needs_model=False))) == [
        reasons.SHORT_OF_READ
    ]


def test_odd_block_size_of_a_bound_pod_counts_where_a_policy_understands_it() -> None:
    columns = new_columns()
    capacity = {it: str(100 * 2**20) for it in ("read", "write", "total")}
    columns.write_node(0, NODE, inventory(None, capacity=capacity))
    columns.charge(0, holder("p"), Usage(40 * 2**20, 0, "32k", needs_nearest=True))

    strict = PlacementPolicySpec()
    nearest = PlacementPolicySpec.model_validate(
        {"concerns": {"diskio": {"blockSizePolicy": "Nearest"}}}
    )
    # The model's read ratio at 32k is that at 4k, which is 2.
    for policies, used in (([], 5), ([strict], 5), ([strict, nearest], 80), ([strict], 5)):
        CONCERN.configure(columns, policies)
        assert (columns.capacity - columns.free)[0, 0] == used * 2**20
    assert CONCERN.amounts(columns, 0, holder("p"), Usage(0, 0, "32k", needs_nearest=True)) == {
        "read": 5 * 2**20,
        "write": 5 * 2**20,
    }


def test_reserve_stays_free() -> None:
    columns = new_columns()
    columns.write_node(0, NODE, inventory(None))
    # The model's read ratio is 2: 400 become 800 of 1000.
    assert list(CONCERN.filter(columns, ROW, ask(400, reserve_percent=20))) == [0]
    asked = ask(401, reserve_percent=20)

    assert list(CONCERN.filter(columns, ROW, asked)) == [reasons.SHORT_OF_READ]
    detail = CONCERN.explain(columns, 0, reasons.SHORT_OF_READ, asked, "n").detail
    assert "short by 2 " in detail
    assert "200 stay free by reservePercent" in detail


def test_reserve_is_rounded_up() -> None:
    columns = new_columns()
    capacity = dict.fromkeys(("read", "write", "total"), "1001")
    columns.write_node(0, NODE, inventory(None, capacity=capacity))

    for read, code in ((800, 0), (801, reasons.SHORT_OF_READ)):
        asked = DiskIORequest(
            Usage(read, 0, ""), True, Strategy.LEAST_ALLOCATED, reserve_percent=20
        )
        assert list(CONCERN.filter(columns, ROW, asked)) == [code]
