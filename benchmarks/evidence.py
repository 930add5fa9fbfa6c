"""How fast evidence is written, decided on and verified.

    python benchmarks/evidence.py --json          about 10 minutes: a log of 1,000,000 entries
    python benchmarks/evidence.py --quick         under a minute

- durable appends a second: a ledger's reserve and commit, each on disk before it returns; the
  peer writes the same bytes to a file with fsync, in turn with it;
- a gate decision after 1,000 releases, and the ε of record of a history of 10,000 entries; the
  peer asks dp-accounting for the same ε from an empty accountant, event by event group;
- `privet audit verify` of one log with N entries, on two processes; the peer does nothing but
  check as many Ed25519 signatures over the same bytes, in one process;
- `privet audit report` of one log with 3,736 entries, verification included;
- the size of an offline proof with eight cosignatures.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Row, finish, parser, row, tell


def plan_of(rounds: int, noise: float = 20.0):  # type: ignore[no-untyped-def]
    """Return a plan of so many rounds."""
    import privet

    return privet.Plan.parse(
        {
            "name": "evidence", "seed": 0,
            "task": {"classes": ["0", "1"], "numeric": {"x": {"low": 0, "high": 1}}},
            "training": {"rounds": rounds, "steps": 2, "sample_rate": 0.01},
            "privacy": {"epsilon": 100.0, "delta": 1e-5, "noise_multiplier": noise},
            "sites": [{"name": "site", "nominal_size": 100}],
        }
    )  # fmt: skip


class Bench:
    """A ledger with one plan of many rounds, and its keys."""

    def __init__(self, folder: Path, rounds: int, noise: float = 20.0) -> None:
        from privet.privacy.accounting.plan_events import training_event
        from privet.privacy.accounting.units import Relation, Unit
        from privet.privacy.evidence.keys import FileSigner
        from privet.privacy.evidence.ledger import Ledger
        from privet.privacy.evidence.ledger_state import Budget
        from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
        from privet.privacy.evidence.signed_note import COSIGN, Key, key_name

        def key(kind: str, name: str, type_: int = 1) -> Key:
            public = FileSigner.generate().public
            return Key(key_name(kind, name, public), public, type_)

        self.plan = plan_of(rounds, noise)
        self.event = training_event(self.plan)
        witness = key("witness", "site", COSIGN)
        self.folder = folder / "site"
        self.signer = FileSigner.generate()
        self.orders = key("orders", "coordinator")
        self.ledger = Ledger(self.folder, self.signer, "site", witness=witness, create=True)
        budget = Budget(100.0, 1e-5, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
        self.ledger.register("people", budget)
        self.ledger.add_data_set("records", "people")
        self.ledger.set_policy(self._policy())
        self.ledger.keep("plan", self.plan.digest, self.plan.to_dict())
        self.ledger.approve(self.plan.digest, ["somebody"], "manual")
        chief = CoordinatorKeys(
            "coordinator", key("journal", "coordinator"), self.orders,
            key("witness", "coordinator", COSIGN),
        )  # fmt: skip
        self.keyid = chief.orders.fingerprint.partition(":")[2]
        (self.folder / "keyid").write_text(self.keyid)
        Roster(chief, (Member("site", self.ledger.log.first_key, witness),), 0).save(folder)

    def _policy(self) -> dict[str, object]:
        """Return a policy that allows the plan, as a site publishes it."""
        from privet.privacy.policy import Policy

        return Policy.parse(
            {
                "site": "site",
                "populations": {"people": {"unit": "record", "epsilon": 100.0, "delta": 1e-5}},
                "data": {"records": {"population": "people", "nominal_size": 100}},
                "allow": {
                    "tasks": ["*"], "models": ["*"], "coordinators": [self.orders.fingerprint],
                    "max_rounds": self.plan.training.rounds,
                },
            }
        ).public()  # fmt: skip

    def release(self, number: int) -> None:
        """Reserve and commit one release."""
        from privet.common.order import Order
        from privet.privacy.evidence.ledger import Request

        order = Order("run", "site", number, 1, "train", self.plan.digest, "sha256:" + "0" * 64,
                      ("w",), self.keyid)  # fmt: skip
        code = "sha256:" + "1" * 64
        reservation = self.ledger.reserve(Request(order, self.event, "records", code))
        self.ledger.commit(reservation, self.event, "sha256:" + f"{number:064x}")


def appends(folder: Path, seconds: float) -> list[Row]:
    """Durable appends, in turn with the same bytes to a file with fsync."""
    bench = Bench(folder, 10_000)
    bench.release(1)
    last = bench.ledger.log.store.leaf(len(bench.ledger.log) - 1)
    rates: list[tuple[float, float]] = []
    number, stop = 2, time.perf_counter() + seconds
    with (folder / "plain").open("ab", buffering=0) as stream:
        while time.perf_counter() < stop:
            started = time.perf_counter()
            for _ in range(20):
                bench.release(number)
                number += 1
            mine = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(40):
                stream.write(last)
                os.fsync(stream.fileno())
            rates.append((40 / mine, 40 / (time.perf_counter() - started)))
    mine, peer = (statistics.median(pair[n] for pair in rates) for n in (0, 1))
    return [row("durable appends", mine, "entries/s", "write + fsync of the same bytes", peer)]


def decisions(folder: Path) -> list[Row]:
    """A gate decision after 1,000 releases; the ε of record of 10,000 entries."""
    import dp_accounting as dp
    from dp_accounting import pld

    from privet.privacy.accounting.events import Repeated

    bench = Bench(folder, 10_000)
    with bench.ledger.log.writing():
        for number in range(1, 1_001):
            bench.release(number)
    warm = [_timed(lambda n=n: bench.release(n)) for n in range(1_001, 1_031)]
    bench.signer.save(bench.folder / "ledger.pem", None)
    bench.ledger.log.store.close()
    cold = _in_a_new_process(_first_decision, bench.folder)
    with bench.ledger.log.writing():
        for number in range(1_032, 5_001):
            bench.release(number)
    bench.ledger.log.store.close()
    record = _in_a_new_process(_record, bench.folder)

    def peer() -> None:
        accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
        step = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(20.0))
        for _ in range(5_000):
            accountant.compose(dp.SelfComposedDpEvent(step, 2))
        accountant.get_epsilon(1e-5)

    entries = len(bench.ledger.log)
    assert isinstance(bench.event, Repeated)
    one_by_one = _timed(peer) if entries < 20_000 else None
    return [
        row("gate decision after 1,000 releases, with fsync", statistics.median(warm), "s",
            "goal", 0.2),
        row("the same, first after a restart", cold, "s", None, None),
        row(f"ε of record of {entries:,} entries", record, "s",
            "dp-accounting, release by release", one_by_one),
    ]  # fmt: skip


def _in_a_new_process(job: Callable[[Path], float], folder: Path) -> float:
    """Run ``job`` where nothing is cached."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, (folder,))


