"""Client updates a second of a simulation on this machine, beside a plain loop and Flower on Ray.

    python benchmarks/simulation.py --json
    python benchmarks/simulation.py --quick
    python benchmarks/simulation.py --model mlp --clients 20 --evidence light off
    python benchmarks/simulation.py --model mlp --registered 100000

A client has 32 records and makes 4 steps of gradient descent; each record takes part in a step with
probability one quarter. The peers' batches have 8 records, without chance. A row is the median of
the rounds after the first, in updates a second of wall time, by level of evidence; the sites train
together, in as many processes as the machine has cores (`--jobs`; `peak_mb` is that of the first).
`training alone` is what they compute with
one thread, without orders and evidence, in updates a CPU second; its peer is the same one site
after another. Peers else: `loop`, by hand, one client after another in one process, without any
evidence (Opacus where there is privacy); `flower`, the same loop in a ClientApp of Flower's own
simulation on Ray, on all cores; `pfl`, Apple's simulation of plain clients in one process
(`--pfl`). Each row has a process of its own, of which `peak_mb` is the peak memory.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import itertools

import numpy as np
import pandas as pd
import pfl_peer
import torch
from harness import Row, finish, parser, row, tell
from simulation_peers import BATCH, RECORDS, STEPS, flower, loop, plan_from

from privet.client.training.model_runtime import model_runtime
from privet.client.training.trainer import mechanism, optimizer_of
from privet.common.plan import Plan
from privet.privacy.accounting.units import UnitIndex
from privet.simulations.cohort.cohort import Cohort
from privet.simulations.planning import Setting, resolve
from privet.simulations.run import run_plan

MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    # numeric features, model
    "mlp": (68, {"kind": "dense", "options": {"width": 256, "layers": 2}}),
    "transformer": (31, {"kind": "ft-transformer", "options": {"width": 64, "layers": 3}}),
}


def plan_of(
    model: str, private: bool, clients: int, rounds: int, folder: Path, registered: int = 0
) -> Plan:
    """Write the clients' records, and return a plan for them.

    Where more are registered than take part in a round, each round has other ones. There are files
    for as many as ever take part; of the others, who read none, several have the same one.
    """
    features, kind = MODELS[model]
    chance = np.random.default_rng(0)
    names = [f"x{k}" for k in range(features)]
    sites = []
    files = clients * rounds if registered else clients
    for client in range(files):
        frame = pd.DataFrame(chance.normal(size=(2 * RECORDS, features)).round(3), columns=names)
        frame["y"] = (frame["x0"] > 0).astype(int)
        path = folder / f"client-{client}.csv"
        frame.to_csv(path, index=False)
        sites.append({"name": f"Client {client}", "nominal_size": RECORDS, "path": str(path)})
    value: dict[str, Any] = {
        "name": f"{model}{'-private' if private else ''}",
        "threads": 1,
        "task": {
            "kind": "tabular",
            "label": "y",
            "classes": ["0", "1"],
            "numeric": {name: {"low": -3, "high": 3} for name in names},
        },
        "model": kind,
        "training": {
            "rounds": rounds,
            "steps": STEPS,
            "sample_rate": BATCH / RECORDS,
            "learning_rate": 0.1,
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-5} if private else "none",
        "metrics": {"source": "off"},
        "split": {"test": 0.25, "validation": 0.25},
        "sites": sites,
    }
    if registered:
        value["strategy"] = {"sites_per_round": clients}
        value["sites"] = [{**sites[k % files], "name": f"Client {k}"} for k in range(registered)]
    return resolve(Plan.parse(value, where=model))


def privet(text: str, level: str, folder: str, jobs: int) -> list[float]:
    """Return the seconds of each round after the first."""
    at: list[float] = []
    plan, setting = plan_from(text), Setting(evidence=level, jobs=jobs)  # type: ignore[arg-type]
    torch.set_num_threads(plan.threads)
    result = run_plan(plan, setting, Path(folder), lambda _: at.append(time.perf_counter()))
    assert (result.engine, result.evidence) == ("cohort", level), "another engine ran"
    assert result.processes == jobs, "sites were not shared among processes"
    assert all(site.released == site.rounds for site in result.sites), "a site did not train"
    return [end - start for start, end in itertools.pairwise(at)]


def training_alone(text: str, clients: int) -> tuple[float, float]:
    """Return updates a CPU second without orders and evidence, together and one after another."""
    plan = plan_from(text)
    bench, one, units = model_runtime(plan), mechanism(plan), UnitIndex.by_record(RECORDS)
    _ = bench.self_tests
    cohort, optimizer = Cohort(bench), optimizer_of(plan.training)
    start = {name: p.detach().clone() for name, p in bench.engine.named.items()}
    batches = [bench.task.random_batch(RECORDS, seed) for seed in range(clients)]

    def together() -> object:
        steps = [one.begin(batch, units, nominal_size=RECORDS) for batch in batches]
        return cohort.train(steps, start)

    def in_turn() -> None:
        for batch in batches:
            one.release(bench.engine, batch, units, nominal_size=RECORDS, optimizer=optimizer)

    taken: dict[Any, list[float]] = {together: [], in_turn: []}
    for _ in range(4):  # in turn; the first fills caches
        for work, found in taken.items():
            began = time.process_time()
            work()
            found.append(time.process_time() - began)
    mine, theirs = (clients / statistics.median(found[1:]) for found in taken.values())
    return mine, theirs


def rows_of(model: str, private: bool, options: Any) -> list[Row]:
    """Measure one model."""
    name = f"{model}{', DP-SGD' if private else ''}"
    clients, cores = options.clients, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plan = plan_of(model, private, clients, options.rounds, folder)
        text = json.dumps(plan.to_dict())
        (mine, theirs), peak = in_a_process(training_alone, text, clients)
        tell(f"{name}: training alone {mine:.0f} and {theirs:.0f} updates a CPU second")
        rows = [
            row(f"{name}, training alone", mine, "updates/CPU s", "one after another", theirs,
                clients=clients, peak_mb=peak)
        ]  # fmt: skip
        taken, peak = in_a_process(loop, text, clients)
        peers = {"loop": clients / statistics.median(taken)}
        tell(f"{name}: loop by hand {peers['loop']:.0f} updates a second, {peak} MB")
        if not options.no_flower:
            taken, _ = in_a_process(flower, text, clients, options.rounds)
            peers["flower"] = clients / statistics.median(taken)
            tell(f"{name}: Flower on Ray {peers['flower']:.0f} updates a second")
        if options.pfl and not private:
            taken = pfl_peer.in_a_process(options.pfl, text, clients, options.rounds)
            peers["pfl"] = clients / statistics.median(taken)
            tell(f"{name}: pfl {peers['pfl']:.0f} updates a second, one process")
        for level in options.evidence:
            whole = json.dumps(plan.changed(threads=cores).to_dict())
            taken, peak = in_a_process(privet, whole, level, str(folder / level), options.jobs)
            value = clients / statistics.median(taken)
            rows += [
                row(f"{name}, evidence {level}", value, "updates/s", peer, peer_value,
                    clients=clients, processes=options.jobs, peak_mb=peak)
                for peer, peer_value in peers.items()
            ]  # fmt: skip
            tell(f"{name}: evidence {level} {value:.0f} updates a second, {peak} MB")
    return rows


def registered_row(model: str, private: bool, options: Any) -> Row:
    """Measure a round of clients of whom many more are registered, beside one of all of them."""
    name = f"{model}{', DP-SGD' if private else ''}"
    clients, cores, found = options.clients, os.cpu_count() or 1, []
    for registered in (0, options.registered):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            plan = plan_of(model, private, clients, options.rounds, folder, registered)
            text = json.dumps(plan.changed(threads=cores).to_dict())
            began = time.perf_counter()
            taken, peak = in_a_process(privet, text, "off", str(folder / "off"), options.jobs)
            seconds = time.perf_counter() - began
            found.append(clients / statistics.median(taken))
            tell(
                f"{name}: {clients} of {registered or clients}: {found[-1]:.0f} updates a second, "
                f"{seconds:.1f} s in all, {peak} MB"
            )
    return row(
        f"{name}, {clients} of {options.registered:,}", found[1], "updates/s",
        f"{clients} of {clients}", found[0], clients=clients, processes=options.jobs, peak_mb=peak,
    )  # fmt: skip


def in_a_process(work: Callable[..., Any], *given: Any) -> tuple[Any, int]:
    """Return what ``work`` returns in a process of its own, and the peak memory of that in MB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, work, *given).result()


