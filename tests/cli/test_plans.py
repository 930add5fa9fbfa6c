"""``privet client plans`` and what is decided on an offer: its price, its changes, its texts."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk, policy_value

from privet.client.link.offers import Offers
from privet.client.operator.catalogue import MAX_VALUE_CHARS
from privet.client.operator.decisions import OperatorDecisions as Opened
from privet.client.operator.decisions import note_policy
from privet.common.errors import RefusedError
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting import plan_events
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Request
from privet.privacy.evidence.officers import ssh_text

POLICY = ("--policy", "north/site.toml")
HOME = Path("north")
HOSTILE = "y\x1b[2J\u202etxt\u2028z"


@pytest.fixture
def site(desk: Desk) -> Desk:
    assert desk.run("client", "init", "north", "--site", "North", "--plain-keys")[0] == 0
    desk.write(desk.folder / "north" / "site.toml", policy_value())
    return desk


def offered(desk: Desk, **changes: Any) -> Plan:
    """Keep a plan as the site's gate does when its coordinator offers one."""
    plan = Plan.parse(desk.plan(**changes))
    Offers(HOME).keep(plan, "study")
    return plan


def listed(desk: Desk, plan: Plan) -> dict[str, Any]:
    found = desk.client("plans", *POLICY)["plans"]
    (one,) = [one for one in found if one["plan"] == plan.digest]
    return dict(one)


def approve(desk: Desk, plan: Plan, *words: str) -> dict[str, Any]:
    return desk.client("approve", plan.digest, *words, "--as", "Ann", *POLICY)


def test_an_offer_has_a_name_a_price_and_a_state(site: Desk) -> None:
    plan = offered(site)
    one = listed(site, plan)
    assert (one["state"], one["name"], one["coordinator"]) == (
        "waits-for-approval", "tiny", "study",
    )  # fmt: skip
    assert (one["data_set"], one["epsilon"], one["by"]) == ("admissions", 20.0, [])
    # It is the forecast of `privet budget`, by digest, by file, and of the plan as it is written.
    site.write(site.folder / "plan.toml", site.plan())
    for words in (
        plan.digest,
        plan.digest[7:],
        f"north/offers/{plan.digest[7:]}.json",
        "plan.toml",
    ):
        code, out, _ = site.ask(words, "north/site.toml", "--json")
        cost = json.loads(out)
        assert (code, cost["plan"]) == (3, plan.digest)
        assert (one["spent"], one["left_after"], one["cost"]["epsilon"]) == (
            cost["spent"], cost["left_after"], cost["cost"]["total"],
        )  # fmt: skip
    assert 0 < one["left_after"] == pytest.approx(one["cap"] - one["cost"]["epsilon"])
    _, out, _ = site.run("client", "plans", *POLICY)
    for word in ("waits for", "tiny", "study", "admissions", "20.000", plan.digest):
        assert word in out
    (waits,) = site.client("status", *POLICY)["waiting"]
    assert waits == {
        "plan": plan.digest, "name": "tiny", "coordinator": "study", "also": [], "why": None,
    }  # fmt: skip
    assert approve(site, plan)["offered"]
    assert (listed(site, plan)["state"], listed(site, plan)["by"]) == ("approved", ["Ann"])
    assert site.client("status", *POLICY)["waiting"] == []
    site.client("refuse", plan.digest, "--as", "Bo", *POLICY)
    one = listed(site, plan)
    assert (one["state"], one["by"], one["left_after"]) == ("refused", ["Bo"], None)


def test_the_ledgers_key_is_not_needed_to_look(site: Desk) -> None:
    plan = offered(site)
    (HOME / "ledger" / "ledger.pem").unlink()
    assert listed(site, plan)["state"] == "waits-for-approval"


