"""Lies that were seen in the field, planted, and the layer that catches each.

=====================================  ==================================================
lie                                    caught by
=====================================  ==================================================
ε declared instead of derived          verifier (``event``); what a site says is not used
a fresh accountant each round          ledger: the history is on disk, by population
sensitivity that is not the clip       mechanism (derives it); verifier (``event``)
the sampler was swapped                ledger (``does-not-fit``); verifier (``code``)
a release without a reservation        ledger; collector; verifier (``release``)
a raw tensor on the wire               wire
two models for one round               site (``refused-conflict``); verifier (``order``)
an old backup was restored             site (``refused-rollback``); witnesses; verifier
the same patients under a new name     ledger (H32); verifier (``population``)
the coordinator swapped the roster     site's policy; verifier (``roster``)
=====================================  ==================================================

Each has its control: the same thing without the lie passes, or the measure that misses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import torch
import verify_kit
from dp_accounting import rdp
from ledger_kit import PATIENTS, VISITS, asked, bare, budget
from verify_kit import Federation, gaussian, repeated, sampled

from privet.client.training.trainer import mechanism
from privet.common.errors import BudgetExceededError, LedgerError, NotReleasableError
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import encode_reply
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.accounting.pld import epsilon
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.statement import Entry
from privet.privacy.mechanism.dpsgd import DpSgd

Make = Callable[..., Any]
NORTH = verify_kit.SITES[0]


def verdict(folder: Path, fed: Federation) -> Verdict:
    """The verifier's answer to a federation of the kit."""
    folder.mkdir(exist_ok=True)
    pinned = verify_kit.write_roster(folder / "roster.json", fed.fingerprints())
    return verify(verify_kit.write(folder / "bundle", fed.bundle()), pinned, processes=1)


def rules(answer: Verdict) -> set[tuple[str, str | None]]:
    return {(fault.rule, fault.site) for fault in answer.faults}


def changing(kind: str, site: str, **fields: Any) -> verify_kit.Tweak:
    """Write other values into every entry of a kind, before it is signed."""

    def tweak(name: str, entry: str, predicate: dict[str, Any]) -> None:
        if (name, entry) == (site, kind):
            predicate.update(fields)

    return tweak


def test_the_kit_without_a_lie(tmp_path: Path) -> None:
    fed = Federation()
    fed.run()
    assert verdict(tmp_path, fed).ok


# --- ε declared instead of derived -----------------------------------------------------------


def test_a_weaker_event_than_the_plan_fixes(tmp_path: Path) -> None:
    """A site that writes more noise into its ledger than the plan has makes ε look small."""
    plan = verify_kit.plan_of()
    strong = repeated(sampled(0.5, gaussian(400.0, 0.5)), 3)
    fed = Federation(tweak=changing("reserved", NORTH, event=strong))
    fed.run(plan=plan)
    assert ("event", NORTH) in rules(verdict(tmp_path, fed))


def test_an_epsilon_that_a_site_declares_is_not_used(federation: Make) -> None:
    """What comes with a release is what the site says; the verifier looks at events only."""
    from privet.client.site import Answer, Site

    class Modest(Site):
        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            answer = super().answer(order, model, head)
            if answer.release is None:
                return answer
            facts = {**answer.release.facts}
            facts["spent"] = {**facts["spent"], "epsilon": 0.01}
            return Answer(
                answer.status, Release(answer.release.order, facts, answer.release.arrays)
            )

    fed = federation(site=Modest)
    outcome = fed.run()
    assert outcome.progress[-1].spent["East"]["epsilon"] == 0.01
    answer = fed.verdict()
    for found in answer.sites:
        truth = epsilon([ev.Repeated(mechanism(fed.plan).event, 2)], found.delta)
        assert found.epsilon == pytest.approx(truth, rel=1e-6)
        assert found.epsilon > 1


def test_a_plan_that_declares_less_than_its_noise_costs(plan_value: Make) -> None:
    declared = plan_value(privacy={"epsilon": 1.0, "noise_multiplier": 0.5, "delta": 1e-4})
    with pytest.raises(BudgetExceededError, match="would cost"):
        calibrated(Plan.parse(declared))


# --- a fresh accountant each round ------------------------------------------------------------


