"""What the owner of a pod should know of its answer, told once by Events on the pod, when it is stored.

That `bind` became `required`; and which datasets it names that it was placed without, where somebody has to do
something about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berthmaster.api.objects import Pod
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns.dataset.inventory import DatasetState
from berthmaster_webhook.answers import Answers, Note
from berthmaster_webhook.reporting import ref_of

AS_REQUIRED = "PlacedAsRequired"
WITHOUT_DATASET = "PlacedWithoutDataset"
# Others are still on their way, or say in the Dataset itself what is wrong.
_TOLD = frozenset({DatasetState.MISSING, DatasetState.STALE, DatasetState.CACHING_DISABLED})


class PodNotes:
    """Tells the owners of pods, once these are stored, what they should know."""

    def __init__(self, answers: Answers, events: EventRecorder) -> None:
        self._answers = answers
        self._events = events

    def take_pod(self, kind: EventKind, pod: Pod) -> None:
        """Take over a pod that the watch or a list shows."""
        for note in self._answers.take_notes(pod):
            if kind is not EventKind.DELETED:
                self._events.record(
                    ref_of(pod),
                    note.reason,
                    note.text,
                    action="Placing",
                    type_="Warning" if note.is_warning else "Normal",
                )


def notes_of(note: str, allocated: Mapping[str, Mapping[str, Any]]) -> tuple[Note, ...]:
    """Return what there is to tell of an answer; `note` is why `bind` became `required`."""
    found = [Note(reason=AS_REQUIRED, text=note)] if note else []
    states = allocated.get("dataset", {}).get("notUsable", {})
    told = [f"{name} is {state}" for name, state in states.items() if state in _TOLD]
    if told:
        text = f"placed as if it did not name these datasets: {', '.join(told)}"
        found.append(Note(reason=WITHOUT_DATASET, text=text, is_warning=True))
    return tuple(found)
