"""The two programs: are they running, and of one version?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    dig,
    items,
    mapping,
    metadata,
    name_of,
)
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("programs")
VERSIONS = Part("versions")
WEBHOOK, OPERATOR = "berthmaster-webhook", "berthmaster-operator"
ALL = (OPERATOR, WEBHOOK)
_LOSS = {
    OPERATOR: "inventories, certificates and bindings are not kept",
    WEBHOOK: "pods that ask wait at the gate",
}
_VERSION_LABEL = "app.kubernetes.io/version"
_VERSION = re.compile(r"v?([0-9]+\.[0-9]+\.[0-9]+\S*)")


def check(facts: Facts) -> Iterator[Finding]:
    """Look at each Deployment and its pods, then compare versions."""
    for name in ALL:
        yield _check_one(name, facts)
    yield from _check_versions(facts)


def _check_one(name: str, facts: Facts) -> Finding:
    found = facts.deployments.get(name)
    if isinstance(found, Unread):
        return PART.not_checked(f"Deployment {name}", found.why)
    if found is None:
        return PART.broken(f"the Deployment {name} is missing: {_LOSS[name]}", APPLY)
    wanted = dig(found, "spec", "replicas")
    wanted = 1 if wanted is None else wanted
    available = dig(found, "status", "availableReplicas") or 0
    namespace = facts.system_namespace
    if wanted == 0:
        return PART.broken(
            f"{name} is scaled to 0: {_LOSS[name]}",
            f"kubectl -n {namespace} scale deployment/{name} --replicas=1",
        )
    if available < wanted:
        why = "; ".join(_troubles(name, facts)) or "its pods are not ready"
        found_ = f"{name}: {available} of {wanted} replicas are available: {why}"
        way_out = f"kubectl -n {namespace} describe pods -l app.kubernetes.io/name={name}"
        if available:
            return PART.warning(found_, way_out)
        return PART.broken(f"{found_}; {_LOSS[name]}", way_out)
    return PART.ok(f"{name}: {available} of {wanted} replicas are available")


def _troubles(name: str, facts: Facts) -> list[str]:
    """Say what the pods of a program say for themselves."""
    pods = facts.program_pods
    if pods is None or isinstance(pods, Unread):
        return []
    ours = [
        pod
        for pod in pods
        if mapping(metadata(pod).get("labels")).get("app.kubernetes.io/name") == name
    ]
    if not ours:
        return ["it has no pod; its ReplicaSet's Events say why"]
    return [f"{name_of(pod)} {trouble}" for pod in ours if (trouble := _trouble(pod))][:2]


def _trouble(pod: JsonObject) -> str:
    for status in items(pod, "status", "containerStatuses"):
        waiting = dig(status, "state", "waiting")
        if waiting:
            return f"waits: {waiting.get('reason')} {waiting.get('message') or ''}".strip()
        if not status.get("ready"):
            return f"is not ready, restarted {status.get('restartCount', 0)} times"
    for condition in items(pod, "status", "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"is not scheduled: {condition.get('message')}"
    return ""


def _check_versions(facts: Facts) -> Iterator[Finding]:
    found: dict[str, str] = {}
    images: dict[str, str] = {}
    for name in ALL:
        deployment = facts.deployments.get(name)
        if deployment is not None and not isinstance(deployment, Unread):
            images[name] = _image(deployment)
            version = _version(deployment, images[name])
            if version:
                found[name] = version
    if len(images) == len(ALL) and not found and len(set(images.values())) > 1:
        shown = ", ".join(f"{name} {image}" for name, image in images.items())
        yield VERSIONS.warning(f"the programs have different images: {shown}", APPLY)
        return
    unknown = [name for name in images if name not in found]
    if unknown:
        yield VERSIONS.not_checked(
            " and ".join(unknown),
            f"neither the label {_VERSION_LABEL} nor the image's tag tells a version "
            f"({', '.join(images[name] for name in unknown)})",
        )
    if not found:
        return
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    if len({*found.values()}) > 1:
        yield VERSIONS.warning(f"the programs differ: {shown}", APPLY)
    elif facts.cli_version not in found.values():
        yield VERSIONS.warning(
            f"{shown}; this kubectl berth is {facts.cli_version} and may judge by other rules",
            f"use kubectl berth {next(iter(found.values()))}",
        )
    elif not unknown:
        yield VERSIONS.ok(f"{shown}, kubectl berth {facts.cli_version}")


def _image(deployment: JsonObject) -> str:
    containers = items(deployment, "spec", "template", "spec", "containers")
    return str(containers[0].get("image", "")) if containers else ""


def _version(deployment: JsonObject, image: str) -> str:
    labels = mapping(dig(deployment, "spec", "template", "metadata", "labels"))
    labelled = labels.get(_VERSION_LABEL) or mapping(metadata(deployment).get("labels")).get(
        _VERSION_LABEL
    )
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    match = _VERSION.fullmatch(str(labelled or tag))
    return match.group(1) if match else ""
