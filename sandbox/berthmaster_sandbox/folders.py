"""The folders in which sandboxes live, and telling the living from the dead.

Each sandbox has a folder `<base>/<name>` with a lock file that its process holds as long as it
lives. The kernel lets go of the lock however the process ends, so a folder whose lock is free
belongs to nobody: it is removed at the next start. Making a folder and removing stale ones happen
under one lock of the base, so that a newborn folder is never taken for a dead one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from berthmaster_sandbox.errors import SandboxError

LOCK_NAME = "lock"
STATE_NAME = "state.json"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxState:
    """What a living sandbox tells other processes of the same user."""

    name: str
    pid: int
    server: str
    kubeconfig: str
    binaries: str
    # Seconds since the epoch.
    started_at: float
    # False until every node is Ready for the first time.
    is_ready: bool = True


def find_base(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder of this user's sandboxes, made if need be and closed to others.

    Raises SandboxError if a folder of that name belongs to somebody else.
    """
    environment = os.environ if environment is None else environment
    parent = Path(environment.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    base = parent / f"berthmaster-sandbox-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = base.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or base.is_symlink():
        raise SandboxError(f"{base} must be a folder of this user, closed to others")
    # Processes are found by this path in their environment: no links in it.
    return base.resolve()


def create_folder(base: Path, owner: ExitStack, *, name: str | None = None) -> Path:
    """Make the folder of a new sandbox, locked until `owner` closes; remove stale ones first.

    Raises SandboxError for a name that is malformed or taken.
    """
    if name is not None:
        check_name(name)
    with _hold_base(base):
        remove_stale_folders(base)
        folder = base / (name or secrets.token_hex(3))
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise SandboxError(f"a sandbox called {folder.name} is running already") from None
        lock_folder(folder, owner)
    return folder


def check_name(name: str) -> None:
    """Raise SandboxError unless this can be a sandbox's name."""
    if not _NAME.fullmatch(name):
        raise SandboxError(
            f"{name!r} is no name for a sandbox: expected at most 32 lower-case letters, digits "
            "and hyphens, neither the first nor the last a hyphen"
        )


def lock_folder(folder: Path, owner: ExitStack) -> None:
    """Mark a folder as alive until `owner` closes; SandboxError if another process did."""
    file = owner.enter_context((folder / LOCK_NAME).open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SandboxError(f"{folder} is in use by another sandbox") from None


def remove_stale_folders(base: Path) -> list[Path]:
    """Remove the folders whose sandbox is gone and return their paths."""
    stale = [folder for folder in _list_folders(base) if not is_alive(folder)]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return stale


def is_alive(folder: Path) -> bool:
    """True if a process holds the folder's lock."""
    try:
        with (folder / LOCK_NAME).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_state(folder: Path, state: SandboxState) -> None:
    """Write the state so that readers see the old one or the new one, whole."""
    scratch = folder / f".{STATE_NAME}"
    scratch.write_text(json.dumps(asdict(state)))
    scratch.replace(folder / STATE_NAME)


def list_running(base: Path) -> list[SandboxState]:
    """Return the state of each sandbox that lives, ready or not, the newest first."""
    states = []
    for folder in _list_folders(base):
        if not is_alive(folder):
            continue
        try:
            content = json.loads((folder / STATE_NAME).read_text())
        except OSError:
            # Born this very moment, or about to be gone.
            continue
        states.append(SandboxState(**content))
    return sorted(states, key=lambda state: state.started_at, reverse=True)


def find_log(base: Path, name: str) -> Path:
    """Return where a sandbox that runs in the background writes; it may not exist.

    The log lies beside the folder, to tell why the sandbox ended when the folder is gone.
    """
    return base / f"{name}.log"


def sweep(base: Path) -> list[str]:
    """Remove what dead sandboxes have left, and return their names."""
    with _hold_base(base):
        names = {folder.name for folder in remove_stale_folders(base)}
        for log in base.glob("*.log"):
            if not is_alive(base / log.stem):
                names.add(log.stem)
                log.unlink(missing_ok=True)
    return sorted(names)


def _list_folders(base: Path) -> list[Path]:
    return [path for path in sorted(base.iterdir()) if path.is_dir() and path.name[0] != "."]


@contextmanager
def _hold_base(base: Path) -> Iterator[None]:
    with (base / ".lock").open("a") as file:
        # Held by others for no longer than removing some folders takes.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
