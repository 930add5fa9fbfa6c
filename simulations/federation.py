"""The parties of a simulated federation: their keys, ledgers, policies and journal.

::

    run folder/                       or, with ledgers that last over runs:
      roster.json                       ledgers/NAME/  ledger.db, keys, witness.json
      coordinator/  journal.db, keys
      sites/NAME/   ledger.db, keys, witness.json, outbox/, operator.log

All files are those of a real federation, with two differences: all keys are on one machine,
unencrypted, and every ledger's genesis says ``simulation``, or ``bundle`` if the coordinator sent
the sites' app in a Flower bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privet.client.admission import AdmissionControl
from privet.common.errors import WrongLedgerError
from privet.common.plan import Plan
from privet.privacy.evidence.keys import FileSigner, load_or_make
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.witness import Witness
from privet.privacy.policy import Policy
from privet.server.evidence.collector import EvidenceCollector
from privet.server.evidence.journal import Journal
from privet.server.evidence.witness_sets import FirstSites, SitesByLot, WitnessSet, quorum_of

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class SimulatedFederation:
    """The folders of the parties of a run. Small and picklable.

    Attributes:
        plan: the only plan of the run.
        folder: the run folder, absolute.
        ledgers: folder of ledgers that last over runs; None keeps them in the run folder.
        cap: lifetime ε of each site's population, if it is registered now; None takes the plan's
            ε.
        setting: noted in every genesis.
        witnesses: how many of the sites cosign each log, where the plan has none drawn by lot;
            None: every other site.
    """

    plan: Plan
    folder: Path
    ledgers: Path | None = None
    cap: float | None = None
    setting: str = "simulation"
    witnesses: int | None = None

    def found(self) -> Roster:
        """Make the missing files: keys, ledgers, journal, roster."""
        members = []
        for spec in self.plan.participants:
            ledger, witness = self.ledger(spec.name), self.witness(spec.name)
            key = ledger.log.first_key
            members.append(Member(spec.name, key, witness.key))
            ledger.log.store.close()
        recorder_keys = self._coordinator_keys()
        drawn = self.plan.strategy.witnesses
        quorum = quorum_of(len(members), drawn)
        if self.witnesses is not None and drawn is None:
            # All of them: they are in this process, and answer.
            quorum = self.witnesses
        roster = Roster(recorder_keys, tuple(members), min(quorum, len(members)))
        roster.save(self.folder)
        return roster

    def open_again(self) -> None:
        """Approve the plan by hand if its failures closed it, as an operator would."""
        for spec in self.plan.participants:
            ledger = self.ledger(spec.name)
            failed, most = ledger.attempts(self.plan.digest)
            if failed >= most:
                ledger.approve(self.plan.digest, ["simulation"], "manual", again=True)
            ledger.log.store.close()

    def home(self, site: str) -> Path:
        """Return the folder of a site's ledger and keys."""
        return self.ledgers / site if self.ledgers else self.folder / "sites" / site

    def witness(self, site: str) -> Witness:
        """Return a site's witness."""
        home = self.home(site)
        return Witness(home / "witness.json", _key(home / "witness.pem"), site)

    def ledger(self, site: str) -> Ledger:
        """Return a site's ledger.

        Raises:
            WrongLedgerError: if it was made for another purpose, such as a real site.
        """
        home = self.home(site)
        ledger = Ledger(
            home,
            _key(home / "ledger.pem"),
            site,
            witness=self.witness(site).key,
            setting=self.setting,
            create=True,
        )
        if (found := ledger.state.setting) != self.setting:
            raise WrongLedgerError(
                f"{home}: this ledger's setting is '{found}', it is not opened as a "
                f"'{self.setting}'; name another folder"
            )
        return ledger

    def admission(self, site: str, roster: Roster) -> AdmissionControl:
        """Return a site's admission control, by a policy that allows only this plan.

        A population that the ledger has already keeps its cap.

        Args:
            site: its name in the plan.
            roster: of the run; only its order key may ask.

        Raises:
            WrongLedgerError: if the ledger was made for another purpose, such as a real site.
        """
        ledger, privacy = self.ledger(site), self.plan.privacy
        cap: tuple[float | None, float] | None = None
        if privacy is not None:
            cap = self.cap or privacy.epsilon, privacy.delta
        for population in ledger.state.populations.values():
            cap = (population.budget.epsilon, population.budget.delta)
        fingerprint = roster.coordinator.orders.fingerprint
        policy = Policy.for_simulation(self.plan, site, fingerprint, cap)
        return AdmissionControl(policy, ledger, roster)

    def collector(self, roster: Roster) -> EvidenceCollector:
        """Return the coordinator's evidence collector."""
        some: WitnessSet | None = None
        if self.plan.strategy.witnesses is not None:
            some = SitesByLot(roster, self.plan.strategy.witnesses)
        elif self.witnesses is not None:
            some = FirstSites(roster, self.witnesses)
        return EvidenceCollector(self._journal(), self._chief(), roster, witnesses=some)

    def roster(self) -> Roster:
        """Return the roster that :meth:`found` made."""
        return Roster.load(self.folder / "roster.json")

    @property
    def _office(self) -> Path:
        return self.folder / COORDINATOR

    def _chief(self) -> Witness:
        signer = _key(self._office / "witness.pem")
        return Witness(self._office / "witness.json", signer, COORDINATOR)

    def _journal(self) -> Journal:
        return Journal(
            self._office,
            COORDINATOR,
            _key(self._office / "journal.pem"),
            _key(self._office / "orders.pem"),
            self._chief().key,
            setting=self.setting,
        )

    def _coordinator_keys(self) -> CoordinatorKeys:
        journal = self._journal()
        keys = CoordinatorKeys(
            COORDINATOR, journal.log.first_key, journal.order_key, self._chief().key
        )
        journal.log.store.close()
        return keys


def _key(path: Path) -> FileSigner:
    return load_or_make(path, None, shared=True)
