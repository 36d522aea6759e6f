"""What the metrics say of the books, at the moment of the scrape."""

from __future__ import annotations

from typing import Any

from berthmaster.api.inventory import inventory_from_manifest
from berthmaster.cluster.informers import EventKind
from berthmaster_webhook.measuring import Books
from support.builders import make_zoned_inventory
from support.pages import scrape
from support.webhook_world import World, ask, gated_manifest, patched


def wanting(name: str, cpus: str) -> dict[str, Any]:
    limits = {"cpu": cpus, "memory": "1Gi"}
    return gated_manifest(name, containers=[{"name": "c", "resources": {"limits": limits}}])


def place(world: World, name: str, cpus: str) -> None:
    """Let a pod be placed and seen."""
    pod = wanting(name, cpus)
    shown = patched(pod, ask(world, pod))
    shown["metadata"]["uid"] = f"uid-{name}"
    world.show(shown)


def tell(world: World, zones: dict[str, str], *free: str) -> None:
    """Let the node's updater count pods, and tell in which zones it saw them."""
    inventory = make_zoned_inventory(
        "n1", *free, reportedPods=list(zones), reportedZones=list(zones.values())
    )
    world.state.inventories._put(EventKind.MODIFIED, "n1", inventory_from_manifest(inventory))


async def test_holdings_reports_and_predictions(world: World) -> None:
    Books(world.state, world.tools.metrics)
    world.add_node("n1", cpu="32")
    world.add_zones("n1", "8", "8")
    place(world, "a", "6")
    place(world, "b", "6")

    before = scrape(world.tools.metrics)
    assert before['berthmaster_holdings{concern="numa"}'] == 2
    assert before["berthmaster_numa_unreported_holdings"] == 2
    assert before['berthmaster_numa_predictions_total{result="hit"}'] == 0

    tell(world, {"uid-a": "0", "uid-b": "0"}, "8", "2")
    after = scrape(world.tools.metrics)
    assert after["berthmaster_numa_unreported_holdings"] == 0
    assert after['berthmaster_numa_predictions_total{result="hit"}'] == 1
    assert after['berthmaster_numa_predictions_total{result="miss"}'] == 1
    assert scrape(world.tools.metrics) == after

    world.show_gone("uid-b")
    assert scrape(world.tools.metrics)['berthmaster_holdings{concern="numa"}'] == 1


async def test_refusals_are_counted_by_nodes_and_few_words(world: World) -> None:
    for name in ("n1", "n2"):
        world.add_node(name, cpu="32")
        world.add_zones(name, "8", "8")
    world.add_node("small", cpu="1")
    ask(world, wanting("p", "12"))

    found = scrape(world.tools.metrics)

    refused = {it: value for it, value in found.items() if it.startswith("berthmaster_numa_ref")}
    # Of the small node kube-scheduler's own words are told first.
    assert refused == {'berthmaster_numa_refused_nodes_total{reason="CannotAlignContainer"}': 2}
