"""Which part of a log is asked for."""

from __future__ import annotations

import pytest

from berthmaster_sandbox.kubelet.serving import tail_offset


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"a\n", 0, b""),
        (b"", 3, b""),
        (b"\n\n", 1, b"\n"),
    ],
)
def test_tail_begins_at_a_line(content: bytes, lines: int, expected: bytes) -> None:
    assert content[tail_offset(content, lines) :] == expected
