"""Whether a pod is ours to place, and the words for one that asks in a way nobody understands.

What is here holds wherever a pod is looked at: in admission, in the queue, and for people who ask
beforehand what would become of a pod.
"""

from __future__ import annotations

from berthmaster.api import names
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.concerns.shape import InvalidRequestError, Problem

ALLOWED_MODES = ", ".join(Mode)
_SHOWN_CHARS = 60


def why_exempt(pod: Pod, own_namespace: str = names.SYSTEM_NAMESPACE) -> str:
    """Return why a pod is never placed by us, whatever it asks; empty if it may be."""
    namespace = pod.metadata.namespace
    if namespace in names.EXEMPT_NAMESPACES or namespace == own_namespace:
        return f"pods in the namespace {namespace} are exempt"
    if pod.spec.node_name:
        return f"its spec.nodeName is {pod.spec.node_name}"
    if names.MIRROR_POD in pod.annotations:
        return "static pods are exempt"
    controller = pod.metadata.controller()
    if controller is not None and controller.kind == "DaemonSet":
        return "pods of DaemonSets are exempt"
    return ""


def unknown_mode(text: str) -> InvalidRequestError:
    """Return the fault of a mode that does not exist."""
    field = f"metadata.annotations[{names.PLACEMENT}]"
    shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    return InvalidRequestError(
        Problem(field=field, message=f'unknown mode "{shown}", expected one of {ALLOWED_MODES}')
    )


def describe_refusal(pod: Pod, error: InvalidRequestError) -> str:
    """Return what the creator of a pod is told whose request cannot be understood."""
    return (
        f"{pod.key}: {error}; correct it, or set the annotation "
        f"{names.PLACEMENT}: {Mode.OFF} to create the pod without placement"
    )
