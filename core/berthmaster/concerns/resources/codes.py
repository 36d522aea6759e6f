"""The codes of the refusals, in kube-scheduler's order of looking."""

from __future__ import annotations

CORDONED, TAINTED, AFFINITY, PORTS, INVALID = 1, 2, 3, 4, 5

# These depend on more than the row.
CLAIM = 6
ONCE_POD = 7
VOLUME_LIMIT = 8
VOLUME_AFFINITY = 9
VOLUME_UNBOUND = 10
VOLUME_ZONE = 11
SPREAD_LABEL = 12
SPREAD = 13
ATTRACTED = 14
REPELLED = 15
OBJECTED = 16

# A resource's code is this and its slot; slots beyond the last code of its own, and resources that
# no node advertises, share OTHER_RESOURCE.
FIRST_RESOURCE = 32
OTHER_RESOURCE = 255


def resource_code(slot: int | None) -> int:
    """Return the code for a resource's slot, None standing for one that nobody advertises."""
    if slot is None:
        return OTHER_RESOURCE
    return min(FIRST_RESOURCE + slot, OTHER_RESOURCE)
