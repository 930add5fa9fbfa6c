"""The plan: what is to be trained and how. Public, canonical, hashed.

A plan is read from TOML (``Plan.load``) or built from a mapping (``Plan.parse``). It is
immutable, unknown keys are errors, and its digest is taken over its RFC 8785 JSON. All
that enters the privacy accounting is a constant of the plan (H2): nothing is derived
from the size of the data.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from privet.common.canonical import digest_json
from privet.common.config import load_toml
from privet.common.errors import PlanError
from privet.common.person_id import PersonId
from privet.common.schema import DIGEST, ONE_LINE, Count, Name, Part, SiteName, parse

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

MAX_ATTEMPTS = 2
"""Default of ``training.max_attempts``."""


class Numeric(Part):
    """A numeric feature with its typical range, a public constant and not a statistic (H12).

    The cell ``x`` becomes ``4 (f(x) - f(low)) / (f(high) - f(low)) - 2``, held to
    [-4, 4], with ``f = log1p`` when ``log`` is set. A missing cell becomes 0 and is marked.
    """

    low: Finite
    high: Finite
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError("'low' must be below 'high'")
        if self.log and self.low <= -1:
            raise ValueError("a logarithmic feature needs 'low' above -1")
        return self


class Image(Part):
    """An image in columns, one a pixel: ``prefix`` and a number from 0, by channel, row, column.

    The cell ``x`` becomes ``2 (x - low) / (high - low) - 1``; ``low`` and ``high`` are public.
    """

    height: Annotated[int, Field(ge=1, le=1024)]
    width: Annotated[int, Field(ge=1, le=1024)]
    channels: Annotated[int, Field(ge=1, le=16)] = 1
    prefix: str = "pixel_"
    low: Finite = 0.0
    high: Finite = 255.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError("'low' must be below 'high'")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the pixels, in order."""
        count = self.channels * self.height * self.width
        return tuple(f"{self.prefix}{number}" for number in range(count))


CLASSIFYING = ("tabular", "text", "image")
LANGUAGE = ("causal-text", "masked-text", "text-to-text")

AUGMENT = {"tabular": ("hide",), "image": ("shift", "flip"), "text": ("drop",)}
"""What can be asked for in ``augment``, by kind of task."""


class TaskSpec(Part):
    """What is predicted from what.

    Attributes:
        kind: ``tabular``, ``text`` and ``image`` classify; ``causal-text`` predicts the next
            token of a text, ``masked-text`` tokens that were left out, ``text-to-text`` one text
            from another; or ``"module:object"`` of a user's own
            :class:`privet.common.tasks.Task` factory.
        label: name of the label column.
        classes: the declared labels, in order; a record with another label, or none, is left out.
        numeric, categorical: features of a tabular task, by column. The values of a
            categorical feature are declared; any other cell counts as "other".
        text: text column, of ``text-to-text`` the column of what is read.
        target: column of what is to be written (``text-to-text``).
        max_tokens: texts are cut to this many tokens.
        clean: what is taken out of texts first (:mod:`privet.common.tasks.cleaning`).
        clean_region: where phone numbers without a country code are from.
        augment: how other views of a record are made (:mod:`privet.common.tasks.augment`):
            ``hide`` cells of a table, ``shift`` or ``flip`` an image, ``drop`` tokens of a text.
        image: pixels of an image task.
        options: handed to a user's own task.
    """

    kind: str = "tabular"
    label: str = "label"
    classes: tuple[str, ...] = ()
    numeric: dict[str, Numeric] = {}
    categorical: dict[str, tuple[str, ...]] = {}
    text: str = "text"
    target: str = "target"
    max_tokens: Annotated[int, Field(ge=2, le=8192)] = 128
    clean: tuple[Literal["dates", "emails", "links", "phones", "ids", "names"], ...] = ()
    clean_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"
    augment: tuple[Literal["hide", "shift", "flip", "drop"], ...] = ()
    image: Image | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        kinds = (*CLASSIFYING, *LANGUAGE)
        if self.kind not in kinds and ":" not in self.kind:
            known = ", ".join(f"'{kind}'" for kind in kinds)
            raise ValueError(f"'kind' must be one of {known}, or 'module:object'")
        if self.kind in CLASSIFYING and len(self.classes) < 2:
            raise ValueError("'classes' must declare at least two labels")
        if self.kind in LANGUAGE and self.classes:
            raise ValueError(f"'classes' has no meaning for kind '{self.kind}'")
        if self.clean and self.kind in ("tabular", "image"):
            raise ValueError("'clean' is for texts")
        if odd := set(self.augment) - set(AUGMENT.get(self.kind, ())):
            raise ValueError(f"'augment': {min(odd)} is not for kind '{self.kind}'")
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("'augment' names a kind twice")
        if (self.kind == "image") != (self.image is not None):
            raise ValueError("an image task, and no other, has a section 'image'")
        if len({name.strip() for name in self.classes}) != len(self.classes):
            raise ValueError("'classes' names a label twice")
        if self.kind == "tabular" and not (self.numeric or self.categorical):
            raise ValueError("a tabular task needs features in 'numeric' or 'categorical'")
        features = set(self.numeric) | set(self.categorical)
        if self.label in features:
            raise ValueError(f"the label '{self.label}' is also a feature")
        if both := set(self.numeric) & set(self.categorical):
            raise ValueError(f"'{min(both)}' is declared numeric and categorical")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of its columns that hold texts."""
        if self.kind == "text-to-text":
            return self.text, self.target
        return (self.text,) if self.kind in ("text", *LANGUAGE) else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads; none are known of a user's own task."""
        if self.kind == "tabular":
            return (*self.numeric, *self.categorical, self.label)
        if self.image is not None:
            return (*self.image.columns, self.label)
        return (*self.texts, self.label) if self.kind == "text" else self.texts


