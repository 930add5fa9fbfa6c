"""Through the real rounds: sites and coordinators that rewrite, fork, forge and forget."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from ledger_kit import close_budget

from privet.client.site import LogQuery, Site
from privet.common.errors import EvidenceError, RunError
from privet.common.flower.wire import SHOW, decode_show, encode_show
from privet.common.order import ORDER_TYPE, Order, Status
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint, Key, SignatureLine, fingerprint
from privet.privacy.evidence.statement import pae
from privet.server.evidence.collector import EvidenceCollector
from privet.server.snapshot import Snapshots
from privet.simulations.federation import SimulatedFederation
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
SITES = ("North", "East", "South")


def between(rounds: int, act: Callable[[], None]) -> type[InProcessGrid]:
    """A grid that does something before the orders of the round after ``rounds`` go out."""

    class Between(InProcessGrid):
        asked = 0

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            if messages and messages[0].metadata.message_type == "train":
                self.asked += 1
                if self.asked == rounds + 1:
                    act()
            return super().send_and_receive(messages, timeout=timeout)

    return Between


class Brazen(Site):
    """A site that goes on whatever head it is shown."""

    def _require_head(self, head: str, *, later: bool = False) -> None: ...


def backup(fed: Any, name: str) -> Path:
    """Copy a site's ledger while nothing is written to it."""
    to = fed.folder.with_name(f"backup-{name}")
    shutil.copytree(fed.home(name), to)
    return to


def restore(fed: Any, name: str, kept: Path, kind: type[Site] = Site) -> None:
    """Put a site's ledger back, and start the site anew."""
    number = [site.name for site in fed.sites].index(name)
    fed.sites[number].ledger.log.store.close()
    for path in fed.home(name).glob("ledger.db*"):
        path.unlink()
    for path in kept.glob("ledger.db*"):
        shutil.copy(path, fed.home(name) / path.name)
    fed.sites[number] = fed.restart(name, kind=kind)


def closed(fed: Any) -> dict[str, Any]:
    """What the journal says of the end of the last run."""
    return fed.journal_entries("run-closed")[-1].predicate  # type: ignore[no-any-return]


# --- an honest run ---------------------------------------------------------------------------


def test_an_honest_run_verifies_without_a_remark(federation: Make) -> None:
    fed = federation(metrics={"source": "gate"})
    fed.run()
    verdict = fed.verdict()
    assert (verdict.faults, verdict.notes, verdict.roster) == ([], [], "pinned")
    assert verdict.ok
    for found in verdict.sites:
        spent = fed.ledger(found.site).spent().epsilon
        assert found.epsilon == pytest.approx(spent, rel=1e-6)


def test_in_each_round_every_log_is_cosigned_by_all_others(federation: Make) -> None:
    fed = federation()
    fed.run()
    everybody = set(fed.roster.witnesses)
    owners = {site.ledger.name: site.witness.name for site in fed.roster.sites}
    chief = fed.roster.coordinator
    owners[chief.journal.name] = chief.witness.name
    for entry in fed.journal_entries("round"):
        witnessed = {item["log"]: set(item["cosigners"]) for item in entry.predicate["witnessed"]}
        assert witnessed == {log: everybody - {owner} for log, owner in owners.items()}


def test_two_runs_on_the_same_ledgers_verify(federation: Make) -> None:
    fed = federation(cap=40.0)
    fed.run()
    fed.run(run="second", snapshots="second")
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert all(found.runs == 2 and found.enforced_by == "filter" for found in verdict.sites)


def test_a_key_that_is_rotated_between_rounds_is_followed(federation: Make) -> None:
    fed = federation()
    site = fed.sites[1]
    outcome = fed.run(fed.grid(between(1, lambda: site.ledger.rotate(FileSigner.generate()))))
    assert [step.statuses["East"] for step in outcome.progress] == [Status.RELEASED] * 2
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


# --- a site that rewrites its ledger ----------------------------------------------------------


