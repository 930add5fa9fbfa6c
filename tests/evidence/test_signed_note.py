"""Signed notes, checkpoints, cosignatures, proofs: C2SP's vectors, round trips, rubbish."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privet.common.errors import NoteError
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import (
    COSIGN,
    SIGN,
    Checkpoint,
    Key,
    SignatureLine,
    decode64,
    fingerprint,
    key_name,
    parse_line,
    parse_note,
    parse_proof,
    policy_text,
    proof_text,
)

# c2sp.org/signed-note, section "Example".
FOO = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
FOO_NOTE = (
    "This is an example message.\n"
    "\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuw"
    "HjG1Yu72IneyaQM=\n"
)
# golang.org/x/mod/sumdb/note, the package's example.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6K"
    "E6RyyBwJnAM=\n"
)
# c2sp.org/signed-note and c2sp.org/tlog-cosignature, first examples; their keys are not given.
QUASIMODO = (
    "Ognuno sta solo sul cuor della terra\n"
    "trafitto da un raggio di sole:\n"
    "\n"
    "ed è subito sera.\n"
    "\n"
    "— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU"
    "0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
)
SOFA = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1"
    "gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oy"
    "in1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)

few = settings(max_examples=150, deadline=None, derandomize=True)
SIGNER, WITNESS = FileSigner.generate(), FileSigner.generate()
KEY = Key("privet.ledger/North/0", SIGNER.public)
EYES = Key("privet.witness/East/0", WITNESS.public, COSIGN)


def head(size: int = 7, root: bytes = bytes(range(32))) -> Checkpoint:
    return Checkpoint(KEY.name, size, root).signed(KEY, SIGNER)


def cosigned(time: int = 1_800_000_000) -> Checkpoint:
    return head().with_cosignatures([head().cosignature(EYES, WITNESS, time)])


# --- other people's vectors -----------------------------------------------------------------


@pytest.mark.parametrize(("vkey", "note"), [(FOO, FOO_NOTE), (PETER, PETER_NOTE)])
def test_notes_that_others_signed(vkey: str, note: str) -> None:
    key = Key.parse(vkey)
    assert str(key) == vkey
    text, (line,) = parse_note(note)
    assert line.is_by(key)
    assert key.verifies(line.signature, text.encode())
    assert not key.verifies(line.signature, text.encode() + b"!")
    assert text + "\n" + str(line) == note


def test_a_key_of_another_note_verifies_nothing() -> None:
    text, (line,) = parse_note(FOO_NOTE)
    assert not line.is_by(Key.parse(PETER))
    assert not Key.parse(PETER).verifies(line.signature, text.encode())


def test_a_text_with_an_empty_line_ends_at_the_last_one() -> None:
    text, (line,) = parse_note(QUASIMODO)
    assert text.endswith("ed è subito sera.\n")
    assert (line.name, len(line.signature)) == ("quasimodo.example/salvatore", 64)


def test_a_cosigned_checkpoint_of_others() -> None:
    found = Checkpoint.parse(SOFA)
    assert (found.origin, found.size) == ("example.com/behind-the-sofa", 20852163)
    assert found.text == SOFA
    log, witness = found.lines
    assert (log.name, len(log.signature)) == ("example.com/behind-the-sofa", 64)
    assert (witness.name, len(witness.signature)) == ("witness.example.com/w1", 72)
    assert int.from_bytes(witness.signature[:8], "big") == 1679315147


def test_ids_and_types() -> None:
    """One key under two types has two ids (signed-note), and verifies for its own type."""
    sign, cosign = Key("name", SIGNER.public), Key("name", SIGNER.public, COSIGN)
    assert sign.id != cosign.id
    assert Key.parse(str(cosign), type_=COSIGN) == cosign
    with pytest.raises(NoteError, match="type 4, not 1"):
        Key.parse(str(cosign), type_=SIGN)
    assert sign.fingerprint == cosign.fingerprint == fingerprint(SIGNER.public)


# --- round trips ----------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_signed() -> None:
    whole = cosigned()
    again = Checkpoint.parse(whole.text)
    assert again == whole
    assert again.is_signed_by(KEY)
    assert again.is_cosigned_by(EYES)
    assert not again.is_signed_by(EYES)
    assert not again.is_cosigned_by(replace(EYES, name="privet.witness/South/0"))


@pytest.mark.parametrize("change", ["origin", "size", "root"])
def test_a_signature_is_for_one_checkpoint(change: str) -> None:
    whole = cosigned()
    other = {"origin": "privet.ledger/East/0", "size": 8, "root": bytes(32)}[change]
    forged = replace(whole, **{change: other})
    assert not forged.is_signed_by(KEY)
    assert not forged.is_cosigned_by(EYES)


def test_a_cosignature_is_for_one_time() -> None:
    line = cosigned().lines[1]
    later = SignatureLine(line.name, line.id, (1).to_bytes(8, "big") + line.signature[8:])
    assert not head().with_cosignatures([later]).is_cosigned_by(EYES)
    for cut in (b"", line.signature[:71], line.signature + b"\0"):
        wrong = SignatureLine(line.name, line.id, cut)
        assert not head().with_cosignatures([wrong]).is_cosigned_by(EYES)


def test_a_plain_signature_is_no_cosignature() -> None:
    """A witness's statement has a time and a prefix: nothing else of that key will do."""
    plain = SignatureLine(EYES.name, EYES.id, bytes(8) + WITNESS.sign(head().body))
    assert not head().with_cosignatures([plain]).is_cosigned_by(EYES)
    as_log = Key(KEY.name, WITNESS.public)
    signed = SignatureLine(as_log.name, as_log.id, cosigned().lines[1].signature[8:])
    assert not replace(head(), lines=(signed,)).is_signed_by(as_log)


