"""Write the files of ``privet init``: a commented plan, real records, and a user's own model."""

from __future__ import annotations

import tomllib
from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.plan_file import toml_section
from privet.common.printable import counted
from privet.simulations import scenarios
from privet.simulations.partition import deal

_FEATURES = {
    "mean radius": (8, 22),
    "mean texture": (10, 30),
    "mean smoothness": (0.06, 0.14),
    "mean compactness": (0.02, 0.25),
    "mean concavity": (0.0, 0.3),
    "mean concave points": (0.0, 0.15),
    "mean symmetry": (0.12, 0.26),
    "worst radius": (9, 28),
    "worst texture": (14, 42),
    "worst concave points": (0.0, 0.25),
}

_PLAN = """# A federation of three hospitals. Try it: privet simulate {folder}/plan.toml
name = "tumours"
title = "Three hospitals tell malignant from benign tumours"
seed = 0

[task]
kind = "tabular"               # or "text", or "module:object" for a task of your own
label = "malignant"
classes = ["0", "1"]           # every label that may occur, in order

# Typical ranges from public knowledge, in round numbers: never computed from the records,
# because a range that comes from the records reveals something about them.
[task.numeric]
{features}

# [task.categorical]
# sex = ["f", "m"]             # declared values; anything else counts as "other"

[model]
kind = "linear"                # or "ft-transformer", or "my_model:make" for {folder}/my_model.py

[training]
rounds = 10
steps = 2                      # noisy steps at each hospital in each round
sample_rate = 0.5              # chance of each record to be in a step's batch
learning_rate = 1.0

[strategy]
kind = "fedavg"                # fedprox, fedavgm, fedadam, fedyogi, fedadagrad

[privacy]                      # or, above the first section, privacy = "none": no guarantee
epsilon = 3.0
delta = 1e-4                   # at most one over the number of records
unit = "record"                # or "person": set data.person_column then
clip = 1.0

[metrics]
source = "public"              # metrics on the test split, which then counts as public;
                               # "gate": each hospital's own records, noised and paid for

[split]
test = 0.25

[attested]                     # what you vouch for; without it the claim is conditional on it
H12 = "ranges from textbooks; settings not tuned on these records"
H13 = "these example records are published"  # take it out for records of your own
H21 = "each patient was seen at one hospital"

# One file for each site. The nominal size is declared, not counted: a round number near
# the number of training records.
{sites}
# Or one file for all: [data] path = "all.csv", site_column = "hospital"
"""

_MODEL = '''"""A model of one's own: name it in the plan as kind = "my_model:make".

Run with the folder on the path: PYTHONPATH={folder} privet simulate {folder}/plan.toml
"""

import torch
from torch import nn


class Net(nn.Module):
    """A small network. Group or layer norms are fine; batch norms mix records."""

    def __init__(self, numeric: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * numeric, hidden), nn.Tanh(), nn.Linear(hidden, classes)
        )

    def forward(self, numeric, missing, categorical):
        return self.layers(torch.cat([numeric, missing], 1))


def make(task, *, hidden: int = 16) -> nn.Module:
    """Privet calls this with the plan's [task] and the options under [model.options]."""
    return Net(len(task.numeric), len(task.classes), hidden)
'''


_LIKE = """# The settings of {source}, for records of your own.
# They were found on {size}. Far from that, others may be
# better: try some with privet simulate --sweep, on records that may be used so.
#
# 1. Put your columns into [task], and your files into [[sites]]: one CSV file for each is enough.
# 2. privet simulate plan.toml --check     what each record is worth; nothing is trained
# 3. privet simulate plan.toml
name = "like-{scenario}"
seed = 0

# Yours: columns, their declared ranges and values (from public knowledge, never from the records),
# and every label that may occur. What stands here are the scenario's.
{task}

{settings}
# Yours: the nominal size is declared, not counted: a round number near the number of {units} to
# train on.
{sites}"""


