"""Other webhooks that see pods being created: those after ours, and how long an answer may travel.

An answer of ours is on its way while webhooks that come after it are called. A new leader waits
`takeoverWait` for answers of one that crashed, so that must be longer than those calls can take; and
an answer is held for `assumeTTL` at least.
"""

from __future__ import annotations

from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.api.waits import ASSUME_TTL_S, REQUEST_TIMEOUT_S, TAKEOVER_WAIT_S
from berthmaster.cli.doctor.facts import Facts, JsonObject, Unread, dig, items, name_of
from berthmaster.cli.doctor.findings import Finding, Part

PART = Part("other webhooks")
# For storing the pod after the last webhook, and for clocks.
_MARGIN_S = 5.0
_DEFAULT_TIMEOUT_S = 10


def check(facts: Facts) -> Iterator[Finding]:
    """Look at webhooks on pods after ours, and at our waits against their timeouts."""
    mutating, validating = facts.mutating_webhooks, facts.validating_webhooks
    if mutating is None or isinstance(mutating, Unread):
        why = mutating.why if isinstance(mutating, Unread) else "the kind is not served"
        yield PART.not_checked("mutating webhooks", why)
        return
    after = [
        (name_of(it), hook)
        for it in mutating
        if name_of(it) > names.WEBHOOK_CONFIGURATION
        for hook in items(it, "webhooks")
        if sees_new_pods(hook)
    ]
    for name, hook in after:
        yield PART.warning(
            f"{name} ({hook.get('name')}) sees pods after they were placed and may change what they "
            "ask",
            f"give it a name before {names.WEBHOOK_CONFIGURATION}, if it changes requests, "
            "affinity or annotations",
        )
    again = [
        hook
        for it in mutating
        if name_of(it) < names.WEBHOOK_CONFIGURATION
        for hook in items(it, "webhooks")
        if sees_new_pods(hook) and hook.get("reinvocationPolicy") == "IfNeeded"
    ]
    if validating is None or isinstance(validating, Unread):
        last_s = float(_DEFAULT_TIMEOUT_S)
    else:
        # Called all at once.
        last_s = max(
            (
                _timeout_s(hook)
                for it in validating
                for hook in items(it, "webhooks")
                if sees_new_pods(hook)
            ),
            default=0.0,
        )
    longest_s = sum(_timeout_s(hook) for hook in (*(it for _, it in after), *again)) + last_s
    yield from _check_waits(min(longest_s, REQUEST_TIMEOUT_S), facts)


def sees_new_pods(hook: JsonObject) -> bool:
    """Return whether a webhook may be called for a pod that is being created."""
    return any(
        _has(rule, "apiGroups", "")
        and _has(rule, "operations", "CREATE")
        and any(it in ("*", "*/*", "pods", "pods/*") for it in rule.get("resources") or ())
        for rule in items(hook, "rules")
    )


def _check_waits(longest_s: float, facts: Facts) -> Iterator[Finding]:
    deployment = facts.deployments.get(names.WEBHOOK_SERVICE)
    if deployment is None or isinstance(deployment, Unread):
        why = deployment.why if isinstance(deployment, Unread) else "there is no Deployment"
        yield PART.not_checked("takeoverWait", why)
        return
    wait_s = _setting_s(deployment, "takeover-wait", TAKEOVER_WAIT_S)
    ttl_s = _setting_s(deployment, "assume-ttl", ASSUME_TTL_S)
    least_s = longest_s + _MARGIN_S
    short = [
        (option, found_s)
        for option, found_s in (("--takeover-wait", wait_s), ("--assume-ttl", ttl_s))
        if found_s < least_s
    ]
    for option, found_s in short:
        yield PART.warning(
            f"{option} is {found_s:g} s, and webhooks after ours may take {longest_s:g} s: an answer of "
            "a leader that crashed may be stored after its room was given away",
            f"set {option} of the Deployment {names.WEBHOOK_SERVICE} to {least_s:g} or more, or lower "
            "their timeoutSeconds",
        )
    if not short:
        yield PART.ok(
            f"those after ours may take {longest_s:g} s; takeoverWait is {wait_s:g} s (it could be "
            f"{least_s:g} s), assumeTTL {ttl_s:g} s"
        )


def _has(rule: JsonObject, key: str, wanted: str) -> bool:
    return any(it in ("*", wanted) for it in rule.get(key) or ())


def _timeout_s(hook: JsonObject) -> float:
    return float(hook.get("timeoutSeconds") or _DEFAULT_TIMEOUT_S)


def _setting_s(deployment: JsonObject, option: str, default_s: float) -> float:
    """Return what the program was told, the command line before the environment."""
    variable = f"BERTHMASTER_{option.upper().replace('-', '_')}_S"
    for container in items(deployment, "spec", "template", "spec", "containers"):
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        for index, word in enumerate(map(str, words)):
            name, equals, text = word.partition("=")
            if name == f"--{option}":
                return _number(text if equals else next(iter(words[index + 1 :]), ""), default_s)
        for entry in items(container, "env"):
            if entry.get("name") == variable:
                return _number(dig(entry, "value"), default_s)
    return default_s


def _number(text: object, default: float) -> float:
    try:
        return float(str(text))
    except ValueError:
        return default
