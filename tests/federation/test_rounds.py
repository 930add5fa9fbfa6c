"""Whole runs: the real apps over the in-process grid, and what goes wrong between them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from federation_kit import Silent
from flwr.app import ConfigRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.client.app import create_app
from privet.client.site import Answer, Site
from privet.client.training.protocol import TrainerOutput
from privet.common.errors import QuorumError, RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import encode_reply
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.release import Release
from privet.privacy.accounting import events as ev
from privet.server.evidence.collector import EvidenceCollector
from privet.server.rounds import Outcome, Progress
from privet.simulations import grid as grid_module
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
WEIGHTS = {"North": 60, "East": 30, "South": 10}


def test_each_round_is_the_weighted_mean_of_the_releases(
    federation: Make, same: Callable[..., bool]
) -> None:
    fed = federation()
    outcome = fed.run()
    assert [step.round for step in outcome.progress] == [1, 2]
    model = initial_model(fed.plan)
    for number in (1, 2):
        joined: Arrays = {}
        for name, weight in WEIGHTS.items():
            for key, update in fed.release(name, number).items():
                part = (model[key] + update) * (weight / 100)
                joined[key] = joined[key] + part if key in joined else part
        model = joined
    assert same(outcome.model, model)


def test_a_run_reports_every_sites_answer_and_what_it_spent(federation: Make) -> None:
    fed = federation()
    outcome = fed.run()
    for step in outcome.progress:
        assert step.statuses == dict.fromkeys(WEIGHTS, Status.RELEASED)
    for name in WEIGHTS:
        ledger = fed.ledger(name)
        assert fed.kinds(name) == ["reserved", "released"] * 2
        assert ledger.history() == [planned_event(fed)]
        assert outcome.progress[-1].spent[name] == ledger.spent().to_dict()
        first, last = (step.spent[name]["epsilon"] for step in outcome.progress)
        assert 0 < first < last <= 20.0


def planned_event(fed: Any) -> ev.Event:
    """One step of the plan, as often as its two rounds have steps."""
    ((step, count),) = ev.group([fed.sites[0]._trainer.mechanism.event])
    return ev.Repeated(step, 2 * count)


def test_replies_in_any_order_give_the_same_bits(
    federation: Make, turned: type[InProcessGrid], same: Callable[..., bool]
) -> None:
    one, other = (federation(folder=name, noise_seed=7) for name in ("one", "other"))
    assert same(one.run().model, other.run(other.grid(turned)).model)


def test_nodes_in_any_order_give_the_same_bits(federation: Make, same: Callable[..., bool]) -> None:
    one, other = (federation(folder=name, noise_seed=7) for name in ("one", "other"))
    other.sites.reverse()
    assert same(one.run().model, other.run().model)


def test_two_runs_of_one_noise_seed_are_the_same_and_of_two_are_not(
    federation: Make, same: Callable[..., bool]
) -> None:
    models = [
        federation(folder=str(number), noise_seed=seed).run().model
        for number, seed in enumerate((7, 7, 8))
    ]
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_two_private_runs_of_one_plan_seed_differ(
    federation: Make, same: Callable[..., bool]
) -> None:
    models = [federation(folder=name, seed=3).run().model for name in ("one", "other")]
    assert not same(models[0], models[1])


def test_two_plain_runs_of_one_plan_seed_are_the_same(
    federation: Make, same: Callable[..., bool]
) -> None:
    models = [federation(folder=name, privacy=None).run().model for name in ("one", "other")]
    assert same(models[0], models[1])


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "fedprox", "proximal_mu": 0.5},
        {"kind": "fedavgm", "options": {"server_momentum": 0.5}},
        {"kind": "fedadam", "options": {"eta": 0.1, "beta_1": 0.9}},
        {"kind": "fedyogi"},
        {"kind": "fedadagrad"},
    ],
    ids=lambda value: str(value["kind"]),
)
def test_every_strategy_runs(
    federation: Make, same: Callable[..., bool], strategy: dict[str, Any]
) -> None:
    plain = federation(folder="plain", noise_seed=7).run().model
    fed = federation(noise_seed=7, strategy=strategy)
    model = fed.run().model
    assert all(np.isfinite(array).all() for array in model.values())
    assert not same(model, plain)


def test_fedprox_pulls_to_the_start_of_the_round(
    federation: Make, same: Callable[..., bool]
) -> None:
    """Against logistic regression by hand: full batches, two steps, no noise."""
    mu, rate = 0.8, 0.5
    training = {"rounds": 1, "steps": 2, "sample_rate": 1.0, "learning_rate": rate}
    site = {"name": "North", "nominal_size": 60}
    models = {}
    for kind, value in (("fedavg", 0.0), ("fedprox", 0.0), ("fedprox-pulled", mu)):
        fed = federation(
            folder=kind, privacy=None, training=training, sites=[site],
            strategy={"kind": kind.split("-")[0], "proximal_mu": value},
        )  # fmt: skip
        models[kind] = fed.run().model
    assert same(models["fedavg"], models["fedprox"])
    frame = fed.frames["North"]
    frame = frame.iloc[: len(frame) - len(frame) // 5]
    colour = frame["colour"].map({"red": 1, "blue": 2}).to_numpy()
    inputs = np.column_stack(
        [frame["x1"], frame["x2"], np.zeros((len(frame), 2)), np.eye(3)[colour]]
    )
    inputs[:, :2] = np.clip(inputs[:, :2], -4, 4)
    truth = np.eye(2)[frame["y"]]
    weights, bias = np.zeros((2, 7)), np.zeros(2)
    for _ in range(2):
        logits = inputs @ weights.T + bias
        guess = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = (guess - truth).T @ inputs / 60 + mu * weights
        shift = (guess - truth).sum(0) / 60 + mu * bias
        weights, bias = weights - rate * slope, bias - rate * shift
    np.testing.assert_allclose(models["fedprox-pulled"]["head.weight"], weights, atol=1e-5)
    np.testing.assert_allclose(models["fedprox-pulled"]["head.bias"], bias, atol=1e-5)


def test_the_last_models_are_averaged(federation: Make, same: Callable[..., bool]) -> None:
    training = {"rounds": 3, "steps": 1}
    each: list[Arrays] = []
    for rounds in (2, 3):
        fed = federation(folder=str(rounds), noise_seed=7, training={**training, "rounds": rounds})
        each.append(fed.run().model)
    fed = federation(noise_seed=7, training=training, strategy={"average_last": 2})
    model = fed.run().model
    for key in model:
        mean = np.mean([m[key].astype(float) for m in each], axis=0).astype(np.float32)
        np.testing.assert_array_equal(model[key], mean)


def test_a_run_goes_on_from_its_snapshot(federation: Make, same: Callable[..., bool]) -> None:
    whole = federation(folder="whole", noise_seed=7).run().model

    class Dies(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            self.orders = getattr(self, "orders", 0) + (
                messages[0].metadata.message_type == "train"
            )
            if self.orders == 2:
                list(super().send_and_receive(messages, timeout=timeout))
                raise ConnectionError("the coordinator died with the replies in hand")
            return super().send_and_receive(messages, timeout=timeout)

    fed = federation(noise_seed=7)
    with pytest.raises(ConnectionError):
        fed.run(fed.grid(Dies))
    ledgers = {name: fed.entries(name) for name in WEIGHTS}
    assert ledgers["North"][-1].kind == "released"
    assert [entry.predicate["round"] for entry in fed.journal_entries("round")] == [1]
    outcome = fed.run()
    assert [step.round for step in outcome.progress] == [2]
    assert same(outcome.model, whole)
    assert {name: fed.entries(name) for name in WEIGHTS} == ledgers
    kinds = [entry.kind for entry in fed.journal_entries()]
    assert kinds == ["genesis", "run-opened", "round", "round", "run-closed"]


def test_a_round_that_was_stored_and_not_noted_is_noted_after_the_restart(
    federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator dies between the snapshot and the journal's line about it."""
    fed = federation()

    def dies(self: EvidenceCollector, record: dict[str, Any]) -> None:
        raise ConnectionError("the coordinator died")

    with monkeypatch.context() as patched:
        patched.setattr(EvidenceCollector, "close_round", dies)
        with pytest.raises(ConnectionError):
            fed.run()
    assert fed.journal_entries("round") == []
    outcome = fed.run()
    assert [step.round for step in outcome.progress] == [2]
    rounds = [entry.predicate for entry in fed.journal_entries("round")]
    assert [(entry["round"], len(entry["joined"])) for entry in rounds] == [(1, 3), (2, 3)]
    assert rounds[0]["next"] == rounds[1]["model"]


