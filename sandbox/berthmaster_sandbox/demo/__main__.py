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
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from berthmaster.api import names
from berthmaster.cli.output import print_table
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.snapshot import load_engine
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.dataset_stories import DATASET_STORIES
from berthmaster_sandbox.demo.numa_stories import NUMA_STORIES
from berthmaster_sandbox.demo.pod_watch import NAMESPACE, PodWatch, StoryError
from berthmaster_sandbox.demo.power_stories import POWER_STORIES
from berthmaster_sandbox.demo.stage import (
    FUNCTIONS,
    MODELS,
    Stage,
    Worlds,
    why,
)
from berthmaster_sandbox.demo.stories import PIN_KEY, PIN_TITLE, STORIES, pin_fails
from berthmaster_sandbox.demo.together_stories import TOGETHER_STORIES
from berthmaster_sandbox.demo.xpu_stories import XPU_STORIES
from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.installing import IMAGES, PROJECT, install
from berthmaster_sandbox.processes import read_tail
from berthmaster_sandbox.world.datashim import install_datashim
from berthmaster_sandbox.world.diskio import DiskWorld
from berthmaster_sandbox.world.numa import NumaWorld
from berthmaster_sandbox.world.power import PowerWorld
from berthmaster_sandbox.world.xpu import XpuWorld

PIPE_WIDTH = 120
POD_WIDTH = 12
# By number, which is the order in which they are shown.
TITLES = {
    **{story.key: story.title for story in STORIES},
    PIN_KEY: PIN_TITLE,
    **{
        story.key: story.title
        for story in (
            *NUMA_STORIES,
            *DATASET_STORIES,
            *POWER_STORIES,
            *XPU_STORIES,
            *TOGETHER_STORIES,
        )
    },
}
# One selects the pod of the pin story; the other gives the settings of pods that ask by themselves.
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "harbour": {
        "podSelector": {"matchLabels": {"placed-by": "policy"}},
        "pinPatience": "3s",
    },
    "defaults": {
        "priority": -100,
        "concerns": {
            "numa": {"restricted": "Predict"},
            "dataset": {"overload": {"after": "2s"}},
        },
    },
}


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
        async with (
            DiskWorld(sandbox.client, functions=FUNCTIONS) as disks,
            NumaWorld(sandbox.client) as numa,
            PowerWorld(sandbox.client) as power,
            XpuWorld(sandbox.client) as xpus,
        ):
            worlds = Worlds(disks=disks, numa=numa, power=power, xpus=xpus)
            failures = await _play(console, sandbox, worlds, started)
            if failures:
                await _print_evidence(console, sandbox)
            if stays:
                await _stay(console, sandbox)
    return 1 if failures else 0


async def _play(
    console: Console, sandbox: Sandbox, worlds: Worlds, started: float
) -> Sequence[str]:
    watch = PodWatch(sandbox.client)
    watching = asyncio.create_task(watch.run())
    try:
        await watch.synced()
        _say(console, f"playing {len(TITLES)} stories (about 20 s)")
        stages, failures = await _tell_stories(sandbox, worlds, watch)
        told = len(TITLES) - len(failures)
        await _print_table(console, sandbox, stages, watch)
        _print_berths(console, stages)
        _print_holds(console, stages)
        _print_comparisons(console, stages)
        overflows = await _judge(worlds)
        failures += [f"past the line: {overflow}" for overflow in overflows]
        for failure in failures:
            console.print(f"FAILED {failure}", style="bold red", markup=False)
        console.print(
            f"{told} stories came out as written, {len(TITLES) - told} did not; by the simulated "
            f"world's own books {len(overflows)} disks, zones and accelerators past their line, "
            f"{len(worlds.numa.rejections) + len(worlds.xpus.rejections)} pods turned away by a "
            f"kubelet; "
            f"{time.monotonic() - started:.0f} s in all",
            markup=False,
        )
        return failures
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _judge(worlds: Worlds) -> list[str]:
    """Return where reality overflowed, now or at any moment."""
    disks, numa, xpus = worlds.disks, worlds.numa, worlds.xpus
    turned_away = [f"{it.node} turned {it.pod} away: {it.reason}" for it in numa.rejections]
    turned_away += [f"{pod} was turned away: {it.message}" for pod, it in xpus.rejections.items()]
    found = [*disks.overflows, *await disks.judge(), *numa.overfilled, *await numa.judge()]
    return [*map(str, (*found, *xpus.findings)), *turned_away]


