from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError, UnreachableError
from berthmaster.cluster.events import EventRecorder
from berthmaster_webhook import deciding
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.lines import Line, Lines, Waiter
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.reporting import PAUSE_S, Reporter
from berthmaster_webhook.state import Help
from berthmaster_webhook.turns import Turns
from berthmaster_webhook.waiting import WaitingPods
from support.builders import make_container
from support.pages import scrape
from support.waiting import until
from support.webhook_world import (
    EPOCH,
    CutAfter,
    Manifest,
    PodServer,
    World,
    gated_manifest,
    make_review,
    node_pin,
)
from support.xpu_worlds import MEM, PREFIX


@asynccontextmanager
async def queue_of(
    world: World,
    server: PodServer,
    *,
    in_flight: int = 16,
    grace_s: float = 10.0,
    turns: Turns | None = None,
) -> AsyncIterator[WaitingPods]:
    events = EventRecorder(server, "berthmaster.io/placer")
    reporter = Reporter(
        server,
        events,
        may_write=lambda: world.term.why_not() is None,
        clock=lambda: world.now_s,
        pace_s=0.0,
        patience_s=0.0,
    )
    queue = WaitingPods(
        world.tools,
        world.term,
        server,
        reporter,
        patches_in_flight=in_flight,
        first_backoff_s=0.001,
        policy_grace_s=grace_s,
        turns=turns,
    )
    world.state.on_pod.append(queue.take_pod)
    world.state.on_settings.append(queue.take_settings)
    world.state.on_help.append(queue.take_help)
    for path in list(server.pods):
        world.show(server.pods[path])
    tasks = [asyncio.create_task(queue.run()), asyncio.create_task(reporter.run())]
    try:
        yield queue
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled() -> None:
    """Let a few rounds of the queue pass."""
    await asyncio.sleep(0.15)


def store(world: World, server: PodServer, name: str, **fields: object) -> None:
    created = fields.pop("created", None)
    pod: Manifest = gated_manifest(name, **fields)
    pod["metadata"]["creationTimestamp"] = created or "2026-01-01T00:00:00Z"
    server.add(pod)


def store_taken_over(world: World, server: PodServer, name: str, *, cpu: str) -> None:
    """Store a pod that the policy `mine` took over, and the policy."""
    world.add_policy("mine", schedulerNames=["old"])
    stamped = {names.PLACEMENT: "required", names.POLICY: "mine"}
    store(world, server, name, cpu=cpu, annotations=stamped)


