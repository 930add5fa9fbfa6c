"""The sites' answers in a round, and each site's state after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from privet.common.errors import QuorumError
from privet.common.order import Status
from privet.common.plan import Plan
from privet.common.release import Release
from privet.server.retry import Heard, SiteStanding


@dataclass(frozen=True)
class Reply:
    """One site's answer to an order.

    Attributes:
        handle: the link's own message, which the strategy receives.
        unproved: the site released, but did not prove that its log holds the release.
        shown: the evidence of its log that the site sent beside the release, if it was asked to.
    """

    site: str
    status: Status
    release: Release | None
    handle: Any = None
    unproved: bool = False
    shown: dict[str, Any] | None = None

    @property
    def standing(self) -> SiteStanding:
        """The site's state after this answer."""
        if self.release is not None:
            return SiteStanding.RELEASED
        if self.unproved:
            return SiteStanding.UNPROVED
        if self.status is Status.NOT_NOW:
            return SiteStanding.NOT_NOW
        if self.status in _MAY_BE_ASKED_ANEW:
            return SiteStanding.FAILED
        return SiteStanding.OUT


@dataclass
class Replies:
    """The last reply of each site in one round."""

    held: dict[str, Reply] = field(default_factory=dict)
    _tries: Counter[tuple[str, SiteStanding]] = field(default_factory=Counter)
    _when: dict[str, float] = field(default_factory=dict)

    def take(self, asked: Iterable[str], replies: Iterable[Reply], now: float) -> None:
        """Note the replies to one exchange; a site without a reply is silent.

        Args:
            asked: names of the sites that were asked.
            replies: that came in time.
            now: seconds on a monotonic clock, the same in all calls.
        """
        for site in asked:
            self.held.pop(site, None)
        for reply in replies:
            self.held[reply.site], self._when[reply.site] = reply, now
            self._tries[reply.site, reply.standing] += 1

    def heard(
        self, sites: Iterable[str], attempts: Mapping[str, int], now: float
    ) -> dict[str, Heard]:
        """Return each site's state, tries and time since its last answer.

        Args:
            sites: that may take part in the round.
            attempts: newest attempt of each site; 1 for a site that is not named.
            now: seconds on the clock of :meth:`take`.
        """
        return {site: self._heard(site, attempts.get(site, 1), now) for site in sites}

    def _heard(self, site: str, attempt: int, now: float) -> Heard:
        if site not in self.held:
            return Heard(SiteStanding.SILENT)
        standing = self.held[site].standing
        tries = attempt if standing is SiteStanding.FAILED else self._tries[site, standing]
        return Heard(standing, tries, now - self._when[site])


def released(replies: Iterable[Reply]) -> list[Reply]:
    """Return the replies that hold a release."""
    return [reply for reply in replies if reply.release is not None]


def no_quorum(plan: Plan, number: int, replies: Iterable[Reply]) -> QuorumError:
    """Return the error that ends a run whose round has too few releases.

    Args:
        plan: names the sites and the quorum.
        number: of the round, from 1.
        replies: the last reply of each site that answered.
    """
    given = list(replies)
    counts: Counter[str] = Counter(str(reply.status) for reply in given)
    if silent := plan.sites_in_a_round - len(given):
        counts["no reply in time"] = silent
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    what = "an update" if plan.trains else "a measurement"
    text = (
        f"round {number}: {len(released(given))} of {plan.sites_in_a_round} sites released {what}, "
        f"the quorum is {plan.quorum} ({said})"
    )
    if Status.NOT_NOW in counts:
        text += _NOT_NOW_HINT
    return QuorumError(text)


_MAY_BE_ASKED_ANEW = (Status.FAILED, Status.REFUSED_CONFLICT, Status.REFUSED_PAUSED)
"""Statuses that may differ at the next attempt; if data was opened, that is charged again.

A site of an earlier version answers ``refused-paused`` instead of ``not-now``.
"""
_NOT_NOW_HINT = (
    ". A site that says not-now has paused, or its disk is full, or its database, its trainer or "
    "its key is not there; its operator's log says which. It paid nothing for that: run again"
)