def test_a_run_that_ended_before_its_model_was_kept_gives_the_model_again(
    federation: Make, same: Callable[..., bool]
) -> None:
    """The coordinator dies between the journal's last line and the final model."""
    fed = federation(strategy={"average_last": 2})
    outcome = fed.run()
    spent = [fed.entries(name) for name in WEIGHTS]
    again = fed.run(fed.grid(Dead))
    assert same(again.model, outcome.model)
    assert [fed.entries(name) for name in WEIGHTS] == spent
    assert [entry.kind for entry in fed.journal_entries()].count("run-closed") == 1


def test_seeded_noise_is_told_by_the_releases(federation: Make) -> None:
    gate = {"metrics": {"source": "gate"}}
    assert not federation(folder="fresh", **gate).run().reproducible
    seeded = federation(folder="seeded", noise_seed=7, **gate).run()
    assert [step.reproducible for step in seeded.progress] == [True, True]


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
@pytest.mark.parametrize("said", [None, True, "no"])
def test_noise_that_nobody_calls_fresh_counts_as_seeded(
    federation: Make, purpose: str, said: Any
) -> None:
    def craft(release: Release, facts: dict[str, Any]) -> Release:
        if ("histogram" in release.arrays) == (purpose == "evaluate"):
            facts["reproducible"] = said
        return Release(release.order, facts, release.arrays)

    fed = federation(metrics={"source": "gate"})
    assert fed.run(crafted(fed, facts=craft)).reproducible