def count_decisions(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the node of each decision from now on, empty where there is none."""
    engine, nodes = world.state.engine, []
    decide = engine.decide

    def counted(*args: Any, **fields: Any) -> Any:
        decision = decide(*args, **fields)
        nodes.append(decision.node or "")
        return decision

    monkeypatch.setattr(engine, "decide", counted)
    return nodes


def is_gated(server: PodServer, name: str) -> bool:
    return "schedulingGates" in server.get_pod(name)["spec"]


def conditions(server: PodServer) -> list[Manifest]:
    return [
        body["status"]["conditions"][0] for path, body in server.patches if path.endswith("/status")
    ]


async def test_gated_pod_is_placed_by_one_guarded_patch(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    pod = server.get_pod("a")
    assert node_pin(pod) == "n1"
    assert "schedulingGates" not in pod["spec"]
    assert names.ALLOCATION in pod["metadata"]["annotations"]
    ((_, body),) = server.patches
    assert [it["path"] for it in body[:2]] == ["/metadata/uid", "/metadata/resourceVersion"]
    assert not world.state.ledger.assumed


async def test_priority_then_age_decide_the_order(world: World) -> None:
    server = PodServer(world)
    store(world, server, "young", cpu="1", created="2026-01-01T00:00:09Z")
    store(world, server, "old", cpu="2", created="2026-01-01T00:00:01Z")
    store(world, server, "urgent", cpu="1", priority=10, created="2026-01-01T00:00:10Z")
    world.add_node("n1")

    async with queue_of(world, server, in_flight=1) as queue:
        await until(lambda: not len(queue))

    assert server.placements == ["urgent", "old", "young"]


async def test_freed_room_wakes_what_fits(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="4")
    holder = world.show(gated_manifest("holder", cpu="3", node="n1", schedulingGates=None))
    store(world, server, "big", cpu="4", priority=5)
    store(world, server, "small", cpu="2")

    async with queue_of(world, server):
        await settled()
        before = list(server.placements)
        world.state.ledger.see(holder)
        world.add_node("n2", cpu="2")
        await until(lambda: "small" in server.placements)
        assert server.placements[len(before) :] == ["small"]
        world.show_gone("uid-holder")
        await until(lambda: "big" in server.placements)

    assert before == []


async def test_freed_room_costs_a_decision_for_whom_it_fits_and_none_for_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="100")
    world.show(gated_manifest("rest", cpu="98", node="n1", schedulingGates=None))
    world.show(gated_manifest("holder", cpu="2", node="n1", schedulingGates=None))
    for index in range(1, 60):
        store(world, server, f"p{index:02}", cpu=str(index))

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 59)
        decisions = count_decisions(world, monkeypatch)
        world.show_gone("uid-holder")
        await until(lambda: bool(server.placements))
        await settled()

    # Of those that fit, 1 and 2 cpu, the older one by name; there is room left for nobody then.
    assert server.placements == ["p01"]
    assert decisions == ["n1"]


@pytest.mark.parametrize("seed", range(6))
async def test_no_pod_waits_that_fits_whatever_comes_and_goes(world: World, seed: int) -> None:
    """Nothing that helps may be lost, however it falls into the queue's rounds."""
    random = Random(seed)  # noqa: S311 - for a test
    server = PodServer(world)
    held: list[str] = []
    made = itertools.count()

    def hold() -> None:
        name = f"held-{next(made)}"
        node = f"n{random.randrange(8)}"
        cpu = str(random.randint(1, 3))
        world.show(gated_manifest(name, cpu=cpu, node=node, schedulingGates=None))
        held.append(f"uid-{name}")

    def end() -> None:
        if held:
            world.show_gone(held.pop(random.randrange(len(held))))

    def wait() -> None:
        zone = {"nodeSelector": {"zone": random.choice("ab")}} if random.random() < 0.3 else {}
        priority = random.randrange(3)
        cpu = str(random.randint(1, 4))
        store(world, server, f"waits-{next(made)}", cpu=cpu, priority=priority, **zone)

    def relabel() -> None:
        index = random.randrange(8)
        world.add_node(f"n{index}", cpu="4", labels={"zone": random.choice("ab")})

    for index in range(8):
        world.add_node(f"n{index}", cpu="4", labels={"zone": "ab"[index % 2]})
    for _ in range(16):
        hold()

    async with queue_of(world, server) as queue:
        for _ in range(150):
            random.choice((hold, end, end, wait, wait, relabel))()
            if random.random() < 0.3:
                await asyncio.sleep(random.choice((0, 0.001, 0.03)))
        await until(lambda: not queue._waking.is_awake and not queue._lines.any_open)
        await settled()

        engine = world.state.engine
        waiting = [it for it in queue._waiters.values() if not it.is_busy]
        assert len(waiting) > 5
        for waiter in waiting:
            assert not any(it.reason is None for it in engine.verdicts(waiter.request))


async def test_room_of_one_kind_does_not_wake_who_lacks_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="4", labels={"zone": "a"})
    holder = gated_manifest("holder", cpu="4", node="n1", schedulingGates=None)
    world.show(holder)
    store(world, server, "elsewhere", cpu="1", nodeSelector={"zone": "b"})
    store(world, server, "here", cpu="1", nodeSelector={"zone": "a"})

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 2)
        decisions = count_decisions(world, monkeypatch)
        world.show_gone("uid-holder")
        await until(lambda: bool(server.placements))
        await settled()

    assert (server.placements, decisions) == (["here"], ["n1"])


async def test_pod_near_to_which_another_wants_to_be_wakes_it(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", labels={"zone": "a"})
    term = {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "zone"}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    store(world, server, "web", affinity={"podAffinity": required})

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 1)
        database = gated_manifest("db", node="n1", schedulingGates=None)
        database["metadata"]["labels"] = {"app": "db"}
        world.show(database)
        await until(lambda: server.placements == ["web"])


async def test_new_domain_to_spread_over_wakes_who_spreads(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", labels={"zone": "a"})
    constraint = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "minDomains": 2,
        "nodeAffinityPolicy": "Ignore",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    for name in ("web-0", "web-1", "web-2"):
        pod = gated_manifest(name, topologySpreadConstraints=[constraint])
        pod["metadata"]["labels"] = {"app": "web"}
        server.add(pod)

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 2)
        before = list(server.placements)
        world.add_node("n2", labels={"zone": "b"})
        await until(lambda: len(server.placements) == 3)

    assert before == ["web-0"]


