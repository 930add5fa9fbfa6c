"""A coordinator of a site has no hand in what belongs to the site's other coordinators."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from privet.client.endpoint import SiteEndpoint
from privet.client.link.coordinators import STATE, memberships, place_for
from privet.client.link.dial import LinkRequest
from privet.client.link.join import Join, keep
from privet.client.newest_head import MAX_NOTE, NewestHeads
from privet.client.operator.decisions import OperatorDecisions, make_site, public_keys
from privet.client.recovery import journal_copies
from privet.client.turns import Turns
from privet.common.canonical import canonical_json
from privet.common.errors import DataError, InputError, NoteError, RolledBackError
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import (
    decode_reply,
    decode_show,
    encode_order,
    encode_show,
    pack,
    to_record,
    unpack,
)
from privet.common.link import link_pb2 as pb
from privet.common.link import offer
from privet.common.link.identity import request
from privet.common.order import Order
from privet.common.output.logs import why
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.roster import CoordinatorKeys, Roster
from privet.privacy.evidence.signed_note import Checkpoint, Key
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.witness import Witness
from privet.privacy.policy import Policy
from privet.server import queue
from privet.server.membership.notice import notice_of
from privet.server.membership.order_key_files import rotate_order_key
from privet.server.membership.registry import MemberRegistry

Make = Callable[..., Any]
WEIGHTS: Arrays = {"w": np.zeros(1, dtype="f4")}


class Side:
    """A coordinator, and the endpoint that North has for it."""

    def __init__(self, folder: Path, name: str, home: Path) -> None:
        self.federation = MemberRegistry.found(folder / name, name, "127.0.0.1:1", "127.0.0.1:2")
        ledger, witness = public_keys(home)
        invitation = home / f"{name}.json"
        invitation.write_text(json.dumps(self.federation.invite("North")))
        join = Join.load(invitation)
        place = place_for(join, home)
        place.mkdir(parents=True, exist_ok=True)
        asked, key = request("North")
        (place / "link.key").write_bytes(key)
        (place / "link.key").chmod(0o600)
        pem = self.federation.enrol("North", join.token, asked, str(ledger), str(witness))
        keep(join, place, pem)
        self.endpoint: Any = None

    def offers(self, plan: Plan, run: str, roster: Roster | None = None) -> tuple[Roster, str]:
        """Offer a run; return its roster, and how the site stands to it."""
        roster = roster or queue.submit(self.federation, plan, run).roster(self.federation)
        offered = offer.encode(run, plan.to_dict(), roster.to_dict())
        told = self.endpoint(LinkRequest(offer.KIND, "", offered, {}))
        return roster, json.loads(told.records)["status"]

    def begins_copy(self, plan: Plan, of: str, run: str, roster: Roster) -> Any:
        """Have the site begin the copy of a journal, under the name of any run."""
        journal = self.federation.journal(self.federation.folder / "runs" / of)
        key = journal.sealed_key(run, plan.digest, roster).to_json()
        return self.asks_journal(run=run, key=key)

    def asks_journal(self, **asked: Any) -> Any:
        nothing = {"head": "", "since": [], "slots": [], "shown": {}}
        records, arrays = pack(encode_show({**nothing, "journal": asked}))
        told = self.endpoint(LinkRequest("query.show", "", records, arrays))
        return decode_show(unpack(told.records, told.arrays))["journal"]

    def orders(self, order: Order) -> str:
        """Ask for a release; return the status of the answer."""
        content = encode_order(order, to_record(WEIGHTS), ConfigRecord())
        told = self.endpoint(LinkRequest(order.purpose, "1", *pack(content)))
        return str(decode_reply(unpack(told.records, told.arrays))[1])

    @property
    def runs(self) -> list[str]:
        told = self.endpoint(LinkRequest(offer.RUNS, "", b"{}", {}))
        return [one["key"]["run"] for one in offer.decode_runs(told.records)]


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    value = plan_value(metrics={"source": "off"}, training={"rounds": 3})
    value["sites"] = [one for one in value["sites"] if one["name"] == "North"]
    return calibrated(Plan.parse(value))


@pytest.fixture
def sides(tmp_path: Path, plan: Plan, frame_of: Make) -> tuple[Side, Side]:
    """North with two coordinators, both of which may ask for the plan."""
    home = tmp_path / "North"
    make_site(home, "North", None)
    alpha, beta = (Side(tmp_path, name, home) for name in ("alpha", "beta"))
    frame_of(40, 0).to_csv(home / "records.csv", index=False)
    privacy, keys = plan.privacy, [one.federation.order_key().fingerprint for one in (alpha, beta)]
    assert privacy is not None
    (home / "site.toml").write_text(f"""
