"""Readings and curves to the power part of a NodeInventory: what is fresh, which curve counts, since when.

Curves are tried in the order of `PowerLink`: the model server's, a PowerModel's, a line through what was
measured. The first that there is counts, and the condition says which and why no better one. Usage and
temperatures that are too old are left out, so that whoever reads the inventory need not know the time.

An inventory is written only when something moved that a decision would notice: `settle` keeps what was
published until then. The sample's time moves without that only while pods wait to be seen in the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from berthmaster.api import names
from berthmaster.api.inventory import (
    Exponential,
    NamedReading,
    PodUsage,
    Power,
    PowerCurve,
    PowerLink,
    Reading,
)
from berthmaster.api.power import CpuUsage
from berthmaster.api.quantities import NANO
from berthmaster.api.schema import StatusCondition

_LONGEST_MESSAGE = 4096
_LONGEST_MODEL = 512
# What a decision would hardly notice: a twentieth of the node, a watt or a hundredth of it, a degree. Each
# write costs the API server 3 ms of CPU, and thousands of nodes move all the time.
USAGE_STEP = 0.05
_WATTS_STEP, _WATTS_SHARE = 1.0, 0.01
_READING_STEP = 1.0
# Clocks of machines differ by a little.
FUTURE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One link of the chain: a curve, or why there is none."""

    link: PowerLink
    model: str = ""
    curve: PowerCurve | None = None
    curve_s: float | None = None
    exponential: Exponential | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerInventory:
    """The power part of an inventory; all None where nothing is configured for the node."""

    power: Power | None
    condition: StatusCondition | None
    power_now: str | None


NO_POWER = PowerInventory(power=None, condition=None, power_now=None)


def build_power(
    *,
    usage: CpuUsage | None,
    readings: Mapping[str, Reading],
    candidates: Sequence[Candidate],
    pod_usage: Mapping[str, int] | None = None,
    problems: Iterable[str] = (),
    previous: Power | None = None,
    capacity_nanocores: int = 0,
    is_awaited: bool = False,
) -> PowerInventory:
    """Return a node's power; `usage` and `readings` are fresh. No candidates: nothing is configured.

    `previous` is what was published, see `settle`.
    """
    if not candidates:
        return NO_POWER
    chosen = next((it for it in candidates if it.curve is not None), None)
    power = Power(
        link=chosen.link if chosen is not None else PowerLink.UNKNOWN,
        model=chosen.model[:_LONGEST_MODEL] if chosen is not None else "",
        curve=chosen.curve if chosen is not None else None,
        curve_s=chosen.curve_s if chosen is not None else None,
        exponential=next((it.exponential for it in candidates if it.exponential), None),
        usage=usage.nanocores if usage is not None else None,
        usage_sampled_s=usage.sampled_s if usage is not None else None,
        usage_window_s=usage.window_s if usage is not None else 0.0,
        pod_usage=tuple(PodUsage(uid=uid, usage=it) for uid, it in (pod_usage or {}).items()),
        readings=tuple(
            NamedReading(name=name, value=it.value, sampled_s=it.sampled_s, source=it.source)
            for name, it in sorted(readings.items())
        ),
    )
    power = settle(previous, power, capacity_nanocores=capacity_nanocores, is_awaited=is_awaited)
    return PowerInventory(
        power=power,
        condition=_condition(power, chosen, candidates, tuple(problems)),
        power_now=_describe(power),
    )


def fresh_readings(
    readings: Mapping[str, Reading], *, now_s: float, max_age_s: Mapping[str, float]
) -> tuple[dict[str, Reading], tuple[str, ...]]:
    """Return the readings that are not too old, and words for the others.

    `max_age_s` is by sensor; one that is not in it does not age. A reading from the future is none.
    """
    fresh: dict[str, Reading] = {}
    words: list[str] = []
    for name, reading in readings.items():
        age_s, longest_s = now_s - reading.sampled_s, max_age_s.get(name)
        if age_s < -FUTURE_S:
            words.append(f"{name} is from the future")
        elif longest_s is not None and age_s > longest_s:
            words.append(f"{name} is older than {longest_s:g} s")
        else:
            fresh[name] = reading
    return fresh, tuple(words)


def settle(
    previous: Power | None, power: Power, *, capacity_nanocores: int, is_awaited: bool
) -> Power:
    """Return what to publish: `previous` unless something moved that a decision would notice.

    `is_awaited` tells that pods wait to be seen in the node's usage, for which its time matters.
    """
    if previous is None or _has_moved(previous, power, capacity_nanocores):
        return power
    if is_awaited and previous.usage_sampled_s != power.usage_sampled_s:
        return power
    return previous


def _has_moved(old: Power, new: Power, capacity_nanocores: int) -> bool:
    if (old.link, old.model, old.exponential) != (new.link, new.model, new.exponential):
        return True
    before, after = old.values, new.values
    if (old.usage is None) != (new.usage is None) or before.keys() != after.keys():
        return True
    if abs((old.usage or 0) - (new.usage or 0)) > capacity_nanocores * USAGE_STEP:
        return True
    moved = (
        abs(before[name] - value) >= _READING_STEP
        for name, value in after.items()
        if name != "watts"
    )
    return any(moved) or old.pod_usage != new.pod_usage or _is_other(old.curve, new.curve)


def _is_other(old: PowerCurve | None, new: PowerCurve | None) -> bool:
    if old is None or new is None:
        return old is not new
    if (old.cores, old.gaps) != (new.cores, new.gaps):
        return True
    return any(
        abs(before - after) > max(_WATTS_STEP, _WATTS_SHARE * before)
        for before, after in zip(old.watts, new.watts, strict=True)
    )


def _condition(
    power: Power, chosen: Candidate | None, candidates: Sequence[Candidate], problems: Sequence[str]
) -> StatusCondition:
    status: Literal["True", "False"] = "True"
    reason = str(power.link)
    words = [it.problem for it in candidates if it.problem and it.curve is None]
    if chosen is None:
        status, reason = "False", "NoCurve"
        message = "nothing gives watts; the node ranks as unknown"
    else:
        message = f"watts by {power.model or power.link}"
        if power.curve is not None and power.curve.gaps:
            message += f", without an answer at {len(power.curve.gaps)} of its points"
    if power.usage is None:
        status, reason = "False", "NoUsage"
        message += "; the CPU usage is not known: metrics.k8s.io has no fresh NodeMetrics"
    return StatusCondition(
        type=names.POWER_READY,
        status=status,
        reason=reason,
        message="; ".join([message, *words, *problems])[:_LONGEST_MESSAGE],
    )


def _describe(power: Power) -> str:
    """Return what the node draws, for people: `142W ModelServer`, `~130W Model` where it is predicted."""
    measured = power.values.get("watts")
    if measured is not None:
        return f"{measured:.0f}W {power.link}"
    curve = power.curve
    if curve is None or power.usage is None or not curve.cores:
        return f"? {power.link}"
    watts = float(np.interp(power.usage / NANO, curve.cores, curve.watts))
    return f"~{watts:.0f}W {power.link}"
