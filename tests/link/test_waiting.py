"""A site that says not-now is waited for over the real link, and a failed run is resumed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_kit import Ends, answering, until
from office_kit import Town
from postgres_kit import READER, READER_PASSWORD, Postgres
from typer.testing import CliRunner

from privet.cli import app
from privet.client.link.dial import LinkRequest, LinkResponse
from privet.client.operator.decisions import OperatorDecisions
from privet.client.operator.rotation import rotate_key
from privet.client.site import Answer, Site
from privet.client.training.worker.remote import RemoteTrainer
from privet.common.errors import InputError, LedgerError, RolledBackError, RunError
from privet.common.link import link_pb2 as pb
from privet.common.order import Status
from privet.common.plan import Plan
from privet.delivery.trained import load
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.privacy.policy import Policy
from privet.server.link.grid import CoordinatorStopped, LinkGrid
from privet.server.queue import cancel

Make = Callable[..., Any]
NAMES = ["North", "East", "South"]
ROUNDS = 30
pytestmark = pytest.mark.xdist_group("office")


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", NAMES)
    yield made
    made.close()


class Background:
    """A run in a thread, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], Any]) -> None:
        try:
            self.outcome = work()
        except BaseException as error:
            self.error = error

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(120)
        assert not self.goes_on
        if self.error is not None:
            raise self.error
        return self.outcome


