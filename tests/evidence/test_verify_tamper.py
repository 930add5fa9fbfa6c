"""Every byte of a bundle matters, and no bytes at all make the verifier stumble."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_kit import SITES, Federation, Key, b64, plan_of, sha, write, write_roster

from privet.common.errors import InputError
from privet.privacy.audit.verify import Verdict, pool, verify
from privet.privacy.audit.verify.formats import signatures

HEADER = b'{"format":"privet/bundle/v1","kind":"bundle"}'
_fast = lru_cache(maxsize=None)(signatures.ed25519)


@pytest.fixture(autouse=True)
def _memoised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "ed25519", _fast)


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    fed = Federation()
    fed.sites["North"].rotate()
    fed.run(plan=plan_of(metrics={"every": 2}))
    return fed.bundle()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tamper")
    fed = Federation()
    write_roster(path / "roster.json", fed.fingerprints())
    return path


def answer(folder: Path, lines: list[bytes]) -> Verdict:
    found = verify(write(folder / "bundle", lines), folder / "roster.json")
    assert not any("could not continue" in fault.message for fault in found.faults)
    return found


def accepted(folder: Path, lines: list[bytes]) -> bool:
    """Whether a changed bundle is accepted; what does not begin as one is refused outright."""
    try:
        return answer(folder, lines).ok
    except InputError:
        assert lines[:1] != [HEADER]
        return False


def test_the_bundle_is_sound_before_it_is_touched(folder: Path, lines: list[bytes]) -> None:
    assert answer(folder, lines).faults == []


def test_lines_dropped_doubled_swapped_or_added(folder: Path, lines: list[bytes]) -> None:
    for place, line in enumerate(lines):
        before, after = lines[:place], lines[place + 1 :]
        variants = [[*before, *after], [*before, line, line, *after], [*before, b"", line, *after],
                    [*before, b"{}", line, *after], [*before, line + b" ", *after]]  # fmt: skip
        if after:
            variants.append([*before, after[0], line, *after[1:]])
        for variant in variants:
            assert not accepted(folder, variant), (place, line[:60])


quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(data=st.data())
def test_a_changed_byte(folder: Path, lines: list[bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[place])
    at = data.draw(st.integers(0, len(line) - 1))
    how = data.draw(st.sampled_from(["flip", "set", "delete", "insert"]))
    byte = data.draw(st.sampled_from(b'09azAZ+/=" ,:{}[]\\\x00\xff') | st.integers(0, 255))
    if how == "flip":
        line[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "set":
        line[at] = byte
    elif how == "delete":
        del line[at]
    else:
        line.insert(at, byte)
    if line != lines[place]:
        assert not accepted(folder, [*lines[:place], bytes(line), *lines[place + 1 :]])


def members(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every member of a JSON value."""
    if not isinstance(value, dict | list):
        return []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [p for key, child in pairs for p in ((*path, key), *members(child, (*path, key)))]


ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**53 - 1, "", "x", "1.0", "\ud7ff", "é", [], {}, ["x"], [[]],
     {"a": 1}, "sha256:" + "0" * 64, "A" * 5000]
)  # fmt: skip


@quick
@given(data=st.data())
def test_a_changed_value(folder: Path, lines: list[bytes], data: st.DataObject) -> None:
    """Canonical lines with odd values: faults, and no exception."""
    place = data.draw(st.integers(1, len(lines) - 1))
    value = json.loads(lines[place])
    path = data.draw(st.sampled_from(members(value)))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()) and isinstance(holder, dict):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(ODD)
    line = rfc8785.dumps(value)
    if line != lines[place]:
        assert not answer(folder, [*lines[:place], line, *lines[place + 1 :]]).ok


@quick
@given(data=st.data())
def test_a_changed_and_resigned_entry(folder: Path, data: st.DataObject) -> None:
    """Odd values in an entry that its own key signed: faults or not, but no exception."""
    site = data.draw(st.sampled_from([*SITES, "Hub"]))
    number = data.draw(st.integers(0, 12))
    odd = data.draw(ODD)
    drawn: list[Any] = []

    def tweak(who: str, kind: str, predicate: dict[str, Any]) -> None:
        if kind != "order" and who == site and predicate["sequence"] == number and not drawn:
            path = data.draw(st.sampled_from(members(predicate)))
            drawn.append(path)
            holder: Any = predicate
            for key in path[:-1]:
                holder = holder[key]
            if path[0] not in ("key", "log", "plan", "order", "digest", "model", "next", "policy"):
                holder[path[-1]] = odd

    fed = Federation(tweak=tweak)
    try:
        fed.run()
    except (TypeError, KeyError, AttributeError):  # the writer needed the value itself
        return
    answer(folder, fed.bundle())


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=400), st.integers(0, 80))
def test_any_bytes(folder: Path, lines: list[bytes], data: bytes, keep: int) -> None:
    head = b"".join(line + b"\n" for line in lines[:keep])
    (folder / "bytes").write_bytes(head + data)
    if not keep and data.split(b"\n")[0] != HEADER:
        with pytest.raises(InputError, match="is not a bundle"):
            verify(folder / "bytes")
        return
    found = verify(folder / "bytes")
    assert not found.ok
    assert not any("could not continue" in fault.message for fault in found.faults)


