"""The roster: who takes part, and by which keys they are known.

A bundle carries a roster with keys, which the coordinator wrote. An auditor holds one of
fingerprints that came another way (a contract, a phone call, a printed page), and
compares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from privet.common.canonical import write_json
from privet.common.errors import InputError, NoteError, reason_of
from privet.common.site_name import fold
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, policy_text

FORMAT = "privet/roster/v1"


@dataclass(frozen=True)
class Member:
    """A site: the first key of its ledger, and its witness key."""

    name: str
    ledger: Key
    witness: Key


@dataclass(frozen=True)
class CoordinatorKeys:
    """The coordinator: journal, order and witness keys."""

    name: str
    journal: Key
    orders: Key
    witness: Key


@dataclass(frozen=True)
class Roster:
    """All sites, the coordinator, and how many cosignatures a witnessed head needs."""

    coordinator: CoordinatorKeys
    sites: tuple[Member, ...]
    quorum: int

    @property
    def logs(self) -> dict[str, Key]:
        """The first key of every log, by origin."""
        keys = [site.ledger for site in self.sites] + [self.coordinator.journal]
        return {key.name: key for key in keys}

    @property
    def witnesses(self) -> dict[str, Key]:
        """The key of every witness, by the witness's name."""
        keys = [site.witness for site in self.sites] + [self.coordinator.witness]
        return {key.name: key for key in keys}

    def site(self, name: str) -> Member:
        """Return the site called ``name``.

        Raises:
            InputError: if it is not in the roster.
        """
        for member in self.sites:
            if member.name == name:
                return member
        raise InputError(f"the roster has no site '{name}'")

    def to_dict(self, *, fingerprints: bool = False) -> dict[str, Any]:
        """Return JSON values, with keys or with their fingerprints only."""

        def shown(key: Key) -> str:
            return key.fingerprint if fingerprints else str(key)

        chief = self.coordinator
        return {
            "format": FORMAT,
            "quorum": self.quorum,
            "coordinator": {
                "name": chief.name,
                "journal": shown(chief.journal),
                "orders": shown(chief.orders),
                "witness": shown(chief.witness),
            },
            "sites": [
                {"name": site.name, "ledger": shown(site.ledger), "witness": shown(site.witness)}
                for site in self.sites
            ],
        }

    def policy_text(self) -> str:
        """Return the same as a tlog-policy, for other people's verifiers."""
        return policy_text(self.logs.values(), self.witnesses.values(), self.quorum)

    def save(self, folder: Path) -> None:
        """Write ``roster.json`` (keys) and ``roster-fingerprints.json`` into ``folder``."""
        write_json(folder / "roster.json", self.to_dict())
        write_json(folder / "roster-fingerprints.json", self.to_dict(fingerprints=True))

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a roster with keys.

        Raises:
            InputError: if it is malformed.
        """
        try:
            if value["format"] != FORMAT:
                raise InputError(f"not a roster of format {FORMAT}")
            chief = value["coordinator"]
            found = cls(
                CoordinatorKeys(
                    chief["name"],
                    Key.parse(chief["journal"], type_=SIGN),
                    Key.parse(chief["orders"], type_=SIGN),
                    Key.parse(chief["witness"], type_=COSIGN),
                ),
                tuple(
                    Member(
                        site["name"],
                        Key.parse(site["ledger"], type_=SIGN),
                        Key.parse(site["witness"], type_=COSIGN),
                    )
                    for site in value["sites"]
                ),
                value["quorum"],
            )
            found._check()
            return found
        except (KeyError, TypeError, ValueError, AttributeError, NoteError) as error:
            raise InputError(f"the roster is malformed: {error}") from error

    def _check(self) -> None:
        chief, sites = self.coordinator, self.sites
        names = [chief.name, *(site.name for site in sites)]
        keys = [chief.journal, chief.orders, chief.witness]
        keys += [key for site in sites for key in (site.ledger, site.witness)]
        if not sites or not all(isinstance(name, str) for name in names):
            raise InputError("a roster has names, and at least one site")
        names = [fold(name) for name in names]
        for what, items in (("name", names), ("key", [key.public for key in keys])):
            if len(set(items)) != len(items):
                raise InputError(f"the roster has a {what} twice")
        if type(self.quorum) is not int or not 0 <= self.quorum <= len(sites):
            raise InputError(f"the roster's quorum must be an integer from 0 to {len(sites)}")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``roster.json``.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: the roster cannot be read: {reason_of(error)}") from error
