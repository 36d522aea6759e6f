"""The shape of a concern: what placement asks of disk IO, NUMA, XPU, dataset, power, resources.

A concern is a set of pure functions over its own columns. The node table owns the rows: it tells
the concern what a node has (`write_node`) and the ledger tells it who uses it (`charge`,
`release`). From that the columns always hold what is free now, and a decision only compares
arrays: `filter` says why each row is refused, `score` how good it is, `allocate` what the chosen
row gives. Nothing here knows the time, the API server, or another concern.

    vendors' objects --inventory--> NodeInventory --write_node--> columns --filter, score--> row
    pod + policy     --request----> what is asked                          --allocate------> allocation
    pod (+ annotation) --usage----> what it holds  --charge, release--> columns

Most concerns judge a row by the row. One that does not, because other rows or objects that are no nodes
matter to it, is a `WideConcern`: it is told of those objects, and answers for all rows at once. One whose
score means something only beside those of other rows, such as watts, is a `RelativeConcern`.

Codes are small positive integers private to the concern, 0 means feasible. Text is made from them
when somebody reads it (`explain`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from berthmaster.api.datasets import CacheSighting, Dataset
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Namespace, Node, Pod, ReplicaSet
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.storage import (
    CSINode,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
)

Rows = NDArray[np.intp]
Amounts = NDArray[np.float64]
Codes = NDArray[np.uint8]
Scores = NDArray[np.float64]

# What concerns gave, by their names.
Allocated = Mapping[str, Mapping[str, Any]]

# What a wide concern is told of, beside nodes and pods; of pods only those that are finished, which hold
# nothing any more, and those that are gone.
Surrounding = (
    Namespace
    | PersistentVolume
    | PersistentVolumeClaim
    | StorageClass
    | CSINode
    | ReplicaSet
    | Pod
    | Dataset
    | CacheSighting
)

RequestT = TypeVar("RequestT", bound=Hashable)
UsageT = TypeVar("UsageT", bound=Hashable)
ColumnsT = TypeVar("ColumnsT", bound="Columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault in what a user wrote: where, what was found, what was expected."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class InvalidRequestError(Exception):
    """A pod asks for something that cannot be understood; carries every fault found.

    `request` is the request in a form that its concern refuses with these words, for a decision
    that has to say why rather than fail.
    """

    def __init__(self, *problems: Problem, request: Hashable = None) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems
        self.request = request


# One for each pod of the cluster: untracked, for the garbage collector's sake.
class Holder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who holds something on a node: a pod, or a decision whose pod was not seen yet.

    `key` is the pod's uid, or the decision id while there is none. `started_s` is the pod's start in
    seconds since the epoch by the API server's clock, for concerns whose reports carry a time.
    """

    key: str
    namespace: str
    name: str
    started_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where and when an answer was given: nanoseconds since the epoch, later for each later answer."""

    node: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a node is refused: `text` in upstream's words, `group` without the node's name.

    Nodes refused for the same `group` are counted together. `detail` says what is missing.
    """

    text: str
    group: str
    detail: str = ""

    @property
    def sentence(self) -> str:
        """Return the words with what is missing, the node not named where that is told beside it."""
        return f"{self.group}: {self.detail}" if self.detail else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTerms:
    """Node affinity as Kubernetes has it in JSON: terms of which one must hold, and weighted ones."""

    required: tuple[Mapping[str, Any], ...] = ()
    preferred: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What becomes of a pod while it is created: whether it is admitted, why, and what is added to it.

    `code` is the HTTP status of a refusal; `operations` are JSON Patch operations `add`.
    """

    is_allowed: bool = True
    code: int = 0
    message: str = ""
    operations: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How full rows are of one resource: arrays side by side, a value per row that was asked about.

    Amounts are in `unit`, a base unit as Prometheus names them. `used` may be more than `capacity`: the
    line was crossed by somebody else, or the capacity fell.
    """

    resource: str
    unit: str
    capacity: Amounts
    used: Amounts


class Columns(Protocol):
    """A concern's arrays; row = node. All methods act on one row and are O(what is on that row)."""

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1, keeping what is there."""

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over what the node has; what is charged there stays charged."""

    def clear(self, row: int) -> None:
        """Forget the node and everything charged to it."""