async def test_reasons_that_became_others_are_told_after_a_while(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="4", memory="1Gi")
    world.show(gated_manifest("holder", cpu="4", node="n1", schedulingGates=None))
    store(world, server, "a", cpu="2", memory="4Gi")

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 1)
        world.now_s += 1
        world.show_gone("uid-holder")
        await settled()
        assert len(conditions(server)) == 1
        world.now_s += 61
        queue._wake.set()
        await until(lambda: len(conditions(server)) == 2)

    first, second = conditions(server)
    assert first["message"] == "0/1 nodes: 1 (n1) Insufficient cpu"
    assert second["message"] == "0/1 nodes: 1 (n1) Insufficient memory"


async def test_where_nothing_happens_nothing_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="1")
    for index in range(20):
        store(world, server, f"p{index}", cpu=str(index + 2))

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 20)
        decisions = count_decisions(world, monkeypatch)
        world.now_s += 3600
        queue._wake.set()
        await settled()

    assert decisions == []
    assert queue._waking.due_s == float("inf")


async def test_namespaces_take_turns_where_that_is_asked(world: World) -> None:
    server = PodServer(world)
    world.add_namespace("few")
    for index in range(6):
        store(world, server, f"many-{index}", cpu="1")
    for index in range(2):
        store(
            world, server, f"few-{index}", cpu="1", namespace="few", created="2026-01-02T00:00:00Z"
        )
    store(world, server, "urgent", cpu="1", priority=5, created="2026-01-03T00:00:00Z")
    world.add_node("n1", cpu="9")

    async with queue_of(world, server, in_flight=1, turns=Turns(lambda _: 1)) as queue:
        await until(lambda: not len(queue))

    assert server.placements[0] == "urgent"
    assert sorted(server.placements[1:5]) == ["few-0", "few-1", "many-0", "many-1"]


async def test_pods_whose_patches_get_no_answer_do_not_hold_up_the_others(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="100")
    stuck = [f"a{index}" for index in range(4)]
    for name in (*stuck, "z"):
        store(world, server, name, cpu="1")
    lost = OutcomeUnknownError("lost")

    async with queue_of(world, server, in_flight=2):
        server.fails = lambda path: lost if path.rpartition("/")[2] in stuck else None
        await until(lambda: not is_gated(server, "z"))
        assert all(is_gated(server, name) for name in stuck)
        server.fails = None
        await until(lambda: not any(is_gated(server, name) for name in stuck))

    for name in stuck:
        bodies = [body for path, body in server.patches if path.endswith(f"/{name}")]
        assert len(bodies) > 1
        assert all(body == bodies[0] for body in bodies)


@pytest.mark.parametrize("priority", [0, 7])
async def test_pod_that_is_created_leaves_freed_room_to_who_waits_for_it(
    world: World, priority: int
) -> None:
    """Before the queue has had its turn, an admission request comes in."""
    server = PodServer(world)
    world.add_node("n1", cpu="4")
    world.show(gated_manifest("holder", cpu="4", node="n1", schedulingGates=None))
    store(world, server, "waits", cpu="2")

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 1)
        admission = Admission(world.tools, world.term, queue.goes_first)
        world.show_gone("uid-holder")
        pod = gated_manifest("new", cpu="4", priority=priority)
        reply = admission.reply(make_review(pod), epoch=EPOCH)

        assert reply.outcome is (Outcome.PLACED if priority else Outcome.BEHIND)
        if not priority:
            await until(lambda: server.placements == ["waits"])


async def test_pod_that_is_created_passes_who_has_no_use_for_the_room(world: World) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="4")
    world.add_node("n2", cpu="1")
    world.show(gated_manifest("holder", cpu="2", node="n1", schedulingGates=None))
    store(world, server, "big", cpu="9")

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 1)
        admission = Admission(world.tools, world.term, queue.goes_first)
        world.show_gone("uid-holder")
        reply = admission.reply(make_review(gated_manifest("new", cpu="2")), epoch=EPOCH)

    assert reply.outcome is Outcome.PLACED


async def test_pod_that_is_created_stands_behind_who_waited_long_for_a_decision(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    world.add_node("n1", cpu="4")
    store(world, server, "older", cpu="1", created="2025-01-01T00:00:00Z")
    store(world, server, "old", cpu="2")
    patch, is_answering = server.patch, asyncio.Event()

    async def answer_late(*args: Any, **fields: Any) -> Any:
        await is_answering.wait()
        return await patch(*args, **fields)

    monkeypatch.setattr(server, "patch", answer_late)
    async with queue_of(world, server, in_flight=1) as queue:
        await until(lambda: bool(world.state.ledger.assumed))
        admission = Admission(world.tools, world.term, queue.goes_first)
        early = admission.reply(make_review(gated_manifest("early", cpu="1")), epoch=EPOCH)
        world.now_s += 9
        world.state.ledger.watch_passed(world.now_s)
        world.now_s += 2
        late = admission.reply(make_review(gated_manifest("late", cpu="1")), epoch=EPOCH)
        is_answering.set()
        await until(lambda: not len(queue))

    assert (early.outcome, late.outcome) == (Outcome.PLACED, Outcome.BEHIND)


@pytest.mark.parametrize(
    "fault",
    [OutcomeUnknownError("lost"), ApiError(504, "Timeout", "later"), ApiError(500, "", "etcd")],
)
async def test_unknown_outcome_is_repeated_identically(world: World, fault: Exception) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    for name in ("n1", "n2", "n3"):
        world.add_node(name)
    server.faults = [fault, fault, None]

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    bodies = [body for _, body in server.patches]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]


