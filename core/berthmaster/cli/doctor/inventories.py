"""What nodes have: is it known, and fresh?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    dig,
    items,
    metadata,
    name_of,
    read_time,
)
from berthmaster.cli.doctor.findings import Finding, Part, some

PART = Part("disk IO")
# An inventory is made within seconds after its device was seen.
_GRACE_S = 60.0
_READY = names.DISK_IO_READY
_WAYS_OUT = {
    "Stale": "look at the driver's pod on {node}: "
    f"kubectl -n {names.DISKIO_NAMESPACE} get pods -o wide --field-selector spec.nodeName={{node}}",
    "ModelNotFound": f"kubectl -n {names.DISKIO_NAMESPACE} edit configmap "
    f"{names.DISK_MODELS_CONFIG_MAP}",
    "NoDefaultDisk": f"kubectl -n {names.DISKIO_NAMESPACE} get nodediskdevices -o yaml   # no device "
    "of {node} has type emptyDir",
}
_DESCRIBE = "kubectl get nodeinventory {node} -o yaml"


def check(facts: Facts) -> Iterator[Finding]:
    """Look at the conditions of all inventories, then at devices that came to nothing."""
    inventories, devices = facts.inventories, facts.devices
    if isinstance(inventories, Unread):
        yield PART.not_checked("NodeInventories", inventories.why)
        return
    troubles: dict[str, list[tuple[str, str]]] = defaultdict(list)
    unknown: list[tuple[str, str]] = []
    fresh = 0
    for inventory in inventories or ():
        condition = next(
            (it for it in items(inventory, "status", "conditions") if it.get("type") == _READY),
            None,
        )
        if condition is None:
            continue
        told = (name_of(inventory), str(condition.get("message") or ""))
        if condition.get("status") == "True":
            fresh += 1
        elif condition.get("status") == "Unknown":
            unknown.append(told)
        else:
            troubles[str(condition.get("reason") or "no reason")].append(told)
    for reason, found in sorted(troubles.items()):
        node, message = found[0]
        yield PART.warning(
            f"{reason} on {some([name for name, _ in found])}: {message}",
            _WAYS_OUT.get(reason, _DESCRIBE).format(node=node),
        )
    if unknown:
        yield PART.not_checked(
            f"whether the driver lives on {some([name for name, _ in unknown])}",
            unknown[0][1],
            f"let the driver write its annotation {names.HEARTBEAT}, and until then "
            + _WAYS_OUT["Stale"].format(node=unknown[0][0]),
        )
    yield from _check_devices(facts)
    if fresh:
        yield PART.ok(f"{fresh} {'node' if fresh == 1 else 'nodes'} with fresh reports")
    elif not (troubles or unknown or devices):
        yield _without_driver(facts)


def _check_devices(facts: Facts) -> Iterator[Finding]:
    devices, nodes = facts.devices, facts.nodes
    if isinstance(devices, Unread) or isinstance(nodes, Unread):
        why = devices.why if isinstance(devices, Unread) else nodes.why  # type: ignore[union-attr]
        yield PART.not_checked("NodeDiskDevices", why)
        return
    there = {name_of(it) for it in nodes or ()}
    inventories = facts.inventories
    known = (
        set()
        if inventories is None or isinstance(inventories, Unread)
        else {name_of(it) for it in inventories if dig(it, "status", "disks") is not None}
    )
    lacking, strays = [], []
    for device in devices or ():
        node = str(dig(device, "spec", "nodeName") or "")
        if node not in there:
            strays.append(f"{_key(device)} ({node or 'no nodeName'})")
        elif node not in known and _age_s(device, facts) > _GRACE_S:
            lacking.append(node)
    if lacking:
        yield PART.broken(
            f"{some(lacking)} has a NodeDiskDevice and no disks in a NodeInventory",
            f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-operator",
        )
    if strays:
        yield PART.warning(
            f"NodeDiskDevices name nodes that do not exist: {some(strays)}",
            f"kubectl -n {names.DISKIO_NAMESPACE} get nodediskdevices   # spec.nodeName",
        )


def _without_driver(facts: Facts) -> Finding:
    pods = facts.pending_pods
    asking = [
        pod.key
        for pod in (() if pods is None or isinstance(pods, Unread) else pods)
        if names.DISKIO_REQUEST in pod.annotations and names.GATE in pod.gates
    ]
    if asking:
        return PART.warning(
            f"no node has a NodeDiskDevice, and {some(asking)} waits for one",
            "install a disk IO driver; a device by hand: config/samples/node-disk-device.yaml",
        )
    return PART.ok("no node has a NodeDiskDevice: pods that ask for disk IO would wait")


def _key(found: JsonObject) -> str:
    return f"{metadata(found).get('namespace')}/{name_of(found)}"


def _age_s(found: JsonObject, facts: Facts) -> float:
    created = read_time(metadata(found).get("creationTimestamp"))
    return (facts.now - created).total_seconds() if created is not None else 0.0
