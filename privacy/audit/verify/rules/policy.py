"""The policy that a site published, and whether a reservation keeps to it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.officers import read_key
from privet.privacy.audit.verify.formats.order_keys import AuditedOrderKeys
from privet.privacy.audit.verify.formats.rows import ReservedRow
from privet.privacy.audit.verify.formats.strict import Malformed
from privet.privacy.audit.verify.result import show

ANY = ["*"]
TERMS = ("unit", "relation", "epsilon", "delta", "max_records")
LEAST_WITNESSES = 5
"""Sites that cosign each ledger, at least, where a policy does not say another number."""
_LISTS = ("tasks", "models", "metrics", "coordinators", "plans")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"the policy has no {what}")
    return value


def same_person(name: str) -> str:
    """Return what all spellings of a name have in common: case, blanks and form do not count."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = (c for c in " ".join(folded.split()) if c.isprintable() and not _is_ignored(c))
    return "".join(seen)


def _is_ignored(character: str) -> bool:
    """Whether it shows nothing, although it counts as printable (Default_Ignorable_Code_Point)."""
    return character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" or (
        "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    )


def people(names: Iterable[str]) -> int:
    """Return how many different people these names are; what shows nothing is nobody."""
    return len({same_person(name) for name in names} - {""})


def _officers(value: Any) -> dict[str, bytes]:
    found = {name: read_key(key) for name, key in _object(value, "officers").items()}
    names = {same_person(name) for name in found} - {""}
    if len(set(found.values())) < len(found) or len(names) < len(found):
        raise Malformed("each officer of the policy must have a name and a key of her own")
    return found


class Approval(NamedTuple):
    """Who approved a plan.

    Attributes:
        by: names, as its latest approval by hand has them.
        signed: those of them who signed, each with the raw key.
    """

    by: tuple[str, ...] = ()
    signed: frozenset[tuple[str, bytes]] = frozenset()


class SitePolicy:
    """One `policy` entry. Keys that no rule depends on may be any.

    Attributes:
        site: whose policy it says it is.
        setting: ``site`` or ``simulation``.
        populations: terms by name.
        data: by name of a data set, its population and why its people are in no other.
        officers: the raw key of each who approves plans and changes the policy, by name.
        approvers: how many of them must sign another policy.

    Raises:
        Malformed: if a part that a rule depends on is missing or impossible.
    """

    def __init__(self, value: dict[str, Any]) -> None:
        self.site, self.setting = value.get("site"), value.get("setting")
        self.populations: dict[str, dict[str, Any]] = {
            name: _object(terms, f"terms of population {show(name)}")
            for name, terms in _object(value.get("populations"), "populations").items()
        }
        self.data: dict[str, tuple[Any, Any]] = {}
        for name, found in _object(value.get("data"), "data sets").items():
            data = _object(found, f"data set {show(name)}")
            self.data[name] = data.get("population"), data.get("disjoint")
        allow = self._allow = _object(value.get("allow"), "section 'allow'")
        for key in _LISTS:
            listed = allow.get(key)
            if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
                raise Malformed(f"'{key}' of the policy must be a list of texts")
        for key in ("max_rounds", "approvers"):
            if type(allow.get(key)) is not int or allow[key] < 1:
                raise Malformed(f"'{key}' of the policy must be an integer from 1")
        self.officers = _officers(value.get("officers", {}))
        self.approvers = min(int(allow["approvers"]), len(self.officers))
        if allow.get("approval") not in ("manual", "listed"):
            raise Malformed("'approval' of the policy must be 'manual' or 'listed'")
        least = allow.get("witnesses", LEAST_WITNESSES)
        if type(least) is not int or least < 1:
            raise Malformed("'witnesses' of the policy must be an integer from 1")
        self._least_witnesses = least
        if allow.get("key_rotation", "signed") not in ("signed", "listed"):
            raise Malformed("'key_rotation' of the policy must be 'signed' or 'listed'")

    def lists(self, plan: str) -> bool:
        """Return whether the policy approves the plan with this digest by itself."""
        return plan in self._allow["plans"]

    def registers(self, name: str, terms: dict[str, Any]) -> bool:
        """Return whether the policy has this population with exactly these terms.

        Args:
            name: of the population.
            terms: of its entry in the ledger.
        """
        own = self.populations.get(name)
        return own is not None and all(bool(own.get(key) == terms[key]) for key in TERMS)

    def has(self, data_set: str, population: str) -> bool:
        """Return whether the policy has the data set, as one of the population.

        Args:
            data_set: its name.
            population: its population's.
        """
        return bool(self.data.get(data_set, (None, None))[0] == population)

    def refusal(
        self, entry: ReservedRow, plan: AuditedPlan | None, approval: Approval,
        keys: AuditedOrderKeys,
    ) -> str | None:  # fmt: skip
        """Return why the policy does not allow a reservation, or None.

        Args:
            entry: the reservation.
            plan: what its plan says; None: it is not here.
            approval: of its plan.
            keys: which order key follows which, as the ledger says.
        """
        why = self._refuses_key(entry.keyid, keys) or self._lacks_approval(entry.plan, approval)
        if why or plan is None:
            return why
        return self._refuses_plan(plan)

    def _refuses_key(self, keyid: str, keys: AuditedOrderKeys) -> str | None:
        """Rules 8 and 17: the key that signed the order, or one before it, is in the policy."""
        listed = self._allow["coordinators"]
        follows = self._allow.get("key_rotation") != "listed" and keys.leads(listed, keyid)
        if f"sha256:{keyid}" in listed or follows:
            return None
        return "the policy lets no coordinator with this order key ask"

    def _lacks_approval(self, plan: str, approval: Approval) -> str | None:
        """Rules 8 and 13: the policy lists the plan, or enough people approved it."""
        allow = self._allow
        if self.lists(plan):
            return None
        if allow["approval"] == "listed":
            return "the policy does not list the plan, and allows listed plans only"
        count = people(approval.by)
        if self.officers:
            count = sum(pair in approval.signed for pair in self.officers.items())
        if count < allow["approvers"]:
            return f"the policy asks for {allow['approvers']} approvers, and {count} approved"
        return None

    def _refuses_plan(self, plan: AuditedPlan) -> str | None:
        """Rule 8: kinds of task, model and metrics are allowed, and as many rounds."""
        allow = self._allow
        for kind, key in ((plan.task, "tasks"), (plan.model, "models")):
            if kind not in allow[key] and allow[key] != ANY:
                return f"the policy does not allow {key} of kind {show(kind)}"
        if plan.metrics not in allow["metrics"]:
            return f"the policy does not allow metrics from {show(plan.metrics)}"
        drawn, least = plan.witnesses, min(self._least_witnesses, len(plan.sites) - 1)
        if drawn is not None and drawn < least:
            return f"the plan has {drawn} witnesses by lot, the policy {self._least_witnesses}"
        if plan.training_rounds > allow["max_rounds"]:
            return f"the plan has {plan.training_rounds} rounds, the policy {allow['max_rounds']}"
        return None
