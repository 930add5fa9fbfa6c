"""``privet server grant``, ``connect``, ``fetch`` and a researcher's folder, as they are typed."""

from __future__ import annotations

import json
import stat

from budget_kit import Desk
from test_server import found, hub, said_by

from privet.cli import server
from privet.common.link.identity import request, researcher_uri
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry
from privet.server.membership.researchers import Researchers

assert server
__all__ = ["hub"]


def test_a_researcher_is_let_in_and_revoked(hub: Desk) -> None:
    said = found(hub, "grant", "hub", "Ada", "--out", "ada.json", "--hours", "1")
    assert said["researcher"] == "Ada" and set(said) == {"join", "researcher", "expires"}
    path = hub.folder / "ada.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said_by(hub, "grant", "hub", "Bob", "--out", "ada.json")[0] == 2
    assert said_by(hub, "grant", "hub", "hub/../x")[0] == 2
    federation = MemberRegistry.load(hub.folder / "hub")
    with EnrolmentServer(federation, "127.0.0.1:0") as door:
        join = json.loads(path.read_text())
        path.write_text(json.dumps({**join, "enrolment": door.address}))
        made = found(hub, "connect", "ada.json", "--dir", "study")
        assert made == {"folder": "study", "researcher": "Ada", "federation": "study"}
    # A join file of a site's is none here, and the other way round.
    found(hub, "enroll", "hub", "North", "--out", "north.json")
    code, said_ = said_by(hub, "connect", "north.json", "--dir", "other")
    assert code == 2 and "privet client init" in said_
    assert not (hub.folder / "other").exists()
    shown = found(hub, "status", "hub")
    assert shown["researchers"] == [{"researcher": "Ada", "state": "connected"}]
    assert "Researchers: Ada (connected)" in said_by(hub, "status", "hub")[1]
    code, text = said_by(hub, "revoke", "hub", "ada")
    assert code == 0 and "revoked" in text
    assert found(hub, "status", "hub")["researchers"][0]["state"] == "revoked"
    assert said_by(hub, "revoke", "hub", "nobody")[0] == 2


def test_a_researchers_folder_takes_the_federations_place(hub: Desk) -> None:
    federation = MemberRegistry.load(hub.folder / "hub")
    token = Researchers(federation).grant("Ada")["token"]
    asked, key = request("Ada", researcher_uri("Ada"))
    home = hub.folder / "study"
    home.mkdir()
    (home / "link.pem").write_bytes(Researchers(federation).enrol("Ada", token, asked))
    (home / "link.key").write_bytes(key)
    (home / "link.key").chmod(0o600)
    (home / "authority.pem").write_bytes((hub.folder / "hub" / "authority.pem").read_bytes())
    value = {"format": "privet/researcher/v1", "federation": "study", "name": "Ada"}
    (home / "researcher.json").write_text(json.dumps({**value, "address": "127.0.0.1:9"}))
    for words in (("status",), ("cancel", "x"), ("resume", "x"), ("fetch", "x", "--out", "o")):
        code, text = said_by(hub, words[0], "study", *words[1:])
        # Nobody listens there: that is said, and nothing is looked for in the folder itself.
        assert code == 1 and "127.0.0.1:9" in text, (words, text)
    (home / "link.key").chmod(0o644)
    code, text = said_by(hub, "status", "study")
    assert code == 2 and "can read it" in text
    assert said_by(hub, "fetch", "hub", "x", "--out", "o")[0] == 2
