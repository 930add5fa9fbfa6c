"""One site, one ledger, two coordinators: real processes, runs that take their turns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from link_kit import until
from observe_kit import Commands

from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.statement import Entry
from privet.server.queue import Run

Make = Callable[..., Any]
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("office")]
ROUNDS = 240
"""Of the first coordinator's run: it goes on while the second one's begins."""
CAP = 11.5
"""Above what all rounds of the first coordinator cost, below what 3 of the second add to it."""
_MAIN = "from privet.cli import main; main()"


def typed(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *words],
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


class Pair:
    """Two federations, ``a`` with North and East, ``b`` with South, that North comes in to."""

    def __init__(self, folder: Path, root: Path, plan_value: Make, frame_of: Make) -> None:
        self.folder = folder
        make = self._plan
        plans = make(plan_value, "a", "East", ROUNDS), make(plan_value, "b", "South", 3)
        frames = {name: frame_of(40, n) for n, name in enumerate(("North", "East", "South"))}
        self.a = Commands(
            folder / "a", root, plans[0], {name: frames[name] for name in ("North", "East")}
        )
        self.b = Commands(folder / "b", root, plans[1], {"South": frames["South"]})
        self.north = folder / "a" / "North"

    def _plan(self, plan_value: Make, name: str, other: str, rounds: int) -> Plan:
        privacy = {"epsilon": 11.4, "noise_multiplier": 4.9 if rounds == ROUNDS else 2.0}
        value = plan_value(metrics={"source": "off"}, training={"rounds": rounds}, privacy=privacy)
        value["sites"] = [one for one in value["sites"] if one["name"] in ("North", other)]
        return Plan.parse({**value, "name": f"plan-{name}"})

    def join_second(self) -> subprocess.CompletedProcess[str]:
        """North comes in to the second coordinator, which runs, by its own command."""
        invitation = self.b.federation.invite("North")
        address = f"127.0.0.1:{self.b.enrolment}"
        file = self.folder / "second.json"
        file.write_text(json.dumps({**invitation, "enrolment": address}))
        self.b.run("hub", metrics=False)
        words = ("client", "init", str(file), "--dir", str(self.north))
        found: list[subprocess.CompletedProcess[str]] = []

        def comes_in() -> bool:
            found.append(typed(*words, folder=self.folder))
            return found[-1].returncode == 0 or "nobody answers" not in found[-1].stderr

        until(comes_in, 60)
        return found[-1]

    def allow(self, key: str, epsilon: float | None = None) -> None:
        policy = self.north / "site.toml"
        text = policy.read_text().replace("coordinators = [", f'coordinators = ["{key}", ')
        text = text.replace("plans = [", f'plans = ["{self.b.plan.digest}", ')
        if epsilon is not None:
            own = self.a.plan.privacy
            assert own is not None
            text = text.replace(f"epsilon = {20 * own.epsilon}", f"epsilon = {epsilon}")
        policy.write_text(text)

    def start(self) -> None:
        self.a.run("hub", metrics=False)
        self.a.run("North")
        self.a.run("East", metrics=False)
        self.b.run("South", metrics=False)

    def verdict(self, town: Commands, run: Run, *sites: Path) -> Any:
        out = self.folder / f"{run.id}.bundle"
        out.unlink(missing_ok=True)
        write_bundle([run.folder, *(site / "ledger" for site in sites)], out)
        return verify(out, run.folder / "roster-fingerprints.json", processes=1)

    def entries(self) -> list[Entry]:
        ledger = Ledger.read(self.north / "ledger")
        found = [Entry.read(leaf) for leaf in ledger.log.store.leaves()]
        ledger.log.store.close()
        return found


@pytest.fixture
def pair(tmp_path: Path, root: Path, plan_value: Make, frame_of: Make) -> Iterator[Pair]:
    made = Pair(tmp_path, root, plan_value, frame_of)
    yield made
    made.a.close()
    made.b.close()


def require_turns(entries: list[Entry]) -> list[str]:
    """Check that no reservation was open beside another; return who was answered, in turn."""
    who, open_ = [], ""
    for entry in entries:
        if entry.kind == "reserved":
            assert open_ == "", "two coordinators' reservations were open at once"
            open_ = entry.predicate["order"]
            who.append(entry.predicate["keyid"])
        elif entry.kind == "released":
            assert entry.predicate["order"] == open_
            open_ = ""
        assert entry.kind != "aborted"
    assert open_ == ""
    return who


def test_two_coordinators_share_a_ledger(pair: Pair) -> None:
    done = pair.join_second()
    assert done.returncode == 0, done.stderr
    key = pair.b.federation.order_key().fingerprint
    assert "let 'hub-2' ask" in done.stdout  # both are called 'hub'
    assert key in done.stdout
    assert (pair.north / "link" / "hub-2" / "link.pem").exists()
    again = typed("client", "init", "second.json", "--dir", str(pair.north), folder=pair.folder)
    assert again.returncode == 2 and "certificate already" in again.stderr
    status = typed("client", "status", "--policy", str(pair.north), "--json", folder=pair.folder)
    found = json.loads(status.stdout)["coordinators"]
    assert [one["may_ask"] for one in found] == [True, False]

    pair.allow(key)
    first = pair.a.submit("first")
    pair.start()
    # A second client over this ledger, in another folder, is refused.
    twin = pair.folder / "twin"
    twin.mkdir()
    text = (pair.north / "site.toml").read_text()
    (twin / "site.toml").write_text(f'ledger = "{pair.north / "ledger"}"\n{text}')
    until(lambda: "started" in pair.a.said("North"), 120)
    refused = typed("client", "start", "--policy", str(twin), folder=pair.folder)
    assert refused.returncode == 2 and "running here already" in refused.stderr

    pair.a.wait(first, lambda status: status.get("round", 0) >= 1)
    second = pair.b.submit("second")
    for town, run in ((pair.a, first), (pair.b, second)):
        town.wait(run, lambda status: status["state"] == "done")
    _, figures = pair.a.scrape("North")
    for name in {one["coordinator"] for one in found}:
        assert f'privet_client_connected{{coordinator="{name}"}} 1.0' in figures
    who = require_turns(pair.entries())
    changes = sum(one != other for one, other in pairwise(who))
    assert (len(who), changes >= 2) == (ROUNDS + 3, True), "the runs did not interleave"

    # What one coordinator's run charged after the other's is witnessed there, too, a while later.
    def verdicts() -> list[Any]:
        return [
            pair.verdict(pair.a, first, pair.north, pair.a.folder / "East"),
            pair.verdict(pair.b, second, pair.north, pair.b.folder / "South"),
        ]

    until(lambda: all(verdict.ok for verdict in verdicts()), 120)
    one, other = verdicts()
    assert not one.faults and not other.faults
    north = [next(s for s in v.sites if s.site == "North") for v in (one, other)]
    assert north[0].epsilon == north[1].epsilon and north[0].runs == 2
    assert north[0].epsilon > next(s for s in one.sites if s.site == "East").epsilon
    # Neither coordinator is told who else is in the other's federation.
    told = json.dumps([one.notes, (first.folder / "roster.json").read_text()])
    assert "South" not in told


def test_the_budget_of_two_coordinators_is_one(pair: Pair) -> None:
    """A cap that covers either run, and not both: the second one is refused, nothing overspent."""
    assert pair.join_second().returncode == 0
    pair.allow(pair.b.federation.order_key().fingerprint, epsilon=CAP)
    first = pair.a.submit("first")
    pair.start()
    pair.a.wait(first, lambda status: status["state"] == "done")
    second = pair.b.submit("second")
    pair.b.wait(second, lambda s: s.get("sites", {}).get("North") == "refused-budget")
    assert {e.predicate["run"] for e in pair.entries() if e.kind == "reserved"} == {"first"}
    ledger = Ledger.read(pair.north / "ledger")
    assert 0 < ledger.spent("patients").epsilon <= CAP
    ledger.log.store.close()


def test_an_old_ledger_serves_nobody_until_each_coordinator_has_shown_what_it_saw(
    pair: Pair,
) -> None:
    """North's ledger is put back from before the other coordinator's run, which only that knows."""
    assert pair.join_second().returncode == 0
    pair.allow(pair.b.federation.order_key().fingerprint)
    ledger, copy = pair.north / "ledger", pair.folder / "copy"
    b_hub = pair.b.running["hub"]
    pair.a.run("North")
    pair.b.run("South", metrics=False)
    until(lambda: "started" in pair.a.said("North"), 120)
    stop(pair.a.running["North"])
    shutil.copytree(ledger, copy)
    # The first coordinator is off; the second one's run is paid for, and then it is off, too.
    pair.a.run("North", "--not-restored")
    second = pair.b.submit("second")
    pair.b.wait(second, lambda status: status["state"] == "done")
    for process in (pair.a.running["North"], b_hub):
        stop(process)
    assert {e.predicate["run"] for e in pair.entries() if e.kind == "reserved"} == {"second"}
    shutil.rmtree(ledger)
    shutil.copytree(copy, ledger)

    first = pair.a.submit("first")
    pair.a.run("hub", metrics=False)
    pair.a.run("East", metrics=False)
    pair.a.run("North")
    pair.a.wait(first, lambda s: s.get("sites", {}).get("North") == "not-now")
    assert not [e for e in pair.entries() if e.kind == "reserved"]
    pair.b.run("hub", metrics=False)
    pair.a.wait(first, lambda s: s.get("sites", {}).get("North") == "refused-rollback")
    assert not [e for e in pair.entries() if e.kind == "reserved"]
    # What its operator says does not weigh against what was seen.
    stop(pair.a.running["North"])
    pair.a.run("North", "--not-restored")
    pair.a.wait(first, lambda s: s.get("sites", {}).get("North") == "refused-rollback")
    assert not [e for e in pair.entries() if e.kind == "reserved"]
    # The control: where the one that knows is not asked, what was spent is forgotten.
    stop(pair.a.running["North"])
    stop(pair.b.running["hub"])
    pair.a.run("North", "--not-restored")
    pair.a.wait(first, lambda status: status.get("round", 0) >= 1)


def test_a_site_that_is_started_again_in_the_middle_of_a_run_goes_on_with_it(pair: Pair) -> None:
    """Its run waits for the other coordinator's head, and is not lost by that."""
    assert pair.join_second().returncode == 0
    pair.allow(pair.b.federation.order_key().fingerprint)
    first = pair.a.submit("first")
    pair.start()
    pair.a.wait(first, lambda status: status.get("round", 0) >= 2)
    stop(pair.b.running["hub"])
    stop(pair.a.running["North"])
    before = len([e for e in pair.entries() if e.kind == "reserved"])
    pair.a.run("North")
    until(lambda: "not ready" in pair.a.said("North"), 120)
    attends = 'a site attends site="North"'
    until(lambda: pair.a.said("hub").count(attends) == 2, 60)
    time.sleep(2)  # it is asked, and its log is not shown
    assert len([e for e in pair.entries() if e.kind == "reserved"]) == before
    pair.b.run("hub", metrics=False)
    pair.a.wait(first, lambda status: status["state"] == "done")
    paid = [e.predicate["round"] for e in pair.entries() if e.kind == "reserved"]
    # The stop may break the order that is being answered, and that charge is kept.
    assert {*paid} == {*range(1, ROUNDS + 1)} and len(paid) <= ROUNDS + 1
    answers = [line for line in pair.a.said("hub").splitlines() if 'status="failed"' in line]
    assert len(answers) <= 1, answers


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)
