"""Witnesses: what they cosign, what they refuse, and that they do not forget."""

from __future__ import annotations

import json
import multiprocessing
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privet.common.canonical import digest
from privet.common.errors import EvidenceError, LedgerError, NoteError
from privet.privacy.evidence import witness as witness_module
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.merkle import Tree
from privet.privacy.evidence.signed_note import COSIGN, Checkpoint, Key, SignatureLine, key_name
from privet.privacy.evidence.statement import LEDGER, Entry
from privet.privacy.evidence.witness import Witness, extend, keys_of


def signer_of(number: int) -> FileSigner:
    """The same key in every process of a test."""
    return FileSigner(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


OWNER, STRANGER, NEW, NEWER, SPARE = (signer_of(number) for number in range(1, 6))
NAME = key_name("ledger", "North", OWNER.public)
KEY = Key(NAME, OWNER.public)
ALL = {NAME: KEY}


def leaf(kind: str, number: int, signers: Iterable[FileSigner], **fields: Any) -> bytes:
    value = {"sequence": number, "time": "2026-11-22T03:40:07Z", "log": NAME, **fields}
    return Entry(LEDGER, kind, value, "key", digest(b"key")).leaf(list(signers))


class Grown:
    """A log as anybody could make one up, honest or not: leaves, and who signs the head."""

    def __init__(self, leaves: Iterable[bytes] = (), signer: FileSigner = OWNER) -> None:
        first = leaf("genesis", 0, [OWNER], key=str(KEY), recovery=str(Key("r", SPARE.public)))
        self.leaves = [first, *leaves] if not isinstance(leaves, list) else list(leaves)
        self.signer = signer
        self.name = NAME
        self.rotations: list[int] = []

    def copy(self) -> Grown:
        other = Grown(list(self.leaves), self.signer)
        other.rotations = list(self.rotations)
        return other

    def add(self, *texts: str) -> Grown:
        for text in texts:
            self.leaves.append(leaf("paused", len(self.leaves), [self.signer], by=text))
        return self

    def rotate(self, new: FileSigner, by: FileSigner | None = None, why: str = "rotation") -> Grown:
        number = len(self.leaves)
        key = str(Key(NAME, new.public))
        entry = leaf("key-rotated", number, [by or self.signer, new], key=key, why=why)
        self.leaves.append(entry)
        self.rotations = [*(self.rotations or [0]), number]
        self.signer = new
        return self

    def shown(self, since: Iterable[int] = (), **changes: Any) -> Evidence:
        tree = Tree(self.leaves)
        key = Key(self.name, self.signer.public)
        note = Checkpoint(self.name, len(tree), tree.root()).signed(key, self.signer).text
        proofs = {n: tree.consistency(n) for n in since}
        rotations = [(n, self.leaves[n], tree.inclusion(n)) for n in self.rotations]
        return replace(Evidence(note, proofs, {}, rotations), **changes)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "witness.json", FileSigner.generate(), "East")


def said(witness: Witness, shown: Evidence, keys: dict[str, Key] = ALL, name: str = NAME) -> str:
    """What a witness says against a head; empty if it cosigned. Its line is checked."""
    before = witness.seen
    lines, faults = witness.cosign({name: shown}, keys)
    assert len(lines) + len(faults) == 1
    if lines:
        head = Checkpoint.parse(shown.note).with_cosignatures(lines.values())
        assert head.is_cosigned_by(witness.key)
        assert witness.seen[name].size == head.size
        return ""
    assert witness.seen == before
    return faults[name]


# --- growth ---------------------------------------------------------------------------------


def test_a_log_that_grows_is_cosigned_each_time(witness: Witness) -> None:
    log = Grown().add("a", "b")
    assert said(witness, log.shown()) == ""
    assert said(witness, log.shown([3])) == ""  # the same again
    for number in range(3, 12):
        log.add(str(number))
        assert said(witness, log.shown([number, 1, 2])) == ""


@pytest.mark.parametrize("back", [1, 2])
def test_a_log_that_was_rolled_back_is_not(witness: Witness, back: int) -> None:
    log = Grown().add("a", "b", "c")
    assert said(witness, log.shown()) == ""
    short = Grown(log.leaves[:-back])
    assert "rolled back: it shows" in said(witness, short.shown([1, 2, 3, 4][: len(short.leaves)]))
    # And when it has grown past what it lost.
    short.add(*"uvwxyz")
    assert "forked" in said(witness, short.shown([4]))
    assert said(witness, log.add("d").shown([4])) == ""


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_rewritten_entry_is_a_fork(witness: Witness, place: int, more: int) -> None:
    """Whatever proof it makes, as long as before or longer."""
    log = Grown().add("a", "b", "c")
    assert said(witness, log.shown()) == ""
    fork = log.copy()
    fork.leaves[place] = leaf("paused", place, [OWNER], by="somebody else")
    fork.add(*"xxxxx"[:more])
    assert "forked" in said(witness, fork.shown([4]))
    honest = Tree(log.leaves)
    proofs = {4: honest.consistency(4)} if more == 0 else {4: [honest.root()]}
    assert "forked" in said(witness, fork.shown(proofs=proofs))


