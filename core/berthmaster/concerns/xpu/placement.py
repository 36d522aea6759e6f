"""XPU: which nodes have the devices for a pod, which have them best, and which of them it gets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import XPU
from berthmaster.api.names import CARD_DIALECT, SHARE_DIALECT, WHOLE_CARD_MIB
from berthmaster.api.settings.xpu import DeviceStrategy, TopologyScore, XPUNodeStrategy
from berthmaster.concerns.shape import Allocated, Codes, Reason, Rows, Scores
from berthmaster.concerns.xpu import reasons
from berthmaster.concerns.xpu.cards import CARDS, CHOSEN, JOBS, SCORES
from berthmaster.concerns.xpu.columns import Flags, Ints, XPUColumns
from berthmaster.concerns.xpu.holdings import find_mistakable
from berthmaster.concerns.xpu.inventory import card_id
from berthmaster.concerns.xpu.request import CARD_COUNTS, XPURequest
from berthmaster.concerns.xpu.shares import (
    Need,
    by_device,
    choose,
    choose_rows,
    fits,
    need_of,
)

_BITS = 1 << np.arange(CARDS)


class _Served(NamedTuple):
    """Which rows serve the cards that containers ask, and which each gets: by ask, rows by devices."""

    fits: Flags
    chosen: tuple[Flags, ...]


def filter_rows(columns: XPUColumns, rows: Rows, request: XPURequest) -> Codes:
    """Return a code per row, 0 where the devices are there."""
    if request.problem:
        return np.full(len(rows), reasons.INVALID, dtype=np.uint8)
    if request.dialect == SHARE_DIALECT:
        codes = _filter_shares(columns, rows, request)
    else:
        codes = _filter_cards(columns, rows, request)
    if request.is_mistakable:
        busy = columns.waiting.get(find_mistakable(request.dialect, request.total_mib))
        if busy:
            is_busy = np.array([row in busy for row in rows.tolist()], dtype=np.bool_)
            codes[is_busy & (codes == 0)] = reasons.WAITING
    return codes


def score_rows(columns: XPUColumns, rows: Rows, request: XPURequest) -> Scores:
    """Return 0..100 per row by the request's strategy, for rows that fit."""
    if request.problem or request.devices > columns.width:
        return np.zeros(len(rows))
    if request.dialect == SHARE_DIALECT:
        given = _give_shares(columns, rows, request)
        return _score(columns, rows, request.node_strategy, given)
    served = _serve_cards(columns, rows, request)
    if request.dialect == CARD_DIALECT:
        return _score_cards(columns, rows, request, served)
    return _score(columns, rows, request.node_strategy, _given_slices(request, served))


def allocate_row(
    columns: XPUColumns, row: int, request: XPURequest, beside: Allocated
) -> dict[str, Any]:
    """Return which devices give what, in the order written; of equals those near the pod's CPUs."""
    xpus = {it.index: it for it in columns.xpus(row)}
    near = _near(xpus, beside)
    if request.dialect == SHARE_DIALECT:
        devices = _allocate_shares(columns, row, request, xpus, near)
    else:
        devices = _allocate_cards(columns, row, request, xpus, near)
    if not devices:
        return {}
    allocation: dict[str, Any] = {"dialect": request.dialect, "devices": devices}
    if request.dialect == SHARE_DIALECT:
        allocation["of"] = xpus[devices[0]["i"]].memory_mib
    return allocation


def explain(columns: XPUColumns, row: int, code: int, request: XPURequest, node: str) -> Reason:
    """Return the dialect's words for a refusal, with what would help."""
    count = request.devices
    if code == reasons.INVALID:
        return reasons.invalid(request.problem)
    if code == reasons.NOT_FOR_SHARES:
        return reasons.not_for_shares(node)
    if code == reasons.SHORT:
        need = need_of(request.total_mib, count)
        text = f"{need.each + bool(need.more)} MiB" + (f" on {count} devices" if count > 1 else "")
        text += request.wishes.describe()
        return reasons.short(count, text, columns.describe_free(row))
    if code == reasons.PENDING:
        spare, pending = int(columns.spare[row]), int(columns.pending[row])
        return reasons.pending(count, _asked_mib(columns, row, request), spare, pending)
    if code == reasons.UNREGISTERED:
        return reasons.unregistered()
    if code == reasons.TOO_FEW_CARDS:
        return reasons.too_few_cards(_most_asked(request), _cards_of(columns, row, request))
    if code == reasons.TOO_MANY_HANDLES:
        more = sum(it.cards for it in request.asks)
        return reasons.too_many_handles(int(columns.handles[row]), more, request.max_handles)
    if code == reasons.WAITING:
        is_share = request.dialect == SHARE_DIALECT
        return reasons.waiting(node, f"of {request.total_mib} MiB" if is_share else "with cards")
    return _explain_cards(columns, row, request)


