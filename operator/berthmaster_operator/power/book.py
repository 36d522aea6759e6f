"""What is configured and what was last read of each node's power. Pure bookkeeping on the event loop.

`see_*` and `lose_*` take what watches show, `take_*` what was read, `fail` why something was not. `jobs`
says what there is to read for a node, `question` what its model server is to be asked, and `build` makes the
power part of its inventory. Whose node may need a write is told to `on_dirty`.

A stored NodeConfig counts before one that a template makes, then the oldest, then by name. A node without
any has v1's labels, or only a PowerModel, or nothing: then nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from berthmaster.api.inventory import Power, PowerCurve, PowerLink, Reading
from berthmaster.api.power import (
    CpuUsage,
    EndpointTerm,
    LabelConfig,
    NodeConfig,
    NodeConfigTemplate,
    NodeConfigTerms,
    PowerNode,
    label_config_of,
)
from berthmaster.api.power_models import PowerModel, choose_model
from berthmaster.api.settings.power import CpuUsageFormat
from berthmaster.concerns.power.inventory import (
    FUTURE_S,
    NO_POWER,
    USAGE_STEP,
    Candidate,
    PowerInventory,
    build_power,
    fresh_readings,
)
from berthmaster.concerns.power.models import MeasuredLine, curve_of_model
from berthmaster.concerns.power.questions import (
    Question,
    UnaskableError,
    ask_by_labels,
    ask_by_term,
)
from berthmaster.concerns.power.templates import render_template
from berthmaster_operator.power.pod_usages import AssumedPod, PodUsages
from berthmaster_operator.remembering import Remembered

ObjectKey = tuple[str, str, str]

# A temperature that moved so far is asked about anew.
_CELSIUS_STEP = 0.5
# A curve is asked for again after so long, though nothing moved: the model may be another.
CURVE_AGE_S = 900.0
V1_INTERVAL_S = 900.0
# An answer of the model server older than this many intervals gives way to the next link.
_CURVE_LASTS = 3.0
_IPMI_PORT = 9290


_NO_TERM = EndpointTerm()


class Source(StrEnum):
    """What is read for a node."""

    INLET = "inlet"
    DELTA_P = "deltaP"
    IPMI = "ipmi"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to read, and how often."""

    node: str
    source: Source
    interval_s: float
    term: EndpointTerm = _NO_TERM
    # Where the term's Secret is.
    namespace: str = ""
    url: str = ""
    # Whether what the machine draws is of use, where no model server tells it.
    wants_watts: bool = False
    # Moves with the node's configuration, for what is asked anew then.
    revision: int = 0


@dataclass(slots=True, kw_only=True)
class NodePower:
    """One node. Only the book changes it."""

    node: PowerNode | None = None
    configs: dict[ObjectKey, NodeConfig] = field(default_factory=dict)
    usage: CpuUsage | None = None
    # The usage that was told of last.
    told: CpuUsage | None = None
    readings: dict[str, Reading] = field(default_factory=dict)
    line: MeasuredLine = field(default_factory=MeasuredLine)
    # Of the PowerModel; None: it has no form that gives watts.
    modelled: Remembered[PowerCurve | None] = field(default_factory=Remembered)
    # What the model server answered, to what, and when.
    curve: PowerCurve | None = None
    asked: Question | None = None
    curve_s: float = 0.0
    # What the last attempt at each source met, for people.
    problems: dict[Source, str] = field(default_factory=dict)
    revision: int = 0
    # Made from the configuration; None: to be made.
    effective: _Effective | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effective:
    """The configuration that counts for a node."""

    terms: NodeConfigTerms | None = None
    namespace: str = ""
    labels: LabelConfig | None = None
    model: PowerModel | None = None
    problems: tuple[str, ...] = ()

    @property
    def has_server(self) -> bool:
        terms = self.terms
        if terms is None:
            return self.labels is not None
        return terms.provider is not None or bool(terms.power is not None and terms.power.type)

    @property
    def is_empty(self) -> bool:
        return self.terms is None and self.labels is None and self.model is None