def test_growth_without_a_proof_is_not_believed(witness: Witness) -> None:
    log = Grown().add("a", "b")
    assert said(witness, log.shown()) == ""
    log.add("c", "d")
    for shown in (log.shown(), log.shown([1, 2]), log.shown(proofs={3: [bytes(32)]})):
        assert "does not extend" in said(witness, shown)
    assert said(witness, log.shown([3])) == ""


def test_each_log_has_a_memory_of_its_own(witness: Witness) -> None:
    other = Key(key_name("ledger", "South", STRANGER.public), STRANGER.public)
    south = Grown(signer=STRANGER)
    south.name = other.name
    keys = {**ALL, other.name: other}
    lines, faults = witness.cosign(
        {NAME: Grown().add("a").shown(), other.name: south.shown()}, keys
    )
    assert (set(lines), faults) == ({NAME, other.name}, {})
    short = Grown()
    lines, faults = witness.cosign(
        {NAME: short.shown(), other.name: south.add("b").shown([1])}, keys
    )
    assert (set(lines), set(faults)) == ({other.name}, {NAME})


# --- whose head -----------------------------------------------------------------------------


def test_a_head_by_another_key_is_not_cosigned(witness: Witness) -> None:
    assert "not signed by the key in force" in said(witness, Grown(signer=STRANGER).shown())
    # Its own name on a stranger's signature, or the right line over another body.
    honest, more = Grown().shown(), Grown().add("a").shown()
    body, lines = Checkpoint.parse(more.note), Checkpoint.parse(honest.note).lines
    pasted = replace(body, lines=lines).text
    assert "not signed" in said(witness, replace(more, note=pasted))


def test_a_log_that_nobody_named_is_not_watched(witness: Witness) -> None:
    lines, faults = witness.cosign({"somebody": Grown().shown()}, ALL)
    assert lines == {}
    assert "not a log that this witness watches" in faults["somebody"]
    assert witness.seen == {}


def test_a_head_under_another_logs_name(witness: Witness) -> None:
    other = Key(key_name("ledger", "South", STRANGER.public), STRANGER.public)
    keys = {**ALL, other.name: other}
    assert "of another log" in said(witness, Grown().shown(), keys, other.name)


@pytest.mark.parametrize("note", ["", "x", "a\n1\nAAAA\n\n— a b\n", NAME + "\n1\n", "\ud800\n\n"])
def test_a_head_that_cannot_be_read(witness: Witness, note: str) -> None:
    assert "cannot be read" in said(witness, Grown().shown(note=note))


# --- key rotations ---------------------------------------------------------------------------


def test_rotations_are_followed_from_the_first_key(witness: Witness) -> None:
    log = Grown().add("a")
    assert said(witness, log.shown()) == ""
    assert said(witness, log.rotate(NEW).add("b").shown([2])) == ""
    assert said(witness, log.rotate(NEWER).add("c").shown([4])) == ""
    assert keys_of(log.shown(), KEY) == [OWNER.public, NEW.public, NEWER.public]
    # A witness that comes late follows all of them at once.
    _, seen = extend(log.shown(), KEY, None)
    assert seen.size == len(log.leaves)


def test_the_recovery_key_of_the_genesis_replaces_a_lost_key(witness: Witness) -> None:
    log = Grown().add("a")
    assert said(witness, log.shown()) == ""
    assert said(witness, log.rotate(NEW, by=SPARE, why="recovery").add("b").shown([2])) == ""


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (STRANGER, "rotation"),
        (NEW, "rotation"),
        (SPARE, "rotation"),
        (STRANGER, "recovery"),
        (OWNER, "recovery"),
    ],
)
def test_a_key_that_was_not_handed_over(witness: Witness, by: FileSigner, why: str) -> None:
    log = Grown().add("a")
    assert said(witness, log.shown()) == ""
    assert "does not hand the key over" in said(witness, log.rotate(NEW, by, why).shown([2]))


