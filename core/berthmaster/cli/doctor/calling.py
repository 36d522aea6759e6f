"""The webhook configuration: does the API server call the leader, by the address that it answers?"""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Facts, JsonObject, Unread, dig, items, name_of
from berthmaster.cli.doctor.findings import APPLY, Finding, Part

PART = Part("webhook call")
_LEADER_WRITES = (
    f"the leader writes it: kubectl -n {names.SYSTEM_NAMESPACE} logs deployment/berthmaster-webhook"
)


def check(facts: Facts) -> Iterator[Finding]:
    """Look at what `config/` applied, then at the path, which is the leader's."""
    found = facts.webhook_configuration
    title = f"MutatingWebhookConfiguration {names.WEBHOOK_CONFIGURATION}"
    if isinstance(found, Unread):
        yield PART.not_checked(title, found.why)
        return
    hook = None if found is None else our_hook(found)
    if hook is None:
        missing = "is missing" if found is None else f"has no webhook {names.WEBHOOK_NAME}"
        yield PART.broken(
            f"{title} {missing}: pods wait for the queue, none is placed at once", APPLY
        )
        return
    faults = list(_faults(hook, facts))
    yield from faults
    path = _check_path(hook, facts)
    if path is not None:
        yield path
    elif not faults:
        seconds = hook.get("timeoutSeconds")
        yield PART.ok(f"{title} calls {_path(hook)}, for at most {seconds} s, and may fail")


def our_hook(found: JsonObject) -> JsonObject | None:
    """Return our webhook in a configuration."""
    hooks = items(found, "webhooks")
    return next((it for it in hooks if name_of({"metadata": it}) == names.WEBHOOK_NAME), None)


def _faults(hook: JsonObject, facts: Facts) -> Iterator[Finding]:
    if hook.get("failurePolicy") != "Ignore":
        yield PART.broken(
            "failurePolicy must be Ignore: while we are away, pods that ask cannot be created",
            APPLY,
        )
    service = dig(hook, "clientConfig", "service") or {}
    wanted = (facts.system_namespace, names.WEBHOOK_SERVICE)
    if (service.get("namespace"), service.get("name")) != wanted:
        where = (
            dig(hook, "clientConfig", "url") or f"{service.get('namespace')}/{service.get('name')}"
        )
        yield PART.broken(f"it calls {where}, expected the Service {'/'.join(wanted)}", APPLY)
    if not dig(hook, "clientConfig", "caBundle"):
        yield PART.broken(
            "caBundle is empty: every call fails",
            "the operator writes it: "
            f"kubectl -n {names.SYSTEM_NAMESPACE} logs deployment/berthmaster-operator",
        )


def _check_path(hook: JsonObject, facts: Facts) -> Finding | None:
    lease = facts.leases.get(names.WEBHOOK_LEASE)
    if isinstance(lease, Unread):
        return PART.not_checked("whether the path is the leader's", lease.why)
    if lease is None:
        # Leading says what is missing.
        return None
    epoch = dig(lease, "spec", "leaseTransitions") or 0
    wanted = f"{names.WEBHOOK_PATH}/{epoch}"
    if _path(hook) == wanted:
        return None
    return PART.broken(
        f"its path is {_path(hook) or 'empty'}, the leader answers {wanted}: calls are in vain and "
        "pods wait for the queue",
        _LEADER_WRITES,
    )


def _path(hook: JsonObject) -> str:
    return str(dig(hook, "clientConfig", "service", "path") or "")
