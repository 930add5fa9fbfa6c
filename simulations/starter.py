"""Write the files of ``privet init``: a commented plan, real records, and a user's own model."""

from __future__ import annotations

from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.errors import InputError
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


def write_starter(folder: Path) -> list[str]:
    """Write the starter files; return their names.

    Raises:
        InputError: if the folder exists and is not empty.
    """
    from sklearn.datasets import load_breast_cancer

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing was written")
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
