"""The plan: what is to be trained and how. Public, canonical, hashed.

A plan is read from TOML (``Plan.load``) or built from a mapping (``Plan.parse``). It is
immutable, unknown keys are errors, and its digest is taken over its RFC 8785 JSON. All
that enters the privacy accounting is a constant of the plan (H2): nothing is derived
from the size of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from privet.common.canonical import digest_json
from privet.common.config import load_toml
from privet.common.errors import PlanError
from privet.common.person_id import PersonId
from privet.common.schedule import MAX_TURNS, Schedule
from privet.common.schema import ONE_LINE, ByKind, Count, Name, Part, Positive, SiteName, parse
from privet.common.sections.model import ModelSpec, TableTransformerSpec
from privet.common.sections.strategy import FedAvgSpec, Strategy, StrategyOf
from privet.common.sections.task import LANGUAGE, TableTask, TaskSpec
from privet.common.sections.task_base import AnyTask
from privet.common.settings import fill
from privet.common.settings.facts import Facts
from privet.common.settings.rules import ROUNDS
from privet.common.text_format import TextFormat

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

Clipping = Literal["auto", "bookkeeping", "opacus-hooks", "functorch", "vmap", "one-by-one"]
"""How per-unit gradients are computed."""

MAX_ATTEMPTS = 2
"""Default of ``training.max_attempts``."""
_SHOWN_SITES = 50
"""Sites that a message names."""
_TASK = ByKind("tabular")
_BLANKS = {"task": AnyTask.blanks, "strategy": StrategyOf.blanks}


class Training(Part):
    """Local training of one round.

    Attributes:
        rounds: number of federated rounds; 0 trains nothing: each site measures the model once,
            with the metrics mechanism.
        steps: noisy steps at each site in each round.
        sample_rate: Poisson rate q at which each unit enters a step's batch.
        learning_rate, momentum, optimizer: the local optimizer, new in every round.
        micro_batch: most records in memory at once; no effect on the result but rounding.
        copies: augmented copies of each record in a step, where the task augments; a step uses
            their mean, and takes that many times as long.
        clipping: how per-unit gradients are computed; no effect on the guarantee.
        clip: L2 bound of one unit's gradient in a run without privacy; None: no bound. In
            a run with privacy it is ``privacy.clip`` that counts.
        clip_rule: ``bound`` shortens the gradients above the bound; ``automatic`` brings each close
            to it, so that no bound has to be found (AUTO-S of Bu et al. 2022). The guarantee is
            the same.
        max_attempts: failures in a row, each with its charge, after which a site closes the plan
            for itself until its operator approves it again.
    """

    rounds: Annotated[int, Field(ge=0, le=10**9)] = 20
    steps: Count = 5
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    learning_rate: Positive = 0.1
    momentum: Fraction = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    micro_batch: Count = 256
    copies: Annotated[int, Field(ge=1, le=256)] = 1
    clipping: Clipping = "auto"
    clip: Positive | None = None
    clip_rule: Literal["bound", "automatic"] = "bound"
    max_attempts: Annotated[int, Field(ge=1, le=100)] = MAX_ATTEMPTS

    @model_serializer(mode="wrap")
    def _without_new_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans of before keep their digest.
        value: dict[str, Any] = dump(self)
        if value.get("clip_rule") == "bound":
            del value["clip_rule"]
        return value

    @property
    def is_automatic(self) -> bool:
        """Whether each gradient is brought close to its bound."""
        return self.clip_rule == "automatic"

    @field_validator("clipping", mode="before")
    @classmethod
    def _not_removed(cls, value: Any) -> Any:
        if value == "opacus-ghost":
            raise ValueError(
                "'opacus-ghost' was removed; use 'auto': book-keeping takes ghost norms where they "
                "cost less, and needs no second backward pass"
            )
        return value


class Privacy(Part):
    """The guarantee asked for, at each site.

    Attributes:
        epsilon, delta: the budget of each site's population for this plan.
        unit: what one person's contribution is: ``record`` or ``person``; or a whole ``site``.
        relation: neighbouring relation of the accounting.
        trust: who sees un-noised values; ``local``: nobody outside the site; ``central``: the
            coordinator, which clips each site's update and adds the noise. Simulated only.
        clip: L2 bound of one unit's gradient; with unit ``site`` of its whole update.
        noise_multiplier: σ; left out, it is calibrated to ``epsilon``.
        max_records: most records of one person that are used (unit ``person``).
    """

    epsilon: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "person", "site"] = "record"
    relation: Literal["add_or_remove_one", "replace_one"] = "add_or_remove_one"
    trust: Literal["local", "central"] = "local"
    clip: Positive = 1.0
    noise_multiplier: Positive | None = None
    max_records: Count = 1

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.delta > 1e-2:
            raise ValueError("'delta' above 0.01 protects nobody; use at most 1 / number of units")
        if self.unit != "person" and self.max_records != 1:
            raise ValueError("'max_records' belongs to unit = 'person'")
        if (self.unit == "site") != (self.trust == "central"):
            raise ValueError(
                "unit = 'site' and trust = 'central' go together: a coordinator that all sites "
                "trust clips whole updates (simulated only)"
            )
        return self

    @property
    def is_central(self) -> bool:
        """Whether the coordinator adds the noise, as in a simulation alone."""
        return self.trust == "central"


class Compression(Part):
    """How a site compresses its noised update (:mod:`privet.common.compress`).

    Attributes:
        kind: ``int8``, one byte per number; or ``top-k``, the largest alone.
        share: of each array's numbers that are sent (``top-k``).
    """

    kind: Literal["int8", "top-k"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.1


class Metrics(Part):
    """Where the metrics of the model come from (H13).

    Attributes:
        source: ``public`` (a public test split), ``gate`` (each site's own held-out
            records, noised and debited) or ``off``.
        every: rounds between two evaluations; the last round is always evaluated.
        noise_multiplier: σ of one release of the metrics mechanism, per unit of sensitivity.
        bins: score bins of the metrics mechanism's histogram. Of an odd number the middle one
            lies on both sides of one half, and each takes half of it; there is no AUC of two.
    """

    source: Literal["public", "gate", "off"] = "public"
    every: Count = 1
    noise_multiplier: Positive = 20.0
    bins: Annotated[int, Field(ge=2, le=100)] = 10


class Split(Part):
    """Shares of the records held out, by unit; fixed by the plan's seed."""

    test: Fraction = 0.2
    validation: Fraction = 0.0

    @model_validator(mode="after")
    def _rest(self) -> Self:
        if self.test + self.validation >= 1:
            raise ValueError("'test' and 'validation' leave nothing to train on")
        return self


