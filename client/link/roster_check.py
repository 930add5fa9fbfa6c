"""Check that an offered run's roster is of the coordinator with which the site enrolled."""

from __future__ import annotations

from dataclasses import dataclass

from privet.client.link.coordinators import Membership, memberships
from privet.client.link.order_keys import follow_handovers, kept_handovers
from privet.common.errors import PolicyError
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.witness import Witness
from privet.privacy.policy import Policy


@dataclass(frozen=True)
class RosterCheck:
    """Compare the roster of an offered run with the site's own facts.

    Args:
        membership: the site's, in the federation of the offering coordinator.
        ledger: the site's own.
        witness: the site's own.
    """

    membership: Membership
    ledger: Ledger
    witness: Witness

    def require_ours(self, roster: Roster, run: str, policy: Policy) -> None:
        """Check that a roster names this coordinator, and this site with its own keys.

        Args:
            roster: of the offered run.
            run: its identifier.
            policy: the site's, as it is now.

        Raises:
            PolicyError: if it does not, saying what differs.
        """
        said = self.membership.join.coordinator
        if roster.coordinator.witness.fingerprint != said["witness"]:
            raise PolicyError("the coordinator's witness key is not the join file's")
        self._require_our_order_key(roster.coordinator.orders.fingerprint, run, policy)
        own = roster.site(self.membership.join.site)
        if (own.ledger, own.witness) != (self.ledger.log.first_key, self.witness.key):
            raise PolicyError("the roster has other keys of this site")

    def order_keys_of_ours(self) -> set[str]:
        """Return the order key of the join file, and its successors."""
        keys = {self.membership.join.coordinator["orders"]}
        for one in kept_handovers(self.membership.link):
            if one.old.fingerprint in keys:
                keys.add(one.new.fingerprint)
        return keys

    def _require_our_order_key(self, key: str, run: str, policy: Policy) -> None:
        """Check a run's order key: the join file's, one of its line, or one the policy lists."""
        joined = self.membership.join.coordinator["orders"]
        if key != joined:
            # It may be that the policy lets a key ask since the coordinator showed it.
            follow_handovers(policy, self.ledger, kept_handovers(self.membership.link))
        keys = self.ledger.state.order_keys
        is_kin = key in keys.line(joined) or joined in keys.line(key)
        if not is_kin and key not in policy.allow.coordinators:
            raise PolicyError("the coordinator's orders key is not the join file's")
        if not is_kin and self._is_of_another(key):
            raise PolicyError("the run is under the order key of another coordinator of this site")
        if self.ledger.state.is_replaced(key, run):
            raise PolicyError(
                f"the run is under order key {key}, and {keys.successor(key)} follows it: the "
                "coordinator has to submit the plan again"
            )

    def _is_of_another(self, key: str) -> bool:
        """Whether an order key is another coordinator's of this site, by join file or handover.

        A holder of the other coordinator's signed orders would otherwise get their answers.
        """
        keys, own = self.ledger.state.order_keys, self.membership
        others = [one for one in memberships(own.home) if one.link != own.link]
        theirs = [one.join.coordinator["orders"] for one in others]
        return any(key in keys.line(one) or one in keys.line(key) for one in theirs)
