"""Signed notes, keys, checkpoints, cosignatures and proofs against C2SP's text."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verify_kit import START, Federation, Key

from privet.privacy.audit.verify.formats import notes
from privet.privacy.audit.verify.formats.strict import Malformed

VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
SOFA = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""


def test_the_published_note_verifies_and_no_other_text_does() -> None:
    key = notes.read_vkey(VKEY, notes.SIGNER)
    body, [line] = notes.read_note(NOTE)
    assert body == "This is an example message.\n"
    assert notes.verified(body, line, key)
    assert not notes.verified(body.replace("example", "Example"), line, key)
    assert not notes.verified(body, notes.Signature("example.com/fop", line.id, line.data), key)


def test_the_published_checkpoint_is_read_with_its_cosignature_time() -> None:
    body, lines = notes.read_note(SOFA)
    head = notes.read_checkpoint(body)
    assert (head.origin, head.size, len(head.root)) == ("example.com/behind-the-sofa", 20852163, 32)
    assert [len(line.data) for line in lines] == [64, 72]
    assert int.from_bytes(lines[1].data[:8], "big") == 1679315147


def test_a_cosignature_signs_header_time_and_body() -> None:
    key = Key("privet.witness", "North", 4)
    body = "origin\n3\n" + base64.b64encode(bytes(32)).decode() + "\n"
    _, [line] = notes.read_note(body + "\n" + key.line(body))
    read = notes.read_vkey(key.vkey, notes.COSIGNER)
    assert notes.verified(body, line, read)
    moved = notes.Signature(line.name, line.id, (START + 1).to_bytes(8, "big") + line.data[8:])
    assert not notes.verified(body, moved, read)
    beyond = notes.Signature(line.name, line.id, bytes([128]) + line.data[1:])
    assert not notes.verified(body, beyond, read)


@pytest.mark.parametrize(
    "text",
    [
        VKEY.replace("530d903a", "530d903b"),
        VKEY.replace("example.com/foo", "example.com/fop"),
        VKEY + "=",
        VKEY.replace("+Aeky", "+BEky"),
        VKEY.upper(),
        " " + VKEY,
        "",
        "a+b",
        None,
        7,
    ],
)
def test_a_wrong_verifier_key_is_refused(text: object) -> None:
    with pytest.raises(Malformed):
        notes.read_vkey(text, notes.SIGNER)


def test_a_key_of_the_other_type_is_refused() -> None:
    with pytest.raises(Malformed):
        notes.read_vkey(VKEY, notes.COSIGNER)


def _replace(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    "change",
    [
        _replace("\n\n", "\n"),
        _replace("—", "-"),
        _replace("— example", "—  example"),
        _replace("Az3g", "Az3g="),
        _replace("behind", "be\thind"),
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text + "x",
        _replace("w1 ", "w1 AAAA\n"),
        _replace("witness.example.com/w1", "witness+w1"),
    ],
)
def test_a_misshapen_note_is_refused(change: Callable[[str], str]) -> None:
    with pytest.raises(Malformed):
        notes.read_note(change(SOFA))


@pytest.mark.parametrize(
    "change",
    [
        _replace("20852163", "020852163"),
        _replace("20852163", "+20852163"),
        _replace("20852163", "20852163 "),
        _replace("20852163", ""),
        _replace("jxq2I=", "jxq2I"),
        _replace("jxq2I=", "jxq2J="),
        _replace("CsUYapGG", ""),
        _replace("example.com/behind-the-sofa\n", "\n"),
        lambda text: text + "extension\n",
    ],
)
def test_a_misshapen_checkpoint_is_refused(change: Callable[[str], str]) -> None:
    body, _ = notes.read_note(SOFA)
    with pytest.raises(Malformed):
        notes.read_checkpoint(change(body))


def test_opening_a_checkpoint_wants_known_single_true_signatures() -> None:
    log = Federation().sites["North"]
    witness = Key("privet.witness", "East", 4)
    size = log.checkpoint([witness])
    keys = {}
    for key in (log.key, witness):
        read = notes.read_vkey(key.vkey, key.kind)
        keys[read.name, read.id] = read
    text = log.notes[size]
    head = notes.open_checkpoint(text, keys)
    assert head.size == size and head.root == log.root()
    assert [name for name, _ in head.signers] == [log.key.name, witness.name]
    lines = text.splitlines(keepends=True)
    for wrong in ("".join([*lines, lines[-1]]), text.replace(f"\n{size}\n", f"\n{size + 1}\n", 1)):
        with pytest.raises(notes.Unsigned):
            notes.open_checkpoint(wrong, keys)
    with pytest.raises(notes.Unsigned, match="unknown key"):
        notes.open_checkpoint(text, {k: v for k, v in keys.items() if v.type == 1})


def test_a_proof_is_read_and_extra_data_is_refused() -> None:
    log = Federation().sites["North"]
    size = log.checkpoint([])
    index, path, note = notes.read_proof(log.proof(2, size))
    assert (index, note) == (2, log.notes[size]) and len(path) == 2
    for old, new in (
        ("index 2", "index 02"),
        ("index 2", "extra AAAA\nindex 2"),
        ("v1\n", "v2\n"),
        ("index 2\n", ""),
        ("\n\n", "\nAAAA\n\n"),
    ):
        with pytest.raises(Malformed):
            notes.read_proof(log.proof(2, size).replace(old, new, 1))


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for reader in (notes.read_note, notes.read_checkpoint, notes.read_proof):
        with contextlib.suppress(Malformed):
            reader(text)
    with pytest.raises(Malformed):
        notes.read_vkey(text, notes.SIGNER)
