"""One container's life: started, probed, restarted with a growing pause, stopped with grace.

The runner owns the container's process and its snapshot; the pod's worker reads the snapshot and
is told of each change. An image that is not on the sandbox's list is never started: the
container waits, as it would for a registry that refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from berthmaster.cluster.client import ClusterError
from berthmaster_sandbox.kubelet import probing
from berthmaster_sandbox.kubelet.environment import ConfigError, Launch
from berthmaster_sandbox.kubelet.probing import ProbeCounter, ProbeSpec, ProbeTarget, Verdict
from berthmaster_sandbox.kubelet.processes import START_ERROR_CODE, ContainerProcess, StartError
from berthmaster_sandbox.kubelet.statuses import ContainerSnapshot, Phase, now_text, state_of
from berthmaster_sandbox.processes import read_tail

logger = logging.getLogger(__name__)

# Shorter than a real kubelet's 10 s to 5 min: nobody waits that long for a test.
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 10.0)
# A run of this length is taken as success: the pauses start over.
STABLE_S = 60.0
RETRY_S = 1.0
# Between SIGTERM and SIGKILL after a failed liveness probe, unless the pod says otherwise.
GRACE_S = 30.0


class Surroundings(Protocol):
    """What a container needs from its pod."""

    async def build_launch(self, container: Mapping[str, Any], entrypoint: Sequence[str]) -> Launch:
        """Resolve the container's variables and arguments. Raises ConfigError, ClusterError."""

    def record(self, *, reason: str, message: str, is_warning: bool = False) -> None:
        """Post an Event about the pod."""

    def changed(self) -> None:
        """Take note that the snapshot is another one."""

    @property
    def bind_address(self) -> str:
        """Where the pod's processes listen."""

    @property
    def work_folder(self) -> Path:
        """The processes' working folder."""


