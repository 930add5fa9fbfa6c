"""Values for the keys that say how a plan is trained, each with its reason.

The rules were found on nine data sets and four scenarios that ``benchmarks/defaults.py`` marks, and
are measured there on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from privet.common.settings.facts import HEAD_SCALE, Facts

ROUNDS = 40
LAST = 10
MOMENTUM = 0.8
LOCAL_STEPS = 25
"""Of a linear model without privacy, in each round."""
MAX_PATH = 3000.0
"""Longest way of a linear model of few classes, in logits: a longer one gains nothing more, and
makes its chances surer than they are."""
MANY_CLASSES = 8
"""From here on the way grows with the root of the classes: each gets a smaller part of it."""
MAX_NOISE = 2.0
"""Noise of the last model's logits that a linear model stands: it is averaged out of directions
that many records agree in."""
_STRATEGY = ("strategy.kind", "strategy.options", "strategy.average_last")


@dataclass(frozen=True)
class Choice:
    """A value that a rule chose.

    Attributes:
        key: with dots.
        value: as JSON.
        reason: one line.
    """

    key: str
    value: Any
    reason: str


class Draft:
    """A plan that says some keys, and takes values for others, one after the other.

    Args:
        facts: of the plan.
        values: of the plan as JSON, with schema defaults where it says nothing.
        said: keys with dots that its author wrote.
    """

    def __init__(self, facts: Facts, values: Mapping[str, Any], said: frozenset[str]) -> None:
        self.facts = facts
        self._values = values
        self._said = said
        self.choices: dict[str, Choice] = {}

    def says(self, *keys: str) -> bool:
        """Return whether the author wrote one of some keys."""
        return any(key in self._said for key in keys)

    def take(self, key: str, value: Any, reason: str) -> None:
        """Take a value, unless the author wrote one."""
        if not self.says(key):
            self.choices[key] = Choice(key, value, reason)

    def value(self, key: str) -> Any:
        """Return what a key holds: what was taken, or else what the plan says."""
        if key in self.choices:
            return self.choices[key].value
        found: Any = self._values
        for part in key.split("."):
            found = found.get(part)
        return found

    @property
    def server_momentum(self) -> float:
        """The coordinator's momentum."""
        return float(self.value("strategy.options").get("server_momentum", 0.0))

    @property
    def width(self) -> float:
        """Length of a linear model's typical input."""
        scale = self.value("model.options.scale")
        return self.facts.width(1.0 if scale is None else float(scale))

    @property
    def steps(self) -> int:
        """Steps of a site in a whole run."""
        return int(self.value("training.rounds") * self.value("training.steps"))

    @property
    def reach(self) -> float:
        """How far a rate of 1 carries gradients of length 1 in a whole run, momentum included."""
        local = float(self.value("training.momentum"))
        return self.steps / ((1 - self.server_momentum) * (1 - local))


def choose_model(task: str, said: frozenset[str]) -> Iterator[Choice]:
    """Yield which model is trained where a plan names none.

    Args:
        task: its kind.
        said: keys that the plan's author wrote.
    """
    if "model.kind" in said:
        return
    if task == "tabular":
        why = "with the noise of a few thousand records, no larger model of a table was better"
        yield Choice("model.kind", "linear", why)
    if task == "text":
        why = "a head on a frozen encoder: few trained numbers, so little noise"
        yield Choice("model.kind", "minilm", why)


def choose(facts: Facts, values: Mapping[str, Any], said: frozenset[str]) -> dict[str, Choice]:
    """Return what a plan leaves out, by key.

    Args:
        facts: of the plan, with its model.
        values: of the plan as JSON, with schema defaults where it says nothing.
        said: keys that its author wrote.
    """
    draft = Draft(facts, values, said)
    if facts.reads_features:
        # Whatever is done with the model: a trained head is measured at the length it had.
        draft.take(
            "model.options.scale", HEAD_SCALE,
            "length of the encoder's features, so that a bias takes little of the bounded gradient",
        )  # fmt: skip
    if facts.family == "linear":
        _linear(draft)
    return draft.choices


def _linear(draft: Draft) -> None:
    if draft.facts.is_private:
        _private(draft)
        draft.take(
            "privacy.clip", _rounded(draft.width / 2),
            f"half the length {draft.width:.1f} of a usual input: large errors are cut, others not",
        )  # fmt: skip
        _linear_rate(draft)
        return
    draft.take("training.rounds", ROUNDS, "enough without noise, too")
    draft.take("training.steps", LOCAL_STEPS, "local steps cost no privacy here")
    draft.take("training.sample_rate", 1.0, "whole gradients: nothing is gained by sampling")
    _strategy(draft, 1, "no noise to average out")
    # 2 / L is the longest stable step, and L ≤ width² / 2 for cross-entropy.
    rate = 3 / draft.width**2
    if draft.value("training.optimizer") == "adam":
        rate = 0.03
    draft.take(
        "training.learning_rate", _rounded(rate),
        f"close to the longest stable step for inputs of length {draft.width:.1f}",
    )  # fmt: skip


def _private(draft: Draft) -> None:
    """Choose what trains well under noise, whatever the model."""
    draft.take("training.rounds", ROUNDS, "with full batches more rounds cost noise in each")
    draft.take("training.steps", 1, "the noise of all sites is averaged after each step")
    draft.take(
        "training.sample_rate", 1.0, "all records in each step: the least noise for the ε asked"
    )
    last = max(1, min(LAST, int(draft.value("training.rounds")) // 4))
    _strategy(draft, last, f"the mean of the last {last} models has less noise")


def _strategy(draft: Draft, last: int, why: str) -> None:
    if draft.says(*_STRATEGY):
        return
    draft.take("strategy.kind", "fedavgm", "momentum averages the noise of rounds")
    draft.take("strategy.options", {"server_momentum": MOMENTUM}, "tried values between 0 and .9")
    draft.take("strategy.average_last", last, why)


def _linear_rate(draft: Draft) -> None:
    facts = draft.facts
    if draft.value("training.optimizer") == "adam":
        draft.take("training.learning_rate", 0.02, "what Adam changes a number by in a step")
        return
    rounds, steps, rate = (
        draft.value(f"training.{key}") for key in ("rounds", "steps", "sample_rate")
    )
    # A path of length l, in logits, adds noise of l σ √sites / (√steps q units) to them: each of
    # the steps' noises is added up at random, and the sum of all sites' is divided by q units.
    noise = facts.noise(rounds, steps, rate) * math.sqrt(facts.sites)
    noise /= math.sqrt(draft.steps) * rate * facts.units
    longest = MAX_PATH * math.sqrt(max(1.0, facts.classes / MANY_CLASSES))
    path = min(longest, MAX_NOISE / noise)
    found = path / (draft.reach * draft.value("privacy.clip") * draft.width)
    limit = "where a longer way gains nothing" if path == longest else "as far as the noise allows"
    draft.take("training.learning_rate", _rounded(found), limit)


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
