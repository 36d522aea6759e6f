"""`make demo`: cluster up, `kubectl apply -k`, stories, the table of where each pod landed and why.

Ends with 1 if any story did not come out as it is written. On a terminal the cluster stays until
Ctrl-C, so that one can try things; in a pipe it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.cli.why import needs_recomputing, recompute, sentence
from berthmaster.cluster.snapshot import Snapshot, load_engine
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import (
    FUNCTIONS,
    MODELS,
    NAMESPACE,
    Landing,
    PodWatch,
    Stage,
    StoryError,
)
from berthmaster_sandbox.demo.stories import PIN_KEY, PIN_TITLE, STORIES, pin_fails
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.processes import read_tail
from berthmaster_sandbox.world.diskio import DiskWorld

PIPE_WIDTH = 160


def main() -> int:
    """Run the demo and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="[demo] %(levelname)s %(message)s")
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else PIPE_WIDTH, highlight=False)
    try:
        return asyncio.run(_run(console, stays=is_terminal))
    except SandboxError as error:
        console.print(f"[demo] {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(console: Console, *, stays: bool) -> int:
    started = time.monotonic()
    _say(console, "starting etcd, kube-apiserver, kube-scheduler, controller manager, kwok (10 s)")
    async with Sandbox.start(process_nodes=2, images=IMAGES, verbose=True) as sandbox:
        _say(console, "kubectl apply -k config/overlays/sandbox (about 15 s)")
        seconds = await install(sandbox)
        _say(console, f"operator and webhook run, as pods, after {seconds:.1f} s")
        await _prepare(sandbox)
        async with DiskWorld(sandbox.client, functions=FUNCTIONS) as world:
            failures = await _play(console, sandbox, world, started)
            if failures:
                await _print_evidence(console, sandbox)
            if stays:
                await _stay(console, sandbox)
    return 1 if failures else 0


async def _play(
    console: Console, sandbox: Sandbox, world: DiskWorld, started: float
) -> Sequence[str]:
    watch = PodWatch(sandbox.client)
    watching = asyncio.create_task(watch.run())
    try:
        await watch.synced()
        _say(console, f"playing {len(STORIES) + 1} stories (about 15 s)")
        landings, failures = await _tell_stories(sandbox, world, watch)
        await _print_table(console, sandbox, landings, watch)
        overflows = [*world.overflows, *await world.judge()]
        failures += [f"a disk was past its line: {overflow}" for overflow in overflows]
        for failure in failures:
            console.print(f"FAILED {failure}", style="bold red", markup=False)
        told = len(STORIES) + 1 - len(failures)
        console.print(
            f"{max(told, 0)} stories came out as written, {len(failures)} did not; "
            f"{len(overflows)} disks past their line by the simulated drivers' own books; "
            f"{time.monotonic() - started:.0f} s in all",
            markup=False,
        )
        return failures
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _tell_stories(
    sandbox: Sandbox, world: DiskWorld, watch: PodWatch
) -> tuple[list[Landing], list[str]]:
    """Play the disk stories side by side, then the one that ends the scheduler."""
    stages = {story.key: Stage(story.key, sandbox.client, world, watch) for story in STORIES}
    results = await asyncio.gather(
        *(story.play(stages[story.key]) for story in STORIES), return_exceptions=True
    )
    stages[PIN_KEY] = Stage(PIN_KEY, sandbox.client, world, watch)
    pin = await asyncio.gather(pin_fails(stages[PIN_KEY], sandbox), return_exceptions=True)
    failures = []
    for key, result in zip(stages, [*results, *pin], strict=True):
        if isinstance(result, StoryError):
            failures.append(f"{key}: {result}")
        elif isinstance(result, BaseException):
            raise result
    return [landing for stage in stages.values() for landing in stage.landings], failures


async def _prepare(sandbox: Sandbox) -> None:
    """Make the stories' namespace, the disk models, and the policy of the pin story."""
    client = sandbox.client
    await client.create(
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    )
    await client.create(
        f"/api/v1/namespaces/{names.DISKIO_NAMESPACE}/configmaps",
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": names.DISK_MODELS_CONFIG_MAP},
            "data": {names.DISK_MODELS_KEY: json.dumps(MODELS)},
        },
    )
    await client.create(
        f"/apis/{names.API_VERSION}/placementpolicies",
        {
            "apiVersion": names.API_VERSION,
            "kind": "PlacementPolicy",
            "metadata": {"name": "harbour"},
            "spec": {
                "podSelector": {"matchLabels": {"placed-by": "policy"}},
                "pinPatience": "3s",
            },
        },
    )


async def _print_table(
    console: Console, sandbox: Sandbox, landings: Sequence[Landing], watch: PodWatch
) -> None:
    """Print each pod's story, node, time to bound, and the sentence of `kubectl berth why`."""
    snapshot = await load_engine(sandbox.client)
    table = Table(title="Where each pod landed, and why", title_justify="left", expand=True)
    table.add_column("story", no_wrap=True)
    table.add_column("pod", no_wrap=True)
    table.add_column("node", no_wrap=True)
    table.add_column("bound after", justify="right", no_wrap=True)
    table.add_column("kubectl berth why POD", ratio=1)
    last = ""
    for landing in landings:
        why = _why(watch.pods.get(landing.pod, landing.seen), snapshot)
        after = landing.bound_after_s
        table.add_row(
            "" if landing.story == last else landing.story,
            landing.pod,
            landing.node or "waits",
            "-" if after is None else f"{after * 1000:.0f} ms",
            why,
        )
        last = landing.story
    console.print(table)
    for story in STORIES:
        console.print(f"  {story.key}: {story.title}", markup=False)
    console.print(f"  {PIN_KEY}: {PIN_TITLE}", markup=False)


def _why(pod: Pod, snapshot: Snapshot) -> str:
    return sentence(pod, recompute(pod, snapshot) if needs_recomputing(pod) else None)


async def _print_evidence(console: Console, sandbox: Sandbox) -> None:
    """Print what somebody needs who wants to know why a story failed."""
    events = await sandbox.kubectl("get", "events", "-n", NAMESPACE, check=False)
    console.print(events.stdout, markup=False)
    for log in sorted(sandbox.folder.glob("nodes/**/*.log")):
        console.print(f"{log.parent.parent.name}:\n{read_tail(log, lines=40)}", markup=False)


async def _stay(console: Console, sandbox: Sandbox) -> None:
    console.print(
        "\nThe cluster stays until Ctrl-C. In another terminal:\n"
        f"  export KUBECONFIG={sandbox.kubeconfig}\n"
        f"  export PATH={sandbox.binaries.folder}:$PWD/.venv/bin:$PATH\n"
        f"  kubectl get nodeinventories\n"
        f"  kubectl -n {NAMESPACE} get pods -o wide\n"
        f"  kubectl berth -n {NAMESPACE} why total\n"
        f"  kubectl -n {NAMESPACE} delete pod lagging-40 lagging-60   # lagging-70 moves in",
        markup=False,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _say(console: Console, words: str) -> None:
    console.print(f"[demo] {words}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
