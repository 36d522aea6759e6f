"""What a pod asks of accelerators, in one of three dialects, and which faults its creator is told.

    xpushare      MiB of the whole pod, over as many distinct devices as a label says (absent: 1)
    hami-kunlun   whole cards, per container
    hami-vxpu     cards, and MiB of each rounded up to a slice (24576, 49152 or 98304), per container

A pod that names none of their resources asks nothing; the label alone asks nothing either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from berthmaster.api.names import (
    CARD_DIALECT,
    SHARE_DIALECT,
    SLICE_DIALECT,
    WHOLE_CARD_MIB,
)
from berthmaster.api.objects import Container, Pod, Quantity
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.quantities import QuantityError, parse_quantity
from berthmaster.api.settings.xpu import DeviceStrategy, TopologyScore, XPUNodeStrategy, XPUSettings
from berthmaster.api.xpu_names import XPUNames
from berthmaster.concerns.lifetimes import most_at_once
from berthmaster.concerns.shape import InvalidRequestError, Problem
from berthmaster.concerns.xpu.wishes import NONE, Wishes, read_wishes

CARD_COUNTS = (1, 2, 4, 8)
SLICES_MIB = (24576, 49152, WHOLE_CARD_MIB)
MIXED = "pod mixes XPU request dialects"

_COUNT = re.compile(r"0*([1-9][0-9]{0,8})")
_HIGHEST = 2**40
_SHOWN_CHARS = 60
_MUTEX = "mutex"
_NODE_STRATEGIES = {"binpack": XPUNodeStrategy.BINPACK, "spread": XPUNodeStrategy.SPREAD}


class CardAsk(NamedTuple):
    """What one container asks: `mib` of each of so many cards; 0 MiB is the whole card.

    `position` counts init containers first. An init container that stays counts as one of the others.
    """

    position: int
    is_init: bool
    cards: int
    mib: int


class XPURequest(NamedTuple):
    """What a pod asks. `total_mib` over `devices` are a share's, `asks` those of cards and slices.

    `use` are sets of ids of which a card must be in each, `avoid` ids that will not do. With `is_alone`
    only idle cards will do. `is_mistakable`: the device plugin is not told which pod it serves. A request
    with a `problem` is refused everywhere, in its words.
    """

    dialect: str
    total_mib: int = 0
    devices: int = 1
    asks: tuple[CardAsk, ...] = ()
    device_strategy: DeviceStrategy = DeviceStrategy.BINPACK
    node_strategy: XPUNodeStrategy = XPUNodeStrategy.LEAST_FRAGMENT
    topology_score: TopologyScore = TopologyScore.DOCUMENTED
    max_handles: int = 0
    use: tuple[frozenset[str], ...] = ()
    avoid: frozenset[str] = frozenset()
    is_alone: bool = False
    is_mistakable: bool = False
    problem: str = ""
    wishes: Wishes = NONE


class ContainerUse(NamedTuple):
    """What one container names of the dialects' resources, as text or number, by resource."""

    name: str
    field: str
    is_init: bool
    amounts: tuple[tuple[str, Quantity], ...]


class Asks(NamedTuple):
    """What a pod's containers ask together: `total_mib` of a share, and cards and slices by container."""

    dialects: frozenset[str]
    total_mib: int
    cards: tuple[CardAsk, ...]
    slices: tuple[CardAsk, ...]


def read_request(pod: Pod, policy: PlacementPolicySpec) -> XPURequest | None:
    """Return what the pod asks, None if nothing.

    Raises:
        InvalidRequestError: it asks in a way that cannot be meant; each fault names its field.
    """
    settings = policy.concerns.xpu
    names = settings.names_in_force
    containers = read_containers(pod, names.resources | {names.share_count})
    if not containers:
        return None
    problems: list[Problem] = []
    asks = read_asks(containers, names, problems)
    problems.extend(_strict_problems(containers, asks, names))
    count = read_count(pod, names, problems) if SHARE_DIALECT in asks.dialects else 1
    wishes = read_wishes(pod.annotations, problems)
    request = _request(pod, asks, count, settings, names)
    if request is not None:
        request = request._replace(wishes=wishes)
        if wishes.numa:
            request = request._replace(device_strategy=DeviceStrategy.NUMA_NODE)
    if problems:
        raise InvalidRequestError(*problems, request=_as_far_as_possible(request, problems))
    return request