class ContainerRunner:
    """Runs one container of a pod; `snapshot` is always up to date."""

    def __init__(
        self,
        container: Mapping[str, Any],
        *,
        snapshot: ContainerSnapshot,
        entrypoint: Sequence[str] | None,
        restart_policy: str,
        log_folder: Path,
        surroundings: Surroundings,
    ) -> None:
        """Take the image's entrypoint, or None if the image is not on the sandbox's list."""
        self.container = container
        self.snapshot = snapshot
        self.log_folder = log_folder
        self._entrypoint = entrypoint
        self._restart_policy = restart_policy
        self._surroundings = surroundings
        # Set once the container has passed its startup probe for the first time.
        self.started = asyncio.Event()
        self._process: ContainerProcess | None = None
        self._launch: Launch | None = None
        self._stopping = asyncio.Event()
        self._done = asyncio.Event()
        self._has_begun = False
        self._pauses = 0
        # The last failure of each kind of probe, so that it is told once and not each second.
        self._complaints: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.container["name"])

    @property
    def log_path(self) -> Path:
        """The file with the output of the present or the last run."""
        return self.log_folder / f"{self.snapshot.restarts}.log"

    @property
    def pid(self) -> int | None:
        """The id of the running process, None between two runs."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Run until the container has ended for good or was stopped; cancelling kills it."""
        self._has_begun = True
        try:
            while not (self._stopping.is_set() or self._ended_before()):
                launch = await self._prepare()
                if launch is None:
                    break
                await self._run_once(launch)
                if not self._may_restart(self.snapshot.exit_code):
                    break
                await self._back_off()
        finally:
            self._finish()
            self._done.set()

    async def stop(self, grace_s: float) -> None:
        """End the container: preStop, SIGTERM and, when `grace_s` seconds are over, SIGKILL.

        One that has not begun will not.
        """
        self._stopping.set()
        if not self._has_begun:
            return
        deadline = asyncio.get_running_loop().time() + grace_s
        process = self._process
        if process is not None:
            await self._pre_stop(grace_s)
            left_s = max(deadline - asyncio.get_running_loop().time(), 0.1)
            await process.end(left_s)
        await self._done.wait()

    def kill(self) -> None:
        """Kill the processes at once, without a word to them."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill_group()

    async def _prepare(self) -> Launch | None:
        """Return what to start; None when the container is stopped before that is known."""
        if self._entrypoint is None:
            await self._wait_for_image()
            return None
        told = ""
        while not self._stopping.is_set():
            try:
                return await self._surroundings.build_launch(self.container, self._entrypoint)
            except (ConfigError, ClusterError) as error:
                self._set(
                    phase=Phase.WAITING, reason="CreateContainerConfigError", message=str(error)
                )
                if str(error) != told:
                    told = str(error)
                    self._surroundings.record(reason="Failed", message=told, is_warning=True)
            await self._pause(RETRY_S)
        return None

    async def _wait_for_image(self) -> None:
        image = self.container.get("image") or ""
        message = (
            f"image {image!r} is not on the sandbox's list, so it is not run on this machine; "
            "pods with other images belong to simulated nodes"
        )
        self._set(phase=Phase.WAITING, reason="ErrImagePull", message=message)
        self._surroundings.record(reason="Failed", message=message, is_warning=True)
        await self._stopping.wait()

    async def _run_once(self, launch: Launch) -> None:
        try:
            process = await ContainerProcess.start(
                launch, cwd=self._surroundings.work_folder, log_path=self.log_path
            )
        except StartError as error:
            self._surroundings.record(reason="Failed", message=str(error), is_warning=True)
            self._end(START_ERROR_CODE, reason="StartError", message=str(error))
            return
        self._process, self._launch = process, launch
        self._set(
            phase=Phase.RUNNING,
            reason="",
            message="",
            started_at=now_text(),
            finished_at=None,
            container_id=f"process://{uuid.uuid4().hex}",
            is_started="startupProbe" not in self.container,
            is_ready=not {"startupProbe", "readinessProbe"} & set(self.container),
        )
        self._surroundings.record(
            reason="Started", message=f"Started container {self.name} as process {process.pid}"
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        probes = asyncio.create_task(self._probe(process))
        if self._stopping.is_set():
            process.kill_group()
        try:
            code = await process.wait()
        finally:
            process.kill_group()
            self._process = None
            probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probes
        if loop.time() - began > STABLE_S:
            self._pauses = 0
        self._end(code, reason="Completed" if code == 0 else "Error", message=self._epitaph(code))

    def _epitaph(self, code: int) -> str:
        wanted = self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        return read_tail(self.log_path, lines=20)[-2000:] if wanted and code != 0 else ""

    def _end(self, code: int, *, reason: str, message: str) -> None:
        now = now_text()
        self._set(
            phase=Phase.TERMINATED,
            exit_code=code,
            reason=reason,
            message=message,
            finished_at=now,
            started_at=self.snapshot.started_at or now,
            is_ready=False,
            is_started=False,
        )

    def _may_restart(self, exit_code: int) -> bool:
        if self._stopping.is_set() or self._restart_policy == "Never":
            return False
        return self._restart_policy == "Always" or exit_code != 0

    def _ended_before(self) -> bool:
        """Say whether the run that an earlier kubelet reported was the last one."""
        ended = self.snapshot.last_state.get("terminated")
        return ended is not None and not self._may_restart(int(ended.get("exitCode", 0)))

    async def _back_off(self) -> None:
        pause_s = BACK_OFF_S[min(self._pauses, len(BACK_OFF_S) - 1)]
        self._pauses += 1
        message = f"back-off {pause_s:g}s restarting failed container {self.name}"
        last = state_of(self.snapshot)
        self._set(phase=Phase.WAITING, reason="CrashLoopBackOff", message=message, last_state=last)
        self._surroundings.record(reason="BackOff", message=message, is_warning=True)
        await self._pause(pause_s)
        if not self._stopping.is_set():
            self._set(restarts=self.snapshot.restarts + 1)

    def _finish(self) -> None:
        if self._process is not None:
            self._process.kill_group()
        if self.snapshot.phase is Phase.TERMINATED:
            self._set(is_final=True)
            return
        # Never run, or killed together with this task. An exit code of 137 is what a real
        # kubelet reports for a container of which it knows nothing more.
        ended = self.snapshot.last_state.get("terminated") or {}
        self._set(
            phase=Phase.TERMINATED,
            exit_code=int(ended.get("exitCode", 137)),
            reason=str(ended.get("reason") or "ContainerStatusUnknown"),
            started_at=ended.get("startedAt") or self.snapshot.started_at,
            finished_at=ended.get("finishedAt") or now_text(),
            is_ready=False,
            is_started=False,
            is_final=True,
        )

    async def _pre_stop(self, grace_s: float) -> None:
        hook = (self.container.get("lifecycle") or {}).get("preStop") or {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                if "sleep" in hook:
                    await self._sleep_while_running(float(hook["sleep"].get("seconds") or 0))
                elif "exec" in hook:
                    success, output = await self._run_command(
                        hook["exec"].get("command") or (), grace_s
                    )
                    if not success:
                        self._surroundings.record(
                            reason="FailedPreStopHook", message=output, is_warning=True
                        )
                elif "httpGet" in hook:
                    await probing.check({"httpGet": hook["httpGet"]}, self._target())

    async def _sleep_while_running(self, seconds: float) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()

    async def _probe(self, process: ContainerProcess) -> None:
        try:
            await self._follow_probes(process)
        except Exception:
            # The container goes on unprobed; the log says why it never becomes ready.
            logger.exception("probes ended", extra={"container": self.name})

    async def _follow_probes(self, process: ContainerProcess) -> None:
        startup = self.container.get("startupProbe")
        if startup:
            verdict = await self._settle("Startup", startup)
            if verdict is Verdict.FAILURE:
                await self._give_up(process, "startup", startup)
                return
            self._set(is_started=True, is_ready="readinessProbe" not in self.container)
        async with asyncio.TaskGroup() as group:
            if readiness := self.container.get("readinessProbe"):
                group.create_task(self._follow_readiness(readiness))
            if liveness := self.container.get("livenessProbe"):
                group.create_task(self._follow_liveness(process, liveness))

    async def _settle(self, kind: str, probe: Mapping[str, Any]) -> Verdict:
        """Probe until there is a verdict."""
        spec = probing.parse_probe(probe)
        counter = ProbeCounter(spec)
        await asyncio.sleep(spec.initial_delay_s)
        while True:
            verdict = await self._observe(kind, probe, counter)
            if verdict is not Verdict.UNDECIDED:
                return verdict
            await asyncio.sleep(spec.period_s)

    async def _follow_readiness(self, probe: Mapping[str, Any]) -> None:
        spec = probing.parse_probe(probe)
        counter = ProbeCounter(spec)
        await asyncio.sleep(spec.initial_delay_s)
        while True:
            verdict = await self._observe("Readiness", probe, counter)
            if verdict is not Verdict.UNDECIDED:
                self._set(is_ready=verdict is Verdict.SUCCESS)
            # What is not ready yet is looked at more often: a start should not cost a period.
            await asyncio.sleep(spec.period_s if self.snapshot.is_ready else _eager(spec))

    async def _follow_liveness(self, process: ContainerProcess, probe: Mapping[str, Any]) -> None:
        spec = probing.parse_probe(probe)
        counter = ProbeCounter(spec)
        await asyncio.sleep(spec.initial_delay_s)
        while True:
            verdict = await self._observe("Liveness", probe, counter)
            if verdict is Verdict.FAILURE and not self._stopping.is_set():
                await self._give_up(process, "liveness", probe)
            await asyncio.sleep(spec.period_s)

    async def _observe(self, kind: str, probe: Mapping[str, Any], counter: ProbeCounter) -> Verdict:
        success, message = await probing.check(probe, self._target())
        text = "" if success else f"{kind} probe failed: {message}"
        if text and text != self._complaints.get(kind):
            self._surroundings.record(reason="Unhealthy", message=text, is_warning=True)
        self._complaints[kind] = text
        return counter.observe(success=success)

    async def _give_up(
        self, process: ContainerProcess, kind: str, probe: Mapping[str, Any]
    ) -> None:
        message = f"Container {self.name} failed {kind} probe, will be restarted"
        self._surroundings.record(reason="Killing", message=message)
        grace_s = float(probe.get("terminationGracePeriodSeconds") or GRACE_S)
        await self._pre_stop(grace_s)
        await process.end(grace_s)

    def _target(self) -> ProbeTarget:
        return ProbeTarget(
            host=self._surroundings.bind_address,
            ports=probing.named_ports(self.container),
            run_command=self._run_command,
        )

    async def _run_command(self, command: Sequence[str], timeout_s: float) -> tuple[bool, str]:
        """Run a probe's or hook's command beside the container, with its environment."""
        if self._launch is None or not command:
            return False, "nothing to run"
        launch = self._launch.beside(command)
        path = self.log_folder / f"exec-{uuid.uuid4().hex}.log"
        try:
            process = await ContainerProcess.start(
                launch, cwd=self._surroundings.work_folder, log_path=path
            )
        except StartError as error:
            return False, str(error)
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        finally:
            process.kill_group()
            output = await asyncio.to_thread(read_tail, path, lines=5)
            path.unlink(missing_ok=True)
        return code == 0, output if code != 0 else ""

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _set(self, **changes: Any) -> None:
        fresh = replace(self.snapshot, **changes)
        if fresh != self.snapshot:
            self.snapshot = fresh
            if fresh.is_started:
                self.started.set()
            self._surroundings.changed()


def _eager(spec: ProbeSpec) -> float:
    return min(spec.period_s, 1.0)
