"""Kill sites at any moment, fill their disk, cut their writes: no debit may be lost.

    python campaigns/crash.py --json            500 killed runs, 120 with a failing disk
    python campaigns/crash.py --quick           15 and 12

In each run a real site (guard, ledger, outbox, Opacus training on real records) answers the
orders of a plan in a process of its own, and tells through a pipe what it reserved and what
it released. The process is killed with SIGKILL at a random moment, started again with the
same order, killed again, until it is through. In some runs the size of its files is limited
(a write is cut short, the next one fails), in others its disk is a full tmpfs where that may
be mounted. Then the ledger is read: each promise that was told must be in it, each released
slot once, each broken attempt named.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Children are forked: threads would not survive that.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import torch
from harness import Row, finish, parser, row, tell

from privet.client.site import Site
from privet.client.training.model_runtime import model_runtime
from privet.client.training.trainer import Trainer
from privet.common.flat import digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.evidence.ledger import Request
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.statement import Entry
from privet.simulations.federation import SimulatedFederation
from privet.simulations.planning import resolve
from privet.simulations.records import SiteRecords
from privet.simulations.starter import write_starter

ROUNDS = 4


def prepare(folder: Path) -> tuple[Plan, SiteRecords]:
    """Return a plan and its records, with model and self-test warm in this process."""
    torch.set_num_threads(1)
    write_starter(folder / "plan")
    plan = Plan.load(folder / "plan" / "plan.toml").changed(
        training={"rounds": ROUNDS, "max_attempts": 100}, metrics={"source": "gate"}, threads=1
    )
    plan = resolve(plan)
    records = SiteRecords(plan, None, folder / "plan")
    records.parts()
    _ = model_runtime(plan).self_tests
    return plan, records


class TellingSite(Site):
    """A site that tells what it reserved as soon as the ledger has promised it."""

    pipe = -1

    def _debit(self, request: Request) -> Reservation:
        reservation = super()._debit(request)
        _say(self.pipe, {"reserved": reservation.number, "slot": reservation.slot})
        return reservation


class Trial:
    """One site with its coordinator's orders."""

    def __init__(self, plan: Plan, records: SiteRecords, folder: Path) -> None:
        self.plan, self.records = plan, records
        # Room for broken attempts: their charges stay.
        self.parties = SimulatedFederation(plan, folder, cap=100.0)
        roster = self.parties.found()
        self.model = initial_model(plan)
        journal = self.parties.collector(roster).journal
        digest, self.name = digest_arrays(self.model), plan.sites[0].name
        self.orders = [
            journal.sign(
                Order("run", self.name, number, 1, purpose, plan.digest, digest, tuple(self.model))
            )
            for number in range(1, ROUNDS + 1)
            for purpose in ("train", "evaluate")
        ]
        self.told: list[dict[str, object]] = []

    def work(self, pipe: int) -> None:
        """Answer all orders from the first that was not answered; tell what happened."""
        roster = self.parties.roster()
        admission = self.parties.admission(self.name, roster)
        site = TellingSite(
            self.name, self.plan, self.parties.folder / "sites" / self.name, admission,
            self.parties.witness(self.name), roster,
            Trainer(self.plan, self.name, lambda: self.records.site(self.name)),
        )  # fmt: skip
        site.pipe = pipe
        answered = {told["slot"] for told in self.told if "released" in told}
        # The last answer may have been lost on its way: the same order is asked again.
        todo = [n for n, order in enumerate(self.orders) if order.slot not in answered]
        first = max(0, (todo[0] if todo else len(self.orders)) - 1)
        for order in self.orders[first:]:
            answer = site.answer(order, self.model)
            if answer.release is not None:
                digest = answer.release.facts["digest"]
                _say(pipe, {"released": digest, "slot": order.slot})
            else:
                _say(pipe, {"refused": str(answer.status), "slot": order.slot})

    def start(self, *, kill_after: float | None, file_limit: int | None = None) -> bool:
        """Run a child; return whether it was killed."""
        inward, outward = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inward)
            _be_quiet()
            try:
                if file_limit is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
                self.work(outward)
            except BaseException as error:
                _say(outward, {"error": repr(error)})
            finally:
                os._exit(0)
        os.close(outward)
        killed = False
        if kill_after is not None:
            time.sleep(kill_after)
            killed = os.waitpid(child, os.WNOHANG) == (0, 0)
            if killed:
                os.kill(child, signal.SIGKILL)
        with os.fdopen(inward, "rb") as stream:
            lines = stream.read().split(b"\n")
        if killed or kill_after is None:
            os.waitpid(child, 0)
        self.told += [json.loads(line) for line in lines if line]
        return killed

    def check(self) -> Counter[str]:
        """Compare what was told with what the ledger says."""
        ledger = self.parties.ledger(self.name)
        entries = [Entry.read(leaf) for leaf in ledger.log.store.leaves()]
        found = Counter[str]()
        reserved = {e.sequence: e.predicate for e in entries if e.kind == "reserved"}
        released = [e for e in entries if e.kind in ("released", "metric-released")]
        aborted = [e for e in entries if e.kind == "aborted"]
        digests: dict[str, str] = {}
        for entry in released:
            value = reserved.get(entry.predicate["reservation"])
            if value is None:
                found["releases without a debit"] += 1
                continue
            slot = f"run/{value['purpose']}/{value['round']}/{value['attempt']}"
            found["double debits for a release"] += slot in digests
            digests[slot] = entry.predicate["digest"]
        for told in self.told:
            slot = str(told.get("slot"))
            if "reserved" in told and told["reserved"] not in reserved:
                found["lost debits"] += 1
            if "released" in told and digests.get(slot) != told["released"]:
                found["releases without a debit"] += 1
        closed = {e.predicate["reservation"] for e in [*released, *aborted]}
        found["charges without a name"] += len(set(reserved) - closed)
        kept = [e for e in aborted if e.predicate["data_opened"]]
        found["broken attempts named"] += len(kept)
        counted = sum(sum(c.values()) for c in ledger.state.charges(
            next(iter(ledger.state.populations))).values())  # fmt: skip
        steps = self.plan.training.steps
        expected = sum(
            steps if reserved[n]["purpose"] == "train" else 1
            for n in reserved
            if n not in {e.predicate["reservation"] for e in aborted
                         if not e.predicate["data_opened"]}
        )  # fmt: skip
        found["lost debits"] += counted != expected
        if len(digests) != len(self.orders):
            found["runs not finished"] += 1
            tell(f"not finished: {self.told[-12:]}")
        return found


