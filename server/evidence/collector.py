"""Collect the evidence of a run, so that nobody has to trust the coordinator later.

::

    rounds ── EvidenceCollector ── Journal (signed log)   orders, aggregated releases, witnesses
                 │            └─── Witness                the coordinator's own witness
                 └──────────────── Link.show              the sites' logs and witnesses

In each round every site sends evidence of its log. The coordinator checks that the log holds every
release that it is about to aggregate, and witnesses (the coordinator's, and each site's for the
other sites) cosign every log: all of them, or those that a
:class:`~privet.server.evidence.witness_sets.WitnessSet` names. A rewritten history stops the run. A
site is left out, and the others continue, if the site itself reports that its ledger does not
extend what was witnessed of it (its backup was restored).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from privet.common.errors import EvidenceError, NoteError, RunError
from privet.common.order import Order, Status
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint, SignatureLine
from privet.privacy.evidence.witness import Witness
from privet.server.evidence.copying import CopyKeeper
from privet.server.evidence.heads import COORDINATOR, WitnessedHeads
from privet.server.evidence.journal import CHECKPOINT, ORDER, RECEIPT, Journal, order_paper
from privet.server.evidence.journal_copies import JournalSharer, part_of
from privet.server.evidence.receipts import Receipt, receipt_for
from privet.server.evidence.run_evidence import Show, Wait
from privet.server.evidence.witness_sets import AllSites, WitnessSet
from privet.server.round_models import RoundModels

_LOG = logging.getLogger("privet.collector")


@dataclass
class _Round:
    """The evidence of one round, until it is noted."""

    orders: dict[str, tuple[Order, str]] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    shown: dict[str, Evidence] = field(default_factory=dict)
    slots: dict[str, list[str]] = field(default_factory=dict)
    watched: dict[str, list[str]] | None = None


class EvidenceCollector:
    """Sign orders, check receipts, collect cosignatures, and write the journal.

    Args:
        journal: of this run, open for writing.
        witness: the coordinator's own.
        roster: names the logs and witnesses that count.
        copies: keeps copies of the sites' ledgers; None keeps none.
        sharer: sends copies of the journal to the sites; None sends none.
        witnesses: which sites cosign which log; None: every other site.
    """

    def __init__(
        self,
        journal: Journal,
        witness: Witness,
        roster: Roster,
        copies: CopyKeeper | None = None,
        sharer: JournalSharer | None = None,
        *,
        witnesses: WitnessSet | None = None,
    ) -> None:
        self.journal = journal
        self._sharer = sharer
        self.resumes: str = ""
        """A run that failed, and continues if the journal says so as well."""
        self._witness = witness
        self._roster = roster
        self._copies = copies
        self._absent: set[str] = set()
        self._origins = {site.name: site.ledger.name for site in roster.sites}
        self._heads = WitnessedHeads(roster)
        self._witnesses = witnesses or AllSites()
        self._is_everyone_asked = False
        self._round = _Round()
        self.on_answer: Callable[[Order, str], None] = lambda order, said: None
        """Called with each order: first with ``ordered``, then with the status of its answer."""
        self.on_restored: Callable[[str], None] = lambda text: None
        """Called with a sentence on what was missing after a restore, and who had it."""

    @property
    def can_restore(self) -> bool:
        """Whether the sites keep copies of the journal."""
        return self._sharer is not None

    def is_done(self, run: str) -> bool:
        """Return whether the journal has the end of a run."""
        return self.journal.is_done(run)

    def has_failed(self, run: str) -> bool:
        """Return whether the journal says that a run failed."""
        return self.journal.log.state.closed.get(run) == "failed"

    def begun_with(self, run: str) -> list[str] | None:
        """Return the sites that the journal names where a run began; None if it is new."""
        return self.journal.log.state.sites.get(run)

    def rounds_of(self, run: str) -> dict[int, dict[str, Any]]:
        """As :meth:`Journal.rounds_of`."""
        return self.journal.rounds_of(run)

    def kept_order(self, digest: str) -> Order | None:
        """Return an order of this journal by its digest; None if it is not kept."""
        text = self.journal.log.store.paper(ORDER, digest)
        if text is None:
            return None
        value = json.loads(text)
        return Order.decode(value["order"], value["keyid"], value["sig"])

    def restore(self, sites: list[str], show: Show) -> int:
        """Fetch the entries that the sites cosigned and this journal lacks, before it is written
        to.

        Args:
            sites: that are connected.
            show: sends questions to sites, and returns their answers.

        Returns:
            The number of entries that were fetched.

        Raises:
            RunError: if no site has them. Nothing was written or ordered then.
        """
        if self._sharer is None:
            return 0
        return self._sharer.restore(sites, show, self._question)

    def begin(
        self, run: str, plan: str, model: str, sites: list[str], show: Show, *, ended: bool = False
    ) -> None:
        """Open the run: learn what each witness saw, and send each site its newest head.

        A site whose log does not extend what was witnessed of it is left out.

        Args:
            run: identifier of the run.
            plan: digest of its plan.
            model: digest of the first model.
            sites: that take part.
            show: sends questions to sites, and returns their answers.
            ended: whether the journal has the run's end already, and only its model is made again.

        Raises:
            EvidenceError: if a site's log contradicts what another site remembers of it.
            RunError: if sites run different code: no verifier accepts one run of two codes.
        """
        show = self._copying(show)
        if self.resumes:
            self.journal.resume_run(self.resumes)
        if not ended:
            self.journal.open_run(run, plan, model, sites)
        self._remember()
        self._is_everyone_asked = True
        self._learn(show({site: self._question(site) for site in sites}))
        # The memories of all witnesses are known only now: evidence from here on proves that
        # each log grew from that, also of a site that releases nothing and is not asked again.
        answers = show({site: self._question(site) for site in sites})
        self._learn(answers)
        _require_one_code({site: str(answer.get("code") or "") for site, answer in answers.items()})
        self._is_everyone_asked = False
        if self._copies is not None:
            self._copies.catch_up(lambda some: show({site: self._question(site) for site in some}))

    def _remember(self) -> None:
        """Load the heads that this coordinator's journal and witness know."""
        for _, text in self.journal.log.store.papers(CHECKPOINT):
            self._heads.know(Checkpoint.parse(text))
        for seen in self._witness.seen.values():
            self._heads.know(Checkpoint.parse(seen.note))
        self._note_own()

    def witness_again(self, sites: list[str], show: Show) -> list[str]:
        """Have the witnesses cosign logs that grew after the run, and keep the heads beside the
        journal.

        Args:
            sites: that are connected.
            show: sends questions to sites, and returns their answers.

        Returns:
            The sites whose logs grew.

        Raises:
            EvidenceError: if the history of a log does not hold, or too few witnesses cosigned it.
        """
        show = self._copying(show)
        if not self._heads.all():
            self._remember()
        self._is_everyone_asked = True
        try:
            self._learn(show({site: self._question(site) for site in sites}))
            shown, origins = self._round.shown, self._origins
            grown = [
                site
                for site in sites
                if self._heads.has_grown(origins[site], shown.get(origins[site]))
            ]
            if grown:
                self._learn(show({site: self._question(site) for site in sites}))
                self.witness(sites, show)
                self._keep_heads()
                show({site: self._question(site) for site in sites})
        finally:
            self._new_round()
        return grown

    def _keep_heads(self) -> None:
        """Store the newest heads beside the journal, durably."""
        self.journal.keep(self._head_papers())

    def _head_papers(self) -> list[tuple[str, str, str]]:
        return [
            (CHECKPOINT, f"{head.origin}/{head.size:012d}", head.text) for head in self._heads.all()
        ]

    def resume(self, run: str, number: int) -> dict[str, int]:
        """Load the orders of a round that an earlier process signed and did not finish.

        In a run that failed and was resumed, a site that refused or failed gets a new attempt,
        because an order gets one answer. Every other site gets the same order again.

        Args:
            run: identifier of the run.
            number: of the round to continue, from 1.

        Returns:
            By site, the number of its newest attempt in that round.
        """
        attempts: dict[str, int] = {}
        for _, text in self.journal.log.store.papers(ORDER):
            order = Order.decode(json.loads(text)["order"])
            if (order.run, order.round) == (run, number):
                self._round.orders.setdefault(order.digest, (order, "no-reply"))
                attempts[order.site] = max(order.attempt, attempts.get(order.site, 1))
        for item in self.journal.log.state.resumed.get(run, ()):
            if item["answer"] not in _ASKED_THE_SAME:
                attempts[item["site"]] = max(item["attempt"] + 1, attempts[item["site"]])
        return attempts

    def is_resumed(self, run: str) -> bool:
        """Return whether a run was resumed and has finished no round since."""
        return run in self.journal.log.state.resumed

    def close(self) -> None:
        """Close the journal, so that SQLite leaves no file beside it."""
        self.journal.log.store.close()

    def head(self, site: str) -> str:
        """Return the newest head of a site's log that any witness cosigned, or ""."""
        known = self._heads.newest(self._origins[site])
        return known.text if known else ""

    def _new_round(self) -> None:
        self._round = _Round()
        self._is_everyone_asked = False
        self._heads.begin_round()

    def sign(self, orders: Iterable[Order]) -> list[Order]:
        """Return the orders, signed; each is on disk before it can leave."""
        signed = [self.journal.sign(order) for order in orders]
        self._round.orders.update({order.digest: (order, "no-reply") for order in signed})
        # Durable first: after a crash, `resume` must find every attempt that a site may have seen.
        self.journal.keep(order_paper(order) for order in signed)
        for order in signed:
            self.on_answer(order, "ordered")
        return signed

    def answered(self, order: Order, status: Status) -> None:
        """Note a site's answer to an order.

        Args:
            order: one of this round, signed by :meth:`sign`.
            status: that the site answered.
        """
        self._round.orders[order.digest] = (self._round.orders[order.digest][0], str(status))
        self.on_answer(order, str(status))

    def ask(self, orders: Mapping[str, Order], send: Show) -> dict[str, dict[str, Any]]:
        """Send orders, and ask each site to prove that its log holds its release.

        Args:
            orders: by site.
            send: sends each order with its site's question, and returns the evidence by site.

        Returns:
            The evidence that came beside the releases, by site, for :meth:`receive`.
        """
        questions = {site: self._question(site) for site in orders}
        for site, order in orders.items():
            questions[site]["slots"] = [*questions[site]["slots"], order.slot]
        return self._copying(send)(questions)

    def receive(
        self,
        releases: Mapping[str, tuple[Order, str]],
        show: Show,
        shown: Mapping[str, dict[str, Any]] | None = None,
    ) -> set[str]:
        """Check that the sites' logs hold their releases.

        Args:
            releases: by site, the order and the digest of its release.
            show: asks the sites that sent no evidence beside their releases.
            shown: the evidence that :meth:`ask` returned.

        Returns:
            The sites whose release is proved. The caller must not use any other release.

        Raises:
            EvidenceError: if a site's log contradicts what another site remembers of it.
        """
        show = self._copying(show)
        for site, (order, _) in releases.items():
            self._round.slots.setdefault(site, []).append(order.slot)
        answers = {site: answer for site, answer in (shown or {}).items() if site in releases}
        silent = [site for site in releases if site not in answers]
        if silent:
            answers |= show({site: self._question(site) for site in silent})
        self._learn(answers)
        proved = set()
        for site, (order, digest) in releases.items():
            evidence = self._round.shown.get(self._origins[site])
            if site in self._absent or evidence is None:
                continue
            if receipt := receipt_for(site, self._origins[site], order, digest, evidence):
                self._round.receipts[order.digest] = receipt
                proved.add(site)
        return proved

    def witness(
        self,
        sites: list[str],
        show: Show,
        wait: Wait = lambda sites: False,
        *,
        turn: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Have the witnesses cosign every log of this round; return who cosigned which log.

        Args:
            sites: whose logs are cosigned, and whose witnesses cosign.
            show: sends questions to sites, and returns their answers.
            wait: waits for the sites that did not answer, if too few cosigned; returns whether to
                ask again.
            turn: the sites that took part, if not all did. The others are asked only for their
                cosignatures: their logs did not grow by this round.

        Raises:
            EvidenceError: naming each log whose history does not hold, and the witness that found
                it.
        """
        show = self._copying(show)
        chances = _MAX_WITNESS_TRIES
        while chances:
            due = sites if turn is None else turn
            missing = [site for site in due if self._origins[site] not in self._round.shown]
            if missing:
                self._learn(show({site: self._question(site) for site in missing}))
            shown, gathered, said, silent = self._gather(sites, show)
            if not said:
                try:
                    return [
                        self._heads.cosigned(log, shown[log], gathered[log])
                        for log in sorted(shown)
                    ]
                except EvidenceError:
                    if self._may_ask_everyone():
                        # What the others remember, and then the proofs that each log grew from it.
                        for _ in range(2):
                            self._learn(show({site: self._question(site) for site in sites}))
                        continue
                    if not silent or not wait(silent):
                        raise
                    self._learn(show({site: self._question(site) for site in silent}))
                    continue
            # An objection does not cancel others' cosignatures: a head with a quorum keeps it.
            for origin, lines in gathered.items():
                with suppress(EvidenceError, NoteError):
                    self._heads.cosigned(origin, shown[origin], lines)
            # With another coordinator a log may have grown since it was sent to this one.
            self._learn(show({site: self._question(site) for site in sites}))
            if self._is_unchanged(shown):
                break
            chances -= 1
        raise EvidenceError(
            "the history of a log does not hold; the run stops, nothing more is joined:\n  "
            + "\n  ".join(sorted(said))
        )

    def _may_ask_everyone(self) -> bool:
        """Ask all sites from here on, where too few of those that were chosen cosigned.

        Returns:
            Whether this is new.
        """
        if self._is_everyone_asked or all(self._witnesses.of(log) is None for log in self._logs):
            return False
        self._is_everyone_asked = True
        return True

    @property
    def _logs(self) -> list[str]:
        """The origins of all logs, the journal's last."""
        return [*self._origins.values(), self.journal.log.origin]

    def _chosen(self, log: str) -> Sequence[str] | None:
        """Return the sites that cosign a log in this round; None for every other site."""
        return None if self._is_everyone_asked else self._witnesses.of(log)

    def _is_unchanged(self, shown: Mapping[str, Evidence]) -> bool:
        """Return whether objections to the logs stand: they were sent as they are now.

        Args:
            shown: the evidence that the objections are about, by origin.
        """
        now = self._round.shown
        if shown.keys() - now.keys() - {self.journal.log.origin}:
            return False
        heads = self._heads
        if any(heads.lacks_proof(log, one, self._chosen(log)) for log, one in shown.items()):
            return False
        return all(log in shown and one.note == shown[log].note for log, one in now.items())

    def _gather(
        self, sites: list[str], show: Show
    ) -> tuple[dict[str, Evidence], dict[str, list[SignatureLine]], set[str], list[str]]:
        """Send the evidence of every log to the sites that cosign it.

        Returns:
            The evidence sent, the cosignatures, the objections, and the sites that did not answer
            with their logs.
        """
        own = self.journal.log.origin
        shown = dict(self._round.shown)
        shown[own] = self.journal.log.evidence(self._heads.since(own, self._chosen(own)))
        told = {origin: evidence.to_json() for origin, evidence in shown.items()}
        by_site: dict[str, dict[str, Any]] = {site: {} for site in sites}
        to: dict[str, list[str]] = {}
        for origin, evidence in told.items():
            chosen = self._chosen(origin)
            to[origin] = [
                site
                for site in (sites if chosen is None else chosen)
                if site in by_site and self._origins[site] != origin
            ]
            for site in to[origin]:
                by_site[site][origin] = evidence
        questions = {site: self._question(site, some) for site, some in by_site.items() if some}
        # The coordinator cosigns while the sites do.
        with ThreadPoolExecutor(1, "witness") as aside:
            cosigning = aside.submit(self._witness.cosign, shown, self._roster.logs)
            answers = show(questions)
        lines, faults = cosigning.result()
        self._note_own()
        said = {f"the coordinator: {fault}" for fault in faults.values()}
        gathered: dict[str, list[SignatureLine]] = {origin: [] for origin in shown}
        # The coordinator wrote its journal, so its own line under that proves nothing.
        for origin in lines.keys() - {own}:
            gathered[origin].append(lines[origin])
        self._heads.note_sent({origin: shown[origin] for origin in lines}, to)
        for site, answer in answers.items():
            said |= {
                f"site '{site}': {_plain(what)}" for what in part_of(answer, "faults").values()
            }
            for origin, text in part_of(answer, "lines").items():
                line = self._heads.cosignature(shown, origin, str(text))
                if line is not None:
                    gathered[origin].append(line)
            self._note_seen(site, answer)
        # A site whose disk is full, or whose key is being replaced, says that it failed.
        failed = {site for site, answer in answers.items() if answer.get("status") == Status.FAILED}
        silent = [site for site in questions if site not in answers or site in failed]
        return shown, gathered, said, silent

    def record(
        self,
        run: str,
        number: int,
        models: RoundModels[str],
        witnessed: list[dict[str, Any]],
        used: Iterable[str],
    ) -> dict[str, Any]:
        """Return the journal's record of the round, and store its papers durably.

        Args:
            run: identifier of the run.
            number: of the round, from 1.
            models: digests of the round's models.
            witnessed: what :meth:`witness` returned.
            used: digests of the orders whose releases were aggregated or published.
        """
        wanted = set(used)
        receipts = {k: v for k, v in self._round.receipts.items() if k in wanted}
        parts: dict[str, list[dict[str, Any]]] = {"train": [], "evaluate": []}
        papers: list[tuple[str, str, str]] = []
        for key, receipt in receipts.items():
            order = self._round.orders[key][0]
            parts[order.purpose].append(receipt.to_json())
            name = f"{run}/{number:09d}/{order.purpose}/{receipt.site}"
            evidence, head = self._round.shown[receipt.origin], self._heads.newest(receipt.origin)
            assert head is not None, "a witnessed log has a head"
            papers.append((RECEIPT, name, receipt.proof(evidence, head)))
        self.journal.keep([*papers, *self._head_papers()])
        return {
            "run": run,
            "round": number,
            "model": models.before,
            "next": models.after,
            "shown": models.published,
            "joined": parts["train"],
            "metrics": parts["evaluate"],
            "orders": [
                {
                    "site": order.site,
                    "order": order.digest,
                    "purpose": order.purpose,
                    "attempt": order.attempt,
                    "answer": answer,
                }
                for order, answer in self._round.orders.values()
            ],
            "witnessed": witnessed,
        }

    def close_round(self, record: dict[str, Any]) -> None:
        """Write a round into the journal."""
        self.journal.close_round(record)
        self._new_round()
        self._witnesses.begin_round(record)

    def close_run(
        self, run: str, model: str, sites: list[str], show: Show, *, fault: str = ""
    ) -> None:
        """Write the end of the run, and have the journal's last head cosigned.

        Args:
            run: identifier of the run.
            model: digest of the final model.
            sites: that took part.
            show: sends questions to sites, and returns their answers.
            fault: name of the error that ended the run, or "" if the run is done.

        Raises:
            EvidenceError: if a history does not hold or too few witnesses cosigned. Where ``fault``
                is set, the run has failed already, and this error is dropped.
        """
        show = self._copying(show)
        self.journal.close_run(run, model, fault=fault)
        self._new_round()
        try:
            self.witness(sites, show)
        except EvidenceError:
            if not fault:
                raise
        self._keep_heads()
        # Each question carries the site's new head: it keeps that, with the cosignatures.
        show({site: self._question(site) for site in sites})

    def _question(self, site: str, shown: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the question to a site, with the evidence of the other logs as JSON values."""
        origin = self._origins[site]
        question = {
            "head": self.head(site),
            "since": self._heads.since(origin, self._chosen(origin)),
            "slots": self._round.slots.get(site, []),
            "shown": dict(shown or {}),
        }
        if (watched := self._watched_by(site)) is not None:
            question["seen"] = watched
        return question

    def _watched_by(self, site: str) -> list[str] | None:
        """Return the logs that a site cosigns in this round; None for all but its own."""
        if self._is_everyone_asked:
            return None
        if self._round.watched is None:
            watched: dict[str, list[str]] = {}
            for log in self._logs:
                if (chosen := self._witnesses.of(log)) is None:
                    return None
                for one in chosen:
                    watched.setdefault(one, []).append(log)
            self._round.watched = watched
        return self._round.watched.get(site, [])

    def _copying(self, show: Show) -> Show:
        """Return ``show`` extended by the missing pieces of ledger and journal copies."""
        if self._copies is not None:
            show = self._copies.asking(show)
        if self._sharer is not None:
            show = self._sharer.asking(show)
        return show

    def _note_absent(self, answers: Mapping[str, dict[str, Any]]) -> None:
        """Leave out the sites that report that their ledger does not extend its witnessed head.

        Such a site's earlier evidence of this round is dropped with it, unless it proved a release:
        then the release is under the head that all sites see, and the witnesses decide whether that
        head holds.
        """
        for site, answer in answers.items():
            if answer.get("status") != Status.REFUSED_ROLLBACK:
                self._absent.discard(site)
                continue
            if all(receipt.site != site for receipt in self._round.receipts.values()):
                self._round.shown.pop(self._origins[site], None)
            if site not in self._absent:
                self._absent.add(site)
                _LOG.warning(
                    "a site is left out: its ledger does not extend its newest witnessed head (a "
                    "restored backup, or a rewritten history; H31). Its operator's log says more",
                    extra={"site": site},
                )

    def _learn(self, answers: Mapping[str, dict[str, Any]]) -> None:
        self._note_absent(answers)
        for site, answer in answers.items():
            if "evidence" in answer:
                origin = self._origins[site]
                # Its witnesses report its faults.
                with suppress(NoteError, EvidenceError):
                    evidence = Evidence.from_json(answer["evidence"])
                    self._round.shown[origin] = evidence
                    self._heads.note_keys(origin, evidence)
        for site, answer in answers.items():
            self._note_seen(site, answer)

    def _note_seen(self, site: str, answer: Mapping[str, Any]) -> None:
        seen = part_of(answer, "seen").values()
        self._heads.note_remembered(site, seen, self._round.shown)

    def _note_own(self) -> None:
        for origin, seen in self._witness.seen.items():
            self._heads.note_size(origin, COORDINATOR, seen.size)


_MAX_WITNESS_TRIES = 3
_ASKED_THE_SAME = ("released", "no-reply", str(Status.NOT_NOW))
"""Answers after which the same order costs nothing that is not paid for."""

_CODE = re.compile(r"sha256:[0-9a-f]{64}")


def _require_one_code(codes: Mapping[str, str]) -> None:
    """Check that all sites that report their code have the same, before anything is ordered.

    Raises:
        RunError: naming the sites of each code.
    """
    sites: dict[str, list[str]] = {}
    for site, code in sorted(codes.items()):
        if _CODE.fullmatch(code):
            sites.setdefault(code, []).append(site)
    if len(sites) > 1:
        said = "\n  ".join(f"{code}: {', '.join(names)}" for code, names in sites.items())
        raise RunError(
            "the sites have different code, which no verifier takes for one run; nothing was "
            "ordered. Install the same versions at each (`privet --version --json --plan PLAN` "
            f"says what a site has):\n  {said}"
        )


def _plain(what: object) -> str:
    """Return a site's text about others, without characters that a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in str(what))[:500]
