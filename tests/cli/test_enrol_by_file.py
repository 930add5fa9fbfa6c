"""A site comes in by files alone: for stock Flower, or where the enrolment port cannot be reached."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

from privet.client.launcher import OWN, REFUSED, SUPERNODE


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
