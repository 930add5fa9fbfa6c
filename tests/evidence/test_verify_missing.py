"""What is missing is named once, and nobody else is blamed for it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import rfc8785
from verify_kit import HUB, SITES, Federation, write, write_roster

from privet.privacy.audit.verify import Verdict, verify

LOG = b'{"kind":"log"'
Found = list[tuple[str | None, str, str]]


@pytest.fixture(scope="module")
def fed() -> Federation:
    made = Federation()
    made.run()
    return made


@pytest.fixture(scope="module")
def lines(fed: Federation) -> list[bytes]:
    return fed.bundle()


def starts(lines: list[bytes]) -> list[int]:
    """Where each log begins, and where the last one ends."""
    heads = [n for n, line in enumerate(lines) if line.startswith(LOG)]
    after = [n for n, line in enumerate(lines) if line.startswith(b'{"kind":"receipt"')]
    return [*heads, after[0] if after else len(lines)]


def without(lines: list[bytes], *names: str) -> list[bytes]:
    """The bundle without the logs of ``names``."""
    edges, kept = starts(lines), list(lines)
    for first, last in reversed([*itertools.pairwise(edges)]):
        if json.loads(lines[first])["name"] in names:
            del kept[first:last]
    return kept


def check(tmp_path: Path, fed: Federation, lines: list[bytes]) -> Verdict:
    roster = write_roster(tmp_path / "roster.json", fed.fingerprints())
    answer = verify(write(tmp_path / "bundle", lines), roster)
    assert not answer.ok
    return answer


def said(answer: Verdict) -> Found:
    return [(fault.site, fault.rule, fault.message) for fault in answer.faults]


def lacks(name: str, kind: str = "ledger") -> tuple[str | None, str, str]:
    return (None, "bundle", f"the {kind} of {name} is not in this bundle")


@pytest.mark.parametrize("name", SITES)
def test_a_missing_ledger_is_one_fault(
    tmp_path: Path, fed: Federation, lines: list[bytes], name: str
) -> None:
    answer = check(tmp_path, fed, without(lines, name))
    assert said(answer) == [lacks(name)]
    assert [finding.site for finding in answer.sites] == [s for s in SITES if s != name]


def test_two_missing_ledgers_are_two(tmp_path: Path, fed: Federation, lines: list[bytes]) -> None:
    answer = check(tmp_path, fed, without(lines, SITES[0], SITES[2]))
    assert said(answer) == [lacks(SITES[0]), lacks(SITES[2])]


def test_a_bundle_of_one_site_alone(tmp_path: Path) -> None:
    fed = Federation(journal=False)
    fed.run()
    answer = check(tmp_path, fed, without(fed.bundle(), SITES[0], SITES[1]))
    assert said(answer) == [lacks(SITES[0]), lacks(SITES[1])]
    assert [finding.site for finding in answer.sites] == [SITES[2]]


def test_a_journal_cut_out_is_one_fault(
    tmp_path: Path, fed: Federation, lines: list[bytes]
) -> None:
    found = said(check(tmp_path, fed, without(lines, HUB)))
    assert found == [
        (None, "bundle",
         f"the journal of {HUB} is not in this bundle; its orders or receipts are")
    ]  # fmt: skip


def test_what_a_site_did_wrong_is_still_said(tmp_path: Path, lines: list[bytes]) -> None:
    """A fault of one site stays its fault where another's ledger is missing."""

    def tweak(who: str, kind: str, predicate: dict[str, object]) -> None:
        if (who, kind) == (SITES[1], "policy"):
            predicate["time"] = "2001-01-01T00:00:00Z"

    fed = Federation(tweak=tweak)
    fed.run()
    found = said(check(tmp_path, fed, without(fed.bundle(), SITES[0])))
    assert found[-1] == lacks(SITES[0])
    assert [(site, rule) for site, rule, _ in found[:-1]] == [(SITES[1], "sequence")]


def test_ledgers_in_another_order(tmp_path: Path, fed: Federation, lines: list[bytes]) -> None:
    a, b, c, *_ = starts(lines)
    found = said(check(tmp_path, fed, [*lines[:a], *lines[b:c], *lines[a:b], *lines[c:]]))
    assert len(found) == 1 and "the log of North is not in the roster's order" in found[0][2]


def test_a_ledger_after_the_journal(tmp_path: Path, fed: Federation, lines: list[bytes]) -> None:
    edges = starts(lines)
    a, b, end = edges[0], edges[1], edges[-1]
    found = said(check(tmp_path, fed, [*lines[:a], *lines[b:end], *lines[a:b], *lines[end:]]))
    assert found[0] == lacks(SITES[0])
    assert len(found) == 2 and "the log of North stands here after the journal" in found[1][2]


def test_a_ledger_twice(tmp_path: Path, fed: Federation, lines: list[bytes]) -> None:
    a, b, *_ = starts(lines)
    found = said(check(tmp_path, fed, [*lines[:b], *lines[a:b], *lines[b:]]))
    assert len(found) == 1 and "the log of North stands here twice" in found[0][2]


def test_a_strangers_log(tmp_path: Path, fed: Federation, lines: list[bytes]) -> None:
    a, b, *_ = starts(lines)
    head = {**json.loads(lines[a]), "log": "privet.ledger/West/0123456789abcdef", "name": "West"}
    strange = [rfc8785.dumps(head), *lines[a + 1 : b]]
    found = said(check(tmp_path, fed, [*lines[:b], *strange, *lines[b:]]))
    assert len(found) == 1
    assert found[0][2].endswith("a log of 'West', whom the roster does not name")


@pytest.mark.parametrize("field", ["log", "name", "role", "size"])
def test_a_head_that_is_wrong_in_one_field(
    tmp_path: Path, fed: Federation, lines: list[bytes], field: str
) -> None:
    place = starts(lines)[1]
    for value in ("x", None, 7, []):
        head = rfc8785.dumps({**json.loads(lines[place]), field: value})
        found = said(check(tmp_path, fed, [*lines[:place], head, *lines[place + 1 :]]))
        assert not [message for *_, message in found if "ledger of" in message]


# A file that is cut.

CUT = (None, "bundle", "the file is cut: it has no end line")


@pytest.mark.parametrize("torn", [False, True])
def test_a_cut_file_is_one_fault_wherever_it_is_cut(
    tmp_path: Path, fed: Federation, lines: list[bytes], torn: bool
) -> None:
    roster = write_roster(tmp_path / "roster.json", fed.fingerprints())
    path = tmp_path / "bundle"
    for kept in range(1, len(lines) + 1):
        text = b"".join(line + b"\n" for line in lines[:kept])
        path.write_bytes(text[:-9] if torn and kept > 1 else text)
        answer = verify(path, roster, keep=True)
        assert said(answer) == [CUT], kept
        assert not any("unwitnessed tail" in note for note in answer.notes), kept


def test_an_end_line_without_its_newline_is_none(
    tmp_path: Path, fed: Federation, lines: list[bytes]
) -> None:
    path = write(tmp_path / "bundle", lines)
    path.write_bytes(path.read_bytes()[:-1])
    assert said(verify(path)) == [CUT]


def test_what_is_wrong_before_the_cut_is_said(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "bundle"
    first = starts(lines)[0]
    broken = [*lines[: first + 1], lines[first + 2], *lines[first + 3 : first + 6]]
    path.write_bytes(b"".join(line + b"\n" for line in broken))
    found = said(verify(path))
    assert found[0] == CUT
    assert {(site, rule) for site, rule, _ in found[1:]} == {("North", "sequence")}
