"""A wall clock that somebody sets while our processes run.

`Clock.environment` puts the folder of `shifting/sitecustomize.py` on a program's PYTHONPATH; from its
start on, the program's `time.time`, `time.time_ns` and `datetime.now` are off by the seconds that the file
holds at the moment. Nothing in the product knows of it. What it does not cover: the monotonic clocks, which
no step moves in reality either; the kernel's and OpenSSL's idea of the time, so a certificate's validity is
checked by the true clock; and timestamps of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CHAOS_CLOCK_FILE"
_SHIFTING = Path(__file__).with_name("shifting")


class Clock:
    """The file that says how many seconds the wall clock of our programs is off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, offset_s: float) -> None:
        """Step the clock; every process that was started with `environment` sees it at once."""
        whole = self._path.with_suffix(".new")
        whole.write_text(f"{offset_s}\n", encoding="ascii")
        whole.replace(self._path)

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the variables to start a program with."""
        # `/./tmp`, so that the kubelet does not take it for the pod's own /tmp.
        return {"PYTHONPATH": f"/.{_SHIFTING}", VARIABLE: f"/.{self._path}"}
