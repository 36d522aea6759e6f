"""The table of metrics in docs/metrics.md, made from what the programs register.

`PYTHONPATH=tests .venv/bin/python -m support.metrics_page` writes it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from berthmaster_operator.metrics import Metrics as OperatorMetrics
from berthmaster_webhook.metrics import Metrics as WebhookMetrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BEGIN, _END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A metric as a scrape shows it."""

    program: str
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def list_metrics() -> list[Entry]:
    """Return the metrics of both programs, by program and name."""
    entries = []
    for program, metrics in (("webhook", WebhookMetrics()), ("operator", OperatorMetrics())):
        for it in vars(metrics).values():
            if not isinstance(it, MetricWrapperBase):
                continue
            (family,) = it.describe()
            suffix = "_total" if family.type == "counter" else ""
            entries.append(
                Entry(
                    program=program,
                    name=family.name + suffix,
                    kind=family.type,
                    labels=tuple(it._labelnames),
                    text=family.documentation,
                )
            )
    return sorted(entries, key=lambda it: (it.program != "webhook", it.name))


def render() -> str:
    """Return the tables."""
    lines: list[str] = []
    for program in ("webhook", "operator"):
        lines += [f"### The {program}'s", "", "| metric | type | labels | what it tells |"]
        lines.append("| --- | --- | --- | --- |")
        for it in list_metrics():
            if it.program == program:
                labels = ", ".join(f"`{label}`" for label in it.labels) or "-"
                lines.append(f"| `{it.name}` | {it.kind} | {labels} | {it.text} |")
        lines.append("")
    return "\n".join(lines)


def read_table() -> str:
    """Return the tables that the page has."""
    return PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + render() + _END + rest.partition(_END)[2], encoding="utf-8")
