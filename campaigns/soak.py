"""A soak: a federation of real processes that is disturbed all the time, and must come through.

Five sites of a linear model, each a process with its trainer, one reading from a PostgreSQL
server, one on a small file system. While the rounds go on, sites are paused, a disk is filled, the
database is stopped, trainers are stopped and killed, sites and coordinator are killed, ledger keys
are rotated, the coordinator moves, is restored from an older copy of its folder, and a copied
site's folder is started beside the site. Then everything is read again:

- ``real`` noise, quorum of four: the model must equal, bit for bit, what the releases that the
  journal names come to (they are kept aside as they are made), and the journal's digests; each
  charge that joined no round must have a disturbance at its site and time; none may come of a
  pause, a full disk, a database or a key that changes.
- ``seeded`` noise, quorum of five: the model must equal, bit for bit, that of a run in peace.

Used by ``unattended.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import pandas as pd
from federation_fixture import FederationFixture, free_port, plan_for
from harness import Row, row, tell
from safetensors.numpy import load_file

from privet.client.outbox import Outbox
from privet.common.errors import InputError
from privet.common.flat import Arrays, digest_arrays
from privet.common.models import initial_model
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.server.aggregate import Aggregator
from privet.server.queue import Run

SITES = ["North", "East", "South", "West", "Coast"]
_ON_A_DISK, _ON_A_DATABASE = "North", "East"
_DISK_MB = 48
_PRIVET = [sys.executable, "-c", "from privet.cli import main; main()"]
_COSTLY = {"trainer killed", "trainer stopped", "site killed", "cloned"}
"""What may break an order that was reserved, at its own site; the rest costs nothing there."""


@dataclass
class Disturbance:
    """One thing that was done: what, to whom, and between which rounds."""

    kind: str
    site: str
    began: int
    ended: int = 0


@dataclass
class Soak:
    """A federation and who disturbs it.

    Args:
        federation: enrolled, not started.
        run: queued.
        seed: of the choice of disturbances.
        kinds: that are chosen from, each at least once.
        pauses: rounds between two of them.
    """

    federation: FederationFixture
    run: Run
    seed: int
    kinds: list[str]
    pauses: tuple[int, int]
    database: Any = None
    done: int = 0
    log: list[Disturbance] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    # what is done

    def disturb(self) -> None:
        """Disturb until the run is over, one thing after another."""
        due = list(self.kinds)
        self._chance.shuffle(due)
        while not self.over.is_set():
            if not self._wait_rounds(self._chance.randint(*self.pauses)):
                return
            kind = due.pop() if due else self._chance.choice(self.kinds)
            try:
                self._do(kind)
            except Exception as error:  # told at the end, with the rest
                self.faults.append(f"{kind}: {error!r}")
                return

    def _do(self, kind: str) -> None:
        act: Callable[[str], None] = getattr(self, "_" + kind.replace(" ", "_"))
        site = {"disk full": _ON_A_DISK, "database down": _ON_A_DATABASE}.get(kind, "")
        if kind not in ("coordinator killed", "coordinator moved", "coordinator restored"):
            site = site or self._chance.choice(SITES)
        tell(f"round {self.done}: {kind} {site}")
        event = Disturbance(kind, site, self.done)
        self.log.append(event)
        act(site)
        event.ended = self.done

    def _wait_rounds(self, count: int) -> bool:
        """Wait until so many rounds were done; False once the run is over."""
        until = self.done + count
        while self.done < until:
            if self.over.wait(0.02):
                return False
        return True

    def _hold(self) -> None:
        self.over.wait(self._chance.uniform(0.5, 4.0))

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            [*_PRIVET, *words], capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"privet {' '.join(words)}: {done.stderr[-600:]}")
        return done.stdout

    def _policy(self, site: str) -> str:
        return str(self.federation.folder / site / "site.toml")

    def _paused(self, site: str) -> None:
        self._command("client", "pause", "--policy", self._policy(site))
        self._hold()
        self._command("client", "pause", "--end", "--policy", self._policy(site))

    def _disk_full(self, site: str) -> None:
        filler = self.federation.folder / site / "filler"
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(1 << 16))
        self._hold()
        filler.unlink()

    def _database_down(self, site: str) -> None:
        self.database.stop()
        # With records in its memory a trainer needs no database: the next one does. The kill may
        # break an order that was paid for, which the database that is down may not.
        self.log.append(Disturbance("trainer killed", site, self.done, self.done))
        self._signal_trainer(site, signal.SIGKILL)
        self._hold()
        self.database.start()

    def _trainer_killed(self, site: str) -> None:
        self._signal_trainer(site, signal.SIGKILL)

    def _trainer_stopped(self, site: str) -> None:
        self._signal_trainer(site, signal.SIGSTOP)

    def _signal_trainer(self, site: str, how: signal.Signals) -> None:
        client = self.federation.processes[site].pid
        for child in _children(client):
            if b"training.worker" in _words(child):
                with suppress(ProcessLookupError):
                    os.kill(child, how)

    def _site_killed(self, site: str) -> None:
        self.federation.kill(site)
        self._hold()
        self.federation.start(site)

    def _key_rotated(self, site: str) -> None:
        self._command("client", "rotate-key", "--policy", self._policy(site))

    def _cloned(self, site: str) -> None:
        copy = self.federation.folder / f"copy of {site}"
        left = shutil.ignore_patterns("archive")
        shutil.copytree(
            self.federation.folder / site, copy, ignore=left, copy_function=_copy_if_there
        )
        self.federation.start(copy.name)
        self.over.wait(8.0)
        self.federation.kill(copy.name)
        shutil.rmtree(copy)

    def _coordinator_killed(self, _: str) -> None:
        self.federation.kill("hub")
        self._hold()
        self.federation.start("hub")

    def _coordinator_moved(self, _: str) -> None:
        port = free_port()
        self._command(
            "server", "set-address", str(self.federation.folder / "hub"), f"127.0.0.1:{port}"
        )
        while "all sites know it" not in self._command(
            "server", "status", str(self.federation.folder / "hub")
        ):
            self.over.wait(1.0)
        self.federation.kill("hub")
        self.federation.port = port
        self.federation.start("hub")

    def _coordinator_restored(self, _: str) -> None:
        hub, copy = self.federation.folder / "hub", self.federation.folder / "hub.copy"
        self.federation.kill("hub")
        shutil.copytree(hub, copy)
        self.federation.start("hub")
        self._wait_rounds(2)
        self.federation.kill("hub")
        lost = hub.rename(hub.with_name("hub.lost"))
        copy.rename(hub)
        self.federation.start("hub")
        shutil.rmtree(lost)


def _words(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _children(process: int) -> list[int]:
    """Return all processes below one."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found + [grand for child in found for grand in _children(child)]


