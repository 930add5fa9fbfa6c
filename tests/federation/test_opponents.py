"""Those who want evidence to look false, or a run to stop: each is met by the real parties."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from privet.client.admission import AdmissionControl
from privet.client.site import Answer
from privet.common.errors import EvidenceError, RunError
from privet.common.flat import Arrays
from privet.common.flower.wire import SHOW, decode_show, encode_reply, encode_show
from privet.common.order import Order, Status
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.merkle import root_from_inclusion
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint
from privet.privacy.evidence.store import Store
from privet.server.evidence.collector import EvidenceCollector
from privet.simulations.federation import SimulatedFederation
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
Orders = Callable[..., Order]
Start = Callable[[Any], Arrays]
Faults = list[tuple[str | None, str, str]]
UNKNOWN = "sha256:" + "7" * 64


def faults(fed: Any, *names: str) -> Faults:
    """What a verifier says of the run, or of the ledgers of these sites alone."""
    out = fed.folder / f"{len(list(fed.folder.glob('*.bundle')))}.bundle"
    whole = [fed.folder, *([fed.parties.ledgers] if fed.parties.ledgers else [])]
    write_bundle([fed.home(name) for name in names] or whole, out)
    found = verify(out, fed.folder / "roster-fingerprints.json").faults
    return [(fault.site, fault.rule, fault.message) for fault in found]


def between(fed: Any, act: Callable[[int, str, list[Message]], None]) -> InProcessGrid:
    """A grid that calls ``act`` before each message: how many of its type went, and its type."""
    count: dict[str, int] = {}

    class Grid(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            if messages:
                kind = messages[0].metadata.message_type
                count[kind] = count.get(kind, 0) + 1
                act(count[kind], kind, messages)
            return super().send_and_receive(messages, timeout=timeout)

    return fed.grid(Grid)


@dataclass(frozen=True)
class ForBoth(SimulatedFederation):
    """Parties of a run whose sites' policies name another coordinator, too."""

    order_keys: tuple[str, ...] = ()

    def admission(self, site: str, roster: Roster) -> AdmissionControl:
        admission = super().admission(site, roster)
        allow = admission.policy.allow.model_copy(update={"coordinators": self.order_keys})
        return AdmissionControl(
            admission.policy.model_copy(update={"allow": allow}), admission.ledger, roster
        )


def beside(fed: Any, folder: Path) -> Any:
    """Another coordinator of the same sites, whose policies name both from here on."""
    ledgers = fed.folder / "sites"
    roster = SimulatedFederation(fed.plan, folder, ledgers).found()
    both = tuple(one.coordinator.orders.fingerprint for one in (fed.roster, roster))
    other = replace(
        fed, parties=ForBoth(fed.plan, folder, ledgers, order_keys=both), folder=folder,
        roster=roster, sites=[],
    )  # fmt: skip
    other.__dict__.pop("journal", None)
    fed.parties = ForBoth(fed.plan, fed.folder, fed.parties.ledgers, order_keys=both)
    for one in (fed, other):
        one.sites[:] = [one.restart(spec.name) for spec in fed.plan.sites]
    return other


# a coordinator that wants a site's ledger to look false


@pytest.mark.parametrize("run", ["tiny-run", "another"])
def test_a_refused_order_for_a_plan_that_nobody_has_spoils_no_ledger(
    federation: Make, order_for: Orders, start: Start, run: str
) -> None:
    fed = federation()
    fed.run()
    model = start(fed.plan)
    order = order_for(fed, "North", model, run=run, plan=UNKNOWN, attempt=2)
    assert fed.sites[0].answer(order, model).status is Status.REFUSED_PLAN
    assert fed.entries("North")[-1].kind == "refused"
    assert faults(fed, "North", "East", "South") == []


def test_a_plan_that_an_operator_decides_on_may_never_come(federation: Make) -> None:
    fed = federation()
    fed.ledger("North").refuse_plan(UNKNOWN, ["Ada"])
    fed.ledger("East").approve(UNKNOWN, ["Ada"], "manual")
    assert faults(fed, "North", "East", "South") == []