HOSTILE = {
    "empty": b"", "newline": b"\n", "no newline": b'{"format":"privet/bundle/v1","kind":"bundle"}',
    "nested": b"[" * 200_000 + b"\n", "long": b"x" * (1 << 20) + b"\n",
    "zeros": bytes(100_000), "lines": b"\n" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("keep", [0, 1, 2, 3, 25, 71])
def test_hostile_bytes(folder: Path, lines: list[bytes], name: str, keep: int) -> None:
    head = b"".join(line + b"\n" for line in lines[:keep])
    (folder / "bytes").write_bytes(head + HOSTILE[name])
    if not keep and name != "no newline":
        with pytest.raises(InputError, match="is not a bundle"):
            verify(folder / "bytes")
        return
    found = verify(folder / "bytes")
    assert not found.ok and len(found.faults) <= 1001


def test_a_line_without_end_is_not_read_into_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privet.privacy.audit.verify.formats import source

    monkeypatch.setattr(source, "MAX_LINE", 1000)
    (folder / "bytes").write_bytes(HEADER + b"\n" + b"x" * 1_000_000)
    assert [fault.message for fault in verify(folder / "bytes").faults] == ["line 2 is too long"]


def test_a_size_beyond_all_entries_allocates_nothing(folder: Path, lines: list[bytes]) -> None:
    place = next(i for i, line in enumerate(lines) if line.startswith(b'{"kind":"log"'))
    head = json.loads(lines[place])
    head["size"] = 2**53 - 1
    found = answer(folder, [*lines[:place], rfc8785.dumps(head), *lines[place + 1 :]])
    assert "bundle" in {fault.rule for fault in found.faults}


def test_the_end_line(folder: Path, lines: list[bytes]) -> None:
    path = write(folder / "bundle", lines)
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole + b"\n", whole + b"x", whole.replace(b"end", b"enD"),
                  whole[: whole.rindex(b"{")], whole + whole):  # fmt: skip
        path.write_bytes(wrong)
        assert not verify(path, folder / "roster.json").ok


def test_a_cosignature_beyond_the_quorum_is_missed(folder: Path) -> None:
    """Two of three would do, but the journal names all three."""
    fed = Federation()
    fed.run()
    log = fed.sites["North"]
    first = min(log.notes)
    note = log.notes[first]
    fewer = "".join(note.splitlines(keepends=True)[:-1])
    for receipt in fed.receipts:
        receipt["proof"] = receipt["proof"].replace(note, fewer)
    log.notes[first] = fewer
    assert {fault.rule for fault in answer(folder, fed.bundle()).faults} == {"witness"}


def test_a_quorum_is_needed_where_the_journal_says_witnessed(folder: Path) -> None:
    fed = Federation(quorum=4)
    fed.run()
    found = verify(write(folder / "bundle", fed.bundle()))
    assert {fault.rule for fault in found.faults} == {"witness"}


def test_faults_are_capped(folder: Path, lines: list[bytes]) -> None:
    found = answer(folder, [*lines, *[b"{}"] * 3000])
    assert len(found.faults) == 1001 and "2000 more" in found.faults[-1].message


def test_messages_are_printable(folder: Path) -> None:
    fed = Federation()
    fed.sites["North"].add("budget-closed", population="\x1b[31m\u202eevil\ud7ff" + "x" * 3000)
    fed.sites["North"].add("data-set", data_set="\x1b[31m\n", population="nobody", disjoint="x")
    for fault in answer(folder, fed.bundle()).faults:
        assert fault.message.isprintable() and len(fault.message) < 400


def test_worker_processes_find_the_same(
    folder: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SMALL", 10)
    broken = [line.replace(b'"attempt":1', b'"attempt":2') for line in lines]
    for content in (lines, broken):
        path = write(folder / "bundle", content)
        alone, pooled = (verify(path, keep=True, processes=n) for n in (1, 2))
        assert alone == pooled
    assert not pooled.ok


def test_progress_ends_at_the_size_of_the_file(folder: Path, lines: list[bytes]) -> None:
    path = write(folder / "bundle", lines)
    told: list[tuple[int, int]] = []
    verify(path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize("which", ["bundle", "roster", "folder"])
def test_a_file_that_cannot_be_opened(folder: Path, lines: list[bytes], which: str) -> None:
    path = write(folder / "bundle", lines)
    with pytest.raises(InputError):
        if which == "roster":
            verify(path, folder / "absent")
        else:
            verify(folder if which == "folder" else folder / "absent")


def test_a_rewritten_ledger_with_a_new_key_does_not_fit_the_pinned_roster(folder: Path) -> None:
    """The strongest forger: everything is signed anew, with keys of the forger's own."""
    fed = Federation()
    for log in fed.logs():
        log.key = Key(f"privet.{log.role}", log.name, 1, salt="forged")
        log.origin = log.key.name
    fed = _again(fed)
    forged = answer(folder, fed.bundle())
    assert {fault.rule for fault in forged.faults} >= {"roster"}


def _again(fed: Federation) -> Federation:
    for log in fed.logs():
        log.leaves.clear()
        log.predicates.clear()
        log.notes.clear()
    fed._setup("8.0", "site")
    return fed


def test_importing_the_verifier_is_light(root: Path) -> None:
    code = (
        "import sys, privet.privacy.audit.verify\n"
        "heavy = {'torch', 'flwr', 'pydantic', 'numpy', 'dp_accounting', 'scipy'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))\n"
        "fine = ('privet', 'privet.common', 'privet.common.errors', 'privet.privacy')\n"
        "print([n for n in sys.modules if n.split('.')[0] == 'privet' and n not in fine\n"
        "       and not n.startswith('privet.privacy.audit')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stderr


def test_the_verifier_names_no_other_module_of_privet(root: Path) -> None:
    for path in (root / "privacy" / "audit" / "verify").glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and words[1].split(".")[0] == "privet":
                allowed = words[1].startswith("privet.privacy.audit.verify")
                assert allowed or words[1] == "privet.common.errors", (path.name, line)


def test_the_kit_is_not_the_verifier() -> None:
    """Base64 and hashes of the kit against the standard library, once."""
    assert b64(b"\xff") == "/w==" and sha(b"") == hashlib.sha256(b"").hexdigest()
