"""What named lies are made of: who tells one, how it is told, and what has to be said of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meaning import Original, copy
from trial import IN_TIME, Forgery, Trial

from privet.privacy.audit.report import write_report
from privet.privacy.audit.verify import Verdict, verify

Tree = dict[str, Any]
Tell = Callable[[Tree, "Liars"], bool]
Label = Callable[[Trial, Verdict], bool]


@dataclass(frozen=True)
class Liars:
    """Who tells a lie, the sites and the coordinator of a coalition, and when."""

    original: Original
    members: frozenset[str]
    in_time: bool

    @property
    def chief(self) -> bool:
        """Whether the coordinator is among them."""
        return self.original.coordinator in self.members

    def ledgers(self, tree: Tree) -> list[Tree]:
        """Return the ledgers of these sites."""
        return [
            log for log in tree["logs"] if log["role"] == "site" and log["name"] in self.members
        ]


@dataclass(frozen=True)
class Lie:
    """One lie: how it is told, and what must be said of it if it is not refused."""

    tell: Tell
    label: Label | None = None

    @property
    def name(self) -> str:
        """What it is called, after its function."""
        return "lie: " + self.tell.__name__.replace("_", " ")

    def told(
        self, trial: Trial, coalitions: Callable[[str], bool] = lambda name: True
    ) -> Iterator[Forgery]:
        """Tell it by each coalition that can."""
        for coalition, members in trial.coalitions(None):
            tree = copy(trial.original.tree)
            if not coalitions(coalition) or not self.tell(
                tree, Liars(trial.original, members, coalition.endswith(IN_TIME))
            ):
                continue
            what = (self.name, (self.tell.__doc__ or "").partition("\n")[0])
            found = trial.judge(tree, what, coalition, members, None)
            if not found.rule and self.label is not None:
                verdict = verify(trial.path, trial.roster, keep=True, processes=1)
                if self.label(trial, verdict):
                    found = Forgery(*what, coalition, members, None, "labelled")
            yield found


def predicates(log: Tree, *kinds: str) -> list[Tree]:
    return [e["statement"]["predicate"] for e in log["entries"] if kind_of(e) in kinds]


def kind_of(entry: Tree) -> str:
    return str(entry["statement"]["predicateType"].rpartition(":")[2])


def add(log: Tree, at: int, kind: str, **fields: Any) -> None:
    """Put a new entry in, at the time of the one before it."""
    before = log["entries"][at - 1]
    predicate = {
        "sequence": at, "time": before["statement"]["predicate"]["time"], "log": log["log"],
        **fields,
    }  # fmt: skip
    statement = {
        "_type": before["statement"]["_type"], "subject": [],
        "predicateType": f"urn:privet:ledger:v1:{kind}", "predicate": predicate,
    }  # fmt: skip
    new = {"payloadType": before["payloadType"], "statement": statement}
    log["entries"].insert(at, {**new, "signers": before["signers"][-1:]})


def place_of(log: Tree, kind: str) -> int:
    return next((n for n, entry in enumerate(log["entries"]) if kind_of(entry) == kind), -1)


def journal_of(tree: Tree) -> Tree:
    return next(log for log in tree["logs"] if log["role"] == "coordinator")


# labels


def says_less(trial: Trial, verdict: Verdict) -> bool:
    """Whether the verdict says of the forged history that it is witnessed less."""
    found = verdict.to_dict().get("witnessed")
    return found is not None and found != trial.clean.to_dict().get("witnessed")


def claims_no_more(trial: Trial, verdict: Verdict) -> bool:
    """Whether the report claims no more than for the true bundle."""
    with tempfile.TemporaryDirectory() as name:
        said = _claims(verdict, Path(name) / "forged")
        trial.verdict(trial.lines)
        true = verify(trial.path, trial.roster, keep=True, processes=1)
        return said == _claims(true, Path(name) / "true")


def _claims(verdict: Verdict, folder: Path) -> list[Any]:
    write_report(verdict, folder)
    sites = json.loads((folder / "report.json").read_text(encoding="utf-8"))["sites"]
    return [(site["site"], site["claim"]) for site in sites]
