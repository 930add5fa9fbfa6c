"""Run a plan once for each combination of values of some of its keys.

::

    --sweep privacy.epsilon=1,3,8 --sweep seed=1,2,3
        │  axes_of, points_of: every plan is read before the first one runs
        ▼
    DIR/sweep.json          what is run, and in which folder
    DIR/POINT/              a run folder for each combination
    DIR/sweep.parquet       a row for each: its values, ε, metrics, seconds
    DIR/plots/sweep.svg     the headline metric against the first key, with intervals over seeds

Several run at once, each in a process of its own. A run that ended is not run again where a sweep
is resumed; the folder of one that was interrupted is moved to ``interrupted``.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privet.common.canonical import write_json
from privet.common.errors import InputError, PrivetError
from privet.common.plan import Plan
from privet.common.tasks.measure import measure_of_kind
from privet.common.threads import VARIABLE as THREADS
from privet.common.threads import threads_of
from privet.simulations.cohort.processes import processes_that_fit
from privet.simulations.plan_values import EPSILON, Values, changes_of, value_of
from privet.simulations.planning import Setting

_SEED = "seed"
_INDEX, _TABLE, _LOCK = "sweep.json", "sweep.parquet", ".lock"
INTERRUPTED = "interrupted"
"""Folder of runs that were interrupted, and begun again."""
_FEATURES = ".features"
"""Holds what a frozen encoder read out of the user's own texts, until the sweep has ended."""
_MAX_RUNS = 10_000


@dataclass(frozen=True)
class Axis:
    """A key of a plan and the values that it takes in turn.

    Attributes:
        key: with dots, such as ``training.learning_rate``.
        values: numbers, texts, truth values or None, each once.
    """

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        values: by key.
        plan: with them.
        name: of its run folder.
    """

    values: Values
    plan: Plan
    name: str


@dataclass
class Sweep:
    """The outcome of a sweep.

    Attributes:
        axes: that were swept.
        rows: JSON values of each run's result, in the points' order, each with its values at
            ``sweep``; or ``error`` in place of a result.
        folder: of the sweep.
        headline: name of the metric that is plotted.
    """

    axes: list[Axis]
    rows: list[dict[str, Any]]
    folder: Path
    headline: str

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of runs that failed."""
        return [row for row in self.rows if "error" in row]

    def combined(self) -> Iterator[tuple[Values, list[dict[str, Any]]]]:
        """Yield each combination of all keys but the seed, with the rows of its seeds."""
        groups: dict[str, tuple[Values, list[dict[str, Any]]]] = {}
        for row in self.rows:
            values = {key: value for key, value in row["sweep"].items() if key != _SEED}
            groups.setdefault(json.dumps(values), (values, []))[1].append(row)
        yield from groups.values()


def axes_of(texts: Sequence[str]) -> list[Axis]:
    """Read the words of a command line.

    Args:
        texts: such as ``training.learning_rate=0.1,0.3``; numbers alone are values of ε.

    Raises:
        InputError: if one has no values, or a key or value comes twice.
    """
    axes: list[Axis] = []
    for text in texts:
        key, equals, listed = text.rpartition("=")
        key = key.strip() if equals else EPSILON
        values = tuple(value_of(part) for part in listed.split(","))
        if not equals and not all(_is_number(value) for value in values):
            raise InputError(
                "--sweep takes numbers with commas, such as 1,3,8, or a key of the plan with "
                f"values, such as training.learning_rate=0.1,0.3, not '{text}'"
            )
        if not re.fullmatch(r"\w[\w.-]*", key) or "" in values:
            raise InputError(f"--sweep {text}: write KEY=VALUE,VALUE")
        if len({json.dumps(value) for value in values}) < len(values):
            raise InputError(f"--sweep {text}: a value comes twice")
        if key in (axis.key for axis in axes):
            raise InputError(f"--sweep {key}: the key comes twice")
        axes.append(Axis(key, values))
    return axes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def points_of(plan: Plan, axes: Sequence[Axis]) -> list[Point]:
    """Return every combination of values, the last key changing fastest.

    Args:
        plan: as its author wrote it.
        axes: of :func:`axes_of`.

    Raises:
        InputError: if there are too many, or a plan with one of them is impossible, naming the
            values.
    """
    runs = 1
    for axis in axes:
        runs *= len(axis.values)
    if runs > _MAX_RUNS:
        raise InputError(f"--sweep: {runs:,} runs are more than {_MAX_RUNS:,}")
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = dict(zip((axis.key for axis in axes), values, strict=True))
        try:
            changed = plan.redrafted(**changes_of(plan, chosen))
        except PrivetError as error:
            raise InputError(f"--sweep with {_words(chosen)}: {error}") from error
        found.append(Point(chosen, changed, _name(chosen)))
    return found


def _words(values: Values) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _name(values: Values) -> str:
    """Return the name of a run folder: the last part of each key, and its value."""
    parts = []
    for key, value in values.items():
        parts.append(f"{key.rpartition('.')[2]}-{value}")
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts))[:150]


