"""The image is made of what was locked, and of nothing that the Dockerfile does not name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from berthmaster_sandbox.installing import IMAGE

PROJECT = Path(__file__).parents[2]
DOCKERFILE = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
_PIN = re.compile(r"^([a-z0-9._-]+==\S+)(?: ; [^\\]+)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.M)


def pins(name: str) -> dict[str, frozenset[str]]:
    """Return the hashes of a lock file by name and version."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    found = {
        pin: frozenset(re.findall(r"--hash=(\S+)", hashes)) for pin, hashes in _PIN.findall(text)
    }
    assert len(found) == len(re.findall(r"^\S+==", text, re.M))
    return found


@pytest.mark.parametrize("name", ["requirements-runtime.lock", "requirements-build.lock"])
def test_image_holds_what_was_tested(name: str) -> None:
    tested = pins("requirements.lock")

    assert pins(name).items() <= tested.items(), "run `make lock`"


def test_image_holds_no_tools() -> None:
    installed = {pin.partition("==")[0] for pin in pins("requirements-runtime.lock")}

    assert {"aiohttp", "kopf", "cryptography", "grpcio", "prometheus-client"} <= installed
    assert not {"pytest", "mypy", "ruff", "hypothesis", "hatchling"} & installed


def test_wheel_is_built_by_the_backend_that_is_named() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))

    assert set(project["build-system"]["requires"]) <= set(pins("requirements-build.lock"))


def test_copied_files_exist_and_pass_dockerignore() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }

    assert copied == allowed
    assert all((PROJECT / source).exists() for source in copied)


def test_bases_are_pinned_by_digest() -> None:
    [default] = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.M)
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)

    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", default)
    assert set(stages) == {"${BASE}", "scratch"}


def test_nothing_is_installed_without_its_hash() -> None:
    text = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"pip .*?install (.*?)(?=&&|\n)", text)

    assert len(installs) == 3
    for words in installs:
        # The wheel that was just built from this source is the one without a hash.
        assert "--require-hashes" in words or "--no-index --no-deps" in words, words


def test_sandbox_is_no_part_of_the_image() -> None:
    """A kubelet that starts processes belongs on nobody's cluster."""
    assert "COPY sandbox" not in DOCKERFILE


def test_programs_run_without_rights() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]

    assert "\nUSER 65532:65532\n" in final
    assert "PYTHONSAFEPATH=1" in final
    # There is no entry in /etc/passwd, and the root cannot be written.
    assert "HOME=/tmp" in final
    assert "\nRUN " not in final


def test_deployments_and_sandbox_name_the_released_image() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [path.read_text() for path in PROJECT.glob("config/base/*/deployment.yaml")]

    assert f"{project['name']}:{project['version']}" == IMAGE
    assert len(texts) == 2
    assert all(f"image: {IMAGE}\n" in text for text in texts)
    programs = re.findall(r"command: \[([\w-]+)\]", "".join(texts))
    assert set(programs) <= set(project["scripts"])