def test_a_fresh_accountant_each_round(federation: Make, order_for: Make, start: Make) -> None:
    """Flower's Opacus example: 2.48 is printed in each of 20 rounds, 7.42 is composed (H9).

    Its figures are of the RDP accountant; ours are smaller, and grow by the same factor.
    """

    def theirs(rounds: int) -> float:
        engine = rdp.RdpAccountant()
        step = dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.0))
        engine.compose(dp.SelfComposedDpEvent(step, 20 * rounds))
        return float(engine.get_epsilon(1e-5))

    assert (f"{theirs(1):.2f}", f"{theirs(20) - 0.005:.2f}") == ("2.48", "7.42")
    fed = federation(
        training={"rounds": 20, "steps": 20, "sample_rate": 0.05},
        privacy={"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.0},
        sites=[{"name": "North", "nominal_size": 60}],
    )
    model = start(fed.plan)
    said = []
    for number in range(1, 4):
        # A process of its own for each round, as a ClientApp on Flower may be.
        site = fed.restart("North")
        answer = site.answer(order_for(fed, "North", model, round=number), model)
        said.append(answer.release.facts["spent"]["epsilon"])
    one = mechanism(fed.plan).event
    assert said == pytest.approx([epsilon([ev.Repeated(one, n)], 1e-5) for n in (1, 2, 3)])
    assert said[0] < said[1] < said[2]
    # And the whole: three times what a fresh accountant would print in the last round.
    whole = epsilon([ev.Repeated(one, 20)], 1e-5)
    assert whole / said[0] == pytest.approx(theirs(20) / theirs(1), rel=0.15)


def test_a_ledger_begun_anew_each_round_does_not_verify(tmp_path: Path) -> None:
    """Each round in a population of its own, so that each ε is one round's."""
    names = iter(range(100))

    def fresh(name: str, kind: str, predicate: dict[str, Any]) -> None:
        if name == NORTH and kind == "reserved":
            predicate["population"] = f"patients-{next(names)}"

    fed = Federation(tweak=fresh)
    fed.run()
    assert ("population", NORTH) in rules(verdict(tmp_path, fed))


# --- sensitivity that is not the clip ------------------------------------------------------------


def test_a_sensitivity_that_is_not_the_clip(tmp_path: Path) -> None:
    """FLIP #833: ε declared 10, clip 1.0, sensitivity 1e-4; the real ε is about 2e8."""
    honest, said = DpSgd(1.0, 4.0, clip=0.5, steps=1).event, gaussian(2.0, 0.5 * 1e-4)
    assert dict(ev.group([honest])) == {ev.Gaussian(2.0, 0.5): 1}
    lie = repeated(sampled(0.5, said), 3)
    fed = Federation(tweak=changing("reserved", NORTH, event=lie))
    fed.run()
    answer = verdict(tmp_path, fed)
    assert ("event", NORTH) in rules(answer)


def test_a_sensitivity_cannot_be_set(federation: Make) -> None:
    """The mechanism derives it from the clip; nothing takes another one."""
    for clip in (1e-4, 0.5, 3.0):
        event = DpSgd(0.3, 2.0, clip=clip, steps=2).event
        ((step, _),) = ev.group([event])
        assert isinstance(step, ev.PoissonSampled)
        assert step.event == ev.Gaussian(2.0 * clip, clip)
    with pytest.raises(TypeError, match="sensitivity"):
        DpSgd(0.3, 2.0, clip=1.0, steps=2, sensitivity=1e-4)  # type: ignore[call-arg]


# --- the sampler was swapped ---------------------------------------------------------------------


def test_another_sampler_than_was_paid_for(federation: Make, order_for: Make, start: Make) -> None:
    """The object that draws the batch emits the event; it does not fit what was reserved."""
    fed = federation()
    site, model = fed.sites[0], start(fed.plan)
    paid = site._trainer.mechanism

    class Greedy(type(paid)):  # type: ignore[misc]
        """Costs what the plan says, and draws everybody."""

        event = paid.event

        def release(self, *given: Any, **more: Any) -> Any:
            return DpSgd(1.0, paid.noise_multiplier, paid.clip, paid.steps).release(*given, **more)

    site._trainer._mechanism = Greedy(
        paid.sample_rate, paid.noise_multiplier, paid.clip, paid.steps
    )
    answer = site.answer(order_for(fed, "North", model), model)
    assert (answer.status, answer.release) == (Status.FAILED, None)
    assert fed.kinds("North") == ["reserved", "aborted"]
    assert fed.answers("North")[-1].predicate["reason"] == "does-not-fit"
    assert fed.charged("North") == 1


def test_other_code_than_the_others_run(tmp_path: Path) -> None:
    """A shuffled batch under the honest event is other code, and the code has a digest."""
    fed = Federation(tweak=changing("reserved", NORTH, code=verify_kit.digest(b"shuffled")))
    fed.run()
    assert "code" in {fault.rule for fault in verdict(tmp_path, fed).faults}


# --- a release without a reservation ---------------------------------------------------------------


def test_a_release_without_a_reservation(tmp_path: Path) -> None:
    fed = Federation()
    plan = verify_kit.plan_of()
    name = fed.approve(plan)
    _, order = fed.order("run-1", NORTH, 1, "train", name, verify_kit.digest(b"model"))
    fed.release(NORTH, order, 5, verify_kit.train_event(plan))
    assert ("release", NORTH) in rules(verdict(tmp_path, fed))


def test_a_release_that_was_never_paid_for_is_not_joined(federation: Make) -> None:
    """A site that answers without its ledger: the coordinator finds nothing in its log."""
    from privet.client.site import Answer, Site

    class Free(Site):
        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            arrays = {name: np.zeros_like(array) for name, array in model.items()}
            facts = {
                "site": self.name, "event": {}, "digest": digest_arrays(arrays),
                "spent": self.ledger.spent().to_dict(), "reproducible": False,
            }  # fmt: skip
            return Answer(Status.RELEASED, Release(order.digest, facts, arrays))

    fed = federation()
    fed.sites[1].__class__ = Free
    outcome = fed.run()
    assert [step.statuses["East"] for step in outcome.progress] == [Status.FAILED] * 2
    assert fed.kinds("East") == []
    joined = [entry.predicate["joined"] for entry in fed.journal_entries("round")]
    assert all({item["site"] for item in items} == {"North", "South"} for items in joined)


# --- a raw tensor on the wire -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        torch.ones(3),
        {"w": torch.ones(3)},
        {"w": np.ones(3, np.float32)},
        torch.nn.Linear(2, 2).state_dict(),
        [np.ones(3, np.float32)],
    ],
    ids=["tensor", "tensors", "arrays", "state", "list"],
)
def test_a_raw_tensor_has_no_encoding(raw: Any) -> None:
    with pytest.raises(NotReleasableError, match="has no wire encoding"):
        encode_reply("North", Status.RELEASED, raw)