class SiteSpec(Part):
    """One site: its name, a public nominal size in units, and its own file if it has one.

    ``nominal_size`` is declared, not counted: it sets the divisor of the noisy sum and
    the site's weight. A round number near the truth is right.
    """

    name: SiteName
    nominal_size: Count
    path: str | None = None


class DataSpec(Part):
    """Where a user's own records are (scenarios bring their own).

    Attributes:
        path: one CSV or Parquet file for all sites; relative to the plan's folder.
        site_column: the column that names the site in ``path``.
        person_column: the column that names the person (needed for unit ``person``).
        person_ignore_case, person_numeric: how ids of people are folded
            (:class:`privet.common.person_id.PersonId`).
        multiline: quoted cells of CSV and TSV files may contain line breaks.
        format: how CSV and TSV files write their cells; None: a comma or tab, a decimal point and
            UTF-8.
    """

    path: str | None = None
    site_column: str | None = None
    person_column: str | None = None
    person_ignore_case: bool = False
    person_numeric: bool = False
    multiline: bool = False
    format: TextFormat | None = None

    @model_serializer(mode="wrap")
    def _without_new_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans of before keep their digest.
        value: dict[str, Any] = dump(self)
        if self.format is None:
            value.pop("format", None)
        return value

    @property
    def person(self) -> PersonId:
        """How ids of people are folded."""
        return PersonId(self.person_ignore_case, self.person_numeric)


