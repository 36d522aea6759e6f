"""`kubectl berth`: ask Berthmaster why, and break the glass when it must be.

Owns the command line: arguments, the way to the cluster, exit codes. 0: answered. 1: the cluster gave
no answer, or the pod is not there; one line on stderr says what was tried and what to do. 2: the
command line itself is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

# Late imports below: `--version` and `--help` need no API client, which costs most of a second.

PROGRAM = "kubectl berth"
_DEADLINE_S = 300.0
_POD_WORDS = frozenset({"pod", "pods", "po"})


class CommandError(Exception):
    """The question cannot be answered; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = build_parser().parse_args(argv)
    # What the client library thinks of a kubeconfig is said once, by the error itself.
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("berthmaster").setLevel(logging.CRITICAL)
    command: Callable[[argparse.Namespace], Awaitable[int]] = arguments.command
    try:
        return asyncio.run(_run(command, arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone; keep the interpreter from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _run(
    command: Callable[[argparse.Namespace], Awaitable[int]], arguments: argparse.Namespace
) -> int:
    from berthmaster.cluster.errors import ApiError, ClusterError

    try:
        async with asyncio.timeout(_DEADLINE_S):
            return await command(arguments)
    except CommandError as error:
        return _fail(str(error))
    except ApiError as error:
        return _fail(f"the API server refused: {error}")
    except ClusterError as error:
        return _fail(str(error))
    except TimeoutError:
        return _fail(f"no complete answer from the cluster within {_DEADLINE_S:g} s; try again")


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where = shared.add_argument_group("cluster")
    where.add_argument("-n", "--namespace", help="namespace; default: that of the context")
    where.add_argument("--kubeconfig", help="file to use instead of KUBECONFIG or ~/.kube/config")
    where.add_argument("--context", help="context of the kubeconfig to use")
    shared.add_argument(
        "-o", "--output", choices=("text", "json"), help="json: everything, for programs"
    )

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Ask Berthmaster why a pod is where it is, or why it waits.",
        parents=[shared],
    )
    parser.add_argument(
        "--version", action="version", version=f"berthmaster {version('berthmaster')}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    why = commands.add_parser(
        "why",
        parents=[shared],
        help="explain where a pod is, or what it waits for",
        description="Explain where a pod is and for what reason, or what it waits for.",
    )
    why.add_argument("pod", metavar="POD", help="name, or namespace/name")
    why.add_argument(
        "--nodes", type=_count, default=20, metavar="N", help="nodes to show at most (default 20)"
    )
    why.set_defaults(command=_why)

    ungate = commands.add_parser(
        "ungate",
        parents=[shared],
        help="let a waiting pod go without a decision (break glass)",
        description="Take Berthmaster's gate off pods, so that kube-scheduler places them by itself.",
    )
    which = ungate.add_mutually_exclusive_group(required=True)
    which.add_argument("pod", metavar="POD", nargs="?", help="name, or namespace/name")
    which.add_argument(
        "--all", action="store_true", help="every gated pod of the cluster, or of -n NAMESPACE"
    )
    ungate.add_argument("--dry-run", action="store_true", help="ask the API server, change nothing")
    ungate.set_defaults(command=_ungate)
    return parser


async def _why(arguments: argparse.Namespace) -> int:
    import msgspec

    from berthmaster.api.objects import decode_pod
    from berthmaster.cli import output, why
    from berthmaster.cluster.client import Client
    from berthmaster.cluster.errors import ApiError
    from berthmaster.cluster.snapshot import load_engine

    namespace, name = _pod_name(arguments)
    async with await Client.connect(_kubeconfig(arguments), context=_context(arguments)) as client:
        try:
            raw = await client.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
            pod = decode_pod(raw)
        except ApiError as error:
            _explain_missing(error, namespace, name)
        except msgspec.DecodeError as error:
            raise CommandError(f"pod {namespace}/{name} cannot be read: {error}") from error
        recomputed = None
        if why.needs_recomputing(pod):
            recomputed = why.recompute(pod, await load_engine(client))
    report = why.build_report(pod, recomputed, nodes_shown=arguments.nodes)
    output.show(report, as_json=_is_json(arguments))
    return 0


async def _ungate(arguments: argparse.Namespace) -> int:
    from berthmaster.cli import output, ungating
    from berthmaster.cluster.client import Client
    from berthmaster.cluster.errors import ApiError

    is_dry_run = arguments.dry_run
    async with await Client.connect(_kubeconfig(arguments), context=_context(arguments)) as client:
        if arguments.all:
            namespace = getattr(arguments, "namespace", None)
            results = await ungating.ungate_all(client, namespace, is_dry_run=is_dry_run)
        else:
            namespace, name = _pod_name(arguments)
            try:
                results = [
                    await ungating.ungate_pod(client, namespace, name, is_dry_run=is_dry_run)
                ]
            except ApiError as error:
                _explain_missing(error, namespace, name)
    output.show(ungating.build_report(results, is_dry_run=is_dry_run), as_json=_is_json(arguments))
    return int(any(it.outcome is ungating.Outcome.FAILED for it in results))


def _explain_missing(error: Exception, namespace: str, name: str) -> NoReturn:
    from berthmaster.cluster.errors import ApiError

    if isinstance(error, ApiError) and error.is_not_found:
        raise CommandError(
            f"pod {namespace}/{name} not found; -n chooses another namespace, "
            f"`kubectl get pods -n {namespace}` lists what is there"
        ) from error
    raise error


def _pod_name(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return namespace and name: `-n` and the name, or `namespace/name`, or `pod/name`."""
    from berthmaster.cli.contexts import find_namespace

    first, slash, rest = arguments.pod.partition("/")
    name = rest if slash else first
    if not name or not first or "/" in name:
        raise CommandError(f'"{arguments.pod}" is no pod, expected NAME or NAMESPACE/NAME')
    given = getattr(arguments, "namespace", None)
    if slash and first not in _POD_WORDS:
        if given is not None and given != first:
            raise CommandError(f'"{arguments.pod}" and -n {given} name different namespaces')
        return first, name
    if given is None:
        given = find_namespace(_kubeconfig(arguments), _context(arguments))
    return given, name


def _kubeconfig(arguments: argparse.Namespace) -> str | None:
    path = getattr(arguments, "kubeconfig", None)
    return str(Path(path).expanduser()) if path else None


def _context(arguments: argparse.Namespace) -> str | None:
    context: str | None = getattr(arguments, "context", None)
    return context


def _is_json(arguments: argparse.Namespace) -> bool:
    return getattr(arguments, "output", "text") == "json"


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return count


def _fail(message: str) -> int:
    # A parser's message may have lines; ours has one.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
