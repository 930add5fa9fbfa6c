"""Decide which sites are asked again in a round, and after how many seconds: a pure function.

A *new* attempt of an order may cost its site another charge. So this module reads no clock, network
or file. Pauses depend on the number of tries alone, never on the time that a site took, which may
depend on its records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

MAX_PAUSE_S = 60.0
"""Most seconds between two tries."""


class SiteStanding(Enum):
    """A site's state in a round."""

    RELEASED = auto()
    SILENT = auto()
    """No answer came in time; what it paid for waits in its outbox."""
    NOT_NOW = auto()
    UNPROVED = auto()
    """It released, and did not show that its log holds the release."""
    FAILED = auto()
    """It failed or is in conflict: a new attempt may have another outcome."""
    OUT = auto()
    """It refused permanently."""


class End(Enum):
    """The round asks no site any more."""

    QUORUM = auto()
    NO_QUORUM = auto()


@dataclass(frozen=True)
class Heard:
    """The last answer of one site.

    Attributes:
        standing: by its last answer.
        tries: how often the site answered so in this round; for a failed one, its newest attempt.
        ago: seconds since its last answer.
    """

    standing: SiteStanding
    tries: int = 1
    ago: float = 0.0


@dataclass(frozen=True)
class Again:
    """The sites to ask next.

    Attributes:
        away: silent sites, which get the same order as soon as they are connected.
        same: sites that get the same order after ``seconds``, at no further cost.
        anew: sites that get a new attempt after ``seconds``, with a charge of its own.
        seconds: to wait; None if only ``away`` is left.
    """

    away: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    seconds: float | None = None


def pause(tries: int) -> float:
    """Return the seconds between try number ``tries``, from 1, and the next: 1, 2, 4, …, 60."""
    return min(MAX_PAUSE_S, 2.0 ** min(tries - 1, 10))


def decide(heard: Mapping[str, Heard], quorum: int, attempts: int) -> Again | End:
    """Decide how a round continues.

    Args:
        heard: of each site that may take part, in the plan's order.
        quorum: releases that a round needs.
        attempts: most attempts of a site in a round, and most tries for an unproved release. A
            silent site, and one that answers ``not-now``, is asked without limit: it pays nothing
            for that.

    Returns:
        QUORUM if enough sites have released: the round waits for no other. NO_QUORUM if the others
        that may still release are too few. Otherwise, the sites to ask next.
    """
    released = [site for site, one in heard.items() if one.standing is SiteStanding.RELEASED]
    if len(released) >= quorum:
        return End.QUORUM
    away = [site for site, one in heard.items() if one.standing is SiteStanding.SILENT]
    left = {
        site: max(0.0, pause(one.tries) - one.ago)
        for site, one in heard.items()
        if _may_be_asked(one, attempts)
    }
    # A silent site counts: it may have released, and its outbox keeps the release.
    if len(released) + len(away) + len(left) < quorum:
        return End.NO_QUORUM
    seconds = min(left.values(), default=None)
    due = [site for site, rest in left.items() if rest == seconds]
    anew = [site for site in due if heard[site].standing is SiteStanding.FAILED]
    same = [site for site in due if site not in anew]
    return Again(tuple(away), tuple(same), tuple(anew), seconds)


def _may_be_asked(one: Heard, attempts: int) -> bool:
    match one.standing:
        case SiteStanding.NOT_NOW:
            return True
        case SiteStanding.FAILED | SiteStanding.UNPROVED:
            return one.tries < attempts
    return False