def test_lines_that_nobody_who_counts_wrote_are_trimmed() -> None:
    stranger = FileSigner.generate()
    other = Key("privet.witness/Nobody/0", stranger.public, COSIGN)
    false = SignatureLine(EYES.name, EYES.id, bytes(72))
    whole = head().with_cosignatures(
        [head().cosignature(other, stranger, 1), cosigned().lines[1], false]
    )
    assert len(whole.lines) == 3  # by name and id, so that the last of two counts
    assert whole.trimmed(KEY, [EYES]) == head()
    good = head().with_cosignatures([head().cosignature(other, stranger, 1), cosigned().lines[1]])
    assert good.trimmed(KEY, [EYES]) == cosigned()
    assert good.trimmed(KEY) == head()
    # Wherever the log's own line stands.
    turned = replace(good, lines=good.lines[::-1])
    assert turned.trimmed(KEY, [EYES]) == cosigned()
    with pytest.raises(NoteError, match="not signed by its log"):
        good.trimmed(replace(KEY, public=stranger.public))


def test_as_many_signatures_are_read_as_a_plan_has_sites() -> None:
    lines = [SignatureLine(f"privet.witness/{n}/0", bytes(4), bytes(72)) for n in range(10_001)]
    whole = head().with_cosignatures(lines)
    assert len(Checkpoint.parse(whole.text).lines) == 10_002
    many = [*lines, SignatureLine("privet.witness/more/0", bytes(4), bytes(72))]
    with pytest.raises(NoteError, match="10002"):
        Checkpoint.parse(head().with_cosignatures(many).text)


def test_a_proof_comes_back_as_it_was_written() -> None:
    path = [bytes([n]) * 32 for n in range(3)]
    text = proof_text(5, path, cosigned())
    assert parse_proof(text) == (5, path, cosigned())
    assert text.startswith("c2sp.org/tlog-proof@v1\nindex 5\n")
    assert parse_proof(proof_text(0, [], cosigned())) == (0, [], cosigned())


def test_names_of_keys_hold_no_space_and_no_plus() -> None:
    name = key_name("ledger", "St. Mary's  +\tHospital\n", SIGNER.public)
    assert name == f"privet.ledger/St._Mary's____Hospital_/{fingerprint(SIGNER.public)[7:23]}"
    assert Key.parse(str(Key(name, SIGNER.public))).name == name


def test_a_policy_for_other_peoples_verifiers() -> None:
    """c2sp.org/tlog-policy: logs, named witnesses, a group with a threshold, a quorum."""
    third = replace(EYES, name="privet.witness/South/0", public=FileSigner.generate().public)
    lines = policy_text([KEY], [EYES, third], 1).splitlines()
    assert lines[0] == f"log {KEY}"
    assert lines[1:3] == [f"witness {key.name} {key}" for key in (EYES, third)]
    assert lines[3:] == [f"group witnesses 1 {EYES.name} {third.name}", "quorum witnesses"]
    assert policy_text([KEY], [], 0).splitlines()[-1] == "quorum none"


# --- rubbish ----------------------------------------------------------------------------------

