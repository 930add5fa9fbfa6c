"""Figures with and without privacy, by scenario and model, over several seeds.

    python benchmarks/utility.py --data DIR --results utility.jsonl --json > utility.json
    python benchmarks/utility.py --data DIR --only fed-heart banking77/minilm-lora
    python benchmarks/utility.py --data DIR --only gospels --tune --set training.rounds=40
    python benchmarks/utility.py --quick

Every run that ends is added to the file of results, and none in it is run again: it can be stopped
at any time, and several of these may share a file. A run is known by its whole plan, so a changed
setting is another run. Its model is measured on the validation and the test split alike, so that a
setting that was chosen need not be run again; ``--tune`` shows the first alone.

A seed fixes split and initial weights; all rows of a scenario share the splits. Settings are
chosen on the validation split (``--tune`` measures there, ``--set`` changes a plan), which counts
as public and is not trained on (H12); figures are on the test split. Those of MiniLM in full, of
``eicu-gaps``, and of ``shakespeare`` and ``gospels`` with privacy are first guesses still. Peers,
without any privacy: logistic regression by scikit-learn on the pooled training records, on the same
features; or the same model trained on the pooled records, as many steps in batches as large.
"""

from __future__ import annotations

import fcntl
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, finish, parser, row, tell
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from privet.client.data.records import SiteData
from privet.client.training.model_runtime import model_runtime
from privet.common.errors import InputError
from privet.common.models.start import offer
from privet.common.plan import Plan
from privet.simulations import scenarios
from privet.simulations.evaluate import PublicTest
from privet.simulations.planning import adjusted
from privet.simulations.records import SiteRecords
from privet.simulations.run import train_once

PARTS = ("validation", "test")
QUICK = ("medpar/linear", "medpar/dense", "digits/vit")
"""Studies whose records come from the package registry."""
BRIEF = (("strategy.average_last", 1), ("training.rounds", 2))
"""What is changed of their plans."""
Levels = tuple[float | None, ...]
Change = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One row for each level of privacy.

    Attributes:
        scenario, model: what is trained; None is the scenario's own model.
        levels: values of ε; None is a run without privacy.
        seeds: over which a row is the mean.
        figure: what a row tells.
        peer: ``logistic``, ``pooled`` or none.
        after: scenario and model of a training that it starts from; each may cost half of ε.
        plain, private: changes of the plan without privacy, and with.
        pooled: further ones for the pooled peer.
    """

    scenario: str
    model: str | None
    levels: Levels
    seeds: int = 3
    figure: str = "accuracy"
    peer: str = ""
    after: tuple[str, str | None] | None = None
    plain: tuple[tuple[str, Any], ...] = ()
    private: tuple[tuple[str, Any], ...] = ()
    pooled: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Scenario and model, as ``--only`` names them."""
        plan = scenarios.get(self.scenario).make_plan(self.model)
        made = f"{self.scenario}/{scenarios.model_name(plan.model)}"
        if self.after is None:
            return made
        before = scenarios.get(self.after[0]).make_plan(self.after[1])
        return f"{made}/after/{self.after[0]}/{scenarios.model_name(before.model)}"


_HEAD: dict[str, tuple[str, str | None]] = {
    name: (name, None) for name in ("banking77", "eicu-text")
}


_GENTLE: tuple[tuple[str, Any], ...] = (
    ("training.rounds", 10),
    ("strategy.options", {"eta": 0.002, "tau": 1e-6}),
)
"""How LoRA goes on with privacy from a head that is trained already."""


def _quick(tuning: str) -> tuple[tuple[str, Any], ...]:
    """Return MiniLM in bfloat16, which is for runs without privacy, as a change of a plan."""
    return (("model.options", {"tuning": tuning, "scale": 4.0, "precision": "bfloat16"}),)


def _step(rate: float) -> tuple[tuple[str, Any], ...]:
    """Return one step of the pooled peer, where a round is one step at each site."""
    return (("training.steps", 1), ("training.sample_rate", rate))


