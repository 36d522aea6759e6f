"""A node's power for tests: a book and a collector on time that stands still, and the Secret that may be read."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from typing import Any

from berthmaster.api.power import CpuUsage, PowerNode
from berthmaster.api.quantities import NANO
from berthmaster.cluster.errors import ApiError
from berthmaster.concerns.power.inventory import PowerInventory
from berthmaster_operator.handlers import node_configs
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.book import PowerBook
from berthmaster_operator.power.collecting import NODE_METRICS, Collector
from berthmaster_operator.power.fetching import Fetcher

GROUP = "wao.bitmedia.co.jp"
IPMI = (
    'ipmi_temperature_celsius{id="1",name="Ambient"} 24\n'
    'ipmi_temperature_celsius{id="2",name="CPU1"} 33\n'
    'ipmi_temperature_celsius{id="3",name="CPU2"} 36\n'
    "ipmi_dcmi_power_consumption_current_watts 142\n"
)
_RANGES = {"ambient": (11.5, 36.5), "cpu1": (24, 42), "cpu2": (23, 49)}


def v1_labels(**others: str) -> dict[str, str]:
    """Return labels of WAO's first generation, whose temperatures are those of `IPMI`'s sensors."""
    ends = {
        f"{it}/{end}": str(value)
        for it, pair in _RANGES.items()
        for end, value in zip(("min", "max"), pair, strict=True)
    }
    return {**ends, "tensorflow/host": "127.0.0.1", "tensorflow/name": "konohana", **others}


class Secrets:
    """The one Secret that may be read, and the pages of `metrics.k8s.io`."""

    def __init__(self) -> None:
        self.pages: list[bytes] = []
        self.pods: dict[str, dict[str, Any]] = {}

    async def get(self, path: str, query: object = None, *, timeout_s: float) -> dict[str, Any]:
        if path.startswith("/apis/metrics.k8s.io/"):
            if path not in self.pods:
                raise ApiError(404, "NotFound", "no")
            return self.pods[path]
        if path != "/api/v1/namespaces/wao-system/secrets/bmc":
            raise ApiError(403, "Forbidden", "no")
        data = {"username": "u", "password": "p"}
        return {"data": {key: base64.b64encode(it.encode()).decode() for key, it in data.items()}}

    async def list_pages(self, path: str) -> AsyncIterator[bytes]:
        assert path == NODE_METRICS
        for page in self.pages:
            yield page


class PowerWorld:
    """One node, a book, and what reads for it."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.now_s = 1_000_000.0
        self.dirty: list[str] = []
        self.began: set[float] = set()
        self.book = PowerBook(
            on_dirty=self.dirty.append,
            begins=lambda _name, after_s, until_s: any(
                after_s < it <= until_s for it in self.began
            ),
        )
        self.secrets = Secrets()
        self.metrics = Metrics()
        self.collector = Collector(
            self.book,
            Asker(fetcher, self.secrets),
            self.secrets,
            may_collect=lambda: True,
            metrics=self.metrics,
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
            rng=random.Random(1),  # noqa: S311 - jitter of a test
        )
        self.see_node()

    def see_node(self, **labels: str) -> None:
        self.book.see_node(
            PowerNode(name="n1", labels=labels, address="127.0.0.1", capacity_nanocores=8 * NANO)
        )

    def configure(
        self,
        *,
        inlet: dict[str, Any] | None = None,
        delta: dict[str, Any] | None = None,
        **predictor: Any,
    ) -> None:
        fake = {"type": "Fake", "endpoint": ""}
        config = {
            "apiVersion": f"{GROUP}/v1beta1",
            "metadata": {"name": "c", "namespace": "wao-system"},
            "spec": {
                "nodeName": "n1",
                "metricsCollector": {"inletTemp": inlet or fake, "deltaP": delta or fake},
                "predictor": predictor,
            },
        }
        node_configs.take_config(self.book, GROUP, config)

    def use(self, cores: float, *, sampled_s: float | None = None) -> None:
        at_s = self.now_s if sampled_s is None else sampled_s
        usage = CpuUsage(nanocores=int(cores * NANO), sampled_s=at_s, window_s=15.0)
        self.book.take_usages([("n1", usage)], now_s=self.now_s)

    async def turn(self, seconds: float = 6.0) -> int:
        """Let time pass and do what is due until nothing is; return how many jobs were done."""
        self.collector.start_due()
        for slot in self.collector.slots:
            slot.is_busy = False
        self.now_s += seconds
        done = 0
        while slots := self.collector.start_due():
            for slot in slots:
                await self.collector.work(slot)
            done += len(slots)
        return done

    def built(self) -> PowerInventory:
        return self.book.build("n1", now_s=self.now_s)[0]

    def message(self) -> str:
        condition = self.built().condition
        assert condition is not None
        return condition.message
