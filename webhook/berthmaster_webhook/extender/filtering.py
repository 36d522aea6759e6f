"""Which nodes have the devices for a pod, and how good they are. Nothing here waits or reserves.

A pod that has its devices already, from admission or from a binding that was cut short, fits its node
and no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from berthmaster.api.objects import Node, Pod
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest
from berthmaster_webhook.admission import Term
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.extender.asking import is_lasting, is_waiting, read_asks
from berthmaster_webhook.extender.describing import asks_there, make_engine
from berthmaster_webhook.extender.protocol import FilterArgs, FilterResult

UNKNOWN_NODE = "the node is not known to Berthmaster"
_BEST = 100.0
_REQUESTS_REMEMBERED = 64


class _Words(NamedTuple):
    """Why a node does not fit, as of a version of its row; `lasts` whatever pods end."""

    version: int
    code: int
    text: str
    lasts: bool


class Filtering:
    """Answers `filter` and `prioritize`."""

    def __init__(self, tools: Tools, term: Term) -> None:
        self._tools = tools
        self._term = term
        # Making words takes longer than judging.
        self._words: OrderedDict[PodRequest, dict[str, _Words]] = OrderedDict()

    def filter(self, args: FilterArgs) -> FilterResult:
        """Return which nodes fit a pod now, and why the others do not."""
        error = why_not(self._tools, self._term)
        if error:
            return FilterResult(error=error)
        held = self._held(args.pod)
        if held:
            reason = f"the pod has its devices on node {held}"
            others = {it: reason for it in args.names if it != held}
            return FilterResult(names=(held,) if held in args.names else (), failed=others)
        asks = read_asks(self._tools, args.pod)
        if not asks:
            return FilterResult(names=args.names)
        result = _Sorting()
        engine = self._tools.state.engine
        unknown = result.take(engine, asks, args.names, self._words_for(asks))
        if unknown and args.candidates is not None:
            other = make_engine(self._strange(args), self._tools.state.policies)
            unknown = result.take(other, asks_there(asks), unknown, {})
        result.failed.update(dict.fromkeys(unknown, UNKNOWN_NODE))
        return FilterResult(
            names=tuple(result.fitting), failed=result.failed, unresolvable=result.unresolvable
        )

    def prioritize(self, args: FilterArgs) -> dict[str, float]:
        """Return a score of 0..100 by node, 0 for those that do not fit or are not known."""
        scores = dict.fromkeys(args.names, 0.0)
        if why_not(self._tools, self._term):
            return scores
        held = self._held(args.pod)
        if held:
            return {it: _BEST if it == held else 0.0 for it in scores}
        asks = read_asks(self._tools, args.pod)
        if asks:
            found = self._tools.state.engine.find(asks, args.names)
            scores.update(zip(found.nodes, found.scores, strict=True))
        return scores

    def _held(self, pod: Pod) -> str:
        """Return the node that was decided for a pod, empty if none was."""
        entry = self._tools.state.ledger.held_for(pod)
        return "" if entry is None else entry.node

    def _strange(self, args: FilterArgs) -> Iterable[Node]:
        rows = self._tools.state.engine.table.rows
        return (it.node for it in args.candidates or () if it.node.metadata.name not in rows)

    def _words_for(self, asks: PodRequest) -> dict[str, _Words]:
        words = self._words.setdefault(asks, {})
        if len(words) > 2 * len(self._tools.state.engine.table.rows):
            # Most are of nodes that are gone.
            words.clear()
        self._words.move_to_end(asks)
        if len(self._words) > _REQUESTS_REMEMBERED:
            self._words.popitem(last=False)
        return words


class _Sorting:
    """Nodes, sorted by what becomes of them."""

    def __init__(self) -> None:
        self.fitting: list[str] = []
        self.failed: dict[str, str] = {}
        self.unresolvable: dict[str, str] = {}

    def take(
        self, engine: Engine, asks: PodRequest, nodes: Sequence[str], remembered: dict[str, _Words]
    ) -> list[str]:
        """Sort what an engine knows of these nodes; return those that it does not know."""
        found = engine.find(asks, nodes)
        for node, code, version in zip(found.nodes, found.codes, found.versions, strict=True):
            if not code or is_waiting(code):
                self.fitting.append(node)
                continue
            words = remembered.get(node)
            if words is None or words.version != version or words.code != code:
                words = remembered[node] = _put_into_words(engine, asks, node, code, version)
            (self.unresolvable if words.lasts else self.failed)[node] = words.text
        return found.unknown


def why_not(tools: Tools, term: Term) -> str:
    """Return what keeps this replica from deciding now, empty if nothing does."""
    if not tools.state.is_synced:
        return "Berthmaster has not seen the whole cluster yet"
    reason = term.why_not()
    return f"Berthmaster does not decide now: {reason}" if reason is not None else ""


def _put_into_words(engine: Engine, asks: PodRequest, node: str, code: int, version: int) -> _Words:
    _, reason = engine.explain(asks, node, code)
    return _Words(version, code, reason.text, is_lasting(engine, asks, node, code))
