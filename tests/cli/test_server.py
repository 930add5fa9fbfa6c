"""``privet server`` and a site's way in, as they are typed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

from privet.cli import server
from privet.common.errors import RunError
from privet.server.membership import enrolment
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import Run


@pytest.fixture
def hub(desk: Desk) -> Desk:
    said = found(desk, "init", "hub", "--name", "study", "--address", "localhost:7443",
                 "--plain-keys")  # fmt: skip
    assert said["orders"].startswith("sha256:")
    return desk


def said_by(desk: Desk, *words: str) -> tuple[int, str]:
    """Exit code, and what was said on either stream."""
    code, out, err = desk.run("server", *words)
    return code, out + err


def found(desk: Desk, *words: str) -> Any:
    """Run a command that must succeed; return its JSON. Log lines stand on the other stream."""
    code, out, err = desk.run("server", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_site_is_invited_and_comes_in(
    hub: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    code, _ = said_by(hub, "enroll", "hub", "Hospital 1", "--out", "h1.json")
    assert code == 0 and stat.S_IMODE(Path("h1.json").stat().st_mode) == 0o600
    with EnrolmentServer(MemberRegistry.load(Path("hub")), "127.0.0.1:0") as door:
        join = json.loads(Path("h1.json").read_text())
        Path("h1.json").write_text(json.dumps({**join, "enrolment": door.address}))
        code, _, err = hub.run("client", "init", "h1.json", "--dir", "site", "--plain-keys")
        assert code == 0, err
        # A second time there is nothing to do, and nothing is done.
        code, _, err = hub.run("client", "init", "h1.json", "--dir", "site", "--plain-keys")
        assert code == 2 and "certificate already" in err
    assert join["coordinator"]["orders"] in Path("site/site.toml").read_text()
    assert found(hub, "status", "hub")["sites"] == [
        {"site": "Hospital 1", "state": "enrolled", "connected": False}
    ]
    peers = ["ipv4:10.0.0.1:4711", "ipv4:10.0.0.2:4712"]
    present = {"connected": ["Hospital 1"], "doubled": {"Hospital 1": peers}, "time": 0}
    Path("hub/present.json").write_text(json.dumps(present))
    assert found(hub, "status", "hub")["sites"] == [
        {"site": "Hospital 1", "state": "enrolled", "connected": True, "doubled": peers}
    ]
    assert said_by(hub, "revoke", "hub", "Hospital 1")[0] == 0
    assert found(hub, "status", "hub")["sites"][0]["state"] == "revoked"


def test_an_invitation_is_withdrawn_as_it_is_typed(hub: Desk) -> None:
    assert found(hub, "enroll", "hub", " North ", "--out", "n.json")["site"] == "North"
    assert found(hub, "enroll", "hub", "north", "--withdraw") == {
        "site": "north", "state": "withdrawn",
    }  # fmt: skip
    assert found(hub, "status", "hub")["sites"] == [] and Path("n.json").exists()
    code, said = said_by(hub, "enroll", "hub", "north", "--withdraw")
    assert code == 2 and "'north' has no invitation" in said
    assert found(hub, "enroll", "hub", "North ")["join"] == "North.join.json"


def test_a_site_whose_coordinator_is_away_tries_again(hub: Desk) -> None:
    said_by(hub, "enroll", "hub", "North", "--out", "n.json")
    join = json.loads(Path("n.json").read_text())
    Path("n.json").write_text(json.dumps({**join, "enrolment": "127.0.0.1:9"}))
    for _ in range(2):
        code, _, err = hub.run("client", "init", "n.json", "--plain-keys")
        assert code == 1 and "127.0.0.1:9" in err
    assert Path("North/site.toml").exists() and not Path("North/link/link.pem").exists()


def test_a_plan_is_queued_when_its_sites_are_there(
    hub: Desk, plan_value: Any, tmp_path: Path
) -> None:
    hub.write(tmp_path / "plan.toml", plan_value(metrics={"source": "gate"}))
    code, said = said_by(hub, "submit", "hub", "plan.toml")
    assert code == 2 and "is not enrolled" in said
    assert found(hub, "status", "hub")["runs"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "nowhere"], "privet server init"),
        (["init", "hub", "--name", "x", "--address", "a:1", "--plain-keys"], "not an empty folder"),
        (["init", "new", "--name", "x", "--address", "a", "--plain-keys"], "not host:port"),
        (["init", "new", "--name", "x", "--address", "a:99999", "--plain-keys"], "not host:port"),
        (
            ["init", "new", "--name", "x", "--address", "2001:db8::7:7443", "--plain-keys"],
            "in brackets, [2001:db8::7]:7443",
        ),
        (
            [
                "init",
                "new",
                "--name",
                "x",
                "--address",
                "a:1",
                "--enrolment",
                "::1:2",
                "--plain-keys",
            ],
            "in brackets",
        ),
        (["start", "hub", "--listen", "::1:7443"], "in brackets, [::1]:7443"),
        (["init", "new", "--name", "../x", "--address", "a:1", "--plain-keys"], "cannot name"),
        (["init", "new", "--name", "x", "--address", "a:1"], "PRIVET_PASSPHRASE"),
        (["enroll", "hub", "a/b"], "cannot name a site"),
        (["enroll", "hub", "North", "--hours", "0"], "--hours"),
        (["enroll", "hub", "North", "--out", "hub/server.pem"], "exists"),
        (["submit", "hub", "nothing.toml"], "nothing.toml"),
        (["revoke", "hub", "North"], "is not known"),
        (["stop", "hub"], "no coordinator is running"),
    ],
)
def test_wrong_use_is_told_in_plain_words(hub: Desk, words: list[str], said: str) -> None:
    code, text = said_by(hub, *words)
    assert code == 2 and said in text and "Traceback" not in text
    assert not Path("new").exists()


def test_a_number_left_by_a_killed_coordinator_is_nobody_to_stop(hub: Desk) -> None:
    """By now it may be any process: here it is this one, which must not be told to end."""
    Path("hub/server.pid").write_text(f"{os.getpid()}\n")
    code, said = said_by(hub, "stop", "hub")
    assert code == 2 and "no coordinator is running" in said
    with server._alone(Path("hub")):
        assert server._pid(Path("hub")) == os.getpid()
        code, said = said_by(hub, "start", "hub")
        assert code == 2 and "running here already" in said


def test_status_for_people(hub: Desk) -> None:
    said_by(hub, "enroll", "hub", "North")
    folder = Path("hub/runs/first")
    folder.mkdir(parents=True)
    facts = {"run": "first", "state": "running", "submitted": 1.0, "plan": "sha256:0", "round": 3}
    (folder / "status.json").write_text(json.dumps(facts))
    Run(folder).note(
        sites={"North": "released"}, spent={"North": {"epsilon": 1.25}}, fault="[red] herring"
    )
    code, said = said_by(hub, "status", "hub")
    assert code == 0
    for word in ("not running", "North", "invited", "first: running, round 3", "ε 1.250", "[red]"):
        assert word in said


def test_a_wrong_passphrase_is_found_before_anything_runs(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    words = ("init", "hub", "--name", "study", "--address", "127.0.0.1:7443")
    assert said_by(desk, *words)[0] == 0
    folder = Path("hub/runs/first")
    folder.mkdir(parents=True)
    facts = {"run": "first", "state": "running", "submitted": 1.0, "plan": "sha256:0", "round": 7}
    (folder / "status.json").write_text(json.dumps(facts))
    monkeypatch.setenv("PRIVET_PASSPHRASE", "another horse")
    code, said = said_by(desk, "start", "hub")
    assert code == 2 and "cannot be opened" in said and "listening" not in said
    assert json.loads((folder / "status.json").read_text()) == facts


def queued(hub: Desk, plan_value: Any) -> str:
    """Let the plan's three sites come in by files, and submit it; return its digest."""
    for name in ("North", "East", "South"):
        for words in (
            ("server", "enroll", "hub", name, "--out", f"{name}.json"),
            ("client", "init", f"{name}.json", "--plain-keys", "--request", f"{name}.request"),
            ("server", "admit", "hub", f"{name}.request", "--out", f"{name}.pem"),
        ):
            code, _, err = hub.run(*words)
            assert code == 0, err
    hub.write(Path("plan.toml"), plan_value(metrics={"source": "gate"}))
    return str(found(hub, "submit", "hub", "plan.toml", "--run", "first")["plan"])


