"""Meters, a model server and `metrics.k8s.io` for simulated nodes: what an operator reads of power.

    pods --watch--> load of each node --> NodeMetrics, every PERIOD_S
    GET  /bmc/NODE/...                    Redfish, as an iDRAC, with the inlet's temperature
    GET  /api/sensor/by_nodename/NODE     the differential pressure API
    POST /v2/models/KIND/infer            a straight line from idle to full watts: a model, not the world's curve

NodeMetrics are custom resources here, which read like those of metrics-server: a sandbox has no kubelets that it
could ask. A pod that runs uses `USED_SHARE` of its request, and shows in the metrics `LATE_S` later. Everything
listens on loopback. `stop_answering` makes all servers as good as dead: they take connections and hang.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from berthmaster.api.objects import Pod, decode_pod
from berthmaster.api.quantities import parse_quantity
from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.installing import is_listed
from berthmaster_sandbox.world.living import Work, World
from berthmaster_sandbox.world.power_machines import MACHINES, Machine

logger = logging.getLogger(__name__)

METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"
PERIOD_S, LATE_S, WINDOW_S = 2.0, 4.0, 1
USED_SHARE = 0.6
INLET_CELSIUS = 22.0
_IDRAC = "redfish/v1/Chassis/System.Embedded.1/Sensors/SystemBoardInletTemp"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_CRD_LOOKS, _CRD_PAUSE_S = 100, 0.2

_METRICS_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "nodes.metrics.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, plays metrics-server"},
    },
    "spec": {
        "group": "metrics.k8s.io",
        "scope": "Cluster",
        "names": {"plural": "nodes", "kind": "NodeMetrics", "listKind": "NodeMetricsList"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@dataclass(slots=True)
class _Running:
    """A pod that runs: how much it asks for, and since when."""

    node: str
    cores: float
    since_s: float


@dataclass(slots=True)
class _Meters:
    """The machines by node, and whether their servers answer."""

    machines: dict[str, Machine] = field(default_factory=dict)
    answers: asyncio.Event = field(default_factory=asyncio.Event)


class PowerWorld(World):
    """Use it with `async with`; add nodes that are there already."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._meters = _Meters()
        self._meters.answers.set()
        self._running: dict[str, _Running] = {}
        self._runner: web.AppRunner | None = None
        self.origin = ""
        self._pods: Informer[Pod] = Informer(
            client,
            "/api/v1/pods",
            decode=decode_pod,
            key=lambda pod: pod.metadata.uid,
            on_event=self._take_pod,
        )

    async def __aenter__(self) -> Self:
        """Make the API server serve NodeMetrics, open the meters, and start."""
        await install_node_metrics(self._client)
        await self._open()
        return await super().__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and close the meters."""
        try:
            await super().__aexit__(exc_type, exc, traceback)
        finally:
            if self._runner is not None:
                await self._runner.cleanup()

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_get(f"/bmc/{{node}}/{_IDRAC}", self._inlet)
        app.router.add_get("/api/sensor/by_nodename/{node}", self._pressure)
        app.router.add_post("/v2/models/{kind}/infer", self._infer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def add_node(self, name: str, machine: Machine) -> dict[str, Any]:
        """Give a node a machine; return the spec of its NodeConfig."""
        await self._report(name)
        self._meters.machines[name] = machine
        return {
            "nodeName": name,
            "metricsCollector": {
                "inletTemp": {"type": "Redfish", "endpoint": f"{self.origin}/bmc/{name}"},
                "deltaP": {"type": "DifferentialPressureAPI", "endpoint": self.origin},
            },
            "predictor": {
                "powerConsumption": {
                    "type": "V2InferenceProtocol",
                    "endpoint": f"{self.origin}/v2/models/{machine.name}/infer",
                }
            },
        }

    def stop_answering(self) -> None:
        """Let every server hang from now on."""
        self._meters.answers.clear()

    def _informers(self) -> Sequence[Informer[Any]]:
        return (self._pods,)

    def _others(self) -> Iterable[Work]:
        return (self._follow(),)

    def _stop(self) -> None:
        self._meters.answers.set()

    def _take_pod(self, kind: EventKind, pod: Pod) -> None:
        uid = pod.metadata.uid
        if kind is EventKind.DELETED or pod.status.phase != "Running":
            self._running.pop(uid, None)
        elif uid not in self._running:
            requests = (
                (it.resources.requests or {}).get("cpu", "0")
                for it in pod.spec.containers or ()
                if it.resources is not None
            )
            cores = float(sum(map(parse_quantity, requests)))
            self._running[uid] = _Running(pod.spec.node_name, cores, time.time())

    async def _follow(self) -> None:
        while True:
            for name in tuple(self._meters.machines):
                try:
                    await self._report(name)
                except ClusterError as error:
                    logger.warning("no metrics", extra={"node": name, "error": str(error)})
            await asyncio.sleep(PERIOD_S)

    async def _report(self, name: str) -> None:
        at_s = time.time() - LATE_S
        until = at_s - WINDOW_S
        known = (it for it in self._running.values() if it.node == name and it.since_s <= until)
        cores = USED_SHARE * sum(it.cores for it in known)
        found = build_node_metrics(name, cores, at_s)
        try:
            await self._client.patch(f"{METRICS}/{name}", found, PatchKind.MERGE)
        except ApiError as error:
            if not error.is_not_found:
                raise
            await self._client.create(METRICS, found)

    async def _inlet(self, request: web.Request) -> web.Response:
        await self._machine(request.match_info["node"])
        return web.json_response({"Name": "System Board Inlet Temp", "Reading": INLET_CELSIUS})

    async def _pressure(self, request: web.Request) -> web.Response:
        await self._machine(request.match_info["node"])
        return web.json_response({"code": 200, "sensor": [{"sensorid": "1", "pressure": 0.01}]})

    async def _infer(self, request: web.Request) -> web.Response:
        await self._meters.answers.wait()
        kind = request.match_info["kind"]
        machine = next((it for it in MACHINES if it.name == kind), None)
        if machine is None:
            raise web.HTTPNotFound
        rows = (await request.json())["inputs"][0]["data"]
        rise = (machine.full_watts - machine.idle_watts) / machine.cores
        watts = [machine.idle_watts + rise * row[0] for row in rows]
        output = {"name": "predict", "shape": [len(rows), 1], "datatype": "FP64", "data": watts}
        return web.json_response({"model_name": kind, "outputs": [output]})

    async def _machine(self, node: str) -> Machine:
        await self._meters.answers.wait()
        machine = self._meters.machines.get(node)
        if machine is None:
            raise web.HTTPNotFound
        return machine


async def install_node_metrics(client: Client) -> None:
    """Make the API server serve NodeMetrics. Raises ClusterError, and TimeoutError if it does not soon."""
    try:
        await client.create(_CRDS, _METRICS_CRD)
    except ApiError as error:
        if not error.is_already_exists:
            raise
    for _ in range(_CRD_LOOKS):
        if await is_listed(client, METRICS):
            return
        await asyncio.sleep(_CRD_PAUSE_S)
    raise TimeoutError("NodeMetrics are not served")


def build_node_metrics(name: str, cores: float, sampled_s: float) -> dict[str, Any]:
    """Return a node's NodeMetrics; `sampled_s` is in seconds since the epoch."""
    return {
        "apiVersion": "metrics.k8s.io/v1beta1",
        "kind": "NodeMetrics",
        "metadata": {"name": name},
        "timestamp": datetime.fromtimestamp(sampled_s, UTC).isoformat(),
        "window": f"{WINDOW_S}s",
        "usage": {"cpu": f"{round(cores * 1000)}m", "memory": "1Gi"},
    }
