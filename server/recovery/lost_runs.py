"""Find runs that a restored coordinator lacks, by the journals that its sites keep.

Each site is asked once on each stream. Its answer counts if this coordinator's order key signed it,
and `privet server status` prints it. No run comes back by itself, because its folder may have been
removed on purpose. `privet server resume` brings a run back.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.common.canonical import digest_json, fsync_folder, write_json
from privet.common.errors import InputError, LedgerError, PrivetError
from privet.common.link import offer
from privet.common.plan import Plan
from privet.privacy.evidence.copies.journal_copy import JournalKey
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.statement import JOURNAL, Entry
from privet.server.evidence.journal import FILE, Runs
from privet.server.link.parcel import LinkReply
from privet.server.link.server import LinkServer
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import LOST, RUN_NAME, Run, lost

TIMEOUT_S = 60.0
"""Seconds that a site has to answer; one of an earlier version does not."""

_LOG = logging.getLogger("privet.lost")


@dataclass
class LostRuns:
    """Ask sites for the runs that they know, and note those that are missing here.

    Args:
        federation: of this coordinator.
        link_server: the link server, which reaches the sites.
    """

    federation: MemberRegistry
    link_server: LinkServer
    _streams: dict[str, int] = field(default_factory=dict)
    _open: dict[str, tuple[str, Future[LinkReply], float]] = field(default_factory=dict)

    def look(self) -> None:
        """Ask the sites with a new stream, and note the answers so far; never blocks."""
        for site in self.link_server.present():
            stream = self.link_server.tally.streams[site]
            if self._streams.get(site) != stream and site not in self._open:
                self._streams[site] = stream
                number, answer = self.link_server.post(site, offer.RUNS, "", b"{}", {})
                self._open[site] = number, answer, time.monotonic()
        for site, (number, answer, began) in list(self._open.items()):
            if answer.done():
                del self._open[site]
                self._note(site, offer.decode_runs(answer.result().records))
            elif time.monotonic() - began > TIMEOUT_S:
                del self._open[site]
                self.link_server.withdraw(number)

    def _note(self, site: str, told: Iterable[dict[str, Any]]) -> None:
        known = lost(self.federation)
        found = {run: value for run, value in known.items() if not self._is_here(run)}
        for value in told:
            try:
                run = require_own(self.federation, value)
            except (PrivetError, KeyError, TypeError, ValueError) as error:
                _LOG.warning("a site reports an invalid run", extra={"site": site, "why": error})
                continue
            longer = value["held"] > found.get(run, {}).get("held", 0)
            if self._is_here(run) or not longer:
                continue
            if run not in known:
                _LOG.warning(
                    "a site keeps the journal of a run that is not here: was this coordinator "
                    "restored from an older copy? `privet server resume` brings it back",
                    extra={"run": run, "site": site, "entries": value["held"]},
                )
            found[run] = {**value, "site": site}
        if found != known:
            write_json(self.federation.folder / LOST, found, mode=0o600)

    def _is_here(self, run: str) -> bool:
        return (self.federation.folder / "runs" / run).exists()


def require_own(federation: MemberRegistry, value: dict[str, Any]) -> str:
    """Check that this coordinator began the run that a site reports.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        value: the site's answer: encrypted key, plan, roster, genesis entry and length of its
            journal. It is not trusted.

    Returns:
        The run's name.

    Raises:
        LedgerError: if its parts do not belong together, or another coordinator signed them.
        InputError: if a part cannot be read.
        KeyError, TypeError, ValueError: the same.
    """
    key, plan = JournalKey.from_json(value["key"]), Plan.parse(value["plan"], where="lost run")
    roster = Roster.parse(value["roster"])
    chief = roster.coordinator
    # The former keys too: the run may have begun before the order key was replaced.
    own = {signer.public for signer in federation.order_signers()}
    known = chief.orders.public in own and chief.witness == federation.witness().key
    if not known or not key.is_signed_by(chief.orders):
        raise LedgerError("it is not one of this coordinator")
    if (key.plan, key.roster, key.journal) != (
        plan.digest, digest_json(roster.to_dict()), str(chief.journal)
    ):  # fmt: skip
        raise LedgerError("plan, roster and journal are not those that were signed")
    if type(value["held"]) is not int or RUN_NAME.fullmatch(key.run) is None:
        raise LedgerError("its name or length is none")
    Entry.read(str(value["genesis"]).encode(), (chief.journal.public,))
    return key.run


def bring_back(federation: MemberRegistry, run_id: str) -> Run:
    """Make the folder of a lost run again, and queue it; the sites send the rest when it runs.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        run_id: a run of :func:`privet.server.queue.lost`.

    Raises:
        InputError: if there is no such run, or it is here by now.
        LedgerError: if the facts that the site sent do not match.
        PrivateKeyError: if the order key cannot be decrypted.
    """
    value = lost(federation).get(run_id)
    if value is None or require_own(federation, value) != run_id:
        raise InputError(f"no site told of a run '{run_id}' that is not here")
    folder = federation.folder / "runs" / run_id
    if folder.exists():
        raise InputError(f"run '{run_id}' is here: {folder}")
    # Whole before it has its name: half a run would be taken for one without a journal.
    half = folder.with_name(f".{run_id}.back")
    shutil.rmtree(half, ignore_errors=True)
    _write(federation, half, value)
    half.rename(folder)
    fsync_folder(folder.parent)
    return Run(folder)


def _write(federation: MemberRegistry, folder: Path, value: dict[str, Any]) -> None:
    key, plan = JournalKey.from_json(value["key"]), Plan.parse(value["plan"], where="lost run")
    roster = Roster.parse(value["roster"])
    orders = roster.coordinator.orders.public
    opener = next(one for one in federation.order_signers() if one.public == orders)
    signer = FileSigner.from_seed(key.open(opener.seed))
    if signer.public != roster.coordinator.journal.public:
        raise LedgerError("the encrypted key is not that of the run's journal")
    signer.save(folder / "coordinator" / "journal.pem", federation.passphrase)
    log = Log(folder / "coordinator" / FILE, signer, JOURNAL, federation.name, Runs, create=True)
    log.adopt([str(value["genesis"]).encode()])
    log.store.close()
    roster.save(folder)
    write_json(folder / "plan.json", plan.to_dict())
    told = "this run was not in the copy that the coordinator was restored from; its sites have it"
    facts = {"run": key.run, "state": "queued", "submitted": time.time(), "plan": plan.digest}
    if key.by:
        facts["by"] = key.by
    write_json(folder / "status.json", {**facts, "remarks": [told]})
