"""``privet client``: decisions, who made them, what the site's state is, and plain refusals."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from budget_kit import Desk, policy_value
from read_only_kit import names

from privet.cli.passphrase import passphrase_of
from privet.client.newest_head import NewestHeads
from privet.client.operator.decisions import OperatorDecisions
from privet.client.operator.newer_ledger import FILE
from privet.common.errors import InputError, RolledBackError
from privet.common.files.lock import CLIENT, COORDINATOR, alone, holder
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger

POLICY = ("--policy", "north/site.toml")
PLAN, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def kept(folder: Path) -> list[str]:
    """What is in a folder, but for what SQLite keeps beside a database while it is open."""
    return [name for name in names(folder) if not name.endswith(("-wal", "-shm"))]


@pytest.fixture
def site(desk: Desk) -> Desk:
    """A site with keys that are not encrypted."""
    assert desk.run("client", "init", "north", "--site", "North", "--plain-keys")[0] == 0
    return desk


def allow(desk: Desk, **changes: object) -> None:
    value = policy_value()
    value["allow"] |= changes
    desk.write(desk.folder / "north" / "site.toml", value)


# who decides


@pytest.mark.parametrize("again", ["ann", "ANN", " Ann ", "Ａｎｎ", "Ann  Lee", "ann\u3000lee"])
def test_one_person_in_two_spellings_is_one(site: Desk, again: str) -> None:
    allow(site, approvers=2)
    first = "Ann Lee" if "ee" in again else "Ann"
    assert site.client("approve", PLAN, "--ahead", "--as", first, *POLICY)["by"] == [first]
    said = site.client("approve", PLAN, "--ahead", "--as", again, *POLICY)
    assert (said["by"], said["enough"]) == ([first], False)
    said = site.client("approve", PLAN, "--ahead", "--as", "  Bo   Berg", *POLICY)
    assert (said["by"], said["enough"]) == (sorted([first, "Bo Berg"]), True)


def test_two_spellings_that_are_in_the_ledger_already_are_one(site: Desk) -> None:
    from privet.client.operator.approval import approval_fault
    from privet.client.operator.decisions import OperatorDecisions as Opened

    allow(site, approvers=2)
    desk = Opened.open(site.folder / "north" / "site.toml", None)
    desk.ledger.approve(PLAN, ["Ann", "ann ", "a\u200bnn"], "manual")
    assert "(1 of 2)" in str(approval_fault(desk.policy, desk.ledger.state, PLAN))
    desk.ledger.approve(PLAN, ["Ann", "Bo"], "manual")
    assert approval_fault(desk.policy, desk.ledger.state, PLAN) is None


@pytest.mark.parametrize("name", ["", "  ", "An\u200bn", "Ann\x00"])
def test_a_name_can_be_seen(site: Desk, name: str) -> None:
    said = site.refused(2, "client", "approve", PLAN, "--ahead", "--as", name, *POLICY)
    assert "is not a name" in said
    assert site.client("plans", *POLICY)["plans"] == []


def test_an_approval_without_effect_says_so(site: Desk) -> None:
    allow(site, approval="listed", plans=[OTHER])
    _, out, _ = site.run("client", "approve", PLAN, "--ahead", "--as", "Ann", *POLICY)
    assert "without effect" in out
    assert 'approval = "listed"' in out
    said = site.client("approve", PLAN, "--ahead", "--as", "Bo", *POLICY)
    assert not said["enough"]
    assert "without effect" in said["note"]
    said = site.client("approve", OTHER, "--ahead", "--as", "Ann", *POLICY)
    assert said["enough"]
    assert "nobody has to approve it" in said["note"]


def test_who_refused_is_shown(site: Desk) -> None:
    site.client("approve", PLAN, "--ahead", "--as", "Ann", *POLICY)
    site.client("refuse", OTHER, "--as", " Bo ", *POLICY)
    found = site.client("plans", *POLICY)["plans"]
    assert [(one["plan"], one["state"], one["by"]) for one in found] == [
        (PLAN, "approved", ["Ann"]),
        (OTHER, "refused", ["Bo"]),
    ]
    _, out, _ = site.run("client", "plans", *POLICY)
    assert f"refused   {OTHER}  Bo" in out


# after a withdrawal


@pytest.mark.parametrize(
    "words",
    [
        ("approve", PLAN, "--ahead"),
        ("refuse", PLAN),
        ("pause",),
        ("pause", "--end"),
        ("rotate-key",),
    ],
    ids=" ".join,
)
def test_after_a_withdrawal_nothing_is_decided(site: Desk, words: tuple[str, ...]) -> None:
    site.client("withdraw", "--yes", "--as", "Ann", *POLICY)
    before = kept(site.folder / "north" / "ledger")
    said = site.refused(3, "client", *words, *POLICY)
    assert "the site has withdrawn" in said
    assert "entry" not in said
    assert kept(site.folder / "north" / "ledger") == before
    assert site.client("withdraw", "--yes", "--as", "Ann", *POLICY)["state"] == "withdrawn"


# the ledger


def test_a_lost_ledger_is_not_begun_anew(site: Desk) -> None:
    folder = site.folder / "north" / "ledger"
    (folder / "ledger.db").unlink()
    before = kept(folder)
    for words in (("status",), ("approve", PLAN, "--ahead"), ("rotate-key",)):
        said = site.refused(2, "client", *words, *POLICY)
        assert "the ledger is missing" in said
        assert "Restore" in said
        assert "counts as spent" in said
        assert "init" not in said
    assert kept(folder) == before


def test_a_ledger_that_never_was(desk: Desk) -> None:
    desk.write(desk.folder / "site.toml", policy_value())
    for words in (("status",), ("rotate-key",)):
        said = desk.refused(2, "client", *words)
        assert "there is no ledger yet; run `privet client init` first" in said
    assert kept(desk.folder) == ["site.toml"]


def test_another_sites_ledger(site: Desk) -> None:
    value = {**policy_value(), "site": "South", "ledger": "north/ledger"}
    site.write(site.folder / "south.toml", value)
    said = site.refused(2, "client", "status", "--policy", "south.toml")
    assert "this is the ledger of 'North', not of 'South'" in said


# status


def test_the_status_of_a_new_site(site: Desk) -> None:
    allow(site)
    value = site.client("status", *POLICY)
    [patients] = value["populations"]
    assert (patients["population"], patients["epsilon"], patients["registered"]) == (
        "patients", 0, False,
    )  # fmt: skip
    assert (patients["cap"], patients["cap_minus_spent"], patients["delta"]) == (20.0, 20.0, 1e-4)
    assert "is not in the ledger yet" in value["notes"][0]
    _, out, _ = site.run("client", "status", *POLICY)
    assert "1 entry, not witnessed yet" in out
    assert "cap − spent" in out
    assert "20.000" in out
    assert "is not in the ledger yet" in out


def test_the_status_of_a_registered_population(site: Desk) -> None:
    from privet.client.operator.decisions import OperatorDecisions as Opened
    from privet.client.operator.decisions import note_policy

    allow(site)
    desk = Opened.open(site.folder / "north" / "site.toml", None)
    note_policy(desk.policy, desk.ledger)
    desk.ledger.log.store.close()
    value = site.client("status", *POLICY)
    assert value["populations"][0]["registered"]
    assert value["notes"] == []
    assert "4 entries" in site.run("client", "status", *POLICY)[1]
    site.write(site.folder / "north" / "site.toml", policy_value(epsilon=30.0))
    assert "the policy says ε 30" in site.client("status", *POLICY)["notes"][0]


# keys and passphrases


def test_a_short_passphrase_makes_no_key(desk: Desk) -> None:
    desk.monkeypatch.setenv("PRIVET_PASSPHRASE", "1234567")
    said = desk.refused(2, "client", "init", "north", "--site", "North")
    assert "at least 8 characters" in said
    assert not list(desk.folder.rglob("*.pem"))
    desk.monkeypatch.setenv("PRIVET_PASSPHRASE", "12345678")
    assert desk.run("client", "init", "south", "--site", "South")[0] == 0


def test_a_passphrase_for_keys_that_have_none(site: Desk) -> None:
    site.monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    said = site.refused(2, "client", "status", *POLICY)
    assert "is not encrypted; unset PRIVET_PASSPHRASE" in said


def test_a_passphrase_from_a_file_makes_and_opens_keys(desk: Desk) -> None:
    (desk.folder / "secret").write_text("correct horse\n")
    (desk.folder / "secret").chmod(0o600)
    desk.monkeypatch.setenv("PRIVET_PASSPHRASE_FILE", str(desk.folder / "secret"))
    assert desk.run("client", "init", "north", "--site", "North")[0] == 0
    assert b"ENCRYPTED" in (desk.folder / "north" / "ledger" / "ledger.pem").read_bytes()
    desk.monkeypatch.delenv("PRIVET_PASSPHRASE_FILE")
    pause = ("client", "pause", "--as", "Ada", *POLICY)
    assert "passphrase here: set PRIVET_PASSPHRASE" in desk.refused(2, *pause)
    desk.monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    assert desk.run(*pause)[0] == 0


def test_nobody_is_there_to_be_asked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from privet.cli import main; main()",
         "client", "init", "north", "--site", "North"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("privet: nobody can be asked for a passphrase here")
    assert "Warning" not in done.stderr
    assert kept(tmp_path) == []


# rotation


def other_recovery(desk: Desk) -> Path:
    assert desk.run("client", "init", "south", "--site", "South", "--plain-keys")[0] == 0
    return desk.folder / "south" / "offline" / "recovery.pem"


def test_a_wrong_recovery_key_leaves_nothing(site: Desk) -> None:
    folder = site.folder / "north" / "ledger"
    before = kept(folder)
    wrong = other_recovery(site)
    said = site.refused(2, "client", "rotate-key", "--recovery", wrong, *POLICY)
    assert "does not name this recovery key" in said
    assert kept(folder) == before
    right = site.folder / "north" / "offline" / "recovery.pem"
    made = site.client("rotate-key", "--recovery", right, *POLICY)["ledger"]
    assert made.startswith("sha256:")
    assert kept(folder) != before


def test_a_key_that_is_not_in_force_rotates_nothing(site: Desk) -> None:
    folder = site.folder / "north" / "ledger"
    other_recovery(site)
    (folder / "ledger.pem").write_bytes((site.folder / "south/ledger/ledger.pem").read_bytes())
    before = kept(folder)
    said = site.refused(2, "client", "rotate-key", *POLICY)
    assert "is not the key in force" in said
    assert kept(folder) == before


def test_what_a_broken_rotation_left(site: Desk) -> None:
    folder = site.folder / "north" / "ledger"
    (folder / "ledger-next.pem").write_text("half a key")
    said = site.refused(2, "client", "rotate-key", *POLICY)
    assert "no entry names its key, so it may be deleted" in said
    (folder / "ledger.pem").rename(folder / "away.pem")
    said = site.refused(2, "client", "rotate-key", *POLICY)
    assert "it may hold the key in force" in said
    (folder / "away.pem").rename(folder / "ledger.pem")
    (folder / "ledger-next.pem").unlink()
    site.client("rotate-key", *POLICY)


def test_the_folder_stands_for_its_policy(site: Desk) -> None:
    assert site.client("status", "--policy", "north") == site.client("status", *POLICY)
    Path("empty").mkdir()
    assert "empty/site.toml" in site.refused(2, "client", "status", "--policy", "empty")


def test_a_digest_that_was_never_offered_is_said(site: Desk) -> None:
    code, out, _ = site.run("client", "approve", PLAN, "--ahead", "--as", "Ann", *POLICY)
    assert code == 0 and "No plan with this digest was offered here yet" in out
    assert not site.client("approve", PLAN, "--ahead", "--as", "Ann", *POLICY)["offered"]


def test_two_clients_of_a_site_do_not_run(site: Desk) -> None:
    with alone(Path("north"), CLIENT):
        said = site.refused(2, "client", "start", *POLICY)
    assert f"a client is running here already (process {os.getpid()})" in said


def test_stock_flowers_process_and_a_client_do_not_run_beside_each_other(site: Desk) -> None:
    """Two would close each other's reservations."""
    words = [
        sys.executable,
        "-m",
        "privet.client.stock_flower.daemon",
        "north/site.toml",
        str(os.getpid()),
    ]
    with alone(Path("north"), CLIENT):
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "a client is running here already" in ended.stderr
    assert not Path("north/stock.sock").exists()