def test_a_rotation_that_only_one_side_signed(witness: Witness) -> None:
    log = Grown()
    key = str(Key(NAME, NEW.public))
    for signers in ([OWNER], [NEW], [OWNER, NEW, STRANGER], [NEW, OWNER]):
        forged = log.copy()
        forged.leaves.append(leaf("key-rotated", 1, signers, key=key, why="rotation"))
        forged.rotations, forged.signer = [0, 1], NEW
        assert "does not hand the key over" in said(witness, forged.shown())


def test_a_rotation_that_is_not_in_the_log(witness: Witness) -> None:
    honest, other = Grown().add("a"), Grown().rotate(NEW)
    shown = honest.shown()
    number, forged, path = other.shown().rotations[1]
    head = Checkpoint.parse(shown.note)
    by_new = Checkpoint(head.origin, head.size, head.root).signed(Key(NAME, NEW.public), NEW)
    planted = replace(shown, note=by_new.text, rotations=[(number, forged, path)])
    assert f"entry {number} is not in the log it shows" in said(witness, planted)


@pytest.mark.parametrize("kind", ["paused", "released", "genesis"])
def test_only_a_rotation_hands_a_key_over(witness: Witness, kind: str) -> None:
    """No other entry of the log, though the right keys signed it and it names a key."""
    log = Grown()
    fields = {"key": str(Key(NAME, NEW.public)), "why": "rotation", "recovery": None}
    log.leaves.append(leaf(kind, 1, [OWNER, NEW], **fields))
    log.rotations, log.signer = [0, 1], NEW
    assert "does not hand the key over" in said(witness, log.shown())


def test_a_later_genesis_names_no_recovery_key(witness: Witness) -> None:
    log = Grown()
    log.leaves.append(
        leaf("genesis", 1, [OWNER], key=str(KEY), recovery=str(Key("r", STRANGER.public)))
    )
    log.rotations = [1]
    log.rotate(NEW, by=STRANGER, why="recovery")
    assert "does not hand the key over" in said(witness, log.shown())


def test_a_stolen_old_key_signs_nothing_after_a_rotation_was_witnessed(witness: Witness) -> None:
    """The old key was replaced because it was stolen; the thief does not show the rotation."""
    log = Grown().add("a").rotate(NEW).add("b")
    assert said(witness, log.shown()) == ""
    thief = log.copy().add("forged")
    thief.signer, thief.rotations = OWNER, []
    assert "leaves out a rotation of its key" in said(witness, thief.shown([len(log.leaves)]))
    # Nor a part of them.
    log.rotate(NEWER)
    assert said(witness, log.shown([4])) == ""
    thief = log.copy().add("forged")
    thief.signer, thief.rotations = NEW, [0, 2]
    assert "leaves out a rotation of its key" in said(witness, thief.shown([len(log.leaves)]))


def test_a_key_comes_into_force_once(witness: Witness) -> None:
    log = Grown().rotate(NEW).rotate(OWNER)
    assert "does not hand the key over" in said(witness, log.shown())


# --- memory -----------------------------------------------------------------------------------


def reopened(witness: Witness, path: Path) -> Witness:
    return Witness(path, witness._signer, "East")


def test_a_restart_keeps_the_memory(witness: Witness, tmp_path: Path) -> None:
    log = Grown().add("a", "b")
    assert said(witness, log.shown()) == ""
    again = reopened(witness, tmp_path / "witness.json")
    assert (again.key, again.seen) == (witness.key, witness.seen)
    assert "rolled back" in said(again, Grown().shown())
    assert said(again, log.add("c").shown([3])) == ""
    # The control: a witness that forgets cosigns the shorter history.
    (tmp_path / "witness.json").unlink()
    assert said(reopened(witness, tmp_path / "witness.json"), Grown().shown()) == ""


def test_what_was_seen_is_on_disk_before_a_signature_leaves(
    witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: object, **more: object) -> None:
        raise OSError("no space left")

    log = Grown().add("a")
    assert said(witness, log.shown()) == ""
    with monkeypatch.context() as patched:
        patched.setattr(witness_module, "write_atomic", full)
        with pytest.raises(OSError, match="no space left"):
            witness.cosign({NAME: log.add("b").shown([2])}, ALL)
    assert witness.seen[NAME].size == reopened(witness, tmp_path / "witness.json").seen[NAME].size
    assert witness.seen[NAME].size == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "5", '{"a": 5}', '{"a": {}}', '{"a": {"size": 1, "root": "", "note": ""}}',
        "\xff",
    ],
)  # fmt: skip
def test_a_damaged_memory_stops_the_witness(tmp_path: Path, text: str) -> None:
    path = tmp_path / "witness.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LedgerError, match="cannot be read"):
        Witness(path, FileSigner.generate(), "East")


