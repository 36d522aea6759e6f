"""What the doctor knows of a cluster: objects as raw JSON, or the reason why they could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from berthmaster.api import names
from berthmaster.api.datasets import Dataset, DatasetInternal
from berthmaster.api.objects import Pod
from berthmaster.api.topology import NodeResourceTopology

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """A fact that could not be read, and why: `needs get secrets in berthmaster-system`."""

    why: str


# None: the API server says that it is not there (or, of a list, that the kind is not).
Found = JsonObject | None | Unread
Listed = tuple[JsonObject, ...] | None | Unread
Pods = tuple[Pod, ...] | None | Unread
Datasets = tuple[Dataset | DatasetInternal, ...] | None | Unread


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that a service account of ours must be allowed to do."""

    account: str
    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        name = f"/{self.name}" if self.name else ""
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{group}{name}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySeen:
    """A NodeResourceTopology, and the field managers that write what updaters write."""

    topology: NodeResourceTopology
    writers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What the API server made of a pod that asks, in a dry run."""

    is_gated: bool
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that was asked of one cluster, at about one moment."""

    now: datetime
    cli_version: str
    server_version: str
    system_namespace: str
    # By name.
    definitions: Mapping[str, Found] = field(default_factory=dict)
    # The kinds of admissionregistration.k8s.io/v1, plural.
    admission_kinds: frozenset[str] | Unread = frozenset()
    # By plural and name.
    admission_objects: Mapping[tuple[str, str], Found] = field(default_factory=dict)
    policy_bindings: Listed = ()
    mutating_webhooks: Listed = ()
    validating_webhooks: Listed = ()
    tls_secret: Found = None
    service: Found = None
    endpoint_slices: Listed = ()
    # By name: the Lease, and whether it was renewed while we looked (None: no need to wait).
    leases: Mapping[str, Found] = field(default_factory=dict)
    renewed: Mapping[str, bool] = field(default_factory=dict)
    deployments: Mapping[str, Found] = field(default_factory=dict)
    program_pods: Listed = ()
    policies: Listed = ()
    namespaces: Listed = ()
    nodes: Listed = ()
    inventories: Listed = ()
    devices: Listed = ()
    topologies: tuple[TopologySeen, ...] | Unread | None = ()
    # Dataset and DatasetInternal, by path.
    datasets: Mapping[str, Datasets] = field(default_factory=dict)
    pending_pods: Pods = ()
    running_pods: Pods = ()
    workloads: Mapping[str, Listed] = field(default_factory=dict)
    rights: Mapping[Right, bool | Unread] = field(default_factory=dict)
    tried: Tried | Unread = Unread("no dry run was made")
    # What was not looked at in full.
    cuts: tuple[str, ...] = ()

    @property
    def webhook_configuration(self) -> Found:
        """Return our webhook configuration."""
        return self.admission_objects.get(
            ("mutatingwebhookconfigurations", names.WEBHOOK_CONFIGURATION)
        )


def metadata(found: JsonObject) -> JsonObject:
    """Return an object's metadata, empty if it has none."""
    return mapping(found.get("metadata"))


def name_of(found: JsonObject) -> str:
    """Return an object's name."""
    return str(metadata(found).get("name", ""))


def annotations_of(found: JsonObject) -> JsonObject:
    """Return an object's annotations."""
    return mapping(metadata(found).get("annotations"))


def mapping(value: object) -> JsonObject:
    """Return a JSON object, an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def dig(found: object, *path: str) -> Any:
    """Return what lies at a path, None where something is missing."""
    for key in path:
        found = mapping(found).get(key)
    return found


def items(found: JsonObject, *path: str) -> list[JsonObject]:
    """Return the objects in a list at a path, none where it is missing."""
    value = dig(found, *path)
    return [it for it in value if isinstance(it, Mapping)] if isinstance(value, list) else []


def read_time(text: object) -> datetime | None:
    """Return a timestamp of Kubernetes, None if it is none."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
