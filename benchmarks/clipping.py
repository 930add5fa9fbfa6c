"""One training step of the main job's Transformer, by how per-unit gradients are computed.

    python benchmarks/clipping.py
    python benchmarks/clipping.py --quick --json

Each step runs the whole mechanism (sampling, gradients, noise, watch) on made-up loans with
one thread. The peer is the same step without privacy; all kinds are run in turn. Times are
CPU seconds, medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from harness import Row, finish, parser, row, tell

from privet.common.models import build_model
from privet.common.tasks import build_task
from privet.privacy.clipping import GradientEngine
from privet.privacy.dpsgd import DpSgd, PlainSgd
from privet.privacy.units import UnitIndex
from privet.simulations import scenarios

MODES = ("opacus-hooks", "functorch", "opacus-ghost")
PEER = "the same step without privacy"


def step(mode: str, mechanism: DpSgd | PlainSgd, records: int) -> Callable[[], float]:
    """Return a function that takes one step and returns its CPU seconds."""
    plan = scenarios.get("lending").make_plan("ft-transformer")
    task = build_task(plan)
    engine = GradientEngine(
        build_model(plan), task.loss, mode=mode, micro_batch=plan.training.micro_batch
    )
    batch, units = task.random_batch(records, 0), UnitIndex.by_record(records)

    def timed() -> float:
        started = time.process_time()
        mechanism.release(
            engine, batch, units, nominal_size=records,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        )  # fmt: skip
        return time.process_time() - started

    return timed


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    records, times = (256, 3) if options.quick else (1024, 15)
    steps = {PEER: step("opacus-hooks", PlainSgd(1.0), records)}
    steps |= {mode: step(mode, DpSgd(1.0), records) for mode in MODES}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(times + 1):
        tell(f"turn {number} of {times}")
        for name, timed in steps.items():
            taken = timed()
            if number:  # the first turn warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows: list[Row] = [
        row(mode, medians[mode], "CPU s", PEER, medians[PEER], records=records) for mode in MODES
    ]
    finish(rows, options.json, _line)


def _line(item: Row) -> str:
    return (
        f"{item['name']:14} {item['value']:.3f} s, {item['ratio']:.2f} × {item['peer']} "
        f"({item['peer_value']:.3f} s), {item['records']} records"
    )


if __name__ == "__main__":
    main()
