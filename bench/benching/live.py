"""A real control plane with everything whose costs count: turns of pods, and what each process used for them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from benching import creating
from benching.counting import Ground, find_faults
from benching.modes import FIVE_NAMESPACE, NAMESPACE, QUEUE, Plan, make_pods, namespace_of, pods_of
from benching.readings import Usage
from benching.turns import BYTES, READS, Turn
from benching.worlds import HOOK, MetricsPage
from berthmaster.api import names
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.processes import build_environment

DEADLINE_S = 600.0
_IDLE_S = 10.0
_SETTLE_S = 3.0
# What may still be written, in requests per second, when everything is told: kwok's nodes look well now and then.
_QUIET_WRITES, _QUIET_WRITES_PER_NODE = 3.0, 1 / 400
_BENCH = Path(__file__).resolve().parents[1]
_REQUEST = re.compile(r"apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)")
_LOGGED = re.compile(r"^etcd_disk_wal_write_bytes_total (?P<count>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_DECISION = re.compile(r'berthmaster_decisions_total\{mode="[^"]*",outcome="(?P<outcome>[^"]*)"\}')
_VERBS = {"POST", "PUT", "PATCH", "DELETE", "APPLY"}


class Cluster:
    """The sandbox with everything whose costs count."""

    def __init__(
        self,
        sandbox: Sandbox,
        pids: Mapping[str, int],
        page: MetricsPage,
        ground: Ground,
    ) -> None:
        self.sandbox = sandbox
        self.pids = pids
        self._ground = ground
        self._page = page
        self._idle_cpu: dict[str, float] = {}
        self._idle_counts: dict[str, float] = {}

    async def learn_idle(self) -> None:
        """Measure what everything uses while nothing happens."""
        used, counts, seconds = await self._span(asyncio.sleep(_IDLE_S))
        self._idle_cpu = {name: it.cpu_s / seconds for name, it in used.items()}
        self._idle_counts = {name: count / seconds for name, count in counts.items()}

    async def turn(self, plan: Plan, mode: str) -> Turn:
        """Create pods of a mode, wait until they are bound, read what that cost, and count them anew."""
        printed: list[Any] = []
        decided = await self._count_decisions()

        async def run() -> None:
            printed.append(await self._create(plan, mode))
            await self.settled()

        async with self._uncalled() if mode == QUEUE else nullcontext():
            used, counts, seconds = await self._span(run())
        outcomes = await self._count_decisions()
        outcomes.subtract(decided)
        await self._recount(plan, mode)
        await self._clear()
        found = printed[0]
        return Turn(
            pods_per_s=plan.pods / found["seconds"],
            latencies_ms=found["latencies"],
            cpu_ms={
                name: max(0.0, it.cpu_s - self._idle_cpu[name] * seconds) * 1000 / plan.pods
                for name, it in used.items()
            },
            waited=sum(it.waited_s for it in used.values()) / seconds,
            counts={
                name: (count - self._idle_counts.get(name, 0.0) * seconds) / plan.pods
                for name, count in counts.items()
            },
            outcomes={name: count / plan.pods for name, count in outcomes.items() if count},
        )

    async def settled(self) -> None:
        """Wait until hardly anything is written any more."""
        quiet = _QUIET_WRITES + _QUIET_WRITES_PER_NODE * len(self._ground.nodes)
        before = _writes(await self._count())
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await asyncio.sleep(_SETTLE_S)
                now = _writes(await self._count())
                if (now - before) / _SETTLE_S <= quiet:
                    return
                before = now

    async def _recount(self, plan: Plan, mode: str) -> None:
        """End the run if a pod is missing or any node is past its line."""
        pods: list[Any] = []
        async for page in self.sandbox.client.list_pages(pods_of(mode)):
            pods += json.loads(page)["items"]
        faults = find_faults(self._ground, pods, expected=plan.pods, at_s=time.time())
        if faults:
            more = f"\nand {len(faults) - 20} more" if len(faults) > 20 else ""
            raise SystemExit(f"mode {mode}, counted anew:\n" + "\n".join(faults[:20]) + more)

    async def _count_decisions(self) -> Counter[str]:
        """Return the webhook's answers by outcome, those of its queue as well."""
        counts: Counter[str] = Counter()
        for name, count in (await self._page.read()).items():
            match = _DECISION.fullmatch(name)
            if match is not None:
                counts[match["outcome"]] += int(count)
        return counts

    async def _span(self, work: Any) -> tuple[dict[str, Usage], Counter[str], float]:
        before = {name: Usage.of(pid) for name, pid in self.pids.items()}
        counts, began_s = await self._count(), time.monotonic()
        await work
        seconds = time.monotonic() - began_s
        used = {name: Usage.of(pid).since(before[name]) for name, pid in self.pids.items()}
        after = await self._count()
        after.subtract(counts)
        return used, after, seconds

    async def _count(self) -> Counter[str]:
        """Return writes by name, all other requests, and bytes."""
        raw = await self.sandbox.client.request("GET", "/metrics", timeout_s=60)
        counts: Counter[str] = Counter()
        for match in _REQUEST.finditer(raw.decode()):
            labels = dict(_LABEL.findall(match["labels"]))
            resource, sub, verb = (labels.get(it, "") for it in ("resource", "subresource", "verb"))
            if resource in ("leases", "") or verb == "WATCH":
                continue
            name = f"{verb} {resource}{'/' + sub if sub else ''}" if verb in _VERBS else READS
            counts[name] += int(float(match["count"]))
        url = f"http://127.0.0.1:{self.sandbox.slot.etcd_client_port}/metrics"
        async with self._page.session.get(url) as answer:
            found = _LOGGED.search(await answer.text())
        counts[BYTES] = int(float(found["count"])) if found else 0
        return counts

    @asynccontextmanager
    async def _uncalled(self) -> AsyncIterator[None]:
        """Have the API server not call the webhook."""
        stored = await self.sandbox.client.get(HOOK)
        await self._set_rules([])
        yield
        await self._set_rules(stored["webhooks"][0]["rules"])

    async def _set_rules(self, rules: list[Any]) -> None:
        operation = {"op": "replace", "path": "/webhooks/0/rules", "value": rules}
        hook = ("mutatingwebhookconfiguration", names.WEBHOOK_CONFIGURATION)
        await self.sandbox.kubectl("patch", *hook, "--type=json", "-p", json.dumps([operation]))
        # Until the API server's own watch has shown it to it.
        await asyncio.sleep(_SETTLE_S)

    async def _create(self, plan: Plan, mode: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", creating.__name__),
            *("--kubeconfig", str(self.sandbox.kubeconfig), "--namespace", namespace_of(mode)),
            *("--pods", json.dumps(make_pods(mode, plan))),
            *("--count", str(plan.pods), "--hands", str(plan.hands)),
            env=build_environment({"PYTHONPATH": str(_BENCH)}),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"the pods of mode {mode} were not all bound")
        return json.loads(out)

    async def _clear(self) -> None:
        client = self.sandbox.client
        async with asyncio.timeout(DEADLINE_S):
            for namespace in (NAMESPACE, FIVE_NAMESPACE):
                path = f"/api/v1/namespaces/{namespace}/pods"
                while (await client.get(path, {"limit": 1}, timeout_s=60))["items"]:
                    # Deleting many takes the API server longer than it gives a request; what is left is asked for again.
                    with suppress(OutcomeUnknownError, ApiError):
                        await client.delete(path, query={"gracePeriodSeconds": 0}, timeout_s=120)
                    await asyncio.sleep(0.5)
        await self.settled()


def _writes(counts: Mapping[str, float]) -> float:
    return sum(count for name, count in counts.items() if name not in (READS, BYTES))