STUDIES = (
    Study("fed-heart", None, (None, 5.0, 1.0), 5, peer="logistic"),
    Study("lending", "linear", (None, 3.0, 1.0), 5, peer="logistic"),
    Study("lending", None, (None, 3.0, 1.0), 5, peer="logistic"),
    Study("medpar", None, (None, 3.0), 5, peer="logistic"),
    Study("medpar", "dense", (None, 3.0), 5, peer="logistic"),
    Study("sba-loans", None, (None, 3.0), 5, peer="logistic"),
    Study("sba-loans", "dense", (None, 3.0), 5, peer="logistic"),
    Study("digits", None, (None, 8.0)),
    Study("digits", "resnet", (None, 8.0)),
    Study("eicu-text", None, (None, 8.0, 3.0), 5, peer="logistic"),
    Study("banking77", None, (None, 8.0, 3.0), 5, peer="logistic"),
    Study("banking77", "text-encoder", (None, 8.0), 1),
    Study("eicu-text", "text-encoder", (None, 8.0)),
    Study("eicu-text", "text-encoder", (None, 8.0), after=("eicu-gaps", None)),
    Study("gospels", None, (None, 8.0), figure="chrf", peer="pooled", pooled=_step(0.02)),
    Study(
        "shakespeare", None, (None, 8.0), figure="perplexity", peer="pooled", pooled=_step(0.0085)
    ),
    *(
        Study(
            name,
            "minilm-lora",
            (None, 8.0, 3.0),
            after=_HEAD[name],
            plain=_quick("lora"),
            private=_GENTLE,
        )
        for name in _HEAD
    ),
    Study("eicu-text", "minilm-lora", (None,), plain=_quick("lora")),
    Study("banking77", "minilm-full", (None,), 1, after=_HEAD["banking77"], plain=_quick("full")),
    Study("eicu-text", "minilm-full", (None,), 1, after=_HEAD["eicu-text"], plain=_quick("full")),
    Study(
        "eicu-text",
        "minilm-lora",
        (None,),
        after=("eicu-gaps", "minilm-full"),
        plain=_quick("lora"),
    ),
)


class Pooled(SiteRecords):
    """All records at one site."""

    def site(self, name: str) -> SiteData:
        """Return all of them."""
        del name
        parts = self.parts()
        return SiteData(parts["train"], parts["test"])


def pooled_plan(plan: Plan) -> Plan:
    """Return a plan with one site: as many passes over the records, in batches as large.

    Where a round of the federation takes ``s`` steps at each of ``n`` sites, it takes ``s n``, one
    after the other.
    """
    sizes = [site.nominal_size for site in plan.sites]
    training = plan.training
    return plan.changed(
        sites=[{"name": "all", "nominal_size": sum(sizes)}],
        training={
            "steps": training.steps * len(sizes),
            "sample_rate": training.sample_rate / len(sizes),
        },
    )


class Results:
    """Runs that ended, one JSON object a line; several processes may add to a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, Row] = {}

    def get(
        self, key: str, part: str, make: Callable[[], dict[str, dict[str, Any]]], **facts: Any
    ) -> dict[str, Any]:
        """Return a run's figures on a split, from the file or made now."""
        self._read()
        if key not in self._found:
            started = time.monotonic()
            figures = make()
            seconds = round(time.monotonic() - started, 1)
            self._add({"key": key, **facts, "figures": figures, "seconds": seconds})
            said = " ".join(str(fact) for fact in facts.values())
            tell(f"{said}: {part} {_short(figures[part])} {seconds} s")
        found: dict[str, Any] = self._found[key]["figures"][part]
        return found

    def _read(self) -> None:
        if self._path is not None and self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                item = json.loads(line)
                self._found[item["key"]] = item

    def _add(self, item: Row) -> None:
        self._found[item["key"]] = item
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(json.dumps(item) + "\n")


def _short(figures: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if isinstance(v, float))