def test_the_second_of_two_people_still_waits(site: Desk) -> None:
    value = policy_value()
    value["allow"]["approvers"] = 2
    site.write(HOME / "site.toml", value)
    plan = offered(site)
    assert not approve(site, plan)["enough"]
    one = listed(site, plan)
    assert (one["state"], one["by"]) == ("waits-for-approval", ["Ann"])


def test_what_the_policy_forbids_is_not_priced_and_waits_for_nobody(site: Desk) -> None:
    plan = offered(site, training={"rounds": 5000})
    one = listed(site, plan)
    assert (one["state"], one["cost"], one["left_after"]) == ("offered", None, None)
    assert "5000 rounds" in one["why"]
    value = policy_value()
    value["allow"] |= {"approval": "listed"}
    site.write(HOME / "site.toml", value)
    one = listed(site, offered(site))
    assert one["state"] == "offered" and "only listed plans are allowed" in one["why"]


def test_failures_close_a_plan(site: Desk) -> None:
    plan = offered(site)
    approve(site, plan)
    desk = Opened.open(HOME / "site.toml", None)
    note_policy(desk.policy, desk.ledger)
    desk.ledger.keep("plan", plan.digest, plan.to_dict())
    event, model = plan_events.training_event(plan), "sha256:" + "0" * 64
    for attempt in range(1, plan.training.max_attempts + 1):
        order = Order("r", "North", 1, attempt, "train", plan.digest, model, ("w",), keyid="0" * 64)
        left = desk.ledger.reserve(Request(order, event, "admissions"))
        desk.ledger.abort(left, data_opened=True)
    desk.ledger.log.store.close()
    one = listed(site, plan)
    assert (one["state"], one["failed_attempts"]) == ("closed", plan.training.max_attempts)
    assert one["spent"] > 0
    # The plan is known from the ledger, though it is offered no more.
    (HOME / "offers" / f"{plan.digest[7:]}.json").unlink()
    assert listed(site, plan)["name"] == "tiny"
    assert approve(site, plan)["enough"]
    assert listed(site, plan)["state"] == "approved"


def test_what_changes_against_the_last_approved_plan(site: Desk) -> None:
    first = offered(site)
    assert (listed(site, first)["against"], listed(site, first)["changes"]) == (None, [])
    approve(site, first)
    other = offered(site, name="other", training={"rounds": 3})
    approve(site, other)
    # The same name goes before what was approved later.
    again = offered(site, training={"rounds": 4})
    one = listed(site, again)
    assert one["against"] == first.digest
    assert one["changes"] == [{"key": "training.rounds", "before": "2", "after": "4"}]
    # Without one of its name, it is the coordinator's last.
    third = listed(site, offered(site, name="third", training={"rounds": 3}))
    assert third["against"] == other.digest
    assert [change["key"] for change in third["changes"]] == ["name"]
    _, out, _ = site.run("client", "plans", *POLICY)
    assert "training.rounds: 2 → 4" in out


def test_a_digest_that_was_never_offered_is_an_error(site: Desk) -> None:
    plan = Plan.parse(site.plan())
    said = site.refused(2, "client", "approve", plan.digest, "--yes", "--as", "Ann", *POLICY)
    assert "was offered here" in said and "--ahead" in said
    assert "was offered here" in site.refused(2, "budget", plan.digest, "north/site.toml")
    assert site.client("plans", *POLICY)["plans"] == []
    said_ahead = approve(site, plan, "--ahead")
    assert (said_ahead["enough"], said_ahead["offered"]) == (True, False)
    assert listed(site, plan)["state"] == "approved"


def test_a_file_that_holds_another_plan_is_not_what_is_approved(site: Desk) -> None:
    cheap, dear = offered(site), offered(site, training={"rounds": 9})
    offers = HOME / "offers"
    (offers / f"{dear.digest[7:]}.json").write_bytes(
        (offers / f"{cheap.digest[7:]}.json").read_bytes()
    )
    said = site.refused(2, "client", "approve", dear.digest, "--yes", "--as", "Ann", *POLICY)
    assert "holds another plan" in said
    assert "holds another plan" in str(listed(site, dear)["why"])
    assert listed(site, dear)["by"] == [] and listed(site, dear)["name"] is None
    (offers / f"{dear.digest[7:]}.json").write_text("{")
    assert "cannot be read" in site.refused(2, "client", "approve", dear.digest, *POLICY)