def read_containers(pod: Pod, resources: frozenset[str]) -> tuple[ContainerUse, ...]:
    """Return the containers with what they name of these resources; empty if none names any."""
    found = tuple(_read_containers(pod, resources))
    return found if any(it.amounts for it in found) else ()


def _read_containers(pod: Pod, resources: frozenset[str]) -> Iterator[ContainerUse]:
    spec = pod.spec
    for kind, containers in (
        ("initContainers", spec.init_containers),
        ("containers", spec.containers),
    ):
        for number, container in enumerate(containers or ()):
            is_init = kind == "initContainers" and not container.is_sidecar
            yield ContainerUse(
                container.name,
                f"spec.{kind}[{number}].resources",
                is_init,
                tuple(_amounts(container, resources)),
            )


def _amounts(container: Container, resources: frozenset[str]) -> Iterator[tuple[str, Quantity]]:
    """Yield what a container names: its limit, or its request where it has no limit."""
    asked = container.resources
    if asked is None:
        return
    limits, requests = asked.limits or {}, asked.requests or {}
    if resources.isdisjoint(limits) and resources.isdisjoint(requests):
        return
    for resource in sorted(resources & (limits.keys() | requests.keys())):
        yield resource, limits.get(resource, requests.get(resource, 0))


def read_asks(containers: Iterable[ContainerUse], names: XPUNames, problems: list[Problem]) -> Asks:
    """Return what containers ask together; amounts that cannot be read count as 0 and are problems."""
    dialects: set[str] = set()
    cards: list[CardAsk] = []
    slices: list[CardAsk] = []
    shares: list[tuple[dict[str, int], bool]] = []
    for position, container in enumerate(containers):
        amounts = {
            resource: _whole_number(quantity, f"{container.field}[{resource}]", problems)
            for resource, quantity in container.amounts
        }
        if names.share_memory in amounts:
            dialects.add(SHARE_DIALECT)
            share = {names.share_memory: amounts[names.share_memory]}
            shares.append((share, not container.is_init))
        if names.cards in amounts:
            dialects.add(CARD_DIALECT)
            cards.append(CardAsk(position, container.is_init, amounts[names.cards], 0))
        if names.slices in amounts:
            dialects.add(SLICE_DIALECT)
            mib = round_to_slice(amounts.get(names.slice_memory, WHOLE_CARD_MIB))
            slices.append(CardAsk(position, container.is_init, amounts[names.slices], mib))
    return Asks(
        dialects=frozenset(dialects),
        total_mib=most_at_once(shares)[0].get(names.share_memory, 0),
        cards=tuple(it for it in cards if it.cards),
        slices=tuple(it for it in slices if it.cards),
    )


def round_to_slice(mib: int) -> int:
    """Return the size of the slice that so much memory gets."""
    return next((it for it in SLICES_MIB if mib <= it), WHOLE_CARD_MIB)