@dataclass(frozen=True)
class Bench:
    """Runs what a study asks for.

    Attributes:
        data: folder of the records.
        results: what ended before.
        part: split that is measured on.
        changes: of every plan.
        threads: of one run.
    """

    data: Path | None
    results: Results
    part: str = "test"
    changes: tuple[tuple[str, Any], ...] = ()
    threads: int = 2

    def plan(self, study: Study, epsilon: float | None, seed: int) -> Plan:
        """Return the scenario's plan at one level of privacy."""
        plan = scenarios.get(study.scenario).make_plan(study.model)
        plan = adjusted(plan, epsilon=epsilon, seed=seed, dp=epsilon is not None)
        plan = _changed(plan, study.plain if epsilon is None else study.private)
        return _changed(plan, self.changes)

    def figures(self, study: Study, epsilon: float | None, seed: int) -> dict[str, Any]:
        """Return the figures of one run."""
        plan = self.plan(study, epsilon, seed)
        if study.after is None:
            return self._run("federated", plan, SiteRecords(plan, self.data))
        before = Study(*study.after, levels=(epsilon,))
        first = self.plan(before, None if epsilon is None else epsilon / 2, seed)
        if epsilon is not None:
            plan = adjusted(plan, epsilon=epsilon / 2)
        return self._run("after", plan, SiteRecords(plan, self.data), first)

    def pooled(self, study: Study, seed: int) -> dict[str, Any]:
        """Return the figures of the same model on pooled records, without privacy."""
        plan = self.plan(study, None, seed)
        changed = _changed(pooled_plan(plan), study.pooled)
        return self._run("pooled", changed, Pooled(plan, self.data))

    def logistic(self, study: Study, seed: int) -> dict[str, Any]:
        """Return the accuracy of logistic regression on all training records."""
        model = "linear" if study.scenario == "lending" else None
        plan = self.plan(Study(study.scenario, model, ()), None, seed)
        return self.results.get(
            f"logistic {plan.digest}", self.part, lambda: _logistic(plan, self.data),
            how="logistic", scenario=plan.scenario, seed=seed,
        )  # fmt: skip

    def _run(
        self, how: str, plan: Plan, records: SiteRecords, before: Plan | None = None
    ) -> dict[str, Any]:
        key = " ".join([how, plan.digest, *([before.digest] if before else [])])
        privacy = plan.privacy
        return self.results.get(
            key, self.part, lambda: self._train(plan, records, before),
            how=how, scenario=plan.scenario, model=scenarios.model_name(plan.model),
            epsilon=privacy.epsilon if privacy else None, seed=plan.seed,
            changes=dict(self.changes),
        )  # fmt: skip

    def _train(
        self, plan: Plan, records: SiteRecords, before: Plan | None
    ) -> dict[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            if before is not None:
                first = before.changed(threads=self.threads)
                train_once(first, SiteRecords(before, self.data), Path(folder) / "first")
                start = offer(Path(folder) / "first" / "model" / "model.safetensors")
                plan = plan.changed(model={"start": start})
            plan = plan.changed(threads=self.threads)
            found = {"test": train_once(plan, records, Path(folder) / "run")}
            model = load_file(Path(folder) / "run" / "model" / "model.safetensors")
            # Here, too, while the weights that it started from are there.
            public = PublicTest(plan, records.parts()["validation"])
            found["validation"] = {**public.measure(model), **public.written(model)}
        for figures in found.values():
            figures.pop("sites", None)
        return found


def _changed(plan: Plan, changes: tuple[tuple[str, Any], ...]) -> Plan:
    """Return a plan with changes such as ``("training.rounds", 40)``."""
    for path, value in changes:
        part, _, name = path.partition(".")
        plan = plan.changed(**{part: {name: value}})
    return plan


def _logistic(plan: Plan, data: Path | None) -> dict[str, dict[str, Any]]:
    parts = SiteRecords(plan, data).parts()
    task = model_runtime(plan).task
    train = task.encode(parts["train"])
    sizes = [len(values) + 1 for _, values in sorted(plan.task.categorical.items())]

    def features(batch: dict[str, Any]) -> np.ndarray:
        if "features" in batch:
            return np.asarray(batch["features"]) * 4.0
        columns = [batch["numeric"].numpy(), batch["missing"].numpy()]
        for j, size in enumerate(sizes):
            columns.append(functional.one_hot(batch["categorical"][:, j], size).numpy())
        return np.concatenate(columns, 1)

    model = LogisticRegression(max_iter=2000).fit(features(train), train["label"].numpy())
    encoded = {part: task.encode(parts[part]) for part in PARTS}
    return {
        part: {"accuracy": float(model.score(features(batch), batch["label"].numpy()))}
        for part, batch in encoded.items()
    }


_PEERS = {
    "logistic": "pooled logistic regression, no privacy",
    "pooled": "the same model on pooled records, no privacy",
}


def measure(bench: Bench, study: Study, levels: Levels, seeds: int) -> list[Row]:
    """Return one row for each level of privacy."""
    peers = []
    if study.peer:
        ask = bench.pooled if study.peer == "pooled" else bench.logistic
        peers = [float(ask(study, seed)[study.figure]) for seed in range(seeds)]
    rows = []
    for epsilon in levels:
        found = [bench.figures(study, epsilon, seed) for seed in range(seeds)]
        values = [float(figures[study.figure]) for figures in found]
        privacy = bench.plan(study, epsilon, 0).privacy
        rows.append(
            row(
                study.name,
                statistics.mean(values),
                study.figure,
                _PEERS.get(study.peer),
                statistics.mean(peers) if peers else None,
                sd=statistics.stdev(values) if seeds > 1 else None,
                peer_sd=statistics.stdev(peers) if len(peers) > 1 else None,
                others=_means(found),
                epsilon=privacy.epsilon if privacy else None,
                delta=privacy.delta if privacy else None,
                privacy_unit=privacy.unit if privacy else None,
                relation=privacy.relation if privacy else None,
                trust=privacy.trust if privacy else None,
                seeds=seeds,
            )
        )
    return rows


def _means(found: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name, value in found[0].items() if isinstance(value, float)]
    return {name: statistics.mean(float(figures[name]) for figures in found) for name in names}


def _line(item: Row) -> str:
    terms = "no privacy"
    if item["epsilon"]:
        terms = f"ε {item['epsilon']:g} (δ {item['delta']:g}, per {item['privacy_unit']})"
    spread = f" ± {item['sd']:.3f}" if item["sd"] is not None else ""
    peer = f"  peer {item['peer_value']:.3f}" if item["peer_value"] is not None else ""
    figure = f"{item['unit']} {item['value']:.3f}{spread}"
    return f"{item['name']:36} {terms:34} {figure}{peer}"


def _set(text: str) -> tuple[str, Any]:
    path, mark, value = text.partition("=")
    if not mark or "." not in path:
        raise InputError(f"--set {text}: say PART.NAME=VALUE, as training.rounds=40")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="data folder; default $PRIVET_DATA")
    options.add_argument("--results", type=Path, help="file of runs that ended (JSON lines)")
    options.add_argument("--only", nargs="*", help="SCENARIO or SCENARIO/MODEL")
    options.add_argument("--level", nargs="*", help="values of ε, or 'none'")
    options.add_argument("--seeds", type=int, help="default those of each study")
    options.add_argument("--threads", type=int, default=2, help="of one run")
    options.add_argument("--tune", action="store_true", help="measure on the validation split")
    options.add_argument("--set", nargs="*", default=[], type=_set, help="PART.NAME=VALUE")
    options.add_argument("--no-peer", action="store_true", help="leave the peers out")
    given = options.parse_args()
    bench = Bench(
        given.data, Results(given.results), "validation" if given.tune else "test",
        (*(BRIEF if given.quick else ()), *given.set), given.threads,
    )  # fmt: skip
    rows: list[Row] = []
    for study in STUDIES:
        if given.only and not {study.name, study.scenario} & set(given.only):
            continue
        if given.quick and study.name not in QUICK:
            continue
        if not scenarios.get(study.scenario).available(given.data):
            tell(f"{study.name}: its data is not there, left out")
            continue
        levels = study.levels[:2] if given.quick else study.levels
        if given.level:
            levels = tuple(None if text == "none" else float(text) for text in given.level)
        if given.no_peer:
            study = replace(study, peer="")
        rows += measure(bench, study, levels, 1 if given.quick else given.seeds or study.seeds)
    finish(rows, given.json, _line)


if __name__ == "__main__":
    main()
