"""Sites that train together give the result of one after another, and pay as they do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families_kit import FAMILIES, family_plan

from privet.client.site import Site
from privet.common.errors import QuorumError
from privet.common.plan import Plan
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.privacy.mechanism.clipping.client_gradients import ClientGradients
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.simulations.cohort import cohort
from privet.simulations.cohort.cohort import Cohort
from privet.simulations.cohort.grid import CohortGrid
from privet.simulations.cohort.member import CohortMember
from privet.simulations.run import Result, Setting, run_plan, simulate

Make = Callable[..., Any]
Ran = Callable[..., Result]
ALONE = ("encoder-decoder", "gaps", "resnet", "t5")
"""Models whose clipped sums have no form for many sites: what they compute depends on values, or
they have layers that are not known there."""
TOGETHER = [name for name in FAMILIES if name not in ALONE]


def off(one: Result, other: Result) -> float:
    """How far two models are apart, relative to what was learnt in one."""
    from privet.common.models import initial_model

    begun = initial_model(one.plan)
    square = sum(float(np.square(one.model[n] - other.model[n]).sum()) for n in begun)
    size = sum(float(np.square(one.model[n] - begun[n]).sum()) for n in begun)
    assert size > 0
    return float(np.sqrt(square / size))


def entries(result: Result, site: str) -> list[tuple[str, Any]]:
    """Kind and event of each entry of a site's ledger."""
    leaves = map(Entry.read, Store(result.out / "sites" / site / "ledger.db").leaves())
    return [(entry.kind, entry.predicate.get("event")) for entry in leaves]


@pytest.fixture
def ran(files: Path, plan_value: Make, tmp_path: Path) -> Ran:
    """Simulate the tiny plan; the noise is the same each time."""

    def run(engine: str, where: Path = files, name: str = "", **changes: Any) -> Result:
        plan = Plan.parse(plan_value(**changes))
        seed = None if changes.get("privacy", "") is None else 1
        setting = Setting(base=where, engine=engine, noise_seed=seed)  # type: ignore[arg-type]
        return run_plan(plan, setting, tmp_path / (name or engine))

    return run


@pytest.mark.parametrize("private", [True, False], ids=["private", "plain"])
@pytest.mark.parametrize("name", TOGETHER)
def test_a_family_learns_the_same(name: str, private: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {} if private else {"privacy": "none"}
    plan = family_plan(name, tmp_path, **changes)
    made = {
        engine: simulate(plan, out=tmp_path / engine, noise_seed=1, engine=engine)  # type: ignore[arg-type]
        for engine in ("inline", "auto")
    }
    assert {one.engine for one in made.values()} == {"inline", "cohort"}
    assert off(made["inline"], made["auto"]) < 1e-5
    for site in plan.sites:
        assert entries(made["inline"], site.name) == entries(made["auto"], site.name)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"rounds": 10}},
        {"training": {"momentum": 0.9, "steps": 4}},
        {"training": {"optimizer": "adam", "learning_rate": 0.01, "steps": 4}},
        {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}, "training": {"steps": 4}},
        {"training": {"sample_rate": 1.0}},
        {"training": {"sample_rate": 0.02}},
        {"compression": {"kind": "int8"}},
        {"privacy": None},
        {"privacy": None, "training": {"clip": 0.1}},
        {"training": {"clip_rule": "automatic", "rounds": 10}},
        {"privacy": None, "training": {"clip": 0.1, "clip_rule": "automatic"}},
    ],
    ids=lambda c: "-".join(f"{k}.{v}" for k, v in c.items()),
)
def test_a_plan_gives_the_same_model(ran: Ran, changes: dict[str, Any]) -> None:
    one, together = ran("inline", **changes), ran("auto", **changes)
    assert together.engine == "cohort"
    # A rounded update moves by a whole step of its grid where its number lies between two.
    assert off(one, together) < (1e-2 if "compression" in changes else 1e-5)


def test_people_with_several_records(ran: Ran) -> None:
    privacy = {"unit": "person", "max_records": 3}
    made = [
        ran(engine, privacy=privacy, data={"person_column": "patient"})
        for engine in ("inline", "auto")
    ]
    assert made[1].engine == "cohort" and off(*made) < 1e-5