def _request(
    pod: Pod, asks: Asks, count: int | None, settings: XPUSettings, names: XPUNames
) -> XPURequest | None:
    dialect = next(iter(asks.dialects), "")
    if len(asks.dialects) > 1:
        return XPURequest(dialect=dialect, problem=MIXED)
    is_mistakable = dialect in settings.plugins_without_identity
    if dialect == SHARE_DIALECT and asks.total_mib:
        return XPURequest(
            dialect=dialect,
            total_mib=asks.total_mib,
            devices=count or 1,
            device_strategy=settings.device_strategy,
            node_strategy=settings.node_strategy,
            is_mistakable=is_mistakable,
        )
    cards = asks.cards if dialect == CARD_DIALECT else asks.slices
    if not cards:
        return None
    annotations = pod.annotations
    asked_policy = annotations.get(names.node_policy, "").strip()
    device_policies = annotations.get(names.device_policy, "").split(",")
    avoid = (annotations.get(key, "") for key in (names.no_use_ids, names.old_no_use_ids))
    use = (_ids(annotations.get(key, "")) for key in (names.use_ids, names.old_use_ids))
    return XPURequest(
        dialect=dialect,
        asks=cards,
        node_strategy=_NODE_STRATEGIES.get(asked_policy, settings.node_strategy),
        topology_score=settings.topology_score,
        max_handles=settings.max_handles if dialect == SLICE_DIALECT else 0,
        use=tuple(it for it in use if it),
        avoid=frozenset().union(*map(_ids, avoid)),
        is_alone=dialect == SLICE_DIALECT and any(it.strip() == _MUTEX for it in device_policies),
        is_mistakable=is_mistakable,
    )


def _as_far_as_possible(
    request: XPURequest | None, problems: Iterable[Problem]
) -> XPURequest | None:
    """Return what can be judged of a faulty request; numbers of cards are, as their dialect does."""
    fatal = next((it.message for it in problems if not isinstance(it, _Lenient)), "")
    if not fatal or (request is not None and request.problem):
        return request
    return XPURequest(dialect="", problem=fatal)


class _Lenient(Problem):
    """A fault that admission refuses and placement can live with."""


def _strict_problems(
    containers: Iterable[ContainerUse], asks: Asks, names: XPUNames
) -> Iterator[Problem]:
    if len(asks.dialects) > 1:
        yield Problem(
            field="spec",
            message=f"{MIXED} ({', '.join(sorted(asks.dialects))}), expected one of them",
        )
    for container in containers:
        yield from _container_problems(container, names)


def _container_problems(container: ContainerUse, names: XPUNames) -> Iterator[Problem]:
    for resource, quantity in container.amounts:
        at = f"{container.field}[{resource}]"
        if resource == names.share_count:
            message = (
                f"nobody can ask for {resource}; set the label {names.count_label} on the pod to the "
                f"number of devices, and ask for {names.share_memory}"
            )
            yield _Lenient(field=at, message=message)
            continue
        amount = _whole_number(quantity, at, [])
        if resource == names.slice_memory:
            if all(it != names.slices for it, _ in container.amounts):
                message = f"asks for memory of no card; set {names.slices} beside it"
                yield _Lenient(field=at, message=message)
        elif not amount:
            if _is_zero(quantity):
                message = "expected a number above 0, found 0; leave it out to ask for nothing"
                yield _Lenient(field=at, message=message)
        elif resource != names.share_memory and amount not in CARD_COUNTS:
            message = f"expected 1, 2, 4 or 8 cards, found {amount}"
            yield _Lenient(field=at, message=message)


def read_count(pod: Pod, names: XPUNames, problems: list[Problem]) -> int | None:
    """Return over how many devices a share spans by the pod's label, None if it cannot be read."""
    text = (pod.metadata.labels or {}).get(names.count_label)
    if text is None:
        return 1
    match = _COUNT.fullmatch(text)
    if match is not None:
        return int(match[1])
    problems.append(
        Problem(
            field=f"metadata.labels[{names.count_label}]",
            message=f'invalid label {names.count_label} "{text[:_SHOWN_CHARS]}", '
            "expected a whole number above 0",
        )
    )
    return None


def _whole_number(value: Quantity, at: str, problems: list[Problem]) -> int:
    try:
        number = parse_quantity(value)
    except QuantityError as error:
        problems.append(Problem(field=at, message=str(error)))
        return 0
    if number < 0 or number.denominator != 1:
        message = f'expected a whole number above 0, found "{value}"'
        problems.append(Problem(field=at, message=message))
        return 0
    return min(number.numerator, _HIGHEST)


def _is_zero(value: Quantity) -> bool:
    try:
        return parse_quantity(value) == 0
    except QuantityError:
        return False


def _ids(text: str) -> frozenset[str]:
    return frozenset(it.strip() for it in text.split(",") if it.strip())
