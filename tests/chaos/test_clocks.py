"""A program that was started with a shifted clock sees the steps, and the kernel's clocks unmoved."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from berthmaster_sandbox.chaos.clocks import Clock

PROGRAM = """
import json, time
from datetime import UTC, datetime
from cryptography import x509
print(json.dumps([time.time(), time.time_ns() / 1e9, datetime.now(UTC).timestamp(),
    datetime.now().timestamp(), time.monotonic(), isinstance(datetime.now(UTC), datetime)]))
"""


def run(clock: Clock) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=dict(clock.environment),
        capture_output=True,
        check=True,
        text=True,
    )
    found: list[float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("offset_s", [0.0, 3600.0, -3600.0])
def test_wall_clock_is_shifted_and_no_other(tmp_path: Path, offset_s: float) -> None:
    clock = Clock(tmp_path / "clock")
    clock.set(offset_s)

    before_s, monotonic_s = time.time() + offset_s, time.monotonic()
    *wall, monotonic, is_datetime = run(clock)
    after_s = time.time() + offset_s

    assert all(before_s <= it <= after_s for it in wall)
    assert monotonic_s <= monotonic <= time.monotonic()
    assert is_datetime