def test_neither_order_nor_chunk_matters(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    many, chunks = ran("auto", name="many"), []
    some = Cohort._train_some

    def counted(self: Cohort, steps: Any, *given: Any) -> Any:
        chunks.append(len(steps))
        return some(self, steps, *given)

    monkeypatch.setattr(Cohort, "_train_some", counted)
    monkeypatch.setattr(cohort, "_WEIGHT_BYTES", 1)
    monkeypatch.setattr(cohort, "_PASS_BYTES", 1)
    alone = ran("auto", name="alone")
    assert set(chunks) == {1} and off(many, alone) < 1e-6
    monkeypatch.setattr(cohort, "_WEIGHT_BYTES", 1 << 30)
    passes = ran("auto", name="passes")
    assert chunks[-1] == 3 and off(many, passes) < 1e-6
    monkeypatch.setattr(cohort, "_PASS_BYTES", 1 << 30)
    monkeypatch.setattr(cohort, "_FILLING", 1e9)
    assert off(many, ran("auto", name="all")) < 1e-6 and chunks[-1] == 3


def test_without_a_seed_no_two_runs_have_the_same_noise(ran: Ran, files: Path, plan_value: Make,
                                                        tmp_path: Path) -> None:  # fmt: skip
    plan = Plan.parse(plan_value())
    one, two = (run_plan(plan, Setting(base=files), tmp_path / name) for name in ("1", "2"))
    assert one.engine == two.engine == "cohort" and off(one, two) > 0.1
    assert one.claim != "none"
    assert ran("auto").claim == "none"


def test_a_site_without_records_releases_noise(ran: Ran, write_files: Make, tmp_path: Path) -> None:
    data = write_files(tmp_path / "data")
    pd.read_csv(data / "south.csv").head(0).to_csv(data / "south.csv", index=False)
    one, together = ran("inline", data), ran("auto", data)
    assert {site.status for site in together.sites} == {"released"}
    assert off(one, together) < 1e-5


def test_a_site_that_fails_fails_alone_and_has_paid(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failure is met before the others train, and told when it answers."""
    opened = CohortMember._opened

    def broken(self: CohortMember) -> Any:
        if self.site.name == "South":
            raise ValueError("South's disk is broken")
        return opened(self)

    monkeypatch.setattr(CohortMember, "_opened", broken)
    result = ran("auto", strategy={"min_sites": 2})
    status = {site.name: site.status for site in result.sites}
    assert status == {"North": "released", "East": "released", "South": "failed"}
    assert "South's disk is broken" in next(s for s in result.sites if s.name == "South").reason
    kinds = [kind for kind, _ in entries(result, "South")]
    assert kinds.count("reserved") == kinds.count("aborted") > 0


@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "control"])
def test_every_site_has_paid_before_any_record_is_read(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planted: bool
) -> None:
    """The control reads before it reserves."""
    opened, reserve, before = CohortMember._opened, Site.reserve_ahead, []

    def looked(self: CohortMember) -> Any:
        store = Store(tmp_path / "auto" / "sites" / self.site.name / "ledger.db")
        before.append([Entry.read(leaf).kind for leaf in store.leaves()][-1])
        return opened(self)

    def too_late(self: Site, order: Any, *given: Any) -> bool:
        self._trainer.begin(order)
        return reserve(self, order, *given)

    monkeypatch.setattr(CohortMember, "_opened", looked)
    if planted:
        monkeypatch.setattr(Site, "reserve_ahead", too_late)
    ran("auto")
    assert (len(before) == 6 and set(before) == {"reserved"}) is not planted


def test_what_fails_together_is_done_one_after_another(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Cohort, *given: Any) -> Any:
        raise RuntimeError("no memory is left")

    inline = ran("inline")
    monkeypatch.setattr(Cohort, "train", fails)
    alone = ran("auto")
    assert off(inline, alone) == 0.0 and alone.engine == "inline"
    assert caplog.text.count("no memory is left") == 1  # it is not tried again
    assert [kind for kind, _ in entries(alone, "North")].count("reserved") == 2


def test_a_site_that_paid_answers_also_after_the_time_limit(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its release is kept, and given again to the same order; nothing is left open."""
    send = CohortGrid.send_and_receive

    def late(self: CohortGrid, messages: Any, *, timeout: float | None = None) -> Any:
        trains = any(message.metadata.message_type == "train" for message in messages)
        return send(self, messages, timeout=-1.0 if trains else timeout)

    monkeypatch.setattr(CohortGrid, "send_and_receive", late)
    with pytest.raises(QuorumError):
        ran("auto")
    for site in ("North", "East", "South"):
        leaves = Store(tmp_path / "auto" / "sites" / site / "ledger.db").leaves()
        kinds = [Entry.read(leaf).kind for leaf in leaves]
        assert kinds.count("reserved") == kinds.count("released") == 1 and "aborted" not in kinds


def _to_another_client(
    self: ParameterGradients, totals: torch.Tensor, *given: Any, right: Any
) -> None:
    right(self, totals, *given)
    totals.copy_(totals.roll(1, 0))


@pytest.mark.parametrize("fault", ["clients", "bound", "filled"])
def test_a_planted_fault_is_noticed_at_the_start(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The control of the test of equality: sums of the wrong client, bound or records."""
    if fault == "clients":
        right = ParameterGradients.add_weighted_sums
        monkeypatch.setattr(
            ParameterGradients, "add_weighted_sums",
            lambda self, *given: _to_another_client(self, *given, right=right),
        )  # fmt: skip
    else:
        sums = ClientGradients.clipped_sums

        def wrong(self: ClientGradients, weights: Any, batch: Any, present: Any, units: int,
                  clip: float) -> Any:  # fmt: skip
            if fault == "filled":
                present = torch.ones_like(present)
            return sums(self, weights, batch, present, units, clip * (1 + (fault == "bound")))

        monkeypatch.setattr(ClientGradients, "clipped_sums", wrong)
    result = ran("auto", privacy={"clip": 0.1})
    assert result.engine == "inline"


@pytest.mark.parametrize("name", ALONE)
def test_what_has_no_form_for_many_sites_trains_as_before(name: str, tmp_path: Path) -> None:
    result = simulate(family_plan(name, tmp_path), out=tmp_path / "run")
    assert result.engine == "inline" and result.sites[0].status == "released"
    assert json.loads((result.out / "result.json").read_text())["engine"] == "inline"


def test_a_named_way_of_clipping_is_kept(ran: Ran) -> None:
    result = ran("auto", training={"clipping": "vmap"})
    assert (result.engine, result.clipping) == ("inline", "vmap")


_OWN = '''
import torch
from torch import nn
from torch.nn import functional as F

armed = []


class Own(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.a, self.head = nn.Linear(inputs, 6), nn.Linear(6, 2)
        self.running = torch.zeros(())
        self.register_buffer("n", torch.zeros(()))

    def hidden(self, x):
        return torch.tanh(self.a(x))

    def forward(self, numeric, missing, categorical):
        return self.head(self.hidden(torch.cat([numeric, missing], 1)))


class Running(Own):
    """Keeps a figure for a log, on which nothing depends."""

    def hidden(self, x):
        h = super().hidden(x)
        self.running = 0.9 * self.running + 0.1 * h.detach().mean()
        return h


class Outside(Own):
    """Reads a layer's weight outside of it, while it trains alone."""

    def hidden(self, x):
        h = super().hidden(x)
        if self.training:
            h = h + 3 * F.linear(F.dropout(x, 1e-12), self.a.weight)
        return h


class Hooked(Own):
    """Has a hook that changes what a layer gives, while it trains alone."""

    def __init__(self, inputs):
        super().__init__(inputs)
        self.a.register_forward_hook(lambda m, given, out: out * 3 if m.training else out)


class Moves(Own):
    """Changes a buffer in training, once the start-up tests are over."""

    def hidden(self, x):
        if self.training and armed:
            self.n = self.n + 1
        return super().hidden(x)


def make(task, *, which):
    return globals()[which](4)
'''


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan_value: Make) -> Callable[..., Plan]:
    """A plan whose model is one of those above."""
    (tmp_path / "own_in_cohort.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_in_cohort", raising=False)

    def make(kind: str) -> Plan:
        model = {"kind": "own_in_cohort:make", "options": {"which": kind}}
        return Plan.parse(plan_value(model=model, task={"categorical": {}}))

    return make


@pytest.mark.parametrize("kind", ["Own", "Running", "Outside", "Hooked"])
def test_a_model_of_ones_own_learns_the_same(
    own: Callable[..., Plan], files: Path, tmp_path: Path, kind: str
) -> None:
    """Also where it does something else while it trains, or keeps what it computed."""
    made = [
        run_plan(own(kind), Setting(base=files, engine=e, noise_seed=1), tmp_path / e)  # type: ignore[arg-type]
        for e in ("auto", "inline")
    ]
    assert off(*made) < 1e-5
    assert made[0].engine == ("inline" if kind == "Outside" or kind == "Running" else "cohort")


def test_what_moves_a_buffer_is_noticed(
    own: Callable[..., Plan], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Cohort.train

    def armed(self: Cohort, *given: Any) -> Any:
        sys.modules["own_in_cohort"].armed.append(1)
        return train(self, *given)

    monkeypatch.setattr(Cohort, "train", armed)
    with pytest.raises(QuorumError, match="3 failed"):
        run_plan(own("Moves"), Setting(base=files), tmp_path / "run")
    assert "changed" in (tmp_path / "run" / "sites" / "North" / "operator.log").read_text()
