"""What users wrote on their pods reaches the terminal of whoever looks, and must not act there."""

from __future__ import annotations

import io
import json

import pytest

from berthmaster.cli import output
from berthmaster.cli.output import Report, Table

EVIL = "a\x1b]0;owned\x07\x9b2Jz"
SHOWN = r"a\x1b]0;owned\x07\x9b2Jz"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_report() -> Report:
    return Report(
        sentence=f"{EVIL} waits.",
        data={"pod": EVIL},
        facts=(("Message", EVIL),),
        tables=(Table(title="Nodes", headers=("NODE",), rows=((EVIL,),)),),
        steps=((EVIL, "do"),),
        remarks=(EVIL,),
    )


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_control_characters_are_shown_and_not_sent(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    # Rich has its own escapes for colours; without them none is left.
    monkeypatch.setenv("TERM", "dumb")

    output.show(make_report(), as_json=False, out=stream)

    text = stream.getvalue()
    assert not set(text) & set("\x1b\x07\x9b")
    assert text.count(SHOWN) == 5


def test_json_escapes_them_as_json_does() -> None:
    stream = io.StringIO()

    output.show(make_report(), as_json=True, out=stream)

    assert not set(stream.getvalue()) & set("\x1b\x07\x9b")
    assert json.loads(stream.getvalue()) == {"pod": EVIL}
