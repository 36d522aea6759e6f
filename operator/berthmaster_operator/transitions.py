"""Since when conditions are as they are: each keeps its time until its status changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from berthmaster.api.schema import StatusCondition


def keep_times(
    wanted: Iterable[StatusCondition], before: Iterable[StatusCondition], *, now: str
) -> Iterator[StatusCondition]:
    """Yield the conditions with the times of those before them, or with `now` where something turned."""
    known = {it.type: it for it in before}
    for condition in wanted:
        old = known.get(condition.type)
        is_same = old is not None and old.status == condition.status and old.last_transition_time
        since = old.last_transition_time if old is not None and is_same else now
        yield condition.model_copy(update={"last_transition_time": since})
