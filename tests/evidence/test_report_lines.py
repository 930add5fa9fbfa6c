"""ε over time is drawn from few accountings, and still right: an upper bound, close, in order."""

from __future__ import annotations

from collections import Counter

import pytest
import report_kit as kit
import verify_kit

from privet.privacy.accounting.pld import GRID
from privet.privacy.audit.report import claims, input
from privet.privacy.audit.verify import Verdict, verify


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    """A real bundle of 70 rounds, more than a line has points."""
    fed = verify_kit.Federation(cap="60.0")
    fed.run(plan=verify_kit.plan_of(training={"rounds": 70}, privacy={"epsilon": 50.0}))
    path = verify_kit.write(tmp_path_factory.mktemp("lines") / "bundle", fed.bundle())
    verdict = verify(path, keep=True)
    assert verdict.ok
    return verdict


def exact(group: input.ReportGroup, charges: int) -> float:
    counts: Counter[object] = Counter()
    for charge, sign in group.steps[:charges]:
        counts[charge.event] += sign
    return claims.spent(counts, group, GRID)  # type: ignore[arg-type]


def test_each_point_is_an_upper_bound_within_a_pixel(found: Verdict) -> None:
    assert found.record is not None
    line = claims.lines(input.read(found.record), found)[0]
    end = line.points[-1][-1]
    assert end == found.sites[0].epsilon and len(line.points) == 61
    values = [value for *_, value in line.points]
    assert values == sorted(values)
    for count, *_, value in line.points[::12]:
        true = exact(line.group, count)
        assert true - 1e-9 <= value <= true + 0.004 * end


def test_no_point_of_a_whole_history_is_above_its_end(found: Verdict) -> None:
    assert found.record is not None
    for line in claims.lines(input.read(found.record), found):
        assert max(value for *_, value in line.points) == line.points[-1][-1]


def test_what_was_given_back_may_leave_a_peak() -> None:
    books = kit.three_sites()
    case = input.read(kit.verdict(books).record or input.AuditedRecord())
    group = case.groups[0]
    last = group.charges[-1]
    last.state = "returned"
    group.steps.append((last, -1))
    finding = kit.verdict(books, epsilon=exact(group, len(group.steps))).sites[0]
    values = [value for *_, value in claims._points(group, finding, 60)]
    assert max(values) > values[-1] == finding.epsilon


def test_many_histories_share_the_accountings(monkeypatch: pytest.MonkeyPatch) -> None:
    books = [kit.ledger(f"site {number}", rounds=20 + number) for number in range(30)]
    verdict = kit.verdict(books)
    case = input.read(verdict.record or input.AuditedRecord())
    asked: list[object] = []
    monkeypatch.setattr(claims, "spent", lambda counts, *_: asked.append(counts) or 0.1)
    assert len(claims.lines(case, verdict)) == 30
    assert len(asked) <= 300


def test_a_run_alone_costs_what_its_population_spent(
    found: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.record is not None
    group = input.read(found.record).groups[0]
    own = claims.of_run(group, "run-1")
    assert own == pytest.approx(found.sites[0].epsilon, abs=2e-4)
    assert claims.of_run(group, "run-1", 1.5) == 1.5
    charge = group.charges[0]
    monkeypatch.setitem(charge.entry.predicate, "run", "run-0")
    both = claims.of_run(group, "run-1", 1.5)
    assert both is not None and own is not None and 1.5 != both < own
