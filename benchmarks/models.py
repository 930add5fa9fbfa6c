"""Which architectures train under privacy, by which way, and how exactly.

    python benchmarks/models.py --json           all (some 200), tiny; minutes
    python benchmarks/models.py --quick          torch's own alone
    python benchmarks/models.py --only lstm      those whose name has a text in it
    python benchmarks/models.py --part cost      a step of larger ones, beside one without privacy
    python benchmarks/models.py --page docs/reference/architectures.md     and write the table

Each architecture is built tiny with made-up records. The start-up test runs as before a real run,
``auto`` takes its way, and per-sample gradients and the clipped sum of persons with several records
are compared with a loop over single records. An architecture whose records depend on each other
must be refused for that reason. Opacus's hooks are the peer, without any dropout: how many it takes
as exactly.

Cost: CPU seconds of a step on one thread, medians of steps in turn; the peer is the same step
without privacy, or for one unit at a time that many steps of a single record.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from architecture import Architecture, Batch
from harness import Row, finish, parser, row, tell
from model_families import COSTS, architectures
from torch import Tensor, nn

from privet.common.errors import CoupledRecordsError, PrivetError
from privet.privacy.mechanism import selftest
from privet.privacy.mechanism.clipping import GradientEngine

RECORDS, SEED, LIMIT_S = 7, 7, 300.0
EXACT = 1e-5


def measured(one: Architecture, *, with_peer: bool) -> dict[str, Any]:
    """Return what became of an architecture.

    Returns:
        ``way``, or ``coupled`` where it was refused for that, or ``refused``, ``fault``; the
        errors of per-sample gradients and of the sum; what ``auto`` passed over; Opacus's way.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    try:
        model = one.make()
    except Exception as error:
        return {"way": "not built", "why": f"{type(error).__name__}: {error}"[:300]}
    found = _tried(one, model, "auto")
    if with_peer:
        torch.manual_seed(SEED)
        found["opacus"] = _tried(one, _without_dropout(one.make()), "opacus-hooks")["way"]
    return found


