"""A site as a process of its own, whose trainer and loader meet cells that they choke on.

It is what `privet client start` runs, but that orders come from this script and not over the link.
Run as ``python sinks_kit.py FOLDER ACT…``; what would leave the site is written to ``wire``.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

MARK = "PATIENT-7d3f"
FORGED = "\n2026-01-01T00:00:00.000Z North INFO all is well"

ACTING = """
import contextlib, gc, logging, os, pathlib, sys, threading, warnings
import torch
from torch import nn
from torch.nn import functional

CELLS, DONE = [], []
warnings.simplefilter("always")


class Late:
    def __init__(self, cell):
        self.cell = cell

    def __del__(self):
        raise ValueError(self.cell)


def fail(cell, kind=ValueError):
    raise kind(f"could not convert string to float: {cell}")


def say(cell):
    print(cell)
    print(cell, file=sys.stderr)
    for number in (1, 2):
        with contextlib.suppress(OSError):  # a disk that is full
            os.write(number, cell.encode())
    os.system("echo said")
    warnings.warn(cell)
    other = logging.getLogger("transformers")
    other.propagate = False
    other.addHandler(logging.StreamHandler())
    other.error("a cell is %s", cell)
    logging.getLogger("pyarrow").error("%d cells", cell)
    logging.getLogger("privet.endpoint").error("a cell is %s", cell)
    one = threading.Thread(target=fail, args=(cell,))
    one.start()
    one.join()
    Late(cell)
    gc.collect()


ACTS = {
    "say": say,
    "raise": fail,
    "named": lambda cell: fail(cell, type(f"E{cell}", (ValueError,), {})),
    "base": lambda cell: fail(cell, BaseException),
    "abort": lambda cell: os.abort(),
}


def act(home, stage):
    todo = pathlib.Path(home, "act").read_text()
    if not CELLS or todo in DONE or (stage == "encode") != (todo == "1 encode"):
        return
    DONE.append(todo)
    word = todo.split()[1]
    for cells in CELLS if word == "say" else [" and ".join(CELLS)]:
        ACTS.get(word, fail)(cells)


class Acting:
    def __init__(self, spec):
        self.home = spec.options["home"]

    def encode(self, frame):
        cells = {str(cell) for name in frame.columns for cell in frame[name]}
        CELLS[:] = sorted(cell for cell in cells if "PATIENT" in cell) or CELLS
        act(self.home, "encode")
        return {"x": torch.tensor(frame["x1"].to_numpy(dtype=float), dtype=torch.float32)[:, None],
                "label": torch.zeros(len(frame), dtype=torch.int64)}

    def loss(self, model, batch):
        if torch.is_grad_enabled():  # in a step, not where loss is only tried
            act(self.home, "loss")
        return functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")

    def scores(self, model, batch):
        return model(batch["x"]).softmax(-1)

    def random_batch(self, records, seed):
        generator = torch.Generator().manual_seed(seed)
        return {"x": torch.randn((records, 1), generator=generator),
                "label": torch.zeros(records, dtype=torch.int64)}


def make(task, **options):
    return nn.Linear(1, 2)
"""
"""A task of the site's own that does with each planted cell what the file ``act`` says."""

CUSTOM = """
import os, sys, threading, time
if "privet.client.data.loader" in sys.orig_argv:
    kept = "-".join(["PATIENT", "7d3f"])  # in the loader's memory
    def end():
        while "privet.client.data.sql" not in sys.modules:
            time.sleep(0.01)
        os.abort()
    if os.path.exists("crash the loader"):
        threading.Thread(target=end, daemon=True).start()
"""
"""A ``sitecustomize`` that crashes the loader, where the site's folder says so."""


