"""The exceptions of the sandbox, one per different reaction of the caller.

SandboxError                 anything below; its text is meant for the user
├── BinariesError            no Kubernetes to run: a folder is wrong, Go is missing, a build failed
├── BootError                a process died or did not become ready before its deadline
└── NoRoomError              every slot of ports and loopback blocks is taken
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of everything that the sandbox raises on purpose."""


class BinariesError(SandboxError):
    """Say that an executable can neither be found nor built, and what would help."""


class BootError(SandboxError):
    """Say which process did not come up, with the end of its log."""


class NoRoomError(SandboxError):
    """Say that no free slot of ports and loopback addresses is left on this machine."""