def test_rounds_before_a_restart_are_not_called_fresh(federation: Make) -> None:
    fed = federation()
    progress = fed.run().progress
    assert not Outcome({}, progress).reproducible
    assert Outcome({}, progress[1:]).reproducible
    assert Outcome({}, []).reproducible


# the gate


def test_metrics_from_the_gate_are_paid_for(federation: Make) -> None:
    fed = federation(metrics={"source": "gate", "every": 2}, training={"rounds": 3})
    outcome = fed.run()
    assert [bool(step.histograms) for step in outcome.progress] == [False, True, True]
    for name in WEIGHTS:
        entries = fed.answers(name)
        kinds = [entry.predicate["event"]["type"] for entry in entries if entry.kind == "reserved"]
        gate = "discrete_gaussian"
        assert kinds == ["repeated", "repeated", gate, "repeated", gate]
        closing = [entry.kind for entry in entries if entry.kind != "reserved"]
        rounds = ["released", "metric-released"]
        assert closing == ["released", *rounds, *rounds]
        assert outcome.progress[-1].spent[name] == fed.ledger(name).spent().to_dict()
        assert outcome.progress[-1].histograms[name].shape == (2, 10)


# too few answers


class Unheard(Silent):
    """East's releases never arrive; its log is shown."""

    silent_to = ("train", "evaluate")


@pytest.mark.parametrize("kind", [Silent, Unheard])
def test_a_round_goes_on_without_a_silent_site(federation: Make, kind: type[InProcessGrid]) -> None:
    fed = federation()
    outcome = fed.run(fed.grid(kind))
    assert outcome.progress[0].statuses == dict.fromkeys(("North", "South"), Status.RELEASED)
    for entry in fed.journal_entries("round"):
        said = {order["site"]: order["answer"] for order in entry.predicate["orders"]}
        assert said == {"North": "released", "East": "no-reply", "South": "released"}
        assert {item["site"] for item in entry.predicate["joined"]} == {"North", "South"}
        witnessed = {item["log"] for item in entry.predicate["witnessed"]}
        assert (fed.roster.site("East").ledger.name in witnessed) == (kind is Unheard)


def test_a_quorum_that_is_not_met_stops_the_run(federation: Make) -> None:
    fed = federation(strategy={"min_sites": 3})
    with pytest.raises(QuorumError) as caught:
        fed.run(fed.grid(Silent))
    assert str(caught.value) == (
        "round 1: 2 of 3 sites released an update, the quorum is 3 (1 no reply in time, 2 released)"
    )


def test_refusals_are_told_by_status_only(federation: Make) -> None:
    fed = federation(privacy={"epsilon": 0.5})
    with pytest.raises(QuorumError) as caught:
        fed.run()
    assert str(caught.value) == (
        "round 1: 0 of 3 sites released an update, the quorum is 2 (3 refused-budget)"
    )
    assert isinstance(caught.value, RunError)


