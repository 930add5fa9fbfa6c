"""The first page: short, true, and the same for sites that are alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_kit as kit
import verify_kit

from privet.common.errors import InputError
from privet.privacy.accounting import assumptions
from privet.privacy.audit.report import input, phrases, summary, write_report
from privet.privacy.audit.report.claims import claim_of, standing
from privet.privacy.audit.verify import Fault, Verdict, verify


def written(found: Verdict, out: Path) -> str:
    text = write_report(found, out)[0].read_text(encoding="utf-8")
    return " ".join(text.split())


def with_journal(books: list[kit.Book]) -> list[kit.Book]:
    journal = kit.Book("centre", "coordinator")
    journal.add("genesis", coordinator="centre", setting="site", software="privet 0.1.0")
    return [*books, journal]


def term(text: str, name: str) -> str:
    found = re.search(rf"<dt>{name}</dt><dd>(.*?)</dd>", text)
    assert found
    return found[1]


def test_the_claim_stands_in_the_summary_and_leads_to_its_points(tmp_path: Path) -> None:
    claim = term(written(kit.verdict(kit.three_sites()), tmp_path / "a"), "Claim")
    assert '<a href="#claims">conditional</a> on 1 point of the' in claim
    assert claim.endswith("(H21)")
    proved = kit.verdict(kit.three_sites(attested={"H21": "one county each"}))
    assert "proved in the model" in term(written(proved, tmp_path / "b"), "Claim")
    fault = kit.verdict(kit.three_sites(), faults=[Fault(None, None, "bundle", "cut")])
    assert term(written(fault, tmp_path / "c"), "Claim").endswith("verification found faults")


def test_without_a_journal_the_box_is_yellow_and_says_what_was_not_checked(
    tmp_path: Path,
) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert '<div class="box warn"><p>Verified in part: no fault was found' in text
    assert "“order”, “round”, “model”, “receipt” were not checked" in text
    text = written(kit.verdict(with_journal(kit.three_sites())), tmp_path / "whole")
    assert '<div class="box"><p>Verified: no fault was found' in text
    assert "were not checked" not in text


def test_a_history_that_nobody_witnessed_is_not_called_verified(tmp_path: Path) -> None:
    alone = replace(kit.verdict(with_journal(kit.three_sites())), witnessed={})
    text = written(alone, tmp_path / "out")
    assert '<div class="box warn"><p>Consistent: no fault was found' in text
    assert "Who stands behind it: self-asserted" in text
    whole = written(kit.verdict(with_journal(kit.three_sites())), tmp_path / "whole")
    assert "Who stands behind it: " in whole and "self-asserted: " not in whole


def test_equal_sites_are_named_together(tmp_path: Path) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert term(text, "Whose data") == (
        "all 3 sites: data set “admissions-2026” of population “patients”"
    )
    assert "The largest value is ε 1.250 (δ 1e-06, per person, add or remove one), at all 3" in text
    found = kit.verdict(kit.three_sites())
    from dataclasses import replace

    found.sites[1] = replace(found.sites[1], epsilon=1.5)
    assert "per person, add or remove one), at Lakeside." in written(found, tmp_path / "other")


def test_data_called_as_their_sites_take_one_line() -> None:
    books = [kit.ledger(name) for name in ("New England", "Pacific", "Mountain")]
    for state in books:
        for entry in state.record.entries:
            value = entry.predicate
            for key in value.keys() & {"population", "data_set"}:
                value[key] = state.record.name.replace(" ", "_")
    found = kit.verdict(books)
    assert found.record is not None
    case = input.read(found.record)
    assert summary.whose(case) == "all 3 sites: data set named after the site"
    books[1].add("population", **{**books[0].record.entries[1].predicate, "population": "staff"})
    case = input.read(kit.verdict(books).record or input.AuditedRecord())
    assert summary.whose(case) == (
        "all 3 sites: data set named after the site; Pacific: no data set of population “staff”"
    )


def test_releases_were_paid_for_and_not_every_use(tmp_path: Path) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert "every release recorded here was paid for first, and never above the cap" in text
    assert "every use of its data" not in text
    assert "training by this software with another ledger or without one" in text


def unnoised(books: list[kit.Book], *names: str) -> list[kit.Book]:
    for state in books:
        for entry in state.record.entries:
            if state.record.name in names and "event" in entry.predicate:
                entry.predicate["event"] = {"type": "non_private", "reason": "no privacy"}
            if state.record.name in names and "reproducible" in entry.predicate:
                entry.predicate["reproducible"] = True
    return books


def test_a_run_without_noise_gives_the_right_reason(tmp_path: Path) -> None:
    names = ("St. Anna", "Lakeside", "Harbour")
    text = written(kit.verdict(unnoised(kit.three_sites(), *names), epsilon=None), tmp_path / "out")
    assert "Why: trained without noise." in text and "from a seed" not in text
    assert term(text, "What is protected") == "nobody"
    assert "was paid for first" not in text and "nothing was paid for them" in text


def test_one_site_without_noise_among_others(tmp_path: Path) -> None:
    from dataclasses import replace

    found = kit.verdict(unnoised(kit.three_sites(), "Lakeside"))
    found.sites[1] = replace(found.sites[1], epsilon=None)
    text = written(found, tmp_path / "out")
    assert term(text, "What is protected").endswith(", but nobody at Lakeside")
    assert "(but at Lakeside, where something had no guarantee" in text
    assert "Why: something that was let out has no privacy guarantee." in text


def test_a_seed_is_named_where_there_was_noise() -> None:
    found = kit.verdict(kit.three_sites(reproducible=True))
    assert found.record is not None
    case = input.read(found.record)
    assert claim_of(case, found, case.ledgers).why == "noise came from a seed that somebody knows"
    assert standing(found).claim.alarm and standing(found).setting == "site"


def test_figures_in_the_clear_are_not_a_nought(tmp_path: Path) -> None:
    plans = {kit.PLAN: kit.plan(metrics={"source": "public"})}
    text = written(kit.verdict(kit.three_sites(), plans=plans), tmp_path / "out")
    assert ">in the clear, not charged</td>" in text
    assert ">in the clear, not" not in written(kit.verdict(kit.three_sites()), tmp_path / "gate")


@pytest.mark.parametrize(
    ("epsilon", "times"), [(3.0, "20.1"), (2.0, "7.4"), (0.0, "1.0"), (8.0, "2,981.0")]
)
def test_the_odds_have_one_decimal_rounded_up(epsilon: float, times: str) -> None:
    assert phrases.odds(epsilon, 1e-5)["times"] == times


def test_a_simulations_witnesses_lay_on_one_machine() -> None:
    rows = {row.id: row for row in assumptions.assess(assumptions.Facts())}
    assert rows["H31"].why.endswith("all that cosigned it lay on the same machine")


def test_it_names_no_package_index(tmp_path: Path) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert "pip install privet" not in text
    assert "<code>pip install .</code>" in text


def test_figures_do_not_break(tmp_path: Path) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert re.search(r'<th [^>]*class="num whole">ε spent</th>', text)
    style: Any = text[text.index("<style>") : text.index("</style>")]
    assert ".whole { white-space: nowrap; }" in style


def test_a_shortened_digest_shows_it() -> None:
    whole = "sha256:" + "a" * 64
    assert phrases.marked("policy sha256:4ed0610bc23f") == "policy sha256:4ed0610bc23f…"
    assert phrases.marked(f"policy {whole}, ok") == f"policy {whole}, ok"
    assert phrases.marked("policy sha256:4ed0…") == "policy sha256:4ed0…"


def test_many_witnesses_are_counted() -> None:
    assert phrases.signers({"a": 2, "b": 2}) == "a (2), b (2)"
    assert phrases.signers(dict.fromkeys("abcdefghi", 5)) == "9 others (5 each)"
    assert phrases.signers({**dict.fromkeys("abcd", 5), "e": 4}).endswith("e (4)")
    assert phrases.signers({}) == "nobody"


def test_no_section_forces_a_page(tmp_path: Path) -> None:
    text = written(kit.verdict(kit.three_sites()), tmp_path / "out")
    assert "break-before: page" not in text
    assert "p:has(+ .table)" in text


# What `privet audit verify` says, from a brief record.


@pytest.mark.parametrize("change", ["", "seed", "test", "abort", "open", "alone", "simulation"])
def test_a_brief_record_gives_the_same_claim(tmp_path: Path, change: str) -> None:
    done: list[int] = []

    def tweak(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if change == "seed" and (who, kind) == ("East", "released"):
            done.append(1)
            predicate["reproducible"] = len(done) == 2
        if change == "test" and (who, kind) == ("East", "reserved"):
            done.append(1)
            predicate["self_tests"] = ["H6"] if len(done) == 3 else ["H6", "H7", "H16"]
        if change == "simulation" and kind == "genesis":
            predicate["setting"] = "simulation"
        if kind == "policy":
            predicate["policy"]["allow"]["coordinators"].append("sha256:" + "0" * 64)
            if change == "simulation":
                predicate["policy"]["setting"] = "simulation"

    fed = verify_kit.Federation(tweak=tweak, cap="60.0")
    fed.run()
    if change in ("abort", "open"):
        _, order = fed.order("late", "North", 1, "train", verify_kit.digest(fed.plans[0]), "x")
        fed.orders.pop()
        event = verify_kit.train_event(fed.plans[0])
        order = {**order, "model": "sha256:" + "0" * 64}
        at = fed.reserve("North", order, event, keyid="0" * 64)
        if change == "abort":
            fed.sites["North"].add("aborted", reservation=at, data_opened=False, reason="failed")
    if change == "alone":
        fed.sites["North"].add("paused", by=["dpo"])
        fed.sites["North"].checkpoint([])
    path = verify_kit.write(tmp_path / "bundle", fed.bundle())
    whole, brief = verify(path, keep=True), verify(path, brief=True)
    assert whole.ok and standing(whole) == standing(brief)
    assert standing(whole).claim.word == ("none" if change == "seed" else "conditional")


def test_a_brief_record_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    sizes = []
    for rounds in (2, 6):
        fed = verify_kit.Federation(cap="60.0")
        fed.run(plan=verify_kit.plan_of(training={"rounds": rounds}))
        found = verify(verify_kit.write(tmp_path / str(rounds), fed.bundle()), brief=True)
        assert found.ok and found.record is not None and found.record.brief
        sizes.append([len(log.entries) for log in found.record.logs])
        with pytest.raises(InputError, match="keep=True"):
            write_report(found, tmp_path / "out")
    assert sizes[0] == sizes[1]