async def test_after_an_outage_no_pod_is_decided_anew_before_its_fate_is_known(
    world: World,
) -> None:
    """Whatever the API server answers; only what was refused gets another decision."""
    server, count = PodServer(world), 300
    random = Random(1)  # noqa: S311 - for a test
    for index in range(10):
        world.add_node(f"n{index}", cpu="30")
    for index in range(count):
        store(world, server, f"p{index:03}", cpu="1", priority=index % 3)
    refused, sent = Counter[str](), defaultdict[str, list[str]](list)

    def fail(path: str) -> Exception | None:
        name = path.rpartition("/")[2]
        sent[name].append(json.dumps(server.patches[-1][1]))
        answers = (
            OutcomeUnknownError("timed out"),
            UnreachableError("refused"),
            ApiError(500, "InternalError", "etcd"),
            ApiError(504, "Timeout", "later"),
            ApiError(429, "TooManyRequests", "slow"),
            CutAfter(OutcomeUnknownError("cut")),
            ApiError(409, "Conflict", "the object has been modified"),
        )
        fault = random.choice((*(None,) * 14, *answers))
        if isinstance(fault, ApiError) and fault.status == 409:
            refused[name] += 1
        return fault

    server.fails = fail
    async with queue_of(world, server) as queue:
        while len(queue):
            await asyncio.sleep(0.05)
            # What was refused is decided again after a pause; where an earlier copy had no answer, the
            # room that it may still take is held until it lapses.
            world.now_s += 1
            world.state.ledger.watch_passed(world.now_s)
            for entry in world.state.ledger.lapse(world.now_s):
                world.state.tell_help(Help(entry.node))

    assert sum(refused.values()) > 10
    for name, bodies in sent.items():
        assert len(set(bodies)) <= 1 + refused[name], name
        assert not is_gated(server, name)
    used = Counter(node_pin(server.get_pod(f"p{index:03}")) for index in range(count))
    assert set(used.values()) == {30}


async def test_lost_answer_of_a_success_is_found_out(world: World) -> None:
    server = PodServer(world)
    server.shows = True
    store(world, server, "a", cpu="1")
    server.shows = False
    world.add_node("n1", cpu="1")
    server.faults = [CutAfter(OutcomeUnknownError("lost"))]

    async with queue_of(world, server):
        await until(lambda: len(server.patches) == 2)
        await settled()

        assert len(server.patches) == 2
        assert len(world.state.ledger.assumed) == 1


async def test_repetition_refused_for_the_moment_keeps_the_room(world: World) -> None:
    """The first copy may still be under way: the pod is in the version that it was made for."""
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1", cpu="1")
    server.faults = [OutcomeUnknownError("lost"), ApiError(403, "Forbidden", "not synced yet")]

    async with queue_of(world, server):
        await until(lambda: len(server.patches) == 2)
        await settled()

        assert len(server.placements) == 2
        assert len(world.state.ledger.assumed) == 1