def test_who_asks_for_the_holder_keeps_nobody_out(tmp_path: Path) -> None:
    """`privet server status` looks at the lock for a moment; a start must not fail for it."""
    with alone(tmp_path):
        assert holder(tmp_path) == os.getpid()
    with (tmp_path / COORDINATOR).open("r+") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(asking, fcntl.LOCK_UN)).start()
        with alone(tmp_path):
            assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) == 0


def test_a_passphrase_is_asked_for_where_the_ledger_is(
    site: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy may have it elsewhere than beside itself."""
    policy = Path("north/site.toml")
    Path("north/ledger").rename("elsewhere")
    text = policy.read_text()
    policy.write_text(text.replace('ledger = "ledger"', 'ledger = "../elsewhere"'))
    assert "elsewhere" in policy.read_text()
    assert passphrase_of(policy) is None
    FileSigner.generate().save(Path("elsewhere/other.pem"), "correct horse battery")
    with pytest.raises(InputError, match="nobody can be asked"):
        passphrase_of(policy)


def test_a_folder_in_the_place_of_a_file(site: Desk) -> None:
    said = site.refused(2, "client", "rotate-key", "--recovery", "north", *POLICY)
    assert "Errno" not in said


def test_the_json_of_each_decision(site: Desk) -> None:
    """As docs/reference/cli.md lists it."""
    who = ("--as", "Ann", *POLICY)
    keys = {"plan", "by", "needed", "offered", "enough", "note"}
    assert set(site.client("approve", PLAN, "--ahead", *who)) == keys
    assert site.client("approve", PLAN[7:], "--ahead", *who)["plan"] == PLAN
    assert site.client("refuse", PLAN[7:], *who) == {"plan": PLAN, "state": "refused"}
    assert site.client("pause", *who) == {"state": "paused"}
    assert site.client("pause", "--end", *who) == {"state": "open"}
    assert set(site.client("plans", *POLICY)) == {"plans"}
    assert set(site.client("rotate-key", *POLICY)) == {"ledger"}
    assert json.loads(site.run("client", "withdraw", "--yes", *who, "--json")[1]) == {
        "state": "withdrawn"
    }


def test_status_shows_the_key_in_force_and_that_there_were_others(site: Desk) -> None:
    first = site.client("status", *POLICY)
    assert (first["key"], first["earlier_keys"]) == (first["fingerprint"], [])
    assert f"{first['key']}\n" in site.run("client", "status", *POLICY)[1]
    keys = [site.client("rotate-key", *POLICY)["ledger"] for _ in range(2)]
    value = site.client("status", *POLICY)
    assert (value["fingerprint"], value["key"]) == (first["fingerprint"], keys[1])
    assert value["earlier_keys"] == [first["fingerprint"], keys[0]]
    said = site.run("client", "status", *POLICY)[1]
    assert (
        f"{keys[1]} (in force, after 2 earlier keys; the ledger began with {first['key']})" in said
    )


# an older copy of the ledger


@pytest.fixture
def put_back(site: Desk) -> tuple[Desk, Path]:
    """A site whose ledger was put back from an older copy, as a coordinator told its client; and
    the newer ledger.
    """
    ledger, older = site.folder / "north" / "ledger", site.folder / "older"
    newer = site.folder / "newer"
    allow(site)
    shutil.copytree(ledger, older)
    site.client("approve", PLAN, "--ahead", "--as", "Ann", *POLICY)
    shutil.copytree(ledger, newer)
    now = OperatorDecisions.open(site.folder / "north" / "site.toml", None).ledger
    head = now.log.evidence([]).note
    now.log.store.close()
    shutil.rmtree(ledger)
    shutil.copytree(older, ledger)
    old, heads = Ledger.read(ledger), NewestHeads()
    with pytest.raises(RolledBackError):
        heads.take("hub", old, head)
    old.log.store.close()
    return site, newer


DECISIONS = {
    "approve": ("approve", PLAN, "--ahead", "--as", "Ann"),
    "refuse": ("refuse", PLAN, "--as", "Ann"),
    "pause": ("pause", "--as", "Ann"),
    "withdraw": ("withdraw", "--yes", "--as", "Ann"),
    "rotate-key": ("rotate-key",),
}


@pytest.mark.parametrize("command", DECISIONS)
def test_nothing_is_written_into_a_ledger_that_is_known_to_be_old(
    put_back: tuple[Desk, Path], command: str
) -> None:
    site, newer = put_back
    ledger = site.folder / "north" / "ledger"
    before, files = _leaves(ledger), kept(ledger)
    said = site.run("client", *DECISIONS[command], *POLICY)[2]
    assert "privet client recover" in said and "nothing was written" in said, said
    assert (_leaves(ledger), kept(ledger)) == (before, files)
    # The control: with the newer ledger the same command is noted.
    shutil.copyfile(ledger / FILE, newer / FILE)
    shutil.rmtree(ledger)
    shutil.copytree(newer, ledger)
    before = _leaves(ledger)
    site.client(*DECISIONS[command], *POLICY)
    assert len(_leaves(ledger)) == len(before) + (command != "approve")
    assert not (ledger / FILE).exists()


def _leaves(folder: Path) -> list[bytes]:
    ledger = Ledger.read(folder)
    found = list(ledger.log.store.leaves())
    ledger.log.store.close()
    return found
