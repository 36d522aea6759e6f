"""The messages of the scheduler-extender protocol, to and from bytes.

Keys are read whatever their case, unknown ones are passed over. Of names and nodes the names win where
both are there. A list of nodes is kept as it came, so that what is returned is what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from berthmaster.api.objects import Node, Pod, decode_pod

# Whole nodes come with the names of all their images.
MAX_BODY_BYTES = 64 * 1024 * 1024
NO_POD = "arg or pod is nil"
NO_NODES = "cannot get node names"
MOST_SCORE = 10

T = TypeVar("T")


class MalformedError(Exception):
    """Say why a body cannot be answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that came whole."""

    node: Node
    raw: msgspec.Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterArgs:
    """Which nodes will do for a pod; `candidates` only where nodes came and no names."""

    pod: Pod
    names: tuple[str, ...]
    candidates: tuple[Candidate, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """What became of each node; what preemption cannot cure is `unresolvable`."""

    names: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    unresolvable: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindArgs:
    """Who is to be bound where."""

    name: str
    namespace: str
    uid: str
    node: str


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_names = msgspec.json.Decoder(list[str] | None).decode
_decode_list = msgspec.json.Decoder(_List | None).decode
_decode_node = msgspec.json.Decoder(Node).decode
_decode_text = msgspec.json.Decoder(str | None).decode
_encode = msgspec.json.Encoder().encode


def read_filter(body: bytes) -> FilterArgs:
    """Return what `filter` or `prioritize` is asked.

    Raises:
        MalformedError: the body is cut, or has no pod or no nodes.
    """
    said = _read_object(body)
    raw_pod = said.get("pod")
    if raw_pod is None or bytes(raw_pod) == b"null":
        raise MalformedError(NO_POD)
    pod = _read(decode_pod, bytes(raw_pod), "Pod")
    names = _read(_decode_names, said.get("nodenames", b"null"), "NodeNames")
    if names is not None:
        return FilterArgs(pod=pod, names=tuple(names))
    nodes = _read(_decode_list, said.get("nodes", b"null"), "Nodes")
    if nodes is None:
        raise MalformedError(NO_NODES)
    candidates = tuple(
        Candidate(node=_read(_decode_node, raw, "Nodes"), raw=raw) for raw in nodes.items or ()
    )
    names_of = tuple(it.node.metadata.name for it in candidates)
    return FilterArgs(pod=pod, names=names_of, candidates=candidates)


def read_bind(body: bytes) -> BindArgs:
    """Return what `bind` is asked.

    Raises:
        MalformedError: the body is cut, or something is missing.
    """
    said = _read_object(body)
    keys = ("PodName", "PodNamespace", "PodUID", "Node")
    found = {key: _read(_decode_text, said.get(key.lower(), b"null"), key) for key in keys}
    missing = [key for key, text in found.items() if not text]
    if missing:
        raise MalformedError(f"expected {', '.join(missing)}")
    name, namespace, uid, node = (str(found[key]) for key in keys)
    for text in (name, namespace):
        if "/" in text or text in {".", ".."}:
            raise MalformedError(f"expected the name of an object, found {text[:60]!r}")
    return BindArgs(name=name, namespace=namespace, uid=uid, node=node)


def write_filter(args: FilterArgs | None, result: FilterResult) -> bytes:
    """Return the answer to `filter`: names where names came, nodes where nodes came."""
    names: Sequence[str] | None = None
    nodes: dict[str, Any] | None = None
    if args is not None and not result.error:
        fitting = frozenset(result.names)
        if args.candidates is None:
            names = result.names
        else:
            kept = [it.raw for it in args.candidates if it.node.metadata.name in fitting]
            nodes = {"metadata": {}, "items": kept}
    return _encode(
        {
            "Nodes": nodes,
            "NodeNames": names,
            "FailedNodes": result.failed,
            "FailedAndUnresolvableNodes": result.unresolvable,
            "Error": result.error,
        }
    )


def write_scores(scores: Mapping[str, float]) -> bytes:
    """Return the answer to `prioritize`, from scores of 0..100."""
    return _encode(
        [
            {"Host": node, "Score": max(0, min(MOST_SCORE, round(score * MOST_SCORE / 100)))}
            for node, score in scores.items()
        ]
    )


def write_bind(error: str) -> bytes:
    """Return the answer to `bind`."""
    return _encode({"Error": error})


def _read_object(body: bytes) -> dict[str, msgspec.Raw]:
    said = _read(_decode_object, body, "body")
    return {key.lower(): value for key, value in said.items()}


def _read(decode: Any, raw: bytes | msgspec.Raw, what: str) -> Any:
    try:
        return decode(raw)
    # Deep nesting, broken escapes and surrogates each have an exception of their own.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"{what} cannot be read: {error}") from error
