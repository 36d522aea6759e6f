from __future__ import annotations

from berthmaster.api.policy import PolicySet, policy_from_manifest


def test_policy_is_chosen_by_what_pods_ask_for() -> None:
    xpus = policy_from_manifest(
        {"metadata": {"name": "xpus"}, "spec": {"resourceNames": ["a.com/x", "a.com/y"]}}
    )
    policies = PolicySet([xpus])

    assert policies.choose({}, {}, resources=frozenset({"cpu", "a.com/y"})).name == "xpus"
    assert policies.taken_over_by({}, {}, resources=frozenset({"a.com/x"})) is not None
    assert policies.choose({}, {}, resources=frozenset({"cpu"})).name == ""
    assert policies.taken_over_by({}, {}) is None


def test_names_of_the_most_important_policy_are_those_of_the_cluster() -> None:
    def named(name: str, priority: int, memory: str) -> object:
        xpu = {"names": {"shareMemory": memory}}
        spec = {"priority": priority, "concerns": {"xpu": xpu}}
        return policy_from_manifest({"metadata": {"name": name}, "spec": spec})

    silent = policy_from_manifest({"metadata": {"name": "z"}, "spec": {"priority": 9}})
    policies = PolicySet([named("a", 1, "a.com/a"), named("b", 2, "b.com/b"), silent])  # type: ignore[list-item]

    assert policies.xpu_names.share_memory == "b.com/b"
    assert {it.concerns.xpu.names_in_force.share_memory for it in policies.specs} == {"b.com/b"}
    assert policies.choose({}, {}).spec.concerns.xpu.names_in_force.share_memory == "b.com/b"
