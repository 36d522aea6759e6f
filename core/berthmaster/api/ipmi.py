"""The page of an ipmi_exporter: temperatures by sensor, and what the machine draws.

Only the families that power reads are looked at, and only lines that are whole; the page comes from a
machine that may send anything. Values that are not finite are left out, as the exporter's own NaN means
that a sensor has no reading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

TEMPERATURE = "ipmi_temperature_celsius"
POWER = ("ipmi_dcmi_power_consumption_current_watts", "ipmi_dcmi_power_consumption_watts")
_FAMILIES = frozenset({TEMPERATURE, *POWER})
# v1's names of its three sensors, and what each is called here.
V1_SENSORS = {"Ambient": "ambient", "CPU1": "cpu1", "CPU2": "cpu2"}

# Between the quotes of a label's value anything may stand, braces and commas too.
_TEXT = r'"(?:\\.|[^"\\])*"'
_LINE = re.compile(
    rf'\s*([a-z_]+)(?:\s*\{{((?:[^"}}]|{_TEXT})*)\}}\s*|\s+)(\S+)(?:\s+-?[0-9]+)?\s*'
)
_LABEL = re.compile(rf"(\w+)\s*=\s*({_TEXT})")
_COLDEST, _HOTTEST = -100.0, 200.0
_MOST_LINES = 20000
_MOST_WATTS = 1e6


@dataclass(frozen=True, slots=True)
class IpmiPage:
    """What a page says: degrees Celsius by the sensor's name, and watts if it says so."""

    temperatures: Mapping[str, float]
    watts: float | None = None

    def v1_temperatures(self) -> dict[str, float] | None:
        """Return v1's three temperatures; None unless all are there. Exactly -1 counts as missing."""
        found = {
            role: self.temperatures[name]
            for name, role in V1_SENSORS.items()
            if self.temperatures.get(name, -1.0) != -1.0
        }
        return found if len(found) == len(V1_SENSORS) else None


def read_page(text: str) -> IpmiPage:
    """Read a page; never raises on odd content."""
    temperatures: dict[str, float] = {}
    watts: float | None = None
    for family, labels, value in _samples(text):
        if family == TEMPERATURE:
            name = dict(_LABEL.findall(labels)).get("name")
            if name is not None and _COLDEST <= value <= _HOTTEST:
                temperatures.setdefault(name[1:-1], value)
        elif 0 <= value <= _MOST_WATTS:
            watts = value
    return IpmiPage(temperatures, watts)


def _samples(text: str) -> Iterator[tuple[str, str, float]]:
    for line in text.splitlines()[:_MOST_LINES]:
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in _FAMILIES:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            yield match[1], match[2] or "", value