def _first_decision(folder: Path) -> float:
    bench = Bench.__new__(Bench)
    bench.plan = plan_of(10_000)
    bench.ledger, bench.keyid = _opened(folder), (folder / "keyid").read_text()
    from privet.privacy.accounting.plan_events import training_event

    bench.event = training_event(bench.plan)
    return _timed(lambda: bench.release(1_031))


def _record(folder: Path) -> float:
    ledger = _opened(folder)
    return _timed(lambda: ledger.spent())


def _opened(folder: Path):  # type: ignore[no-untyped-def]
    from privet.privacy.evidence.keys import FileSigner
    from privet.privacy.evidence.ledger import Ledger

    return Ledger(folder, FileSigner.load(folder / "ledger.pem", None), "site")


def _bundle(folder: Path, entries: int, noise: float = 20.0) -> tuple[Bench, Path]:
    """Write the bundle of one log of ``entries`` entries."""
    from privet.privacy.audit.bundle import write_bundle

    bench = Bench(folder, entries, noise)
    tell(f"writing {entries:,} entries")
    ledger, number = bench.ledger, 0
    with _one_signature(ledger):
        while len(ledger.log) + 2 <= entries:
            with ledger.log.writing():
                for _ in range(5_000):
                    if len(ledger.log) + 2 <= entries:
                        number += 1
                        bench.release(number)
    path = folder / "bundle"
    write_bundle([bench.folder, folder], path)
    return bench, path


