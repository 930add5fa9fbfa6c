"""What must be its owner's alone: who can read it, what is refused, what is mended."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privet.cli import app
from privet.client.link.renewal import Renewal
from privet.client.operator.check_record import CheckRecord
from privet.client.outbox import Outbox
from privet.common.errors import PrivateKeyError, PrivetError
from privet.common.files.private_files import (
    make_private,
    privacy_fault,
    private_folder,
    read_private,
)
from privet.common.link.identity import request
from privet.common.release import Release
from privet.privacy.evidence.keys import FileSigner, passphrase_from_environment
from privet.server.membership.registry import MemberRegistry

SECRET = "correct horse battery"


@pytest.fixture(autouse=True)
def usual_umask() -> Any:
    """Others may read what is made without a mode."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a coordinator ``hub`` and a site ``north``, whose keys are not encrypted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    monkeypatch.delenv("PRIVET_PASSPHRASE_FILE", raising=False)
    words = "--name", "hub", "--address", "127.0.0.1:7443", "--plain-keys"
    assert run("server", "init", "hub", *words)[0] == 0
    assert run("client", "init", "north", "--site", "North", "--plain-keys")[0] == 0
    assert run("server", "enroll", "hub", "North", "--out", "north.json")[0] == 0
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    said = done.output
    if isinstance(done.exception, PrivetError | OSError):
        return 2 if isinstance(done.exception, PrivetError) else 1, f"{said}{done.exception}"
    return done.exit_code, said


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folders_and_keys_are_their_owners(made: Path) -> None:
    folders = [path for path in made.rglob("*") if path.is_dir()]
    assert {path.name for path in folders} >= {"hub", "coordinator", "north", "ledger", "offline"}
    above = [path for path in folders if mode(path) != 0o700 and path.parent == made]
    assert above == []
    keys = [path for path in made.rglob("*") if b"PRIVATE KEY" in _content(path)]
    assert len(keys) >= 7
    assert {mode(path) for path in (*keys, made / "north.json")} == {0o600}
    assert {mode(path.parent) for path in keys} == {0o700}


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("north/ledger/ledger.pem", ("client", "status", "--policy", "north")),
        ("hub/authority.key", ("server", "admit", "hub", "north.request")),
        ("hub/coordinator/orders.pem", ("server", "enroll", "hub", "East")),
        ("hub/coordinator/witness.pem", ("server", "enroll", "hub", "East")),
    ],
)
def test_a_secret_that_others_can_read_is_refused_until_it_is_mended(
    made: Path, name: str, words: tuple[str, ...]
) -> None:
    join = run("client", "init", "north.json", "--dir", "n", "--plain-keys",
               "--request", "north.request")  # fmt: skip
    assert join[0] == 0, join
    path = made / name
    path.chmod(0o640)
    code, said = run(*words)
    flat = said.replace("\n", "")
    assert code == 2, said
    assert name in flat and "others can read it" in flat and "chmod 600" in flat
    path.chmod(0o600)
    assert run(*words)[0] == 0


def test_a_passphrase_that_others_can_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made / "secret").write_text(SECRET)
    (made / "secret").chmod(0o644)
    monkeypatch.setenv("PRIVET_PASSPHRASE_FILE", "secret")
    code, said = run("client", "init", "east", "--site", "East")
    assert code == 2 and "chmod 600 secret" in said and SECRET not in said
    assert not (made / "east").exists()
    (made / "secret").chmod(0o600)
    assert passphrase_from_environment() == SECRET


def test_the_keys_of_the_link(made: Path) -> None:
    federation = MemberRegistry.load(made / "hub")
    (made / "hub" / "server.key").chmod(0o644)
    with pytest.raises(PrivateKeyError, match="chmod 600"):
        federation.serving_pair()
    link = private_folder(made / "link")
    _, key = request("North")
    (link / "link.key").write_bytes(key)
    (link / "link.pem").write_bytes((made / "hub" / "server.pem").read_bytes())
    (link / "authority.pem").write_bytes((made / "hub" / "authority.pem").read_bytes())
    with pytest.raises(PrivateKeyError, match="chmod 600"):
        Renewal(link, "North")
    (link / "link.key").chmod(0o600)
    Renewal(link, "North")