class Dead(InProcessGrid):
    """No node answers anything."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return []


def test_no_site_is_an_error(federation: Make) -> None:
    fed = federation(strategy={"timeout": 0.2})
    with pytest.raises(RunError, match="no site of the plan is connected"):
        fed.run(fed.grid(Dead))
    with pytest.raises(RunError, match="no site of the plan is connected"):
        fed.run(InProcessGrid(fed.client, 0))


class Late(InProcessGrid):
    """Nodes come one by one, as on Flower's engines, which start the ServerApp first."""

    def get_node_ids(self) -> Iterable[int]:
        self.looks = getattr(self, "looks", -1) + 1
        return list(super().get_node_ids())[: self.looks]


def test_nodes_that_come_late_are_waited_for(federation: Make) -> None:
    fed = federation(strategy={"timeout": 30.0})
    outcome = fed.run(fed.grid(Late))
    assert set(outcome.progress[0].statuses) == set(WEIGHTS)


class Clock:
    """Time that moves only when a site says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("timeout", "statuses"), [(35.0, 3), (25.0, 2)])
def test_sites_that_come_too_late_are_not_waited_for(
    federation: Make, monkeypatch: pytest.MonkeyPatch, timeout: float, statuses: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(grid_module, "time", types.SimpleNamespace(monotonic=clock.monotonic))

    class Slow(Site):
        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            clock.now += 10.0
            return super().answer(order, model, head)

    fed = federation(site=Slow, strategy={"timeout": timeout, "min_sites": 2})
    outcome = fed.run()
    assert [len(step.statuses) for step in outcome.progress] == [statuses, statuses]
    strict = federation(site=Slow, folder="strict", strategy={"timeout": timeout, "min_sites": 3})
    if statuses == 2:
        with pytest.raises(QuorumError, match="1 no reply in time, 2 released"):
            strict.run()
    else:
        strict.run()


# sites that lie


def test_two_nodes_that_are_one_site_stop_the_run(federation: Make) -> None:
    fed = federation()
    fed.sites[1] = fed.sites[0]
    with pytest.raises(RunError, match="two nodes say that they are site 'North'"):
        fed.run()


def test_a_node_that_answers_for_another_stops_the_run(federation: Make) -> None:
    fed = federation()
    honest = fed.client

    def lying(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        asked = message.metadata.message_type
        if asked.startswith("query") or message.metadata.dst_node_id != 2:
            return reply
        return Message(encode_reply("North", Status.FAILED), reply_to=message)

    with pytest.raises(RunError, match="in the name of site 'North'"):
        fed.run(InProcessGrid(_as_app(lying), 3))


def test_a_site_outside_the_plan_is_not_asked(federation: Make) -> None:
    fed = federation()
    fed.sites[1].name = "Elsewhere"
    outcome = fed.run()
    assert set(outcome.progress[0].statuses) == {"North", "South"}


def _as_app(handler: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    for register in (app.query, app.train, app.evaluate):
        register()(handler)
    app.query("show")(handler)
    return app


def crafted(
    fed: Any,
    *,
    facts: Callable[[Release, dict[str, Any]], Release] = lambda release, facts: release,
    arrays: Callable[[Arrays], Arrays] = lambda arrays: arrays,
) -> InProcessGrid:
    """A grid in which East lies.

    ``arrays`` is what it makes of its updates, and its ledger says the same; ``facts``
    is what it makes of a release on its way out.
    """

    class Crafty(Site):
        def _store(self, order: Order, reservation: Any, made: TrainerOutput) -> Release:
            if self.name == "East":
                made = replace(made, arrays=arrays(made.arrays))
            return super()._store(order, reservation, made)

        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            answer = super().answer(order, model, head)
            if self.name != "East" or answer.release is None:
                return answer
            return Answer(answer.status, facts(answer.release, dict(answer.release.facts)))

    for site in fed.sites:
        site.__class__ = Crafty
    return fed.grid()  # type: ignore[no-any-return]


def unproved(release: Release, facts: dict[str, Any]) -> Release:
    """Return one that is well formed, of the right order, and not what the ledger paid for."""
    arrays = {name: array + np.float32(1) for name, array in release.arrays.items()}
    return Release(release.order, {**facts, "digest": digest_arrays(arrays)}, arrays)


EAST_FAILED = {"North": Status.RELEASED, "East": Status.FAILED, "South": Status.RELEASED}


@pytest.mark.parametrize(
    "craft",
    [
        lambda a: {k: v[:1] for k, v in a.items()},
        lambda a: dict(reversed(a.items())),
        lambda a: {"extra": np.zeros(3, np.float32), **a},
        lambda a: dict(list(a.items())[:1]),
    ],
    ids=["shape", "order", "more", "fewer"],
)
def test_a_release_of_other_arrays_than_ordered_counts_as_failed(
    federation: Make, craft: Any
) -> None:
    """Even one that its site's ledger stands for."""
    fed = federation()
    outcome = fed.run(crafted(fed, arrays=craft))
    assert fed.kinds("East") == ["reserved", "released"] * 2
    assert outcome.progress[0].statuses == EAST_FAILED


