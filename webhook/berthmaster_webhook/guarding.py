"""The boundary around listeners and single objects: what one trips over must end nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def guarded(act: Callable[[], object], failure: str, **fields: object) -> bool:
    """Do something and return whether it was done; if not, `failure` and the fields are logged."""
    try:
        act()
    # A defect of ours, or of a concern's code: it stands in the log with its traceback.
    except Exception:
        logger.exception(failure, extra=fields)
        return False
    return True