def test_a_site_that_restores_a_backup_between_rounds_is_asked_for_nothing(
    federation: Make,
) -> None:
    """Promise of H31: it extends its last cosigned head, or it reserves nothing."""
    fed = federation()
    kept = backup(fed, "East")
    grid = fed.grid(between(1, lambda: restore(fed, "East", kept)))
    outcome = fed.run(grid)
    first, second = (step.statuses for step in outcome.progress)
    assert first["East"] is Status.RELEASED
    assert second == {**first, "East": Status.REFUSED_ROLLBACK}
    assert fed.kinds("East") == []
    assert fed.ledger("East").history() == []
    assert fed.opened.count("East") == 1
    assert "refused-rollback" in fed.log("East")
    # An auditor sees it. The others begin another run, without it.
    assert {fault.site for fault in fed.verdict().faults} == {"East", "coordinator"}
    outcome = fed.run(run="second", snapshots="second")
    assert [step.statuses for step in outcome.progress] == [second, second]
    assert fed.ledger("East").history() == []
    origin = fed.roster.site("East").ledger.name
    for entry in fed.journal_entries("round")[-2:]:
        assert {item["site"] for item in entry.predicate["joined"]} == {"North", "South"}
        assert origin not in {item["log"] for item in entry.predicate["witnessed"]}


def test_a_rolled_back_site_is_left_out_of_a_run_from_its_first_round(federation: Make) -> None:
    """Once its newer file is back it takes part again, in the same run."""
    fed = federation(training={"rounds": 3, "steps": 1}, cap=40.0)
    kept = backup(fed, "East")
    fed.run()
    newer = fed.folder.with_name("newer")
    shutil.copytree(fed.home("East"), newer)
    restore(fed, "East", kept)
    grid = fed.grid(between(1, lambda: restore(fed, "East", newer)))
    outcome = fed.run(grid, run="second", snapshots="second")
    said = [step.statuses["East"] for step in outcome.progress]
    assert said == [Status.REFUSED_ROLLBACK, Status.RELEASED, Status.RELEASED]
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_without_a_quorum_a_rolled_back_site_ends_the_run(federation: Make) -> None:
    """The control: nothing of it is joined to make up the number."""
    fed = federation(strategy={"min_sites": 3}, cap=40.0)
    kept = backup(fed, "East")
    fed.run()
    restore(fed, "East", kept)
    with pytest.raises(RunError, match="2 of 3 sites released") as caught:
        fed.run(run="second", snapshots="second")
    assert "1 refused-rollback" in str(caught.value)
    assert fed.ledger("East").history() == []


def test_a_damaged_ledger_stops_its_site_alone(federation: Make) -> None:
    fed = federation()

    def damage() -> None:
        for path in fed.home("East").glob("ledger.db*"):
            path.unlink()

    outcome = fed.run(fed.grid(between(1, damage)))
    first, second = (step.statuses for step in outcome.progress)
    assert set(first.values()) == {Status.RELEASED}
    assert second == {**first, "East": Status.FAILED}
    for entry in fed.journal_entries("round")[-1:]:
        assert {item["site"] for item in entry.predicate["joined"]} == {"North", "South"}


