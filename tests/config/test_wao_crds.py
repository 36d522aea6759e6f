"""WAO's kinds beside ours: as upstream has them, and installed by nobody who did not ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from berthmaster.api import names
from berthmaster_operator.handlers import node_configs

FOLDER = Path(__file__).parents[2] / "crds"
UPSTREAM = Path(__file__).parents[3] / "shared" / "upstream" / "power"
FILES = [f"{group}_{plural}.yaml" for group, plural in node_configs.PATHS]


def test_every_kind_of_both_groups_is_there_and_none_is_installed_with_ours() -> None:
    listed = yaml.safe_load((FOLDER / "wao" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(FILES)
    ours = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert not any(group in it for it in ours for group in names.WAO_GROUPS)


@pytest.mark.parametrize("file", FILES)
def test_file_names_its_kind_and_has_what_we_read(file: str) -> None:
    crd = yaml.safe_load((FOLDER / "wao" / file).read_text())
    group, plural = file.removesuffix(".yaml").split("_")
    (version,) = crd["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]

    assert crd["metadata"]["name"] == f"{plural}.{group}"
    assert version["name"] == "v1beta1"
    terms = spec if plural == node_configs.CONFIGS else spec["template"]["properties"]
    assert {"nodeName", "metricsCollector", "predictor"} <= set(terms)


@pytest.mark.skipif(not UPSTREAM.exists(), reason="upstream's files are not beside the project")
@pytest.mark.parametrize("file", FILES)
def test_file_is_upstreams(file: str) -> None:
    assert (FOLDER / "wao" / file).read_text() == (UPSTREAM / f"crd-{file}").read_text()
