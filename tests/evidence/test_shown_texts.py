"""No control character of a bundle reaches a terminal, a page, a card or a file that is handed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import verify_kit

from privet.cli.output import answer
from privet.common.plan import Plan
from privet.common.printable import printable
from privet.privacy.audit import report
from privet.privacy.audit.card import gather, write_card
from privet.privacy.audit.report import write_report
from privet.privacy.audit.verify import verify

EVIL = "\x1b]0;owned\x07\x9b2J\r\u202e\u2066\u2028\x00"
Place = tuple[str, ...]


def texts_in(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every text of JSON values, by the keys that lead to it; of a list the first."""
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from texts_in(part, (*place, key))
    elif isinstance(value, list) and value:
        yield from texts_in(value[0], (*place, "0"))


def spoil(value: Any, place: Place) -> None:
    """Add the characters to the text at ``place``, if it is there."""
    *way, last = place
    for key in way:
        value = value[int(key)] if isinstance(value, list) else value.get(key)
        if not value:
            return
    key_: Any = int(last) if isinstance(value, list) else last
    text = value[key_] if isinstance(value, list) else value.get(key_)
    if isinstance(text, str):  # the kit reads what follows a key's name
        value[key_] = EVIL + text if last == "key" else text + EVIL


def federation(tweak: Any = None) -> verify_kit.Federation:
    """A run with a refusal, a pause and a withdrawal, one policy with texts of all sorts."""

    def with_policy(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if kind == "policy":
            predicate["policy"] |= {
                "controller": "Trust", "purpose": "research", "retention": "a year",
                "contact": "dpo", "next_review": "2027-01-01", "attested": {"H21": "one county"},
            }  # fmt: skip
        if tweak is not None:
            tweak(who, kind, predicate)

    fed = verify_kit.Federation(tweak=with_policy, cap="60.0")
    plan = {
        **verify_kit.plan_of(training={"rounds": 1}), "title": "A title",
        "attested": {"H12": "a state"}, "task": {"kind": "tabular", "label": "ill"},
        "model": {"kind": "linear"},
    }  # fmt: skip
    if tweak is not None:
        tweak("", "plan", plan)
    fed.run(plan=plan)
    fed.sites["North"].add("paused", by=["dpo"])
    _, order = fed.order(
        "run-1", "North", 9, "train", verify_kit.digest(plan), "sha256:" + "0" * 64
    )
    fed.refuse("North", order, "refused-paused")
    fed.sites["North"].add("withdrawn", by=["dpo"])
    return fed


def places() -> list[tuple[str, Place]]:
    fed = federation()
    found = {("plan", place): None for place in texts_in(fed.plans[0])}
    for log in fed.logs():
        for kind, predicate in log.predicates:
            found |= {(kind, place): None for place in texts_in(predicate)}
    return list(found)


def shown(path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Everything that is made of a bundle for people or for other programs."""
    made: dict[str, str] = {}
    capsys.readouterr()
    found = verify(path, keep=True)
    answer.show(found)
    made["terminal"] = capsys.readouterr().out
    made["verify --json"] = json.dumps(answer.as_json(found), ensure_ascii=False)
    for file in write_report(found, out, bundle=path):
        made[file.name] = file.read_bytes().decode()
    # What a program reads out of the JSON, where these characters stand as escapes.
    for name, text in made.items():
        if "json" in name:
            value = json.loads(text)
            made[name] = "\n".join(strings(value))
    return made


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value if isinstance(value, list) else []:
        yield from strings(part)
    for key, part in value.items() if isinstance(value, dict) else []:
        yield key
        yield from strings(part)


def left(text: str) -> set[str]:
    """The characters that should not be there, but for the newlines of the page itself."""
    return {character for character in EVIL if not character.isprintable()} & set(text)


def test_no_text_of_a_bundle_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for number, (kind, place) in enumerate(places()):

        def tweak(who: str, made: str, value: Any, kind: str = kind, place: Place = place) -> None:
            if made == kind:
                spoil(value, place)

        path = verify_kit.write(tmp_path / f"{number}.bundle", federation(tweak).bundle())
        made = shown(path, tmp_path / str(number), capsys)
        for name, text in made.items():
            assert left(text) == set(), (name, kind, place)
        if printable(EVIL) in made["report.html"]:
            told.append((kind, place))
    # The test would see nothing if it spoilt nothing that is shown.
    assert ("plan", ("title",)) in told and ("policy", ("policy", "attested", "H21")) in told
    assert ("data-set", ("disjoint",)) in told or len(told) > 10


def test_without_the_one_function_the_page_would_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation(lambda _, kind, value: spoil(value, ("title",)) if kind == "plan" else None)
    path = verify_kit.write(tmp_path / "bundle", fed.bundle())
    monkeypatch.setattr(report, "printable_all", lambda value: value)
    page = write_report(verify(path, keep=True), tmp_path / "out")[0].read_bytes().decode()
    assert left(page) >= {"\x1b", "\u202e"}


def test_a_card_holds_none_either(tmp_path: Path, plan_value: Any) -> None:
    def tweak(who: str, kind: str, value: dict[str, Any]) -> None:
        if kind in ("run-opened", "round", "run-closed"):
            value["run"] += EVIL

    path = verify_kit.write(tmp_path / "bundle", federation(tweak).bundle())
    model = verify_kit.digest(b"run-1 1")
    evidence = gather(path, None, model)
    assert not evidence.verdict.ok and evidence.run == printable(f"run-1{EVIL}")
    kind = f"my{EVIL}:Task"
    plan = Plan.parse(plan_value(task={"kind": kind, "classes": ["a", "b"]}))
    card = write_card(plan, {}, evidence, source=f"a test{EVIL}", provenance=[f"a state{EVIL}"])
    assert left(card) == set() and printable(kind) in card