class Archive(threading.Thread):
    """Keeps each release beside the outbox that will drop it, as a second name of its file."""

    def __init__(self, homes: list[Path]) -> None:
        super().__init__(daemon=True)
        self._homes, self._over = homes, threading.Event()

    def run(self) -> None:
        """Keep what comes until told to end."""
        while not self._over.wait(0.02):
            self._keep()

    def _keep(self) -> None:
        for home in self._homes:
            for path in (home / "outbox").glob("*.safetensors"):
                kept = home / "archive" / path.name
                if not kept.exists():
                    with suppress(OSError):
                        os.link(path, kept)

    def close(self) -> None:
        """Keep what came last, and end."""
        self._over.set()
        self.join()
        self._keep()


def _copy_if_there(source: str, target: str) -> None:
    """Copy a file, unless the site that is at work removed it meanwhile."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _small_disk(home: Path) -> bool:
    """Put a site's folder on a file system of its own; False where that may not be done."""
    aside = home.with_name(f"{home.name} aside")
    home.rename(aside)
    home.mkdir(mode=0o700)
    mounted = shutil.which("mount") and os.geteuid() == 0
    if mounted:
        words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=0700", "tmpfs", str(home)]
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    shutil.copytree(aside, home, dirs_exist_ok=True)
    shutil.rmtree(aside)
    return bool(mounted)