site = "North"
[populations.patients]
unit = "{privacy.unit}"
epsilon = {20 * privacy.epsilon}
delta = {privacy.delta}
[data.records]
population = "patients"
nominal_size = {plan.site("North").nominal_size}
path = "records.csv"
[allow]
tasks = ["*"]
models = ["*"]
coordinators = {json.dumps(keys)}
plans = ["{plan.digest}"]
""")
    ledger = OperatorDecisions.open(home / "site.toml", None).ledger
    signer = FileSigner.load(home / "ledger" / "witness.pem", None)
    witness, turns = Witness(home / "ledger" / "witness.json", signer, "North"), Turns()
    training: Any = SimpleNamespace(close=lambda: None)
    for side, one in zip((alpha, beta), memberships(home), strict=True):
        side.endpoint = SiteEndpoint(
            lambda: Policy.load(home / "site.toml"), ledger, witness, one,
            lambda plan, policy, data_set: training, turns,
        )  # fmt: skip
    return alpha, beta


def handover(by: Side, new: FileSigner) -> pb.Notice:
    """A coordinator says that a key follows its own; it has the old key, and signs for both."""
    folder = by.federation.keys
    old = FileSigner.load(folder / "orders.pem", None)
    made = KeyHandover.make("beta", old, new)
    forged = replace(made, key_signature=made.signature)
    return pb.Notice(order_keys=[canonical_json(forged.to_json())])


def test_the_journal_of_another_is_neither_read_nor_pushed_out(
    sides: tuple[Side, Side], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_copies, "MAX_RUNS", 3)
    alpha, beta = sides
    roster, status = alpha.offers(plan, "study")
    assert status == offer.READY
    assert alpha.begins_copy(plan, "study", "study", roster) == {"held": 0}
    own, status = beta.offers(plan, "other")
    assert status == offer.READY
    # Copies under the names of others' runs, of one that is and of one that will be; and many.
    for run in ("study", "study-2", "x1", "x2", "x3"):
        assert beta.begins_copy(plan, "other", run, own) == {"held": 0}
    assert alpha.asks_journal(run="study") == {"held": 0}
    assert alpha.offers(plan, "study-2")[1] == offer.READY
    home = tmp_path / "North"
    assert [path.stem for path in (home / "journals").glob("*.db")] == ["study"]
    assert len(list((home / STATE / "beta" / "journals").glob("*.db"))) == 3


def test_no_run_is_offered_under_the_order_key_of_another(
    sides: tuple[Side, Side], plan: Plan
) -> None:
    """By it, and orders that a bundle shows, one would be handed what the other was answered."""
    alpha, beta = sides
    roster, _ = alpha.offers(plan, "study")
    theirs = roster.coordinator
    witness = beta.federation.witness().key
    mixed = replace(
        roster, coordinator=CoordinatorKeys("beta", theirs.journal, theirs.orders, witness)
    )
    assert beta.offers(plan, "study", mixed)[1] == "refused-policy"
    assert "of another coordinator" in beta.endpoint._said


def test_no_coordinator_names_the_key_of_another_as_its_successor(
    sides: tuple[Side, Side], plan: Plan
) -> None:
    """Else that one's own handover would come too late, and the site be lost to it."""
    alpha, beta = sides
    roster, _ = alpha.offers(plan, "study")
    alpha.begins_copy(plan, "study", "study", roster)
    rotate_order_key(alpha.federation.keys, "alpha", None)
    new = FileSigner.load(alpha.federation.keys / "orders.pem", None)
    with pytest.raises(InputError, match="did not sign that it follows"):
        beta.endpoint.take_notice(handover(beta, new))
    assert beta.runs == []
    alpha.endpoint.take_notice(notice_of(alpha.federation))
    assert alpha.offers(plan, "study-2")[1] == offer.READY


