"""PlacementPolicy: white lists and freshness for the fleet, selectors for the bindings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import kopf
from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.policy import PlacementPolicy, policy_from_manifest
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.sightings import is_older

logger = logging.getLogger(__name__)

PLURAL = "placementpolicies"
PATH = f"/apis/{names.API_VERSION}/{PLURAL}"


class PolicyHandler:
    """Hand policies on; one that cannot be read leaves what it said before in force, and is told."""

    def __init__(
        self, fleet: Fleet, events: EventRecorder, on_change: Callable[[str], None]
    ) -> None:
        self._fleet = fleet
        self._events = events
        self._on_change = on_change

    def take(self, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
        """Hand one object on; never raises on odd content."""
        name, uid = (str(manifest.get("metadata", {}).get(key, "")) for key in ("name", "uid"))
        try:
            if is_gone:
                self._fleet.lose_policy(name, uid)
            elif not self._see(policy_from_manifest(manifest)):
                return
        except ValidationError as error:
            self._refuse(name, manifest, error)
            return
        self._on_change(name)

    def _see(self, policy: PlacementPolicy) -> bool:
        """Take a policy over, unless it is older than the known one, as a list's page may be."""
        known = self._fleet.policies.get(policy.name)
        if (
            known is not None
            and known.uid == policy.uid
            and is_older(policy.resource_version, known.resource_version)
        ):
            return False
        self._fleet.see_policy(policy)
        return True

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Have Kopf tell of every change."""

        async def placement_policy_changed(event: kopf.RawEvent, **_: object) -> None:
            self.take(event["object"], is_gone=event["type"] == "DELETED")

        kopf.on.event(names.GROUP, "v1alpha1", PLURAL, registry=registry)(placement_policy_changed)

    def _refuse(self, name: str, manifest: Mapping[str, Any], error: ValidationError) -> None:
        ref = ObjectRef(
            api_version=names.API_VERSION,
            kind="PlacementPolicy",
            name=name,
            uid=str(manifest.get("metadata", {}).get("uid", "")),
        )
        for fault in error.errors()[:5]:
            at = ".".join(map(str, ("spec", *fault["loc"])))
            note = f"{at}: {fault['msg']}; the policy counts as it was before, correct the field"
            self._events.record(ref, "BadField", note, action="ReadPolicy", type_="Warning")
        logger.warning("policy cannot be read", extra={"policy": name})
