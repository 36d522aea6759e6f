"""How `make rbac` tells from the API server's audit which rights nobody used."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Right
from berthmaster.cli.doctor.rights import RIGHTS

SCRIPT = Path(__file__).parents[2] / ".ci" / "rights.py"


def event(right: Right, **changes: Any) -> str:
    """Return the audit's line about a request that a right allows."""
    resource, _, sub = right.resource.partition("/")
    what = {"apiGroup": right.group, "resource": resource, "subresource": sub}
    return json.dumps(
        {
            "user": {"username": f"system:serviceaccount:berthmaster-system:{right.account}"},
            "verb": right.verb,
            "objectRef": {**what, "namespace": right.namespace, "name": right.name},
            "annotations": {"authorization.k8s.io/decision": "allow"},
            **changes,
        }
    )


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rights_used", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT_MODULE = load()
ELSEWHERE: dict[Right, str] = SCRIPT_MODULE.ELSEWHERE
SEEN = [it for it in RIGHTS if it not in ELSEWHERE]


def unused(lines: list[str]) -> set[Right]:
    used: set[Right] = SCRIPT_MODULE.find_used(lines)
    return set(RIGHTS) - used - ELSEWHERE.keys()


def test_all_used_is_well_and_one_that_is_not_ends_it(tmp_path: Path) -> None:
    lines = [event(it) for it in SEEN]
    audit = tmp_path / "audit.jsonl"
    found = []
    for kept in (lines, lines[1:]):
        audit.write_text("\n".join(kept))
        done = subprocess.run(
            [sys.executable, SCRIPT, audit], capture_output=True, text=True, check=False
        )
        found.append((done.returncode, done.stderr.splitlines()[1:]))

    assert found == [(0, []), (1, [str(SEEN[0])])]


def test_each_right_is_missed_by_itself() -> None:
    for number, right in enumerate(SEEN):
        left = SEEN[:number] + SEEN[number + 1 :]

        assert unused([event(it) for it in left]) == {right}


def test_what_was_refused_or_done_elsewhere_or_by_others_does_not_count() -> None:
    named = Right(
        names.WEBHOOK_SERVICE_ACCOUNT,
        "update",
        "coordination.k8s.io",
        "leases",
        names.SYSTEM_NAMESPACE,
        names.WEBHOOK_LEASE,
    )
    assert named in RIGHTS
    others = [event(it) for it in RIGHTS if it != named]
    what = json.loads(event(named))["objectRef"]
    for line in (
        event(named, annotations={"authorization.k8s.io/decision": "forbid"}),
        event(named, objectRef={**what, "name": "another"}),
        event(named, objectRef={**what, "namespace": "another"}),
        event(named, user={"username": "system:admin"}),
        event(named, verb="get"),
    ):
        assert unused([*others, line]) == {named}


@pytest.mark.parametrize(("right", "where"), ELSEWHERE.items(), ids=str)
def test_what_is_used_elsewhere_is_ours_and_used_there(right: Right, where: str) -> None:
    assert right in RIGHTS
    path, is_test, name = where.partition("::")
    # Else a reason why no request of ours shows it.
    if not is_test:
        return
    assert f"def {name}(" in (SCRIPT.parents[1] / path).read_text()
