"""What the pages name is there: links, files, commands, options, metrics, keys, settings."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from berthmaster.api import names
from berthmaster.api.settings.dataset import DatasetSettings
from berthmaster.api.settings.diskio import DiskIOSettings
from berthmaster.api.settings.numa import NumaSettings
from berthmaster.api.settings.podspread import PodSpreadSettings
from berthmaster.api.settings.power import PowerSettings
from berthmaster.api.settings.xpu import XPUSettings
from berthmaster.cli.doctor import reporting
from berthmaster.cli.doctor.findings import Part
from berthmaster.cli.doctor.rights import RIGHTS
from berthmaster.cli.main import build_parser
from support.metrics_page import list_metrics

PROJECT = Path(__file__).parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
ROOTS = (
    "core",
    "operator",
    "webhook",
    "sandbox",
    "tests",
    "bench",
    "config",
    "crds",
    "docs",
    ".ci",
)
# Those of kube-apiserver, kube-scheduler, docker and every program.
OTHER_OPTIONS = {
    "--admission-control-config-file",
    "--build-arg",
    "--config",
    "--help",
    "--request-timeout",
}
PACKAGES = {"berthmaster_operator", "berthmaster_sandbox", "berthmaster_webhook"}
# What has another name by now, which only the changelog tells.
OLD_METRICS = {
    "berthmaster_webhook_certificate_expiry_seconds",
    "berthmaster_diskio_generation_lag_max",
}
# Keys that stand in no constant: the version of our kinds, and the sandbox's own.
OTHER_KEYS = {"berthmaster.io/v1alpha1", "berthmaster.io/sandbox"}

Check = Callable[[str, Path], Iterator[str]]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", it.lower()).strip().replace(" ", "-") for it in headings}


def snippets(text: str) -> list[str]:
    """Return what a page shows as code: lines of blocks, and words between backquotes."""
    blocks = re.findall(r"^(?:    |\t)\s*(.+)$", text, re.M)
    return [*blocks, *re.findall(r"`([^`\n]+)`", text)]


def find_broken_links(text: str, page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(text if there == page else there.read_text("utf-8")):
            yield f"{target}: no such heading"


@functools.cache
def files() -> list[str]:
    found = (it for root in ROOTS for it in (PROJECT / root).rglob("*"))
    return [str(it.relative_to(PROJECT)) for it in found if "__pycache__" not in it.parts]


def find_missing_files(text: str, page: Path) -> Iterator[str]:
    """Look for paths from the root, and for modules by the end of their path."""
    roots = "|".join(map(re.escape, ROOTS))
    for path in re.findall(rf"(?<![\w/.-])((?:{roots})/[\w./*-]*\w)", text):
        if not list(PROJECT.glob(path)):
            yield path
    for path in re.findall(r"`([\w/-]+\.py)(?:::\w+)?`", text):
        if not any(f"/{it}".endswith(f"/{path}") for it in files()):
            yield path


@functools.cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands of `kubectl berth`."""
    (found,) = (it for it in build_parser()._actions if isinstance(it, argparse._SubParsersAction))
    return dict(found.choices)


def find_missing_commands(text: str, page: Path) -> Iterator[str]:
    """Look for the subcommands of `kubectl berth` and their options."""
    for line in snippets(text):
        told = re.search(r"kubectl berth ([^#|>;]+)", line)
        words = re.sub(r"^-n \S+ ", "", told[1]).split() if told else []
        if not words or not words[0].islower():
            continue
        command = commands().get(words[0])
        if command is None:
            yield f"kubectl berth {words[0]}"
            continue
        for word in words[1:]:
            option = word.strip("[],").partition("=")[0]
            if option.startswith("-") and option not in {"-", *command._option_string_actions}:
                yield f"kubectl berth {words[0]} {option}"


def find_missing_targets(text: str, page: Path) -> Iterator[str]:
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    for line in snippets(text):
        for target in re.findall(r"^make ([a-z-]+)", line):
            if not re.search(rf"^{target}:", makefile, re.M):
                yield f"make {target}"


@functools.cache
def options() -> set[str]:
    """Return every option that a program of ours has, of whichever."""
    sources = (
        (PROJECT / it).read_text("utf-8")
        for it in files()
        if it.endswith(".py") and not it.startswith("tests/")
    )
    written = {it for text in sources for it in re.findall(r'"(--[a-z][a-z-]+)"', text)}
    settings = (PROJECT / "webhook/berthmaster_webhook/settings.py").read_text("utf-8")
    fields = re.findall(r'\badd\("(\w+)"', settings)
    return written | {"--" + it.removesuffix("_s").replace("_", "-") for it in fields}


def find_missing_options(text: str, page: Path) -> Iterator[str]:
    """Look for options that are named alone, and for those of benches in their own files."""
    for line in snippets(text):
        option = line.partition("=")[0].split(" ", 1)[0]
        if option.startswith("--") and option not in options() | OTHER_OPTIONS:
            yield option
        if bench := re.search(r"python (bench/\w+\.py)([^#|]*)", line):
            source = (PROJECT / bench[1]).read_text("utf-8")
            yield from (
                f"{bench[1]} {it}"
                for it in re.findall(r"--[a-z][a-z-]+", bench[2])
                if f'"{it}"' not in source
            )