def _measured(work: Callable[..., Any], *given: Any) -> tuple[Any, int]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with _quiet():
        found = work(*given)
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@contextlib.contextmanager
def _quiet() -> Any:
    import logging

    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    """Measure."""
    made = parser(__doc__)
    made.add_argument("--model", choices=MODELS, nargs="*", default=list(MODELS))
    made.add_argument("--evidence", choices=("full", "light", "off"), nargs="*",
                      default=["full", "light", "off"])  # fmt: skip
    made.add_argument("--clients", type=int, default=0, help="of a round; default 100")
    made.add_argument("--rounds", type=int, default=0, help="default 4")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1,
                      help="processes that train sites; default the machine's cores")  # fmt: skip
    made.add_argument(
        "--registered", type=int, default=0,
        help="measure rounds of --clients of this many registered ones, and nothing else",
    )  # fmt: skip
    made.add_argument(
        "--pfl", type=Path, help="site-packages of an environment that has Apple's pfl"
    )
    made.add_argument("--no-flower", action="store_true", help="leave out Flower on Ray")
    options = made.parse_args()
    options.clients = options.clients or (10 if options.quick else 100)
    options.rounds = options.rounds or (3 if options.quick else 4)
    options.no_flower |= options.quick
    if options.registered:
        rows = [
            registered_row(model, private, options)
            for model in options.model
            for private in (False, True)
        ]
        finish(rows, options.json, _line)
        return
    rows = [
        item
        for model in (["mlp"] if options.quick else options.model)
        for private in (False, True)
        for item in rows_of(model, private, options)
    ]
    finish(rows, options.json, _line)


def _line(item: Row) -> str:
    text = f"{item['name']:28} {item['value']:7.1f} updates/s  {item['peer']} "
    return text + f"{item['peer_value']:7.1f}  × {item['ratio']:.2f}  peak {item['peak_mb']} MB"


if __name__ == "__main__":
    main()
