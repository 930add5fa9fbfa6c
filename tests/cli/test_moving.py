"""``set-address``, ``rotate-key``, ``move`` and the ways back in, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

from privet.common.link.notices import read_certificates
from privet.server.membership import enrolment
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry


@pytest.fixture
def hub(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    said(desk, "server", "init", "hub", "--name", "study", "--address", "localhost:7443",
         "--plain-keys")  # fmt: skip
    said(desk, "server", "enroll", "hub", "North", "--out", "first.json")
    come_in(desk, "first.json")
    return desk


def said(desk: Desk, *words: str) -> str:
    code, out, err = desk.run(*words)
    assert code == 0, err
    return out


def found(desk: Desk, *words: str) -> Any:
    return json.loads(said(desk, *words, "--json"))


def come_in(desk: Desk, join: str, *more: str, home: str = "north") -> tuple[int, str]:
    """Come in by a join file; the door is open meanwhile, where the file says."""
    value = json.loads(Path(join).read_text())
    with EnrolmentServer(MemberRegistry.load(Path("hub")), "127.0.0.1:0") as door:
        Path(join).write_text(json.dumps({**value, "enrolment": door.address}))
        code, _, err = desk.run("client", "init", join, "--dir", home, "--plain-keys", *more)
    return code, err


def again(desk: Desk, name: str) -> str:
    said(desk, "server", "enroll", "hub", "North", "--again", "--out", name)
    return name


def test_an_address_is_changed_and_sites_are_told_or_move_themselves(hub: Desk) -> None:
    value = found(hub, "server", "set-address", "hub", "hub2.example.org:7500")
    assert value == {
        "address": "hub2.example.org:7500", "enrolment": "hub2.example.org:7501", "running": False,
    }  # fmt: skip
    assert "No coordinator runs" in said(hub, "server", "set-address", "hub", "hub3.example.org:80",
                                         "--enrolment", "hub3.example.org:90")  # fmt: skip
    assert found(hub, "server", "status", "hub")["address"] == "hub3.example.org:80"
    moved = found(hub, "client", "move", "--policy", "north", "--address", "hub3.example.org:80")
    assert moved == {"addresses": ["hub3.example.org:80", "localhost:7443"]}
    # A newer join file says it, too; `init` comes in anew by it where the certificate is good.
    said(hub, "server", "set-address", "hub", "hub4.example.org:80")
    path = again(hub, "second.json")
    assert found(hub, "client", "move", path, "--policy", "north/site.toml")["addresses"] == [
        "hub4.example.org:80", "localhost:7443",
    ]  # fmt: skip
    before = Path("north/link/link.pem").read_bytes()
    assert come_in(hub, path)[0] == 0
    assert Path("north/link/link.pem").read_bytes() != before
    for words in (("server", "set-address", "hub", "nonsense"), ("client", "move"),
                  ("client", "move", "--address", "nonsense", "--policy", "north"),
                  ("server", "set-address", "hub", "a:1", "--enrolment", "b")):  # fmt: skip
        hub.refused(2, *words)
    (status,) = found(hub, "client", "status", "--policy", "north")["coordinators"]
    assert status["addresses"] == ["hub4.example.org:80"] and status["order_keys"] == []


def test_a_newer_address_counts_also_where_nobody_answers_at_enrolment(hub: Desk) -> None:
    said(hub, "server", "set-address", "hub", "127.0.0.1:9")
    path = again(hub, "second.json")
    code, _, err = hub.run("client", "init", path, "--dir", "north")
    assert code != 0 and "nobody answers" in err
    assert (
        found(hub, "client", "status", "--policy", "north")["coordinators"][0]["address"]
        == "127.0.0.1:9"
    )
    # What it had is as good as before.
    assert not list(Path("north/link").glob("next-link.pem"))
    assert come_in(hub, "first.json")[1].count("certificate already") == 1


@pytest.mark.parametrize("lost", ["link.key", "link.pem", "clock"])
def test_a_site_that_lost_its_way_in_comes_back_by_a_new_join_file(hub: Desk, lost: str) -> None:
    link = Path("north/link")
    federation = MemberRegistry.load(Path("hub"))
    if lost == "clock":  # the coordinator knows certificates that the site threw away
        path = Path("hub/members/North.json")
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "certificates": ["sha256:" + "0" * 64]}))
        assert federation.identify((link / "link.pem").read_bytes()) is None
        assert "already" in come_in(hub, "first.json")[1]
    else:
        (link / lost).unlink()
    code, err = come_in(hub, again(hub, "second.json"))
    assert code == 0, err
    assert federation.identify((link / "link.pem").read_bytes()) == "North"
    assert (link / "link.key").stat().st_mode & 0o777 == 0o600


def test_a_revoked_site_comes_back_with_its_own_ledger(hub: Desk) -> None:
    said(hub, "server", "revoke", "hub", "North")
    assert "--again" in hub.refused(2, "server", "enroll", "hub", "North", "--out", "x.json")
    path = again(hub, "second.json")
    code, err = come_in(hub, path, home="other")  # a new ledger under the old name
    assert code == 2 and "refuses" in err
    assert found(hub, "server", "status", "hub")["sites"][0]["state"] == "revoked"
    assert come_in(hub, path)[0] == 0
    assert found(hub, "server", "status", "hub")["sites"][0]["state"] == "enrolled"


def test_keys_of_the_coordinator_are_replaced(hub: Desk) -> None:
    first = MemberRegistry.load(Path("hub")).order_key().fingerprint
    value = found(hub, "server", "rotate-key", "hub", "--key", "orders")
    assert value["old"] == first and value["orders"] != first
    assert again(hub, "second.json")
    assert json.loads(Path("second.json").read_text())["coordinator"]["orders"] == value["orders"]
    assert "is not rotated" in hub.refused(2, "server", "rotate-key", "hub", "--key", "witness")
    assert "belong to" in hub.refused(2, "server", "rotate-key", "hub", "--key", "orders",
                                      "--finish")  # fmt: skip
    assert "nothing was dropped" in hub.refused(
        2, "server", "rotate-key", "hub", "--key", "authority", "--finish"
    )
    value = found(hub, "server", "rotate-key", "hub", "--key", "authority")
    assert value["state"] == "overlap" and value["left"] == ["North"]
    again_ = found(hub, "server", "rotate-key", "hub", "--key", "authority")
    assert again_ == value  # it goes on; none is made beside it
    assert found(hub, "server", "status", "hub")["authority"] == {
        "overlap": True,
        "left": ["North"],
    }
    assert "without a certificate of it: North" in " ".join(
        said(hub, "server", "status", "hub").split()
    )
    # Its join file, made before, does not know the new one; the next one does.
    assert come_in(hub, again(hub, "third.json"))[0] == 0
    assert len(read_certificates(Path("north/link/authority.pem").read_bytes())) == 2
    done = found(hub, "server", "rotate-key", "hub", "--key", "authority", "--finish")
    assert done == {"authority": value["authority"], "state": "done", "left": []}
    assert not list(Path("hub").glob("former-*"))


def test_keys_under_a_passphrase(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    said(desk, "server", "init", "hub", "--name", "study", "--address", "localhost:7443")
    found(desk, "server", "rotate-key", "hub", "--key", "orders")
    monkeypatch.setenv("PRIVET_PASSPHRASE", "another horse")
    files = {path: path.read_bytes() for path in Path("hub").rglob("*.*") if path.is_file()}
    for key in ("orders", "authority"):
        desk.refused(2, "server", "rotate-key", "hub", "--key", key)
    assert files == {p: p.read_bytes() for p in Path("hub").rglob("*.*") if p.is_file()}
    monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    found(desk, "server", "rotate-key", "hub", "--key", "authority")
    for path in (*Path("hub").glob("*authority.key"), *Path("hub/coordinator").glob("*.pem")):
        assert b"ENCRYPTED" in path.read_bytes() and path.stat().st_mode & 0o777 == 0o600, path