def test_texts_of_a_plan_move_no_cursor_and_fill_no_screen(site: Desk) -> None:
    numeric = {HOSTILE: {"low": 0, "high": 1}, "x" * 5000: {"low": 0, "high": 1}}
    approve(site, offered(site))
    plan = offered(site, task={"numeric": numeric})
    assert HOSTILE in plan.to_dict()["task"]["numeric"]
    for words in (("plans",), ("approve", plan.digest, "--yes", "--as", "Ann")):
        code, out, err = site.run("client", *words, *POLICY)
        assert code == 0, err
        for sign in ("\x1b", "\u202e", "\u2028"):
            assert sign not in out + err
        assert "\\x1b[2J" in out
        assert "x" * (MAX_VALUE_CHARS + 1) not in out
    code, out, _ = site.run("client", "approve", plan.digest, "--as", "Ann", *POLICY, "--json")
    assert code == 0 and json.loads(out)["plan"] == plan.digest


def test_no_plan_of_an_offer_is_run(site: Desk) -> None:
    """A plan may name a module that lies in the folder: to look at it must not import it."""
    Path("mischief.py").write_text("from pathlib import Path; Path('ran').touch()\n")
    plan = offered(site, model={"kind": "mischief:make"})
    site.monkeypatch.syspath_prepend(str(site.folder))
    assert listed(site, plan)["state"] == "offered"
    value = policy_value()
    value["allow"]["models"] = ["*"]
    site.write(HOME / "site.toml", value)
    assert listed(site, plan)["cost"] is not None
    assert not Path("ran").exists()
    __import__("mischief")  # the control
    assert Path("ran").exists()


@pytest.mark.parametrize(("typed", "code", "state"), [
    (b"n\n", 1, "waits-for-approval"), (b"\n", 1, "waits-for-approval"), (b"y\n", 0, "approved"),
])  # fmt: skip
def test_on_a_terminal_it_asks(site: Desk, typed: bytes, code: int, state: str) -> None:
    plan = offered(site)
    child, terminal = pty.fork()
    if child == 0:
        main = "from privet.cli import main; main()"
        words = ["client", "approve", plan.digest, "--as", "Ann", *POLICY]
        os.execv(sys.executable, [sys.executable, "-c", main, *words])
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 4096)
    assert plan.digest.encode() in said and b"tiny" in said and b"Approve this plan as Ann?" in said
    os.write(terminal, typed)
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    os.close(terminal)
    assert listed(site, plan)["state"] == state


# officers


def with_officers(site: Desk, **changes: Any) -> None:
    """Name an officer, whose key is in ada.pem."""
    officers = {"Ada Lovelace": ssh_text(FileSigner.load(site.folder / "ada.pem", None).public)}
    value = {**policy_value(), "officers": officers}
    value["allow"] = {**value["allow"], **changes}
    site.write(HOME / "site.toml", value)


