"""What BMCs say over Redfish of the air that goes in, and what a differential pressure API says.

Vendors keep the inlet sensor in different places; `INLET_PROBES` are tried in turn until one answers. Values
that are no plausible temperature or pressure are None, as if the sensor were not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SYSTEMS_PATH = "/redfish/v1/Systems"
_LOWEST_CELSIUS, _HIGHEST_CELSIUS = -50.0, 100.0
_MOST_PASCAL = 100_000.0
_MOST_WATTS = 1e6


@dataclass(frozen=True, slots=True)
class Probe:
    """One vendor's place for the inlet temperature, and for what the machine draws."""

    vendor: str
    path: str
    read: Callable[[Mapping[str, Any]], float | None]
    power_path: str = "/redfish/v1/Chassis/1/Power"


def read_pressure(answer: object) -> float | None:
    """Return the pressure of the first sensor of a differential pressure API's answer."""
    sensors = answer.get("sensor") if isinstance(answer, Mapping) else None
    first = sensors[0] if isinstance(sensors, list) and sensors else None
    value = _number(first.get("pressure")) if isinstance(first, Mapping) else None
    return value if value is not None and abs(value) <= _MOST_PASCAL else None


def read_power(answer: object) -> float | None:
    """Return the watts of the first power control of a BMC's answer."""
    controls = answer.get("PowerControl") if isinstance(answer, Mapping) else None
    first = controls[0] if isinstance(controls, list) and controls else None
    value = _number(first.get("PowerConsumedWatts")) if isinstance(first, Mapping) else None
    return value if value is not None and 0 <= value <= _MOST_WATTS else None


def read_system_id(answer: object) -> str | None:
    """Return the id of the first member of a BMC's systems, of letters that are safe in a path."""
    members = answer.get("Members") if isinstance(answer, Mapping) else None
    first = members[0] if isinstance(members, list) and members else None
    place = first.get("@odata.id") if isinstance(first, Mapping) else None
    found = place.rstrip("/").rpartition("/")[2] if isinstance(place, str) else ""
    return found if found and found.replace(".", "").replace("-", "").isalnum() else None


def model_path(system_id: str) -> str:
    """Return where a system's power model is named."""
    return f"{SYSTEMS_PATH}/{system_id}/MachineLearningModel"


def _dell(answer: Mapping[str, Any]) -> float | None:
    return _celsius(answer.get("Reading"))


def _lenovo(answer: Mapping[str, Any]) -> float | None:
    return _celsius(answer.get("Reading")) if answer.get("Name") == "Ambient Temp" else None


def _thermal(answer: Mapping[str, Any]) -> float | None:
    """Return Supermicro's sensor by its name, else the hottest that the BMC says is at the intake."""
    entries = answer.get("Temperatures")
    sensors = [it for it in entries if isinstance(it, Mapping)] if isinstance(entries, list) else []
    named = [
        _celsius(it.get("ReadingCelsius")) for it in sensors if it.get("Name") == "System Temp"
    ]
    intake = [
        _celsius(it.get("ReadingCelsius"))
        for it in sensors
        if it.get("PhysicalContext") == "Intake"
    ]
    return max((it for it in (named[:1] or intake) if it is not None), default=None)


def _celsius(value: object) -> float | None:
    number = _number(value)
    if number is None or not _LOWEST_CELSIUS <= number <= _HIGHEST_CELSIUS:
        return None
    return number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


INLET_PROBES = (
    Probe(
        "iDRAC",
        "/redfish/v1/Chassis/System.Embedded.1/Sensors/SystemBoardInletTemp",
        _dell,
        "/redfish/v1/Chassis/System.Embedded.1/Power",
    ),
    Probe("XClarity", "/redfish/v1/Chassis/1/Sensors/128L0", _lenovo),
    Probe("SSM", "/redfish/v1/Chassis/1/Thermal", _thermal),
)
