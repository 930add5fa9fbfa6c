"""Delete what a site needs no longer: stale snapshots, releases of runs long over.

A client does not learn that a run has ended, so time decides (``[keep]`` in the policy). Everything
of the run that each coordinator offered last stays. Deleted releases were charged all the same; an
order for one is refused as answered before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from privet.client.data.loader import FOLDER as SNAPSHOTS
from privet.client.link.coordinators import STATE
from privet.client.link.offers import Offers
from privet.client.outbox import Outbox
from privet.client.recovery.journal_copies import FOLDER as JOURNALS
from privet.client.recovery.journal_copies import JournalCopies
from privet.common.errors import PrivetError
from privet.common.link import offer
from privet.privacy.policy import Policy

_LOG = logging.getLogger("privet.housekeeping")
INTERVAL_S = 3600.0
"""Seconds between two checks of the outbox."""
_DAY_S = 86_400.0


def clear_snapshots(home: Path) -> None:
    """Remove database snapshots that a killed client left behind.

    The caller must hold the site's client lock: no other client may run for this site.
    """
    for folder in (home, *(home / STATE).glob("*")):
        for path in (folder / SNAPSHOTS).glob("*"):
            path.unlink(missing_ok=True)


def clear_outbox(home: Path, policy: Policy) -> int:
    """Remove releases of earlier runs that are older than the policy keeps them.

    The copies of coordinators' journals of these runs are removed as well.

    Args:
        home: folder of the site.
        policy: the site's own; ``keep.releases_days`` is the age in days.

    Returns:
        The number of releases that were removed.
    """
    files = [None, *sorted((home / STATE).glob("*/run.json"))]
    offered = [found for file in files if (found := Offers(home, file).run) is not None]
    runs = [offer.decode(one)[0] for one in offered]
    seconds = policy.keep.releases_days * _DAY_S
    for state in (home, *(home / STATE).glob("*")):
        JournalCopies(state / JOURNALS).forget_older(seconds, *runs)
    return Outbox(home / "outbox").forget_older(seconds, *runs)


def keep_house(home: Path, policy: Callable[[], Policy]) -> None:
    """Delete what is due now, and each hour while this process lasts, in a thread.

    Args:
        home: folder of the site.
        policy: reads the site's policy as it is now.
    """

    def work() -> None:
        while True:
            try:
                if count := clear_outbox(home, policy()):
                    _LOG.info("releases of earlier runs cleared away", extra={"releases": count})
            except (PrivetError, OSError) as error:
                _LOG.warning("old releases could not be cleared away", extra={"why": error})
            time.sleep(INTERVAL_S)

    with suppress(OSError):
        clear_snapshots(home)
    threading.Thread(target=work, daemon=True).start()
