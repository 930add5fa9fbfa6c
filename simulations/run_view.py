"""What pictures and tables need of a run's result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from privet.common.plan import Plan
from privet.privacy.accounting.units import PrivacyLoss
from privet.server.rounds import Progress


class SiteView(Protocol):
    """Of one site."""

    @property
    def name(self) -> str:
        """Of the site."""

    @property
    def status(self) -> str:
        """Its last answer."""

    @property
    def loss(self) -> PrivacyLoss | None:
        """What it spent."""

    @property
    def cap(self) -> float | None:
        """Lifetime ε of its population."""

    @property
    def metrics(self) -> dict[str, Any]:
        """On its test records."""


class RunView(Protocol):
    """Of a whole run."""

    @property
    def plan(self) -> Plan:
        """Of the run."""

    @property
    def sites(self) -> Sequence[SiteView]:
        """All of them."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Over all sites."""

    @property
    def loss(self) -> PrivacyLoss | None:
        """The largest of the sites."""

    @property
    def progress(self) -> list[Progress]:
        """Of each round."""

    @property
    def claim(self) -> str:
        """In one word."""