def test_the_same_plan_again_must_be_meant(hub: Desk, plan_value: Any) -> None:
    queued(hub, plan_value)
    code, said = said_by(hub, "submit", "hub", "plan.toml", "--run", "second")
    assert code == 2 and "was submitted as first" in said and "--again" in said
    assert said_by(hub, "submit", "hub", "plan.toml", "--run", "second", "--again")[0] == 0


def test_a_run_whose_status_is_damaged_is_shown_as_that(hub: Desk, plan_value: Any) -> None:
    digest = queued(hub, plan_value)
    assert found(hub, "status", "hub")["runs"][0]["plan"] == digest
    for text in ("{", "[]", '{"state": "running"}'):
        Path("hub/runs/first/status.json").write_text(text)
        run = found(hub, "status", "hub")["runs"][0]
        assert (run["run"], run["state"]) == ("first", "failed") and "damaged" in run["fault"]
        assert said_by(hub, "status", "hub")[0] == 0
    assert "has ended already" in said_by(hub, "cancel", "hub", "first")[1]
    Path("hub/runs/first/status.json").unlink()
    assert found(hub, "status", "hub")["runs"] == []


@pytest.mark.parametrize(
    "change", [{"submitted": "today"}, {"submitted": None}, {"sites": None}, {"spent": []},
               {"state": "[/x]"}, {"round": "1"}],
)  # fmt: skip
def test_a_status_of_the_wrong_types_is_damaged(
    hub: Desk, plan_value: Any, change: dict[str, Any]
) -> None:
    queued(hub, plan_value)
    path = Path("hub/runs/first/status.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (run,) = found(hub, "status", "hub")["runs"]
    assert run["state"] == "failed" and "damaged" in run["fault"]
    path.write_text("[" * 100_000)
    assert "damaged" in found(hub, "status", "hub")["runs"][0]["fault"]
    # Another run of the same plan must be meant, also now.
    assert "say --again" in said_by(hub, "submit", "hub", "plan.toml", "--run", "second")[1]
    # A coordinator that works on it writes it anew.
    Run(path.parent).note(state="running", round=3)
    (run,) = found(hub, "status", "hub")["runs"]
    assert (run["state"], run["round"], run.get("fault")) == ("running", 3, None)


def test_who_says_first_how_a_run_ends_decides(hub: Desk, plan_value: Any) -> None:
    queued(hub, plan_value)
    run = Run(Path("hub/runs/first"))
    run.note(state="running")
    assert run.settle() and run.settle()
    said = said_by(hub, "cancel", "hub", "first")
    assert said[0] == 2 and "is past its last round" in said[1]
    assert run.status["state"] == "running"
    (run.folder / "end").unlink()
    assert said_by(hub, "cancel", "hub", "first")[0] == 0
    assert not run.settle()
    with pytest.raises(RunError, match="cancelled"):
        run.require_wanted()


def test_a_submission_that_was_cut_off_holds_no_name(hub: Desk, plan_value: Any) -> None:
    queued(hub, plan_value)
    Path("hub/runs/first").rename("hub/runs/.second")  # as it is before it is there
    Path("hub/runs/.second/status.json").unlink()
    assert found(hub, "status", "hub")["runs"] == []
    assert found(hub, "submit", "hub", "plan.toml", "--run", "second")["run"] == "second"


def test_a_run_is_cancelled_once(hub: Desk, plan_value: Any) -> None:
    queued(hub, plan_value)
    assert "there is no run 'other': there are first" in said_by(hub, "cancel", "hub", "other")[1]
    assert said_by(hub, "cancel", "hub", "first")[0] == 0
    run = found(hub, "status", "hub")["runs"][0]
    assert run["state"] == "failed" and "cancelled" in run["fault"]
    Run(Path("hub/runs/first")).note(state="running")  # a coordinator that writes meanwhile
    assert Run(Path("hub/runs/first")).status["state"] == "failed"
    code, said = said_by(hub, "cancel", "hub", "first")
    assert code == 2 and "has ended already" in said


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        ("127.0.0.1:7443", "127.0.0.1:7443"), ("[::1]:7443", "[::1]:7443"),
        ("localhost:7443", "localhost:7443"), ("hub.example.org:7443", "[::]:7443"),
        ("192.0.2.7:7443", "[::]:7443"),
    ],
)  # fmt: skip
def test_a_trial_on_this_machine_is_open_to_no_other(address: str, listens: str) -> None:
    assert server._anywhere(address) == listens
