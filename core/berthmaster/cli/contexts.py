"""Which namespace is meant when none is given: the context's, as kubectl has it."""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes_asyncio.config import list_kube_config_contexts

from berthmaster.cluster.connections import LOADER_FAULTS

DEFAULT = "default"
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def find_namespace(kubeconfig: str | None = None, context: str | None = None) -> str:
    """Return the namespace of the context, inside a pod that of the pod, else `default`.

    A kubeconfig that cannot be read gives `default`: connecting says what is wrong with it.
    """
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    existing = [it for it in paths.split(os.pathsep) if it and Path(it).expanduser().is_file()]
    if not existing:
        return _IN_CLUSTER.read_text().strip() if _IN_CLUSTER.is_file() else DEFAULT
    try:
        contexts, current = list_kube_config_contexts(os.pathsep.join(existing))
        chosen = current if context is None else _find(contexts, context)
        namespace = chosen["context"].get("namespace") if chosen else None
    except LOADER_FAULTS:
        return DEFAULT
    return str(namespace) if namespace else DEFAULT


def _find(contexts: list[dict[str, dict[str, str]]], name: str) -> dict[str, dict[str, str]] | None:
    return next((it for it in contexts if str(it.get("name")) == name), None)
