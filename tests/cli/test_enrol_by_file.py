"""A site comes in by files alone: for stock Flower, or where the enrolment port cannot be reached."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

from privet.client.stock_flower.launcher import OWN, REFUSED, SUPERNODE
from privet.privacy.evidence.ledger import Ledger


@pytest.fixture
def hub(desk: Desk) -> Desk:
    done(desk, "server", "init", "hub", "--name", "study", "--address", "localhost:7443",
         "--plain-keys")  # fmt: skip
    done(desk, "server", "enroll", "hub", "North", "--out", "north.json")
    return desk


def done(desk: Desk, *words: str) -> str:
    code, out, err = desk.run(*words)
    assert code == 0, err
    return out


def test_a_site_comes_in_by_files(hub: Desk) -> None:
    said = done(hub, "client", "init", "north.json", "--dir", "north", "--plain-keys",
                "--request", "north.request")  # fmt: skip
    assert "as secret as the join file" in said
    assert stat.S_IMODE(Path("north.request").stat().st_mode) == 0o600
    assert "PRIVATE" not in Path("north.request").read_text()
    done(hub, "server", "admit", "hub", "north.request", "--out", "north.pem")
    status = json.loads(done(hub, "server", "status", "hub", "--json"))
    assert status["sites"] == [{"site": "North", "state": "enrolled", "connected": False}]
    done(hub, "client", "init", "north.json", "--dir", "north", "--certificate", "north.pem")
    assert Path("north/link/link.pem").read_bytes() == Path("north.pem").read_bytes()
    assert "token" not in json.loads(Path("north/link/join.json").read_text())
    # What was used up, or is there, is not done again.
    assert "no such invitation" in hub.refused(2, "server", "admit", "hub", "north.request")
    again = "client", "init", "north.json", "--dir", "north", "--request", "again"
    assert "certificate already" in hub.refused(2, *again)


def changed(**values: Any) -> None:
    value = json.loads(Path("north.request").read_text())
    Path("north.request").write_text(json.dumps({**value, **values}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "privet/join/v1"}, "not a request of format"),
        ({"token": "guessed"}, "no such invitation"),
        ({"site": "East"}, "no such invitation"),
        ({"ledger": "x"}, "key"),
        ({"request": "x"}, "request"),
    ],
)
def test_a_request_that_is_not_the_sites_lets_nobody_in(
    hub: Desk, change: dict[str, str], said: str
) -> None:
    done(hub, "client", "init", "north.json", "--dir", "north", "--plain-keys",
         "--request", "north.request")  # fmt: skip
    changed(**change)
    assert said in hub.refused(2, "server", "admit", "hub", "north.request")
    assert (
        json.loads(done(hub, "server", "status", "hub", "--json"))["sites"][0]["state"] == "invited"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server", "admit", "hub", "nothing"], "not a site's request"),
        (["server", "admit", "hub", "north.json"], "not a request of format"),
        (["client", "init", "x", "--site", "X", "--request", "r"], "need a join file"),
        (["client", "init", "x", "--site", "X", "--certificate", "c"], "need a join file"),
        (["client", "launcher", "hub"], "not a folder of launchers"),
    ],
)
def test_wrong_use_is_told_in_plain_words(hub: Desk, words: list[str], said: str) -> None:
    assert said in hub.refused(2, *words)


def test_a_strangers_certificate_is_not_kept(hub: Desk) -> None:
    words = "client", "init", "north.json", "--dir", "north", "--plain-keys"
    done(hub, *words, "--request", "north.request")
    done(hub, "server", "enroll", "hub", "East", "--out", "east.json")
    done(hub, "client", "init", "east.json", "--plain-keys", "--request", "east.request")
    done(hub, "server", "admit", "hub", "east.request", "--out", "east.pem")
    assert "not for this site" in hub.refused(1, *words, "--certificate", "east.pem")
    assert "does not name one site" in hub.refused(2, *words, "--certificate", "hub/server.pem")
    assert "cannot be read" in hub.refused(2, *words, "--certificate", "nothing")
    assert not Path("north/link/link.pem").exists()


def test_the_launcher_is_written(hub: Desk) -> None:
    value = json.loads(done(hub, "client", "launcher", "north/launcher", "--json"))
    assert {path.name for path in Path("north/launcher").iterdir()} == {OWN, SUPERNODE, *REFUSED}
    assert Path(value["supernode"]).is_absolute() and Path(value["supernode"]).exists()


def test_a_site_comes_in_to_a_second_coordinator(hub: Desk) -> None:
    done(hub, "server", "init", "other", "--name", "hearts", "--address", "localhost:7553",
         "--plain-keys")  # fmt: skip
    done(hub, "server", "enroll", "other", "North", "--out", "second.json")
    for folder, file in (("hub", "north.json"), ("other", "second.json")):
        words = ("client", "init", file, "--dir", "north")
        done(hub, *words, "--request", f"{folder}.request", "--plain-keys")
        done(hub, "server", "admit", folder, f"{folder}.request", "--out", f"{folder}.pem")
        said = done(hub, *words, "--certificate", f"{folder}.pem")
    order_key = json.loads(Path("second.json").read_text())["coordinator"]["orders"]
    assert "let 'hearts' ask: add to coordinators under [allow]" in said and order_key in said
    assert Path("north/link/hearts/link.pem").read_bytes() == Path("other.pem").read_bytes()
    status = json.loads(done(hub, "client", "status", "--policy", "north", "--json"))
    found = [(one["coordinator"], one["may_ask"]) for one in status["coordinators"]]
    assert found == [("study", True), ("hearts", False)]
    shown = done(hub, "client", "status", "--policy", "north")
    assert f"hearts at localhost:7553: may not ask; {order_key} is not under" in shown
    # It is one site with one ledger: a statement about others was made when that began.
    again = ("client", "init", "second.json", "--dir", "north", "--only-ledger")
    assert "its ledger is there" in hub.refused(2, *again)
    # Another site's join file has no business in this folder.
    done(hub, "server", "enroll", "other", "South", "--out", "south.json")
    assert "another site" in hub.refused(
        2, "client", "init", "south.json", "--dir", "north", "--request", "south.request"
    )


def test_a_new_ledger_states_whether_there_is_another(hub: Desk) -> None:
    other = "sha256:" + "9" * 64
    site = ("client", "init", "n", "--site", "North", "--plain-keys")
    assert "contradict" in hub.refused(2, *site, "--only-ledger", "--other-ledger", other)
    assert "no fingerprint" in hub.refused(2, *site, "--other-ledger", "north")
    assert not Path("n").exists()
    code, _, err = hub.run(*site)
    assert code == 0 and "nothing is stated about other ledgers" in err
    code, _, err = hub.run("client", "init", "m", "--site", "M", "--plain-keys", "--only-ledger")
    assert (code, err) == (0, "")
    ledger = Ledger.read(Path("m") / "ledger")
    assert ledger.state.other_ledgers == ()
    ledger.log.store.close()
