"""docs/xpu.md says what is so: its manifests, its samples, its settings, its words."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from berthmaster.api.objects import Pod, PodSpec, pod_from_manifest
from berthmaster.api.policy import PolicySet, policy_from_manifest
from berthmaster.api.settings.xpu import XPUSettings
from berthmaster.concerns.xpu import reasons
from support.xpu_worlds import XPUWorld, make_xpu_node, make_xpu_pod

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "xpu.md").read_text(encoding="utf-8")
DEPLOYMENT, _, POLICIES, GPUSHARE = (
    list(yaml.safe_load_all(it)) for it in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
)


def test_samples_are_the_policies_of_the_page() -> None:
    sample = PROJECT / "config" / "samples" / "placement-policy-xpu.yaml"

    assert list(yaml.safe_load_all(sample.read_text(encoding="utf-8"))) == POLICIES


def test_policies_are_understood_to_the_last_field() -> None:
    for manifest in (*POLICIES, *GPUSHARE):
        told = policy_from_manifest(manifest).model_dump(
            mode="json", by_alias=True, exclude_unset=True
        )
        assert told["spec"] == manifest["spec"]


def test_old_deployment_is_taken_over_and_placed_as_before() -> None:
    """Two replicas of 4500 MiB on four devices of 8064: the second does not fit beside the first."""
    policies = PolicySet(map(policy_from_manifest, POLICIES))
    template = DEPLOYMENT[0]["spec"]["template"]
    template["metadata"].update(name="a", namespace="default", uid="a")
    pod = pod_from_manifest(template)
    taker = policies.taken_over_by(pod.metadata.labels or {}, {}, resources=pod.asked_resources)
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=32256, count=4))

    assert taker is not None
    assert taker.name == "xpu"
    assert world.given(template) == [(0, 4500)]
    first = dict(template, spec={**template["spec"], "nodeName": "n1"})
    first["metadata"] = {**template["metadata"], "annotations": dict(world.marks(template))}
    world.see(first)
    assert world.given(template) == [(1, 4500)]


def test_pods_of_hamis_scheduler_are_taken_over_by_its_name() -> None:
    policies = PolicySet(map(policy_from_manifest, POLICIES))
    pod = Pod(spec=PodSpec(scheduler_name="hami-scheduler"))
    cards = frozenset({"kunlunxin.com/xpu"})
    taker = policies.taken_over_by({}, {}, scheduler_name=pod.asked_scheduler, resources=cards)

    assert taker is not None
    assert taker.name == "old-hami-scheduler"
    assert policies.taken_over_by({}, {}, scheduler_name="hami-scheduler") is None


def test_gpushare_runs_under_its_own_names() -> None:
    xpu = GPUSHARE[0]["spec"]["concerns"]["xpu"]
    world = XPUWorld(**xpu)
    world.engine.configure(world.policies.specs)
    pod = make_xpu_pod("p", {"aliyun.com/gpu-mem": 5})

    assert world.request(pod)[0].request.total_mib == 5  # type: ignore[attr-defined]
    keys = {it for it in xpu["names"].values() if it.startswith("ALIYUN")}
    assert len(keys) == 5


def test_settings_that_the_page_names_are_there() -> None:
    fields = {it.alias or name for name, it in XPUSettings.model_fields.items()}

    for name in ("deviceStrategy", "nodeStrategy", "pluginsWithoutIdentity", "topologyScore"):
        assert name in fields
        assert f"`{name}" in TEXT
    assert XPUSettings().to_wire()["staleAfter"] == "90s"


def test_words_of_the_page_are_those_that_are_told() -> None:
    assert f"    {reasons.waiting('n', 'of 4500 MiB').group}\n" in TEXT
