"""The coordinator's journal: the orders it signed, the releases it aggregated, the witnesses.

The journal is a log like a site's ledger. The coordinator signs it with a key of its own and the
sites cosign it, so that the coordinator can neither rewrite it nor show two versions of it. Beside
the entries it keeps the papers that an auditor needs: signed orders, receipts, cosigned heads.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from privet import __version__
from privet.common.canonical import digest, digest_json
from privet.common.errors import LedgerError, RunError
from privet.common.order import ORDER_TYPE, Order
from privet.privacy.evidence.copies.journal_copy import ORDER, RECEIPT, JournalKey
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.log import CHECKPOINT, Log
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Key, Signer, fingerprint, key_name
from privet.privacy.evidence.statement import JOURNAL, Entry, pae

FILE = "journal.db"
_COMMON = ("sequence", "time", "log")


class Runs:
    """The state that a journal's entries add up to: each run, its last round and its model."""

    def __init__(self) -> None:
        self.coordinator = ""
        self.last: dict[str, tuple[int, str]] = {}
        self.sites: dict[str, list[str]] = {}
        self.begun: dict[str, tuple[str, str]] = {}
        self.closed: dict[str, str] = {}
        """How each run ended: `done` or `failed`."""
        self.broken: dict[str, list[dict[str, Any]]] = {}
        """The orders of each run's last round, if that aggregated nothing."""
        self.resumed: dict[str, list[dict[str, Any]]] = {}
        """Of each run that was resumed and has done no round since: the orders as answered then."""

    def apply(self, entry: Entry) -> None:
        """Apply the next entry.

        Raises:
            LedgerError: if a round is out of order.
        """
        value, run = entry.predicate, str(entry.predicate.get("run", ""))
        if entry.kind == "genesis":
            self.coordinator = str(value["coordinator"])
        elif entry.kind == "run-opened":
            if run in self.last:
                raise LedgerError(f"run '{run}' is in this journal already")
            self.last[run] = (0, str(value["model"]))
            self.sites[run] = list(value["sites"])
            self.begun[run] = (str(value["plan"]), str(value["model"]))
        elif entry.kind in ("round", "run-closed"):
            if run not in self.last or run in self.closed:
                raise LedgerError(f"run '{run}' is not open in this journal")
            if entry.kind == "run-closed":
                self.closed[run] = str(value["how"])
                return
            self.resumed.pop(run, None)
            self.broken.pop(run, None)
            if not value["joined"] and not value["metrics"]:
                self.broken[run] = list(value["orders"])
            number, model = self.last[run]
            if (value["round"], value["model"]) != (number + 1, model):
                raise LedgerError(f"run '{run}': round {value['round']} does not follow {number}")
            self.last[run] = (number + 1, str(value["next"]))
        elif entry.kind == "run-resumed":
            if self.closed.get(run) != "failed":
                raise LedgerError(f"run '{run}' has not failed, and cannot be resumed")
            if (value["rounds"], value["model"]) != self.goes_on_after(run):
                raise LedgerError(f"run '{run}' is resumed elsewhere than where it ended")
            self.last[run] = self.goes_on_after(run)
            self.resumed[run] = self.broken.pop(run, [])
            del self.closed[run]
        elif entry.kind != "key-rotated":
            raise LedgerError(f"entry {entry.sequence}: '{entry.kind}' is not known; update Privet")

    def goes_on_after(self, run: str) -> tuple[int, str]:
        """Return the last round of a run that aggregated an update, and the model after it."""
        number, model = self.last[run]
        if run in self.broken:
            number -= 1  # a resumed run does the round again that aggregated nothing
        return number, model