# Shares.


def _filter_shares(columns: XPUColumns, rows: Rows, request: XPURequest) -> Codes:
    codes = np.zeros(len(rows), dtype=np.uint8)
    if request.devices > columns.width:
        codes[:] = reasons.SHORT
    else:
        need = need_of(request.total_mib, request.devices)
        open_ = _open(columns, rows, request)
        codes[~fits(open_, need)] = reasons.SHORT
        if request.wishes.is_single_numa and need.devices > 1:
            codes[~_fits_one_zone(open_, columns.numa.take(rows, axis=0), need)] = reasons.SHORT
    pending = columns.pending[rows]
    if pending.any():
        has_spare = columns.spare[rows] >= request.total_mib
        codes[(pending > 0) & ~has_spare & (codes == 0)] = reasons.PENDING
    codes[~columns.is_shared[rows]] = reasons.NOT_FOR_SHARES
    return codes


def _open(columns: XPUColumns, rows: Rows, request: XPURequest) -> Ints:
    """Return what is free where the pod may go, else -1."""
    open_ = columns.open.take(rows, axis=0)
    wishes = request.wishes
    if wishes.models:
        open_[~_has_model(columns, rows, request)] = -1
    if wishes.is_exclusive:
        open_[columns.entries.take(rows, axis=0) > 0] = -1
    return open_


def _has_model(columns: XPUColumns, rows: Rows, request: XPURequest) -> Flags:
    codes = [code for model, code in columns.models.items() if request.wishes.accept(model)]
    found: Flags = np.isin(columns.model.take(rows, axis=0), codes)
    return found


def _fits_one_zone(open_: Ints, numa: Ints, need: Need) -> Flags:
    """Return which rows have it all on devices of one NUMA node."""
    found = np.zeros(len(open_), dtype=np.bool_)
    for zone in np.unique(numa[numa >= 0]).tolist():
        found |= fits(np.where(numa == zone, open_, -1), need)
    return found


def _give_shares(columns: XPUColumns, rows: Rows, request: XPURequest) -> Ints:
    """Return what each device gives, of rows that fit; all of it where nobody may be beside."""
    given = _choose_shares(columns, rows, request)
    return np.where(given > 0, columns.sizes[rows], 0) if request.wishes.is_exclusive else given


def _choose_shares(columns: XPUColumns, rows: Rows, request: XPURequest) -> Ints:
    need, strategy = need_of(request.total_mib, request.devices), request.device_strategy
    open_ = _open(columns, rows, request)
    # One device lies together with itself.
    if need.devices == 1 or strategy in (DeviceStrategy.BINPACK, DeviceStrategy.SPREAD):
        return choose_rows(open_, need, is_spread=strategy is DeviceStrategy.SPREAD)
    given = np.zeros_like(open_)
    for at, row in enumerate(rows.tolist()):
        xpus = {it.index: it for it in columns.xpus(row)}
        for index, mib in choose(open_[at].tolist(), need, strategy, _groups(xpus, strategy)):
            given[at, index] = mib
    return given


def _allocate_shares(
    columns: XPUColumns,
    row: int,
    request: XPURequest,
    xpus: Mapping[int, XPU],
    near: frozenset[int],
) -> list[dict[str, Any]]:
    need, strategy = need_of(request.total_mib, request.devices), request.device_strategy
    open_ = _open(columns, np.array([row], dtype=np.intp), request)[0].tolist()
    groups, together = _groups(xpus, strategy), request.wishes.is_single_numa
    nearest = [free if index in near else -1 for index, free in enumerate(open_)]
    chosen = choose(nearest, need, strategy, groups, must_be_together=together) if near else ()
    chosen = chosen or choose(open_, need, strategy, groups, must_be_together=together)
    return [
        _alone(request, {"i": index, "id": xpus[index].id, "mem": mib}) for index, mib in chosen
    ]