def _say(pipe: int, value: dict[str, object]) -> None:
    os.write(pipe, json.dumps(value).encode() + b"\n")


def _be_quiet() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def killed_run(trial: Trial, rng: random.Random, duration: float) -> int:
    """Kill the site at random moments until it is through; return how often it was killed."""
    kills = 0
    for _ in range(4):
        if not trial.start(kill_after=rng.uniform(0, duration)):
            break
        kills += 1
    trial.start(kill_after=None)
    return kills


def cut_run(trial: Trial, rng: random.Random) -> int:
    """Let writes beyond a random size be cut short and then fail; return 1 if any did."""
    home = trial.parties.home(trial.name)
    sizes = [path.stat().st_size for path in home.glob("ledger.db*")]
    trial.start(kill_after=None, file_limit=max(sizes) + rng.randrange(200_000))
    failed = any("error" in told or "refused" in told for told in trial.told)
    trial.start(kill_after=None)
    return int(failed)


def full_run(trial: Trial, rng: random.Random) -> int:
    """Fill the disk that the site is on; return 1 if something failed for it."""
    ballast = trial.parties.folder / "ballast"
    room = os.statvfs(trial.parties.folder)
    free = room.f_bavail * room.f_frsize
    with ballast.open("wb") as stream:
        stream.write(b"\0" * max(0, free - rng.randrange(120_000)))
    trial.start(kill_after=None)
    failed = any("error" in told or "refused" in told for told in trial.told)
    ballast.unlink()
    trial.start(kill_after=None)
    return int(failed)


def main() -> None:
    """Run the campaign."""
    options = parser(__doc__)
    options.add_argument("--runs", type=int, help="number of killed runs")
    arguments = options.parse_args()
    runs = arguments.runs or (15 if arguments.quick else 500)
    rng = random.Random(0)
    total, kinds = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, records = prepare(folder)
        first = Trial(plan, records, folder / "first")
        started = time.perf_counter()
        first.start(kill_after=None)
        duration = time.perf_counter() - started
        if first.check()["runs not finished"]:
            raise SystemExit(f"the site does not answer at all: {first.told}")
        begun = time.monotonic()
        while kinds["killed"] < runs:
            trial = Trial(plan, records, folder / f"killed-{kinds['tried']}")
            kinds["tried"] += 1
            kills = killed_run(trial, rng, 1.2 * duration)
            kinds["kills"] += kills
            kinds["killed"] += bool(kills)
            total += trial.check()
            if kinds["tried"] % 50 == 0:
                tell(f"{kinds['killed']} killed runs, {time.monotonic() - begun:.0f} s")
        disks = max(6, runs * 60 // 500)
        for number in range(disks):
            trial = Trial(plan, records, folder / f"cut-{number}")
            kinds["cut"] += cut_run(trial, rng)
            total += trial.check()
        for full, found in full_disks(plan, records, folder / "tmpfs", disks, rng):
            kinds["full"] += full
            total += found
    rows = _rows(kinds, total)
    finish(rows, arguments.json, lambda r: f"{r['name']:42} {r['value']:>7g} {r['unit']}")
    if any(r["value"] for r in rows if r["peer"] == "goal"):
        sys.exit(1)


def full_disks(
    plan: Plan, records: SiteRecords, place: Path, count: int, rng: random.Random
) -> Iterator[tuple[int, Counter[str]]]:
    """Yield, for each of ``count`` runs on a full disk, whether it failed and what was found."""
    place.mkdir()
    for _ in range(count):
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            tell("no tmpfs can be mounted here: the full disk was not tried")
            return
        try:
            trial = Trial(plan, records, place / "run")
            yield full_run(trial, rng), trial.check()
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False)


def _rows(kinds: Counter[str], total: Counter[str]) -> list[Row]:
    rows = [
        row("runs that were killed", kinds["killed"], "runs", None, None),
        row("SIGKILLs", kinds["kills"], "kills", None, None),
        row("runs whose writes were cut short", kinds["cut"], "runs", None, None),
        row("runs on a full disk", kinds["full"], "runs", None, None),
        row("broken attempts, each named", total["broken attempts named"], "entries", None, None),
    ]
    goals = (
        "lost debits", "double debits for a release", "releases without a debit",
        "charges without a name", "runs not finished",
    )  # fmt: skip
    return rows + [row(name, total[name], "cases", "goal", 0) for name in goals]


if __name__ == "__main__":
    main()