def test_without_the_head_the_budget_would_have_been_spent_again(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """The control, and the site's own answer to one order."""
    fed = federation()
    kept = backup(fed, "East")
    fed.run()
    head = fed.ledger("East").log.head().text
    restore(fed, "East", kept)
    model = start(fed.plan)
    order = order_for(fed, "East", model, run="second")
    answer = fed.sites[1].answer(order, model, head)
    assert (answer.status, answer.release) == (Status.REFUSED_ROLLBACK, None)
    assert fed.kinds("East") == []
    assert fed.sites[1].answer(order, model, "").status is Status.RELEASED
    assert fed.kinds("East") == ["reserved", "released"]


@pytest.mark.parametrize("asks", ["head of another log", "rubbish", "forged"])
def test_a_head_that_is_not_the_sites_own_is_refused(
    federation: Make, order_for: Callable[..., Order], start: Any, asks: str
) -> None:
    fed = federation()
    model = start(fed.plan)
    stranger = FileSigner.generate()
    own = fed.ledger("East").log
    head = {
        "head of another log": fed.ledger("North").log.head().text,
        "rubbish": "rubbish",
        "forged": Checkpoint(own.origin, 1, bytes(32)).signed(own.key, stranger).text,
    }[asks]
    answer = fed.sites[1].answer(order_for(fed, "East", model), model, head)
    assert answer.status is Status.REFUSED_ROLLBACK
    assert fed.kinds("East") == []


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_site_that_rewrites_its_ledger_and_goes_on_stops_the_run(
    federation: Make, rounds: int
) -> None:
    """It ignores the head it is shown; the others do not forget."""
    fed = federation(training={"rounds": 3, "steps": 1})
    kept = backup(fed, "East")
    grid = fed.grid(between(rounds, lambda: restore(fed, "East", kept, Brazen)))
    with pytest.raises(EvidenceError, match="the history of a log does not hold") as caught:
        fed.run(grid)
    origin = fed.roster.site("East").ledger.name
    said = str(caught.value)
    for who in ("the coordinator", "site 'North'", "site 'South'"):
        assert any(
            line.strip().startswith(f"{who}: {origin}: ") and ("rolled" in line or "fork" in line)
            for line in said.splitlines()
        ), said
    assert Snapshots(fed.folder / "model").latest().round == rounds
    assert (closed(fed)["how"], closed(fed)["fault"]) == ("failed", "EvidenceError")
    joined = [len(entry.predicate["joined"]) for entry in fed.journal_entries("round")]
    # The round in which it was noticed has no line: nothing came of it.
    assert joined == [3] * rounds
    verdict = fed.verdict()
    assert {fault.site for fault in verdict.faults if fault.rule != "release"} <= {
        "East", "coordinator", None
    }  # fmt: skip
    assert not verdict.ok


def test_a_site_with_one_history_for_each_coordinator_is_seen_by_the_others(
    federation: Make, tmp_path: Path
) -> None:
    """Two coordinators that know nothing of each other; the sites' witnesses know both."""
    shared = tmp_path / "ledgers"
    first = federation(folder="first", ledgers=shared, cap=40.0)
    kept = backup(first, "East")
    first.run()
    restore(first, "East", kept, Brazen)
    second = federation(folder="second", ledgers=shared, cap=40.0)
    second.sites[1] = second.restart("East", kind=Brazen)
    assert second.roster.coordinator != first.roster.coordinator
    with pytest.raises(EvidenceError) as caught:
        second.run(run="second")
    assert first.roster.site("East").ledger.name in str(caught.value)
    # The control: without what the witnesses remember nobody sees it.
    third = federation(folder="third", ledgers=shared, cap=40.0)
    for name in SITES:
        (shared / name / "witness.json").unlink()
    third.sites = [third.restart(name, kind=Brazen) for name in SITES]
    assert len(third.run(run="third").progress) == 2


def test_a_site_that_releases_nothing_is_accused_of_nothing(
    federation: Make, tmp_path: Path
) -> None:
    """Under a second coordinator, whose witness remembers nothing, it shows how its log grew."""
    shared = tmp_path / "ledgers"
    first = federation(folder="first", ledgers=shared, cap=40.0)
    first.run()
    second = federation(folder="second", ledgers=shared, cap=40.0)
    second.ledger("East").refuse_plan(second.plan.digest, ["Ada"])
    outcome = second.run(run="second")
    assert [step.statuses["East"] for step in outcome.progress] == [Status.REFUSED_PLAN] * 2
    assert all("not cosigned" not in second.log(site.name) for site in second.sites)


def test_a_site_that_shows_another_ledger_than_it_signs_for(federation: Make) -> None:
    """A second ledger under another key: the roster knows the first key only."""
    fed = federation()
    elsewhere = SimulatedFederation(fed.plan, fed.folder.with_name("elsewhere"))
    elsewhere.found()
    other = elsewhere.ledger("East")

    class Double(Site):
        def shown(self, ask: LogQuery) -> dict[str, Any]:
            answer = super().shown(ask)
            return {**answer, "evidence": other.log.evidence(ask.since).to_json()}

    fed.sites[1].__class__ = Double
    with pytest.raises(EvidenceError, match="the presented head is of another log"):
        fed.run()


# --- releases and logs ------------------------------------------------------------------------


def showing(
    fed: Any, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> InProcessGrid:
    """A grid in which what one site says about logs is changed on the way."""
    number = [site.name for site in fed.sites].index(name) + 1

    class Changed(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = []
            for reply in super().send_and_receive(messages, timeout=timeout):
                if reply.metadata.src_node_id == number and SHOW in reply.content:
                    shown = change(decode_show(reply.content))
                    reply.content[SHOW] = encode_show(shown)[SHOW]
                replies.append(reply)
            return replies

    return fed.grid(Changed)  # type: ignore[no-any-return]


def test_a_release_whose_log_is_not_shown_is_not_joined(federation: Make) -> None:
    fed = federation()
    outcome = fed.run(showing(fed, "East", lambda answer: {"status": "present"}))
    for step in outcome.progress:
        assert step.statuses["East"] is Status.FAILED
        assert set(step.spent) == {"North", "South"}
    # It is in the ledger and paid for; an auditor sees that it was not used.
    verdict = fed.verdict()
    assert "2 releases are neither aggregated nor published" in " ".join(verdict.notes)


class Counting(InProcessGrid):
    """Counts exchanges, and keeps away what is shown beside releases where it is told to."""

    exchanges: list[str]
    is_older = False

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        if messages:
            self.exchanges.append(messages[0].metadata.message_type)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if self.is_older and reply.metadata.message_type == "train" and SHOW in reply.content:
                del reply.content[SHOW]
        return replies


@pytest.mark.parametrize("is_older", [False, True])
def test_a_release_brings_its_proof_or_is_asked_for_it(federation: Make, is_older: bool) -> None:
    """A round is two exchanges; with sites that bring no proof it is three, and stands as well."""
    fed = federation()
    grid = type("Grid", (Counting,), {"exchanges": [], "is_older": is_older})
    outcome = fed.run(fed.grid(grid))
    for step in outcome.progress:
        assert set(step.statuses.values()) == {Status.RELEASED}
    first = grid.exchanges.index("train")
    wanted = ["train", "query.show", "query.show"] if is_older else ["train", "query.show"]
    assert grid.exchanges[first : first + 2 * len(wanted)] == 2 * wanted
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_what_is_shown_beside_a_release_and_cannot_be_read_is_asked_for(federation: Make) -> None:
    fed = federation()

    class Garbled(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for reply in replies:
                if reply.metadata.message_type == "train":
                    assert SHOW in reply.content
                    reply.content[SHOW] = ConfigRecord({"json": "[" * 9})
            return replies

    for step in fed.run(fed.grid(Garbled)).progress:
        assert set(step.statuses.values()) == {Status.RELEASED}


@pytest.mark.parametrize("told", ["other", "none", "no digest"])
def test_sites_with_different_code_do_not_begin_a_run(federation: Make, told: str) -> None:
    """What no verifier would take costs nobody anything; a site that cannot tell is let in."""
    fed = federation()
    code = {"other": f"sha256:{'0' * 64}", "none": "", "no digest": "sha256:\x1b"}[told]
    grid = showing(fed, "East", lambda answer: {**answer, "code": code})
    if told != "other":
        assert len(fed.run(grid).progress) == 2
        return
    with pytest.raises(RunError, match="the sites have different code") as caught:
        fed.run(grid)
    assert f"{code}: East" in str(caught.value)
    assert all("reserved" not in fed.kinds(site.name) for site in fed.sites)
    # The control: the same sites, once all have the same code.
    assert len(fed.run(run="again", snapshots="again").progress) == 2


@pytest.mark.parametrize("place", ["leaf", "path", "number", "nothing"])
def test_a_release_that_is_not_proved_is_not_joined(federation: Make, place: str) -> None:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        inclusion = dict(answer["evidence"]["inclusion"])
        for number, (leaf, path) in list(inclusion.items()):
            del inclusion[number]
            if place == "leaf":
                inclusion[number] = [leaf.replace("a", "b", 1), path]
            elif place == "path":
                inclusion[number] = [leaf, path[::-1] + path[:1]]
            elif place == "number":
                inclusion[str(int(number) - 1)] = [leaf, path]
        answer["evidence"]["inclusion"] = inclusion
        return answer

    fed = federation()
    outcome = fed.run(showing(fed, "East", change))
    assert [step.statuses["East"] for step in outcome.progress] == [Status.FAILED] * 2
    for entry in fed.journal_entries("round"):
        assert {item["site"] for item in entry.predicate["joined"]} == {"North", "South"}


RUBBISH: dict[str, Any] = {
    "nothing": {},
    "types": {"status": 5, "evidence": 5, "seen": 5, "lines": 5, "faults": 5},
    "lists": {"status": [], "evidence": [], "seen": [], "lines": [], "faults": []},
    "texts": {"status": "x", "evidence": "x", "seen": "x", "lines": "x", "faults": "x"},
    "inside": {
        "evidence": {"note": 5, "proofs": [], "inclusion": "x", "rotations": {}},
        "seen": {"a": 5, "b": {}, "c": {"note": 5}, "d": {"note": "\ud800"}},
        "lines": {"a": 5, "b": "x\n", "c": None},
    },
    "half": {"evidence": {"note": "\ud800\n1\nAAAA\n\n", "proofs": {}, "inclusion": {},
                          "rotations": []}},
    "rotations": {"evidence": {"note": "x", "proofs": {}, "inclusion": {},
                               "rotations": [[0, "[" * 99_999, []], [1, "{}", []]]}},
}  # fmt: skip


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_site_that_answers_rubbish_does_not_bring_the_coordinator_down(
    federation: Make, rubbish: str
) -> None:
    fed = federation()
    try:
        outcome = fed.run(showing(fed, "East", lambda answer: RUBBISH[rubbish]))
    except EvidenceError as fault:
        # A head that is no head is a fault of that log, and says whose.
        assert fed.roster.site("East").ledger.name in str(fault)
    else:
        assert {step.statuses["East"] for step in outcome.progress} == {Status.FAILED}


def test_what_a_site_says_of_others_cannot_write_on_the_terminal(federation: Make) -> None:
    fed = federation()
    grid = showing(
        fed, "East", lambda answer: {**answer, "faults": {"a": "\x1b[2Jall is well\n" * 200}}
    )
    with pytest.raises(EvidenceError) as caught:
        fed.run(grid)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert "site 'East'" in str(caught.value)


def test_a_made_up_head_of_another_site_names_who_showed_it(federation: Make) -> None:
    """Else one site could have any other one refused as rolled back."""
    fed = federation()
    north = fed.roster.site("North").ledger
    forged = Checkpoint(north.name, 10**9, bytes(32)).signed(north, FileSigner.generate())

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        seen = {"size": forged.size, "root": forged.root.hex(), "note": forged.text}
        return {**answer, "seen": {north.name: seen}}

    with pytest.raises(EvidenceError, match="site 'East' remembers a head"):
        fed.run(showing(fed, "East", change))
    assert "refused-rollback" not in fed.log("North")


# --- witnesses --------------------------------------------------------------------------------


def test_junk_on_a_head_is_no_cosignature(federation: Make) -> None:
    """Neither in the journal nor in what a site keeps for its own auditor."""
    fed = federation()
    junk = [
        SignatureLine(key.name, key.id, bytes(72)) for key in fed.roster.witnesses.values()
    ] + [SignatureLine("privet.witness/Nobody/0", bytes(4), bytes(72))]  # fmt: skip

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        note = answer["evidence"]["note"]
        answer["evidence"]["note"] = Checkpoint.parse(note).with_cosignatures(junk).text
        return answer

    fed.run(showing(fed, "East", change))
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    for name in SITES:
        kept = fed.ledger(name).log.cosigned()
        assert {line.name for line in kept.lines[1:]} <= set(fed.roster.witnesses)


def test_a_coordinator_cannot_plant_lines_in_a_sites_papers(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    fed = federation()
    fed.run()
    log = fed.ledger("East").log
    junk = [SignatureLine(f"privet.witness/{n}/0", bytes(4), bytes(72)) for n in range(30)]
    head = log.head().with_cosignatures(junk).text
    log.store.close()
    with fed.sites[1].ledger.log.store.transaction():
        for kind in ("facts", "papers"):
            fed.sites[1].ledger.log.store._open().execute(
                f"DELETE FROM {kind} WHERE name != 'head'"
            )
    assert fed.ledger("East").log.cosigned() is None
    fed.sites[1].shown(LogQuery(head))
    assert fed.ledger("East").log.cosigned() == log.head()


def quiet(*names: str) -> type[InProcessGrid]:
    """A grid in which the witnesses of some sites never cosign."""

    class Quiet(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = []
            for reply in super().send_and_receive(messages, timeout=timeout):
                site = SITES[reply.metadata.src_node_id - 1]
                if reply.metadata.message_type == "query.show" and site in names:
                    answer = decode_show(reply.content)
                    reply.content = encode_show({**answer, "lines": {}})
                replies.append(reply)
            return replies

    return Quiet


def test_without_a_quorum_of_witnesses_a_round_does_not_stand(federation: Make) -> None:
    fed = federation()
    assert fed.roster.quorum == 2
    fed.run(fed.grid(quiet("East")))
    other = federation(folder="other")
    with pytest.raises(EvidenceError, match="1 witnesses cosigned .* 2 are needed"):
        other.run(other.grid(quiet("East", "South")))
    assert Snapshots(other.folder / "model").latest() is None


def test_a_log_is_not_witnessed_by_its_owner(federation: Make) -> None:
    """East cosigns its own log; that is no witness more."""
    fed = federation()
    own = fed.roster.site("East").ledger.name
    site = fed.sites[1]

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        if "evidence" in answer:
            head = Checkpoint.parse(answer["evidence"]["note"])
            line = head.cosignature(site.witness.key, site.witness._signer, 1_800_000_000)
            answer["lines"][own] = str(line)
        return answer

    fed.run(showing(fed, "East", change))
    for entry in fed.journal_entries("round"):
        cosigners = {item["log"]: item["cosigners"] for item in entry.predicate["witnessed"]}
        assert site.witness.key.name not in cosigners[own]
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


class Away(InProcessGrid):
    """South's replies about logs are lost for some rounds; South itself saw everything."""

    lost = range(0)
    shows = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if replies and replies[0].metadata.message_type == "query.show":
            type(self).shows += 1
            if self.shows in self.lost:
                return [reply for reply in replies if reply.metadata.src_node_id != 3]
        return replies


def test_a_witness_whose_answers_were_lost_is_not_called_a_liar(federation: Make) -> None:
    """It remembers heads that the coordinator does not know it has seen."""
    fed = federation(training={"rounds": 8, "steps": 1}, cap=60.0, privacy={"epsilon": 60.0})
    away = type("AwayOnce", (Away,), {"lost": range(4, 14)})
    outcome = fed.run(fed.grid(away))
    assert len(outcome.progress) == 8
    assert outcome.progress[-1].statuses["South"] is Status.RELEASED
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_the_last_size_that_a_witness_told_is_never_dropped(federation: Make) -> None:
    from privet.server.evidence.heads import RememberedSizes

    sizes = RememberedSizes()
    sizes.saw(3)
    for size in range(10, 1000):
        sizes.may_have_seen(size)
    assert 3 in sizes.all
    assert {998, 999} < sizes.all
    assert len(sizes.all) < 100
    sizes.saw(999)
    assert sizes.all == {999}


# --- a coordinator that lies --------------------------------------------------------------------


def forged(fed: Any, order: Order, signer: FileSigner, keyid: str | None = None) -> Order:
    signature = base64.b64encode(signer.sign(pae(ORDER_TYPE, order.encode()))).decode()
    return replace(
        order, keyid=keyid or fingerprint(signer.public).partition(":")[2], signature=signature
    )


@pytest.mark.parametrize(
    "how",
    ["unsigned", "no-keyid", "stranger", "strangers-under-its-name", "altered", "cut", "rubbish",
     "other-type"],
)  # fmt: skip
def test_an_order_that_the_coordinator_did_not_sign(
    federation: Make, order_for: Callable[..., Order], start: Any, how: str
) -> None:
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    stranger = FileSigner.generate()
    as_entry = fed.journal._orders.sign(pae("application/vnd.in-toto+json", order.encode()))
    sent = {
        "unsigned": replace(order, keyid="", signature=""),
        "no-keyid": replace(order, keyid=""),
        "stranger": forged(fed, order, stranger),
        "strangers-under-its-name": forged(fed, order, stranger, order.keyid),
        "altered": replace(order, attempt=2),
        "cut": replace(order, signature=order.signature[:-4]),
        "rubbish": replace(order, signature="é\ud800"),
        "other-type": replace(order, signature=base64.b64encode(as_entry).decode()),
    }[how]
    answer = fed.sites[0].answer(sent, model)
    assert (answer.status, answer.release) == (Status.REFUSED_SIGNATURE, None)
    assert fed.kinds("North") == []
    assert fed.opened == []
    # The control: as it was signed.
    assert fed.sites[0].answer(order, model).status is Status.RELEASED


def test_an_order_to_another_site_is_refused_and_not_noted(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """Who carries messages could else write entries into a ledger that no journal explains."""
    fed = federation()
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "East", model), model)
    assert answer.status is Status.REFUSED_PLAN
    assert fed.kinds("North") == []


def test_two_models_for_one_round_are_refused_and_seen(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """The site answers one; its ledger keeps what the coordinator would not show."""
    fed = federation()
    fed.run()
    model = start(fed.plan)
    other = {name: array + np.float32(1) for name, array in model.items()}
    answer = fed.sites[0].answer(order_for(fed, "North", other), other)
    assert answer.status is Status.REFUSED_CONFLICT
    assert fed.charged("North") == 2
    assert fed.kinds("North")[-1] == "refused"
    faults = [(fault.site, fault.rule) for fault in fed.verdict().faults]
    assert ("North", "order") in faults


def test_a_roster_that_the_coordinator_swapped_at_a_site(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """The policy pins the order key: another roster makes nobody entitled."""
    fed = federation()
    model = start(fed.plan)
    thief = FileSigner.generate()
    chief = fed.roster.coordinator
    false = replace(chief, orders=replace(chief.orders, public=thief.public))
    site = fed.sites[0]
    site.admission._order_key = false.orders
    order = forged(fed, order_for(fed, "North", model), thief)
    answer = site.answer(order, model)
    assert answer.status is Status.REFUSED_SIGNATURE
    assert "may not ask here" in fed.log("North")
    assert fed.kinds("North") == []


def test_a_roster_that_the_coordinator_swapped_in_the_bundle(federation: Make) -> None:
    """A federation of the coordinator's own making, verified by the real fingerprints."""
    fed, fake = federation(), federation(folder="fake")
    fake.run()
    pinned = fed.folder / "roster-fingerprints.json"
    from privet.privacy.audit.verify import verify

    verdict = verify(fake.bundle(), pinned, processes=1)
    assert {fault.rule for fault in verdict.faults} == {"roster"}
    # The control: without fingerprints that came another way nothing is seen, and it says so.
    unpinned = verify(fake.bundle("again.bundle"), None, processes=1)
    assert (unpinned.ok, unpinned.roster) == (True, "unpinned")


def test_a_journal_that_was_rolled_back_is_seen_by_the_sites(federation: Make) -> None:
    fed = federation(cap=60.0)
    fed.run()
    office = fed.folder / "coordinator"
    kept = fed.folder.with_name("office")
    shutil.copytree(office, kept)
    fed.run(run="second", snapshots="second")
    # All that the coordinator has is restored; its own witness forgot, too.
    shutil.rmtree(office)
    shutil.copytree(kept, office)
    fed.__dict__.pop("journal", None)
    with pytest.raises(EvidenceError) as caught:
        fed.run(run="third", snapshots="third")
    journal = fed.roster.coordinator.journal.name
    for name in SITES:
        assert f"site '{name}': {journal}: " in str(caught.value)


def test_a_run_that_has_ended_does_not_go_on_unrecorded(federation: Make) -> None:
    """After a failure was noted, rounds would be trained that no journal knows."""
    fed = federation()
    with pytest.raises(EvidenceError):
        fed.run(fed.grid(quiet("East", "South")))
    spent = [fed.ledger(name).log.head() for name in SITES]
    with pytest.raises(RunError, match="'tiny-run' has ended"):
        fed.run()
    done = federation(folder="done")
    done.run()
    with pytest.raises(RunError, match="'tiny-run' has ended"):
        done.run(snapshots="elsewhere")
    assert [fed.ledger(name).log.head() for name in SITES] == spent


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(
    federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation()
    with monkeypatch.context() as patched:
        patched.setattr(EvidenceCollector, "receive", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fed.run()
    spent = [fed.ledger(name).log.head() for name in SITES]
    for change in ({"training": {"steps": 4}}, {"model": {"options": {"scale": 2.0}}}):
        other = replace(fed, plan=fed.plan.changed(**change))
        with pytest.raises(RunError, match="'tiny-run' was begun with plan"):
            other.run(snapshots="elsewhere")
    assert [fed.ledger(name).log.head() for name in SITES] == spent
    fed.run()
    assert fed.verdict().ok


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_is_in_the_ledger_and_in_the_journal(federation: Make) -> None:
    fed = federation()
    ledger = fed.ledger("East")
    close_budget(ledger, next(iter(ledger.state.populations)))
    outcome = fed.run()
    assert [step.statuses["East"] for step in outcome.progress] == [Status.REFUSED_PAUSED] * 2
    assert fed.kinds("East") == ["refused"] * 2
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_an_order_that_was_refused_stays_refused(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """A coordinator that starts anew asks again; the ledger must not answer in two ways."""
    fed = federation(training={"rounds": 4})
    model, plan = start(fed.plan), fed.plan.digest
    order = order_for(fed, "East", model)
    operator = fed.ledger("East")
    operator.refuse_plan(plan, ["Ada"])
    assert fed.sites[1].answer(order, model).status is Status.REFUSED_PLAN
    operator.approve(plan, ["Ada"], "manual")
    assert fed.sites[1].answer(order, model).status is Status.REFUSED_PLAN
    assert fed.restart("East").answer(order, model).status is Status.REFUSED_PLAN
    assert fed.kinds("East") == ["refused"]
    # Its first order stays refused; who refused a plan is asked again two rounds later.
    said = [step.statuses["East"] for step in fed.run().progress]
    assert said == [Status.REFUSED_PLAN] * 2 + [Status.RELEASED] * 2
    assert fed.kinds("East") == ["refused", *["reserved", "released"] * 2]
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_a_plan_that_the_operator_refused_is_not_trained(federation: Make) -> None:
    """Also where the policy lists it: the newest word of the operator holds."""
    fed = federation()
    fed.ledger("East").refuse_plan(fed.plan.digest, ["Ada"])
    outcome = fed.run()
    assert [step.statuses["East"] for step in outcome.progress] == [Status.REFUSED_PLAN] * 2
    assert "reserved" not in fed.kinds("East")
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_the_policy_of_the_data_set_that_is_opened_decides(
    federation: Make, order_for: Callable[..., Order], start: Any
) -> None:
    """A plan that fits another data set of the site does not open this one (H20, H32)."""
    from privet.client.admission import AdmissionControl
    from privet.privacy.policy import Policy

    fed = federation()
    model = start(fed.plan)
    key = fed.roster.coordinator.orders.fingerprint
    mine = Policy.for_simulation(fed.plan, "North", key).model_dump(mode="json")
    mine["populations"]["staff"] = {
        "unit": "person", "relation": "add_or_remove_one", "epsilon": 20.0, "delta": 1e-4,
        "max_records": 4,
    }  # fmt: skip
    mine["data"]["payroll"] = {
        "population": "staff", "nominal_size": 60, "person_column": "who",
        "disjoint": "nobody on the payroll is a patient",
    }  # fmt: skip
    policy = Policy.parse(mine)
    statuses = {}
    for name in ("North", "payroll"):
        site = fed.restart("North")
        site.admission = AdmissionControl(policy, site.ledger, fed.roster, name)
        site.admission.open()
        order = order_for(fed, "North", model, run=f"run-{name}")
        statuses[name] = site.answer(order, model).status
    assert statuses == {"North": Status.RELEASED, "payroll": Status.REFUSED_POLICY}
    assert fed.ledger("North").history("staff") == []


def test_the_roster_of_a_run_is_read_back_as_it_was_made(federation: Make) -> None:
    fed = federation()
    assert Roster.load(fed.folder / "roster.json") == fed.roster
    assert fed.parties.roster() == fed.roster
    logs: Mapping[str, Key] = fed.roster.logs
    assert len(logs) == len(fed.roster.witnesses) == 4


def test_a_recorder_signs_orders_that_are_on_disk_before_they_leave(federation: Make) -> None:
    fed = federation()
    on_disk: list[int] = []

    class Looking(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            if messages and messages[0].metadata.message_type == "train":
                collector: EvidenceCollector = fed.parties.collector(fed.roster)
                on_disk.append(len(collector.journal.log.store.papers("order")))
            return super().send_and_receive(messages, timeout=timeout)

    fed.run(fed.grid(Looking))
    assert on_disk == [3, 6]


def test_evidence_is_data_and_not_code(federation: Make) -> None:
    """What crosses between sites is JSON of texts and numbers."""
    fed = federation()
    shown = fed.sites[0].shown(LogQuery())
    assert Evidence.from_json(decode_show(encode_show(shown))["evidence"]).note
