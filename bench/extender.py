"""How long kube-scheduler waits for the extender's filter, and how long the decision in it takes.

    python bench/extender.py                1,000 nodes x 8 devices

Every node has eight devices of 8064 MiB with one or two pods each, so that many nodes refuse a big pod. kube-scheduler names all nodes in
each request, as it does with `nodeCacheCapable: true`, over HTTP/1.1 with TLS and a client certificate on
one kept connection, one request after the other. Before each of them one pod somewhere comes or goes, so that
no answer is the one before. *Repeated*: the pod asks what another asked before; *new*: a size never seen.
The times over HTTP are of the clock, from the first byte sent to the last received, with client and
server on one core, and of the CPU for both together. `decision` is that of the decision alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from benching import figures
from berthmaster.api.objects import Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicy, PolicySet
from berthmaster.cluster.serving import load_pair
from berthmaster.concerns import registry
from berthmaster.placement.engine import Engine
from berthmaster.placement.records import Records
from berthmaster_sandbox.pki import Authority
from berthmaster_webhook.admission import Term
from berthmaster_webhook.answers import Answers
from berthmaster_webhook.avoiding import AvoidedNodes, OwnerPauses
from berthmaster_webhook.callers import make_context
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.extender.asking import read_asks
from berthmaster_webhook.extender.binding import Binding, BindStore
from berthmaster_webhook.extender.describing import describe
from berthmaster_webhook.extender.filtering import Filtering
from berthmaster_webhook.extender.guarding import Guard
from berthmaster_webhook.extender.routes import ExtenderRoutes
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.state import ClusterState

DEVICES = 8
DEVICE_MIB = 8064
PODS_PER_NODE = 12
WORKLOADS = 20
MEMORY = "baidu.com/xpu-mem"
PATH = "/xpushare-scheduler/filter"


class State:
    """As much of the webhook's state as the extender looks at."""

    is_synced = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ledger = engine.ledger
        self.policies = PolicySet()

    def namespace_labels(self, name: str) -> dict[str, str]:
        return {}

    def policy(self, name: str) -> PlacementPolicy | None:
        return None


class Always:
    """A term that never ends."""

    def why_not(self) -> Outcome | None:
        return None

    def answers_for(self, epoch: int | None) -> bool:
        return True


def make_manifest(number: int, mib: int, node: str = "", device: int = 0) -> dict[str, Any]:
    """Return a pod as kube-scheduler sends it, or as it runs on a device."""
    limits = {MEMORY: str(mib), "cpu": "2", "memory": "8Gi"}
    container = {
        "name": "trainer",
        "image": "registry.example.com/team/trainer:1.2.3",
        "env": [{"name": f"VARIABLE_{at}", "value": "x" * 20} for at in range(20)],
        "resources": {"limits": limits, "requests": limits},
    }
    annotations = {
        "BAIDU_COM_XPU_MEM_IDX": str(device),
        "BAIDU_COM_XPU_MEM_POD": str(mib),
        "BAIDU_COM_XPU_MEM_ASSIGNED": "true",
    }
    return {
        "metadata": {
            "name": f"trainer-{number}",
            "namespace": "team",
            "uid": f"uid-{number}",
            "annotations": annotations if node else {},
        },
        "spec": {"containers": [container], **({"nodeName": node} if node else {})},
        "status": {"phase": "Running" if node else "Pending"},
    }


def build(nodes: int, rng: random.Random) -> tuple[State, list[Pod]]:
    """Return a cluster's state and the pods that run there."""
    engine = Engine(registry.load())
    state = State(engine)
    running = []
    for index in range(nodes):
        name = f"node-{index:05d}"
        amounts = {"cpu": "64", "memory": "512Gi", "pods": "110"}
        capacity = {**amounts, MEMORY: str(DEVICES * DEVICE_MIB), "baidu.com/xpu-count": "8"}
        node = node_from_manifest(
            {
                "metadata": {"name": name, "uid": name},
                "status": {"capacity": capacity, "allocatable": capacity},
            }
        )
        engine.ledger.write_node(node, describe(node, state.policies))
        for at in range(PODS_PER_NODE):
            number = index * PODS_PER_NODE + at
            mib = rng.randrange(1000, 4000)
            pod = pod_from_manifest(make_manifest(number, mib, name, at % DEVICES))
            engine.ledger.see(pod)
            running.append(pod)
    return state, running