class Plan(Part):
    """The whole plan. ``privacy = None`` is a run without any guarantee.

    It has no default, so that nobody trains without one by leaving something out; a file says
    ``privacy = "none"``.

    ``attested`` names rows of the assumption register that the author of the plan vouches for,
    with the reason: H12 (where the constants come from), H13 (the test split's records are
    public), H21 (nobody is at two sites).
    """

    name: Name
    title: Annotated[str, Field(max_length=200, pattern=ONE_LINE)] = ""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    scenario: str | None = None
    task: Annotated[TaskSpec, _TASK]
    model: Annotated[ModelSpec, ByKind("ft-transformer")] = TableTransformerSpec()
    training: Training = Training()
    strategy: Annotated[Strategy, ByKind("fedavg")] = FedAvgSpec()
    privacy: Annotated[
        Privacy | None,
        BeforeValidator(
            lambda value: None if value == "none" else value,
            json_schema_input_type=Privacy | Literal["none"] | None,
        ),
        Field(
            description='write a section [privacy], or privacy = "none" above the first section '
            "to train without any guarantee"
        ),
    ]
    compression: Compression | None = None
    metrics: Metrics = Metrics()
    split: Split = Split()
    data: DataSpec = DataSpec()
    attested: dict[Literal["H12", "H13", "H21"], str] = {}
    sites: Annotated[tuple[SiteSpec, ...], Field(min_length=1, max_length=200_000)]
    _kept: dict[str, Any] = PrivateAttr(default_factory=dict)
    _chosen: dict[str, str] = PrivateAttr(default_factory=dict)
    _draft: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError("'sites' names a site twice")
        some = self.strategy.sites_per_round
        if some is not None:
            if some > len(names):
                raise ValueError(
                    f"'strategy.sites_per_round' is above the number of sites, {len(names)}"
                )
            if not self.trains:
                raise ValueError(
                    "'strategy.sites_per_round' has no meaning where 'training.rounds' = 0: every "
                    "site measures"
                )
            if some * self.training.rounds > MAX_TURNS:
                raise ValueError(
                    f"'strategy.sites_per_round' times 'training.rounds' is above {MAX_TURNS:,}"
                )
        if (self.strategy.min_sites or 0) > (some or len(names)):
            those = "sites of a round" if some else "number of sites"
            raise ValueError(f"'strategy.min_sites' is above the {those}, {some or len(names)}")
        if self.strategy.average_last > self.last_round:
            raise ValueError("'strategy.average_last' is above 'training.rounds'")
        if not self.trains:
            self._require_something_to_measure()
        views = ":" in self.task.kind or getattr(self.task, "augment", False)
        if self.training.copies > 1 and not views:
            raise ValueError("'training.copies' without 'task.augment': a record twice is the same")
        if self.privacy is None and self.metrics.source == "gate":
            raise ValueError("'metrics.source' = 'gate' needs a [privacy] section")
        if self.privacy is not None and self.privacy.is_central:
            self._require_central()
        is_bounded = self.privacy is not None and not self.privacy.is_central
        if self.training.is_automatic and not is_bounded and self.training.clip is None:
            raise ValueError(
                "'training.clip_rule' = 'automatic' bounds nothing here: it needs a [privacy] "
                "section whose trust is 'local', or 'training.clip'"
            )
        return self

    def _require_central(self) -> None:
        if not self.trains:
            raise ValueError("'privacy.trust' = 'central' has no meaning where nothing is trained")
        if self.metrics.source == "gate":
            raise ValueError(
                "'metrics.source' = 'gate' is noised at the sites; with 'privacy.trust' = "
                "'central' it is 'public' or 'off'"
            )
        if self.compression is not None:
            raise ValueError("'compression' does not go with 'privacy.trust' = 'central'")

    def _require_something_to_measure(self) -> None:
        if self.metrics.source != "gate":
            raise ValueError("'training.rounds' = 0 only measures: 'metrics.source' must be 'gate'")
        if not self.split.test:
            raise ValueError("'training.rounds' = 0 only measures: 'split.test' holds nothing out")
        whole = self.model.kind == "huggingface" and self.task.kind in LANGUAGE
        if self.model.start is None and not whole:
            raise ValueError(
                "'training.rounds' = 0 only measures: 'model.start' must name the trained weights"
            )
        if self.compression is not None:
            raise ValueError("'compression' has no meaning where 'training.rounds' = 0")

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    @classmethod
    def parse(cls, value: dict[str, Any], *, where: str = "plan") -> Plan:
        """Build a plan from a mapping, as TOML or JSON gives it.

        Raises:
            PlanError: naming every wrong key and what was expected.
        """
        if isinstance(value, dict) and "populations" in value and "task" not in value:
            raise PlanError(f"{where}: this is a policy, not a plan")
        value, kept = _of_its_kind(value)
        plan = parse(cls, value, where=where, error=PlanError)
        plan._kept |= kept
        return plan

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan from a TOML file; what it leaves out of its training follows from the rest.

        Raises:
            PlanError: if the file cannot be read or is not a plan.
        """
        path = Path(path)
        value = load_toml(path)
        value.setdefault("name", path.stem)
        return cls.draft(value, where=str(path))

    @classmethod
    def draft(cls, value: dict[str, Any], *, where: str = "plan") -> Plan:
        """Build a plan from what a person wrote; choose how it is trained where that is left out.

        The values follow from what is public (:mod:`privet.common.settings`), where ``parse``
        takes the defaults of the format.

        Args:
            value: a mapping, as TOML gives it.
            where: the file or the name, for messages.

        Raises:
            PlanError: naming every wrong key and what was expected.
        """
        said = fill.said_by(value)
        plan = cls._first_reading(value, said, where)
        chosen = {choice.key: choice for choice in fill.choose_model(plan.task.kind, said)}
        if chosen:
            plan = cls._first_reading(fill.with_choices(value, chosen), said, where)
        values = plan.model_dump(mode="json", exclude={"sites"})
        for name in ("strategy", "model"):
            # Canonical form has the options that were written alone.
            options = getattr(plan, name).options
            if isinstance(options, Part):
                values[name]["options"] = {
                    k: getattr(options, k) for k in type(options).model_fields
                }
        try:
            chosen |= fill.choose(plan._facts, values, said)
        except ArithmeticError as error:
            raise PlanError(
                f"{where}: no learning rate follows from these settings ({error}); write "
                "training.learning_rate"
            ) from error
        plan = cls.parse(fill.with_choices(value, chosen), where=where)
        plan._chosen |= {key: choice.reason for key, choice in chosen.items()}
        plan._draft = value
        return plan

    @classmethod
    def _first_reading(cls, value: dict[str, Any], said: frozenset[str], where: str) -> Plan:
        """Return the plan with the format's defaults, by which its facts are known.

        Where these have too few rounds for what the author says, such as the models that are
        averaged, it has those that rules choose: the last reading has the last word.
        """
        try:
            return cls.parse(value, where=where)
        except PlanError as error:
            if "training.rounds" in said:
                raise
            more = {**value, "training": {**(value.get("training") or {}), "rounds": ROUNDS}}
            try:
                return cls.parse(more, where=where)
            except (PlanError, TypeError):
                raise error from None

    @property
    def _facts(self) -> Facts:
        """What rules know of the plan."""
        privacy, task = self.privacy, self.task
        table = task if isinstance(task, TableTask) else None
        return Facts(
            task=task.kind,
            model=self.model.kind,
            trains=self.trains,
            reads_features=self.model.reads_features,
            classes=max(1, len(task.labels)),
            numeric=len(table.numeric) if table else 0,
            categorical=len(table.categorical) if table else 0,
            sizes=tuple(site.nominal_size for site in self.sites),
            sites=self.sites_in_a_round,
            budget=(privacy.epsilon, privacy.delta) if privacy else None,
            changed=2.0 if privacy and privacy.relation == "replace_one" else 1.0,
            noise_multiplier=privacy.noise_multiplier if privacy else None,
            is_central=bool(privacy and privacy.is_central),
        )

    @property
    def chosen(self) -> dict[str, str]:
        """The keys whose values the author left out and rules chose, with the reasons."""
        return dict(self._chosen)

    @property
    def trains(self) -> bool:
        """Whether anything is trained; else one round measures the model, and that is all."""
        return self.training.rounds > 0

    @property
    def last_round(self) -> int:
        """Number of the last round, from 1."""
        return max(1, self.training.rounds)

    @property
    def quorum(self) -> int:
        """Least number of sites whose releases make a round."""
        return self.strategy.min_sites or self.sites_in_a_round // 2 + 1

    @property
    def sites_in_a_round(self) -> int:
        """How many sites take part in a round."""
        return self.strategy.sites_per_round or len(self.sites)

    @functools.cached_property
    def schedule(self) -> Schedule | None:
        """Which sites take part in which round; None if all do in each."""
        some = self.strategy.sites_per_round
        if some is None:
            return None
        return Schedule([site.name for site in self.sites], some, self.seed, self.last_round)

    def takes_part(self, site: str, number: int) -> bool:
        """Return whether a site takes part in a round.

        Args:
            site: its name.
            number: of the round, from 1.
        """
        return self.schedule is None or site in self.schedule.sites_in(number)

    @functools.cached_property
    def participants(self) -> tuple[SiteSpec, ...]:
        """The sites that take part in any round, in the plan's order."""
        if self.schedule is None:
            return self.sites
        some = self.schedule.participants
        return tuple(site for site in self.sites if site.name in some)

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:…`` over the plan's canonical JSON."""
        return digest_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values; ``Plan.parse`` reads it back."""
        value: dict[str, Any] = self.model_dump(mode="json")
        for key, blanks in _BLANKS.items():
            value[key] = {**blanks, **value[key]}
        value["task"] |= self._kept
        return value

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not validated; it has its own digest."""
        found = super().model_copy(update=update, deep=deep)
        for name in ("digest", "schedule", "participants", "_places"):
            found.__dict__.pop(name, None)
        return found

    def with_noise(self, noise_multiplier: float) -> Plan:
        """Return the same plan with the noise that its privacy was calibrated to."""
        assert self.privacy is not None
        noised = self.privacy.model_copy(update={"noise_multiplier": noise_multiplier})
        return self.model_copy(update={"privacy": noised})

    def changed(self, **changes: Any) -> Plan:
        """Return a validated copy; ``changes`` maps top-level keys to new values.

        A mapping is merged into the section it names; None and other values replace it. What rules
        chose stays as it was chosen.
        """
        found = Plan.parse(_merged(self.model_dump(mode="json"), changes), where=self.name)
        said = fill.said_by(changes)
        found._chosen |= {key: why for key, why in self._chosen.items() if key not in said}
        if self._draft is not None:
            found._draft = _merged(self._draft, changes)
        return found

    def redrafted(self, **changes: Any) -> Plan:
        """Return a validated copy in which what rules chose is chosen again, to fit the changes.

        It is for changes that the plan's author makes before anybody is given the plan. What
        neither the author nor a change says follows from the changed plan; a plan that was not
        drafted is :meth:`changed`.

        Args:
            changes: as for :meth:`changed`.

        Raises:
            PlanError: if the changed plan is impossible.
        """
        if self._draft is None:
            return self.changed(**changes)
        return Plan.draft(_merged(self._draft, changes), where=self.name)

    def written(self) -> dict[str, Any]:
        """Return what the plan's author wrote; of a plan that was not drafted, all of it."""
        return self.model_dump(mode="json") if self._draft is None else dict(self._draft)

    def site(self, name: str) -> SiteSpec:
        """Return the site called ``name``.

        Raises:
            PlanError: if there is none.
        """
        if name in self._places:
            return self.sites[self._places[name]]
        known = ", ".join(site.name for site in self.sites[:_SHOWN_SITES])
        more = ", …" if len(self.sites) > _SHOWN_SITES else ""
        raise PlanError(f"plan '{self.name}' has no site '{name}'; it has {known}{more}")

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {site.name: number for number, site in enumerate(self.sites)}


def _merged(value: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's JSON with changes: mappings are merged into sections, the rest replaces."""
    found = dict(value)
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(found.get(key), dict):
            found[key] = {**found[key], **change}
        else:
            found[key] = change
    return found


def _of_its_kind(value: Any) -> tuple[Any, dict[str, Any]]:
    """Return a mapping without blanks, and what a canonical form of before said beside them.

    Canonical form names the task's keys of all kinds. In a file a key of another kind is an error;
    before, it was none, meant nothing, and is in the digest of plans that were kept.
    """
    if not isinstance(value, dict):
        return value, {}
    found, kept = dict(value), {}
    for key, blanks in _BLANKS.items():
        if isinstance(part := value.get(key), dict):
            found[key] = {k: v for k, v in part.items() if k not in blanks or v != blanks[k]}
    task = value.get("task")
    if isinstance(task, dict) and AnyTask.blanks.keys() <= task.keys():
        kind = _TASK.parts(TaskSpec).get(_TASK.kind_of(task) or "", AnyTask)
        kept = {k: v for k, v in found["task"].items() if k in kind.others()}
        found["task"] = {k: v for k, v in found["task"].items() if k not in kept}
    return found, kept
