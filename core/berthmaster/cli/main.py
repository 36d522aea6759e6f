"""`kubectl berth`: ask Berthmaster why and what if, and break the glass when it must be.

Owns the command line: arguments, the way to the cluster, exit codes. 0: answered. 1: the cluster gave
no answer, what was asked about is not there, or `doctor` found something broken; one line on stderr
says what was tried and what to do. 2: the command line itself is wrong. 3: `simulate` found no node.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from berthmaster.cli import candidates
from berthmaster.cli.errors import CommandError

# Late imports below: `--version` and `--help` need no API client, which costs most of a second.

PROGRAM = "kubectl berth"
_DEADLINE_S = 300.0
_NODES_SHOWN = 20
_MOST_COUNTED = 1_000_000
_MOST_JUDGED = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    if "_ARGCOMPLETE" in os.environ:
        from berthmaster.cli import completing

        # The shell asks how a command line may go on; this does not return.
        completing.complete()
    arguments = build_parser().parse_args(argv)
    # What the client library thinks of a kubeconfig is said once, by the error itself.
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("berthmaster").setLevel(logging.CRITICAL)
    try:
        if arguments.command == "completion":
            from berthmaster.cli import completing

            print(completing.script(arguments.shell), flush=True)
            return 0
        return asyncio.run(_run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone; keep the interpreter from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _run(arguments: argparse.Namespace) -> int:
    from berthmaster.cli.commands import COMMANDS
    from berthmaster.cluster.errors import ApiError, ClusterError

    try:
        # A page is served for as long as somebody looks at it.
        async with asyncio.timeout(None if arguments.command == "page" else _DEADLINE_S):
            return await COMMANDS[arguments.command](arguments)
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
    shared = _shared_arguments()
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Ask Berthmaster why a pod is where it is or waits, where pods would go, and "
        "whether all of it is well.",
        epilog=f"`{PROGRAM} COMMAND --help` has an example of each.",
        parents=[shared],
    )
    parser.add_argument(
        "--version", action="version", version=f"berthmaster {version('berthmaster')}"
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )

    def add(name: str, help_: str, description: str, *examples: str) -> argparse.ArgumentParser:
        width = max(map(len, examples[::2]))
        lines = [
            f"  {PROGRAM} {example:<{width}}   # {remark}"
            for example, remark in zip(examples[::2], examples[1::2], strict=True)
        ]
        return commands.add_parser(
            name,
            parents=[shared],
            help=help_,
            description=description,
            epilog="\n".join(("examples:", *lines)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    why = add(
        "why",
        "explain where a pod is, or what it waits for",
        "Explain where a pod is and for what reason, or what it waits for.",
        "why web-0 -n shop",
        "a pod by name and namespace",
        "why shop/web-0 -o json",
        "everything, for programs",
    )
    _add_pod(why)
    _add_nodes(why)
    why.add_argument(
        "--recorded",
        action="store_true",
        help="of a pod that was decided tell only what stands on it; nodes are not compared anew",
    )
    why.add_argument(
        "--full",
        action="store_true",
        help="ask the leader for the whole table of the decision, as it was made",
    )
    _add_address(why)

    add(
        "bypass",
        "show pods that were bound past Berthmaster, and what they took",
        "Show by node the pods that asked for placement and run without a decision, or elsewhere than\n"
        "decided: what they take of the node, and whether more is used there than it has.",
        "bypass",
        "nodes past the line first",
        "bypass -o json",
        "for monitoring",
    )

    page = add(
        "page",
        "open the page of the harbour",
        "Serve the page of the harbour on this machine until interrupted: what nodes have and what is used\n"
        "of it, who waits and why, the last decisions. Reads only. Needs the rights to create\n"
        "serviceaccounts/token of berthmaster-viewer, and pods/portforward, in berthmaster-system.",
        "page",
        "prints the address to open",
        "page --port 9000",
        "at a port of your choice",
    )
    page.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1; default: any free")
    _add_address(page)

    simulate = add(
        "simulate",
        "tell where pods would go now, without creating anything",
        "Decide for pods that do not exist, as the cluster would now, and change nothing.\n"
        "Exit code 0: they would all be placed; 3: one would wait; 1: no answer, or refused.",
        "simulate -f pod.yaml",
        "one pod, or several documents in turn",
        "simulate -f deployment.yaml -n shop",
        "all replicas of a template",
        "simulate -f - < pod.yaml",
        "from stdin",
    )
    _add_files(simulate)
    _add_nodes(simulate)

    capacity = add(
        "capacity",
        "count how many more pods of a shape fit, where, and what stops them",
        "Count how many more pods like the given one fit, on which nodes, what stops each node, and\n"
        "what room is there in sum but on no single node. Nothing is changed in the cluster.",
        "capacity -f pod.yaml",
        "a pod, or anything with a pod template",
        "capacity -f pod.yaml --max 100000",
        "count further than 10000",
    )
    _add_files(capacity)
    _add_nodes(capacity)
    capacity.add_argument(
        "--max",
        type=_bound,
        default=10_000,
        metavar="N",
        help="stop counting at so many pods (default 10000)",
    )

    inspect = add(
        "inspect",
        "show accelerators, and who has how much of which",
        "Show each accelerator with a bar of what is taken of it, and the pods that have it, whichever of\n"
        "the dialects they asked in. `kubectl inspect xpushare` shows shares as that tool did.",
        "inspect",
        "all nodes",
        "inspect gpu-7 -o json",
        "one node, for programs",
    )
    node = inspect.add_argument("node", metavar="NODE", nargs="?", help="only this node")
    _complete_by(node, candidates.nodes)

    add(
        "doctor",
        "look whether all parts of Berthmaster are there and well",
        "Look at every part of Berthmaster: installed, reachable, fresh, rightly configured.\n"
        "Changes nothing; the pod that is tried is a dry run. What you have no right to read is\n"
        "reported as not checked. Exit code 1 when something is broken.",
        "doctor",
        "each finding, and what to do about it",
        "doctor -o json",
        "for monitoring",
    )

    observe_report = add(
        "observe-report",
        "tell what pods of mode observe would have gained by being placed",
        "For how many pods of mode observe Berthmaster would have chosen another node than\n"
        "kube-scheduler did, and what that would have saved. Nothing is changed in the cluster.",
        "observe-report",
        "the whole cluster",
        "observe-report shop vision -o json",
        "two namespaces, for programs",
    )
    namespaces = observe_report.add_argument(
        "namespaces", metavar="NAMESPACE", nargs="*", help="only these namespaces"
    )
    _complete_by(namespaces, candidates.namespaces)
    observe_report.add_argument(
        "--judge",
        type=_count,
        default=_MOST_JUDGED,
        metavar="N",
        help=f"judge at most N of the pods that are elsewhere (default {_MOST_JUDGED}); all are counted",
    )

    completion = add(
        "completion",
        "print a script that makes a shell complete this command",
        "Print a script that completes `kubectl-berth`. `kubectl berth` itself is completed by kubectl's\n"
        "own completion, as long as kubectl_complete-berth is in the PATH beside kubectl-berth.",
        "completion bash > ~/.local/share/bash-completion/completions/kubectl-berth",
        "bash",
        'completion zsh > "${fpath[1]}/_kubectl-berth"',
        "zsh",
        "completion fish > ~/.config/fish/completions/kubectl-berth.fish",
        "fish",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))

    ungate = add(
        "ungate",
        "let a waiting pod go without a decision (break glass)",
        "Take Berthmaster's gate off pods, so that kube-scheduler places them by itself.",
        "ungate web-0 -n shop",
        "one pod",
        "ungate --all --dry-run",
        "see which pods of the cluster wait",
        "ungate --all --yes",
        "let them all go, without asking",
    )
    which = ungate.add_mutually_exclusive_group(required=True)
    _add_pod(which, candidates.pending_pods, nargs="?")
    which.add_argument(
        "--all", action="store_true", help="every gated pod of the cluster, or of -n NAMESPACE"
    )
    ungate.add_argument("--dry-run", action="store_true", help="ask the API server, change nothing")
    ungate.add_argument(
        "-y", "--yes", action="store_true", help="do not ask on a terminal before --all"
    )

    clean = add(
        "clean",
        "take what Berthmaster wrote off the nodes, after removing it",
        "Take Berthmaster's conditions off all nodes; the last step of removing it.",
        "clean --dry-run",
        "see which nodes have some",
        "clean",
        "take them off",
    )
    clean.add_argument("--dry-run", action="store_true", help="ask the API server, change nothing")
    return parser


def _shared_arguments() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where = shared.add_argument_group("cluster")
    namespace = where.add_argument(
        "-n", "--namespace", help="namespace; default: that of the context"
    )
    _complete_by(namespace, candidates.namespaces)
    where.add_argument("--kubeconfig", help="file to use instead of KUBECONFIG or ~/.kube/config")
    context = where.add_argument("--context", help="context of the kubeconfig to use")
    _complete_by(context, candidates.contexts)
    shared.add_argument(
        "-o", "--output", choices=("text", "json"), help="json: everything, for programs"
    )
    return shared


def _add_pod(
    parser: argparse._ActionsContainer,
    completer: candidates.Completer = candidates.pods,
    nargs: str | None = None,
) -> None:
    pod = parser.add_argument("pod", metavar="POD", nargs=nargs, help="name, or namespace/name")
    _complete_by(pod, completer)


def _complete_by(action: argparse.Action, completer: candidates.Completer) -> None:
    # By this name argcomplete looks for it.
    action.completer = completer  # type: ignore[attr-defined]


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        dest="filenames",
        action="append",
        required=True,
        metavar="FILE",
        help="YAML or JSON of a Pod, Deployment, StatefulSet, Job, ...; - is stdin; may be repeated",
    )


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes",
        type=_count,
        default=_NODES_SHOWN,
        metavar="N",
        help=f"nodes to show at most (default {_NODES_SHOWN})",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="where the leader's port 8443 can be reached; default: by `kubectl port-forward`",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return port


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return count


def _bound(text: str) -> int:
    count = int(text)
    if not 0 < count <= _MOST_COUNTED:
        raise argparse.ArgumentTypeError(f"{text} is not in 1..{_MOST_COUNTED}")
    return count


def _fail(message: str) -> int:
    # A parser's message may have lines; ours has one.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
