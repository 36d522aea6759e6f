"""A folder is alive as long as its process is, and stale ones are swept."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from berthmaster_sandbox.errors import SandboxError
from berthmaster_sandbox.folders import (
    SandboxState,
    create_folder,
    find_base,
    is_alive,
    list_running,
    write_state,
)


def make_state(name: str, started_at: float) -> SandboxState:
    return SandboxState(
        name=name, pid=1, server="", kubeconfig="", binaries="", started_at=started_at
    )


def test_folder_is_alive_until_its_owner_ends(tmp_path: Path) -> None:
    with ExitStack() as owner:
        folder = create_folder(tmp_path, owner)
        assert is_alive(folder)

    assert not is_alive(folder)


def test_stale_folder_goes_at_the_next_start(tmp_path: Path) -> None:
    with ExitStack() as owner:
        stale = create_folder(tmp_path, owner, name="old")
        (stale / "data").write_text("left behind")

    with ExitStack() as owner:
        create_folder(tmp_path, owner, name="new")
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["new"]


def test_living_folder_survives_another_start(tmp_path: Path) -> None:
    with ExitStack() as owner:
        first = create_folder(tmp_path, owner)
        create_folder(tmp_path, owner)
        assert is_alive(first)


def test_name_in_use_is_refused(tmp_path: Path) -> None:
    with ExitStack() as owner:
        create_folder(tmp_path, owner, name="mine")
        with pytest.raises(SandboxError, match="mine is running already"):
            create_folder(tmp_path, owner, name="mine")


@pytest.mark.parametrize("name", ["../up", "", "A", "-a", ".slots"])
def test_malformed_name_is_refused(tmp_path: Path, name: str) -> None:
    with ExitStack() as owner, pytest.raises(SandboxError, match="no name for a sandbox"):
        create_folder(tmp_path, owner, name=name)


def test_running_sandboxes_are_listed_newest_first(tmp_path: Path) -> None:
    with ExitStack() as owner:
        for name, started_at in (("a", 1.0), ("b", 2.0)):
            write_state(create_folder(tmp_path, owner, name=name), make_state(name, started_at))
        create_folder(tmp_path, owner, name="booting")

        assert [state.name for state in list_running(tmp_path)] == ["b", "a"]


def test_base_open_to_others_is_refused(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    find_base(environment).chmod(0o777)

    with pytest.raises(SandboxError, match="closed to others"):
        find_base(environment)
