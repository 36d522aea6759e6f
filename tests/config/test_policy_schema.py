"""The API server refuses PlacementPolicies that cannot be meant, in words, and fills defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import yaml

from berthmaster.api import names
from berthmaster.api.policy import ConcernSettings, PlacementPolicySpec, policy_from_manifest
from berthmaster.cluster.client import ApiError, Client
from berthmaster_sandbox.cluster import Sandbox
from config.applying import CONFIG, PLACEMENT_POLICIES, applied, eventually
from config.pods import DRY_RUN

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CRD = CONFIG.parent / "crds" / "berthmaster.io_placementpolicies.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    definition = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    async with applied(sandbox.client, [definition]):
        # Creation opens a moment after the kind can be listed.
        await eventually(lambda: try_policy(sandbox.client, {}))
        yield sandbox.client


async def try_policy(client: Client, spec: dict[str, Any] | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": "PlacementPolicy",
        "metadata": {"name": "tried"},
    }
    if spec is not None:
        body["spec"] = spec
    return await client.create(PLACEMENT_POLICIES, body, DRY_RUN)


def diskio(**settings: Any) -> dict[str, Any]:
    return {"concerns": {"diskio": settings}}


def expression(operator: str, *values: str) -> dict[str, Any]:
    found = {"key": "a", "operator": operator, **({"values": list(values)} if values else {})}
    return {"podSelector": {"matchExpressions": [found]}}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(
            {"mode": "sometimes"},
            ("spec.mode", '"sometimes"', '"required"', '"observe"'),
            id="unknown mode",
        ),
        pytest.param({"mode": "off"}, ("mode off needs a namespaceSelector",), id="off for nobody"),
        pytest.param(
            {"mode": "off", "schedulerNames": []},
            ("mode off needs a namespaceSelector",),
            id="off with no names",
        ),
        pytest.param(
            diskio(weight=101),
            ("spec.concerns.diskio.weight", "less than or equal to 100"),
            id="weight 101",
        ),
        pytest.param(
            diskio(weight=-1),
            ("spec.concerns.diskio.weight", "greater than or equal to 0"),
            id="weight -1",
        ),
        pytest.param(
            diskio(blockSizePolicy="Any"),
            ("spec.concerns.diskio.blockSizePolicy", '"Strict"', '"Nearest"'),
            id="block size policy",
        ),
        pytest.param(
            diskio(defaultBlockSize="2k"),
            ("spec.concerns.diskio.defaultBlockSize", '"4k"'),
            id="default block size",
        ),
        pytest.param(
            diskio(unknownModel="Guess"),
            ("spec.concerns.diskio.unknownModel", '"Refuse"', '"Default"'),
            id="unknown model",
        ),
        pytest.param(
            diskio(reservePercent=91),
            ("spec.concerns.diskio.reservePercent", "less than or equal to 90"),
            id="reserve",
        ),
        pytest.param(
            diskio(staleSafetyPercent=-1),
            ("spec.concerns.diskio.staleSafetyPercent", "greater than or equal to 0"),
            id="stale safety",
        ),
        pytest.param(
            diskio(defaultRequest={"read": "-1Mi", "write": "1Mi"}),
            ("spec.concerns.diskio.defaultRequest.read", "should match"),
            id="negative default request",
        ),
        pytest.param(
            diskio(defaultRequest={"read": "1Mi"}),
            ("spec.concerns.diskio.defaultRequest.write", "Required"),
            id="half a default request",
        ),
        pytest.param({"pinPatience": "soon"}, ("spec.pinPatience", "should match"), id="soon"),
        pytest.param({"pinPatience": "1.5m"}, ("spec.pinPatience", "should match"), id="1.5m"),
        pytest.param({"pinPatience": ""}, ("spec.pinPatience",), id="no duration"),
        pytest.param(
            diskio(staleAfter="60"),
            ("spec.concerns.diskio.staleAfter", "should match"),
            id="no unit",
        ),
        pytest.param(
            diskio(strategy="Balanced"),
            ("spec.concerns.diskio.strategy", '"LeastAllocated"', '"MostAllocated"'),
            id="unknown strategy",
        ),
        pytest.param(
            diskio(nsWhiteList=["No_Namespace"]), ("nsWhiteList[0]", "should match"), id="namespace"
        ),
        pytest.param(
            diskio(nsWhiteList=["a", "a"]), ("nsWhiteList[1]", "Duplicate"), id="namespace twice"
        ),
        pytest.param(
            expression("In"), ("matchExpressions[0]", "In and NotIn need values"), id="In"
        ),
        pytest.param(
            expression("NotIn"), ("matchExpressions[0]", "In and NotIn need values"), id="NotIn"
        ),
        pytest.param(expression("Is", "b"), ("operator", '"Is"', '"Exists"'), id="operator"),
        pytest.param(
            {"podSelector": {"matchExpressions": [{"operator": "Exists"}]}},
            ("matchExpressions[0].key", "Required"),
            id="no key",
        ),
        pytest.param({"onInvalid": "ignore"}, ("spec.onInvalid", '"refuse"'), id="on invalid"),
        pytest.param({"priority": 10**7}, ("spec.priority", "1000000"), id="priority"),
        pytest.param({"schedulerNames": [""]}, ("spec.schedulerNames[0]",), id="no scheduler"),
        pytest.param(
            {"concerns": {"dataset": {"tiers": {"zone": 10}}}},
            ("spec.concerns.dataset.tiers", "a nearer tier must not score less"),
            id="tiers that rise",
        ),
    ],
)
async def test_bad_policy_is_refused(
    client: Client, spec: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ApiError) as refusal:
        await try_policy(client, spec)

    assert refusal.value.is_invalid
    for word in words:
        assert word in refusal.value.message


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(None, id="no spec"),
        pytest.param({}, id="empty"),
        pytest.param({"concerns": {}}, id="no concerns"),
        pytest.param(diskio(), id="no settings"),
        pytest.param(expression("Exists"), id="Exists"),
        pytest.param(expression("In", "b"), id="In"),
        pytest.param({"mode": "off", "podSelector": {}}, id="off for all"),
        pytest.param(
            {"mode": "off", "resourceNames": ["example.com/card"]}, id="off for a resource"
        ),
        pytest.param({"pinPatience": "1h30m"}, id="long patience"),
    ],
)
async def test_good_policy_gets_the_models_defaults(
    client: Client, spec: dict[str, Any] | None
) -> None:
    created = await try_policy(client, spec)

    assert created["spec"]["concerns"] == {
        name: {key: it for key, it in settings.items() if it not in ([], {})}
        for name, settings in ConcernSettings().to_wire().items()
    }
    filled = {"priority", "mode", "onInvalid", "pinPatience", "concerns"}
    assert filled <= set(created["spec"])
    # What the server filled in changes nothing of what the programs would have assumed.
    assert policy_from_manifest(created).spec == PlacementPolicySpec.model_validate(spec or {})


async def test_unknown_field_is_dropped_or_refused_on_request(client: Client) -> None:
    strict = {**DRY_RUN, "fieldValidation": "Strict"}
    body = {
        "apiVersion": names.API_VERSION,
        "kind": "PlacementPolicy",
        "metadata": {"name": "tried"},
        "spec": {"mod": "bind"},
    }

    with pytest.raises(ApiError, match=r'unknown field "spec\.mod"'):
        await client.create(PLACEMENT_POLICIES, body, strict)
    assert "mod" not in (await try_policy(client, {"mod": "bind"}))["spec"]