def test_a_memory_that_contradicts_itself_stops_the_witness(
    witness: Witness, tmp_path: Path
) -> None:
    path = tmp_path / "witness.json"
    assert said(witness, Grown().add("a", "b").shown()) == ""
    stored = json.loads(path.read_text())
    stored[NAME]["size"] = 1
    path.write_text(json.dumps(stored))
    with pytest.raises(LedgerError, match="not the one of its note"):
        reopened(witness, path)


def test_only_the_logs_own_line_is_remembered(witness: Witness) -> None:
    """A head may come with lines of anybody's; they are neither kept nor passed on."""
    shown = Grown().add("a").shown()
    junk = [SignatureLine(f"privet.witness/{n}/0", bytes(4), bytes(72)) for n in range(9)]
    dirty = Checkpoint.parse(shown.note).with_cosignatures(junk).text
    assert said(witness, replace(shown, note=dirty)) == ""
    assert witness.seen[NAME].note == shown.note


def test_two_processes_of_one_witness_do_not_cosign_a_fork(
    witness: Witness, tmp_path: Path
) -> None:
    """As Ray's actors are: each with its own object, and one memory on disk."""
    other = reopened(witness, tmp_path / "witness.json")
    log = Grown().add("a")
    fork = Grown().add("another")
    assert said(witness, log.shown()) == ""
    assert "forked" in said(other, fork.shown([2]))
    assert said(other, log.add("b").shown([2])) == ""
    assert "rolled back" in said(witness, Grown(log.leaves[:2]).shown())


def test_one_process_does_not_forget_what_another_saw(witness: Witness, tmp_path: Path) -> None:
    south = Grown(signer=STRANGER)
    south.name = key_name("ledger", "South", STRANGER.public)
    keys = {**ALL, south.name: Key(south.name, STRANGER.public)}
    first, second = witness, reopened(witness, tmp_path / "witness.json")
    log = Grown().add("a")
    assert said(first, log.shown(), keys) == ""
    assert said(second, log.add("b").shown([2]), keys) == ""
    assert said(first, south.shown(), keys, south.name) == ""
    assert reopened(witness, tmp_path / "witness.json").seen[NAME].size == 3


def test_a_witness_that_does_not_look_again_is_noticed(
    witness: Witness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the two tests above."""
    other = reopened(witness, tmp_path / "witness.json")
    monkeypatch.setattr(Witness, "_read", lambda self: dict(self._seen))
    assert said(witness, Grown().add("a").shown()) == ""
    assert said(other, Grown().add("another").shown()) == ""


def _cosign(path: str, text: str, start: Any, out: Any) -> None:
    mine = Witness(Path(path), signer_of(9), "East")
    shown = Evidence.from_json(json.loads(text))
    start.wait()
    out.put(len(mine.cosign({NAME: shown}, ALL)[0]))


@pytest.mark.parametrize("times", range(3))
def test_of_two_forks_at_once_one_is_cosigned(tmp_path: Path, times: int) -> None:
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(2), context.Queue()
    texts = [json.dumps(Grown().add(name).shown().to_json()) for name in "ab"]
    racers = [
        context.Process(target=_cosign, args=(str(tmp_path / "witness.json"), text, start, out))
        for text in texts
    ]
    for racer in racers:
        racer.start()
    got = [out.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
        racer.close()
    out.close()
    out.join_thread()
    assert sorted(got) == [0, 1]


def test_a_witness_key_is_of_its_own_type(witness: Witness, tmp_path: Path) -> None:
    assert witness.key.type == COSIGN
    assert witness.key.name.startswith("privet.witness/East/")
    assert said(witness, Grown().shown()) == ""
    assert stat.S_IMODE((tmp_path / "witness.json").stat().st_mode) & 0o022 == 0


# --- rubbish -----------------------------------------------------------------------------------

WHOLE = Grown().add("a").rotate(NEW).add("b").shown([1, 2]).to_json()
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.text(st.characters(), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["note", "proofs", "1", "-1", "rotations"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_is_shown_ends_in_an_error_of_ours(data: st.DataObject) -> None:
    value = json.loads(json.dumps(WHOLE))
    part = data.draw(st.sampled_from(["", *value, "deep"]))
    new = data.draw(rubbish)
    if part == "":
        value = new
    elif part == "deep":
        place = data.draw(st.integers(0, 2))
        value["rotations"][data.draw(st.integers(0, 1))][place] = new
    else:
        value[part] = new
    with suppress(NoteError, EvidenceError):
        extend(Evidence.from_json(value), KEY, None)


def test_evidence_comes_back_as_it_was_shown() -> None:
    assert Evidence.from_json(json.loads(json.dumps(WHOLE))).to_json() == WHOLE