def test_a_head_that_cannot_be_compared_now_is_compared_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes once on a stream; a site whose disk failed for a moment would wait without end."""
    monkeypatch.setattr("privet.client.link.dial._HEAD_AGAIN", 0.05)
    monkeypatch.setattr(ends.hub, "_newest_head", "head of {}".format)
    came: list[bytes] = []

    def take(fault: Exception) -> Callable[[pb.Head], None]:
        def taken(head: pb.Head) -> None:
            came.append(head.note)
            if len(came) < 3:
                raise fault

        return taken

    def answer(asked: LinkRequest) -> LinkResponse:
        return LinkResponse(asked.records, asked.arrays)

    ends.dial("North", answer, on_head=take(LedgerError("the disk does not answer")))
    until(lambda: len(came) == 3, 30)
    assert set(came) == {b"head of North"}
    # One that was compared, and is of a newer ledger, stays what it is.
    came.clear()
    ends.dial("East", answer, on_head=take(RolledBackError("older")))
    until(lambda: len(came) == 1, 30)
    _, told = ends.hub.post("East", "query", "", b"{}", {})
    told.result(30)
    time.sleep(0.5)
    assert len(came) == 1


@pytest.mark.parametrize(("quorum", "away"), [(3, ["East"]), (2, ["East", "South"])])
def test_a_run_waits_for_sites_that_pause_and_they_pay_nothing_for_it(
    federation: Make, ends: Ends, quorum: int, away: list[str]
) -> None:
    fed = federation(strategy={"min_sites": quorum})
    for site in fed.sites:
        ends.dial(site.name, answering(site))
    for name in away:
        fed.ledger(name).pause("Ada")
    run = Background(lambda: fed.run(ends.grid()))
    until(lambda: all("not-now" in fed.log(name) for name in away), 60)
    until(lambda: "released" in fed.kinds("North"), 60)
    assert run.goes_on and all(fed.answers(name) == [] for name in away)
    for name in away:
        fed.ledger(name).resume("Ada")
    outcome = run.join()
    assert [step.statuses[away[0]] for step in outcome.progress] == [Status.RELEASED] * 2
    assert [fed.charged(name) for name in ("North", *away)] == [2] * (1 + len(away))
    asked = [one for line in fed.journal_entries("round") for one in line.predicate["orders"]]
    assert {one["attempt"] for one in asked} == {1}
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


def test_a_run_that_has_a_quorum_waits_for_nobody(federation: Make, ends: Ends) -> None:
    fed = federation()
    for site in fed.sites:
        ends.dial(site.name, answering(site))
    fed.ledger("East").pause("Ada")
    outcome = fed.run(ends.grid())
    assert [step.statuses["East"] for step in outcome.progress] == [Status.NOT_NOW] * 2


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_who_waits_can_be_ended(federation: Make, ends: Ends, how: str) -> None:
    fed = federation(strategy={"min_sites": 3})
    for site in fed.sites:
        ends.dial(site.name, answering(site))
    fed.ledger("East").pause("Ada")
    stopped, cancelled = threading.Event(), threading.Event()

    def look(names: list[str]) -> None:
        assert names == []  # nobody is away: the round waits for its time
        if cancelled.is_set():
            raise RunError("cancelled")

    ends.grid()
    grid = LinkGrid(ends.hub, NAMES, stopped=stopped, on_wait=look)
    run = Background(lambda: fed.run(grid))
    until(lambda: "not-now" in fed.log("East"), 60)
    (stopped if how == "stopped" else cancelled).set()
    with pytest.raises(CoordinatorStopped if how == "stopped" else RunError):
        run.join()


class Failing(Site):
    """A site whose release is never stored: each attempt costs."""

    def _store(self, *given: Any) -> Any:
        raise RuntimeError("no")


def test_who_fails_is_asked_three_times_and_sits_the_round_out(
    federation: Make, ends: Ends
) -> None:
    fed = federation(
        strategy={"min_sites": 3, "attempts": 3}, training={"rounds": 1, "max_attempts": 100}
    )
    fed.sites[1].__class__ = Failing
    for site in fed.sites:
        ends.dial(site.name, answering(site))
    with pytest.raises(RunError, match="1 failed, 2 released"):
        fed.run(ends.grid())
    assert fed.charged("East") == 3
    times = [entry.predicate["time"] for entry in fed.entries("East") if entry.kind == "reserved"]
    assert len(set(times)) == 3  # a second and two lie between: each has a time of its own


def test_a_full_disk_at_a_site_is_waited_for(federation: Make, ends: Ends) -> None:
    fed = federation(strategy={"min_sites": 3})
    home = fed.home("East")
    kept = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        fed.sites[1] = fed.restart("East")
        _fill(home / "filling")
        for site in fed.sites:
            ends.dial(site.name, answering(site))
        run = Background(lambda: fed.run(ends.grid()))
        until(lambda: "released" in fed.kinds("North"), 60)
        with pytest.raises(AssertionError):
            until(lambda: not run.goes_on, 3)
        (home / "filling").unlink()
        run.join()
        assert fed.charged("East") == 2
        verdict = fed.verdict()
        assert verdict.ok, verdict.faults
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


# a database


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    started = Postgres()
    yield started
    started.close()


def test_a_database_that_is_down_costs_nothing_and_is_asked_again(
    federation: Make, order_for: Make, start: Make, server: Postgres
) -> None:
    fed = federation()
    home, frame = fed.home("North"), fed.frames["North"]
    with server.connect() as owner:
        owner.execute("CREATE TABLE records (x1 float8, x2 float8, colour text, y integer)")
        owner.execute(f"GRANT SELECT ON records TO {READER}")
        columns = frame[["x1", "x2", "colour", "y"]].itertuples(index=False)
        rows = [tuple(value.item() if hasattr(value, "item") else value for value in row)
                for row in columns]  # fmt: skip
        rows = [tuple(None if value != value else value for value in row) for row in rows]
        owner.cursor().executemany("INSERT INTO records VALUES (%s, %s, %s, %s)", rows)
    (home / "db.password").write_text(f"{READER_PASSWORD}\n")
    (home / "db.password").chmod(0o600)
    admission = fed.parties.admission("North", fed.roster)
    data = admission.policy.data_set(admission.data_set)[1].model_dump()
    sql = {"url": server.url(), "table": "records", "password_file": "db.password"}
    source = {"path": None, "columns": ["x1", "x2", "colour", "y"], "sql": sql}
    value = {**admission.policy.model_dump(), "data": {admission.data_set: {**data, **source}}}
    trainer = RemoteTrainer(fed.plan, Policy.parse(value).at(home), admission.data_set, home, ())
    witness = fed.parties.witness("North")
    site = Site("North", fed.plan, home, admission, witness, fed.roster, trainer)
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    try:
        server.stop()
        assert site.answer(order, model) == Answer(Status.NOT_NOW)
        assert fed.answers("North") == [] and "refused" in fed.log("North")
        server.start()
        assert site.answer(order, model).status is Status.RELEASED
        assert fed.kinds("North") == ["reserved", "released"]
        # The control: what does not pass by itself is a refusal as before.
        trainer.close()
        trainer._opened = False
        (home / "db.password").write_text("another\n")
        second = order_for(fed, "North", model, round=2)
        assert site.answer(second, model).status is Status.REFUSED_POLICY
    finally:
        trainer.close()


# processes of their own


@pytest.mark.slow
def test_a_pause_and_a_new_key_end_no_run_and_one_that_a_refusal_ended_is_resumed(
    tmp_path: Path, root: Path, plan_value: Make, frame_of: Make
) -> None:
    """As an operator does it: with the client and the coordinator running all the time."""
    plan = Plan.parse(plan_value(
        training={"rounds": ROUNDS, "steps": 1}, privacy={"noise_multiplier": 8.0},
        strategy={"min_sites": 3, "attempts": 1}, metrics={"source": "off"},
    ))  # fmt: skip
    frames = {name: frame_of(40, number) for number, name in enumerate(NAMES)}
    here = Town(tmp_path / "town", root, plan, frames)
    try:
        run = here.run_all()
        here.wait(run, lambda s: s.get("round", 0) >= 1)
        home = here.folder / "East"
        policy = home / "site.toml"
        OperatorDecisions.open(policy, None).pause("Ada")
        log = home / "operator.log"
        until(lambda: log.exists() and "not-now" in log.read_text(), 120)
        assert run.status["state"] == "running"
        rotate_key(policy, None, recovery=None)
        # A refusal is none of those: once the pause is over it ends the run, in the same round.
        OperatorDecisions.open(policy, None).refuse(here.plan.digest, "Ada")
        OperatorDecisions.open(policy, None).pause("Ada", end=True)
        until(lambda: run.status["state"] in ("failed", "done"), 200)
        assert run.status["state"] == "failed", run.status
        kept = load(run.folder)
        assert kept.facts["round"] == str(run.status["round"])
        OperatorDecisions.open(policy, None).approve(here.plan.digest, "Ada")
        said = CliRunner().invoke(
            app, ["server", "resume", str(here.federation.folder), "first", "--json"]
        )
        assert said.exit_code == 0, said.output
        assert json.loads(said.stdout) == {
            "run": "first", "state": "queued", "round": int(kept.facts["round"]),
        }  # fmt: skip
        here.wait(run, lambda s: s["state"] == "done")
        entries = [
            [Entry.read(leaf).kind for leaf in Store(here.folder / n / "ledger/ledger.db").leaves()]
            for n in NAMES
        ]
        assert [kinds.count("reserved") for kinds in entries] == [ROUNDS] * 3
        assert "key-rotated" in entries[1] and entries[1].count("refused") == 1
        sources = [run.folder, *(here.folder / name / "ledger" for name in NAMES)]
        out = write_bundle(sources, tmp_path / "first.bundle").path
        verdict = verify(out, run.folder / "roster-fingerprints.json")
        assert verdict.ok, verdict.faults
        again = CliRunner().invoke(app, ["server", "resume", str(here.federation.folder), "first"])
        assert isinstance(again.exception, InputError) and "it is done" in str(again.exception)
        other = here.submit("second")
        cancel(here.federation, "second")
        assert other.status["state"] == "failed"
        said = CliRunner().invoke(app, ["server", "resume", str(here.federation.folder), "second"])
        assert "it cannot resume: submit its plan again" in str(said.exception)
        assert isinstance(said.exception, InputError)
    finally:
        here.close()
