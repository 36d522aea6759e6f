"""HAMi's texts: the cards that a node registers, and the devices that a pod has.

Registered cards are a JSON array, or, as other vendors of that system write them, devices joined by `:`,
each of 7 fields (`id,count,devmem,devcore,type,numa,healthy`) or 9 (`,index,mode` behind them). In the
JSON form zero and false are left out.

A pod's devices: each is `id,type,MiB,cores` and a `:`, each container's devices are followed by a `;`,
also where it has none. Ids may hold `:` themselves, so a device is read from its right end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

MOST_DEVICES = 64
_LONGEST_TEXT = 64 * 1024
_SHOWN_CHARS = 60
_HIGHEST = 2**40
_DEVICE = re.compile(
    r"(?P<id>[^;]+?),(?P<type>[^,:;]*),(?P<mib>[0-9]{1,12}),(?P<cores>[0-9]{1,6}):"
)

_decode = msgspec.json.Decoder().decode


class PodDevice(NamedTuple):
    """A device that a container has; `cores` are percent."""

    id: str
    type: str
    mib: int
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredCard:
    """A card as its plugin registers it; `slices` are the pods that may share it, 0 for no limit."""

    index: int
    id: str
    memory_mib: int
    type: str = ""
    slices: int = 0
    numa_node: int = 0
    is_healthy: bool = False


def write_devices(containers: Iterable[Iterable[PodDevice]]) -> str:
    """Return the devices of a pod's containers as the annotation has them."""
    return "".join(
        "".join(f"{it.id},{it.type},{it.mib},{it.cores}:" for it in devices) + ";"
        for devices in containers
    )


def read_devices(text: str) -> tuple[tuple[PodDevice, ...], ...] | None:
    """Return the devices by container; None where the text says no such thing."""
    if len(text) > _LONGEST_TEXT:
        return None
    containers = []
    for part in text.removesuffix(";").split(";"):
        at = 0
        devices = []
        while at < len(part):
            found = _DEVICE.match(part, at)
            if found is None:
                return None
            devices.append(
                PodDevice(found["id"], found["type"], int(found["mib"]), int(found["cores"]))
            )
            at = found.end()
        containers.append(tuple(devices))
    return tuple(containers)


def read_registration(text: str) -> tuple[tuple[RegisteredCard, ...], tuple[str, ...]]:
    """Return the registered cards and what could not be read of the text, in words; never raises."""
    if len(text) > _LONGEST_TEXT:
        return (), (f"{len(text)} characters, expected at most {_LONGEST_TEXT}",)
    entries = _entries(text)
    if entries is None:
        return (), (f'expected a JSON array or id,count,..:.., found "{text[:_SHOWN_CHARS]}"',)
    cards: dict[int, RegisteredCard] = {}
    problems = []
    for number, entry in enumerate(entries):
        if number >= MOST_DEVICES:
            problems.append(f"more than {MOST_DEVICES} cards, the rest is not read")
            break
        card = _card(entry)
        if card is None:
            problems.append(
                f"[{number}]: expected id, index below {MOST_DEVICES} and devmem above 0; "
                "the card is ignored"
            )
        elif card.index in cards:
            problems.append(f"[{number}]: index {card.index} is there already; the card is ignored")
        else:
            cards[card.index] = card
    return tuple(cards[index] for index in sorted(cards)), tuple(problems)


def _entries(text: str) -> Sequence[Any] | None:
    if text.lstrip().startswith("["):
        try:
            found = _decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        return found if isinstance(found, list) else None
    entries: list[Mapping[str, Any]] = []
    for number, part in enumerate(it for it in _split(text) if it):
        fields = [it.strip() for it in part.split(",")]
        if len(fields) not in (7, 9):
            return None
        names = ("id", "count", "devmem", "devcore", "type", "numa", "health", "index", "mode")
        entry: dict[str, Any] = dict(zip(names, fields, strict=False))
        entry["health"] = fields[6].lower() == "true"
        entry.setdefault("index", number)
        entries.append(entry)
    return entries or None


def _split(text: str) -> list[str]:
    """Return the devices of the text form: a `:` ends one where seven fields or more stand before it."""
    parts: list[str] = []
    held = ""
    for piece in text.split(":"):
        held = f"{held}:{piece}" if held else piece
        if held.count(",") >= 6:
            parts.append(held)
            held = ""
    return [*parts, held] if held.strip() else parts


def _card(entry: object) -> RegisteredCard | None:
    if not isinstance(entry, Mapping):
        return None
    id_, index = entry.get("id"), _number(entry.get("index", 0))
    memory_mib = _number(entry.get("devmem", 0))
    if not isinstance(id_, str) or not id_ or index is None or not memory_mib:
        return None
    if index >= MOST_DEVICES:
        return None
    return RegisteredCard(
        index=index,
        id=id_,
        memory_mib=memory_mib,
        type=str(entry.get("type", "")),
        slices=_number(entry.get("count", 0)) or 0,
        numa_node=_number(entry.get("numa", 0)) or 0,
        is_healthy=entry.get("health") is True,
    )


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= 13:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _HIGHEST:
        return None
    return value
