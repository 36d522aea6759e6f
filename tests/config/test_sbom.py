"""The bill of materials lists what the image installs, all of it and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def make_sbom(path: Path, *words: str) -> str:
    command = ["make", "--silent", "sbom", f"SBOM={path}", *words]
    subprocess.run(command, cwd=PROJECT, check=True)
    return path.read_text()


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The document, which the tool has checked against the schema."""
    return make_sbom(tmp_path_factory.mktemp("sbom") / "sbom.json")


def read_lock() -> dict[str, set[str]]:
    """Return the hashes of each package by name and version."""
    text = (PROJECT / "requirements-runtime.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    return {line.split()[0]: set(re.findall(r"--hash=sha256:(\w+)", line)) for line in lines}


def test_every_locked_package_is_listed_with_its_hashes(sbom: str) -> None:
    document = json.loads(sbom)

    assert document["bomFormat"] == "CycloneDX"
    listed = {
        f"{component['name']}=={component['version']}": {
            entry["content"]
            for reference in component["externalReferences"]
            for entry in reference["hashes"]
        }
        for component in document["components"]
    }
    assert listed == read_lock()
    for component in document["components"]:
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"


def test_document_is_about_this_release(sbom: str) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]

    subject = json.loads(sbom)["metadata"]["component"]

    assert (subject["name"], subject["version"]) == (project["name"], project["version"])


def test_document_is_the_same_each_time(sbom: str, tmp_path: Path) -> None:
    # The second need not be checked against the schema, which takes longest.
    assert make_sbom(tmp_path / "sbom.json", "SBOM_OPTIONS=--no-validate") == sbom
