"""What a command cannot answer."""

from __future__ import annotations


class CommandError(Exception):
    """The question cannot be answered; the message is for the user."""
