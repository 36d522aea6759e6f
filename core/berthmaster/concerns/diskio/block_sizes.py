"""Block sizes: the six that models are profiled at, and what other spellings and sizes count as."""

from __future__ import annotations

import re

from berthmaster.api.settings.diskio import BlockSizePolicy

BLOCK_SIZES: dict[str, int] = {
    "512": 512,
    "1k": 1024,
    "4k": 4096,
    "8k": 8192,
    "16k": 16384,
    "32k": 32768,
}
_SPELLING = re.compile(r"(?P<number>[0-9]{1,9})(?:(?P<unit>[kKmM])i?)?B?")
_UNITS = {None: 1, "k": 2**10, "K": 2**10, "m": 2**20, "M": 2**20}


def find_block_size(text: str, policy: BlockSizePolicy) -> str | None:
    """Return the profiled size that a text stands for, None if it stands for none.

    `Nearest` takes the next lower profiled size, since smaller accesses cost more, and the smallest
    for what is below it: `64k` is `32k`, `6Ki` is `4k`, `100` is `512`.
    """
    if text in BLOCK_SIZES:
        return text
    match = _SPELLING.fullmatch(text) if policy is BlockSizePolicy.NEAREST else None
    size = int(match["number"]) * _UNITS[match["unit"]] if match is not None else 0
    if size == 0:
        return None
    fitting = [name for name, bytes_ in BLOCK_SIZES.items() if bytes_ <= size]
    return fitting[-1] if fitting else next(iter(BLOCK_SIZES))


def describe_expected(policy: BlockSizePolicy) -> str:
    """Return what a block size may be, for a message."""
    sizes = ", ".join(BLOCK_SIZES)
    if policy is BlockSizePolicy.NEAREST:
        return f"expected a size such as one of {sizes}, 64Ki or 4096B"
    return f"expected one of {sizes}"
