"""Keys as segments of JSON pointers (RFC 6901), by which JSON Patch names what it changes."""

from __future__ import annotations


def escape(key: str) -> str:
    """Return a key as one segment of a JSON pointer: `a/b~c` is `a~1b~0c`."""
    return key.replace("~", "~0").replace("/", "~1")


def unescape(segment: str) -> str:
    """Return the key that a segment stands for."""
    return segment.replace("~1", "/").replace("~0", "~")