def _audit(folder: Path, *command: str) -> tuple[float, float]:
    """Run a command of ``privet audit`` on the bundle; return its seconds and peak memory in MB."""
    code = "import privet.cli, sys; sys.argv[1:] = sys.argv[2:]; privet.cli.main()"
    roster = str(folder / "roster-fingerprints.json")
    return _watched(
        [sys.executable, "-c", code, "-", "audit", command[0], str(folder / "bundle"),
         "--roster", roster, *command[1:], "--no-require-witnessed", "--json"]
    )  # fmt: skip


def reporting(folder: Path, entries: int) -> list[Row]:
    """Verify a log of ``entries`` entries and write the officer's report of it."""
    _bundle(folder, entries, noise=1.0)  # so little that composing takes time, as in real runs
    tell("reporting")
    seconds, _ = _audit(folder, "report", "--out", str(folder / "report"))
    return [row(f"report of {entries:,} entries", seconds, "s", "goal", 8.0)]


def verification(folder: Path, entries: int) -> list[Row]:
    """Verify one log of ``entries`` entries."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from privet.privacy.evidence.statement import pae

    bench, path = _bundle(folder, entries)
    tell("verifying")
    mine, memory = _audit(folder, "verify")
    key = Ed25519PublicKey.from_public_bytes(bench.signer.public)
    message = pae("application/vnd.in-toto+json", b"x" * 900)
    signature = bench.signer.sign(message)
    sample = min(entries, 20_000)
    started = time.perf_counter()
    for _ in range(sample):
        key.verify(signature, message)
    peer = (time.perf_counter() - started) * entries / sample
    return [
        row(f"verify {entries:,} entries", mine, "s", "the signatures alone, one process", peer,
            bytes=path.stat().st_size),
        row(f"largest process verifying {entries:,}", memory, "MB", None, None),
    ]  # fmt: skip


#: Runs a command and prints its seconds and the peak memory of its largest process in KiB. Linux
#: counts what a process had before `exec` to its peak, so the command is not started from here.
_WATCH = """
import resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def _watched(command: list[str]) -> tuple[float, float]:
    """Return the seconds a command took, and the peak memory of its largest process in MB."""
    watch = [sys.executable, "-c", _WATCH, *command]
    done = subprocess.run(watch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"verification failed: {done.stderr[:1000]}")
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak / 1024


@contextmanager
def _one_signature(ledger) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """Sign the head once at the end of a batch, not with each entry: only to build faster."""
    log = ledger.log
    head, put = log.head, log.store.put
    log.store.put = lambda name, value: None if name == "head" else put(name, value)
    log.head = lambda: _NoText  # type: ignore[assignment]
    yield
    log.head, log.store.put = head, put
    with log.store.transaction():
        put("head", log.head().text)


class _NoText:
    text = ""


def proof_size(folder: Path) -> list[Row]:
    """The size of an offline proof in a log of a million entries, with eight cosignatures."""
    from privet.privacy.evidence.keys import FileSigner
    from privet.privacy.evidence.signed_note import COSIGN, Checkpoint, Key, key_name, proof_text

    signer = FileSigner.generate()
    key = Key(key_name("ledger", "site", signer.public), signer.public)
    head = Checkpoint(key.name, 1_000_000, b"\0" * 32).signed(key, signer)
    lines = []
    for number in range(8):
        witness = FileSigner.generate()
        name = key_name("witness", f"hospital-{number}", witness.public)
        lines.append(head.cosignature(Key(name, witness.public, COSIGN), witness, 1_700_000_000))
    text = proof_text(999_999, [b"\1" * 32] * 20, head.with_cosignatures(lines))
    del folder
    return [row("offline proof, 1,000,000 entries, 8 cosignatures", len(text.encode()), "bytes",
                "goal", 4000)]  # fmt: skip


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__).parse_args()
    sizes = [5_000] if arguments.quick else [100_000, 1_000_000]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("appends", "decisions", "report", *map(str, sizes), "proof"):
            (folder / part).mkdir()
        rows += appends(folder / "appends", 3 if arguments.quick else 20)
        rows += decisions(folder / "decisions")
        rows += reporting(folder / "report", 3_736)
        for size in sizes:
            rows += verification(folder / str(size), size)
        rows += proof_size(folder / "proof")

    def line(r: Row) -> str:
        peer = f"  {r['peer']}: {r['peer_value']:.4g}" if r["peer_value"] else ""
        return f"{r['name']:52} {r['value']:>10.4g} {r['unit']}{peer}"

    finish(rows, arguments.json, line)


if __name__ == "__main__":
    main()
