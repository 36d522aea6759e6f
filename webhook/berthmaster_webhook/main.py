"""The webhook's process: what runs, in which order it starts, and in which it stops.

Start: the API server must answer, else the process ends with a message and status 1. Probes are
served at once, admission as soon as there is a certificate; a Lease is sought when all kinds have been
listed and a certificate is there. Stop (SIGTERM): nothing is decided any more, what is under way is
finished, the Lease is handed over, late requests are answered for a while, and the process ends with 0.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
import time
from contextlib import suppress
from typing import cast

from aiohttp import web

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ClusterError, ConfigurationError
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.listening import listen
from berthmaster.cluster.reviews import Doorkeeper
from berthmaster.concerns import registry
from berthmaster.json_logs import set_up_logs
from berthmaster.placement.records import Records
from berthmaster_webhook import reading
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.answers import Answers
from berthmaster_webhook.avoiding import AvoidedNodes, OwnerPauses
from berthmaster_webhook.bypassing import BypassedPods
from berthmaster_webhook.callers import make_context
from berthmaster_webhook.certificates import Certificates
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.extender.binding import Binding
from berthmaster_webhook.extender.filtering import Filtering
from berthmaster_webhook.extender.guarding import read_guard
from berthmaster_webhook.extender.routes import ExtenderRoutes
from berthmaster_webhook.harbour import Harbour
from berthmaster_webhook.leading import Leadership
from berthmaster_webhook.measuring import Books
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.notes import PodNotes
from berthmaster_webhook.pins import FailedPins
from berthmaster_webhook.proving import WatchProof
from berthmaster_webhook.refusals import REFUSED_PAUSE_S, KubeletRefusals
from berthmaster_webhook.reporting import Reporter
from berthmaster_webhook.server import IDLE_S, Routes
from berthmaster_webhook.settings import Settings, SettingsError, read_settings
from berthmaster_webhook.state import ClusterState
from berthmaster_webhook.turns import Turns, read_weight
from berthmaster_webhook.waiting import WaitingPods

logger = logging.getLogger(__name__)

COMPONENT = "berthmaster.io/placer"
CONNECT_ATTEMPTS_S = 60.0
# Longer than the API server's patience with a request (1 s).
FINISH_S = 2.0


def main() -> None:
    """Run the webhook until it is told to stop; exit with 1 if that is not possible."""
    try:
        settings = read_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        sys.exit(f"berthmaster-webhook: {error}")
    set_up_logs(settings.log_level)
    try:
        asyncio.run(_run(settings))
    except (ClusterError, SettingsError) as error:
        sys.exit(f"berthmaster-webhook: {error}")


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = await Client.connect(settings.kubeconfig, user_agent="berthmaster-webhook")
    async with client:
        await _reach(client, stop)
        if not stop.is_set():
            await Process(client, settings).run(stop)
    logger.info("stopped")


async def _reach(client: Client, stop: asyncio.Event) -> None:
    """Wait until the API server answers; give up after a minute with its last word."""
    backoff = Backoff(first_s=0.5, cap_s=5.0)
    end_s = time.monotonic() + CONNECT_ATTEMPTS_S
    while not stop.is_set():
        try:
            await client.get("/version")
            return
        except ConfigurationError:
            raise
        except ClusterError as error:
            if time.monotonic() > end_s:
                raise
            wait_s = backoff.next_s()
            logger.warning("API server not reached yet", extra={"error": str(error)})
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await stop.wait()


class Process:
    """All parts, wired. Built inside a running loop."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        client.on_answer = self.metrics.count_request
        self.state = ClusterState(
            client, registry.load(), self.metrics, assume_ttl_s=settings.assume_ttl_s
        )
        client.on_doubt = self.state.renew
        tools = Tools(
            state=self.state,
            answers=Answers(self.state.ledger),
            avoided=AvoidedNodes(),
            pauses=OwnerPauses(REFUSED_PAUSE_S, clock=time.monotonic),
            records=Records.of(self.state.engine),
            metrics=self.metrics,
            clock=time.monotonic,
            own_namespace=settings.namespace,
        )
        proof = WatchProof(
            client,
            self.state.ledger,
            namespace=settings.namespace,
            pod_name=settings.pod_name,
            clock=time.monotonic,
            on_silent=self.state.renew,
        )
        self.certificates = Certificates(
            client, settings.namespace, settings.pod_name, self.metrics
        )
        self.leadership = Leadership(client, settings, tools, proof)
        self.events = EventRecorder(client, COMPONENT, instance=settings.pod_name)
        self.reporter = Reporter(
            client, self.events, may_write=self._is_leader, clock=time.monotonic
        )
        self.queue = WaitingPods(
            tools, self.leadership, client, self.reporter, turns=self._make_turns()
        )
        self.pins = FailedPins(
            tools, self.leadership, client, self.reporter, on_avoid=self.queue.take_avoided
        )
        self.routes = Routes(
            Admission(tools, self.leadership, self.queue.goes_first),
            tools,
            self.not_ready,
            callers_names=settings.callers_names,
        )
        notes = PodNotes(tools.answers, self.events)
        refusals = KubeletRefusals(
            tools, self.events, may_write=self._is_leader, on_avoid=self.queue.take_avoided
        )
        self.state.on_pod += [
            proof.take_pod,
            self.leadership.take_pod,
            self.queue.take_pod,
            self.pins.take_pod,
            notes.take_pod,
            refusals.take_pod,
        ]
        self.state.on_pods_current.append(proof.take_current)
        self.state.on_settings.append(self.queue.take_settings)
        self.state.on_help.append(self.queue.take_help)
        self.leadership.on_ready += [self.queue.take_settings, self.pins.take_ready]
        books = Books(self.state, self.metrics)
        bypassed = BypassedPods(
            self.metrics,
            self.state.ledger,
            books.filling,
            self.events,
            may_tell=lambda: self.state.is_synced and self._is_leader(),
        )
        self.state.on_pod.append(bypassed.take_pod)
        self.metrics.before_render.append(
            lambda: self.metrics.synced.set(1 if self.state.is_synced else 0)
        )
        self.binding = Binding(tools, self.leadership, client)
        self.state.on_pod.append(self.binding.take_pod)
        self.extender = ExtenderRoutes(
            tools,
            Filtering(tools, self.leadership),
            self.binding,
            read_guard(settings.extender_token_file),
        )
        self._extender_context = make_context(
            settings.extender_client_ca_file, "--extender-client-ca-file"
        )
        self._admission_context = make_context(settings.client_ca_file, "--client-ca-file")
        self.certificates.serve_also(self._extender_context)
        self.certificates.serve_also(self._admission_context)
        self._readers = reading.build_app(Doorkeeper(client), self.metrics)
        Harbour(tools, self.leadership, self.queue, books.filling, bypassed).add_routes(
            self._readers
        )
        self._is_stopping = False
        self._runners: list[web.AppRunner] = []
        self._listeners: list[asyncio.Server] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set and everything has been brought to its end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._serve_probes()
                parts = (
                    self.state.run(),
                    self.certificates.run(),
                    self.leadership.run(self._eligible),
                    self.queue.run(),
                    self.pins.run(),
                    self.reporter.run(),
                    self.events.run(),
                    self._serve_admission(),
                    self._serve_readers(),
                    self._serve_extender(),
                )
                running = [tasks.create_task(part) for part in parts]
                await stop.wait()
                await self._wind_down()
                for task in running:
                    task.cancel()
        finally:
            for listener in self._listeners:
                listener.close()
            for runner in self._runners:
                await runner.cleanup()

    def not_ready(self) -> list[str]:
        """Return what keeps this replica from being Ready; a standby that has everything is."""
        missing = [f"{kind} not listed yet" for kind in self.state.not_synced]
        if not self.certificates.loaded.is_set():
            missing.append("no certificate yet")
        if self._is_stopping:
            missing.append("stopping")
        return missing

    def _make_turns(self) -> Turns | None:
        if self.settings.queue_turns == "none":
            return None
        return Turns(lambda namespace: read_weight(self.state.namespace_labels(namespace)))

    def _is_leader(self) -> bool:
        return self.leadership.leads

    async def _eligible(self) -> None:
        await self.state.synced()
        # What was listed mostly stays. Looking through it again would stop everything for a good part
        # of a second now and then, and the API server waits one second for an answer.
        gc.collect()
        gc.freeze()
        await self.certificates.loaded.wait()

    async def _wind_down(self) -> None:
        """Stop in order: decide no more, finish, hand over, answer late comers."""
        logger.info("stopping")
        self._is_stopping = True
        self.leadership.stop()
        await asyncio.gather(self.routes.drained(FINISH_S), self.queue.drained(FINISH_S))
        await self.leadership.hand_over()
        await asyncio.gather(self.events.drain(FINISH_S), asyncio.sleep(self.settings.drain_s))

    async def _serve_probes(self) -> None:
        runner = await self._start(self.routes.probe_app())
        await self._listen(runner, self.settings.probe_port)

    async def _serve_admission(self) -> None:
        await self.certificates.loaded.wait()
        await self._serve_tls(
            self.routes.admission_app(), self.settings.port, self._admission_context
        )

    async def _serve_readers(self) -> None:
        await self.certificates.loaded.wait()
        await self._serve_tls(self._readers, self.settings.metrics_port, self.certificates.context)

    async def _serve_extender(self) -> None:
        if not self.settings.extender_port:
            return
        await self.certificates.loaded.wait()
        await self._serve_tls(
            self.extender.app(), self.settings.extender_port, self._extender_context
        )

    async def _serve_tls(self, app: web.Application, port: int, context: ssl.SSLContext) -> None:
        runner = await self._start(app)
        await self._listen(runner, port, context)
        logger.info("serving", extra={"port": port})

    async def _listen(
        self, runner: web.AppRunner, port: int, context: ssl.SSLContext | None = None
    ) -> None:
        server = cast("web.Server", runner.server)
        self._listeners.append(await listen(server, self.settings.bind_address, port, context))

    async def _start(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_S,
            # Half-sent headers and bodies do not hold a connection for long after an answer.
            lingering_time=2.0,
            shutdown_timeout=FINISH_S,
        )
        await runner.setup()
        self._runners.append(runner)
        return runner


if __name__ == "__main__":
    main()
