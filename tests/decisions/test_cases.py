"""The decision cases of the shared folder, where it lies beside the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from berthmaster.cli.cases.judging import judge, main, read_cases

SHARED = Path(__file__).parents[3] / "shared" / "cases"
CASES = [
    pytest.param(case, id=name)
    for file in (
        "diskio.json",
        "diskio-go.json",
        "noderesourcetopology.json",
        "noderesourcetopology-go.json",
        "dataset.json",
        "dataset-go.json",
        "power.json",
        "power-go.json",
        "xpushare.json",
    )
    if (SHARED / file).exists()
    for name, case in read_cases(SHARED / file)
]


NONE = pytest.param({}, marks=pytest.mark.skip("no cases are beside the project"), id="none")


@pytest.mark.parametrize("case", CASES or [NONE])
def test_case_is_decided_as_expected(case: dict[str, Any]) -> None:
    assert judge(case) == []


def test_unknown_key_fails_its_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text('[{"name": "odd", "surprise": 1, "config": {}, "cluster": {}, "expect": {}}]')

    assert main([str(file)]) == 1

    printed = capsys.readouterr().out
    assert "unknown key(s) surprise" in printed
    assert printed.endswith("0 passed, 1 failed\n")


def test_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.json"]) == 2
    assert "no such file or folder: nowhere.json" in capsys.readouterr().err