def test_an_organisations_authority_key(made: Path) -> None:
    hub, own = made / "hub", made / "own.key"
    own.write_bytes((hub / "authority.key").read_bytes())
    words = ("server", "init", "other", "--name", "other", "--address", "127.0.0.1:7447",
             "--authority", "hub/authority.pem",
             "--authority-key", "own.key", "--plain-keys")  # fmt: skip
    code, said = run(*words)
    assert code == 2 and "chmod 600" in said
    assert not (made / "other").exists()
    own.chmod(0o600)
    assert run(*words)[0] == 0


def test_a_join_file_is_closed_when_it_is_read(made: Path) -> None:
    (made / "north.json").chmod(0o644)
    words = ("client", "init", "north.json", "--dir", "n", "--plain-keys",
             "--request", "north.request")  # fmt: skip
    assert run(*words)[0] == 0
    assert mode(made / "north.json") == mode(made / "north.request") == 0o600
    assert mode(made / "n" / "link") == 0o700


def test_a_simulations_keys_protect_nothing(tmp_path: Path) -> None:
    FileSigner.generate().save(tmp_path / "ledger.pem", None)
    (tmp_path / "ledger.pem").chmod(0o644)
    assert FileSigner.load(tmp_path / "ledger.pem", None, shared=True)
    with pytest.raises(PrivateKeyError, match="others can read it"):
        FileSigner.load(tmp_path / "ledger.pem", None)


def test_what_privet_keeps_is_closed_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    (tmp_path / "outbox").mkdir(mode=0o755)
    outbox.put("r/North/train/1/1", Release("sha256:0", {}, {}))
    assert mode(tmp_path / "outbox") == 0o700
    assert {mode(path) for path in (tmp_path / "outbox").iterdir()} == {0o600}
    CheckRecord("2026-11-29", "records.csv", None, True, True, "sha256:0").write(tmp_path, "a")
    (kept,) = tmp_path.rglob("*.json")
    assert mode(kept) == 0o600 and mode(kept.parent) == 0o700
    assert mode(private_folder(tmp_path / "a" / "b" / "c")) == mode(tmp_path / "a") == 0o700
    (tmp_path / "a").chmod(0o755)
    private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a") == 0o755  # what is above is somebody's choice


def stated(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("bits", "own", "fine"),
    [
        (0o600, True, True), (0o400, True, True), (0o700, True, True),
        (0o640, True, False), (0o604, True, False), (0o620, True, False), (0o777, True, False),
        # As systemd and Kubernetes hand a credential over: by its group, or an access list.
        (0o440, False, True), (0o400, False, True), (0o640, False, True),
        (0o444, False, False), (0o644, False, False),
    ],
)  # fmt: skip
def test_who_can_read_it(bits: int, own: bool, fine: bool) -> None:
    owner = os.geteuid() if own else os.geteuid() + 1
    fault = privacy_fault(Path("key"), stated(stat.S_IFREG | bits, owner))
    assert (fault is None) is fine
    assert fine or "chmod" in str(fault)


def test_what_is_no_file_and_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PrivateKeyError, match="not a file"):
        read_private(Path("/dev/null"))
    reading, writing = os.pipe()
    os.write(writing, SECRET.encode())
    os.close(writing)
    assert read_private(Path(f"/dev/fd/{reading}")) == SECRET.encode()
    os.close(reading)
    path = tmp_path / "theirs"
    path.touch(mode=0o644)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    make_private(path)
    assert mode(path) == 0o644
    with pytest.raises(PrivateKeyError, match="all users of this machine"):
        read_private(path)