class Concern(Protocol[ColumnsT, RequestT, UsageT]):
    """What each concern package's `CONCERN` provides. Requests and usages are hashable values."""

    @property
    def name(self) -> str:
        """Return the concern's name: its key in policies, allocations and metrics."""

    def weight(self, policy: PlacementPolicySpec) -> int:
        """Return the concern's share in the total score; 0 means that it only breaks ties."""

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> RequestT | None:
        """Return what the pod asks of this concern; None costs nothing and refuses nothing.

        Raises:
            InvalidRequestError: the pod asks for something that cannot be understood.
        """

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> UsageT | None:
        """Return what a pod holds on its node, whoever placed it; never raises.

        `allocated` is what this concern's `allocate` gave, where the pod was placed by us.
        """

    def new_columns(self) -> ColumnsT:
        """Return empty columns."""

    def configure(self, columns: ColumnsT, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take over what all policies of the cluster say together; rows may change by it."""

    def charge(self, columns: ColumnsT, row: int, holder: Holder, usage: UsageT) -> None:
        """Let the holder use the row."""

    def release(self, columns: ColumnsT, row: int, holder: Holder, usage: UsageT) -> None:
        """Undo `charge` of the same holder and usage; a second release does nothing."""

    def rename(
        self, columns: ColumnsT, row: int, before: Holder, after: Holder, usage: UsageT
    ) -> bool:
        """Let a pod have what its answer has; return whether the row is another by it.

        What it comes to is that of a release and a charge.
        """

    def filter(self, columns: ColumnsT, rows: Rows, request: RequestT) -> Codes:
        """Return a code per given row: 0 feasible, else why not."""

    def score(self, columns: ColumnsT, rows: Rows, request: RequestT) -> Scores:
        """Return 0..100 per given row; rows that `filter` refuses may hold anything finite."""

    def allocate(
        self, columns: ColumnsT, row: int, request: RequestT, beside: Allocated
    ) -> dict[str, Any]:
        """Return what the row gives, as JSON data that `usage` understands.

        `beside` is what the concerns before this one gave of the same row, by name: to choose, of what
        is as good for this concern, what lies nearer to it.
        """

    def annotations(
        self, columns: ColumnsT, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        """Return what is written on the pod, beside the allocation, for programs that read only that.

        `allocated` is what this concern's `allocate` gave.
        """

    def explain(
        self, columns: ColumnsT, row: int, code: int, request: RequestT, node: str
    ) -> Reason:
        """Return the words for a code that `filter` gave for this row."""


@runtime_checkable
class WideConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern for which more than the row matters: other rows, or objects that are no nodes.

    What a row says by itself stays in `filter`, whose results are remembered for a `local` request until
    the row changes. What else matters is asked once per decision, over all rows, and never remembered.
    """

    def observe(self, columns: ColumnsT, found: Surrounding, *, is_gone: bool = False) -> None:
        """Take over an object's state, or its end; a repeated state changes nothing."""

    def news(self, columns: ColumnsT) -> int:
        """Return a number that moves when `across` may refuse fewer rows than before.

        Room that comes free on a row need not move it: waiting pods are tried then anyway.
        """

    def resolve(self, columns: ColumnsT, request: RequestT) -> RequestT:
        """Return the request with what it means now; resolving anew is resolving the first time.

        Requests that are equal then get equal answers. For what must not tell pods apart that ask for
        the same, such as all their labels, while others object to some of them; and for what `score`
        takes from other rows: as a value in the request it makes remembered results its own.
        """

    def local(self, request: RequestT) -> RequestT | None:
        """Return the part that `filter` and `score` read, for which their results are remembered.

        Of a resolved request. None: as things are now it asks nothing, and counts nothing.
        """

    def across(self, columns: ColumnsT, request: RequestT) -> Codes | None:
        """Return a code for every row of the columns, 0 where nothing refuses; None if nothing is asked.

        Codes are those of `filter`, and `explain` knows them too.
        """


@runtime_checkable
class RelativeConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern whose score says how a row stands among those that fit.

    Its `score` returns what a row says by itself, finite and in a unit of its own, such as watts; that is
    remembered until the row changes. What it comes to is asked for once per decision.
    """

    @property
    def only_scores(self) -> bool:
        """Return whether nothing that pods hold makes it refuse a row; then what they hold frees nothing."""

    def normalize(self, columns: ColumnsT, values: Scores, request: RequestT) -> Scores:
        """Return 0..100 for each of the values that `score` gave to the rows that fit.

        `values` must stay as they are; their order means nothing. A wide concern gets the local request.
        """


@runtime_checkable
class CountingConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern that refuses rows for lack of something counted, whatever else it looks at.

    Told by these numbers alone, many requests can be compared with a row at once.
    """

    def needs(self, request: RequestT) -> Mapping[str, int]:
        """Return amounts above 0 by name; `filter` refuses a row that has less free of any of them."""

    def free(self, columns: ColumnsT, row: int) -> Mapping[str, int]:
        """Return what a row has free, by the same names; what is not named is not there."""


@runtime_checkable
class AdvisingConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern that has something to say to the owner of a pod that opted in, whatever is decided."""

    def advise(self, columns: ColumnsT, pod: Pod, policy: PlacementPolicySpec) -> Sequence[str]:
        """Return warnings of about 120 characters, the most important first; none for most pods.

        Asked while the pod is being created, so it has to be quick; never raises.
        """


@runtime_checkable
class PinningConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern that gives things which the node hands out by the answer alone, such as devices."""

    def must_pin(self, pod: Pod, policy: PlacementPolicySpec) -> bool:
        """Return whether the pod asks for such a thing: elsewhere than decided it would get none.

        Asked of pods of mode `preferred`, which are then `required`; never raises.
        """


@runtime_checkable
class AffineConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern that can tell kube-scheduler by node affinity what it wants, for pods of mode `preferred`."""

    def affinity(
        self, columns: ColumnsT, row: int, request: RequestT, share: Fraction
    ) -> NodeTerms | None:
        """Return its terms for a pod whose best row is `row`; None if it has nothing to say.

        kube-scheduler adds up the weights that match a node: for each node they come to the score that
        this concern gives it, times `share` of 0..1, rounded.
        """


@runtime_checkable
class PreparingConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern that adds to a pod what it will need, before anything is decided about it."""

    def prepare(
        self,
        columns: ColumnsT,
        read: Callable[[], Mapping[str, Any]],
        pod: Pod,
        policy: PlacementPolicySpec,
    ) -> Preparation | None:
        """Return what becomes of a pod that opted in; `read` gives it as it was sent. None: nothing."""

    def lacks(self, columns: ColumnsT, pod: Pod, policy: PlacementPolicySpec) -> str:
        """Return what a stored pod lacks because nobody prepared it, empty if nothing; it cannot be added."""


@runtime_checkable
class MeasuredConcern(Concern[ColumnsT, RequestT, UsageT], Protocol[ColumnsT, RequestT, UsageT]):
    """A concern whose books can be shown as amounts: for metrics, reports and the page of the harbour."""

    def fills(self, columns: ColumnsT, rows: Rows) -> Sequence[Fill]:
        """Return how full these rows are, of each resource in the same order, whatever rows are asked."""

    def amounts(
        self, columns: ColumnsT, row: int, holder: Holder, usage: UsageT
    ) -> Mapping[str, float]:
        """Return what a holder takes of a row, by resource and in the units of `fills`."""


AnyConcern = Concern[Any, Any, Any]
AnyMeasuredConcern = MeasuredConcern[Any, Any, Any]
AnyPreparingConcern = PreparingConcern[Any, Any, Any]
AnyAffineConcern = AffineConcern[Any, Any, Any]
AnyWideConcern = WideConcern[Any, Any, Any]
AnyRelativeConcern = RelativeConcern[Any, Any, Any]
AnyPinningConcern = PinningConcern[Any, Any, Any]
AnyCountingConcern = CountingConcern[Any, Any, Any]
AnyAdvisingConcern = AdvisingConcern[Any, Any, Any]
