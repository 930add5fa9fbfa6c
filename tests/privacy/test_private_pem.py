"""Private keys at rest: how dear a passphrase is to guess, and who can open them."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from privet.client.operator.decisions import make_site
from privet.common.files.private_pem import ROUNDS, private_pem
from privet.privacy.evidence.keys import FileSigner
from privet.server.membership.certificates import Authority
from privet.server.membership.registry import MemberRegistry

SECRET = "correct horse, battery ä"
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")


def rounds_of(pem: bytes) -> int:
    """Return the rounds of PBKDF2 that an encrypted PKCS#8 file names."""
    der = base64.b64decode(b"".join(pem.split(b"\n")[1:-2]))
    after = der[der.index(_PBKDF2) + len(_PBKDF2) :]
    salt = after[3]  # SEQUENCE, length, OCTET STRING, length
    integer = after[4 + salt :]
    assert integer[0] == 0x02
    return int.from_bytes(integer[2 : 2 + integer[1]], "big")


def openssl(*words: str | Path, passphrase: str = SECRET) -> subprocess.CompletedProcess[bytes]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here")
    return subprocess.run(
        ["openssl", *map(str, words)],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "P": passphrase},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_a_key_is_opened_by_its_passphrase_alone(tmp_path: Path, kind: str) -> None:
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey = Ed25519PrivateKey.generate()
    if kind == "p256":
        key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(key, SECRET.encode()))
    assert rounds_of(path.read_bytes()) == ROUNDS >= 600_000
    opened = load_pem_private_key(path.read_bytes(), SECRET.encode())
    assert private_pem(opened) == private_pem(key)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        load_pem_private_key(path.read_bytes(), b"another")
    shown = openssl("pkey", "-in", path, "-passin", "env:P")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == private_pem(key)
    assert openssl("pkey", "-in", path, "-passin", "env:P", passphrase="another").returncode


def test_every_key_that_privet_encrypts(tmp_path: Path) -> None:
    make_site(tmp_path / "north", "North", SECRET)
    federation = MemberRegistry.found(tmp_path / "hub", "hub", "h:1", "h:2", SECRET)
    federation.journal(tmp_path / "hub" / "runs" / "one").log.store.close()
    paths = [*tmp_path.rglob("*.pem"), *tmp_path.rglob("*.key")]
    encrypted = [path for path in paths if b"ENCRYPTED" in path.read_bytes()]
    assert sorted(path.name for path in encrypted) == [
        "authority.key", "journal.pem", "ledger.pem", "orders.pem", "recovery.pem", "witness.pem",
        "witness.pem",
    ]  # fmt: skip
    assert {rounds_of(path.read_bytes()) for path in encrypted} == {ROUNDS}


def test_an_older_file_still_opens_and_is_renewed_as_documented(root: Path, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    old = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())
    )
    assert rounds_of(old) == 2048  # what the reader of rounds is held to
    path = tmp_path / "north" / "ledger" / "ledger.pem"
    path.parent.mkdir(parents=True)
    path.write_bytes(old)
    path.chmod(0o600)
    before = FileSigner.load(path, SECRET).public
    authority = Authority.found("hub")
    kept = authority._key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())
    )
    assert Authority.load(authority.pem(), kept, SECRET.encode()).certificate
    page = (root / "docs" / "how-to" / "keys.md").read_text()
    found = re.search(r"umask 077; (openssl pkcs8 [^)]*)\)", page)
    assert found
    words = shlex.split(found[1])[1:]
    words[words.index("-in") + 1] = str(path)
    words[words.index("-out") + 1] = str(tmp_path / "new.pem")
    done = openssl(*words, "-passin", "env:P", "-passout", "env:P")
    assert done.returncode == 0, done.stderr
    assert rounds_of((tmp_path / "new.pem").read_bytes()) == ROUNDS
    (tmp_path / "new.pem").chmod(0o600)
    assert FileSigner.load(tmp_path / "new.pem", SECRET).public == before


def test_nothing_else_in_privet_encrypts_a_key(root: Path) -> None:
    rooms = ("common", "privacy", "client", "server", "simulations", "privet/cli")
    sources = [path for room in rooms for path in (root / room).rglob("*.py")]
    assert len(sources) > 100
    found = [p for p in sources if re.search("BestAvailableEncryption|PKCS8,", p.read_text())]
    assert [path.name for path in found] == ["private_pem.py"]