def test_no_order_is_prepared_before_each_coordinator_has_shown_what_it_saw(
    sides: tuple[Side, Side], plan: Plan
) -> None:
    """An old copy of the ledger extends what one coordinator saw, and not what the other did."""
    alpha, beta = sides
    turns, ledger = alpha.endpoint.turns, alpha.endpoint.ledger
    turns.heads = NewestHeads(["alpha", "beta"])
    roster, said = alpha.offers(plan, "study")
    assert said == "not-now"
    assert "'beta'" in alpha.endpoint._said and "--not-restored" in alpha.endpoint._said
    assert ledger.state.policy is None  # nor is anything written
    # No head of this ledger: it may be of a key that an older copy does not know.
    stranger = FileSigner.generate()
    key = Key(ledger.log.origin, stranger.public)
    other = Checkpoint(ledger.log.origin, 1, b"\0" * 32).signed(key, stranger)
    for note in (b"\xff", b"nonsense", other.text.encode()):
        with pytest.raises(NoteError):
            beta.endpoint.take_head(pb.Head(note=note))
        assert alpha.offers(plan, "study", roster)[1] == "not-now"
    # One that never saw this ledger, and one that saw it as it is.
    beta.endpoint.take_head(pb.Head())
    assert alpha.offers(plan, "study", roster)[1] == offer.READY
    theirs, said = beta.offers(plan, "other")
    assert said == "not-now"
    alpha.endpoint.take_head(pb.Head(note=ledger.log.evidence([]).note.encode()))
    assert beta.offers(plan, "other", theirs)[1] == offer.READY


def test_a_coordinator_that_saw_a_newer_ledger_stops_it_for_all(
    sides: tuple[Side, Side], plan: Plan, tmp_path: Path
) -> None:
    alpha, beta = sides
    log = alpha.endpoint.ledger.log
    assert alpha.offers(plan, "study")[1] == offer.READY
    signer = FileSigner.load(tmp_path / "North" / "ledger" / "ledger.pem", None)
    newer = Checkpoint(log.origin, len(log) + 1, b"\1" * 32).signed(log.key, signer)
    with pytest.raises(RolledBackError):
        beta.endpoint.take_head(pb.Head(note=newer.text.encode()))
    for side, run in ((alpha, "study-2"), (beta, "other")):
        assert side.offers(plan, run)[1] == "refused-rollback"
    # Nor is it cosigned any further: who saw less would hold the newer ledger for a forged one.
    records, arrays = pack(encode_show({"head": "", "since": [], "slots": [], "shown": {}}))
    told = alpha.endpoint(LinkRequest("query.show", "", records, arrays))
    assert decode_show(unpack(told.records, told.arrays)) == {"status": "refused-rollback"}


def test_a_run_that_waited_for_a_head_when_the_client_started_goes_on(
    sides: tuple[Side, Side], plan: Plan
) -> None:
    """Nobody offers a run again that goes on: its orders are what comes."""
    alpha, beta = sides
    ledger = alpha.endpoint.ledger
    assert alpha.offers(plan, "study")[1] == offer.READY
    model = digest_arrays(WEIGHTS)
    order = Order("study", "North", 1, 1, "train", plan.digest, model, ("w",), "0" * 64, "AA==")
    assert alpha.orders(order) == "refused-signature"
    size = len(ledger.log)

    def started(heads: NewestHeads) -> None:
        old = alpha.endpoint
        alpha.endpoint = SiteEndpoint(
            old.policy, ledger, old.witness, old.membership, old.training_for, Turns(heads=heads)
        )

    started(NewestHeads(["alpha", "beta"]))
    beta.endpoint.turns = alpha.endpoint.turns
    assert alpha.orders(order) == "not-now"
    # One that has an entry may not be answered as if it had none.
    assert ledger.refuse(replace(order, attempt=2), "refused-plan")
    size += 1
    assert alpha.orders(replace(order, attempt=2)) == "failed"
    assert len(ledger.log) == size
    beta.endpoint.take_head(pb.Head())
    assert alpha.orders(order) == "refused-signature"  # it is looked at

    # A pause passes in the same way.
    ledger.pause("Ada")
    started(NewestHeads())
    assert alpha.orders(order) == "not-now"
    ledger.resume("Ada")
    assert alpha.orders(order) == "refused-signature"
    size = len(ledger.log)

    heads = NewestHeads(["alpha", "beta"])
    started(heads)
    signer = FileSigner.load(ledger.log.store.path.parent / "ledger.pem", None)
    newer = Checkpoint(ledger.log.origin, size + 1, b"\1" * 32).signed(ledger.log.key, signer)
    with pytest.raises(RolledBackError):
        heads.take("beta", ledger, newer.text)
    assert alpha.orders(order) == "refused-rollback"


