"""The page of the harbour: what is where, who waits, what was decided last. Read only.

`state` makes its JSON from what is in memory, bounded whatever the cluster's size; the page beside this
file shows it. `/harbour.json` and the page are behind the same door as the metrics (`reading`).
"""

from __future__ import annotations

import time
from importlib import resources
from typing import Any

from aiohttp import web

from berthmaster.placement.filling import Filling
from berthmaster.placement.records import summarise, tabulate
from berthmaster_webhook.admission import Term
from berthmaster_webhook.bypassing import BypassedPods
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.waiting import WaitingPods

MOST_NODES = 300
MOST_WAITING = 100
MOST_DECISIONS = 40
_FILES = {
    "/harbour": ("page.html", "text/html"),
    "/harbour.css": ("page.css", "text/css"),
    "/harbour.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Harbour:
    """Answers for the page, and for `kubectl berth why`."""

    def __init__(
        self,
        tools: Tools,
        term: Term,
        queue: WaitingPods,
        filling: Filling,
        bypassed: BypassedPods,
    ) -> None:
        self._tools = tools
        self._term = term
        self._queue = queue
        self._filling = filling
        self._bypassed = bypassed

    def add_routes(self, app: web.Application) -> None:
        """Serve the page, its state, and decisions."""
        for path, (name, kind) in _FILES.items():
            app.router.add_get(path, _show(name, kind))
        app.router.add_get("/harbour.json", self._show_state)
        app.router.add_get("/decisions", self._show_decisions)

    def state(self) -> dict[str, Any]:
        """Return what the page shows."""
        self._filling.refresh()
        why_not = self._term.why_not()
        return {
            "time": time.time(),
            "deciding": "" if why_not is None else str(why_not),
            "resources": [
                {**it._asdict(), "capacity": level.capacity, "used": level.used, "over": over}
                for it, level, over in self._filling.totals()
            ],
            "nodeCount": len(self._tools.state.engine.table),
            "nodes": [self._node(name) for name in self._filling.fullest(MOST_NODES)],
            "waitingCount": len(self._queue),
            "waiting": self._queue.describe(MOST_WAITING),
            "bypassedCount": len(self._bypassed),
            "decisions": [summarise(it) for it in self._tools.records.latest(MOST_DECISIONS)],
        }

    def _node(self, name: str) -> dict[str, Any]:
        inventory = self._tools.state.inventories.store.get(name)
        conditions = (inventory.status.conditions if inventory is not None else None) or ()
        return {
            "name": name,
            "levels": [
                {"concern": it.concern, "resource": it.resource, "unit": it.unit, **level._asdict()}
                for it, level in self._filling.of_node(name)
            ],
            "troubles": [f"{it.type} {it.reason}" for it in conditions if it.status != "True"],
        }

    async def _show_state(self, _: web.Request) -> web.Response:
        return web.json_response(self.state(), headers=HEADERS)

    async def _show_decisions(self, request: web.Request) -> web.Response:
        """Answer `?id=` or `?pod=namespace/name` with one decision and its table, else with the last ones."""
        decision_id, pod = request.query.get("id", ""), request.query.get("pod", "")
        records = self._tools.records
        if not decision_id and not pod:
            latest = [summarise(it) for it in records.latest(MOST_DECISIONS)]
            return web.json_response({"decisions": latest}, headers=HEADERS)
        record = records.find(decision_id=decision_id, pod=pod)
        if record is None:
            text = "this replica has no such decision in its memory"
            return web.Response(status=404, text=text, headers=HEADERS)
        return web.json_response({**summarise(record), "table": tabulate(record)}, headers=HEADERS)


def _show(name: str, kind: str) -> Any:
    body = (resources.files(__package__) / name).read_bytes()

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    return show