def find_missing_metrics(text: str, page: Path) -> Iterator[str]:
    known = {it.name for it in list_metrics()} | PACKAGES
    if page.name == "CHANGELOG.md":
        known |= OLD_METRICS
    for name in re.findall(r"\bberthmaster_\w+", text):
        if not {name, re.sub("_(bucket|sum|count)$", "", name)} & known:
            yield name


def find_missing_keys(text: str, page: Path) -> Iterator[str]:
    constants = [it for it in vars(names).values() if isinstance(it, str)]
    known = {*constants, *OTHER_KEYS}
    for key in re.findall(r"(?<![\w.-])berthmaster\.io/[\w-]*\w", text):
        if key not in known:
            yield key


@functools.cache
def policy_schema() -> Mapping[str, Any]:
    crd = yaml.safe_load((PROJECT / "crds/berthmaster.io_placementpolicies.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec: Mapping[str, Any] = schema["properties"]["spec"]
    return spec


def find_missing_settings(text: str, page: Path) -> Iterator[str]:
    for path in re.findall(r"`(?:spec\.)?(concerns\.[\w.]+\w)", text):
        schema = policy_schema()
        for field in path.split("."):
            schema = schema.get("properties", {}).get(field)
            if schema is None:
                yield path
                break


CHECKS: list[Check] = [
    find_broken_links,
    find_missing_files,
    find_missing_commands,
    find_missing_targets,
    find_missing_options,
    find_missing_metrics,
    find_missing_keys,
    find_missing_settings,
]


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda it: it.__name__)
def test_what_a_page_names_is_there(check: Check, page: Path) -> None:
    assert sorted(set(check(page.read_text("utf-8"), page))) == []


def test_every_page_is_linked_from_the_readme() -> None:
    text = (PROJECT / "README.md").read_text("utf-8")
    linked = {it.partition("#")[0] for it in re.findall(r"\]\(([^)\s]+)\)", text)}

    assert {str(it.relative_to(PROJECT)) for it in PAGES} - linked == {"README.md"}


def test_every_command_and_component_has_a_row() -> None:
    page = (PROJECT / "docs/command-line.md").read_text("utf-8")
    told = re.findall(r"`([a-z-]+)[^`|]*`", "".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    page = (PROJECT / "docs/installation.md").read_text("utf-8")
    components = {it.name for it in (PROJECT / "config/components").iterdir()}

    assert set(told) == commands().keys()
    assert components <= set(re.findall(r"^\| `([a-z0-9.-]+)` \|", page, re.M))


def test_every_folder_of_tests_has_a_row() -> None:
    page = (PROJECT / "docs/architecture.md").read_text("utf-8")
    folders = {it.name for it in (PROJECT / "tests").iterdir() if it.is_dir()} - {"__pycache__"}

    assert folders == set(re.findall(r"`tests/([a-z_]+)`", page))


def test_every_part_of_the_doctor_has_a_row_and_rights_are_counted() -> None:
    page = (PROJECT / "docs/command-line.md").read_text("utf-8")
    table = page.partition("| part | looks at |")[2].partition("\n\n")[0]
    told = {it for row in re.findall(r"^\| ([^|]+) \|", table, re.M) for it in row.split(", ")}
    modules = (sys.modules[check.__module__] for check in reporting.CHECKS)
    parts = {it.name for module in modules for it in vars(module).values() if isinstance(it, Part)}
    counts = Counter(it.account for it in RIGHTS)

    assert told - {"---"} == {reporting.API_SERVER.name, *parts}
    found = re.findall(r"(berthmaster-\w+) may do all (\d+) things", page)
    assert set(found) == {(account, str(count)) for account, count in counts.items()}


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("disk-io", DiskIOSettings),
        ("numa", NumaSettings),
        ("xpu", XPUSettings),
        ("datasets", DatasetSettings),
        ("power", PowerSettings),
        ("power", PodSpreadSettings),
    ],
)
def test_every_setting_is_on_its_page(page: str, settings: type[BaseModel]) -> None:
    text = (PROJECT / f"docs/{page}.md").read_text("utf-8")
    fields = {it.alias or name for name, it in settings.model_fields.items()}

    assert {it for it in fields if not re.search(rf"\b{it}\b", text)} == set()


@pytest.mark.parametrize(
    ("check", "text", "found"),
    [
        (find_broken_links, "[a](docs/no.md)", "docs/no.md: no such file"),
        (find_broken_links, "[a](docs/numa.md#no)", "docs/numa.md#no: no such heading"),
        (find_broken_links, "# One\n[a](#two)", "#two: no such heading"),
        (find_missing_files, "see tests/config/test_no.py", "tests/config/test_no.py"),
        (find_missing_files, "`placement/no.py`", "placement/no.py"),
        (find_missing_commands, "    $ kubectl berth explain POD", "kubectl berth explain"),
        (find_missing_commands, "`kubectl berth -n a why --all`", "kubectl berth why --all"),
        (find_missing_targets, "    make nothing", "make nothing"),
        (find_missing_options, "`--no-option=1`", "--no-option"),
        (find_missing_options, "    python bench/memory.py --no 1", "bench/memory.py --no"),
        (find_missing_metrics, "`berthmaster_no_total`", "berthmaster_no_total"),
        (find_missing_keys, "`berthmaster.io/no-key: a`", "berthmaster.io/no-key"),
        (find_missing_settings, "`spec.concerns.numa.no`", "concerns.numa.no"),
    ],
)
def test_what_is_not_there_is_found(check: Check, text: str, found: str) -> None:
    assert list(check(text, PROJECT / "README.md")) == [found]
