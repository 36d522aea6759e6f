from __future__ import annotations

import base64
import copy
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy, policy_from_manifest
from berthmaster_operator.gates import GateConfiguration, build_path, build_webhook, webhook_name

SELECTOR = {"matchLabels": {"ship": "a"}}


def make_policy(name: str = "fleet", **spec: Any) -> PlacementPolicy:
    spec.setdefault("podSelector", SELECTOR)
    return policy_from_manifest({"metadata": {"name": name, "uid": "u"}, "spec": spec})


class Scene:
    def __init__(self, *policies: PlacementPolicy) -> None:
        self.policies = list(policies)
        self.configuration = GateConfiguration(lambda: self.policies, "berthmaster-system")
        self.found: dict[str, Any] = {
            "webhooks": [
                {"name": "annotated.berthmaster.io", "clientConfig": {}, "rules": ["kept"]}
            ]
        }

    def apply(self) -> None:
        """Store what is applied, with the fields that the API server adds."""
        entries = copy.deepcopy(self.configuration.entries(self.found, b"bundle"))
        fixed = [
            it for it in self.found["webhooks"] if not it["name"].endswith(".policy." + names.GROUP)
        ]
        whole = [it for it in entries if "rules" in it]
        self.found["webhooks"] = fixed + [{**it, "added": "by the server"} for it in whole]


def test_policies_become_webhooks_by_rank_beside_those_that_were_applied() -> None:
    scene = Scene(
        make_policy("b", priority=1), make_policy("z", priority=9), make_policy("a", priority=1)
    )

    entries = scene.configuration.entries(scene.found, b"bundle")

    assert [it["name"].partition(".")[0] for it in entries] == ["annotated", "z", "a", "b"]
    encoded = base64.b64encode(b"bundle").decode()
    assert {it["clientConfig"]["caBundle"] for it in entries} == {encoded}
    assert set(entries[0]) == {"name", "clientConfig"}, "the rest belongs to whoever applied it"


def test_policy_without_selectors_opts_nobody_in() -> None:
    settings = policy_from_manifest({"metadata": {"name": "settings"}, "spec": {}})

    assert len(Scene(settings).configuration.entries(Scene().found, b"")) == 1


@pytest.mark.parametrize(
    "change", ["new", "gone", "priority", "selector", "mode", "edited", "none"]
)
def test_difference_is_found(change: str) -> None:
    scene = Scene(make_policy("a"), make_policy("b"))
    scene.apply()
    assert not scene.configuration.is_outdated(scene.found)

    match change:
        case "new":
            scene.policies.append(make_policy("c"))
        case "gone":
            scene.policies.pop()
        case "priority":
            scene.policies[0] = make_policy("a", priority=3)
        case "selector":
            scene.policies[0] = make_policy("a", podSelector={"matchLabels": {"ship": "b"}})
        case "mode":
            scene.policies[0] = make_policy("a", mode="observe")
        case "edited":
            scene.found["webhooks"][1]["failurePolicy"] = "Ignore"

    assert scene.configuration.is_outdated(scene.found) == (change != "none")


def test_exempt_namespaces_are_left_out_whatever_a_policy_selects() -> None:
    own = {"matchLabels": {"team": "x"}, "matchExpressions": [{"key": "k", "operator": "Exists"}]}
    webhook = build_webhook(make_policy(namespaceSelector=own), "elsewhere")

    selector = webhook["namespaceSelector"]
    assert selector["matchLabels"] == {"team": "x"}
    assert selector["matchExpressions"][0] == {"key": "k", "operator": "Exists"}
    assert selector["matchExpressions"][1] == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", "kube-node-lease", "berthmaster-system", "elsewhere"],
    }
    assert webhook["failurePolicy"] == "Fail"


def test_path_tells_all_that_the_webhook_has_to_know() -> None:
    assert build_path(make_policy(priority=-100)) == "/gate/selected/required/m100/any/fleet"
    named = make_policy(mode="observe", schedulerNames=["old"], priority=7)
    assert build_path(named) == "/gate/selected/observe/p7/named/fleet"


def test_long_names_stay_apart() -> None:
    one, other = webhook_name("x" * 250 + "a"), webhook_name("x" * 250 + "b")

    assert one != other
    assert len(one) <= 253


def test_names_of_schedulers_are_quoted() -> None:
    webhook = build_webhook(make_policy(schedulerNames=["old", 'odd"name']), "ns")

    (text,) = (
        it["expression"]
        for it in webhook["matchConditions"]
        if it["name"] == "scheduler-is-taken-over"
    )
    assert '["old", "odd\\"name"]' in text