async def test_patch_is_not_repeated_when_its_room_has_lapsed(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1", cpu="1")
    server.faults = [ApiError(503, "", "maintenance", 0.3)]

    async with queue_of(world, server):
        await until(lambda: len(server.patches) == 1)
        world.now_s += 71
        world.state.ledger.watch_passed(world.now_s)
        (lapsed,) = world.state.ledger.lapse(world.now_s)
        await asyncio.sleep(0.4)
        world.now_s += 1
        world.state.tell_help()
        await until(lambda: len(server.patches) == 2)

    (_, first), (_, second) = server.patches
    assert first != second
    assert lapsed.decision_id not in str(second)


async def test_leadership_that_pauses_does_not_lose_a_wake_up(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")

    async with queue_of(world, server) as queue:
        await settled()
        world.term.forbids = Outcome.NOT_LEADER
        world.add_node("n1")
        await settled()
        world.term.forbids = None
        await until(lambda: not len(queue), limit_s=3.0)


async def test_unreachable_server_is_asked_again(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a")
    world.add_node("n1")
    server.faults = [UnreachableError("down"), ApiError(429, "TooManyRequests", "slow")]

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    assert len(server.patches) == 3


async def test_queue_says_how_long_pods_wait_and_have_waited(world: World) -> None:
    world.add_node("n1", cpu="4")
    server = PodServer(world)
    now = datetime.now(UTC)
    created = {it: f"{now - timedelta(seconds=it):%Y-%m-%dT%H:%M:%SZ}" for it in (100, 700, 400)}
    for age_s, text in created.items():
        store(world, server, f"big-{age_s}", cpu="8", created=text)
    store(world, server, "small", cpu="1", created=created[400])
    age, count = "berthmaster_oldest_waiting_pod_age_seconds", "berthmaster_waiting_pods"
    nowhere = '{reason="nowhere"}'

    async with queue_of(world, server):
        await until(lambda: server.placements == ["small"])
        await until(lambda: not is_gated(server, "small"))
        await until(lambda: scrape(world.tools.metrics).get(count + nowhere) == 3)
        found = scrape(world.tools.metrics)

    assert found[age + nowhere] == pytest.approx(700, abs=30)
    assert found["berthmaster_wait_duration_seconds_count"] == 1
    assert found["berthmaster_wait_duration_seconds_sum"] == pytest.approx(400, abs=30)


async def test_conflict_drops_the_decision_and_queues_again(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1")
    # Somebody changes the pod, and the watch is late.
    server.shows = False
    changed = server.get_pod("a")
    changed["metadata"]["labels"] = {"x": "y"}
    server.add(changed)
    server.shows = True

    async with queue_of(world, server) as queue:
        world.show(server.get_pod("a"))
        await until(lambda: not len(queue))

    assert server.get_pod("a")["metadata"]["labels"] == {"x": "y"}


async def test_refused_patch_gives_room_back(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1", cpu="1")
    server.faults = [ApiError(422, "Invalid", "no"), ApiError(422, "Invalid", "no")]

    async with queue_of(world, server):
        await until(lambda: len(server.patches) == 1)
        await settled()
        assert not world.state.ledger.assumed
        world.now_s += 60
        world.state.tell_help()
        await until(lambda: len(server.patches) >= 2)


@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_pod_without_reason_is_ungated_unchanged(world: World, mode: str) -> None:
    server = PodServer(world)
    store(world, server, "a", annotations={names.PLACEMENT: mode})
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    pod = server.get_pod("a")
    assert "schedulingGates" not in pod["spec"]
    assert "affinity" not in pod["spec"]
    assert pod["metadata"]["annotations"] == {names.PLACEMENT: mode}


async def test_preferring_pod_leaves_the_gate_with_its_preference(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1", annotations={names.PLACEMENT: "preferred"})
    store(world, server, "big", cpu="64", annotations={names.PLACEMENT: "preferred"})
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    placed, fits_nowhere = server.get_pod("a"), server.get_pod("big")
    affinity = placed["spec"]["affinity"]["nodeAffinity"]
    assert [it["weight"] for it in affinity["preferredDuringSchedulingIgnoredDuringExecution"]] == [
        100
    ]
    assert "schedulingGates" not in placed["spec"]
    assert "schedulingGates" not in fits_nowhere["spec"]
    assert "affinity" not in fits_nowhere["spec"]


async def test_binding_pod_at_the_gate_becomes_required_and_says_so(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", annotations={names.PLACEMENT: "bind"})
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await until(lambda: not len(queue))

    pod = server.get_pod("a")
    allocation = json.loads(pod["metadata"]["annotations"][names.ALLOCATION])
    assert node_pin(pod) == "n1"
    assert allocation["mode"] == "required"
    assert "waited at the gate" in allocation["note"]


@pytest.mark.parametrize("at", ["request", "filter"])
async def test_pod_that_our_code_trips_over_stops_nobody_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    server = PodServer(world)
    engine = world.state.engine
    decide, read = engine.decide, engine.read_request

    def trip(request: Any, *args: Any, **fields: Any) -> Any:
        if request == read(server_pod("poison"), PlacementPolicySpec()):
            raise RuntimeError("poison")
        return decide(request, *args, **fields)

    def stumble(pod: Pod, *args: Any, **fields: Any) -> Any:
        if pod.metadata.name == "poison":
            raise RuntimeError("poison")
        return read(pod, *args, **fields)

    def server_pod(name: str) -> Pod:
        return pod_from_manifest(server.get_pod(name))

    store(world, server, "poison", cpu="2", created="2025-01-01T00:00:00Z")
    store(world, server, "after", cpu="1")
    world.add_node("n1")
    if at == "filter":
        monkeypatch.setattr(engine, "decide", trip)
    else:
        monkeypatch.setattr(engine, "read_request", stumble)

    async with queue_of(world, server):
        await until(lambda: "schedulingGates" not in server.get_pod("after")["spec"])
        await until(lambda: bool(conditions(server)))

        monkeypatch.undo()
        world.now_s += 60
        world.state.tell_help()
        await until(lambda: "schedulingGates" not in server.get_pod("poison")["spec"])

    assert conditions(server)[0]["reason"] == "InternalError"


async def test_deleted_policy_lets_its_pods_go_after_grace(world: World) -> None:
    server = PodServer(world)
    store_taken_over(world, server, "a", cpu="9")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server) as queue:
        await settled()
        world.remove_policy("mine")
        await settled()
        waited = len(queue)
        world.now_s += 11
        world.state.tell_help()
        await until(lambda: not len(queue))

    assert waited == 1
    assert "affinity" not in server.get_pod("a")["spec"]


async def test_policy_that_is_deleted_after_a_long_wait_has_its_grace_too(world: World) -> None:
    server = PodServer(world)
    store_taken_over(world, server, "a", cpu="1")
    world.add_node("n1", cpu="0")

    async with queue_of(world, server) as queue:
        await settled()
        world.now_s += 60
        world.remove_policy("mine")
        await settled()
        waited = len(queue)
        world.add_policy("mine", schedulerNames=["old"])
        world.add_node("n2", cpu="4")
        await until(lambda: not len(queue))

    assert waited == 1
    assert node_pin(server.get_pod("a")) == "n2"


async def test_pods_of_a_policy_wait_while_its_kind_is_gone_and_say_so(world: World) -> None:
    server = PodServer(world)
    store_taken_over(world, server, "a", cpu="9")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server) as queue:
        await settled()
        world.remove_policy("mine")
        world.state.policy_objects.is_absent = True
        for _ in range(3):
            world.now_s += PAUSE_S
            world.state.tell_help()
            await settled()
        waited, told = len(queue), conditions(server)
        world.state.policy_objects.is_absent = False
        world.now_s += 9
        world.state.tell_help()
        await settled()
        is_still_there = len(queue)
        world.now_s += 2
        world.state.tell_help()
        await until(lambda: not len(queue))

    assert (waited, is_still_there) == (1, 1)
    assert told[-1]["reason"] == "PolicyUnknown"
    assert "kubectl berth ungate" in told[-1]["message"]
    assert "affinity" not in server.get_pod("a")["spec"]


async def test_foreign_gate_is_not_touched(world: World) -> None:
    server = PodServer(world)
    gates = [{"name": names.GATE}, {"name": "other"}]
    store(world, server, "a", schedulingGates=gates)
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await settled()

        assert len(queue) == 0
        assert server.patches == []


async def test_nothing_is_sent_without_the_term(world: World) -> None:
    server = PodServer(world)
    world.term.forbids = Outcome.NOT_LEADER
    store(world, server, "a")
    world.add_node("n1")

    async with queue_of(world, server) as queue:
        await settled()
        sent = list(server.patches)
        world.term.forbids = None
        queue.take_settings()
        await until(lambda: not len(queue))

    assert sent == []


async def test_waiting_pod_says_why_once(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="9")
    store(world, server, "b", cpu="9")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 2)
        for _ in range(3):
            world.state.tell_help()
            await asyncio.sleep(0.05)

    first, second = conditions(server)
    assert first == {**second, "lastTransitionTime": first["lastTransitionTime"]}
    assert first["reason"] == "NoNodeFits"
    assert first["message"] == "0/1 nodes: 1 (n1) Insufficient cpu"


async def test_reason_that_could_not_be_written_is_told_later(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="9")
    world.add_node("n1", cpu="1")
    server.status_faults = [
        UnreachableError("down"),
        ApiError(429, "TooManyRequests", "slow"),
        ApiError(403, "Forbidden", "not synced yet"),
    ]

    async with queue_of(world, server) as queue:
        for count in (1, 2, 3, 4, 4):
            await until(lambda count=count: len(conditions(server)) == count)  # type: ignore[misc]
            await settled()
            world.now_s += 31
            queue._reporter._wake.set()

    assert len(conditions(server)) == 4


async def test_reason_that_was_due_while_we_did_not_lead_is_told_afterwards(world: World) -> None:
    """Nothing else would bring it up again: the pod's line has its reason already."""
    server = PodServer(world)
    store(world, server, "a", cpu="9")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server) as queue:
        reporter = queue._reporter
        reporter._patience_s = 1.0
        await until(lambda: bool(reporter._pending))
        world.term.forbids = Outcome.NOT_LEADER
        world.now_s += 2
        reporter._wake.set()
        await settled()
        assert conditions(server) == []
        world.term.forbids = None
        await until(lambda: len(conditions(server)) == 1, limit_s=3.0)

    assert conditions(server)[0]["reason"] == "NoNodeFits"


async def test_pod_is_told_that_there_are_no_nodes(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a")

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 1)

    assert conditions(server)[0]["message"] == "0/0 nodes: there are none"


async def test_one_pods_unheard_of_fault_does_not_silence_the_others(world: World) -> None:
    server = PodServer(world)
    for name in ("a", "b"):
        store(world, server, name, cpu="9")
    world.add_node("n1", cpu="1")
    server.status_faults = [RuntimeError("unheard of")]

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 2)

    assert {it["reason"] for it in conditions(server)} == {"NoNodeFits"}


async def test_placed_pod_that_waited_is_told(world: World) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="2")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 1)
        # As the watch shows it after a moment.
        pod = server.get_pod("a")
        pod["status"] = {"conditions": conditions(server)}
        server.add(pod)
        world.add_node("n2", cpu="2")
        await until(lambda: not len(queue) and len(conditions(server)) == 2)

    assert conditions(server)[1]["status"] == "True"


