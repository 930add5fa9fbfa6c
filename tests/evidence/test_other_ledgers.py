"""What a site states about other ledgers of the same people, when its ledger begins (H32)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import verify_kit

from privet.client.operator.decisions import make_site
from privet.privacy.accounting.assumptions import assess
from privet.privacy.audit.report import write_report
from privet.privacy.audit.report.claims import facts
from privet.privacy.audit.report.input import read
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.ledger import Ledger

OTHER = "sha256:" + "9" * 64


def bundle_of(tmp_path: Path, stated: list[Any] | None) -> Any:
    """A federation whose site North states something in its genesis."""

    class Stating(verify_kit.Federation):
        def genesis(self, log: verify_kit.Log, setting: str = "site") -> None:
            add = log.add

            def adding(kind: str, /, **fields: Any) -> int:
                if log.name == verify_kit.SITES[0] and stated is not None:
                    fields["other_ledgers"] = stated
                return add(kind, **fields)

            log.add = adding  # type: ignore[method-assign]
            try:
                super().genesis(log, setting)
            finally:
                del log.add

    made = Stating()
    made.run()
    path = verify_kit.write(tmp_path / "one.bundle", made.bundle())
    return verify(path, processes=1, keep=True)


@pytest.mark.parametrize("stated", [None, [], [OTHER]])
def test_a_statement_verifies_and_another_ledger_makes_epsilon_conditional(
    tmp_path: Path, stated: list[str] | None
) -> None:
    found = bundle_of(tmp_path, stated)
    assert found.faults == []
    north = next(one for one in found.sites if one.site == verify_kit.SITES[0])
    said = [note for note in found.notes if "other ledgers keep a budget" in note]
    assert ("H32" in north.conditional) == bool(said) == bool(stated)
    assert all(OTHER in note for note in said)
    ledgers = read(found.record)
    row = {row.id: row for row in assess(facts(ledgers, ledgers.ledgers))}["H32"]
    assert row.state == ("unknown" if stated else "enforced")
    words = {
        "None": "nothing is stated about other ledgers by",
        "[]": "states that no other ledger keeps a budget of these people, on its word",
        str([OTHER]): f"which is not added up here: {OTHER}",
    }
    assert words[str(stated)] in row.why
    text = write_report(found, tmp_path / "out")[0].read_text(encoding="utf-8")
    assert words[str(stated)] in text


@pytest.mark.parametrize(
    "stated", [["north"], [OTHER, OTHER], [OTHER, "sha256:" + "8" * 64], "none", [1]]
)
def test_a_statement_that_is_none_is_a_fault(tmp_path: Path, stated: Any) -> None:
    assert {fault.rule for fault in bundle_of(tmp_path, stated).faults} >= {"entry"}


def test_a_ledger_is_no_other_ledger_of_itself(tmp_path: Path) -> None:
    own = verify_kit.Federation().sites[verify_kit.SITES[0]].key.raw
    faults = bundle_of(tmp_path, ["sha256:" + hashlib.sha256(own).hexdigest()]).faults
    assert [fault.rule for fault in faults] == ["entry"]


def test_the_ledger_holds_what_was_stated(tmp_path: Path) -> None:
    for name, stated in (("a", None), ("b", ()), ("c", (OTHER,))):
        make_site(tmp_path / name, "North", None, other_ledgers=stated)
        ledger = Ledger.read(tmp_path / name / "ledger")
        assert ledger.state.other_ledgers == stated
        ledger.log.store.close()