class Journal:
    """The journal of one coordinator, in ``folder``.

    Args:
        folder: holds ``journal.db``.
        name: of the coordinator.
        signer: signs the journal.
        orders: signs orders.
        witness: the coordinator's own witness key, for a new journal.
        setting: ``site`` for a real federation, or ``simulation``.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        signer: Signer,
        orders: Signer,
        witness: Key,
        *,
        setting: str,
    ) -> None:
        self._orders = orders
        self.order_key = Key(key_name("orders", name, orders.public), orders.public)
        self.log = Log(folder / FILE, signer, JOURNAL, name, Runs, create=True)
        with self.log.writing():
            if not len(self.log):
                key = self.log.key
                self.log.append(
                    "genesis",
                    "key",
                    digest(key.public),
                    coordinator=name,
                    key=str(key),
                    recovery=None,
                    witness=str(witness),
                    orders=str(self.order_key),
                    setting=setting,
                    software=f"privet {__version__}",
                )

    def sign(self, order: Order) -> Order:
        """Return the order with the coordinator's signature."""
        message = pae(ORDER_TYPE, order.encode())
        return replace(
            order,
            keyid=fingerprint(self._orders.public).partition(":")[2],
            signature=base64.b64encode(self._orders.sign(message)).decode(),
        )

    def sealed_key(self, run: str, plan: str, roster: Roster, by: str = "") -> JournalKey:
        """Return the journal's private key, encrypted to the order key.

        Args:
            run: identifier of the run.
            plan: digest of its plan.
            roster: of the run.
            by: the researcher who submitted it, or "".
        """
        signer = self.log.signer
        assert isinstance(signer, FileSigner)
        found = digest_json(roster.to_dict())
        return JournalKey.seal(run, plan, found, self.log.first_key, signer.seed, self._orders, by)

    def rounds_of(self, run: str) -> dict[int, dict[str, Any]]:
        """Return the journal's records of the rounds that aggregated something, by round number."""
        if run not in self.log.state.last:
            return {}
        found = {}
        for leaf in self.log.store.leaves():
            entry = Entry.read(leaf)
            if entry.kind == "round" and entry.predicate["run"] == run:
                found[int(entry.predicate["round"])] = {
                    k: v for k, v in entry.predicate.items() if k not in _COMMON
                }
        last, _ = self.log.state.goes_on_after(run)
        return {number: record for number, record in found.items() if number <= last}

    def open_run(self, run: str, plan: str, model: str, sites: Iterable[str]) -> None:
        """Note that a run begins; do nothing if it began before.

        Args:
            run: identifier of the run.
            plan: digest of its plan.
            model: digest of the first model.
            sites: names of those that take part.

        Raises:
            RunError: if the run ended before (the journal would note nothing that it does now), or
                began under another plan or with another model.
        """
        with self.log.writing():
            if run in self.log.state.closed:
                raise RunError(
                    f"run '{run}' has ended, and the journal says so; begin another one, with a "
                    "name and a folder for snapshots of its own"
                )
            if run in self.log.state.last:
                begun = self.log.state.begun[run]
                if begun != (plan, model):
                    raise RunError(
                        f"run '{run}' was begun with plan {begun[0]} and first model {begun[1]}; "
                        "continue with these, or begin another run"
                    )
            else:
                self.log.append(
                    "run-opened", "plan", plan, run=run, plan=plan, model=model, sites=list(sites)
                )

    def resume_run(self, run: str) -> None:
        """Note that a failed run continues; do nothing for an open or unknown run."""
        with self.log.writing():
            if self.log.state.closed.get(run) == "failed":
                rounds, model = self.log.state.goes_on_after(run)
                self.log.append("run-resumed", "model", model, run=run, rounds=rounds, model=model)

    def is_done(self, run: str) -> bool:
        """Return whether the run ended without a failure."""
        return self.log.state.closed.get(run) == "done"

    def keep(self, papers: Iterable[tuple[str, str, str]]) -> None:
        """Store papers (kind, name, text) durably, before the round that they belong to."""
        with self.log.store.transaction():
            for kind, name, text in papers:
                self.log.store.file(kind, name, text)

    def close_round(self, record: dict[str, Any]) -> None:
        """Note a round; do nothing if it was noted before."""
        with self.log.writing():
            if self.log.state.last[record["run"]][0] < record["round"]:
                self.log.append("round", "model", record["next"], **record)

    def close_run(self, run: str, model: str, *, fault: str = "") -> None:
        """Note that a run ended; do nothing if that was noted before.

        Args:
            run: identifier of a run that this journal began.
            model: digest of the final model.
            fault: name of the error that ended the run, or "" if the run is done.
        """
        with self.log.writing():
            if run in self.log.state.closed:
                return
            self.log.append(
                "run-closed",
                "model",
                model,
                run=run,
                rounds=self.log.state.last[run][0],
                model=model,
                how="failed" if fault else "done",
                fault=fault,
            )


def order_paper(order: Order) -> tuple[str, str, str]:
    """Return a signed order as a paper."""
    value = {"order": order.to_dict(), "keyid": order.keyid, "sig": order.signature}
    return ORDER, order.digest, json.dumps(value)


__all__ = ["CHECKPOINT", "ORDER", "RECEIPT", "Journal", "order_paper"]
