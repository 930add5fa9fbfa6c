"""Every field of a bundle, changed and signed again by everybody, is refused or somebody's word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from forge_kit import history, keys_of, memoise, trial_in
from forger import Forger
from formats import path, root
from lies import LIES
from meaning import copy, parse
from trial import IN_TIME, OLD_BYTES, Forgery, Trial
from verify_kit import clock, sha, tree_path, tree_root
from words import GAPS, WORDS, find, known, table

from privet.privacy.audit.verify.result import Findings

#: One change of each sort; the campaign makes all of them.
EVERYWHERE = {"up", "another digest", "other text", "'person'", "'replace_one'"}
CHANGES = {f"{change}, everywhere" for change in EVERYWHERE} | {
    "up", "down", "turned round", "another digest", "another key", "other text",
    "last dropped", "one added", "a key added", "reversed", "a second later", "text", "2001",
    "exchanged for another of the same name", "'failed'", "'simulation'", "'listed'",
    "'does-not-fit'",
}  # fmt: skip


#: Free where nobody was asked twice, one more head is there, or figures are public: the campaign
#: has such bundles.
ELSEWHERE = {
    "journal.round.orders[].attempt", "ledger.reserved.attempt", "ledger.refused.attempt",
    "journal.round.witnessed[].size", "plan.metrics.source", "plan.metrics.every",
    "plan.metrics.noise_multiplier", "ledger.genesis.setting",
    "ledger.policy.policy.setting",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _memoised(monkeypatch: pytest.MonkeyPatch) -> None:
    memoise(monkeypatch)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return trial_in(tmp_path_factory.mktemp("forge"))


@pytest.fixture(scope="module")
def accepted(trial: Trial) -> dict[str, Forgery | None]:
    """The first change of each field that is accepted, if one is."""
    tried = trial.walk(
        random.Random(0), most=1, coalitions=lambda who: who == "everybody",
        keep=lambda change: change in CHANGES, until_accepted=True,
    )  # fmt: skip
    found: dict[str, Forgery | None] = {}
    with pytest.MonkeyPatch.context() as patch:
        memoise(patch)
        for one in tried:
            found[one.field] = None if one.rule else one
    return found


@pytest.mark.long  # campaigns/forge.py --quick does this on every change
def test_every_field_is_refused_or_listed(accepted: dict[str, Forgery | None]) -> None:
    assert len(accepted) > 180
    unlisted = [
        f"{one.field}: {one.change}" for one in accepted.values()
        if one is not None and not known(one, WORDS) and not known(one, GAPS)
    ]  # fmt: skip
    assert unlisted == [], "a rule is missing, or these are somebody's word: campaigns/words.py"


@pytest.mark.long
def test_what_is_listed_is_refused_by_no_rule(
    trial: Trial, accepted: dict[str, Forgery | None]
) -> None:
    """Else the page says that nobody can check what the verifier does check."""
    here = {
        row: [f for f in accepted if find(f, WORDS) == row] for row in WORDS if row not in ELSEWHERE
    }
    checked = [
        row for row, fields in here.items()
        if fields and not any(map(accepted.get, fields)) and not _is_free(trial, fields)
    ]  # fmt: skip
    assert checked == [], "these have a rule now: take them out of campaigns/words.py"


def _is_free(trial: Trial, fields: list[str]) -> bool:
    """Whether any change at all is accepted, at one of several places."""
    tried = trial.walk(
        random.Random(0), most=3, fields=fields, coalitions=lambda who: who == "everybody"
    )
    return any(not one.rule for one in tried)


def test_the_page_lists_whose_word_each_field_is(root: Path) -> None:
    page = (root / "docs" / "reference" / "evidence-format.md").read_text(encoding="utf-8")
    assert table() in page, "put the output of `python campaigns/forge.py --fields` there"


@pytest.mark.parametrize("rule, field", [
    ("event", "ledger.released.event.count"), ("code", "ledger.reserved.code"),
    ("model", "journal.round.model"), ("receipt", "receipt.index"),
])  # fmt: skip
def test_a_rule_that_is_missing_is_noticed(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, rule: str, field: str
) -> None:
    """The control: without one rule the verifier accepts what it refuses with it."""
    changes = {"up", "another digest", "last dropped"}

    def forged() -> dict[str, str]:
        tried = trial.walk(
            random.Random(0), most=1, fields=[field], coalitions=lambda who: who == "everybody",
            keep=lambda change: change in changes,
        )  # fmt: skip
        return {one.change: one.rule for one in tried if not one.change.endswith("everywhere")}

    before = forged()
    assert before and all(before.values())
    real = Findings.fault

    def fault(self: Findings, name: str, *rest: object) -> None:
        if name != rule:
            real(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Findings, "fault", fault)
    assert "" in forged().values()


@pytest.mark.parametrize("lie", LIES)
def test_a_named_lie_is_refused_labelled_or_listed(trial: Trial, lie: str) -> None:
    told = list(LIES[lie].told(trial))
    assert told
    bad = [one.coalition for one in told if not one.rule and not known(one, GAPS)]
    assert bad == []


# the forger


def test_the_forger_signs_with_the_keys_of_its_coalition_alone(trial: Trial) -> None:
    """What others signed stands as it was, and the change is refused by what they signed."""
    tree = copy(trial.original.tree)
    for log in tree["logs"]:
        for entry in log["entries"]:
            entry["statement"]["predicate"]["time"] = clock(0)
    lines = Forger(trial.original, tree, frozenset(["North"]), trial.keys).lines()
    was, now = parse(trial.lines), parse(lines)
    for number, log in enumerate(was.tree["logs"]):
        same = [
            was.signed["entry", number, n] == now.signed["entry", number, n]
            for n in range(len(log["entries"]))
        ]
        assert not any(same) if log["name"] == "North" else all(same)
    assert not trial.verdict(lines).ok
    assert trial.verdict(Forger(trial.original, tree, trial.everybody, trial.keys).lines()).ok


def test_without_a_key_nothing_that_is_signed_changes(trial: Trial) -> None:
    fields = ["ledger.reserved.code", "journal.round.shown", "order.purpose", "entry.time"]
    tried = list(
        trial.walk(random.Random(0), fields=fields, coalitions=lambda who: who == "nobody")
    )
    assert {one.rule for one in tried if "everywhere" not in one.change} == {OLD_BYTES}
    assert all(one.rule for one in tried)


def test_a_site_may_lie_in_time_and_not_afterwards(trial: Trial) -> None:
    """A witness cosigns what extends a log, true or not; what it cosigned stands."""
    tried = list(trial.walk(
        random.Random(0), most=1, fields=["ledger.released.reproducible"],
        coalitions=lambda who: who.removesuffix(IN_TIME) == "site",
    ))  # fmt: skip
    rules = {one.coalition: one.rule for one in tried if one.change == "turned round"}
    assert rules["site"] and rules["site" + IN_TIME] == ""


def test_a_bundle_that_is_not_changed_is_written_as_it_was() -> None:
    fed = history()
    original, lines = parse(fed.bundle()), fed.bundle()
    for coalition in (frozenset[str](), frozenset([*original.names, original.coordinator])):
        made = Forger(original, copy(original.tree), coalition, keys_of(fed)).lines()
        assert made[:-1] == lines
        text = b"".join(line + b"\n" for line in lines)
        assert sha(text).encode() in made[-1]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_the_forgers_tree_is_that_of_the_rfc(size: int) -> None:
    import hashlib

    leaves = [bytes([n]) for n in range(size)]
    hashes = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    assert root(hashes) == tree_root(leaves)
    for n in range(size):
        assert path(n, hashes) == tree_path(n, leaves)