async def test_invalid_pod_waits_and_says_so(world: World) -> None:
    server = PodServer(world)
    bad = {names.PLACEMENT: "required", names.DISKIO_REQUEST: "{"}
    store(world, server, "a", annotations=bad)
    world.add_node("n1")

    async with queue_of(world, server):
        await until(lambda: len(conditions(server)) == 1)

    assert conditions(server)[0]["reason"] == "Invalid"
    assert server.placements == []


async def test_equal_pods_share_one_line(world: World) -> None:
    server = PodServer(world)
    for index in range(500):
        store(world, server, f"p{index:03}", cpu="9")
    world.add_node("n1", cpu="1")

    async with queue_of(world, server) as queue:
        await until(lambda: len(conditions(server)) == 500)

        assert len(queue) == 500
        assert len(queue._lines) == 1


@pytest.mark.parametrize("is_built", [True, False])
async def test_pod_waits_for_a_cache_that_is_being_built_and_not_for_ever(
    world: World, is_built: bool
) -> None:
    server = PodServer(world)
    world.add_policy("p", concerns={"dataset": {"hold": "60s"}})
    world.add_node("n1")
    world.announce_dataset("d", caching="Pending")
    pod = gated_manifest("a")
    pod["metadata"]["labels"] = {"dataset.0.id": "d"}
    server.add(pod)

    async with queue_of(world, server) as queue:
        await until(lambda: "still being built" in json.dumps(conditions(server)))
        world.now_s += 59
        world.state.tell_help()
        await settled()
        assert len(queue) == 1
        if is_built:
            world.add_datasets("n1", d="gateway")
        else:
            world.now_s += 1
            world.state.tell_help()
        await until(lambda: not len(queue))

    assert node_pin(server.get_pod("a")) == "n1"