def test_a_release_of_another_order_counts_as_failed(federation: Make) -> None:
    fed = federation()
    other = "sha256:" + "0" * 64
    grid = crafted(fed, facts=lambda r, f: Release(other, r.facts, r.arrays))
    assert fed.run(grid).progress[0].statuses == EAST_FAILED


def test_a_release_that_its_log_does_not_hold_counts_as_failed(federation: Make) -> None:
    fed = federation()
    outcome = fed.run(crafted(fed, facts=unproved))
    assert outcome.progress[0].statuses == EAST_FAILED
    for entry in fed.journal_entries("round"):
        assert {item["site"] for item in entry.predicate["joined"]} == {"North", "South"}
    # The control: the same releases as they were made are joined.
    honest = federation(folder="honest")
    assert honest.run(crafted(honest)).progress[0].statuses["East"] is Status.RELEASED


class Patient(InProcessGrid):
    """A grid on which every site may always be asked again, at once."""

    def wait_for(self, nodes: set[int], seconds: float | None = None) -> set[int]:
        return nodes


def test_who_never_proves_its_release_is_not_asked_for_ever(federation: Make) -> None:
    fed = federation(strategy={"min_sites": 3, "attempts": 3})
    grid = crafted(fed, facts=unproved)
    grid.__class__ = Patient
    with pytest.raises(QuorumError, match="1 failed, 2 released"):
        fed.run(grid)
    (line,) = fed.journal_entries("round")
    asked = [order for order in line.predicate["orders"] if order["site"] == "East"]
    assert [(order["attempt"], order["answer"]) for order in asked] == [(1, "failed")]
    assert [entry.kind for entry in fed.entries("East")].count("released") == 1


