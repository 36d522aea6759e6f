"""Pods that name one of the old schedulers run unchanged under the sample that takes it over."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from berthmaster_sandbox.cluster import Sandbox
from support.harbour import (
    POLICIES,
    create,
    is_taken_over,
    make_pod,
    new_namespace,
    until,
    until_bound,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

SAMPLES = sorted((Path(__file__).parents[2] / "config/samples").glob("placement-policy-old-*.yaml"))
NODE = "old-names"


def read(sample: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(sample.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "sample", SAMPLES, ids=lambda it: it.stem.removeprefix("placement-policy-")
)
async def test_every_name_of_a_sample_is_taken_over_and_placed(
    harbour: Sandbox, sample: Path
) -> None:
    policy = read(sample)
    namespace = await new_namespace(harbour, sample.stem.removeprefix("placement-"))
    await harbour.create_nodes(1, name=f"{NODE}-{namespace}")
    await harbour.kubectl("apply", "-f", str(sample))
    try:
        for number, scheduler in enumerate(policy["spec"]["schedulerNames"]):
            name = f"old-{number}"
            pod = make_pod(name, placement=None, on=f"{NODE}-{namespace}", schedulerName=scheduler)
            await until(partial(is_taken_over, harbour, namespace, pod), bool, 30)
            stored = await create(harbour, namespace, pod)

            annotations = stored["metadata"]["annotations"]
            assert annotations["berthmaster.io/replaced-scheduler"] == scheduler
            assert annotations["berthmaster.io/policy"] == policy["metadata"]["name"]
            assert await until_bound(harbour, namespace, name) == f"{NODE}-{namespace}"
            found = await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
            decided = json.loads(found["metadata"]["annotations"]["berthmaster.io/allocation"])
            assert decided["node"] == f"{NODE}-{namespace}"
            assert decided.get("mode", "required") == policy["spec"].get("mode", "required")
    finally:
        await harbour.client.delete(f"{POLICIES}/{policy['metadata']['name']}")