# --- two models for one round ---------------------------------------------------------------------------


def test_two_models_for_one_round(federation: Make, order_for: Make, start: Make) -> None:
    """A difference of two releases of one batch would have less noise than was paid for."""
    fed = federation()
    fed.run()
    model = start(fed.plan)
    other = {name: array + np.float32(1) for name, array in model.items()}
    answer = fed.sites[0].answer(order_for(fed, "North", other), other)
    assert answer.status is Status.REFUSED_CONFLICT
    assert ("order", "North") in rules(fed.verdict())


def test_two_models_for_one_round_in_the_journal(tmp_path: Path) -> None:
    """A coordinator that notes one model and orders another one."""

    def tweak(name: str, kind: str, predicate: dict[str, Any]) -> None:
        if (name, kind) == (NORTH, "order"):
            predicate["model"] = verify_kit.digest(b"for North alone")

    fed = Federation(tweak=tweak)
    fed.run()
    assert "model" in {fault.rule for fault in verdict(tmp_path, fed).faults}


# --- an old backup was restored --------------------------------------------------------------------------


def test_an_old_backup_was_restored(tmp_path: Path) -> None:
    """The ledger that is handed in is older than the heads that others cosigned."""
    fed = Federation()
    fed.run()
    log = fed.sites[NORTH]
    size = sorted(log.notes)[0]
    del log.leaves[size:]
    answer = verdict(tmp_path, fed)
    assert {rule for rule, site in rules(answer) if site == NORTH} & {"tree", "consistency"}
    # The control: with every entry that the heads stand for.
    honest = Federation()
    honest.run()
    assert verdict(tmp_path / "honest", honest).ok


# --- the same patients under a new name ---------------------------------------------------------------------


def test_the_same_patients_under_a_new_name(tmp_path: Path) -> None:
    """A site that says nothing about why they are others starts at zero nowhere (H32)."""
    ledger = bare(tmp_path / "site")
    ledger.register(PATIENTS, budget())
    ledger.add_data_set(VISITS, PATIENTS)
    ledger.register("patients-2027", budget())
    with pytest.raises(LedgerError, match="H32"):
        ledger.add_data_set("visits-2027", "patients-2027")
    with pytest.raises(LedgerError, match="not registered"):
        ledger.reserve(asked(data_set="visits-2027"))


def test_the_same_patients_under_a_new_name_in_a_bundle(tmp_path: Path) -> None:
    fed = Federation()
    log = fed.sites[NORTH]
    log.add(
        "population", population="patients-2027", unit="record", relation="add_or_remove_one",
        epsilon="8.0", delta="1e-05", max_records=1,
    )  # fmt: skip
    log.add("data-set", data_set="er-2027", population="patients-2027", disjoint="")
    fed.run()
    assert ("population", NORTH) in rules(verdict(tmp_path, fed))


# --- the coordinator swapped the roster -----------------------------------------------------------------------


def test_the_coordinator_swapped_the_roster(tmp_path: Path) -> None:
    """A ledger of its own making in a site's name, cosigned by witnesses of its own making."""
    fed = Federation()
    fed.run()
    pinned = fed.fingerprints()
    pinned["sites"][0]["ledger"] = verify_kit.digest(b"the key that North told by telephone")
    roster = verify_kit.write_roster(tmp_path / "roster.json", pinned)
    path = verify_kit.write(tmp_path / "bundle", fed.bundle())
    answer = verify(path, roster, processes=1)
    assert {rule for rule, _ in rules(answer)} == {"roster"}
    # The control: unpinned, it passes, and says that nobody vouched for the keys.
    unpinned = verify(path, None, processes=1)
    assert (unpinned.ok, unpinned.roster) == (True, "unpinned")
    assert any("roster unpinned" in note for note in unpinned.notes)


def test_every_entry_of_an_honest_ledger_is_read_by_its_key(federation: Make) -> None:
    """The control of all of them: the real writer, by the real verifier."""
    fed = federation(metrics={"source": "gate"})
    fed.run()
    assert all(isinstance(entry, Entry) for entry in fed.entries("North"))
    assert fed.verdict().ok