def test_who_answers_under_a_name_that_is_nobodys_is_not_asked_for_ever(federation: Make) -> None:
    fed = federation(strategy={"min_sites": 3, "attempts": 3})
    honest = fed.client

    def lying(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        asked = message.metadata.message_type
        if asked.startswith("query") or message.metadata.dst_node_id != 2:
            return reply
        return Message(encode_reply("Nobody", Status.FAILED), reply_to=message)

    with pytest.raises(QuorumError, match="1 failed, 2 released"):
        fed.run(Patient(_as_app(lying), 3))
    (line,) = fed.journal_entries("round")
    asked = [order for order in line.predicate["orders"] if order["site"] == "East"]
    assert [order["attempt"] for order in asked] == [1, 2, 3]


def test_a_release_under_a_false_digest_counts_as_failed(federation: Make) -> None:
    fed = federation()
    grid = crafted(fed, facts=lambda r, f: Release(r.order, {**f, "digest": "sha256:0"}, r.arrays))
    assert fed.run(grid).progress[0].statuses == EAST_FAILED


@pytest.mark.parametrize("fault", ["spent", "histogram", "shape"])
def test_a_release_without_its_facts_does_not_stop_the_coordinator(
    federation: Make, fault: str
) -> None:
    fed = federation(metrics={"source": "gate"})

    def forget(release: Release, facts: dict[str, Any]) -> Release:
        facts.pop("spent")
        return Release(release.order, facts, release.arrays)

    def rename(arrays: Arrays) -> Arrays:
        return {("other" if name == "histogram" else name): a for name, a in arrays.items()}

    def widen(arrays: Arrays) -> Arrays:
        return {
            name: np.zeros((2, 11)) if name == "histogram" else array
            for name, array in arrays.items()
        }

    how: Any = {"spent": {"facts": forget}, "histogram": {"arrays": rename}}
    grid = crafted(fed, **how.get(fault, {"arrays": widen}))
    outcome = fed.run(grid)
    assert len(outcome.progress) == 2
    assert all("East" not in step.histograms for step in outcome.progress)


@pytest.mark.parametrize("raw", [None, "json", "fields"])
def test_a_message_that_is_no_order_is_refused(federation: Make, raw: str | None) -> None:
    from privet.common.flower.wire import decode_reply

    fed = federation()
    fed.grid()
    records = {
        None: RecordDict(),
        "json": RecordDict({"order": ConfigRecord({"json": "{"}), "arrays": _empty()}),
        "fields": RecordDict({"order": ConfigRecord({"json": "{}"}), "arrays": _empty()}),
    }
    reply = fed.client(Message(records[raw], 1, "train"), _context())
    assert decode_reply(reply.content)[1] is Status.FAILED
    assert fed.answers("North") == []


@pytest.mark.parametrize("fault", ["record", "stype", "zip"])
def test_a_malformed_model_is_refused(
    federation: Make, order_for: Callable[..., Order], fault: str
) -> None:
    from flwr.app import Array, ArrayRecord

    from privet.common.flower.wire import decode_reply

    fed = federation()
    fed.grid()
    order = order_for(fed, "North", initial_model(fed.plan))
    arrays: Any = {
        "record": ConfigRecord({"json": "{}"}),
        "stype": ArrayRecord({"head.weight": Array("float32", (1,), "pickle", b"x")}),
        "zip": ArrayRecord(
            {"head.weight": Array("float32", (1,), "numpy.ndarray", b"PK\x05\x06" + bytes(18))}
        ),
    }[fault]
    content = RecordDict(
        {"order": ConfigRecord({"json": order.encode().decode()}), "arrays": arrays}
    )
    reply = fed.client(Message(content, 1, "train"), _context())
    assert decode_reply(reply.content)[1] is Status.FAILED


def test_another_model_than_ordered_is_refused(
    federation: Make, order_for: Callable[..., Order]
) -> None:
    from privet.common.flower.wire import decode_reply, encode_order, to_record

    fed = federation()
    fed.grid()
    model = initial_model(fed.plan)
    order = order_for(fed, "North", model)
    other = {name: array + np.float32(1) for name, array in model.items()}
    for sent in (other, dict(reversed(model.items())), dict(list(model.items())[:1])):
        content = encode_order(order, to_record(sent), ConfigRecord())
        reply = fed.client(Message(content, 1, "train"), _context())
        assert decode_reply(reply.content)[1] is Status.FAILED
    assert fed.answers("North") == []


def _empty() -> Any:
    from flwr.app import ArrayRecord

    return ArrayRecord()


def _context() -> Context:
    return Context(1, 1, UserConfig({"partition-id": 0}), RecordDict(), UserConfig())


def test_a_query_says_the_name_and_nothing_else(federation: Make) -> None:
    from privet.common.flower.wire import decode_reply

    fed = federation()
    fed.grid()
    reply = create_app(fed.site_of)(Message(RecordDict(), 1, "query"), _context())
    assert decode_reply(reply.content) == ("North", Status.PRESENT, None)
    assert list(reply.content) == ["reply"]
    assert fed.opened == []


def test_progress_holds_no_count_of_records(federation: Make) -> None:
    """Two federations that differ in their numbers of records tell the coordinator the same."""
    generator = np.random.default_rng(0)

    def facts(folder: str, rows: int) -> list[Progress]:
        frame = pd.DataFrame({
            "x1": generator.normal(size=rows), "x2": generator.normal(size=rows),
            "colour": ["red"] * rows, "y": generator.integers(0, 2, rows),
        })  # fmt: skip
        fed = federation(folder=folder, frames=dict.fromkeys(WEIGHTS, frame))
        return fed.run().progress  # type: ignore[no-any-return]

    few, many = facts("few", 5), facts("many", 500)
    assert few == many


def test_what_is_shown_does_not_grow_with_the_rounds(federation: Make) -> None:
    """Two proofs of growth a log, at most: from what was seen, and from what may have been."""
    made = federation(training={"rounds": 12})
    collector = made.parties.collector(made.roster)
    asked: list[dict[str, Any]] = []
    question = collector._question

    def noted(*given: Any) -> dict[str, Any]:
        asked.append(question(*given))
        return asked[-1]

    collector._question = noted  # type: ignore[method-assign]
    made.run(collector=lambda: collector)
    assert len(asked) >= 12 * len(made.sites)
    assert max(len(one["since"]) for one in asked) <= 2
    proofs = [len(log["proofs"]) for one in asked for log in one["shown"].values()]
    assert proofs and max(proofs) <= 2