async def _tell_stories(
    sandbox: Sandbox, worlds: Worlds, watch: PodWatch
) -> tuple[list[Stage], list[str]]:
    """Play the stories side by side, then the one that ends the scheduler; return stages, failures."""
    stages = {key: Stage(key, sandbox.client, worlds, watch) for key in TITLES}
    failures = []

    async def tell(key: str, story: Awaitable[None]) -> None:
        try:
            await story
        except (StoryError, ClusterError, SandboxError) as error:
            failures.append(f"{key}: {error}")

    side_by_side = (*STORIES, *NUMA_STORIES, *DATASET_STORIES, *POWER_STORIES, *XPU_STORIES)
    await asyncio.gather(
        *(tell(it.key, it.play(stages[it.key])) for it in (*side_by_side, *TOGETHER_STORIES))
    )
    await tell(PIN_KEY, pin_fails(stages[PIN_KEY], sandbox))
    return list(stages.values()), failures


async def _prepare(sandbox: Sandbox) -> None:
    """Make the stories' namespace, WAO's and Datashim's kinds, the disk models, and their policies."""
    client = sandbox.client
    await sandbox.kubectl("apply", "-k", str(PROJECT / "crds" / "wao"))
    await install_datashim(sandbox)
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
    for name, spec in POLICIES.items():
        await client.create(
            f"/apis/{names.API_VERSION}/placementpolicies",
            {
                "apiVersion": names.API_VERSION,
                "kind": "PlacementPolicy",
                "metadata": {"name": name},
                "spec": spec,
            },
        )


async def _print_table(
    console: Console, sandbox: Sandbox, stages: Sequence[Stage], watch: PodWatch
) -> None:
    """Print each pod's story, node, time to bound, and the sentence of `kubectl berth why`."""
    snapshot = await load_engine(sandbox.client)
    table = _new_table("Where each pod landed, and why", expand=True)
    table.add_column("story", no_wrap=True)
    # What a controller adds to a name is left out.
    table.add_column("pod", no_wrap=True, max_width=POD_WIDTH)
    table.add_column("node", no_wrap=True)
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("kubectl berth why POD", ratio=1)
    for stage in stages:
        for at, landing in enumerate(stage.landings):
            after = landing.bound_after_s
            table.add_row(
                "" if at else landing.story,
                landing.pod,
                landing.node or "waits",
                "-" if after is None or not landing.node else f"{after * 1000:.0f} ms",
                landing.why or why(watch.pods.get(landing.pod, landing.seen), snapshot),
            )
    console.print(table)
    for key, title in TITLES.items():
        console.print(f"  {key}: {title}", markup=False)


def _print_berths(console: Console, stages: Sequence[Stage]) -> None:
    """Print the zones that were predicted for each pod, beside those that its kubelet chose."""
    berths = [berth for stage in stages for berth in stage.berths]
    table = _new_table("In which zones pods lie")
    for column in ("story", "pod", "node", "kubelet's policy", "asks", "predicted", "kubelet"):
        table.add_column(column, no_wrap=True)
    last = ""
    for it in berths:
        table.add_row(
            "" if it.story == last else it.story,
            it.pod,
            it.node,
            it.policy,
            it.asks,
            _zones(it.predicted),
            _zones(it.chosen),
        )
        last = it.story
    console.print(table)
    hits = sum(it.predicted == it.chosen for it in berths)
    console.print(f"  {hits} of {len(berths)} lie where it was predicted", markup=False)


def _print_holds(console: Console, stages: Sequence[Stage]) -> None:
    """Print the accelerators that were decided for each pod, beside those that it really has."""
    table = _new_table("Which accelerators pods have: device: MiB")
    for column in ("story", "pod", "node", "asks", "decided", "device plugin"):
        table.add_column(column, no_wrap=True)
    last = ""
    for it in (hold for stage in stages for hold in stage.holds):
        story = "" if it.story == last else it.story
        table.add_row(story, it.pod, it.node, it.asks, _devices(it.decided), _devices(it.given))
        last = it.story
    console.print(table)


def _print_comparisons(console: Console, stages: Sequence[Stage]) -> None:
    """Print what `kubectl berth why` says of the pod that every concern has a word in."""
    for it in (comparison for stage in stages for comparison in stage.comparisons):
        console.print(f"\nkubectl berth -n {NAMESPACE} why {it.pod}", markup=False)
        for table in it.tables:
            print_table(console, table)


def _devices(mib: Mapping[int, int]) -> str:
    """Return devices by what they give: `1: 3334, 2+3: 3333`."""
    by_size: dict[int, list[str]] = {}
    for index, size in sorted(mib.items()):
        by_size.setdefault(size, []).append(str(index))
    return ", ".join(f"{'+'.join(them)}: {size}" for size, them in by_size.items()) or "-"


def _new_table(title: str, *, expand: bool = False) -> Table:
    return Table(
        title=f"\n{title}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=expand
    )


def _zones(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "-"


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
        f"  kubectl get nodeinventories -o wide\n"
        f"  kubectl -n {NAMESPACE} get pods -o wide\n"
        f"  kubectl berth -n {NAMESPACE} why total\n"
        f"  kubectl berth -n {NAMESPACE} why zone-more\n"
        f"  kubectl berth -n {NAMESPACE} why train\n"
        f"  kubectl berth inspect\n"
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
