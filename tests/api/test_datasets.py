"""What is read of Datashim's objects where only states are told."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.datasets import sighting_from_manifest

HOST = "kubernetes.io/hostname"


@pytest.mark.parametrize(
    ("placements", "is_declared"),
    [
        (None, False),
        ({"gateways": [], "datalocations": [{"key": HOST, "value": ""}]}, False),
        ({"gateways": [{"key": HOST, "value": "n1"}]}, True),
        ({"datalocations": [{"key": "rack", "value": "r1"}]}, True),
        ("odd", False),
    ],
)
def test_a_sighting_tells_only_whether_a_placement_is_declared(
    placements: Any, is_declared: bool
) -> None:
    found = sighting_from_manifest(
        {
            "apiVersion": "datashim.io/v1alpha1",
            "metadata": {"namespace": "ml", "name": "d", "resourceVersion": "7"},
            "spec": {"local": {"accessKeyID": "secret"}},
            "status": {"caching": {"placements": placements}},
        }
    )

    assert (found.key, found.group, found.resource_version) == ("ml/d", "datashim.io", "7")
    assert found.is_declared is is_declared
    assert "secret" not in repr(found)
