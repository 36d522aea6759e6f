"""Where the programs of a control plane come from.

Owns the search order. A folder that the user names (argument or `BERTHMASTER_SANDBOX_BINARIES`)
is taken at its word: it must hold everything but kwok, which few people have. The folder in
`KUBEBUILDER_ASSETS`, which other projects fill with less than we need, is taken if it is complete.
Then comes our cache. What the cache lacks is downloaded into it if its checksum is known (see
`releases` and `downloading`), else built (see `building`). The cache is keyed by system, processor
and versions, so an upgrade never meets an older program; a lock file lets one run at a time fill
it, and the others wait and then find the result.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from berthmaster_sandbox.building import (
    ETCD_VERSION,
    HEARTBEAT_S,
    KUBERNETES_VERSION,
    KWOK_VERSION,
    METRICS_SERVER,
    METRICS_SERVER_VERSION,
    TOOLS,
    Report,
    build_missing,
    format_duration,
    is_built,
    print_progress,
)
from berthmaster_sandbox.downloading import download_available
from berthmaster_sandbox.errors import BinariesError
from berthmaster_sandbox.releases import Checksums, list_release_files

FOLDER_VARIABLE = "BERTHMASTER_SANDBOX_BINARIES"
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"

ALL_NAMES: tuple[str, ...] = tuple(tool.name for tool in TOOLS)
REQUIRED_NAMES: tuple[str, ...] = tuple(name for name in ALL_NAMES if name != "kwok")

LOCK_POLL_S = 0.2

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """The executables of one control plane; `folder` is what belongs on a user's PATH."""

    folder: Path
    etcd: Path
    kube_apiserver: Path
    kube_scheduler: Path
    kube_controller_manager: Path
    kubectl: Path
    kwok: Path


def ensure_binaries(
    folder: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    report: Report = print_progress,
) -> Binaries:
    """Return every executable, fetching what is missing; may take minutes the first time.

    Blocks; an asynchronous caller uses a thread only if nothing has to be built there, as a build
    is bound to the thread that starts it. Raises BinariesError with the way out.
    """
    environment = os.environ if environment is None else environment
    cache = find_cache(environment)
    source = _find_named_folder(folder, environment) or _find_assets(environment, report)
    if source is None:
        fill_cache(ALL_NAMES, cache, environment=environment, report=report)
        return _collect(cache, kwok_folder=cache)
    if is_built(source, "kwok"):
        return _collect(source, kwok_folder=source)
    fill_cache(["kwok"], cache, environment=environment, report=report)
    return _collect(source, kwok_folder=cache)


def ensure_metrics_server(
    *, environment: Mapping[str, str] | None = None, report: Report = print_progress
) -> Path:
    """Return metrics-server, built first where our cache lacks it; a control plane does without.

    Blocks, as `ensure_binaries` does. Raises BinariesError with the way out.
    """
    environment = os.environ if environment is None else environment
    program = find_metrics_server(environment)
    fill_cache([METRICS_SERVER.name], program.parent, environment=environment, report=report)
    return program


def find_metrics_server(environment: Mapping[str, str] | None = None) -> Path:
    """Return where metrics-server is kept; it may not be there yet."""
    environment = os.environ if environment is None else environment
    # Beside the folder of the control plane's programs, whose versions are not its own.
    folder = f"{METRICS_SERVER.name}-{METRICS_SERVER_VERSION}"
    return find_cache(environment).parent / folder / METRICS_SERVER.name


def fill_cache(
    names: Sequence[str],
    cache: Path,
    *,
    environment: Mapping[str, str],
    report: Report = print_progress,
) -> None:
    """Download or build those of the named programs that the cache lacks.

    Waits for another run that does the same. Raises BinariesError with the way out.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _hold_lock(cache / ".lock", report=report):
        missing = [name for name in names if not is_built(cache, name)]
        if not missing:
            return
        files = list_release_files(find_architecture(), environment)
        if platform.system() == "Linux":
            download_available(
                [file for file in files if file.program in missing],
                folder=cache,
                checksums=Checksums(environment),
                report=report,
            )
        build_missing(missing, folder=cache, toolchains=cache.parent, report=report)


def find_cache(environment: Mapping[str, str]) -> Path:
    """Return the cache folder for this machine and these versions; it may not exist yet."""
    home = environment.get("HOME")
    default = Path(home) / ".cache" if home else Path.home() / ".cache"
    base = Path(environment.get("XDG_CACHE_HOME") or default)
    machine = f"{platform.system().lower()}-{find_architecture()}"
    versions = f"k8s-{KUBERNETES_VERSION}_etcd-{ETCD_VERSION}_kwok-{KWOK_VERSION}"
    return base / "berthmaster" / "sandbox" / machine / versions


def find_architecture() -> str:
    """Return this machine's processor as Go names it. Raises BinariesError if there is no recipe."""
    machine = platform.machine().lower()
    if machine not in _ARCHITECTURES:
        raise BinariesError(f"no recipe for processor {machine}, expected amd64 or arm64")
    return _ARCHITECTURES[machine]


def _find_named_folder(folder: Path | None, environment: Mapping[str, str]) -> Path | None:
    named = folder or environment.get(FOLDER_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser().resolve()
    lacking = _list_lacking(path, REQUIRED_NAMES)
    if lacking:
        raise BinariesError(f"{path} was named as the programs' folder but lacks {lacking}")
    return path


def _find_assets(environment: Mapping[str, str], report: Report) -> Path | None:
    assets = environment.get(ASSETS_VARIABLE)
    if not assets:
        return None
    path = Path(assets).expanduser().resolve()
    lacking = _list_lacking(path, REQUIRED_NAMES)
    if lacking:
        report(f"passing over {ASSETS_VARIABLE}: {path} lacks {lacking}")
        return None
    return path


def _list_lacking(folder: Path, names: Iterable[str]) -> str:
    return ", ".join(name for name in names if not is_built(folder, name))


@contextmanager
def _hold_lock(path: Path, *, report: Report) -> Iterator[None]:
    with path.open("a") as file:
        started = last_report = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if last_report == started or now - last_report > HEARTBEAT_S:
                    waited = format_duration(now - started)
                    report(f"another run is fetching these programs; waiting since {waited}")
                    last_report = now
                time.sleep(LOCK_POLL_S)
        yield


def _collect(folder: Path, *, kwok_folder: Path) -> Binaries:
    return Binaries(
        folder=folder,
        etcd=folder / "etcd",
        kube_apiserver=folder / "kube-apiserver",
        kube_scheduler=folder / "kube-scheduler",
        kube_controller_manager=folder / "kube-controller-manager",
        kubectl=folder / "kubectl",
        kwok=kwok_folder / "kwok",
    )
