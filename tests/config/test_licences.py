"""The list of licences is that of the lock, and only with licences that may be shipped."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LOCK = PROJECT / "requirements-runtime.lock"


def test_the_list_is_what_the_lock_gives(tmp_path: Path) -> None:
    made = tmp_path / "list.md"
    command = ["make", "--silent", "licences", f"LICENCES={made}"]
    subprocess.run(command, cwd=PROJECT, check=True)

    assert made.read_text() == (PROJECT / "THIRD_PARTY.md").read_text(), "run make licences"
    for name in re.findall(r"^([a-z0-9.-]+)==", LOCK.read_text(), re.MULTILINE):
        assert f"| {name} |" in made.read_text()


def test_a_package_whose_licence_cannot_be_told_ends_it(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("berthmaster-unknown==1.0\n")
    script = PROJECT / ".ci" / "licences.py"

    done = subprocess.run(
        [sys.executable, script, tmp_path / "lock", tmp_path / "list"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "licences: berthmaster-unknown is in the lock and not installed" in done.stderr
    assert not (tmp_path / "list").exists()