GOOD = cosigned().text
PROOF = proof_text(5, [bytes([n]) * 32 for n in range(3)], cosigned())
texts = st.text(st.characters(), max_size=80)
"""With halves of surrogate pairs, as JSON can carry them."""


@st.composite
def damaged(draw: st.DrawFn, good: str) -> str:
    """A text with something removed, put in, doubled or replaced."""
    start = draw(st.integers(0, len(good)))
    end = draw(st.integers(start, min(len(good), start + 12)))
    pieces = st.sampled_from(["", "\n", "\n\n", " ", "—", "+", "=", "0", "-1", "\0", "\ud800"])
    middle = draw(st.one_of(pieces, texts, st.just(good[start:end] * 2)))
    return good[:start] + middle + good[end:]


READERS: dict[str, Callable[[str], object]] = {
    "checkpoint": Checkpoint.parse,
    "note": parse_note,
    "line": parse_line,
    "key": Key.parse,
    "proof": parse_proof,
    "base64": decode64,
}


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.one_of(texts, *(damaged(good) for good in (GOOD, PROOF, FOO, str(head().lines[0])))))
def test_rubbish_ends_in_an_error_of_ours(reader: str, text: str) -> None:
    try:
        READERS[reader](text)
    except NoteError as error:
        assert str(error)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(damaged(GOOD))
def test_what_is_read_was_written_in_one_way_only(text: str) -> None:
    """No second text means the same, and none that was changed is signed by both."""
    try:
        found = Checkpoint.parse(text)
    except NoteError:
        return
    assert found.text == text
    if text != GOOD:
        assert not (found.is_signed_by(KEY) and found.is_cosigned_by(EYES)) or found.lines[2:]
    assert found.body.decode() + "\n" + "".join(map(str, found.lines)) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged(PROOF))
def test_a_proof_is_written_in_one_way_only(text: str) -> None:
    try:
        found = parse_proof(text)
    except NoteError:
        return
    assert proof_text(*found) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged(FOO))
def test_a_vkey_is_written_in_one_way_only(text: str) -> None:
    try:
        found = Key.parse(text)
    except NoteError:
        return
    assert str(found) == text == FOO


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "\n\n", GOOD[:-1], GOOD + "\n", GOOD.replace("\n\n", "\n"),
        GOOD.replace("\n7\n", "\n07\n"), GOOD.replace("\n7\n", "\n-7\n"),
        GOOD.replace("\n7\n", "\n7 \n"), GOOD.replace("\n7\n", "\n٧\n"),
        GOOD.replace("\n7\n", "\n9999999999999999999\n"), GOOD.replace("\n7\n", "\n\n7\n"),
        GOOD.replace("\n\n", "\nan extension\n\n", 1), GOOD.replace("— ", "- "),
        GOOD.replace("\n", "\r\n"), "\n" + GOOD, GOOD.replace("=\n", "\n", 1),
        GOOD.replace("privet.ledger/North/0\n", "\n", 1), GOOD.replace("AAEC", "AAE", 1),
        GOOD + "— privet.witness/West/0 \n", GOOD + "— privet.witness/We st/0 AAAAAAAA\n",
        GOOD + "— privet.witness/W+t/0 AAAAAAAA\n", GOOD + "— privet.witness/West/0 AAAA\n",
    ],
)  # fmt: skip
def test_a_checkpoint_has_three_lines_and_signatures(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "a+b+c", FOO.replace("530d903a", "530d903b"), FOO.replace("530d", "530D"),
        FOO.replace("example.com/foo", "example.com/fo o"), FOO + "A", FOO[:-4],
        FOO.replace("+AekyeRrm", "+AukyeRrm"), FOO.replace("example.com/foo", ""),
        "example.com/f+o" + FOO[15:], FOO.replace("example", "exam\ud800ple"),
    ],
)  # fmt: skip
def test_a_vkey_is_checked(text: str) -> None:
    with pytest.raises(NoteError):
        Key.parse(text)


@few
@given(st.binary(max_size=40))
def test_base64_has_one_form(raw: bytes) -> None:
    text = base64.b64encode(raw).decode()
    assert decode64(text) == raw
    for other in (text.rstrip("="), text + "=", text + "\n", " " + text, text.replace("A", "-")):
        if other != text:
            with pytest.raises(NoteError):
                decode64(other)


def test_base64_with_other_last_bits_is_refused() -> None:
    assert decode64("AA==") == b"\0"
    with pytest.raises(NoteError, match="not written as base64 writes it"):
        decode64("AB==")