class ModelSpec(Part):
    """The model: a kind known to Privet, or ``"module:object"`` of a user's own factory.

    Attributes:
        kind, options: what is built.
        start: digest of a file of weights that it starts from (:mod:`privet.common.models.start`);
            None for fresh ones.
    """

    kind: str = "ft-transformer"
    options: dict[str, Any] = {}
    start: Annotated[str, Field(pattern=DIGEST)] | None = None


class Training(Part):
    """Local training of one round.

    Attributes:
        rounds: number of federated rounds; 0 trains nothing: each site measures the model once,
            through the gate.
        steps: noisy steps at each site in each round.
        sample_rate: Poisson rate q at which each unit enters a step's batch.
        learning_rate, momentum, optimizer: the local optimizer, new in every round.
        micro_batch: most records in memory at once; no effect on the result but rounding.
        copies: views of each record in a step, where the task augments; a step takes their mean,
            and takes so many times as long.
        clipping: how per-unit gradients are computed; no effect on the guarantee.
        clip: L2 bound of one unit's gradient in a run without privacy; None: no bound. In
            a run with privacy it is ``privacy.clip`` that counts.
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
    clipping: Literal["auto", "bookkeeping", "opacus-hooks", "functorch"] = "auto"
    clip: Positive | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = MAX_ATTEMPTS

    @field_validator("clipping", mode="before")
    @classmethod
    def _not_removed(cls, value: Any) -> Any:
        if value == "opacus-ghost":
            raise ValueError(
                "'opacus-ghost' was removed; use 'auto': book-keeping takes ghost norms where they "
                "cost less, and needs no second backward pass"
            )
        return value


class Strategy(Part):
    """How the coordinator joins the sites' updates (strategies of Flower).

    Attributes:
        kind: ``fedavg``, ``fedprox``, ``fedavgm``, ``fedadam``, ``fedyogi``,
            ``fedadagrad``, or ``"module:object"`` of a Flower strategy factory.
        options: keyword arguments of the Flower strategy (e.g. ``eta``, ``server_momentum``).
        proximal_mu: weight of FedProx's proximal term.
        average_last: the final model is the mean of the models of this many last rounds
            (post-processing, free of privacy cost).
        min_sites: quorum, counted after replies; default: more than half of the sites.
        timeout: seconds that a round may take, from its orders until its logs are witnessed.
        grace: seconds that further sites are waited for once a quorum has released; default: five,
            or as long again as the quorum took, and one that is connected for twice as long as it
            took the last time.
        attempts: over the link, how often a site that failed may be asked for the same round
            where the quorum is not met without it; each attempt is charged again.
    """

    kind: str = "fedavg"
    options: dict[str, Finite] = {}
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    average_last: Count = 1
    min_sites: Count | None = None
    timeout: Positive = 3600.0
    grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] = 3

    @model_serializer(mode="wrap")
    def _without_grace(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not said: a plan from before there was a grace is still the same."""
        value: dict[str, Any] = dump(self)
        if self.grace is None:
            value.pop("grace", None)
        return value

    @model_validator(mode="after")
    def _prox(self) -> Self:
        if self.proximal_mu and self.kind != "fedprox":
            raise ValueError("'proximal_mu' belongs to kind = 'fedprox'")
        return self