def _without_dropout(model: nn.Module) -> nn.Module:
    """Return the model without any dropout: Opacus's hooks see none in `eval()`.

    The start-up test would run there for models whose dropout is no layer.
    """
    for module in model.modules():
        for held in (module, getattr(module, "config", None)):
            for name, value in list(getattr(held, "__dict__", {}).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(held, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def _tried(one: Architecture, model: nn.Module, mode: str) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        engine = GradientEngine(model, one.loss, mode=mode)
        selftest.run(engine, one.random_batch, list(engine.named), records=20, together=2)
        error, total = errors_of(engine, one.random_batch)
    except CoupledRecordsError as fault:
        return {"way": "coupled", "why": str(fault)}
    except PrivetError as fault:
        return {"way": "refused", "why": str(fault)[:400]}
    except Exception as fault:
        return {"way": "fault", "why": repr(fault)[:400]}
    return {
        "way": engine.mode, "error": error, "error_of_sum": total, "passed_over": engine.refused,
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in engine.parameters),
    }  # fmt: skip


def errors_of(
    engine: GradientEngine, random_batch: Callable[[int, int], Batch]
) -> tuple[float, float]:
    """Return the largest error of a record's gradient, and of the sum over persons.

    Args:
        engine: its way is compared with a loop over single records.
        random_batch: makes a batch of (records, seed).
    """
    batch = random_batch(RECORDS, SEED)
    training = [m for m in engine.model.modules() if m.training]
    dropouts = [(m, m.p) for m in training if isinstance(m, nn.Dropout)]
    for dropout, _ in dropouts:
        dropout.p = 0.0  # the dropout of a batch is not that of a single record
    state = torch.random.get_rng_state()
    with torch.no_grad():
        same = torch.equal(engine.losses(batch), engine.losses(batch))
    if not same or not torch.equal(state, torch.random.get_rng_state()):
        engine.model.eval()  # dropout by a function; Opacus's hooks see nothing then
    try:
        singles = [
            engine.plain_sum({n: t[i : i + 1] for n, t in batch.items()}) for i in range(RECORDS)
        ]
        rows = engine.per_sample(batch)
        norms = [_norm(single) for single in singles]
        largest = max(norms)
        error = max(
            _norm([a[i] - b for a, b in zip(rows, single, strict=True)])
            / max(norms[i], 1e-3 * largest)
            for i, single in enumerate(singles)
        )
        owner = np.array([0, 0, 0, 1, 1, 2, 3])
        units = [_sum([singles[i] for i in np.flatnonzero(owner == unit)]) for unit in range(4)]
        clip = float(np.median([_norm(unit) for unit in units]))
        wanted = _sum([[g * min(1.0, clip / _norm(unit)) for g in unit] for unit in units])
        got = engine.clipped_sum(batch, owner, 4, clip).tensors
        apart = _norm([a - b for a, b in zip(got, wanted, strict=True)])
        return error, apart / (4 * clip)
    finally:
        for module in training:
            module.training = True
        for dropout, share in dropouts:
            dropout.p = share


def _norm(gradient: list[Tensor]) -> float:
    return float(sum(float(g.double().square().sum()) for g in gradient) ** 0.5)


def _sum(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [sum(parts) for parts in zip(*gradients, strict=True)]  # type: ignore[misc]


def in_a_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what work returns, in a process of its own that may crash or take too long."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(work()))
    process.start()
    end = time.monotonic() + LIMIT_S
    while process.is_alive() and results.empty() and time.monotonic() < end:
        time.sleep(0.02)
    found: dict[str, Any] = {"way": "crash", "why": f"exit code {process.exitcode}"}
    if not results.empty():
        found = results.get()
    process.kill()
    process.join()
    return found


KEEP_STATE = ("ibert",)
"""Architectures that must be refused for another reason: their buffers change as they read."""


def is_wrong(one: Architecture, found: dict[str, Any]) -> bool:
    """Whether this is not what must become of the architecture."""
    if one.is_coupled:
        return found["way"] != "coupled"
    if one.name in KEEP_STATE:
        return found["way"] != "refused" or not found["why"].startswith("H5")
    exact = max(found.get("error", 1.0), found.get("error_of_sum", 1.0)) <= EXACT
    return not exact


def costs(*, quick: bool) -> list[Row]:
    """Return a row for each model of :data:`COSTS`."""
    torch.set_num_threads(1)
    rows = []
    for name, (one, records, mode, goal) in COSTS.items():
        if quick and name != "LSTM":
            continue
        torch.manual_seed(SEED)
        model = one.make().eval()
        engine = GradientEngine(model, one.loss, mode=mode)
        engine.prepare(one.random_batch)
        batch = one.random_batch(records, SEED)
        owner = np.arange(records)
        singles = [{n: t[i : i + 1] for n, t in batch.items()} for i in range(records)]

        def ours(engine: GradientEngine = engine, batch: Any = batch, owner: Any = owner) -> object:
            return engine.clipped_sum(batch, owner, len(owner), 1.0)

        def plain(
            engine: GradientEngine = engine,
            batch: Any = batch,
            singles: Any = singles,
            mode: str = mode,
        ) -> object:
            if mode != "one-by-one":
                return engine.plain_sum(batch)
            return [engine.plain_sum(single) for single in singles]

        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for turn in range(4):
            for label, work in (("ours", ours), ("plain", plain)):
                began = time.process_time()
                work()
                if turn:  # the first fills caches
                    times[label].append(time.process_time() - began)
        mine, theirs = (statistics.median(times[label]) for label in ("ours", "plain"))
        tell(f"{name:28} {mode:12} {mine:7.2f} s, {theirs:7.2f} s: {mine / theirs:.2f} ({goal})")
        rows.append(row(name, mine, "s", "without privacy", theirs, way=mode, goal=goal))
    return rows


def main() -> None:
    """Try the architectures, print a row each, and the counts."""
    asked = parser(__doc__)
    asked.add_argument("--only", default="", help="architectures whose name has this in it")
    asked.add_argument("--no-peer", action="store_true", help="without Opacus beside it")
    asked.add_argument("--page", type=Path, help="write the table to this file")
    asked.add_argument("--part", choices=("ways", "cost"), default="ways")
    given = asked.parse_args()
    if given.part == "cost":
        finish(
            costs(quick=given.quick),
            given.json,
            lambda item: f"{item['name']}: {item['ratio']:.2f}",
        )
        return
    chosen = [a for a in architectures() if given.only.lower() in a.name.lower()]
    if given.quick:
        chosen = [a for a in chosen if a.group == "torch"]
    import transformers  # once, before the processes are forked

    del transformers
    rows: list[Row] = []
    ways: Counter[str] = Counter()
    peers: Counter[str] = Counter()
    wrong = 0
    for one in chosen:
        found = in_a_process(
            lambda one=one: measured(one, with_peer=not given.no_peer)  # type: ignore[misc]
        )
        is_bad = is_wrong(one, found)
        wrong += is_bad
        ways[found["way"]] += 1
        peers[found.get("opacus", "")] += 1
        tell(f"{one.group:13} {one.name:36} {found['way']:13} {_said(found)}{' WRONG' * is_bad}")
        rows.append(
            row(one.name, found.get("error", float("nan")), "", "opacus", None, group=one.group,
                is_coupled=one.is_coupled, is_wrong=is_bad, **found)
        )  # fmt: skip
    for way, count in ways.most_common():
        rows.append(row(f"architectures: {way}", count, "", "opacus-hooks", peers.get(way, 0)))
    exact = sum("error" in item and not item["is_wrong"] for item in rows if "group" in item)
    taken = peers["opacus-hooks"]
    rows.append(row("trained exactly", exact, "", "opacus-hooks", taken))
    rows.append(row("architectures", len(chosen), "", None, None))
    rows.append(row("wrong", wrong, "", "goal", 0))
    if given.page:
        given.page.write_text(page_of(rows), encoding="utf-8")
    finish(rows, given.json, _line)


_WAYS = {
    "bookkeeping": "book-keeping",
    "opacus-hooks": "Opacus's hooks",
    "vmap": "vmap",
    "one-by-one": "one by one",
    "coupled": "refused: records depend on each other",
    "refused": "refused: it keeps something of the records that it reads",
}
_PAGE = """# Architectures

Which clipping method `auto` takes for {count} tiny architectures, with the largest error of a
record's gradient against a single record's, as a share of its norm (single precision).
[What the methods are](../explanation/privacy-engine.md#clipping). Written by
`python benchmarks/models.py --page docs/reference/architectures.md`; a test compares rows with the
code.
"""


def page_of(rows: list[Row]) -> str:
    """Return the page of the architectures, from the rows of a complete run."""
    tried = [item for item in rows if "group" in item]
    parts = [_PAGE.format(count=len(tried))]
    for group in dict.fromkeys(item["group"] for item in tried):
        parts.append(f"\n## {group}\n\n| architecture | method | error |\n|---|---|---|\n")
        for item in tried:
            if item["group"] == group:
                error = f"{item['error']:.0e}" if "error" in item else ""
                way = _WAYS.get(item["way"], item["way"])
                parts.append(f"| {item['name']} | {way} | {error} |\n")
    return "".join(parts)


def _said(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"{found['error']:.1e} {found['error_of_sum']:.1e} {found['seconds']:5.1f} s"
    return str(found.get("why", ""))[:150]


def _line(item: Row) -> str:
    return f"{item['name']:40} {item.get('way', item['value'])}"


if __name__ == "__main__":
    main()
