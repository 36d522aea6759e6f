"""Leaders: is each Lease held and renewed, and does the Service lead to the webhook's leader?"""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import (
    Facts,
    JsonObject,
    Unread,
    dig,
    items,
    mapping,
    metadata,
    name_of,
    read_time,
)
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("leader")
SERVICE = Part("service")
LEASES = {names.OPERATOR_LEASE: "operator", names.WEBHOOK_LEASE: "webhook"}


def check(facts: Facts) -> Iterator[Finding]:
    """Look at both Leases, then at the way from the Service to the leader."""
    for lease, program in LEASES.items():
        yield _check_lease(lease, program, facts)
    yield from _check_service(facts)


def is_stale(lease: JsonObject, facts_now_s: float) -> bool:
    """Return whether a Lease looks as if nobody renewed it, by this machine's clock."""
    renewed = read_time(dig(lease, "spec", "renewTime"))
    duration = dig(lease, "spec", "leaseDurationSeconds") or 1
    return renewed is None or facts_now_s - renewed.timestamp() > duration


def _check_lease(lease: str, program: str, facts: Facts) -> Finding:
    found = facts.leases.get(lease)
    logs = f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-{program}"
    if isinstance(found, Unread):
        return PART.not_checked(f"Lease {lease}", found.why)
    if found is None:
        return PART.broken(f"there is no Lease {lease}: no {program} ever led", logs)
    holder = str(dig(found, "spec", "holderIdentity") or "")
    pod = holder.rpartition("_")[0] or holder
    if not holder:
        return PART.broken(f"nobody holds the Lease {lease}: no {program} leads", logs)
    if facts.renewed.get(lease) is False:
        renewed = dig(found, "spec", "renewTime")
        return PART.broken(
            f"{pod} holds the Lease {lease} and does not renew it, last at {renewed}: no {program} "
            "leads",
            logs,
        )
    return PART.ok(f"{program}: {pod} leads, term {dig(found, 'spec', 'leaseTransitions') or 0}")


def _check_service(facts: Facts) -> Iterator[Finding]:
    title = f"Service {names.WEBHOOK_SERVICE}"
    service, slices, pods = facts.service, facts.endpoint_slices, facts.program_pods
    if service is None:
        yield SERVICE.broken(f"the {title} is missing: the API server cannot call us", APPLY)
        return
    if isinstance(service, Unread) or isinstance(slices, Unread):
        why = service.why if isinstance(service, Unread) else slices.why  # type: ignore[union-attr]
        yield SERVICE.not_checked(title, why)
        return
    ready = [
        str(dig(endpoint, "targetRef", "name") or "?")
        for it in slices or ()
        for endpoint in items(it, "endpoints")
        if dig(endpoint, "conditions", "ready") is not False
    ]
    if pods is None or isinstance(pods, Unread):
        if ready:
            yield SERVICE.ok(f"{title} leads to {', '.join(ready)}")
        else:
            yield SERVICE.broken(f"{title} leads to no ready pod", APPLY)
        return
    labelled = [name_of(it) for it in pods if _label(it, names.ROLE_LABEL) == names.ROLE_LEADER]
    if ready and set(ready) <= set(labelled):
        yield SERVICE.ok(f"{title} leads to the leader, {', '.join(ready)}")
        return
    wanted = mapping(dig(service, "spec", "selector"))
    fitting = [it for it in pods if all(_label(it, key) == text for key, text in wanted.items())]
    selector = ",".join(f"{key}={text}" for key, text in wanted.items()) or "nothing"
    if ready:
        yield SERVICE.broken(
            f"{title} leads to {', '.join(ready)}, the leader is {', '.join(labelled) or 'nobody'}",
            APPLY,
        )
    elif labelled and not fitting:
        yield SERVICE.broken(
            f"{title} selects {selector}, which the leader {labelled[0]} is not: calls reach nobody",
            APPLY,
        )
    elif not labelled:
        yield SERVICE.broken(
            f"{title} leads nowhere: no pod carries {names.ROLE_LABEL}={names.ROLE_LEADER}",
            f"kubectl -n {facts.system_namespace} logs deployment/berthmaster-webhook",
        )
    else:
        yield SERVICE.broken(
            f"{title} leads nowhere: {labelled[0]} is not ready",
            f"kubectl -n {facts.system_namespace} describe pod {labelled[0]}",
        )


def _label(pod: JsonObject, key: str) -> object:
    return mapping(metadata(pod).get("labels")).get(key)
