"""Disk models by CEL expression, worked out into tables when they are loaded.

    32768.0 / double(blockSize)                         one ratio for both directions
    direction == "read" ? (blockSize < 4096 ? 15.0 : 6.0) : 5.0

`blockSize` is an int in bytes, `direction` is "read" or "write"; the result is the ratio, an int, uint
or double. CEL has no loops, no clock and no way out. The library is the CEL project's own: it checks
the types before it runs anything, and it bounds depth (32) and iterations (10,000): an evaluation takes
some microseconds, one made to be dear 14 ms. There are twelve per expression, and the event loop gets its
turn between them.
"""

from __future__ import annotations

import asyncio
import math
from functools import cache

from cel_expr_python import cel

from berthmaster.api.inventory import DiskModel
from berthmaster.concerns.diskio.block_sizes import BLOCK_SIZES

LONGEST_CHARS = 1024
LOWEST_RATIO, HIGHEST_RATIO = 0.001, 1_000_000

_DIRECTIONS = ("read", "write")
_NUMBERS = (cel.Type.INT, cel.Type.UINT, cel.Type.DOUBLE, cel.Type.DYN)
_SHOWN_CHARS = 200


class ExpressionError(ValueError):
    """An expression gives no table; the message says where, what was found and expected."""


async def tabulate(expression: str) -> DiskModel:
    """Return the ratio tables of an expression.

    Raises:
        ExpressionError: too long, not CEL, no number, or a number out of bounds.
    """
    if len(expression) > LONGEST_CHARS:
        found = len(expression)
        raise ExpressionError(f"expression: {found} characters, at most {LONGEST_CHARS} are read")
    program = _compile(expression)
    tables: dict[str, dict[str, str]] = {direction: {} for direction in _DIRECTIONS}
    for direction in _DIRECTIONS:
        for name, size in BLOCK_SIZES.items():
            await asyncio.sleep(0)
            tables[direction][name] = _evaluate(program, direction, size)
    return DiskModel(read_ratio=tables["read"], write_ratio=tables["write"])


@cache
def _environment() -> cel.Env:
    return cel.NewEnv(variables={"blockSize": cel.Type.INT, "direction": cel.Type.STRING})


def _compile(expression: str) -> cel.Expression:
    try:
        program = _environment().compile(expression)
    # The library raises whatever its parser thinks of.
    except Exception as error:
        raise ExpressionError(f"expression: {_cut(str(error))}") from error
    if program.return_type() not in _NUMBERS:
        found = program.return_type().name()
        raise ExpressionError(f"expression: gives {found}, expected a number")
    return program


def _evaluate(program: cel.Expression, direction: str, size: int) -> str:
    at = f'expression with blockSize {size} and direction "{direction}"'
    try:
        result = program.eval(data={"blockSize": size, "direction": direction})
        value = result.plain_value()
    except Exception as error:
        raise ExpressionError(f"{at}: {_cut(str(error))}") from error
    if result.type() == cel.Type.ERROR:
        raise ExpressionError(f"{at}: {_cut(str(value))}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"{at}: gives {_cut(str(value))}, expected a number")
    if not math.isfinite(value) or not LOWEST_RATIO <= value <= HIGHEST_RATIO:
        raise ExpressionError(
            f"{at}: gives {value}, expected a ratio in {LOWEST_RATIO}..{HIGHEST_RATIO}"
        )
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _cut(text: str) -> str:
    """Return the first line of a message, short."""
    line = text.partition("\n")[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ")
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."
