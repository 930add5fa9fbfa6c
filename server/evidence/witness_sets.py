"""Which sites cosign which log in a round."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from privet.common.canonical import canonical_json
from privet.privacy.evidence.roster import Roster


class WitnessSet(Protocol):
    """Choose the sites that cosign a log. A site never cosigns its own."""

    def of(self, log: str) -> Sequence[str] | None:
        """Return the sites that cosign a log in this round; None if every other site does.

        Args:
            log: its origin.
        """

    def begin_round(self, before: Mapping[str, Any]) -> None:
        """Take what the round before had witnessed.

        Args:
            before: the journal's record of that round.
        """


class AllSites:
    """Every site cosigns every other log."""

    def of(self, log: str) -> None:
        """Return None: there is no choice."""
        del log

    def begin_round(self, before: Mapping[str, Any]) -> None:
        """Do nothing: there is no choice."""


class FirstSites:
    """The same few sites cosign every log, in all rounds. For simulations: their keys lie together.

    Args:
        roster: names the sites.
        count: how many cosign a log.
    """

    def __init__(self, roster: Roster, count: int) -> None:
        self._owners = {site.ledger.name: site.name for site in roster.sites}
        self._first = [site.name for site in roster.sites][: count + 1]
        self._count = count

    def of(self, log: str) -> Sequence[str]:
        """Return the first sites, but for the log's owner."""
        owner = self._owners.get(log)
        return [site for site in self._first if site != owner][: self._count]

    def begin_round(self, before: Mapping[str, Any]) -> None:
        """Do nothing: the choice is the same in every round."""


@dataclass
class SitesByLot:
    """A few sites cosign each log, drawn in each round from the others' last heads.

    The draw is a function of what the journal has, so that anybody can repeat it. It hashes run,
    round, log, and the cosigned heads of the sites that released in the round before, but for that
    of the log itself and of the journal: their authors could otherwise try entries until the draw
    is as they like. Nor can a coordinator leave out a head to draw again without a trace: that
    site's release is then unused. In the first round, when no head is cosigned, all sites cosign;
    so they do for a log where no other site released in the round before.

    Attributes:
        roster: names the sites.
        count: how many sites cosign a log.
    """

    roster: Roster
    count: int
    _drawn: dict[str, list[str]] = field(default_factory=dict)

    def of(self, log: str) -> Sequence[str] | None:
        """Return the sites that were drawn for a log; None where nothing could be drawn from."""
        return self._drawn.get(log)

    def begin_round(self, before: Mapping[str, Any]) -> None:
        """Draw the sites of each log."""
        released = {item["log"] for item in (*before["joined"], *before["metrics"])}
        heads = [
            (str(one["log"]), int(one["size"]), str(one["root"]))
            for one in before["witnessed"]
            if one["log"] in released
        ]
        run, number = str(before["run"]), int(before["round"]) + 1
        owners = {site.ledger.name: site.name for site in self.roster.sites}
        self._drawn = {}
        for log in (*owners, self.roster.coordinator.journal.name):
            others = [site for origin, site in owners.items() if origin != log]
            if told := [head for head in heads if head[0] != log]:
                self._drawn[log] = draw(run, number, log, told, others)[: self.count]


def quorum_of(sites: int, witnesses: int | None) -> int:
    """Return how many cosignatures a log needs: more than half of the sites that are asked.

    Args:
        sites: of the run.
        witnesses: how many cosign each log, by lot; None: all but its own.
    """
    return sites // 2 + 1 if witnesses is None else min(witnesses, sites) // 2 + 1


def draw(
    run: str, number: int, log: str, heads: Iterable[tuple[str, int, str]], sites: Iterable[str]
) -> list[str]:
    """Return sites in the order in which the lot names them.

    Args:
        run: identifier of the run.
        number: of the round.
        log: whose witnesses are drawn.
        heads: origin, size and root of the logs of the other sites that released in the round
            before, as they were cosigned in it.
        sites: that may be drawn.
    """
    said = ["privet/lot/v1", run, number, log, sorted(list(head) for head in heads)]
    seed = hashlib.sha256(canonical_json(said)).digest()
    return sorted(sites, key=lambda site: hashlib.sha256(seed + site.encode()).digest())