def _on_database(home: Path) -> Any:
    """Have a site read its records from a PostgreSQL server; None where there is none."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    try:
        from postgres_kit import READER, READER_PASSWORD, Postgres

        server = Postgres()
    except (ImportError, RuntimeError):
        return None
    frame = pd.read_csv(home / "records.csv")
    with server.connect() as connection:
        connection.execute("CREATE TABLE records (x1 float8, x2 float8, y integer)")
        for line in frame.itertuples(index=False):
            connection.execute("INSERT INTO records VALUES (%s, %s, %s)", tuple(line))
        connection.execute(f"GRANT SELECT ON records TO {READER}")
    secret = home / "db.password"
    secret.write_text(READER_PASSWORD)
    secret.chmod(0o600)
    policy = home / "site.toml"
    sql = (
        'columns = ["x1", "x2", "y"]\n[data.records.sql]\n'
        f'url = "{server.url()}?sslmode=disable"\ntable = "records"\n'
        'password_file = "db.password"\n'
    )
    policy.write_text(policy.read_text().replace('path = "records.csv"\n', sql))
    return server


def until_done(made: Soak, seconds: float = 7200) -> None:
    """Wait for the end of the run, and note each round that is done."""
    end = time.monotonic() + seconds
    while not made.over.is_set():
        try:
            status = made.run.status
        except InputError:  # the coordinator's folder is being put back
            status = {"state": "running"}
        made.done = max(made.done, int(status.get("round", 0)))
        if status["state"] == "done":
            return
        if status["state"] == "failed" or made.faults or time.monotonic() > end:
            raise SystemExit(f"{status}\n{made.faults}\n{made.federation.logs()}")
        time.sleep(0.01)


def soak(
    folder: Path, rounds: int, kinds: list[str], pauses: tuple[int, int], *, seeded: bool, seed: int
) -> tuple[Soak, float]:
    """Run a federation and disturb it.

    Args:
        folder: a new one.
        rounds: of the plan.
        kinds: of disturbances; none leaves the run in peace.
        pauses: least and most rounds between two disturbances.
        seeded: noise that can be made again, and a quorum of all.
        seed: of the disturbances.

    Returns:
        The soak, and the seconds it took.
    """
    least = len(SITES) if seeded else len(SITES) - 1
    plan = plan_for(SITES, rounds, strategy={"min_sites": least})
    federation = FederationFixture(folder, plan, ("seeded",) if seeded else ())
    home = folder / _ON_A_DISK
    mounted = bool(kinds) and _small_disk(home)
    # Also in peace: a table's rows come in another order than a file's, and are drawn by number.
    database = _on_database(folder / _ON_A_DATABASE)
    absent = {"disk full": mounted, "database down": database}
    kinds = [kind for kind in kinds if absent.get(kind, True)]
    for name in SITES:
        (folder / name / "archive").mkdir()
    made = Soak(federation, federation.submit(), seed, kinds, pauses, database)
    archive = Archive([folder / name for name in SITES])
    archive.start()
    disturber = threading.Thread(target=made.disturb, daemon=True)
    began = time.monotonic()
    try:
        federation.start_all()
        if kinds:
            disturber.start()
        until_done(made)
        took = time.monotonic() - began
    finally:
        made.over.set()
        if disturber.ident:
            disturber.join(60)
        federation.close()
        archive.close()
        if database is not None:
            database.close()
        if mounted:
            aside = home.with_name("aside")
            shutil.copytree(home, aside)
            subprocess.run(["umount", "--lazy", str(home)], check=False)
            home.rmdir()
            aside.rename(home)
    if made.faults:
        raise SystemExit("\n".join(made.faults))
    return made, took


# what is read afterwards


@dataclass(frozen=True)
class Charge:
    """A reservation that joined no round: broken, or released when the round had gone on."""

    site: str
    round: int
    late: bool

    def __str__(self) -> str:
        return f"{self.site} in round {self.round}: {'released late' if self.late else 'broken'}"


@dataclass(frozen=True)
class Reading:
    """What folders say of a run that is over.

    Attributes:
        same: whether the model is, bit for bit, what the releases come to.
        charges: reservations of all sites.
        spare: those that joined no round.
        unexplained: of these, those that no disturbance at their site explains.
        configuration: broken ones where nothing was disturbed but a configuration.
    """

    same: bool
    charges: int
    spare: list[Charge]
    unexplained: list[Charge]
    configuration: list[Charge]


def entries(database: Path, kind: str) -> list[dict[str, Any]]:
    """Return the entries of one kind of a ledger or a journal."""
    store = Store(database)
    try:
        found = [entry for entry in map(Entry.read, store.leaves()) if entry.kind == kind]
    finally:
        store.close()
    return [{**entry.predicate, "sequence": entry.sequence} for entry in found]


def read(made: Soak) -> Reading:
    """Aggregate the releases that the journal names anew, and account for each charge."""
    federation = made.federation
    journal = made.run.folder / "coordinator" / "journal.db"
    rounds = entries(journal, "round")
    same = _aggregated(made, rounds)
    joined = {(item["site"], item["entry"]) for one in rounds for item in one["joined"]}
    charges = 0
    spare: list[Charge] = []
    for site in SITES:
        ledger = federation.folder / site / "ledger" / "ledger.db"
        released = {one["reservation"]: one["sequence"] for one in entries(ledger, "released")}
        for one in entries(ledger, "reserved"):
            charges += 1
            said = released.get(one["sequence"])
            if said is None or (site, said) not in joined:
                spare.append(Charge(site, int(one["round"]), said is not None))
    # A site that was held up may release when the others have gone on, whatever held it up; what
    # is broken wants a reason that may break.
    free = [one for one in spare if not _near(made, one, _COSTLY)]
    unexplained = [one for one in free if not (one.late and _near(made, one, None))]
    configuration = [one for one in free if not one.late and _near(made, one, None)]
    return Reading(same, charges, spare, unexplained, configuration)


def _near(made: Soak, charge: Charge, kinds: set[str] | None) -> bool:
    """Return whether something was done to a charge's site in its round, or just before."""
    return any(
        event.site == charge.site and event.began <= charge.round <= event.ended + 2
        for event in made.log
        if kinds is None or event.kind in kinds
    )


