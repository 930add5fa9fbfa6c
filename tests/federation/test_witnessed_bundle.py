"""A bundle of one run carries the newest head that others cosigned, also of later runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.simulations.run import Setting, run_plan

Make = Callable[..., Any]


def test_charges_of_a_later_run_are_witnessed_in_the_bundle_of_an_earlier_one(
    files: Path, plan_value: Make, tmp_path: Path
) -> None:
    """Although what came last, a pause, is in no head that others saw."""
    ledgers = tmp_path / "ledgers"
    setting = Setting(base=files, ledgers=ledgers, cap=60.0)
    first = run_plan(Plan.parse(plan_value()), setting, tmp_path / "first")
    run_plan(Plan.parse(plan_value(name="second")), setting, tmp_path / "second")
    folder = ledgers / "North"
    ledger = Ledger(folder, FileSigner.load(folder / "ledger.pem", None), "North")
    size = len(ledger.log)
    ledger.pause("somebody")
    ledger.log.store.close()
    out = tmp_path / "first.bundle"
    write_bundle([first.out, ledgers], out)
    found = verify(out, first.out / "roster-fingerprints.json", require_witnessed=True)
    assert found.ok, found.faults
    assert found.witnessed["North"].upto == size < found.witnessed["North"].entries
