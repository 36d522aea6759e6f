"""Power: of the nodes whose watts somebody wants to know, are they known, and by the best there is?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.api.inventory import PowerLink
from berthmaster.cli.doctor.facts import Facts, Unread, items, name_of
from berthmaster.cli.doctor.findings import Finding, Part, some

PART = Part("power")
_READY = names.POWER_READY
_METRICS = f"kubectl get --raw /apis/{names.METRICS_API_VERSION}/nodes/{{node}}"
_DESCRIBE = (
    "kubectl get nodeinventory {node} -o yaml   # the condition PowerReady says what is missing"
)
_WAYS_OUT = {"NoUsage": _METRICS}
_BEST = str(PowerLink.MODEL_SERVER)


def check(facts: Facts) -> Iterator[Finding]:
    """Look at the conditions of all inventories; a server that failed is told where another link helps."""
    inventories = facts.inventories
    if isinstance(inventories, Unread):
        yield PART.not_checked("NodeInventories", inventories.why)
        return
    found: dict[tuple[bool, str], list[tuple[str, str]]] = defaultdict(list)
    for inventory in inventories or ():
        for condition in items(inventory, "status", "conditions"):
            if condition.get("type") == _READY:
                is_well = condition.get("status") == "True"
                reason = str(condition.get("reason") or "no reason")
                told = (name_of(inventory), str(condition.get("message") or ""))
                found[is_well, reason].append(told)
    if not found:
        yield PART.ok(
            "no node has a NodeConfig, WAO's labels or a PowerModel: power is not looked at"
        )
    for (is_well, reason), those in sorted(found.items()):
        nodes = some([name for name, _ in those])
        node, message = those[0]
        if not is_well:
            way_out = _WAYS_OUT.get(reason, _DESCRIBE).format(node=node)
            yield PART.warning(f"{reason} on {nodes}: {message}", way_out)
        elif reason != _BEST and "; " in message:
            yield PART.warning(
                f"watts by {reason} on {nodes}: {message.partition('; ')[2]}",
                _DESCRIBE.format(node=node),
            )
        else:
            yield PART.ok(f"watts by {reason} on {nodes}")
