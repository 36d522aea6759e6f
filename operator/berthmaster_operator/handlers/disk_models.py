"""The ConfigMap `normalization-func`: which model function belongs to which vendor and model.

Kopf would watch every ConfigMap of the cluster for this one, so an informer with a field selector
does it. Entries that cannot be used are told in Events on the ConfigMap.
"""

from __future__ import annotations

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.sightings import ModelsSeen, decode_models


class ModelsHandler:
    """Hand the models on."""

    def __init__(self, fleet: Fleet, events: EventRecorder, metrics: Metrics) -> None:
        self._fleet = fleet
        self._events = events
        self._metrics = metrics

    def take(self, kind: EventKind, seen: ModelsSeen) -> None:
        """Hand the ConfigMap on as the informer shows it."""
        self._fleet.see_models(None if kind is EventKind.DELETED else seen)
        problems = self._fleet.models.problems
        self._metrics.model_problems.set(len(problems))
        ref = ObjectRef(
            api_version="v1",
            kind="ConfigMap",
            name=seen.name,
            namespace=seen.namespace,
            uid=seen.uid,
        )
        for problem in problems[:10]:
            note = f"{problem}; correct the entry, it is read again at once"
            self._events.record(ref, "BadDiskModel", note, action="ReadModels", type_="Warning")

    def informer(self, client: Client, namespace: str) -> Informer[ModelsSeen]:
        """Return the informer of the one ConfigMap."""
        return Informer(
            client,
            f"/api/v1/namespaces/{namespace}/configmaps",
            decode=decode_models,
            key=lambda seen: seen.uid,
            query={"fieldSelector": f"{names.NODE_NAME_FIELD}={names.DISK_MODELS_CONFIG_MAP}"},
            on_event=self.take,
        )