async def test_pods_of_one_size_go_to_a_node_one_after_the_other(world: World) -> None:
    """Their device plugin is not told which pod it serves, and takes the oldest of that size."""
    world.add_xpus(mem=16128, count=2)
    server = PodServer(world)
    for name, mib in (("first", "1000"), ("same", "1000"), ("other", "999")):
        amounts = {MEM: mib}
        containers = [make_container(requests=amounts, limits=amounts)]
        created = "2026-01-01T00:00:01Z" if name == "first" else "2026-01-01T00:00:02Z"
        store(world, server, name, containers=containers, created=created)

    async with queue_of(world, server):
        await until(lambda: len(server.placements) == 2)
        await settled()
        assert server.placements == ["first", "other"]
        first = server.get_pod("first")
        first["spec"]["nodeName"] = "n1"
        first["metadata"]["annotations"][f"{PREFIX}_ASSIGNED"] = "true"
        world.show(first)
        await until(lambda: server.placements == ["first", "other", "same"])


async def test_pod_that_nobody_mounted_its_datasets_into_waits_and_says_so(world: World) -> None:
    server = PodServer(world)
    world.add_policy("p", concerns={"dataset": {"mounts": True}})
    world.add_node("n1")
    pod = gated_manifest("a")
    pod["metadata"]["labels"] = {"dataset.0.id": "d", "dataset.0.useas": "mount"}
    server.add(pod)

    async with queue_of(world, server):
        await until(lambda: "its datasets d are not mounted" in json.dumps(conditions(server)))
        await settled()

    assert "affinity" not in server.get_pod("a")["spec"]