class Privacy(Part):
    """The guarantee asked for, at each site.

    Attributes:
        epsilon, delta: the budget of each site's population for this plan.
        unit: what one person's contribution is: ``record`` or ``person``.
        relation: neighbouring relation of the accounting.
        trust: who sees un-noised values; ``local``: nobody outside the site.
        clip: L2 bound of one unit's gradient.
        noise_multiplier: σ; left out, it is calibrated to ``epsilon``.
        max_records: most records of one person that are used (unit ``person``).
    """

    epsilon: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "person"] = "record"
    relation: Literal["add_or_remove_one", "replace_one"] = "add_or_remove_one"
    trust: Literal["local"] = "local"
    clip: Positive = 1.0
    noise_multiplier: Positive | None = None
    max_records: Count = 1

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.delta > 1e-2:
            raise ValueError("'delta' above 0.01 protects nobody; use at most 1 / number of units")
        if self.unit == "record" and self.max_records != 1:
            raise ValueError("'max_records' belongs to unit = 'person'")
        return self


class Compression(Part):
    """How a site makes its noised update lighter (:mod:`privet.common.compress`).

    Attributes:
        kind: ``int8``, a byte a number; or ``top-k``, the largest alone.
        share: of each array's numbers that are sent (``top-k``).
    """

    kind: Literal["int8", "top-k"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.1


class Metrics(Part):
    """Where figures about the model come from (H13).

    Attributes:
        source: ``public`` (a public test split), ``gate`` (each site's own held-out
            records, noised and debited) or ``off``.
        every: rounds between two evaluations; the last round is always evaluated.
        noise_multiplier: σ of one gate release, per unit of sensitivity.
        bins: score bins of the gate's histogram. Of an odd number the middle one lies on both
            sides of one half, and each takes half of it; there is no AUC of two.
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
        person_ignore_case, person_numeric: how ids of persons are folded
            (:class:`privet.common.person_id.PersonId`).
        multiline: quoted cells of CSV and TSV files may hold line ends.
    """

    path: str | None = None
    site_column: str | None = None
    person_column: str | None = None
    person_ignore_case: bool = False
    person_numeric: bool = False
    multiline: bool = False

    @property
    def person(self) -> PersonId:
        """How ids of persons are folded."""
        return PersonId(self.person_ignore_case, self.person_numeric)


class Plan(Part):
    """The whole plan. ``privacy = None`` is a run without any guarantee.

    It has no default, so that nobody trains without one by leaving something out; a file says
    ``privacy = "none"``.

    ``attested`` names rows of the honesty list that the author of the plan vouches for,
    with the reason: H12 (where the constants come from), H13 (the test split's records are
    public), H21 (nobody is at two sites).
    """

    name: Name
    title: Annotated[str, Field(max_length=200, pattern=ONE_LINE)] = ""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    scenario: str | None = None
    task: TaskSpec
    model: ModelSpec = ModelSpec()
    training: Training = Training()
    strategy: Strategy = Strategy()
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
    sites: Annotated[tuple[SiteSpec, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError("'sites' names a site twice")
        if self.strategy.min_sites is not None and self.strategy.min_sites > len(names):
            raise ValueError(f"'strategy.min_sites' is above the number of sites, {len(names)}")
        if self.strategy.average_last > self.last_round:
            raise ValueError("'strategy.average_last' is above 'training.rounds'")
        if not self.trains:
            self._require_something_to_measure()
        if self.training.copies > 1 and ":" not in self.task.kind and not self.task.augment:
            raise ValueError("'training.copies' without 'task.augment': a record twice is the same")
        if self.privacy is None and self.metrics.source == "gate":
            raise ValueError("metrics from the gate need a [privacy] section")
        return self

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

    @classmethod
    def parse(cls, value: dict[str, Any], *, where: str = "plan") -> Plan:
        """Build a plan from a mapping, as TOML or JSON gives it.

        Raises:
            PlanError: naming every wrong key and what was expected.
        """
        if isinstance(value, dict) and "populations" in value and "task" not in value:
            raise PlanError(f"{where}: this is a policy, not a plan")
        return parse(cls, value, where=where, error=PlanError)

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan from a TOML file.

        Raises:
            PlanError: if the file cannot be read or is not a plan.
        """
        path = Path(path)
        value = load_toml(path)
        value.setdefault("name", path.stem)
        return cls.parse(value, where=str(path))

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
        return self.strategy.min_sites or len(self.sites) // 2 + 1

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:…`` over the plan's canonical JSON."""
        return digest_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values; ``Plan.parse`` reads it back."""
        value: dict[str, Any] = self.model_dump(mode="json")
        return value

    def changed(self, **changes: Any) -> Plan:
        """Return a validated copy; ``changes`` maps top-level keys to new values.

        A mapping is merged into the section it names; None and other values replace it.
        """
        value = self.to_dict()
        for key, change in changes.items():
            if isinstance(change, dict) and isinstance(value.get(key), dict):
                value[key] = {**value[key], **change}
            else:
                value[key] = change
        return Plan.parse(value, where=self.name)

    def site(self, name: str) -> SiteSpec:
        """Return the site called ``name``.

        Raises:
            PlanError: if there is none.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites)
        raise PlanError(f"plan '{self.name}' has no site '{name}'; it has {known}")
