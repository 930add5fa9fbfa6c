"""What a plan fixes: the events of a run, how many of them, and for whom."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from privet.privacy.audit.verify.cost.accounting import SLACK, ceiling, fits
from privet.privacy.audit.verify.cost.turns import Turns
from privet.privacy.audit.verify.formats.events import NON_PRIVATE, RELATIONS, Event, gate, gaussian
from privet.privacy.audit.verify.formats.strict import Malformed, is_visible, number


def _section(plan: dict[str, Any], name: str) -> dict[str, Any]:
    section = plan.get(name)
    if not isinstance(section, dict):
        raise Malformed(f"the plan has no section '{name}'")
    return section


def _part(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of the plan; an empty one if it has none."""
    part = plan.get(name)
    if not isinstance(part, dict):
        return {}
    return part


def _count(section: dict[str, Any], name: str, default: int | None = None) -> int:
    value = section.get(name, default)
    if type(value) is not int or value < 1:
        raise Malformed(f"'{name}' of the plan must be an integer from 1")
    return value


def _natural(section: dict[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int or value < 0:
        raise Malformed(f"'{name}' of the plan must be an integer from 0")
    return value


def _positive(section: dict[str, Any], name: str, most: float = float("inf")) -> float:
    try:
        value = number(section.get(name))
    except Malformed as error:
        raise Malformed(f"'{name}' of the plan {error}") from None
    if not 0 < value <= most:
        raise Malformed(f"'{name}' of the plan is out of range")
    return value


class Terms(NamedTuple):
    """What a population is registered with; ``cap`` is its ε, None without one."""

    unit: str
    relation: str
    cap: float | None
    delta: float
    max_records: int


class AuditedPlan:
    """The parts of a plan that evidence depends on.

    Attributes:
        sites: names of the sites, in the plan's order.
        trainings: how many training releases a run has at a site at most; 0: it only evaluates.
        rounds, every: rounds, and rounds between two evaluations (0: none).
        training_rounds: rounds that train.
        turns: which sites take part in which round; None: all in each.
        train, evaluate: the event of one release of each purpose, None if there is none.
        evaluate_before: the event of an evaluation by the metrics mechanism as it was before it had
            integer weights; it costs as much, to the rounding of σ. A plan does not say which of
            the two a run used.
        budget: (ε, δ, unit, relation) of the section ``privacy``, None without it.
        averages: whether the published model is a mean over rounds.
        task, model, metrics: kinds, and where metrics come from, as a policy allows them.
        quorum: least number of sites whose releases make a round.
        witnesses: how many sites cosign each log of a round, by lot; None: all others.
        sizes: nominal number of units, by site, where the plan says it.
        max_records: most records of one person.

    Raises:
        Malformed: if a part is missing or impossible.
    """

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise Malformed("a plan must be an object")
        listed = value.get("sites")
        if not isinstance(listed, list) or not listed:
            raise Malformed("a plan must list its sites")
        self.sites = [site.get("name") for site in listed if isinstance(site, dict)]
        if len(self.sites) != len(listed) or not all(isinstance(s, str) for s in self.sites):
            raise Malformed("every site of a plan must have a name")
        if len(set(self.sites)) != len(self.sites):
            raise Malformed("a plan names a site twice")
        training = _section(value, "training")
        self.training_rounds = _natural(training, "rounds")
        self.rounds = self.training_rounds or 1
        strategy = _part(value, "strategy")
        self.turns = self._read_turns(value, strategy)
        self.trainings = self.training_rounds if self.turns is None else self.turns.most
        self.averages = self.trainings > 0 and _count(strategy, "average_last", 1) > 1
        least = strategy.get("min_sites")
        at_once = len(self.sites) if self.turns is None else self.turns.count
        self.quorum = at_once // 2 + 1 if least is None else _count(strategy, "min_sites")
        drawn = strategy.get("witnesses")
        self.witnesses = None if drawn is None else _count(strategy, "witnesses")
        sizes = {site["name"]: site.get("nominal_size") for site in listed}
        self.sizes = {name: n for name, n in sizes.items() if type(n) is int and n > 0}
        self._read_kinds(value)
        self._read_events(value, training)

    def _read_turns(self, value: dict[str, Any], strategy: dict[str, Any]) -> Turns | None:
        if strategy.get("sites_per_round") is None:
            return None
        some = _count(strategy, "sites_per_round")
        if not self.training_rounds:
            raise Malformed("'sites_per_round' of a plan that only evaluates")
        names = [str(site) for site in self.sites]
        try:
            return Turns(names, some, _natural(value, "seed"), self.rounds)
        except ValueError as error:
            raise Malformed(f"'sites_per_round' of the plan is {error}") from None

    def _read_kinds(self, value: dict[str, Any]) -> None:
        task, model, metrics = (_part(value, name) for name in ("task", "model", "metrics"))
        kinds = task.get("kind", "tabular"), model.get("kind", ""), metrics.get("source", "public")
        if not all(isinstance(kind, str) for kind in kinds):
            raise Malformed("a kind of the plan must be a text")
        self.task, self.model, self.metrics = kinds
        for name in ("name", "title"):
            text = value.get(name) or ""
            if not isinstance(text, str) or not is_visible(text):
                raise Malformed(f"'{name}' of the plan must be a text without control characters")

    def _read_events(self, value: dict[str, Any], training: dict[str, Any]) -> None:
        metrics = _part(value, "metrics")
        gated = metrics.get("source") == "gate"
        if not self.trainings and not gated:
            raise Malformed("the plan neither trains nor evaluates")
        self.every = 0
        if gated:
            self.every = _count(metrics, "every")
        self.budget: tuple[float, float, str, str] | None = None
        self.train = Event(NON_PRIVATE) if self.trainings else None
        self.evaluate = Event(NON_PRIVATE) if gated else None
        self.evaluate_before = self.evaluate
        self.max_records = 1
        if value.get("privacy") is None:
            return
        privacy = _section(value, "privacy")
        self.max_records = _count(privacy, "max_records", 1)
        if privacy.get("trust", "local") != "local":
            raise Malformed("evidence is of plans with trust = 'local' alone")
        unit, relation = privacy.get("unit"), privacy.get("relation")
        if not isinstance(unit, str) or relation not in RELATIONS:
            raise Malformed("the plan must name unit and relation of its privacy")
        epsilon, delta = _positive(privacy, "epsilon"), _positive(privacy, "delta", 1.0)
        self.budget = (epsilon, delta, unit, relation)
        if self.trainings:
            clip = _positive(privacy, "clip")
            noise = _positive(privacy, "noise_multiplier") * clip
            step = gaussian(noise, clip, _positive(training, "sample_rate", 1.0))
            self.train = Event(step, _count(training, "steps"))
        if gated:
            noise = _positive(metrics, "noise_multiplier")
            self.evaluate = Event(gate(noise))
            self.evaluate_before = Event(gaussian(noise, 1.0))

    @cached_property
    def evaluations(self) -> int:
        """How many evaluations a run has at a site, at most."""
        if not self.every:
            return 0
        if self.turns is None:
            return -(-self.rounds // self.every)
        last = [] if self.rounds % self.every == 0 else [self.rounds]
        return self.turns.most_of([*range(self.every, self.rounds + 1, self.every), *last])

    @property
    def planned(self) -> list[Event]:
        """All that a run may do at one site."""
        return self.with_more(0)

    def with_more(self, attempts: int) -> list[Event]:
        """All that a run does with this number of attempts per release beyond the plan."""
        parts = [(self.train, self.trainings), (self.evaluate, self.evaluations)]
        return [
            Event(e.mechanism, e.count * (n + attempts)) for e, n in parts if e is not None and n
        ]

    @property
    def attempts(self) -> int:
        """How many attempts at one release it has, by mechanism, at most."""
        if self.is_one_mechanism and self.train and self.evaluate:
            both = self.train.count * self.trainings + self.evaluations
            return both // (self.train.count + 1)
        return max(self.trainings, self.evaluations)

    @property
    def most_extra(self) -> int:
        """How many more attempts than planned a first run is judged with at most."""
        return max(4, self.attempts // 10)

    @property
    def is_one_mechanism(self) -> bool:
        """Whether a step of training and an evaluation are the same mechanism."""
        return (
            self.train is not None
            and self.evaluate is not None
            and self.train.mechanism == self.evaluate.mechanism
        )

    def excess(self, trained: int, evaluated: int) -> int:
        """Return how many attempts beyond the plan these charges amount to, by mechanism.

        Args:
            trained: charges of training releases.
            evaluated: charges of evaluations.
        """
        if self.is_one_mechanism and self.train:
            steps = self.train.count
            over = steps * (trained - self.trainings) + evaluated - self.evaluations
            return max(0, -(-over // (steps + 1)))
        return max(0, trained - self.trainings, evaluated - self.evaluations)

    def has(self, purpose: str, round_: int, site: str) -> bool:
        """Return whether a run of this plan has such a release of a site in this round.

        Args:
            purpose: ``train`` or ``evaluate``.
            round_: number, from 1.
            site: its name.
        """
        if not 1 <= round_ <= self.rounds:
            return False
        if self.turns is not None and not self.turns.has(site, round_):
            return False
        if purpose == "train":
            return self.trainings > 0
        return self.every > 0 and (round_ % self.every == 0 or round_ == self.rounds)

    def event(self, purpose: str) -> Event | None:
        """Return the event of a release."""
        return self.train if purpose == "train" else self.evaluate

    def misfit(self, terms: Terms) -> str | None:
        """Return why the plan's privacy does not fit a population's terms, or None."""
        if self.budget is None:
            return None
        epsilon, delta, unit, relation = self.budget
        if (unit, relation) != (terms.unit, terms.relation):
            return "unit or relation of the plan is not the population's"
        if terms.cap is not None and epsilon > terms.cap + SLACK:
            return "the plan's epsilon is above the population's"
        if delta > terms.delta:
            return "the plan's delta is above the population's"
        if self.max_records > terms.max_records:
            return "the plan uses more records of a person than the population allows"
        return None

    @cached_property
    def is_cheap(self) -> bool:
        """Whether the Rényi ceiling, which takes no time, shows that it costs what it asks for."""
        if self.budget is None:
            return True
        epsilon, delta, _, relation = self.budget
        return ceiling(self.planned, delta, relation) <= epsilon

    @cached_property
    def overspends(self) -> bool:
        """Whether the plan costs more than the ε that it asks for."""
        if self.budget is None or self.is_cheap:
            return False
        epsilon, delta, _, relation = self.budget
        return not fits(self.planned, delta, relation, epsilon + SLACK)
