"""`privet client init` that fails leaves nothing behind, whatever was wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from budget_kit import Desk

from privet.privacy.evidence.keys import PASSPHRASE
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry

JOINS = ("north.json", "--dir", "sites/north")
ALONE = ("sites/north", "--site", "North")


@pytest.fixture
def hub(desk: Desk) -> Desk:
    for words in (
        ("init", "hub", "--name", "study", "--address", "localhost:7443", "--plain-keys"),
        ("enroll", "hub", "North", "--out", "north.json"),
    ):
        code, _, err = desk.run("server", *words)
        assert code == 0, err
    Path("broken.json").write_text("{}")
    Path("there.json").write_text("")
    return desk


@pytest.mark.parametrize("empty", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize(
    ("words", "secret"),
    [
        (ALONE, "x" * 2000),  # longer than a key file takes
        (ALONE, "short"),
        ((*ALONE[:2], "No/rth"), None),
        ((ALONE[0],), None),
        ((*ALONE, "--only-ledger", "--other-ledger", "sha256:" + "0" * 64), None),
        ((*ALONE, "--other-ledger", "sha256:1"), None),
        ((*ALONE, "--token", "t"), None),
        ((*ALONE, "--module", "no.so", "--token", "t", "--ledger-key", "k"), None),
        ((*ALONE, "--request", "r"), None),
        ((*JOINS, "--site", "East"), None),
        (("broken.json", *JOINS[1:]), None),
        ((*JOINS, "--request", "there.json"), None),
        ((*JOINS, "--request", "there.json/r.json"), None),
        ((*JOINS, "--certificate", "none.pem"), None),
        ((*JOINS, "--certificate", "hub/server.pem"), None),
    ],
    ids=lambda value: None if value is None else str(value)[:60],
)
def test_nothing_stays_of_what_failed(
    hub: Desk, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], secret: str | None,
    empty: bool,
) -> None:  # fmt: skip
    if empty:
        Path("sites/north").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    if secret is not None:
        monkeypatch.setenv(PASSPHRASE, secret)
    else:
        words = (*words, "--plain-keys")
    ended, _, err = hub.run("client", "init", *words)
    assert ended in (1, 2), err
    assert sorted(Path().rglob("*")) == before
    # The control: the same folder can be made then.
    assert hub.run("client", "init", *ALONE, "--plain-keys")[0] == 0
    assert Path("sites/north/site.toml").exists()


def test_nothing_stays_of_a_site_that_is_refused(hub: Desk) -> None:
    federation = MemberRegistry.load(Path("hub"))
    with EnrolmentServer(federation, "127.0.0.1:0") as door:
        _wait(door)
        invited = federation.invite("East")
        _write(Path("east.json"), invited, door.address)
        _write(Path("forged.json"), {**invited, "token": "A" * len(invited["token"])}, door.address)
        code, _, err = hub.run("client", "init", "forged.json", "--dir", "east", "--plain-keys")
        assert code == 2 and "refuses" in err
        assert not Path("east").exists()
        assert hub.run("client", "init", "east.json", "--dir", "east", "--plain-keys")[0] == 0


def test_what_is_there_stays(hub: Desk) -> None:
    """Nobody answers: the folder is whole, and the same command goes on. Files of others stay."""
    code, _, err = hub.run("client", "init", *JOINS, "--plain-keys")
    assert code == 1 and "nobody answers" in err
    assert Path("sites/north/ledger/ledger.db").exists()
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert hub.run("client", "init", "full", "--site", "North", "--plain-keys")[0] == 2
    assert [path.name for path in Path("full").iterdir()] == ["notes.txt"]


def _wait(door: EnrolmentServer) -> None:
    while not door.is_open:
        time.sleep(0.02)


def _write(path: Path, invited: dict[str, object], address: str) -> None:
    path.write_text(json.dumps({**invited, "enrolment": address}))
