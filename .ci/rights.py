"""Say which rights of the roles in config/ nobody used, by the API server's audit log of a run.

Usage: rights.py AUDIT. A right that was used is needed: the request that used it would be refused without it,
since no other rule gives the same. Ends with an error where one was used neither there nor `ELSEWHERE`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Right
from berthmaster.cli.doctor.rights import RIGHTS

_USER = f"system:serviceaccount:{names.SYSTEM_NAMESPACE}:"
_OPERATOR, _WEBHOOK = names.OPERATOR_SERVICE_ACCOUNT, names.WEBHOOK_SERVICE_ACCOUNT
_LEFTOVERS = (
    "tests/operator_program/test_on_a_cluster.py::test_leftovers_of_an_absent_node_are_deleted"
)
_SERIES = "tests/cluster/test_events.py::test_repeats_become_one_series"
# What no run of the end-to-end tests can be relied upon to use, and where it is used: after a lost answer, a
# lost race, a minute's grace, or where an event comes again after half a minute.
ELSEWHERE = {
    Right(_OPERATOR, "patch", "events.k8s.io", "events"): _SERIES,
    Right(_WEBHOOK, "patch", "events.k8s.io", "events"): _SERIES,
    Right(_OPERATOR, "get", names.GROUP, "placementpolicies"): (
        "asked of the authorizer when a policy is bound to parameters, which shows in no request of ours"
    ),
    Right(
        _OPERATOR, "create", "admissionregistration.k8s.io", "mutatingadmissionpolicybindings"
    ): "asked within a server-side apply of a binding that is not there yet, which is audited as a patch",
    Right(_WEBHOOK, "get", "", "pods"): (
        "tests/webhook/test_waiting.py::test_lost_answer_of_a_success_is_found_out"
    ),
    Right(_OPERATOR, "get", names.DISKIO_GROUP, "nodediskiostats"): (
        "tests/operator_program/test_reconciling.py::test_stats_made_by_another_are_adopted"
    ),
    Right(_OPERATOR, "get", names.GROUP, "nodeinventories"): (
        "tests/operator_program/test_reconciling.py::test_inventory_made_by_another_is_adopted"
    ),
    Right(_OPERATOR, "get", names.GROUP, "nodexpus"): (
        "tests/operator_program/test_xpus.py::test_a_faster_agent_is_left_alone"
    ),
    Right(_OPERATOR, "get", "", "nodes"): _LEFTOVERS,
    Right(_OPERATOR, "delete", names.DISKIO_GROUP, "nodediskdevices"): _LEFTOVERS,
    Right(_OPERATOR, "delete", names.DISKIO_GROUP, "nodediskiostats"): _LEFTOVERS,
}


def find_used(lines: Iterable[str], rights: Iterable[Right] = RIGHTS) -> set[Right]:
    """Return the rights by which the audited requests were allowed."""
    by_kind: dict[tuple[str, str, str, str], list[Right]] = {}
    for right in rights:
        key = (right.account, right.verb, right.group, right.resource)
        by_kind.setdefault(key, []).append(right)
    used: set[Right] = set()
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        if event.get("annotations", {}).get("authorization.k8s.io/decision") != "allow":
            continue
        what = event.get("objectRef", {})
        resource = "/".join(filter(None, (what.get("resource"), what.get("subresource"))))
        account = event["user"]["username"].removeprefix(_USER)
        key = (account, event["verb"], what.get("apiGroup", ""), resource)
        used |= {
            right
            for right in by_kind.get(key, ())
            if right.namespace in ("", what.get("namespace", ""))
            and right.name in ("", what.get("name", ""))
        }
    return used


def main() -> None:
    """Print the rights that were not used."""
    with open(sys.argv[1], encoding="utf-8") as audit:
        used = find_used(audit)
    unused = [str(it) for it in RIGHTS if it not in used | ELSEWHERE.keys()]
    sys.stdout.write(f"{len(used)} of {len(RIGHTS)} rights were used\n")
    if unused:
        sys.exit("rights: not used by anybody:\n" + "\n".join(unused))


if __name__ == "__main__":
    main()