def write_starter(folder: Path) -> list[str]:
    """Write the starter files; return their names.

    Raises:
        InputError: if the folder exists and is not empty.
    """
    from sklearn.datasets import load_breast_cancer

    _require_empty(folder)
    records = load_breast_cancer(as_frame=True).frame
    records["malignant"] = 1 - records.pop("target")
    dealt = deal(len(records), 3, seed=0)
    files = {}
    for number in range(3):
        table = records.loc[dealt == number, [*_FEATURES, "malignant"]]
        files[f"hospital-{number + 1}.csv"] = table.to_csv(index=False)
    features = "\n".join(
        f'"{name}" = {{ low = {low}, high = {high} }}' for name, (low, high) in _FEATURES.items()
    )
    sites = "\n".join(
        f'[[sites]]\nname = "Hospital {n}"\nnominal_size = 140\npath = "hospital-{n}.csv"\n'
        for n in (1, 2, 3)
    )
    files["plan.toml"] = _PLAN.format(folder=folder, features=features, sites=sites)
    files["my_model.py"] = _MODEL.replace("{folder}", str(folder))
    for name, text in files.items():
        write_atomic(folder / name, text.encode())
    return list(files)


def write_like(folder: Path, scenario: str, model: str | None = None) -> list[str]:
    """Write a plan with a scenario's settings, for records of one's own; return the files' names.

    Args:
        folder: new or empty.
        scenario: its name.
        model: another of its models; None takes its own.

    Raises:
        InputError: if there is no such scenario or model, or the folder is not empty.
    """
    _require_empty(folder)
    plan = scenarios.get(scenario).make_plan(model)
    sizes = sorted(site.nominal_size for site in plan.sites)
    unit = plan.privacy.unit if plan.privacy is not None else "record"
    units = "people" if unit == "person" else "records"
    usual = sizes[len(sizes) // 2]
    size = f"{counted(len(sizes), 'site')} of some {usual:,} {units}"
    source = f"scenario '{scenario}'" + (f", model '{model}'" if model else "")
    task = plan.task.model_dump(mode="json", exclude_defaults=True)
    task = {"kind": plan.task.kind, **_columns(plan), **task}
    settings = []
    for name in ("model", "training", "strategy", "compression", "privacy", "metrics", "split"):
        section = getattr(plan, name)
        if section is not None:
            values = section.model_dump(mode="json", exclude_defaults=True)
            shown = {n: getattr(section, n) for n in _SHOWN.get(name, ())}
            settings.append(toml_section(name, {**shown, **values}, _NOTES.get(name, "")))
    if unit == "person":
        settings.append(toml_section("data", {"person_column": "person"}, "yours"))
    sites = "\n".join(
        f'[[sites]]\nname = "Site {n}"\nnominal_size = {usual}\npath = "site-{n}.csv"\n'
        for n in (1, 2, 3)
    )
    text = _LIKE.format(
        source=source, size=size, scenario=scenario, task=toml_section("task", task).rstrip(),
        settings="\n".join(settings), units=units, sites=sites,
    )  # fmt: skip
    Plan.parse(tomllib.loads(text))
    write_atomic(folder / "plan.toml", text.encode())
    return ["plan.toml"]


_SHOWN = {
    "model": ("kind",),
    "training": ("rounds", "steps", "sample_rate", "learning_rate"),
    "strategy": ("kind",),
    "privacy": ("epsilon", "delta", "unit", "clip"),
    "metrics": ("source",),
    "split": ("test",),
}
"""Keys that are written although they may have their defaults."""
_NOTES = {
    "metrics": 'of the test split, which then counts as public; or "gate": noised and paid for'
}


def _columns(plan: Plan) -> dict[str, str]:
    """Return the names of columns that a task has by default."""
    text = getattr(plan.task, "text", None)
    return {"text": text} if isinstance(text, str) else {}


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing was written")
