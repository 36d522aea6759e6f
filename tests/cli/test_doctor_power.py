"""What the doctor says of power: nothing wanted, all well, a server away, nothing known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from berthmaster.cli.doctor import powers
from berthmaster.cli.doctor.facts import Facts, Unread
from berthmaster.cli.doctor.findings import Finding, State

FACTS = Facts(
    now=datetime(2026, 1, 1, tzinfo=UTC),
    cli_version="0.1.0",
    server_version="v1.36.3",
    system_namespace="berthmaster-system",
)


def inventory(name: str, status: str, reason: str, message: str) -> dict[str, Any]:
    condition = {"type": "PowerReady", "status": status, "reason": reason, "message": message}
    return {"metadata": {"name": name}, "status": {"conditions": [condition]}}


def findings(*inventories: dict[str, Any]) -> list[Finding]:
    facts = Facts(
        now=FACTS.now,
        cli_version=FACTS.cli_version,
        server_version=FACTS.server_version,
        system_namespace=FACTS.system_namespace,
        inventories=inventories,
    )
    return list(powers.check(facts))


def test_nothing_configured_is_well() -> None:
    (finding,) = findings({"metadata": {"name": "n"}})

    assert finding.state is State.OK


def test_server_that_is_away_is_told_where_a_model_helps() -> None:
    well, fallen = findings(
        inventory("a", "True", "ModelServer", "watts by m at http://h"),
        inventory("b", "True", "Model", "watts by PowerModel x; m at http://h: no answer"),
    )[::-1]

    assert (well.state, well.found) == (State.OK, "watts by ModelServer on a")
    assert fallen.state is State.WARNING
    assert fallen.found == "watts by Model on b: m at http://h: no answer"


def test_missing_usage_names_what_to_look_at() -> None:
    (finding,) = findings(inventory("a", "False", "NoUsage", "the CPU usage is not known"))

    assert finding.state is State.WARNING
    assert finding.way_out == "kubectl get --raw /apis/metrics.k8s.io/v1beta1/nodes/a"


def test_what_could_not_be_read_is_not_checked() -> None:
    facts = Facts(
        now=FACTS.now,
        cli_version="",
        server_version="",
        system_namespace="",
        inventories=Unread("forbidden"),
    )

    assert [it.state for it in powers.check(facts)] == [State.NOT_CHECKED]
