"""What the tests of the ledger share, also in processes of their own."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting.events import Gaussian, Repeated
from privet.privacy.accounting.gaussian_dp import epsilon_of
from privet.privacy.accounting.plan_events import training_event
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.evidence.keys import load_or_make
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.ledger_state import Budget, Reservation
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.signed_note import COSIGN, Key, Signer, key_name
from privet.privacy.evidence.statement import Entry

SITE, PATIENTS, VISITS = "North", "patients", "visits"
DELTA = 1e-5


def plan_of(rounds: int = 50, noise: float = 10.0, max_attempts: int = 100) -> Plan:
    """A plan whose training release is one Gaussian of ``noise``."""
    return Plan.parse(
        {
            "name": "tiny",
            "task": {"label": "y", "classes": ["0", "1"], "numeric": {"x": {"low": 0, "high": 1}}},
            "model": {"kind": "linear"},
            "training": {
                "rounds": rounds,
                "steps": 1,
                "sample_rate": 1.0,
                "max_attempts": max_attempts,
            },
            "privacy": {"epsilon": 90.0, "delta": DELTA, "noise_multiplier": noise, "clip": 1.0},
            "metrics": {"source": "public"},
            "sites": [{"name": SITE, "nominal_size": 100}],
        }
    )


PLAN = plan_of()
EVENT = training_event(PLAN)
GAUSSIAN = Gaussian(10.0, 1.0)


def cost(releases: int) -> float:
    """ε of so many events, as the Gaussian filter counts them."""
    return epsilon_of(math.sqrt(releases) / 10.0, 0.99 * DELTA)


CAP = (cost(4) + cost(5)) / 2
"""Pays for four."""


KEYID = "0a" * 32
"""Whose orders they are."""


def order(round_: int = 1, attempt: int = 1, **changes: Any) -> Order:
    """An order for one round of run ``run``."""
    fields = {
        "run": "run", "site": SITE, "round": round_, "attempt": attempt, "purpose": "train",
        "plan": PLAN.digest, "model": "sha256:" + "0" * 64, "parameters": ("w",),
        "keyid": KEYID,
    }  # fmt: skip
    return Order(**{**fields, **changes})


def asked(round_: int = 1, attempt: int = 1, event: Any = EVENT, **changes: Any) -> Request:
    """The request to reserve ``event`` for an order; ``data_set`` is of the request."""
    data_set = changes.pop("data_set", VISITS)
    return Request(order(round_, attempt, **changes), event, data_set, "sha256:" + "c" * 64)


def budget(epsilon: float | None = CAP, **changes: Any) -> Budget:
    """The population's budget."""
    fields = {
        "epsilon": epsilon, "delta": DELTA, "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE_ONE,
    }  # fmt: skip
    return Budget(**{**fields, **changes})


def key(folder: Path, name: str = "ledger") -> Signer:
    """The key in a file of the folder; made where there is none."""
    return load_or_make(folder / f"{name}.pem", None)


def bare(folder: Path, site: str = SITE, signer: Signer | None = None, **more: Any) -> Ledger:
    """The ledger in ``folder``, with a recovery key; nothing is registered."""
    witness, recovery = key(folder, "witness"), key(folder / "offline", "recovery")
    return Ledger(
        folder,
        signer or key(folder),
        site,
        witness=Key(key_name("witness", site, witness.public), witness.public, COSIGN),
        recovery=Key(key_name("recovery", site, recovery.public), recovery.public),
        create=True,
        **more,
    )


def opened(folder: Path, epsilon: float | None = CAP, **more: Any) -> Ledger:
    """The ledger in ``folder``, ready to reserve."""
    ledger = bare(folder, **more)
    ledger.register(PATIENTS, budget(epsilon))
    ledger.add_data_set(VISITS, PATIENTS)
    ledger.set_policy({"site": SITE})
    ledger.keep("plan", PLAN.digest, PLAN.to_dict())
    ledger.approve(PLAN.digest, ["Ada"], "manual")
    return ledger


def spend(ledger: Ledger, round_: int, attempt: int = 1, **changes: Any) -> Reservation:
    """Reserve and commit one release."""
    request = asked(round_, attempt, **changes)
    reservation = ledger.reserve(request)
    ledger.commit(reservation, request.event, "sha256:" + "d" * 64)
    return reservation


def entries(ledger: Ledger | Log[Any]) -> list[Entry]:
    """All entries, from the file, by the signature of the key in force."""
    log = ledger.log if isinstance(ledger, Ledger) else ledger
    return [Entry.read(leaf, (log.key.public,)) for leaf in log.store.leaves()]


SETUP = 5
"""Entries of :func:`opened` before anything is reserved."""


def kinds(ledger: Ledger) -> list[str]:
    """The kinds of the entries after the set-up, from the file."""
    return [Entry.read(leaf).kind for leaf in ledger.log.store.leaves(SETUP)]


def charged(ledger: Ledger) -> int:
    """How many events count against the population."""
    total = 0
    for event in ledger.history(PATIENTS):
        count = event.count if isinstance(event, Repeated) else 1
        assert (event.event if isinstance(event, Repeated) else event) == GAUSSIAN
        total += count
    return total


def copy(folder: Path, to: Path) -> Path:
    """Copy a site's folder, as a backup does while no client runs."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


def opened_only(folder: Path) -> Ledger:
    """The ledger as it is; nothing is noted."""
    return Ledger(folder, key(folder), SITE)


def remove(folder: Path) -> None:
    """Remove the file of the ledger; the keys stay."""
    for path in folder.glob("ledger.db*"):
        path.unlink()


def raw(folder: Path, *statements: str) -> None:
    """Write into the file as somebody would who has the file and not the key."""
    with sqlite3.connect(folder / "ledger.db") as connection:
        for trigger in ("entries_stay", "entries_remain"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


RELEASE = "sha256:" + "d" * 64


def close_budget(ledger: Ledger, population: str) -> None:
    """Write ``budget-closed``, which no command writes; ledgers and verifiers read it."""
    closed = ledger.state.populations[population].closed
    ledger._once("budget-closed", closed, population=population)
