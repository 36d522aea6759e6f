"""Pages of metrics, as numbers by series."""

from __future__ import annotations

from typing import Protocol


class Rendering(Protocol):
    """The metrics of either program."""

    def render(self) -> bytes:
        """Return the page."""


def scrape(metrics: Rendering) -> dict[str, float]:
    """Return what a page says, by series: `name{label="value"}`."""
    text = metrics.render().decode()
    # What the process itself uses moves while one looks.
    own = ("#", "process_")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith(own))
    return {name: float(value) for name, value in lines}