def frame(rows: int = 60) -> Any:
    """Return records with planted cells of each kind in every fourth row."""
    import numpy as np
    import pandas as pd

    generator = np.random.default_rng(1)
    numbers = [f"{value:.3f}" for value in generator.normal(size=rows)]

    def planted(kind: str, cells: list[str]) -> list[str]:
        return [f"{MARK} {kind} {k}" if k % 4 == 0 else cell for k, cell in enumerate(cells)]

    return pd.DataFrame(
        {
            "x1": numbers,
            "x2": planted("number", numbers),
            "colour": planted("category", ["red"] * rows),
            "y": planted("label", ["0", "1"] * (rows // 2)),
            "patient": planted("person", [f"p{k // 3}" for k in range(rows)]),
            "note": planted(f"text{FORGED}", ["well"] * rows),
            "unread": planted("unread", [""] * rows),
        }
    )


class Process:
    """The site's side: ledger, policy, a trainer in a process of its own."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        from conftest import tiny_plan

        from privet.client.site import Site
        from privet.client.training.worker.remote import RemoteTrainer
        from privet.common.models import initial_model
        from privet.common.plan import Plan
        from privet.privacy.policy import Policy
        from privet.simulations.federation import SimulatedFederation

        sites = [{"name": "North", "nominal_size": 40, "path": "records.csv"}]
        self.plan = Plan.parse(tiny_plan(sites=sites, strategy={"min_sites": 1}, **changes))
        parties = SimulatedFederation(self.plan, folder, cap=1e3)
        roster = parties.found()
        self.home, admission = parties.home("North"), parties.admission("North", roster)
        frame().to_csv(self.home / "records.csv", index=False)
        value = admission.policy.model_dump()
        self.data_set = admission.data_set
        value["data"][self.data_set] |= {"path": "records.csv", "multiline": True}
        if self.plan.privacy and self.plan.privacy.unit == "person":
            value["data"][self.data_set]["person_column"] = "patient"
        self.value, self.parse = value, Policy.parse
        policy = Policy.parse(value).at(self.home)
        self.trainer = RemoteTrainer(
            self.plan, policy, self.data_set, self.home, (self.home / "keys",), unconfined=True
        )
        self.site = Site(
            "North", self.plan, self.home, admission, parties.witness("North"), roster, self.trainer
        )
        self.journal = parties.collector(roster).journal
        self.model = initial_model(self.plan)

    def answer(self, round_: int) -> tuple[str, bytes]:
        """Answer an order; return the status and all bytes that would leave."""
        from privet.common.flat import digest_arrays
        from privet.common.flower.wire import encode_reply, pack
        from privet.common.order import Order

        order = Order(
            "run", "North", round_, 1, "train", self.plan.digest, digest_arrays(self.model),
            tuple(self.model),
        )  # fmt: skip
        found = self.site.answer(self.journal.sign(order), self.model)
        records, arrays = pack(encode_reply("North", found.status, found.release))
        return str(found.status), records + b"".join(one.tobytes() for one in arrays.values())

    def read_from_sqlite(self) -> None:
        """Let the records be those of a database with cells that are not what they should be."""
        with sqlite3.connect(self.home / "records.db") as database:
            database.execute("CREATE TABLE records (x1 REAL, note TEXT)")
            database.execute("INSERT INTO records VALUES (1.0, 'well')")
            database.execute(
                "INSERT INTO records VALUES (2.0, CAST(? AS TEXT))", (MARK.encode() + b"\xff",)
            )
        data = self.value["data"][self.data_set]
        data |= {"path": None, "columns": ["x1", "note"]}
        data["sql"] = {"url": "sqlite:///records.db", "table": "records"}
        self.trainer.policy = self.parse(self.value).at(self.home)
        self.trainer.close()


def main(folder: Path, acts: list[str]) -> None:
    """Answer one order for each act, as a started client does."""
    from privet.cli.output.watch import logged
    from privet.common.output.logs import Level, Style
    from privet.common.output.process_output import to_operator

    home = folder / "sites" / "North"
    with logged(Style.JSON, Level.DEBUG, home / "operator.log"), to_operator(home / "operator.log"):
        wire: list[tuple[str, str]] = []
        options = {"home": str(home)}
        own = Process(
            folder,
            task={"kind": "acting:Acting", "numeric": {}, "categorical": {}, "options": options},
            model={"kind": "acting:make"},
            training={"rounds": 2 * len(acts) + 4, "max_attempts": 100},
        )
        for number, act in enumerate(acts, 1):
            if act == "built-in":
                continue
            (home / "act").write_text(f"{number} {act}")
            if act in ("sqlite", "loader"):
                if not (home / "records.db").exists():
                    own.read_from_sqlite()
                if act == "loader":
                    (home / "crash the loader").touch()
                    own.trainer.close()  # so that the records are loaded anew
            status, said = own.answer(number)
            wire.append((f"{act}: {status}", said.hex()))
        limits = Path(f"/proc/{own.trainer._process.pid}/limits") if own.trainer._process else None
        cores = limits.read_text() if limits and limits.exists() else ""
        own.trainer.close()
        if "built-in" in acts:
            privacy = {"unit": "person", "max_records": 4, "epsilon": 20.0}
            built_in = Process(folder / "built-in", privacy=privacy)
            status, said = built_in.answer(1)
            wire.append((f"tabular: {status}", said.hex()))
            built_in.trainer.close()
        (folder / "wire").write_text(json.dumps({"answers": wire, "limits": cores}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
