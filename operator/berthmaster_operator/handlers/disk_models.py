"""The ConfigMap `normalization-func`: which model function belongs to which vendor and model.

Kopf would watch every ConfigMap of the cluster for this one, so an informer with a field selector
does it.
"""

from __future__ import annotations

from collections.abc import Callable

from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_operator.model_loading import KEY, ModelLoader
from berthmaster_operator.sightings import ModelsSeen, decode_models


class ModelsHandler:
    """Hand the ConfigMap on, and have it loaded by `on_change`."""

    def __init__(self, loader: ModelLoader, on_change: Callable[[str], None]) -> None:
        self._loader = loader
        self._on_change = on_change

    def take(self, kind: EventKind, seen: ModelsSeen) -> None:
        """Hand the ConfigMap on as the informer shows it."""
        self._loader.see(None if kind is EventKind.DELETED else seen)
        self._on_change(KEY)

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
