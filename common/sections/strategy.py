"""How the coordinator joins the sites' updates: a section for each of Flower's strategies."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from privet.common.schema import (
    UNSAID,
    Count,
    Finite,
    NotNegative,
    Options,
    OwnKind,
    Positive,
    Variant,
)


class MomentumOptions(Options):
    """Of ``fedavgm``."""

    server_learning_rate: Finite = 1.0
    server_momentum: Finite = 0.0


class AdagradOptions(Options):
    """Of ``fedadagrad``; ``eta_l`` has no effect here."""

    eta: Finite = 0.1
    eta_l: Finite = 0.1
    tau: Finite = 1e-3


class AdamOptions(AdagradOptions):
    """Of ``fedadam``."""

    beta_1: Finite = 0.9
    beta_2: Finite = 0.99


class YogiOptions(AdamOptions):
    """Of ``fedyogi``."""

    eta: Finite = 0.01
    eta_l: Finite = 0.0316


_Kind = TypeVar("_Kind", bound=str)
_Options = TypeVar("_Options")


class StrategyOf(Variant, Generic[_Kind, _Options]):
    """A strategy of one kind.

    Attributes:
        options: keyword arguments of the Flower strategy.
        average_last: the final model is the mean of the models of this many last rounds
            (post-processing, free of privacy cost).
        min_sites: quorum, counted after replies; default: more than half of a round's sites.
        timeout: seconds that a round may take, from its orders until its logs are witnessed.
        grace: seconds that further sites are waited for once a quorum has released; default: five,
            or as long again as the quorum took, and one that is connected for twice as long as it
            took the last time.
        attempts: over the link, how often a site that failed may be asked for the same round
            where the quorum is not met without it; each attempt is charged again.
        witnesses: how many other sites cosign each ledger in a round, drawn by lot, beside the
            coordinator; default: all.
        sites_per_round: how many sites take part in each round, in turns that the plan's seed
            fixes (:class:`privet.common.schedule.Schedule`); default: all.
    """

    blanks: ClassVar[dict[str, Any]] = {"proximal_mu": 0.0}

    kind: _Kind
    options: Annotated[_Options, Field(validate_default=True)] = UNSAID
    average_last: Count = 1
    min_sites: Count | None = None
    timeout: Positive = 3600.0
    grace: NotNegative | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    witnesses: Annotated[int, Field(ge=2, le=1000)] | None = None
    sites_per_round: Count | None = None

    @model_serializer(mode="wrap")
    def _without_newer(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer keys that were not said: a plan from before them is still the same."""
        value: dict[str, Any] = dump(self)
        for name in ("grace", "witnesses", "sites_per_round"):
            if getattr(self, name) is None:
                value.pop(name, None)
        return value


class FedAvgSpec(StrategyOf[str, Options]):
    """The mean of the sites' models, by their nominal sizes."""

    kind: Literal["fedavg"] = "fedavg"


class FedProxSpec(StrategyOf[str, Options]):
    """The same; a site is held near the model that it begins with.

    Attributes:
        proximal_mu: weight of the proximal term.
    """

    kind: Literal["fedprox"]
    proximal_mu: NotNegative = 0.0


Strategy = (
    FedAvgSpec
    | FedProxSpec
    | StrategyOf[Literal["fedavgm"], MomentumOptions]
    | StrategyOf[Literal["fedadam"], AdamOptions]
    | StrategyOf[Literal["fedyogi"], YogiOptions]
    | StrategyOf[Literal["fedadagrad"], AdagradOptions]
    | StrategyOf[OwnKind, dict[str, Finite]]
)
"""A strategy of Flower's, or what a user's own factory makes of the options."""


def proximal_mu(strategy: Strategy) -> float:
    """Return the weight of the proximal term, 0 without one."""
    return getattr(strategy, "proximal_mu", 0.0)
