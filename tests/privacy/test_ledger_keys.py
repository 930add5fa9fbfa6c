"""Keys at rest, key rotation, recovery: who may sign a ledger."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from ledger_kit import (
    SITE,
    asked,
    bare,
    charged,
    key,
    kinds,
    opened,
    remove,
    spend,
)

from privet.client.operator.decisions import OperatorDecisions, make_site
from privet.client.operator.rotation import rotate_key
from privet.common.errors import (
    LedgerError,
    PrivateKeyError,
    WrongLedgerError,
)
from privet.privacy.evidence.keys import FileSigner, load_or_make
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.statement import Entry


def test_key_files_are_encrypted_and_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "ledger.pem"
    made = load_or_make(path, "correct horse")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_bytes()
    assert b"ENCRYPTED" in text
    assert made.public not in text
    assert FileSigner.load(path, "correct horse").public == made.public
    for wrong in ("wrong horse", None, ""):
        with pytest.raises(PrivateKeyError):
            FileSigner.load(path, wrong)
    with pytest.raises(PrivateKeyError, match="never overwritten"):
        FileSigner.generate().save(path, "correct horse")
    plain = tmp_path / "plain.pem"
    load_or_make(plain, None)
    assert stat.S_IMODE(plain.stat().st_mode) == 0o600
    with pytest.raises(PrivateKeyError, match="not encrypted"):
        FileSigner.load(plain, "correct horse")


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n!\n"])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.pem"
    with pytest.raises(PrivateKeyError, match="no key file"):
        FileSigner.load(path, None)
    path.write_bytes(content)
    with pytest.raises(PrivateKeyError):
        FileSigner.load(path, None)
    path.unlink()
    path.mkdir()
    with pytest.raises(PrivateKeyError):
        FileSigner.load(path, None)


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "ledger.pem").touch(mode=0o600)
    (tmp_path / "ledger.pem").write_bytes(pem)
    with pytest.raises(PrivateKeyError, match="not an Ed25519 key"):
        FileSigner.load(tmp_path / "ledger.pem", None)


def test_another_key_opens_nothing(folder: Path, ledger: Ledger) -> None:
    before = ledger.log.head()
    with pytest.raises(PrivateKeyError, match="not the key in force"):
        Ledger(folder, FileSigner.generate(), SITE)
    assert opened(folder).log.head() == before


def test_after_a_rotation_the_old_key_signs_nothing(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    old, new = ledger.log.signer, FileSigner.generate()
    other = opened(folder)  # a second process, which knows the old key only
    origin = ledger.log.origin
    ledger.rotate(new)
    rotation = Entry.read(ledger.log.store.leaf(len(ledger.log) - 1), (old.public, new.public))
    assert (rotation.kind, rotation.predicate["why"]) == ("key-rotated", "rotation")
    spend(ledger, 2)
    with pytest.raises(PrivateKeyError, match="not the key in force"):
        other.reserve(asked(3))
    with pytest.raises(PrivateKeyError, match="not the key in force"):
        Ledger(folder, old, SITE)
    again = Ledger(folder, new, SITE)
    assert (again.log.origin, again.log.key.public) == (origin, new.public)
    assert again.log.first_key.public == old.public
    Entry.read(again.log.store.leaf(len(again.log) - 1), (new.public,))
    with pytest.raises(LedgerError, match="not signed by the key in force"):
        Entry.read(again.log.store.leaf(len(again.log) - 1), (old.public,))
    assert charged(again) == 2


def test_a_key_comes_into_force_once(folder: Path, ledger: Ledger) -> None:
    old = ledger.log.signer
    with pytest.raises(LedgerError, match="in force before"):
        ledger.rotate(old)
    ledger.rotate(FileSigner.generate())
    with pytest.raises(LedgerError, match="in force before"):
        ledger.rotate(old)
    assert kinds(ledger) == ["key-rotated"]


def test_a_lost_key_is_replaced_by_the_recovery_key(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    spare, new = key(folder / "offline", "recovery"), FileSigner.generate()
    (folder / "ledger.pem").unlink()
    Ledger.recover(folder, SITE, spare, new)
    again = Ledger(folder, new, SITE)
    assert charged(again) == 1
    rotation = Entry.read(again.log.store.leaf(len(again.log) - 1), (spare.public, new.public))
    assert rotation.predicate["why"] == "recovery"
    spend(again, 2)
    # The recovery key replaces keys; it is none of the ledger's own.
    with pytest.raises(PrivateKeyError):
        Ledger(folder, spare, SITE)


@pytest.mark.parametrize("wrong", [None, "wrong horse"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_wrong_passphrase_rotates_nothing(tmp_path: Path, wrong: str | None, lost: bool) -> None:
    home, right = tmp_path / "north", "correct horse"
    first, place = make_site(home, SITE, right), home / "ledger"
    recovery = home / "offline" / "recovery.pem" if lost else None
    with pytest.raises(PrivateKeyError):
        rotate_key(home / "site.toml", wrong, recovery=recovery)
    assert sorted(path.name for path in place.glob("*.pem")) == ["ledger.pem", "witness.pem"]
    made = rotate_key(home / "site.toml", right, recovery=recovery)
    assert OperatorDecisions.open(home / "site.toml", right).ledger.log.key.fingerprint == made
    assert made != first["ledger"]


def test_a_strangers_recovery_key_replaces_nothing(folder: Path, ledger: Ledger) -> None:
    before, stranger = ledger.log.head(), FileSigner.generate()
    with pytest.raises(PrivateKeyError, match="does not name this recovery key"):
        Ledger.recover(folder, SITE, stranger, FileSigner.generate())
    with pytest.raises(PrivateKeyError, match="does not name this recovery key"):
        ledger.rotate(FileSigner.generate(), recovery=stranger)
    assert opened(folder).log.head() == before


def test_a_ledger_without_a_recovery_key_cannot_be_recovered(folder: Path) -> None:
    from privet.privacy.evidence.signed_note import COSIGN, Key

    signer = FileSigner.generate()
    witness = Key("privet.witness/North/0", FileSigner.generate().public, COSIGN)
    Ledger(folder, signer, SITE, witness=witness, create=True)
    with pytest.raises(PrivateKeyError, match="does not name this recovery key"):
        Ledger.recover(folder, SITE, FileSigner.generate(), FileSigner.generate())


def test_a_file_from_another_site(folder: Path, ledger: Ledger) -> None:
    with pytest.raises(WrongLedgerError, match="is the ledger of 'North', not of 'South'"):
        Ledger(folder, ledger.log.signer, "South")
    elsewhere = folder.with_name("south")
    bare(elsewhere, "South").log.store.close()
    remove(elsewhere)
    for path in folder.glob("ledger.db*"):
        shutil.copy(path, elsewhere / path.name)
    with pytest.raises(PrivateKeyError):
        bare(elsewhere, "South")