def _alone(request: XPURequest, device: dict[str, Any]) -> dict[str, Any]:
    """Return a device of an allocation with the mark that nobody else is to be on it, if so."""
    return {**device, "x": True} if request.wishes.is_exclusive else device


def _groups(xpus: Mapping[int, XPU], strategy: DeviceStrategy) -> dict[int, Hashable]:
    """Return which devices lie together, by what the strategy looks at."""
    if strategy is DeviceStrategy.NUMA_NODE:
        return {index: it.numa_node for index, it in xpus.items() if it.numa_node >= 0}
    if strategy is DeviceStrategy.BOARD:
        return {index: it.board for index, it in xpus.items() if it.board}
    return {}


# Cards and slices.


def _filter_cards(columns: XPUColumns, rows: Rows, request: XPURequest) -> Codes:
    codes = np.zeros(len(rows), dtype=np.uint8)
    served = _serve_cards(columns, rows, request)
    codes[~served.fits] = reasons.CARDS_DO_NOT_FIT
    if request.max_handles:
        more = sum(it.cards for it in request.asks)
        is_full = columns.handles[rows] + more > request.max_handles
        codes[is_full & (codes == 0)] = reasons.TOO_MANY_HANDLES
    pending = columns.pending[rows]
    if pending.any():
        asked = np.array([_asked_mib(columns, row, request) for row in rows.tolist()])
        codes[(pending > 0) & (columns.spare[rows] < asked) & (codes == 0)] = reasons.PENDING
    cards = columns.cards if request.dialect == CARD_DIALECT else columns.registered
    codes[_most_asked(request) > cards[rows]] = reasons.TOO_FEW_CARDS
    codes[(columns.cards[rows] == 0) & (columns.registered[rows] == 0)] = reasons.UNREGISTERED
    return codes


def _serve_cards(
    columns: XPUColumns, rows: Rows, request: XPURequest, near: frozenset[int] = frozenset()
) -> _Served:
    """Serve the containers in order, each seeing what those before it took that stay."""
    used, entries = columns.used[rows], columns.entries[rows]
    ready = _ready(columns, rows, request)
    fitting = np.ones(len(rows), dtype=np.bool_)
    chosen = []
    has_wings = columns.has_wings[rows]
    sizes = columns.sizes[rows]
    for ask in request.asks:
        usable = ready & _is_usable(sizes, used, entries, ask.mib, is_alone=_is_alone(request))
        picked = _pick(usable, ask.cards, has_wings)
        if near:
            is_near: Flags = np.isin(np.arange(columns.width), list(near))
            nearest = _pick(usable & is_near, ask.cards, has_wings)
            is_served = nearest.any(axis=1)
            picked[is_served] = nearest[is_served]
        fitting &= picked.any(axis=1)
        chosen.append(picked)
        if not ask.is_init:
            used = used + np.where(picked, ask.mib or sizes, 0)
            entries = entries + picked
    return _Served(fitting, tuple(chosen))


def _ready(columns: XPUColumns, rows: Rows, request: XPURequest) -> Flags:
    """Return which devices the dialect serves that may take new pods, and that the pod accepts."""
    ready = _serves(columns, rows, request) & (columns.open[rows] >= 0)
    if request.use or request.avoid:
        ready &= _accepted(columns, rows, request)
    if request.wishes.models:
        ready &= _has_model(columns, rows, request)
    return ready


def _serves(columns: XPUColumns, rows: Rows, request: XPURequest) -> Flags:
    """Return which devices are cards of the dialect."""
    if request.dialect == CARD_DIALECT:
        is_card: Flags = np.arange(columns.width) < columns.cards[rows][:, None]
        return is_card
    return columns.is_registered[rows]