@pytest.fixture
def officer(site: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    FileSigner.generate().save(site.folder / "ada.pem", None)
    FileSigner.generate().save(site.folder / "eve.pem", None)
    with_officers(site)
    desk = Opened.open(HOME / "site.toml", None)
    note_policy(desk.policy, desk.ledger)
    return site


def test_an_officer_approves_by_her_own_key(officer: Desk) -> None:
    plan = offered(officer)
    for words, code, said in (
        ((), 2, "SSH_AUTH_SOCK is not set"),
        (("--key", "eve.pem"), 2, "this is not the key of 'Ada Lovelace'"),
        (("--key", "ada.pem", "--module", "x.so"), 2, "name two keys"),
        (("--token", "x"), 2, "belong together"),
        (("--key", "nothing.pem"), 2, "cannot be read"),
    ):
        told = officer.run(
            "client", "approve", plan.digest, "--as", "Ada Lovelace", *words, *POLICY
        )
        assert told[0] == code and said in told[2], told
    told = officer.run("client", "approve", plan.digest, "--as", "Ann", "--key", "ada.pem", *POLICY)
    assert told[0] == 3 and "no officer of the policy" in told[2]
    assert listed(officer, plan)["state"] == "waits-for-approval"
    found = officer.client(
        "approve", plan.digest, "--as", "ada lovelace", "--key", "ada.pem", *POLICY
    )
    assert (found["by"], found["enough"]) == (["Ada Lovelace"], True)
    assert listed(officer, plan)["state"] == "approved"


def test_an_officer_puts_a_changed_policy_in_force(officer: Desk) -> None:
    with_officers(officer, max_rounds=7)
    desk = Opened.open(HOME / "site.toml", None)
    with pytest.raises(RefusedError, match="sign-policy"):
        note_policy(desk.policy, desk.ledger)
    words = ("client", "sign-policy", "--as", "Ada Lovelace")
    told = officer.run(*words, "--key", "eve.pem", *POLICY)
    assert told[0] == 2 and "allow.max_rounds: " in told[2]
    found = officer.client(*words[1:], "--key", "ada.pem", *POLICY)
    assert [one["key"] for one in found["changes"]] == ["allow.max_rounds"]
    assert found["in_force"] and found["by"] == ["Ada Lovelace"]
    desk = Opened.open(HOME / "site.toml", None)
    note_policy(desk.policy, desk.ledger)
    assert desk.ledger.state.policy == desk.policy.public()
    told = officer.run(*words, "--key", "ada.pem", *POLICY)
    assert told[0] == 2 and "nothing to sign" in told[2]


def test_an_officer_sees_every_change_whole(officer: Desk) -> None:
    plans = [f"sha256:{number:064x}" for number in range(300)]
    with_officers(officer, plans=plans)
    words = ("sign-policy", "--as", "Ada Lovelace", "--key", "ada.pem")
    found = officer.client(*words, *POLICY)["changes"]
    assert len(found) > 300 and {f'allow.plans["{plan}"]' for plan in plans} <= {
        one["key"] for one in found
    }


# records that a plan does not fit

SQL = {"url": "sqlite:///none.db", "table": "t"}


@pytest.mark.parametrize(
    ("data", "header", "said"),
    [
        ({"path": "a.csv"}, "x1,x2,colour,y", ""),
        ({"path": "a.csv"}, "x1,colour,y", "there is no column 'x2', which the plan reads"),
        ({"path": "a.csv"}, None, "there is no such file"),
        ({"sql": SQL, "columns": ["x1", "x2", "colour", "y"]}, None, ""),
    ],
    ids=["fits", "no column", "no file", "sql"],
)
def test_an_offer_that_the_records_do_not_fit_is_told_before_it_is_approved(
    site: Desk, data: dict[str, Any], header: str | None, said: str
) -> None:
    value = policy_value()
    value["data"]["admissions"] |= data
    site.write(HOME / "site.toml", value)
    if header is not None:
        # The second line cannot be read: no record is.
        (HOME / "a.csv").write_bytes(header.encode() + b'\n\xff\xfe"\n')
    plan = offered(site)
    why = listed(site, plan)["why"]
    (waits,) = site.client("status", *POLICY)["waiting"]
    code, out, err = site.run("client", "approve", plan.digest, "--as", "Ann", *POLICY)
    assert code == 0, err
    if not said:
        assert why is None and waits["why"] is None and "warning" not in err
        return
    assert said in why and said in waits["why"] and said in out
    assert "warning: no order of this plan could be answered now" in err and said in err
    assert said in listed(site, plan)["why"]  # approved, and still so
    assert not (HOME / "none.db").exists()
