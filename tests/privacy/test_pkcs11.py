"""A ledger key in a token: SoftHSM2 stands for the hardware."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from ledger_kit import SITE, charged, opened, spend

from privet.client.operator.decisions import OperatorDecisions, make_site
from privet.client.operator.rotation import rotate_key
from privet.common.errors import InputError, PrivateKeyError
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.pkcs11 import PIN, Pkcs11Signer, _raw_point, find_pin
from privet.privacy.evidence.statement import Entry
from privet.privacy.policy import Keys

PLACES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
MODULE = next((Path(place) for place in PLACES if Path(place).exists()), Path(PLACES[0]))
TOKEN, LABEL, RIGHT = "north", "ledger-key", "123456"

needs_token = pytest.mark.skipif(
    importlib.util.find_spec("pkcs11") is None
    or shutil.which("softhsm2-util") is None
    or not MODULE.exists(),
    reason="needs python-pkcs11 (extra: pkcs11) and SoftHSM2 (Debian: softhsm2)",
)

# In a process of its own: a process that makes keys is logged in to their token.
_MAKE = f"""
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.util.ec import encode_named_curve_parameters as curve

def pair(session, kind, name, label, how):
    terms = {{Attribute.EC_PARAMS: curve(name)}}
    session.create_domain_parameters(kind, terms, local=True).generate_keypair(
        store=True, label=label, mechanism=how
    )

token = pkcs11.lib("{MODULE}").get_token(token_label="{TOKEN}")
with token.open(rw=True, user_pin="{RIGHT}") as session:
    ed25519, how = "1.3.101.112", Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    for label in ("{LABEL}", "ledger-key-2", "twice", "twice", "crossed"):
        pair(session, KeyType.EC_EDWARDS, ed25519, label, how)
    pair(session, KeyType.EC, "secp256r1", "p256", Mechanism.EC_KEY_PAIR_GEN)
    # A private key under the label of another pair's public key.
    for label, kind in (("crossed", "PRIVATE_KEY"), ("alone", "PUBLIC_KEY")):
        pair(session, KeyType.EC_EDWARDS, ed25519, "x-" + label, how)
    kinds = pkcs11.ObjectClass
    session.get_key(label="crossed", object_class=kinds.PRIVATE_KEY).destroy()
    session.get_key(label="x-crossed", object_class=kinds.PRIVATE_KEY)[Attribute.LABEL] = "crossed"
    session.get_key(label="x-alone", object_class=kinds.PUBLIC_KEY).destroy()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a token that holds keys; tests work on copies."""
    home = tmp_path_factory.mktemp("softhsm")
    env = _home(home)
    (home / "tokens").mkdir()
    new = [
        "softhsm2-util", "--init-token", "--free", "--label", TOKEN, "--pin", RIGHT,
        "--so-pin", "87654321",
    ]  # fmt: skip
    for command in (new, [sys.executable, "-c", _MAKE]):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture
def token(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a token of this test's own; the library is loaded anew."""
    import pkcs11

    home = tmp_path / "softhsm"
    shutil.copytree(made / "tokens", home / "tokens")
    monkeypatch.setenv("SOFTHSM2_CONF", _home(home)["SOFTHSM2_CONF"])
    monkeypatch.setenv(PIN, RIGHT)
    pkcs11.unload(str(MODULE))
    yield home / "tokens"
    pkcs11.unload(str(MODULE))


def _home(home: Path) -> dict[str, str]:
    conf = home / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {home / 'tokens'}\nlog.level = ERROR\n")
    return {**os.environ, "SOFTHSM2_CONF": str(conf)}


def signer(label: str = LABEL, pin: str | None = RIGHT, **where: Any) -> Pkcs11Signer:
    return Pkcs11Signer.open(where.get("module", MODULE), where.get("token", TOKEN), label, pin)


def keys(label: str = LABEL) -> Keys:
    return Keys(module=str(MODULE), token=TOKEN, ledger=label)


# the signer


@needs_token
def test_a_token_signs_as_rfc_8032_says(token: Path) -> None:
    key = signer()
    assert len(key.public) == 32
    for message in (b"", b"hello", bytes(100_000)):
        signature = key.sign(message)
        assert len(signature) == 64
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    assert key.sign(b"hello") == key.sign(b"hello")
    # A second key of a token that is logged in.
    assert signer("ledger-key-2").public != key.public
    assert signer().public == key.public
    assert key.sign(b"hello") == signer().sign(b"hello")