class CpuLoad(NamedTuple):
    """What is used of a node's CPUs, and for how many seconds that may be believed."""

    percent: float
    lasts_s: float


class PowerBook:
    """All nodes' power."""

    def __init__(
        self,
        *,
        on_dirty: Callable[[str], None] = lambda _: None,
        begins: Callable[[str, float, float], bool] = lambda _name, _after_s, _until_s: False,
    ) -> None:
        self.on_dirty = on_dirty
        # Of which nodes somebody else wants to be told the usage, too.
        self.is_watched: Callable[[str], bool] = lambda _: False
        # Whether a pod on the node began to run after the first time and until the second.
        self._begins = begins
        self.pods = PodUsages()
        self.usage_format = CpuUsageFormat.RAW
        self.stale_after_s = 90.0
        # How long it takes to read everything once, as whoever reads it finds.
        self.round_s = 0.0
        # Moves when there may be other jobs.
        self.version = 0
        self._nodes: dict[str, NodePower] = {}
        self._node_of_config: dict[ObjectKey, str] = {}
        self._templates: dict[ObjectKey, NodeConfigTemplate] = {}
        self._models: dict[str, PowerModel] = {}

    # What watches show.

    def see_node(self, node: PowerNode) -> None:
        """Take over a Node."""
        state = self._state(node.name)
        if state.node != node:
            state.node = node
            self._changed(node.name)

    def lose_node(self, name: str) -> None:
        """Forget a Node and what was read of it."""
        state = self._nodes.get(name)
        if state is None:
            return
        self.version += 1
        if state.configs:
            self._nodes[name] = NodePower(configs=state.configs)
        else:
            del self._nodes[name]

    def see_config(self, key: ObjectKey, config: NodeConfig) -> None:
        """Take over a NodeConfig; one without a node's name is as if it were not there."""
        if self._node_of_config.get(key) != config.node_name:
            self.lose_config(key)
        if config.node_name and self._state(config.node_name).configs.get(key) != config:
            self._node_of_config[key] = config.node_name
            self._nodes[config.node_name].configs[key] = config
            self._changed(config.node_name)

    def lose_config(self, key: ObjectKey, uid: str = "") -> None:
        """Forget a NodeConfig, but not the successor of the one with this uid."""
        name = self._node_of_config.get(key)
        if name is None or uid not in ("", self._nodes[name].configs[key].uid):
            return
        del self._node_of_config[key]
        self._nodes[name].configs.pop(key, None)
        self._changed(name)
        state = self._nodes[name]
        if state.node is None and not state.configs:
            # It named a node that never came, or is gone.
            del self._nodes[name]

    def see_template(self, key: ObjectKey, template: NodeConfigTemplate) -> None:
        """Take over a NodeConfigTemplate."""
        if self._templates.get(key) != template:
            self._templates[key] = template
            self._all_changed()

    def lose_template(self, key: ObjectKey, uid: str = "") -> None:
        """Forget a NodeConfigTemplate and the configurations that it makes, but not a successor's."""
        known = self._templates.get(key)
        if known is not None and uid in ("", known.uid):
            del self._templates[key]
            self._all_changed()

    def see_model(self, model: PowerModel) -> None:
        """Take over a PowerModel."""
        if self._models.get(model.name) != model:
            self._models[model.name] = model
            self._all_changed()

    def lose_model(self, name: str, uid: str = "") -> None:
        """Forget a PowerModel, but not the successor of the one with this uid."""
        known = self._models.get(name)
        if known is not None and uid in ("", known.uid):
            del self._models[name]
            self._all_changed()

    def configure(self, usage_format: CpuUsageFormat, stale_after_s: float) -> None:
        """Take over what the cluster's policies say together."""
        if (usage_format, stale_after_s) != (self.usage_format, self.stale_after_s):
            self.usage_format, self.stale_after_s = usage_format, stale_after_s
            self._all_changed()

    @property
    def configs(self) -> dict[ObjectKey, NodeConfig]:
        """Return the stored NodeConfigs that name a node."""
        return {key: self._nodes[name].configs[key] for key, name in self._node_of_config.items()}

    @property
    def templates(self) -> Mapping[ObjectKey, NodeConfigTemplate]:
        """Return the NodeConfigTemplates."""
        return self._templates

    @property
    def models(self) -> Mapping[str, PowerModel]:
        """Return the PowerModels by name."""
        return self._models

    # What was read.

    def take_usages(self, usages: Iterable[tuple[str, CpuUsage]], *, now_s: float) -> None:
        """Take over what `metrics.k8s.io` says now; what is from the future is not believed."""
        for name, usage in usages:
            state = self._nodes.get(name)
            if state is None or state.node is None or usage.sampled_s > now_s + FUTURE_S:
                continue
            if state.usage == usage:
                continue
            state.usage = usage
            self._learn(state)
            is_wanted = not self._effective(state).is_empty or self.is_watched(name)
            if is_wanted and self._is_news(name, state, usage):
                state.told = usage
                self.on_dirty(name)

    def cpu_load(self, name: str, now_s: float) -> CpuLoad | None:
        """Return how much of a node's CPUs is used; None where that is not known, or stale."""
        state = self._nodes.get(name)
        if state is None or state.node is None or state.usage is None:
            return None
        lasts_s = state.usage.sampled_s + self.stale_after_s - now_s
        if lasts_s <= 0 or not state.node.capacity_nanocores:
            return None
        percent = 100 * state.usage.nanocores / state.node.capacity_nanocores
        return CpuLoad(percent=percent, lasts_s=lasts_s)

    def take_pod_usage(self, pod: AssumedPod, usage: CpuUsage) -> None:
        """Take over what `metrics.k8s.io` says of one pod."""
        if self.pods.take(pod, usage.nanocores):
            self.on_dirty(pod.node)

    def take_readings(self, job: Job, values: Mapping[str, float], *, now_s: float) -> None:
        """Take over what a sensor gave."""
        state = self._nodes.get(job.node)
        if state is None:
            return
        state.problems.pop(job.source, None)
        for name, value in values.items():
            state.readings[name] = Reading(value=value, sampled_s=now_s, source=str(job.source))
        if "watts" in values:
            self._learn(state)
        self.on_dirty(job.node)

    def take_curve(
        self, job: Job, question: Question, curve: PowerCurve | None, *, now_s: float
    ) -> None:
        """Take over what a model server answered."""
        state = self._nodes.get(job.node)
        if state is None:
            return
        state.problems.pop(job.source, None)
        if curve is None:
            state.problems[job.source] = f"{question.ref}: none of its watts is plausible"
        state.curve, state.asked, state.curve_s = curve, question, now_s
        self.on_dirty(job.node)

    def fail(self, job: Job, words: str) -> None:
        """Note why a job gave nothing; what was read before stays until it is too old."""
        state = self._nodes.get(job.node)
        if state is not None and state.problems.get(job.source) != words:
            state.problems[job.source] = words
            self.on_dirty(job.node)

    # What is to be done.

    def jobs(self) -> Iterable[Job]:
        """Yield what there is to read."""
        for name, state in self._nodes.items():
            if state.node is not None:
                yield from self._jobs_of(name, state)

    def terms_of(self, name: str) -> NodeConfigTerms | None:
        """Return the endpoints that count for a node."""
        state = self._nodes.get(name)
        return self._effective(state).terms if state is not None else None

    def question(
        self, name: str, power_term: EndpointTerm | None = None, *, now_s: float
    ) -> Question:
        """Return what the node's model server is to be asked now; raises `UnaskableError`.

        `power_term` is where, in v2's configuration.
        """
        state = self._nodes.get(name)
        if state is None or state.node is None:
            raise UnaskableError("the Node is gone")
        effective = self._effective(state)
        fresh, stale = self._fresh(state, now_s)
        try:
            if effective.labels is not None:
                return ask_by_labels(effective.labels, fresh, state.node.capacity_nanocores)
            return ask_by_term(
                power_term or EndpointTerm(),
                fresh,
                state.node.capacity_nanocores,
                usage_format=self.usage_format,
            )
        except UnaskableError as error:
            raise UnaskableError("; ".join([str(error), *stale])) from error

    def is_answered(self, name: str, question: Question, *, now_s: float) -> bool:
        """Tell whether the last answer still does for a question that is much the same."""
        state = self._nodes.get(name)
        asked = state.asked if state is not None else None
        if state is None or asked is None or state.curve is None:
            return False
        if now_s - state.curve_s >= CURVE_AGE_S:
            return False
        if (asked.ref, asked.cores) != (question.ref, question.cores):
            return False
        return all(
            abs(old - new) < _CELSIUS_STEP
            for old, new in zip(asked.inputs[0][1:], question.inputs[0][1:], strict=True)
        )

    def build(
        self,
        name: str,
        *,
        now_s: float,
        previous: Power | None = None,
    ) -> tuple[PowerInventory, float | None]:
        """Return a node's power, and in how many seconds something of it becomes too old."""
        state = self._nodes.get(name)
        if state is None or state.node is None:
            return NO_POWER, None
        effective = self._effective(state)
        if effective.is_empty:
            return NO_POWER, None
        fresh, stale = self._fresh(state, now_s)
        usage = state.usage
        if usage is not None and now_s - usage.sampled_s > self.stale_after_s:
            usage, stale = None, (*stale, f"the CPU usage is older than {self.stale_after_s:g} s")
        is_awaited = False
        if previous is not None and previous.usage_sampled_s is not None and usage is not None:
            shown_s = previous.usage_sampled_s - previous.usage_window_s
            is_awaited = self._begins(name, shown_s, usage.sampled_s - usage.window_s)
        built = build_power(
            usage=usage,
            readings=fresh,
            candidates=self._candidates(state, state.node, effective, now_s),
            pod_usage=self.pods.of_node(name),
            problems=(*effective.problems, *stale),
            previous=previous,
            capacity_nanocores=state.node.capacity_nanocores,
            is_awaited=is_awaited,
        )
        lasts_s = [] if usage is None else [usage.sampled_s + self.stale_after_s - now_s]
        longest_s = self._max_age_s(state)
        lasts_s += [
            it.sampled_s + longest_s - now_s for key, it in fresh.items() if self._ages(state, key)
        ]
        return built, min((it for it in lasts_s if it > 0), default=None)

    # Within.

    def _candidates(
        self, state: NodePower, node: PowerNode, effective: _Effective, now_s: float
    ) -> tuple[Candidate, ...]:
        capacity = node.capacity_nanocores
        found: list[Candidate] = []
        if effective.terms is not None or effective.labels is not None:
            is_old = now_s - state.curve_s > CURVE_AGE_S * _CURVE_LASTS
            curve = None if is_old or self._is_of_other(state) else state.curve
            words = [state.problems[it] for it in Source if it in state.problems]
            found.append(
                Candidate(
                    link=PowerLink.MODEL_SERVER,
                    model=str(state.asked.ref) if state.asked is not None else "",
                    curve=curve,
                    curve_s=state.curve_s,
                    problem="; ".join(words) or "the model server was not asked yet",
                )
            )
        if effective.model is not None:
            spec = effective.model.spec
            found.append(
                Candidate(
                    link=PowerLink.MODEL,
                    model=f"PowerModel {effective.model.name}",
                    curve=state.modelled.of(
                        (spec, capacity), lambda: curve_of_model(spec, capacity)
                    ),
                    exponential=spec.exponential,
                    problem=f"PowerModel {effective.model.name} has no form that gives watts",
                )
            )
        measured = state.line.curve(capacity)
        if measured is not None:
            found.append(Candidate(link=PowerLink.MEASURED, model="measured watts", curve=measured))
        return tuple(found)

    def _is_of_other(self, state: NodePower) -> bool:
        """Tell whether the curve is of a node of another size."""
        return (
            state.asked is not None
            and state.node is not None
            and state.curve is not None
            and state.asked.cores[-1] > 2 * state.node.capacity_nanocores / 10**9
        )

    def _fresh(self, state: NodePower, now_s: float) -> tuple[dict[str, Reading], tuple[str, ...]]:
        ages_s = {key: self._max_age_s(state) for key in state.readings if self._ages(state, key)}
        return fresh_readings(state.readings, now_s=now_s, max_age_s=ages_s)

    def _ages(self, state: NodePower, sensor: str) -> bool:
        """Tell whether a reading of a sensor becomes too old: v1's temperatures never do."""
        return self._effective(state).labels is None or sensor == "watts"

    def _max_age_s(self, state: NodePower) -> float:
        terms = self._effective(state).terms
        intervals = (
            [it.fetch_interval_s for it in (terms.inlet_temp, terms.delta_p)] if terms else []
        )
        return max([self.stale_after_s, 3 * self.round_s, *(3 * it for it in intervals)])

    def _is_news(self, name: str, state: NodePower, usage: CpuUsage) -> bool:
        """Tell whether a decision would notice the usage, or that it shows pods which the last did not."""
        told, node = state.told, state.node
        if told is None or node is None:
            return True
        if abs(usage.nanocores - told.nanocores) > node.capacity_nanocores * USAGE_STEP:
            return True
        return self._begins(name, told.sampled_s - told.window_s, usage.sampled_s - usage.window_s)

    def _learn(self, state: NodePower) -> None:
        """Take a pair of usage and watts, if both are of about the same time."""
        watts, usage = state.readings.get("watts"), state.usage
        if watts is None or usage is None or state.node is None:
            return
        capacity = state.node.capacity_nanocores
        if capacity and abs(watts.sampled_s - usage.sampled_s) <= self.stale_after_s:
            state.line.add(usage.nanocores / capacity, watts.value)

    def _jobs_of(self, name: str, state: NodePower) -> Iterable[Job]:
        effective, node = self._effective(state), state.node
        if effective.terms is not None:
            for source, term in (
                (Source.INLET, effective.terms.inlet_temp),
                (Source.DELTA_P, effective.terms.delta_p),
            ):
                yield Job(
                    node=name,
                    source=source,
                    interval_s=term.fetch_interval_s,
                    term=term,
                    namespace=effective.namespace,
                    wants_watts=source is Source.INLET and not effective.has_server,
                )
        elif effective.labels is not None and node is not None and node.address:
            host = f"[{node.address}]" if ":" in node.address else node.address
            yield Job(
                node=name,
                source=Source.IPMI,
                interval_s=V1_INTERVAL_S,
                url=f"http://{host}:{_IPMI_PORT}/metrics",
            )
        if effective.terms is not None or effective.labels is not None:
            yield Job(
                node=name,
                source=Source.MODEL,
                interval_s=CURVE_AGE_S,
                namespace=effective.namespace,
                revision=state.revision,
            )

    def _effective(self, state: NodePower) -> _Effective:
        if state.effective is None:
            state.effective = self._make_effective(state)
        return state.effective

    def _make_effective(self, state: NodePower) -> _Effective:
        node = state.node
        if node is None:
            return _Effective()
        model = choose_model(self._models.values(), node.labels)
        problems: list[str] = []
        stored = sorted(state.configs.values(), key=lambda it: it.order)
        config = stored[0] if stored else None
        if len(stored) > 1:
            problems.append(
                f"{len(stored)} NodeConfigs name this node, {stored[0].namespace}/{stored[0].name} "
                "counts"
            )
        for template in sorted(self._templates.values(), key=lambda it: it.order):
            made, faults = render_template(template, [node])
            if made and config is None:
                config = made[0]
                problems += faults
        if config is not None:
            problems += config.problems
            return _Effective(
                terms=config.terms,
                namespace=config.namespace,
                model=model,
                problems=tuple(problems),
            )
        labels = label_config_of(node.labels)
        return _Effective(
            labels=labels if labels.is_present else None, model=model, problems=labels.problems
        )

    def _state(self, name: str) -> NodePower:
        return self._nodes.setdefault(name, NodePower())

    def _changed(self, name: str) -> None:
        self.version += 1
        state = self._nodes[name]
        state.effective = None
        state.revision += 1
        self.on_dirty(name)

    def _all_changed(self) -> None:
        for name in self._nodes:
            self._changed(name)