def test_an_evaluation_that_the_plan_does_not_have_is_refused(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation(metrics={"source": "gate", "every": 2}, training={"rounds": 3})
    model, site = start(fed.plan), fed.sites[0]
    for number, said in ((1, "refused-plan"), (2, "released"), (3, "released")):
        order = order_for(fed, "North", model, purpose="evaluate", round=number)
        assert site.answer(order, model).status == said
    assert faults(fed, "North", "East", "South") == []


# what goes wrong among honest parties, and is not to look like a lie


def test_a_site_that_withdraws_while_a_run_goes_on(federation: Make) -> None:
    fed = federation()

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if (number, kind) == (2, "train"):
            fed.ledger("South").withdraw("Ada")

    fed.run(between(fed, act))
    assert faults(fed) == []


def test_a_repeated_order_that_cannot_be_answered_again(federation: Make) -> None:
    """The coordinator dies with the replies in hand, and a site loses its outbox."""
    fed = federation()

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if kind == "train":
            list(fed.grid().send_and_receive(messages))
            raise ConnectionError("the coordinator died")

    with pytest.raises(ConnectionError):
        fed.run(between(fed, act))
    fed.sites[2].outbox.remove("tiny-run/train/1/1")
    fed.run()
    assert faults(fed) == []


def test_a_site_that_comes_after_a_restart_waits_for_the_next_run(federation: Make) -> None:
    fed = federation()

    class Two(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            kind = messages[0].metadata.message_type
            if kind == "train":
                raise ConnectionError("the coordinator died")
            answers = list(super().send_and_receive(messages, timeout=timeout))
            return answers[:2] if kind == "query" else answers

    with pytest.raises(ConnectionError):
        fed.run(fed.grid(Two))
    assert set(fed.run().progress[0].statuses) == {"North", "East"}
    assert faults(fed) == []


# a site that wants the journal to look false, or the coordinator to stop


@pytest.mark.parametrize("status", [Status.PRESENT, Status.RELEASED, Status.WAITS_FOR_APPROVAL])
def test_an_answer_to_another_question_is_a_failure(federation: Make, status: Status) -> None:
    fed = federation()

    class Evades(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            asked = list(messages)
            if asked[0].metadata.message_type != "train":
                return super().send_and_receive(asked, timeout=timeout)
            lost = Message(encode_reply("South", status), reply_to=asked[2])
            return [*super().send_and_receive(asked[:2], timeout=timeout), lost]

    assert fed.run(fed.grid(Evades)).progress[0].statuses["South"] is Status.FAILED
    assert faults(fed) == []


def lies(fed: Any, name: str, change: Callable[[dict[str, Any]], None]) -> InProcessGrid:
    """A grid on which a site's answers about logs are changed."""
    origin = fed.roster.site(name).ledger.name

    class Grid(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            for answer in super().send_and_receive(messages, timeout=timeout):
                if SHOW in answer.content:
                    value = decode_show(answer.content)
                    if value["evidence"]["note"].startswith(origin):
                        change(value)
                        answer.content[SHOW] = encode_show(value)[SHOW]
                yield answer

    return fed.grid(Grid)


def test_evidence_with_infinity_does_not_stop_the_coordinator(federation: Make) -> None:
    fed = federation()

    def change(answer: dict[str, Any]) -> None:
        answer["evidence"]["rotations"] = [[float("inf"), "", []]]

    assert fed.run(lies(fed, "South", change)).progress[0].statuses["South"] is Status.FAILED
    assert faults(fed) == []


def test_a_tree_that_nobody_can_have_grown_does_not_stop_the_coordinator(federation: Make) -> None:
    """A path to any place in a huge tree can be made up, with a head that is properly signed."""
    fed = federation()
    log = fed.sites[2].ledger.log

    def change(answer: dict[str, Any]) -> None:
        for _, (leaf, path) in list(answer["evidence"]["inclusion"].items()):
            place = 2**53 + 1
            path = [bytes([level]) * 32 for level in range(54)]
            root = next(
                root
                for last in range(len(path) + 1)
                if (root := root_from_inclusion(leaf.encode(), place, place + 1, path[:last]))
            )
            path = next(
                path[:last]
                for last in range(len(path) + 1)
                if root_from_inclusion(leaf.encode(), place, place + 1, path[:last])
            )
            head = Checkpoint(log.origin, place + 1, root).signed(log.key, log.signer)
            texts = [base64.b64encode(part).decode() for part in path]
            answer["evidence"] = {
                "note": head.text, "proofs": {}, "inclusion": {str(place): [leaf, texts]},
                "rotations": [],
            }  # fmt: skip

    with pytest.raises(EvidenceError, match="not believed"):
        fed.run(lies(fed, "South", change))
    assert fed.journal_entries()[-1].predicate["fault"] == "EvidenceError"


# while a run goes on


def test_a_key_that_is_rotated_under_a_running_client_accuses_nobody(federation: Make) -> None:
    fed = federation()

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if (number, kind) == (2, "train"):
            fed.ledger("South").rotate(FileSigner.generate())

    assert fed.run(between(fed, act)).progress[1].statuses["South"] is Status.NOT_NOW
    assert faults(fed) == []


@pytest.mark.parametrize("after", [2, 3])
def test_a_run_that_averages_goes_on_as_if_nothing_had_happened(
    federation: Make, same: Callable[[Arrays, Arrays], bool], monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:  # fmt: skip
    more = {"training": {"rounds": 3}, "strategy": {"average_last": 3}, "noise_seed": 7}
    whole = federation(folder="whole", **more).run().model
    fed, note = federation(**more), EvidenceCollector.close_round

    def dies(self: EvidenceCollector, record: dict[str, Any]) -> None:
        note(self, record)
        if record["round"] == after:
            raise ConnectionError("the coordinator died")

    with monkeypatch.context() as patched:
        patched.setattr(EvidenceCollector, "close_round", dies)
        with pytest.raises(ConnectionError):
            fed.run()
    assert same(fed.run().model, whole)
    assert faults(fed) == []


def test_a_run_that_averages_and_breaks(federation: Make) -> None:
    fed = federation(training={"rounds": 3}, strategy={"average_last": 2})

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if (number, kind) == (3, "train"):
            for site in fed.sites:
                fed.ledger(site.name).pause("Ada")

    with pytest.raises(RunError):
        fed.run(between(fed, act))
    assert faults(fed) == []


def test_one_witness_that_objects_stops_the_run_and_nothing_else(federation: Make) -> None:
    fed = federation(metrics={"source": "gate"})

    def change(answer: dict[str, Any]) -> None:
        if answer["lines"]:
            answer |= {"lines": {}, "faults": {"": "I have seen something else"}}

    with pytest.raises(EvidenceError, match="site 'South': I have seen something else"):
        fed.run(lies(fed, "South", change))
    assert faults(fed) == []


def test_two_coordinators_at_the_same_sites_accuse_nobody(federation: Make, tmp_path: Path) -> None:
    """The other one's run comes between the showing of a head and its cosigning."""
    fed = federation()
    other = beside(fed, tmp_path / "other")
    runs: list[Any] = []

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if kind == "query.show" and decode_show(messages[0].content)["shown"] and not runs:
            runs.append(other.run(run="other-run"))

    fed.run(between(fed, act))
    assert runs and faults(fed) == []
    assert faults(other) == []


def test_another_coordinator_under_the_same_run_id_spoils_nothing(
    federation: Make, order_for: Orders, start: Start, tmp_path: Path
) -> None:
    """It gets neither a turn in the run nor what the run's releases were."""
    fed = federation(training={"rounds": 3})
    other, model = beside(fed, tmp_path / "other"), start(fed.plan)
    said: list[Answer] = []

    def act(number: int, kind: str, messages: list[Message]) -> None:
        if (number, kind) == (3, "train"):
            for changes in ({}, {"round": 3}, {"round": 9}, {"plan": UNKNOWN, "round": 3}):
                order = order_for(other, "North", model, **changes)
                said.append(other.sites[0].answer(order, model))

    fed.run(between(fed, act))
    assert len(said) == 4 and all(answer.release is None for answer in said)
    assert {answer.status for answer in said} == {Status.REFUSED_CONFLICT}
    assert fed.kinds("North").count("refused") == 4
    assert fed.charged("North") == 3
    assert faults(fed) == []


def test_a_run_id_that_another_coordinator_took_first_is_refused(
    federation: Make, tmp_path: Path
) -> None:
    fed = federation()
    other = beside(fed, tmp_path / "other")
    other.run()
    with pytest.raises(RunError, match="refused-conflict"):
        fed.run()
    assert faults(fed) == faults(other) == []


def test_a_bundle_is_made_while_a_site_goes_on(
    federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, count = federation(), Store.count
    fed.run()

    def counted(self: Store) -> int:
        found = count(self)
        for site in fed.sites:
            fed.ledger(site.name).approve(UNKNOWN, [f"person {found}"], "manual")
        return found

    fed.ledger("South").pause("Ada")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "count", counted)
        assert faults(fed, "North", "East", "South") == []