@needs_token
@pytest.mark.parametrize(
    ("label", "where", "said"),
    [
        ("nobody", {}, "key 'nobody' in token 'north': there is no such key pair"),
        ("x-alone", {}, "both halves must have this label"),
        ("twice", {}, "several keys have this label"),
        ("p256", {}, "is not an Ed25519 key"),
        (LABEL, {"token": "south"}, "there is no such token"),
        (LABEL, {"pin": "000000"}, "wrong PIN"),
        (LABEL, {"pin": "1"}, "wrong PIN"),
        (LABEL, {"module": Path("/nowhere/lib.so")}, "there is no PKCS#11 library"),
        (LABEL, {"module": Path(__file__)}, "the PKCS#11 library failed: .*while loading"),
    ],
)
def test_what_does_not_open(token: Path, label: str, where: dict[str, Any], said: str) -> None:
    with pytest.raises(PrivateKeyError, match=said):
        signer(label, **where)


@needs_token
def test_halves_of_two_pairs_sign_nothing(token: Path) -> None:
    with pytest.raises(PrivateKeyError, match="do two key pairs share the label"):
        signer("crossed").sign(b"hello")


@needs_token
def test_a_child_process_opens_the_token_itself(token: Path) -> None:
    key = signer()
    key._process = os.getpid() + 1
    with pytest.raises(PrivateKeyError, match="opened by another process"):
        key.sign(b"hello")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(PrivateKeyError, match=r"install Privet with the extra \[pkcs11\]"):
        signer()


def test_a_pin_is_asked_for_where_somebody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PIN, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(PrivateKeyError, match=f"token 'north' needs its PIN: set {PIN}"):
        find_pin(TOKEN)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"answer to {prompt}")
    assert find_pin(TOKEN) == "answer to PIN of token 'north': "
    monkeypatch.setenv(PIN, RIGHT)
    assert find_pin(TOKEN) == RIGHT


def test_public_keys_as_tokens_write_them() -> None:
    raw = bytes(range(32))
    for written in (raw, b"\x04\x20" + raw, b"\x03\x21\x00" + raw):
        assert _raw_point(written) == raw
    for other in (b"", raw[1:], b"\x04\x21" + raw, b"\x04\x39" + bytes(57), b"\x04" + bytes(64)):
        assert _raw_point(other) is None


# a ledger whose key is in the token


@needs_token
def test_a_ledger_whose_key_is_in_a_token(folder: Path, token: Path) -> None:
    key = signer()
    ledger = opened(folder, signer=key)
    spend(ledger, 1)
    spend(ledger, 2)
    ledger.log.store.close()
    again = Ledger(folder, signer(), SITE)
    assert charged(again) == 2
    assert again.log.head().is_signed_by(again.log.key)
    assert again.log.key.public == key.public
    for leaf in again.log.store.leaves():
        Entry.read(leaf, (key.public,))
    with pytest.raises(PrivateKeyError, match="not the key in force"):
        Ledger(folder, signer("ledger-key-2"), SITE)


@needs_token
def test_a_token_that_is_pulled_out_leaves_the_ledger_as_it_was(folder: Path, token: Path) -> None:
    import pkcs11

    ledger = opened(folder, signer=signer())
    spend(ledger, 1)
    entries, gone = len(ledger.log), token.with_name("gone")
    token.rename(gone)
    with pytest.raises(PrivateKeyError, match="the token was removed"):
        spend(ledger, 2)
    assert len(ledger.log) == entries
    gone.rename(token)
    pkcs11.unload(str(MODULE))
    again = Ledger(folder, signer(), SITE)
    assert len(again.log) == entries
    spend(again, 2)


@needs_token
def test_a_site_that_begins_with_a_key_in_a_token(token: Path, tmp_path: Path) -> None:
    home = tmp_path / "north"
    made = make_site(home, SITE, None, keys=keys())
    assert not (home / "ledger" / "ledger.pem").exists()
    desk = OperatorDecisions.open(home / "site.toml", None)
    assert desk.policy.keys == keys()
    assert desk.ledger.log.first_key.fingerprint == made["ledger"]
    assert desk.ledger.log.key.public == signer().public
    desk.approve("ab" * 32, "Ada")
    assert OperatorDecisions.open(home / "site.toml", None).status()["plans"][0]["by"] == ["Ada"]


