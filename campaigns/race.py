"""Two processes race for the last ε of a population; it is never overspent.

    python campaigns/race.py --json             10,000 tries
    python campaigns/race.py --quick            300

One ledger, two processes that hold it open. In each try a new population is registered whose
cap covers one run and no second one, and both processes reserve at the same moment, for two
different runs. Exactly one may succeed.
"""

from __future__ import annotations

import multiprocessing
import queue
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from harness import finish, parser, row, tell


def _ledger(folder: Path):  # type: ignore[no-untyped-def]
    from privet.privacy.evidence.keys import load_or_make
    from privet.privacy.evidence.ledger import Ledger
    from privet.privacy.evidence.witness import Witness

    witness = Witness(folder / "witness.json", load_or_make(folder / "witness.pem", None), "site")
    signer = load_or_make(folder / "ledger.pem", None)
    return Ledger(folder, signer, "site", witness=witness.key, create=True)


def _plan():  # type: ignore[no-untyped-def]
    import privet

    return privet.Plan.parse(
        {
            "name": "race",
            "task": {"classes": ["0", "1"], "numeric": {"x": {"low": 0, "high": 1}}},
            "training": {"rounds": 1, "steps": 1, "sample_rate": 1.0},
            "privacy": {"epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 4.0},
            "sites": [{"name": "site", "nominal_size": 100}],
        }
    )  # fmt: skip


def racer(number: int, folder: Path, tries: int, barrier: Barrier, results) -> None:  # type: ignore[no-untyped-def]
    """Reserve in each try, at the same time as the other process."""
    from privet.common.errors import BudgetExceededError
    from privet.common.order import Order
    from privet.privacy.accounting.plan_events import training_event
    from privet.privacy.evidence.ledger import Request

    ledger, plan = _ledger(folder), _plan()
    event, won, chance = training_event(plan), Counter[int](), random.Random(number)
    for attempt in range(tries):
        order = Order(f"run-{number}-{attempt}", "site", 1, 1, "train", plan.digest,
                      "sha256:" + "0" * 64, ("w",), "0" * 64)  # fmt: skip
        barrier.wait()
        time.sleep(chance.uniform(0, 0.001))
        try:
            ledger.reserve(Request(order, event, f"data-{attempt}"))
            won[attempt] += 1
        except BudgetExceededError:
            pass
    results.put(won)


def main() -> None:
    """Run the campaign."""
    options = parser(__doc__)
    options.add_argument("--tries", type=int, help="number of tries")
    arguments = options.parse_args()
    tries = arguments.tries or (200 if arguments.quick else 10_000)
    from privet.privacy.accounting.units import Relation, Unit
    from privet.privacy.evidence.ledger_state import Budget

    with tempfile.TemporaryDirectory() as name:
        folder, plan = Path(name), _plan()
        ledger = _ledger(folder)
        budget = Budget(1.0, 1e-5, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
        with ledger.log.writing():
            ledger.keep("plan", plan.digest, plan.to_dict())
            ledger.set_policy({})
            ledger.approve(plan.digest, ["somebody"], "manual")
            for attempt in range(tries):
                ledger.register(f"people-{attempt}", budget)
                ledger.add_data_set(f"data-{attempt}", f"people-{attempt}", "made up for a race")
        ledger.log.store.close()
        tell(f"{tries:,} populations registered")
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(2), context.Queue()
        racers = [
            context.Process(target=racer, args=(number, folder, tries, barrier, results))
            for number in (1, 2)
        ]
        started = time.monotonic()
        for process in racers:
            process.start()
        won = []
        while len(won) < len(racers):
            try:
                won.append(results.get(timeout=5))
            except queue.Empty:
                if any(process.exitcode for process in racers):
                    barrier.abort()
                    raise SystemExit("a racer ended with an error") from None
        for process in racers:
            process.join()
        seconds = time.monotonic() - started
        both = sum(won[0][n] + won[1][n] > 1 for n in range(tries))
        none = sum(won[0][n] + won[1][n] < 1 for n in range(tries))
        over = 0
        last = _ledger(folder)
        for number in range(0, tries, max(1, tries // 500)):
            over += last.spent(f"people-{number}").epsilon > 1.0
    rows = [
        row("tries", tries, "races", None, None),
        row("won by the first process", sum(won[0].values()), "races", None, None),
        row("won by the second process", sum(won[1].values()), "races", None, None),
        row("overspent", both + over, "races", "goal", 0),
        row("nobody could spend", none, "races", "goal", 0),
        row("time", round(seconds, 1), "s", None, None),
    ]
    finish(rows, arguments.json, lambda r: f"{r['name']:28} {r['value']:>8g} {r['unit']}")
    if both or none or over:
        sys.exit(1)


if __name__ == "__main__":
    main()