def default_jobs(plan: Plan) -> int:
    """Return how many runs fit this machine at once: as many as it has cores, and memory for.

    Runs share a machine better than the threads of one run do.
    """
    return processes_that_fit() if plan.device == "cpu" else 1


def _begin(threads: int) -> None:
    """Compute with no more threads in this process, whatever the plans ask for."""
    import torch

    os.environ[THREADS] = str(threads_of(threads))
    torch.set_num_threads(threads_of(threads))


def run_sweep(
    axes: list[Axis],
    points: list[Point],
    setting: Setting,
    folder: Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Run all points, and write table and plot.

    Args:
        axes: of :func:`axes_of`.
        points: of :func:`points_of`.
        setting: of every run.
        folder: new or empty, or that of the sweep to resume.
        jobs: runs at once, each in a process of its own.
        resume: continue the sweep of ``folder``.
        tell: called with a line for each run that ends.

    Returns:
        All rows. A run that fails has an ``error``; the others run all the same.

    Raises:
        InputError: if the folder holds something else, or another sweep.
    """
    if setting.ledgers is not None:
        jobs = 1  # each run pays into the same ledgers
    setting = replace(
        setting,
        base=setting.base.resolve(),
        data_dir=setting.data_dir and setting.data_dir.resolve(),
        ledgers=setting.ledgers and setting.ledgers.resolve(),
    )
    with ExitStack() as stack:
        if is_old := (folder / _INDEX).exists():
            stack.enter_context(_alone(folder))
        done = _prepare(folder, points, setting, resume)
        if not is_old:
            stack.enter_context(_alone(folder))
        rows: dict[str, dict[str, Any]] = dict(done)
        setting = _with_cache(setting, points, folder)
        stack.callback(shutil.rmtree, folder / _FEATURES, ignore_errors=True)
        if done:
            tell(f"{len(done)} of {len(points)} runs had ended before")
        todo = [point for point in points if point.name not in done]
        for point, row in _run_all(todo, setting, folder.resolve(), jobs):
            rows[point.name] = row
            _write_table([rows[p.name] for p in points if p.name in rows], folder / _TABLE)
            words = _words(point.values) or "the plan as it is"
            tell(f"{len(rows)}/{len(points)}  {words}  {_figure(row, point.plan)}")
    headline = measure_of_kind(points[0].plan.task.kind).headline
    made = Sweep(axes, [rows[point.name] for point in points], folder, headline)
    _write_table(made.rows, folder / _TABLE)
    _plot(made)
    return made


def _with_cache(setting: Setting, points: list[Point], folder: Path) -> Setting:
    """Return the setting with a cache that the runs share; what it holds is read once for all."""
    if setting.cache is not None or all(setting.cache_of(point.plan) for point in points):
        return setting
    if not any(point.plan.model.reads_features for point in points):
        return setting
    return replace(setting, cache=folder.resolve() / _FEATURES)


def _run_all(
    points: list[Point], setting: Setting, folder: Path, jobs: int
) -> Iterator[tuple[Point, dict[str, Any]]]:
    if jobs <= 1 or len(points) <= 1:
        for point in points:
            yield point, _run(point, setting, folder)
        return
    left = {point.name: point for point in points}
    try:
        for point, row in _in_processes(points, setting, folder, min(jobs, len(points))):
            del left[point.name]
            yield point, row
        return
    except BrokenProcessPool:
        pass
    # A process was killed, such as for want of memory, and took the others' with it: one at a time
    # shows whose fault it is.
    for point in list(left.values()):
        _set_aside(folder / point.name, folder / INTERRUPTED)
        try:
            yield from _in_processes([point], setting, folder, 1)
        except BrokenProcessPool:
            yield point, {"sweep": point.values, "error": "its process was killed"}


def _in_processes(
    points: list[Point], setting: Setting, folder: Path, jobs: int
) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Run points at once.

    Raises:
        BrokenProcessPool: if a process was killed.
    """
    # Spawned: a process that has trained has threads, and cannot be forked.
    context = multiprocessing.get_context("spawn")
    others = {child.pid for child in multiprocessing.active_children()}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads,))
    try:
        alone = replace(setting, jobs=1)  # each run has a process, and the cores are shared
        futures = {pool.submit(_run, point, alone, folder): point for point in points}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BaseException:
        # Nobody waits for runs that take hours: what is resumed sets their folders aside.
        for child in multiprocessing.active_children():
            if child.pid not in others:  # the caller's own live on
                child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _run(point: Point, setting: Setting, folder: Path) -> dict[str, Any]:
    from privet.simulations.run import run_plan

    try:
        result = run_plan(point.plan, setting, folder / point.name)
    except PrivetError as error:
        return {"sweep": point.values, "error": str(error)}
    except Exception as error:  # the other runs continue
        if os.environ.get("PRIVET_DEBUG"):
            raise
        return {"sweep": point.values, "error": f"this should not have happened: {error!r}"}
    return {**result.to_dict(), "sweep": point.values}