@needs_token
def test_a_site_without_its_token_writes_nothing(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PIN, "000000")
    with pytest.raises(PrivateKeyError, match="wrong PIN"):
        make_site(tmp_path / "north", SITE, None, keys=keys())
    assert not (tmp_path / "north").exists()


@needs_token
def test_keys_go_from_a_file_into_a_token_and_on(token: Path, tmp_path: Path) -> None:
    home, site = tmp_path / "north", tmp_path / "north" / "site.toml"
    make_site(home, SITE, None)
    with pytest.raises(InputError, match=r"has no \[keys\]"):
        rotate_key(site, None, recovery=None, to=LABEL)
    plain = site.read_text()

    def name(label: str) -> None:
        named = f'module = "{MODULE}"\ntoken = "{TOKEN}"\nledger = "{label}"\n'
        site.write_text(f"{plain}\n[keys]\n{named}")

    name(LABEL)
    with pytest.raises(PrivateKeyError, match="not the key in force"):
        OperatorDecisions.open(site, None)
    into = rotate_key(site, None, recovery=None)
    assert not (home / "ledger" / "ledger.pem").exists()
    assert len(list((home / "ledger").glob("ledger-until-*.pem"))) == 1
    assert OperatorDecisions.open(site, None).ledger.log.key.fingerprint == into
    with pytest.raises(
        PrivateKeyError, match="is in force already; make another one in token 'north'"
    ):
        rotate_key(site, None, recovery=None)
    on = rotate_key(site, None, recovery=None, to="ledger-key-2")
    assert rotate_key(site, None, recovery=None, to="ledger-key-2") == on != into
    name("ledger-key-2")
    assert OperatorDecisions.open(site, None).ledger.log.key.fingerprint == on


@needs_token
def test_a_lost_token_is_replaced_by_the_recovery_key(token: Path, tmp_path: Path) -> None:
    home, site = tmp_path / "north", tmp_path / "north" / "site.toml"
    make_site(home, SITE, None, keys=keys())
    site.write_text(site.read_text().replace(f'"{LABEL}"\n\n', '"ledger-key-2"\n\n'))
    spare = home / "offline" / "recovery.pem"
    made = rotate_key(site, None, recovery=spare)
    assert OperatorDecisions.open(site, None).ledger.log.key.fingerprint == made
    # And back to a file, where there is to be no token any more.
    text = site.read_text()
    start = text.index("\n[keys]")
    site.write_text(text[:start] + text[text.index("# The people") :])
    rotate_key(site, None, recovery=spare)
    key = FileSigner.load(home / "ledger" / "ledger.pem", None)
    assert OperatorDecisions.open(site, None).ledger.log.key.public == key.public


@needs_token
def test_the_command_line_knows_tokens(token: Path, tmp_path: Path) -> None:
    def privet(*words: str, pin: str = RIGHT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from privet.cli import main; main()", *words],
            cwd=tmp_path, env={**os.environ, PIN: pin}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    begin = ["client", "init", "north", "--site", SITE, "--plain-keys", "--module", str(MODULE)]
    done = privet(*begin)
    assert (done.returncode, "needs all of --module" in done.stderr) == (2, True)
    begin += ["--token", TOKEN, "--ledger-key", LABEL, "--json"]
    done = privet(*begin, pin="000000")
    assert (done.returncode, "wrong PIN" in done.stderr) == (2, True), done.stderr
    done = privet(*begin)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["ledger"]
    turn = ("client", "rotate-key", "--policy", "north/site.toml", "--to", "ledger-key-2")
    done = privet(*turn)
    assert done.returncode == 0, done.stderr
    assert 'write ledger = "ledger-key-2" under [keys]' in done.stdout
    done = privet("client", "status", "--policy", "north/site.toml", "--json", pin="")
    assert (done.returncode, f"set {PIN}" in done.stderr) == (2, True), done.stderr
    site = tmp_path / "north" / "site.toml"
    site.write_text(site.read_text().replace(f'"{LABEL}"\n\n', '"ledger-key-2"\n\n'))
    done = privet("client", "status", "--policy", "north/site.toml", "--json")
    assert json.loads(done.stdout)["fingerprint"] == first, done.stderr