def _aggregated(made: Soak, rounds: list[dict[str, Any]]) -> bool:
    """Return whether journal, releases and the final model agree to the last bit."""
    plan = made.federation.plan
    aggregator = Aggregator(plan)
    model: Arrays = initial_model(plan)
    for one in rounds:
        if digest_arrays(model) != one["model"]:
            return False
        updates = {}
        for item in one["joined"]:
            release = _archived(made, one["round"], item["site"], item["digest"])
            if release is None:
                return False
            updates[item["site"]] = release
        model = aggregator.join_made_up(model, updates, list(range(1, len(updates) + 1)))
        if digest_arrays(model) != one["next"]:
            return False
    final = load_file(made.run.folder / "model" / "model.safetensors")
    return digest_arrays({name: final[name] for name in model}) == digest_arrays(model)


def _archived(made: Soak, number: int, site: str, digest: str) -> Arrays | None:
    folder = made.federation.folder / site / "archive"
    for path in folder.glob(f"{made.run.id}-train-{number}-*.safetensors"):
        slot = path.name.removesuffix(".safetensors")
        release = Outbox(folder).get(slot)
        if release is not None and release.facts["digest"] == digest:
            return release.arrays
    return None


CHEAP = ["paused", "disk full", "key rotated", "trainer killed", "site killed"]
ALL = [
    *CHEAP, "database down", "trainer stopped", "cloned", "coordinator killed", "coordinator moved",
    "coordinator restored",
]  # fmt: skip


def measure(folder: Path, quick: bool) -> list[Row]:
    """Return the rows of the soak."""
    rounds, kinds, pauses = (40, CHEAP, (2, 4)) if quick else (300, ALL, (3, 9))
    tell(f"a soak of {rounds} rounds, five sites, real noise …")
    made, took = soak(folder / "real", rounds, kinds, pauses, seeded=False, seed=1)
    found = read(made)
    for line in found.unexplained:
        tell(f"unexplained: {line}")
    for line in found.configuration:
        tell(f"for a configuration fault: {line}")
    rows = [
        row("soak: rounds", rounds, "", None, None),
        row("soak: time", took, "s", None, None),
        row("soak: disturbances", len(made.log), "", None, None),
        row("soak: charges", found.charges, "", "of rounds", rounds * len(SITES)),
        row("soak: charges that joined no round", len(found.spare), "", None, None),
        row("soak: of them, released late", sum(c.late for c in found.spare), "", None, None),
        row("soak: unexplained charges", len(found.unexplained), "", "goal", 0),
        row("soak: charges for configuration faults", len(found.configuration), "", "goal", 0),
        row("soak: model differs from its releases", float(not found.same), "", "goal", 0),
    ]
    for one in rows:
        tell(f"{one['name']}: {one['value']:g}")
    # A copied folder that answers an order forks its site's ledger. The others go on without that
    # site until its operator recovers it; where all are needed, nobody goes on.
    kinds = [kind for kind in kinds if kind != "cloned"]
    tell(f"a soak of {rounds} rounds whose noise can be made again …")
    again, took = soak(folder / "seeded", rounds, kinds, pauses, seeded=True, seed=2)
    tell("the same in peace …")
    calm, quiet = soak(folder / "calm", rounds, [], pauses, seeded=True, seed=0)
    ends = [load_file(one.run.folder / "model" / "model.safetensors") for one in (again, calm)]
    differs = digest_arrays(ends[0]) != digest_arrays(ends[1])
    return [
        *rows,
        row("soak, seeded: time", took, "s", "in peace", quiet),
        row("soak, seeded: model differs from peace", float(differs), "", "goal", 0),
    ]
