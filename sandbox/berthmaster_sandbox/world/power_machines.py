"""What simulated servers draw, and how warm the air is that they breathe: the judge of power's choices.

The curves are made up, in the shapes that measurements of servers have, and are not those of any model that
a decision is made by. For a load u of 0..1 and inlet air of T degrees Celsius:

    watts = leak(T) * (idle + (full - idle) * (straight * u + (1 - straight) * u^bend)) + fans(u, T)
    leak(T) = 1 + 0.003 * (T - 20)                  chips leak more when they are warm
    fans(u, T) = fan_watts * speed^3, speed = 0.3 + 0.5 * u + 0.04 * (T - 22), within 0.3..1

`bend` below 1 is a server that pays for its first load (its cores leave their sleep), above 1 one that pays for
its last (its clock rises). A rack's inlet is the air of the room and a part of the rack's own heat that comes
back, which follows with a lag. Worked: STOCKY at u = 0.5, T = 22: 1.006 * (150 + 200 * 0.558) = 263.1 W and
fans 30 * 0.55^3 = 5 W -> 268.1 W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAK_PER_DEGREE = 0.003
_COOL_CELSIUS, _FAN_CELSIUS = 20.0, 22.0
_SLOWEST_FAN = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A kind of server; watts at an inlet of 20 degrees, without fans."""

    name: str
    cores: int
    idle_watts: float
    full_watts: float
    straight: float
    bend: float
    fan_watts: float

    def watts(self, load: float, inlet_celsius: float) -> float:
        """Return what the whole machine draws; a load above 1 is full load."""
        used = min(max(load, 0.0), 1.0)
        leak = 1 + _LEAK_PER_DEGREE * (inlet_celsius - _COOL_CELSIUS)
        share: float = self.straight * used + (1 - self.straight) * used**self.bend
        speed = _SLOWEST_FAN + 0.5 * used + 0.04 * (inlet_celsius - _FAN_CELSIUS)
        fans = self.fan_watts * min(max(speed, _SLOWEST_FAN), 1.0) ** 3
        return leak * (self.idle_watts + (self.full_watts - self.idle_watts) * share) + fans


# Two sockets, some years old: dear when idle, and its first load costs the most.
STOCKY = Machine(
    name="stocky",
    cores=32,
    idle_watts=150,
    full_watts=350,
    straight=0.5,
    bend=0.7,
    fan_watts=30,
)
# New and big: cheap for most of its load, and dear at its end.
LEAN = Machine(
    name="lean", cores=64, idle_watts=120, full_watts=420, straight=0.4, bend=2.2, fan_watts=40
)
# Small and slow: little of everything.
FRUGAL = Machine(
    name="frugal", cores=16, idle_watts=35, full_watts=95, straight=0.8, bend=1.5, fan_watts=8
)
MACHINES = (STOCKY, LEAN, FRUGAL)


@dataclass(slots=True)
class Rack:
    """Machines that share their air. `room_celsius` is the air of the room in front of it."""

    machines: Sequence[Machine]
    room_celsius: float = 20.0
    # Degrees at the inlet for each kilowatt of the rack that comes back, and how slowly it follows.
    celsius_per_kilowatt: float = 1.2
    lag_s: float = 600.0
    inlet_celsius: float = 20.0

    def step(self, loads: Sequence[float], seconds: float) -> list[float]:
        """Let time pass at these loads; return what each machine draws meanwhile."""
        drawn = [
            machine.watts(load, self.inlet_celsius)
            for machine, load in zip(self.machines, loads, strict=True)
        ]
        target = self.room_celsius + self.celsius_per_kilowatt * sum(drawn) / 1000
        follows = 1 - math.exp(-seconds / self.lag_s)
        self.inlet_celsius += (target - self.inlet_celsius) * follows
        return drawn