def _prepare(
    folder: Path, points: list[Point], setting: Setting, resume: bool
) -> dict[str, dict[str, Any]]:
    """Write what will be run, or read what was; return the rows of runs that have ended.

    Raises:
        InputError: if the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name another --out")
    index = folder / _INDEX
    runs = {point.name: point.plan.digest for point in points}
    if len(runs) < len(points) or len(set(runs.values())) < len(points):
        raise InputError("--sweep: two of the combinations are the same plan")
    wanted = {"runs": runs, "setting": _written(setting)}
    if not index.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
        write_json(index, wanted)
        return {}
    if not resume:
        raise InputError(f"{folder} holds a sweep: --resume continues it, or name another --out")
    try:
        before = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{index}: cannot be read: {error!r}; name another --out") from error
    if before != wanted:
        raise InputError(
            f"{folder} holds another sweep: of another plan, with other values, or with other "
            "options; name another --out, or give the same words"
        )
    done = {}
    for point in points:
        home = folder / point.name
        row = _ended(home)
        if row is not None:
            done[point.name] = {**row, "sweep": point.values}
        else:
            _set_aside(home, folder / INTERRUPTED)
    return done


def _written(setting: Setting) -> Values:
    """Return what of a setting decides a run's result, as JSON values."""
    return {
        "noise_seed": setting.noise_seed,
        "engine": setting.engine,
        "evidence": setting.evidence,
        "data": str(setting.data_dir),
        "base": str(setting.base),
        "ledgers": str(setting.ledgers),
        "cap": setting.cap,
        **({"measured": setting.measured} if setting.measured != "test" else {}),
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another process from continuing the same sweep.

    Raises:
        InputError: if one does.
    """
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder}: this sweep is running") from error
        yield


def _ended(home: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((home / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    has = isinstance(value, dict) and isinstance(value.get("metrics"), dict) and "sites" in value
    return value if has else None


def _set_aside(home: Path, folder: Path) -> None:
    """Move the folder of an interrupted run, if there is one: its ledgers are history, and stay."""
    if not home.exists():
        return
    folder.mkdir(exist_ok=True)
    for number in itertools.count(1):
        target = folder / f"{home.name}-{number}"
        if not target.exists():
            home.rename(target)
            return


def _figure(row: dict[str, Any], plan: Plan) -> str:
    if "error" in row:
        return f"failed: {row['error']}".splitlines()[0]
    name = measure_of_kind(plan.task.kind).headline
    value = row["metrics"].get(name)
    return f"{name.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else "–"


def _write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a row for each run: values, ε, claim, metrics, seconds, folder, error."""
    import pandas as pd

    columns = ("epsilon", "delta", "claim", "engine", "clipping", "seconds", "out", "error")
    table = [
        {
            **row["sweep"],
            **{name: row.get(name) for name in columns},
            **{f"metrics.{name}": v for name, v in row.get("metrics", {}).items()
               if not isinstance(v, dict | list)},
        }
        for row in rows
    ]  # fmt: skip
    frame = pd.DataFrame(table)
    for name in frame.columns:  # a key may take numbers and texts
        if frame[name].map(type).nunique() > 1 and frame[name].map(_is_text).any():
            frame[name] = frame[name].map(lambda value: None if pd.isna(value) else str(value))
    aside = path.with_suffix(".part")
    frame.to_parquet(aside, index=False)
    aside.replace(path)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds, and half the 95 % interval of it; None for a single seed.

    Student's t of 2.5 % for n - 1 degrees of freedom, times the standard error.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, _student(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


@functools.cache
def _student(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, degrees))


def _plot(made: Sweep) -> None:
    """Plot the headline metric against the first key with several numbers, if there is one."""
    axis = next(
        (
            axis
            for axis in sorted(made.axes, key=lambda axis: axis.key != EPSILON)
            if axis.key != _SEED and sum(map(_is_number, axis.values)) > 1
        ),
        None,
    )
    if axis is None:
        return
    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    for values, rows in made.combined():
        found = [
            row["metrics"][made.headline]
            for row in rows
            if isinstance(row.get("metrics", {}).get(made.headline), float)
        ]
        at = values[axis.key]
        if found and _is_number(at):
            others = {key: value for key, value in values.items() if key != axis.key}
            lines.setdefault(_words(others), []).append((at, *interval(found)))
    if not lines:
        return
    from privet.simulations.plots import write_sweep

    folder = made.folder / "plots"
    folder.mkdir(exist_ok=True)
    write_sweep(axis.key, lines, made.headline, folder / "sweep")


__all__ = [
    "EPSILON", "INTERRUPTED", "Axis", "Point", "Sweep", "axes_of", "default_jobs", "interval",
    "points_of", "run_sweep",
]  # fmt: skip
