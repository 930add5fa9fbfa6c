"""What the rounds of a run ask of those who keep its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from privet.common.order import Order, Status
from privet.server.round_models import RoundModels

Show = Callable[[dict[str, dict[str, Any]]], dict[str, dict[str, Any]]]
"""Asks sites for evidence of their logs: a question by site, the answers by site."""
Wait = Callable[[list[str]], bool]
"""Waits until one of the sites can be asked again; returns False if that is useless."""


class RunEvidence(Protocol):
    """Sign orders, check what answers them, and write down the rounds.

    :class:`~privet.server.evidence.collector.EvidenceCollector` does so in a journal, with
    witnesses, and has the details.

    Attributes:
        resumes: a run that failed, and continues.
        on_restored: called with a sentence on what was missing after a restore, and who had it.
    """

    resumes: str
    on_restored: Callable[[str], None]

    @property
    def can_restore(self) -> bool:
        """Whether the sites keep copies of what was written down."""

    def restore(self, sites: list[str], show: Show) -> int:
        """Fetch what the sites have and is missing here; return the number of entries."""

    def is_done(self, run: str) -> bool:
        """Return whether a run is at its end."""

    def has_failed(self, run: str) -> bool:
        """Return whether a run failed."""

    def begun_with(self, run: str) -> list[str] | None:
        """Return the sites with which a run began; None if it is new."""

    def rounds_of(self, run: str) -> dict[int, dict[str, Any]]:
        """Return the records of the rounds that aggregated something, by round number."""

    def kept_order(self, digest: str) -> Order | None:
        """Return a signed order by its digest; None if it is not kept."""

    def begin(
        self, run: str, plan: str, model: str, sites: list[str], show: Show, *, ended: bool = False
    ) -> None:
        """Open the run."""

    def resume(self, run: str, number: int) -> dict[str, int]:
        """Return, by site, its newest attempt in a round that an earlier process did not finish."""

    def is_resumed(self, run: str) -> bool:
        """Return whether a run was resumed and has finished no round since."""

    def head(self, site: str) -> str:
        """Return the newest head of a site's log that any witness cosigned, or ""."""

    def sign(self, orders: Iterable[Order]) -> list[Order]:
        """Return the orders, signed where somebody checks that."""

    def ask(self, orders: Mapping[str, Order], send: Show) -> dict[str, dict[str, Any]]:
        """Send orders, by site; return the evidence that came beside the releases."""

    def receive(
        self,
        releases: Mapping[str, tuple[Order, str]],
        show: Show,
        shown: Mapping[str, dict[str, Any]] | None = None,
    ) -> set[str]:
        """Return the sites whose releases may be used."""

    def answered(self, order: Order, status: Status) -> None:
        """Note a site's answer to an order."""

    def witness(
        self,
        sites: list[str],
        show: Show,
        wait: Wait = lambda sites: False,
        *,
        turn: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Have the logs cosigned; return who cosigned which."""

    def record(
        self,
        run: str,
        number: int,
        models: RoundModels[str],
        witnessed: list[dict[str, Any]],
        used: Iterable[str],
    ) -> dict[str, Any]:
        """Return the record of a round."""

    def close_round(self, record: dict[str, Any]) -> None:
        """Write down a round."""

    def close_run(
        self, run: str, model: str, sites: list[str], show: Show, *, fault: str = ""
    ) -> None:
        """Write down the end of the run."""

    def close(self) -> None:
        """Free what is held open."""
