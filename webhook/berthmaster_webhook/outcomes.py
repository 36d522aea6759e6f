"""What came of a request or of a turn in the queue; the words of metrics and log lines."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """One word for each way in which an answer can end."""

    PLACED = "placed"
    # The answer of a decision under way, given once more.
    REPEATED = "repeated"
    OBSERVED = "observed"
    DRY_RUN = "dry_run"
    UNGATED = "ungated"
    # Nothing to do: another kind or operation, exempt, off, or our own output.
    UNTOUCHED = "untouched"
    INVALID = "invalid"
    MALFORMED = "malformed"
    # From here on the gate stays and the pod is decided later.
    WAITS_INVALID = "waits_invalid"
    NOWHERE = "nowhere"
    FOREIGN_GATE = "foreign_gate"
    WINDOW_FULL = "window_full"
    # A pod that waits has an older right to the node.
    BEHIND = "behind"
    OWNER_PAUSED = "owner_paused"
    NAME_KNOWN = "name_known"
    NOT_SYNCED = "not_synced"
    NOT_LEADER = "not_leader"
    TAKING_OVER = "taking_over"
    WRONG_EPOCH = "wrong_epoch"
    WATCH_SILENT = "watch_silent"
    STOPPING = "stopping"
