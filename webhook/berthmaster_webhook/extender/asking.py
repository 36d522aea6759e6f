"""What a pod asks of accelerators, and what is found for it on nodes.

A node that is refused only because its device plugin still has another such pod to serve is one that
fits: kube-scheduler tries a pod again that could not be bound within seconds, but one that fitted nowhere
only after minutes.
"""

from __future__ import annotations

from berthmaster.api.objects import Pod
from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.concerns.xpu import CONCERN, reasons
from berthmaster.concerns.xpu.request import XPURequest
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import Ask, PodRequest, split_code
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.effective import read_effective

# What no pod's end and no preemption cures.
_LASTING = frozenset(
    {
        reasons.INVALID,
        reasons.NOT_FOR_SHARES,
        reasons.UNREGISTERED,
        reasons.TOO_FEW_CARDS,
    }
)


def read_asks(tools: Tools, pod: Pod) -> PodRequest:
    """Return what a pod asks of accelerators, empty where it asks nothing.

    A faulty request is one that is refused everywhere, in the words of its fault.
    """
    policy = read_effective(tools.state, pod).policy.spec
    try:
        request = CONCERN.request(pod, policy)
    except InvalidRequestError as error:
        request = error.request if isinstance(error.request, XPURequest) else None
    if request is None:
        return ()
    names = [it.name for it in tools.state.engine.table.concerns]
    return (Ask(names.index(CONCERN.name), CONCERN.weight(policy), request),)


def is_waiting(code: int) -> bool:
    """Return whether a code says that the node will do as soon as another pod is served."""
    return split_code(code)[1] == reasons.WAITING


def is_lasting(engine: Engine, request: PodRequest, node: str, code: int) -> bool:
    """Return whether a code says what the end of other pods would not change."""
    inner = split_code(code)[1]
    if inner in _LASTING:
        return True
    asked = request[0].request
    if inner != reasons.SHORT or not isinstance(asked, XPURequest):
        return False
    xpus = engine.table.columns[CONCERN.name].xpus(engine.table.rows[node])
    return asked.devices > len(xpus)