def test_a_head_is_compared_and_not_kept(sides: tuple[Side, Side]) -> None:
    """It has no cosignature, and a disk that is full must not hold the site up."""
    alpha, _ = sides
    ledger, log = alpha.endpoint.ledger, alpha.endpoint.ledger.log
    heads = NewestHeads(["alpha", "beta"])
    before = log.store.path.read_bytes(), log.cosigned()
    heads.take("alpha", ledger, log.evidence([]).note)
    assert heads.awaited.keys() == {"beta"}
    assert (log.store.path.read_bytes(), log.cosigned()) == before
    long = log.evidence([]).note + "\n" * MAX_NOTE
    with pytest.raises(NoteError, match="a head has at most"):
        heads.take("beta", ledger, long)
    assert len(heads.awaited["beta"]) < 500


def test_no_two_coordinators_are_called_the_same(sides: tuple[Side, Side]) -> None:
    """What one has shown would count for the other one."""
    first, second = (side.endpoint.membership for side in sides)
    kept = first.link / "join.json"
    value = json.loads(kept.read_text())
    assert (first.name, second.name) == ("alpha", "beta")
    kept.write_text(json.dumps({**value, "federation": "beta"}))
    assert [one.name for one in memberships(first.home)] == ["beta-first", "beta"]


def test_a_policy_that_was_edited_comes_into_force_with_the_next_offer(
    sides: tuple[Side, Side], plan: Plan, tmp_path: Path
) -> None:
    """Also after runs, and for each coordinator; one that allows nothing of it changes nothing."""
    alpha, beta = sides
    policy, ledger = tmp_path / "North" / "site.toml", alpha.endpoint.ledger
    assert alpha.offers(plan, "study")[1] == offer.READY
    before, text = ledger.state.policy, policy.read_text()

    policy.write_text(text.replace("[allow]", "[allow]\nmax_rounds = 1", 1))
    assert alpha.offers(plan, "study-2")[1] == "refused-policy"
    assert ledger.state.policy == before

    policy.write_text('contact = "the data office"\n' + text)
    assert alpha.offers(plan, "study-3")[1] == offer.READY
    now = Policy.load(policy).public()
    assert ledger.state.policy == now != before
    assert beta.offers(plan, "other")[1] == offer.READY
    assert ledger.state.policy == now


def test_nothing_of_a_policy_is_noted_before_it_is_in_force(
    sides: tuple[Side, Side], plan: Plan, tmp_path: Path
) -> None:
    """What a changed policy lists is approved by it once it is in the ledger, and not before."""
    alpha, _ = sides
    policy, log = tmp_path / "North" / "site.toml", alpha.endpoint.ledger.log
    text = policy.read_text()
    policy.write_text(text.replace(f'plans = ["{plan.digest}"]', "plans = []"))
    assert alpha.offers(plan, "study")[1] == "waits-for-approval"
    assert not log.state.approvals
    policy.write_text(text)
    assert alpha.offers(plan, "study-2")[1] == offer.READY
    kinds = [Entry.read(leaf).kind for leaf in log.store.leaves()]
    assert kinds.index("policy") < kinds.index("plan-approved")
    # With officers a change wants their signatures; without, nothing of it stands in the ledger.
    size = len(log)
    ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    policy.write_text(text + f'\n[officers]\nAda = "{ssh}"\n')
    assert alpha.offers(plan, "study-3")[1] == offer.READY  # the first officers: the owner's word
    size = len(log)
    policy.write_text(text)
    assert alpha.offers(plan, "study-4")[1] == "refused-policy"
    assert len(log) == size


def test_an_offer_that_the_records_do_not_fit_is_told_once_and_to_the_operator_alone(
    sides: tuple[Side, Side], plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alpha, _ = sides
    home = tmp_path / "North"
    policy, records = home / "site.toml", home / "records.csv"
    policy.write_text(policy.read_text().replace(f'plans = ["{plan.digest}"]', ""))
    roster, status = alpha.offers(plan, "study")
    assert status == "waits-for-approval" and "does not fit" not in caplog.text
    records.write_text(records.read_text().replace("x2", "x3", 1))
    alpha.endpoint._said = ""  # as in another process
    for _ in range(2):
        assert alpha.offers(plan, "study", roster)[1] == "waits-for-approval"
    (found,) = [one for one in caplog.records if one.msg == "an offered plan does not fit"]
    error = vars(found)["why"]
    assert "there is no column 'x2'" in str(error)
    # Its text is not for standard error, where others read.
    assert isinstance(error, DataError) and why(error) == "DataError"