async def test_queue_outlives_a_round_in_which_our_code_trips(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened in that round is looked into again, though nothing else wakes the queue."""
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    faults = [RuntimeError("poison")]
    free = world.state.engine.free

    def trip(node: str) -> Any:
        if faults:
            raise faults.pop()
        return free(node)

    async with queue_of(world, server) as queue:
        await settled()
        monkeypatch.setattr(world.state.engine, "free", trip)
        world.add_node("n1")
        await until(lambda: not len(queue), limit_s=3.0)

    assert not faults


async def test_pod_whose_room_our_code_trips_over_when_it_is_given_back_is_placed_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    store(world, server, "a", cpu="1")
    world.add_node("n1")
    server.faults = [ApiError(422, "Invalid", "no")]
    faults = [RuntimeError("poison")]
    give_back = deciding.give_back

    def trip(*args: Any) -> None:
        if faults:
            raise faults.pop()
        give_back(*args)

    monkeypatch.setattr(deciding, "give_back", trip)

    async with queue_of(world, server) as queue:
        await until(lambda: not faults)
        await settled()
        world.now_s += 60
        world.state.tell_help()
        await until(lambda: not len(queue), limit_s=3.0)


@pytest.mark.parametrize("mode", ["required", "preferred"])
async def test_pod_whose_patch_cannot_be_made_holds_neither_room_nor_slot(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """`preferred` is let go without, `required` waits; neither keeps the one place in the queue."""
    server = PodServer(world)
    placing = deciding.placing

    def trip(raw: Any, *args: Any, **fields: Any) -> Any:
        if raw["metadata"]["name"] == "poison":
            raise RuntimeError("poison")
        return placing(raw, *args, **fields)

    monkeypatch.setattr(deciding, "placing", trip)
    asked = {names.PLACEMENT: mode}
    store(world, server, "poison", cpu="2", created="2025-01-01T00:00:00Z", annotations=asked)
    store(world, server, "after", cpu="1")
    world.add_node("n1")

    async with queue_of(world, server, in_flight=1):
        await until(lambda: not is_gated(server, "after"))
        await until(lambda: is_gated(server, "poison") == (mode == "required"))
        await settled()

        assert not world.state.ledger.assumed


async def test_pods_that_are_let_go_lose_no_wake_up_when_leadership_pauses(world: World) -> None:
    server = PodServer(world)
    for name in ("a", "b", "c"):
        store(world, server, name, annotations={names.PLACEMENT: "off"})
    server.gate = asyncio.Semaphore(0)

    async with queue_of(world, server, in_flight=1) as queue:
        await until(lambda: len(server.patches) == 1)
        await settled()
        world.term.forbids = Outcome.WATCH_SILENT
        server.gate.release()
        await until(lambda: not is_gated(server, "a"))
        await settled()
        world.term.forbids, server.gate = None, None
        await until(lambda: not len(queue), limit_s=3.0)


async def test_pods_that_vanish_before_they_are_let_go_keep_nobody_behind_them(
    world: World,
) -> None:
    server = PodServer(world)
    for name in ("a", "gone", "c", "gone too", "e"):
        store(world, server, name, annotations={names.PLACEMENT: "off"})
    server.gate = asyncio.Semaphore(0)

    async with queue_of(world, server, in_flight=1) as queue:
        await until(lambda: len(server.patches) == 1)
        await settled()
        world.show_gone("uid-gone")
        server.gate.release()
        await until(lambda: len(server.patches) == 2)
        await settled()
        world.show_gone("uid-gone too")
        server.gate.release()
        server.gate.release()
        await until(lambda: not len(queue), limit_s=3.0)

    assert server.placements == ["a", "c", "e"]


def test_line_forgets_who_has_left_behind_one_that_stays() -> None:
    waiters: dict[str, Waiter] = {}
    lines = Lines(waiters)

    def join(name: str) -> Line:
        pod = pod_from_manifest(gated_manifest(name))
        waiters[name] = Waiter(pod, 0.0, Backoff())
        return lines.join((), frozenset(), name, waiters[name])

    line = join("a")
    lines.close(line, dict)
    for number in range(1000):
        join(f"b-{number}")
        if number >= 50:
            del waiters[f"b-{number - 50}"]

    assert len(line.heap) < 200
    assert lines.first(line) is waiters["a"]
    assert set(map(id, lines.members(line))) == set(map(id, waiters.values()))
