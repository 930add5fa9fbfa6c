"""One forgery after another, given to the verifier."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fields import changed, changes, get, owner_of, places, some
from forger import Forger
from meaning import Keys, copy, parse

from privet.common.errors import InputError
from privet.privacy.audit.verify import Verdict, verify

OLD_BYTES = "signature of others"
"""What refuses a change that the coalition cannot make: the old bytes stand, and are true."""


IN_TIME = ", in time"
"""Ends the name of a coalition that lies while the run goes on: others sign what follows."""


@dataclass(frozen=True)
class Forgery:
    """What became of one attempt.

    Attributes:
        field: name of the changed field, or of the lie.
        change: what was done to it.
        coalition: who signed, in words.
        members: their names.
        owner: who signs this field; None if nobody does.
        rule: the first rule that refused it; "" if it was accepted.
        noted: it was accepted, and the verifier said something that it did not say before.
    """

    field: str
    change: str
    coalition: str
    members: frozenset[str]
    owner: str | None
    rule: str
    noted: bool = False


class Trial:
    """Forges one bundle and verifies what comes of it.

    Args:
        lines: the bundle, without newlines; its end line may be missing.
        roster: the roster that the verifier is given out of band.
        keys: the private keys of everybody.
        folder: for the forged file.
    """

    def __init__(self, lines: list[bytes], roster: Path, keys: Keys, folder: Path) -> None:
        self.original, self.roster, self.keys = parse(lines), roster, keys
        self.path = folder / "forged.bundle"
        self.lines = Forger(self.original, copy(self.original.tree), self.everybody, keys).lines()
        if self.lines[: len(lines)] != lines:
            raise SystemExit("the forger does not write this bundle as it was")
        self.clean = self.verdict(self.lines)
        if not self.clean.ok:
            raise SystemExit(f"the bundle itself has faults: {self.clean.faults[:3]}")

    @property
    def everybody(self) -> frozenset[str]:
        """All members."""
        return frozenset([*self.original.names, self.original.coordinator])

    def verdict(self, lines: list[bytes]) -> Verdict:
        """Return what the verifier says.

        Raises:
            InputError: if it is no bundle any more.
        """
        self.path.write_bytes(b"".join(line + b"\n" for line in lines))
        return verify(self.path, self.roster, processes=1)

    def coalitions(self, owner: str | None) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield who may work together, with the owner of the field where that is a site.

        Those of one and two may lie afterwards, when all others have signed, or in time.
        """
        names, chief = self.original.names, self.original.coordinator
        one = owner if owner in names else names[0]
        two = next((name for name in names if name != one), one)
        yield "nobody", frozenset()
        for name, members in (
            ("site", [one]), ("coordinator", [chief]), ("site + site", [one, two]),
            ("site + coordinator", [one, chief]),
        ):  # fmt: skip
            yield name, frozenset(members)
            yield name + IN_TIME, frozenset(members)
        yield "everybody", self.everybody

    def judge(
        self, tree: dict[str, Any], what: tuple[str, str], coalition: str,
        members: frozenset[str], owner: str | None,
    ) -> Forgery:  # fmt: skip
        """Write ``tree`` with the keys of ``members``, and verify it."""
        in_time = coalition.endswith(IN_TIME)
        lines = Forger(self.original, tree, members, self.keys, in_time).lines()
        if lines == self.lines:
            return Forgery(*what, coalition, members, owner, OLD_BYTES)
        try:
            verdict = self.verdict(lines)
        except InputError:
            return Forgery(*what, coalition, members, owner, "not a bundle")
        rule = "" if verdict.ok else verdict.faults[0].rule
        noted = verdict.ok and not set(verdict.notes) <= set(self.clean.notes)
        return Forgery(*what, coalition, members, owner, rule, noted)

    def walk(
        self,
        rng: random.Random,
        *,
        most: int = 2,
        coalitions: Callable[[str], bool] = lambda name: True,
        fields: Iterable[str] | None = None,
        keep: Callable[[str], bool] = lambda change: True,
        until_accepted: bool = False,
    ) -> Iterator[Forgery]:
        """Change every field in every way, one at a time.

        Args:
            rng: chooses among the places of a field.
            most: at how many places each field is changed.
            coalitions: which of them try.
            fields: names of fields; None for all.
            keep: which kinds of change are tried; the name of one that is made at all places
                ends in ``, everywhere``.
            until_accepted: a field is left at its first change that is accepted.
        """
        found = places(self.original)
        for name in found if fields is None else fields:
            for forgery in self._field(rng, name, found[name], most, coalitions, keep):
                yield forgery
                if until_accepted and not forgery.rule:
                    break

    def _field(
        self, rng: random.Random, name: str, at: list[Any], most: int,
        coalitions: Callable[[str], bool], keep: Callable[[str], bool],
    ) -> Iterator[Forgery]:  # fmt: skip
        for path in some(rng, self.original.tree, at, most):
            # What another run or site has in this field may be put here.
            peers = [get(self.original.tree, other) for other in at[:40]]
            for change, new in changes(self.original, path, peers):
                yield from self._change(name, path, change, new, coalitions, keep)

    def _change(
        self, name: str, path: tuple[Any, ...], change: str, new: Any,
        coalitions: Callable[[str], bool], keep: Callable[[str], bool],
    ) -> Iterator[Forgery]:  # fmt: skip
        owner = owner_of(self.original, path)
        for everywhere in (False, True):
            what = (name, f"{change}, everywhere" if everywhere else change)
            tree = None
            if keep(what[1]):
                tree = changed(self.original, path, new, everywhere=everywhere)
            if tree is None:
                continue
            for coalition, members in self.coalitions(owner):
                if not coalitions(coalition):
                    continue
                if everywhere and owner is not None and owner not in members:
                    continue  # this field would stay as it was
                told: dict[str, Any] | None = tree
                if coalition.endswith(IN_TIME):
                    # A plan comes from the coordinator; of a roster there is another copy.
                    signer = self.original.coordinator if owner is None else owner
                    if signer not in members:
                        continue
                    if everywhere:
                        told = changed(self.original, path, new, everywhere=True, by=members)
                if told is not None:
                    yield self.judge(told, what, coalition, members, owner)