class Caller:
    """kube-scheduler's side of one kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, body: bytes) -> bytes:
        head = f"POST {PATH} HTTP/1.1\r\nHost: extender\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        return await self._reader.readexactly(length)


async def measure(nodes: int, requests: int) -> list[tuple[object, ...]]:
    """Return the rows of the table."""
    rng = random.Random(1)  # noqa: S311 - no secret
    state, running = build(nodes, rng)
    tools = Tools(
        state=cast(ClusterState, state),
        answers=Answers(state.ledger),
        avoided=AvoidedNodes(),
        pauses=OwnerPauses(2.0, clock=time.monotonic),
        records=Records.of(state.engine),
        metrics=Metrics(),
        clock=time.monotonic,
        own_namespace="berthmaster-system",
    )
    term: Term = Always()
    # Nothing is bound here.
    binding = Binding(tools, term, cast(BindStore, None))
    app = ExtenderRoutes(tools, Filtering(tools, term), binding, Guard("")).app()
    names = [f"node-{index:05d}" for index in range(nodes)]
    sizes = [rng.randrange(4000, 8000) for _ in range(WORKLOADS)]
    numbers = iter(range(10**6, 10**9))

    def churn() -> None:
        """Let one pod end, or come again."""
        pod = rng.choice(running)
        if state.ledger.entry(pod.metadata.uid) is None:
            state.ledger.see(pod)
        else:
            state.ledger.forget(pod)

    def repeated() -> dict[str, Any]:
        return make_manifest(next(numbers), rng.choice(sizes))

    def new() -> dict[str, Any]:
        number = next(numbers)
        return make_manifest(number, 4000 + number % 4000)

    rows: list[tuple[object, ...]] = []
    async with served(app) as call:
        for shape, make in (("repeated", repeated), ("new", new)):
            over_http = await _time_requests(call, make, churn, names, requests)
            decided = _time_decisions(tools, make, churn, requests)
            clock, cpu = zip(*over_http, strict=True)
            for what, times in (
                ("filter over HTTPS, clock", clock),
                ("filter over HTTPS, CPU", cpu),
                ("decision, CPU", decided),
            ):
                p50, p99 = (figures.percentile(times, it) for it in (50, 99))
                row = (f"{nodes:,}", shape, what, f"{p50:.2f}", f"{p99:.2f}", f"{max(times):.2f}")
                rows.append(row)
    return rows


class served:  # noqa: N801 - used as a word
    """The application on a port of its own, and one connection to it."""

    def __init__(self, app: web.Application) -> None:
        self._app = app

    async def __aenter__(self) -> Caller:
        self._folder = tempfile.TemporaryDirectory()
        authority = Authority(Path(self._folder.name))
        pair = authority.issue_server("serving", "extender", dns_names=["extender"])
        context = make_context(str(authority.certificate_path), "--extender-client-ca-file")
        load_pair(context, pair.certificate_pem, pair.key_pem)
        self._runner = web.AppRunner(self._app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        client = authority.issue_client("scheduler", "kube-scheduler")
        trust = ssl.create_default_context(cafile=str(authority.certificate_path))
        trust.load_cert_chain(client.certificate_path, client.key_path)
        port = self._runner.addresses[0][1]
        reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname="extender", limit=2**24
        )
        return Caller(reader, self._writer)

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._runner.cleanup()
        self._folder.cleanup()


async def _time_requests(
    call: Caller,
    make: Callable[[], dict[str, Any]],
    churn: Callable[[], None],
    names: list[str],
    requests: int,
) -> list[tuple[float, float]]:
    post: Callable[[bytes], Awaitable[bytes]] = call.post
    times = []
    gc.collect()
    gc.freeze()
    for at in range(requests + WORKLOADS):
        body = json.dumps({"Pod": make(), "NodeNames": names, "Nodes": None}).encode()
        churn()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        answer = await post(body)
        taken = (time.perf_counter() - begun) * 1000, (time.process_time() - begun_cpu) * 1000
        assert b'"Error":""' in answer
        # The first ones of repeated shapes are new.
        if at >= WORKLOADS:
            times.append(taken)
    return times


def _time_decisions(
    tools: Tools, make: Callable[[], dict[str, Any]], churn: Callable[[], None], requests: int
) -> list[float]:
    engine = tools.state.engine
    times = []
    for at in range(requests + WORKLOADS):
        pod = pod_from_manifest(make())
        churn()
        begun = time.process_time()
        engine.decide(read_asks(tools, pod), f"{at:012x}")
        if at >= WORKLOADS:
            times.append((time.process_time() - begun) * 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nodes", nargs="*", type=int, default=[1000])
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for nodes in arguments.nodes:
        rows += asyncio.run(measure(nodes, arguments.requests))
    header = ("nodes", "shape", "what", "p50 ms", "p99 ms", "max ms")
    figures.report("The scheduler extender", figures.table(header, rows))


if __name__ == "__main__":
    main()
