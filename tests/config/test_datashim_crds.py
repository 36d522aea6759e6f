"""Datashim's kinds beside ours: complete, and installed by nobody who did not ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from berthmaster.api import names

FOLDER = Path(__file__).parents[2] / "crds"
FILES = [
    f"{group}_{plural}.yaml"
    for group in names.DATASHIM_GROUPS
    for plural in (names.DATASETS, names.DATASETS_INTERNAL)
]


def test_every_kind_of_both_groups_is_there_and_none_is_installed_with_ours() -> None:
    listed = yaml.safe_load((FOLDER / "datashim" / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(FILES)
    ours = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert not any("datashim" in it for it in ours)


@pytest.mark.parametrize("file", FILES)
def test_file_names_its_kind_and_has_what_we_read(file: str) -> None:
    crd = yaml.safe_load((FOLDER / "datashim" / file).read_text())
    group, plural = file.removesuffix(".yaml").split("_")
    assert crd["metadata"]["name"] == f"{plural}.{group}"
    (version,) = crd["spec"]["versions"]
    assert version["name"] == names.DATASHIM_VERSION
    assert version["subresources"] == {"status": {}}
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    if plural == names.DATASETS_INTERNAL:
        placements = status["caching"]["properties"]["placements"]["properties"]
        assert set(placements) == {"gateways", "datalocations"}
    else:
        assert set(status) == {"caching", "provision"}
