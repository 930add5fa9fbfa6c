"""What a site registers in its ledger and decides: populations, policies, plans, pauses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from privet.common.canonical import digest, digest_json
from privet.common.errors import InputError, LedgerError, RefusedError, SitePausedError
from privet.privacy.accounting import events as ev
from privet.privacy.evidence.ledger_base import LedgerBase
from privet.privacy.evidence.ledger_state import Budget
from privet.privacy.evidence.officers import OfficerSignature, ssh_text
from privet.privacy.evidence.order_keys import KeyHandover

PAUSED = "the site has paused: `privet client pause --end` ends that"


class LedgerDecisions(LedgerBase):
    """The entries of a ledger that charge nothing. What is noted already is not noted again."""

    def register(self, population: str, budget: Budget) -> None:
        """Register a population; the same again changes nothing.

        Args:
            population: its name.
            budget: its terms.

        Raises:
            LedgerError: if it is registered with other terms, which are for its life.
        """
        with self.log.writing():
            known = self.state.populations.get(population)
            if known is not None:
                if known.budget != budget:
                    raise LedgerError(
                        f"population '{population}' is registered with {known.budget}; unit, "
                        "relation and cap are for its life"
                    )
                return
            self.require_present()
            self._append_plain(
                "population",
                population=population,
                unit=str(budget.unit),
                relation=str(budget.relation),
                epsilon=None if budget.epsilon is None else ev.decimal(budget.epsilon),
                delta=ev.decimal(budget.delta),
                max_records=budget.max_records,
            )

    def add_data_set(self, data_set: str, population: str, disjoint: str = "") -> None:
        """Register a data set of a population; the same again changes nothing.

        Args:
            data_set: its name.
            population: its population's.
            disjoint: why its people are in no other population.

        Raises:
            LedgerError: if it belongs to another population already, or names a new one
                without saying why its people are in no other (H32).
        """
        with self.log.writing():
            known = self.state.data_sets.get(data_set)
            if known is not None:
                if known != population:
                    raise LedgerError(
                        f"data set '{data_set}' belongs to population '{known}' for its life"
                    )
                return
            if population in list(self.state.populations)[:1]:
                disjoint = ""  # from what? The others are disjoint from this one.
            self.require_present()
            self._append_plain(
                "data-set", data_set=data_set, population=population, disjoint=disjoint
            )

    def set_policy(
        self, policy: dict[str, Any], signatures: Sequence[OfficerSignature] = ()
    ) -> None:
        """Note the policy that holds from now on; the same again changes nothing.

        Args:
            policy: what is published of it.
            signatures: of officers of the policy in force, where that has officers.

        Raises:
            RefusedError: if officers must sign, and too few did.
        """
        with self.log.writing():
            if self.state.policy != policy:
                self.require_present()
                self._require_officers(signatures)
                values = [one.to_json() for one in signatures]
                signed: dict[str, Any] = {"signatures": values} if values else {}
                self.log.append("policy", "policy", digest_json(policy), policy=policy, **signed)

    def _require_officers(self, signatures: Sequence[OfficerSignature]) -> None:
        officers, needed = self.state.officers, self.state.officers_needed
        pairs = {(one.name, ssh_text(one.key)) for one in signatures}
        count = sum(pair in pairs for pair in officers.items())
        if count < needed:
            raise RefusedError(
                f"the policy was changed, and {count} of {needed} officers of the one in force "
                f"({', '.join(officers)}) signed it: `privet client sign-policy`. Until then the "
                "site does not work under it"
            )

    def approve(
        self,
        plan: str,
        by: Iterable[str],
        how: str,
        *,
        again: bool = False,
        signature: OfficerSignature | None = None,
    ) -> None:
        """Note that a plan (by digest) is approved; the same again changes nothing.

        Args:
            plan: its digest.
            by: who approved it.
            how: ``manual``, ``listed`` or ``simulation``. By hand also opens a plan that failures
                closed.
            again: note it also where the same was noted before.
            signature: of the officer who approves now, who is among ``by``.
        """
        names = sorted(set(by))
        self.log.refresh()
        if not again and signature is None and self.state.approvals.get(plan) == tuple(names):
            return
        with self.log.writing():
            if again or signature or self.state.approvals.get(plan) != tuple(names):
                self.require_present()
                self.log.append(
                    "plan-approved", "plan", plan, plan=plan, by=names, how=how,
                    **_signed(signature),
                )  # fmt: skip

    def refuse_plan(self, plan: str, by: Iterable[str], how: str = "manual") -> None:
        """Note that a plan is refused from now on.

        Args:
            plan: its digest.
            by: who refused it.
            how: as of :meth:`approve`.
        """
        with self.log.writing():
            # Where officers sign, another refusal counts: what was signed before it does not.
            if plan not in self.state.refused_plans or self.state.officers:
                self.require_present()
                self.log.append(
                    "plan-refused", "plan", plan, plan=plan, by=sorted(set(by)), how=how
                )

    def follow(self, handover: KeyHandover) -> bool:
        """Note that one order key follows another; the same again changes nothing.

        Returns:
            Whether an entry was written.

        Raises:
            InputError: if another key follows the old one already.
        """
        with self.log.writing():
            if self.state.order_keys.has(handover) or self.state.withdrawn:
                return False
            if fault := self.state.order_keys.fault(handover):
                raise InputError(fault)
            self.require_present()
            new = digest(handover.new.public)
            self.log.append("order-key", "key", new, **handover.to_json())
        return True

    def pause(self, by: str) -> None:
        """Reserve nothing until :meth:`resume`."""
        self._once("paused", self.state.paused, by=by)

    def resume(self, by: str) -> None:
        """End a pause."""
        self._once("resumed", not self.state.paused, by=by)

    def withdraw(self, by: str) -> None:
        """Reserve nothing ever again."""
        self._once("withdrawn", self.state.withdrawn, by=by)

    def require_not_paused(self) -> None:
        """Check that the site has not paused; one that withdrew is none that paused.

        Raises:
            SitePausedError: if it has.
        """
        self.log.refresh()
        if self.state.paused and not self.state.withdrawn:
            raise SitePausedError(PAUSED)

    def _once(self, kind: str, done: bool, **fields: Any) -> None:
        if not done:
            with self.log.writing():
                self.require_present()
                self._append_plain(kind, **fields)


def _signed(signature: OfficerSignature | None) -> dict[str, Any]:
    """Return the field of an entry that an officer signed; other entries do not have it."""
    return {} if signature is None else {"signature": signature.to_json()}
