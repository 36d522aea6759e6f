"""Names out of the cluster while somebody types: by kubectl, which starts fast, and never an error."""

from __future__ import annotations

import shutil
import subprocess
from argparse import Namespace
from collections.abc import Callable

Completer = Callable[..., list[str]]

# Nobody waits longer for a list of names.
_PATIENCE_S = 3.0


def pods(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return the pods of the namespace that is meant, `NAMESPACE/` before them if that was typed."""
    return _pods(prefix, parsed_args, ())


def pending_pods(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return the pods that run nowhere yet."""
    return _pods(prefix, parsed_args, ("--field-selector", "status.phase=Pending"))


def namespaces(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return all namespaces."""
    return [it for it in _ask(parsed_args, "get", "namespaces", "-o", "name") if prefix in it]


def nodes(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return all nodes."""
    return [it for it in _ask(parsed_args, "get", "nodes", "-o", "name") if prefix in it]


def contexts(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Return the contexts of the kubeconfig."""
    return _ask(parsed_args, "config", "get-contexts", "-o", "name")


def _pods(prefix: str, parsed_args: Namespace, options: tuple[str, ...]) -> list[str]:
    namespace, slash, _ = prefix.partition("/")
    where = ("-n", namespace) if slash else ()
    found = _ask(parsed_args, "get", "pods", "-o", "name", *options, *where)
    return [f"{namespace}{slash}{it}" if slash else it for it in found]


def _ask(parsed_args: Namespace, *question: str) -> list[str]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return []
    given = [
        f"--{name}={value}"
        for name in ("kubeconfig", "context", "namespace")
        if (value := getattr(parsed_args, name, None))
        and not (name == "namespace" and "-n" in question)
    ]
    try:
        answer = subprocess.run(  # noqa: S603 - kubectl, with words of the user's own
            [kubectl, *question, *given, f"--request-timeout={_PATIENCE_S:g}s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_PATIENCE_S + 1,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    # `pod/name`; contexts have no kind before them and may have slashes.
    is_typed = question[0] == "get"
    return [
        line.partition("/")[2] if is_typed else line for line in answer.stdout.split("\n") if line
    ]