def _accepted(columns: XPUColumns, rows: Rows, request: XPURequest) -> Flags:
    """Return which devices the pod's lists of ids let through, whichever of their ids they name."""
    accepted: Flags = ~_named(columns, rows, request.avoid)
    for ids in request.use:
        accepted &= _named(columns, rows, ids)
    return accepted


def _named(columns: XPUColumns, rows: Rows, ids: frozenset[str]) -> Flags:
    found: Flags = np.zeros((len(rows), columns.width), dtype=np.bool_)
    for id_ in ids:
        for place in columns.find(rows, id_):
            found[place] = True
    return found


def _is_usable(sizes: Ints, used: Ints, entries: Ints, mib: int, *, is_alone: bool) -> Flags:
    """Return which devices hold one more slice; whole cards (0 MiB) only idle ones.

    A card has slices of one size: what its pods have on the mean is the size of each.
    """
    idle: Flags = entries == 0
    if not mib:
        return idle
    usable: Flags = used + mib <= sizes
    usable &= idle if is_alone else idle | (used // np.maximum(entries, 1) == mib)
    return usable


def _pick(usable: Flags, count: int, has_wings: Flags) -> Flags:
    """Return the cards that a container gets of each row's usable ones, none where it does not fit."""
    picked = np.zeros_like(usable)
    if count not in CARD_COUNTS:
        return picked
    if has_wings.any():
        width = min(CARDS, usable.shape[1])
        sets = CHOSEN[count][usable[:, :width] @ _BITS[:width]]
        picked[:, :width] = (sets[:, None] & _BITS[:width]) != 0
    if not has_wings.all():
        lowest: Flags = usable & (usable.cumsum(axis=1) <= count)
        lowest[usable.sum(axis=1) < count] = False
        picked[~has_wings] = lowest[~has_wings]
    return picked


def _allocate_cards(
    columns: XPUColumns,
    row: int,
    request: XPURequest,
    xpus: Mapping[int, XPU],
    near: frozenset[int],
) -> list[dict[str, Any]]:
    rows = np.array([row], dtype=np.intp)
    served = _serve_cards(columns, rows, request, near)
    if near and not served.fits[0]:
        # Served near its CPUs, one container can stand in another's way.
        served = _serve_cards(columns, rows, request)
    if not served.fits[0]:
        return []
    node, devices = columns.name(row), []
    for ask, picked in zip(request.asks, served.chosen, strict=True):
        for index in np.flatnonzero(picked[0]).tolist():
            xpu = xpus[index]
            is_whole = request.dialect == CARD_DIALECT
            device: dict[str, Any] = {
                "i": index,
                "id": card_id(node, index) if is_whole else xpu.registered_id,
                "mem": ask.mib or xpu.memory_mib,
            }
            if ask.position:
                device["c"] = ask.position
            devices.append(device if is_whole else _alone(request, device))
    return devices


def _explain_cards(columns: XPUColumns, row: int, request: XPURequest) -> Reason:
    """Return HAMi's words: what stands in the way of how many cards of the node."""
    xpus = columns.xpus(row)
    cards = _cards_of(columns, row, request)
    counts = [(1, "NumaNotFit")]
    cordoned = sum(it.cordoned for it in xpus)
    if cordoned:
        counts.append((cordoned, "CardCordoned"))
    rows = np.array([row], dtype=np.intp)
    busy = _count_busy(columns, rows, request) if request.is_alone else 0
    refused = int((_serves(columns, rows, request) & ~_accepted(columns, rows, request)).sum())
    if busy:
        counts.append((busy, "ExclusiveDeviceAllocateConflict"))
    elif refused:
        counts.append((refused, "CardUuidMismatch"))
    asked = " and ".join(str(it.cards) for it in request.asks)
    asked += request.wishes.describe()
    usable = _ready(columns, rows, request) & _is_usable(
        columns.sizes[rows],
        columns.used[rows],
        columns.entries[rows],
        request.asks[0].mib,
        is_alone=_is_alone(request),
    )
    found = ",".join(map(str, np.flatnonzero(usable[0]).tolist())) or "none"
    return reasons.cards_do_not_fit(counts, cards, f"{asked} asked, usable cards {found}")


def _is_alone(request: XPURequest) -> bool:
    return request.is_alone or request.wishes.is_exclusive


def _count_busy(columns: XPUColumns, rows: Rows, request: XPURequest) -> int:
    """Return how many cards are refused only because some pod is on them."""
    numbers = columns.sizes[rows], columns.used[rows], columns.entries[rows]
    shared = _is_usable(*numbers, request.asks[0].mib, is_alone=False)
    return int((_ready(columns, rows, request) & shared & (numbers[2] > 0)).sum())


def _cards_of(columns: XPUColumns, row: int, request: XPURequest) -> int:
    cards = columns.cards if request.dialect == CARD_DIALECT else columns.registered
    return int(cards[row])


def _most_asked(request: XPURequest) -> int:
    return max(it.cards for it in request.asks)


# Scores, and what all dialects share.


def _score(
    columns: XPUColumns, rows: Rows, strategy: XPUNodeStrategy, given: NDArray[np.int64]
) -> Scores:
    """Return the score of rows after `given` was taken of each device."""
    sizes, more = by_device(columns.sizes.take(rows, axis=0)), by_device(given)
    if strategy is XPUNodeStrategy.LEAST_FRAGMENT:
        largest = (by_device(columns.open.take(rows, axis=0)) - more).max(axis=0)
        holes: Scores = 100.0 * largest / np.maximum(sizes.max(axis=0), 1)
        return holes
    used = np.minimum(by_device(columns.used.take(rows, axis=0)), sizes)
    taken = used.sum(axis=0) + more.sum(axis=0)
    packed: Scores = np.minimum(100.0 * taken / np.maximum(sizes.sum(axis=0), 1), 100.0)
    return packed if strategy is XPUNodeStrategy.BINPACK else 100.0 - packed


def _given_slices(request: XPURequest, served: _Served) -> Ints:
    """Return MiB by row and device at the most, as containers come and go."""
    staying = peak = np.zeros(served.chosen[0].shape, dtype=np.int64)
    for ask, picked in zip(request.asks, served.chosen, strict=True):
        given = np.where(picked, ask.mib, 0)
        if ask.is_init:
            peak = np.maximum(peak, staying + given)
        else:
            staying = staying + given
    return np.maximum(staying, peak)


def _score_cards(columns: XPUColumns, rows: Rows, request: XPURequest, served: _Served) -> Scores:
    """Return how much nearer to full the host comes, in jobs that are still to come."""
    chosen = served.chosen[0].copy()
    for picked in served.chosen[1:]:
        chosen |= picked
    width = min(CARDS, columns.width)
    busy = columns.entries[rows] > 0
    before = busy[:, :width] @ _BITS[:width]
    of_pod = chosen[:, :width] @ _BITS[:width]
    is_upstream = request.topology_score is TopologyScore.UPSTREAM
    after = of_pod if is_upstream else before | of_pod
    further = JOBS[after] - JOBS[before]
    scores = np.full(len(rows), SCORES[1])
    for number, score in SCORES.items():
        scores[further == number] = score
    flat = ~columns.has_wings[rows]
    if flat.any():
        share = (busy | chosen).sum(axis=1) / np.maximum((columns.sizes[rows] > 0).sum(axis=1), 1)
        scores[flat] = 100.0 * share[flat]
    return 100.0 - scores if request.node_strategy is XPUNodeStrategy.SPREAD else scores


def _near(xpus: Mapping[int, XPU], beside: Allocated) -> frozenset[int]:
    """Return the devices in the zones that the pod's CPUs come from; none where that is not known."""
    zones = beside.get("numa", {}).get("zones") or {}
    return frozenset(index for index, it in xpus.items() if str(it.numa_node) in zones)


def _asked_mib(columns: XPUColumns, row: int, request: XPURequest) -> int:
    if request.dialect == SHARE_DIALECT:
        return request.total_mib
    whole = int(columns.sizes[row].max(initial=0)) or WHOLE_CARD_MIB
    staying = sum(it.cards * (it.mib or whole) for it in request.asks if not it.is_init)
    return max([staying, *(it.cards * (it.mib or whole) for it in request.asks if it.is_init)])
