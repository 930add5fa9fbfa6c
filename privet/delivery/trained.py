"""A trained model, read from a run's folder, as a network and a task that feeds it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from privet.common.canonical import write_atomic
from privet.common.errors import DataError, InputError
from privet.common.flat import not_finite
from privet.common.plan import Plan
from privet.common.run_files import figures_path

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from privet.common.flat import Arrays
    from privet.common.tasks import Batch, Task


_SNAPSHOT = "snapshot.safetensors"


@dataclass(frozen=True, repr=False)
class Trained:
    """One trained model.

    Attributes:
        plan: of the run.
        arrays: trained parameters by name.
        facts: what the file of the model says of itself.
        folder: of the run.
    """

    plan: Plan
    arrays: Arrays
    facts: dict[str, str]
    folder: Path

    def __repr__(self) -> str:
        count = sum(array.size for array in self.arrays.values())
        what = f"{self.plan.model.kind}, {count:,} trained numbers"
        return f"<Trained '{self.plan.name}': {what}, {self.folder}>"

    @functools.cached_property
    def result(self) -> dict[str, Any]:
        """What the run wrote down at its end; empty where there is none.

        Of a coordinator's run: the metrics of its last round, whose model this is.
        """
        path = self.folder / "result.json"
        measured = figures_path(self.folder, int(self.facts.get("round", self.plan.last_round)))
        if path.is_file():
            return _read(path)
        if measured.is_file():
            return {"metrics_source": "gate", **_read(measured)}
        return {}

    @functools.cached_property
    def network(self) -> nn.Module:
        """The whole network, trained and frozen parts, that maps inputs to logits; on the CPU.

        Where only a head on frozen features was trained, the features' encoder is part of it.
        """
        import torch

        from privet.common.models import build_model, trainable
        from privet.common.models.text import joined

        network = build_model(self.plan.changed(device="cpu"))
        named = trainable(network)
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        found = {name: array.shape for name, array in self.arrays.items()}
        if shapes != found:
            odd = sorted(n for n in {*shapes, *found} if shapes.get(n) != found.get(n))[0]
            raise InputError(
                f"{self.folder}: the plan's model and the file do not have the same parameters "
                f"('{odd}'); was it written by another version?"
            )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(torch.from_numpy(np.array(self.arrays[name])))
        return joined(network).eval()

    @functools.cached_property
    def weights(self) -> Path:
        """The file that another run starts from to have this very model.

        Parameters that stayed frozen are public, and a plan has them anywhere. But what an earlier
        run trained, and this one froze, no plan has: then both are written into a file beside.

        Raises:
            InputError: if it cannot be written.
        """
        from safetensors.torch import save

        from privet.common.models import build_model, trainable
        from privet.common.models.start import frozen_by

        own = _file_of(self.folder)
        plan = self.plan.changed(device="cpu")
        if plan.model.start is None or not frozen_by(build_model(plan), plan.model.start):
            return own
        import torch

        model, path = build_model(plan), own.with_name("whole.safetensors")
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                parameter.copy_(torch.from_numpy(np.array(self.arrays[name])))
        tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            write_atomic(path, save(tensors))
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        return path

    @functools.cached_property
    def task(self) -> Task:
        """The task that makes the network's inputs."""
        from privet.common.tasks import build_task

        if self.plan.model.reads_features:
            return build_task(self.plan.changed(model={"options": {"tuning": "full"}}))
        return build_task(self.plan)

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Return the inputs of records that may lack a label.

        Raises:
            DataError: if they do not fit the task.
        """
        spec = self.plan.task
        if spec.answer_column is not None and spec.answer_column not in frame.columns:
            frame = frame.assign(**{spec.answer_column: next(iter(spec.labels), "")})
        if not len(frame):
            raise DataError("there is no record")
        return self.task.encode(frame)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """As :meth:`privet.simulations.result.Result.predict`.

        Args:
            frame: records with the columns that the plan reads; they need no label.

        Raises:
            InputError: if the task has no classes.
            DataError: if a column is missing, or there is no record.
        """
        from privet.simulations.model_use import predictions_of

        return predictions_of(self.plan, self.arrays, frame)

    def evaluate(self, frame: pd.DataFrame) -> dict[str, Any]:
        """As :meth:`privet.simulations.result.Result.evaluate`.

        Args:
            frame: records with the columns that the plan reads, and its label.

        Raises:
            DataError: if a column is missing, or no record can be read.
        """
        from privet.simulations.model_use import metrics_of

        return metrics_of(self.plan, self.arrays, frame)

    def require_answers(self, frame: pd.DataFrame) -> None:
        """Check that records say what is right, so that a model can be measured on them.

        Raises:
            DataError: if they do not.
        """
        column = self.plan.task.answer_column
        if column is not None and column not in frame.columns:
            raise DataError(f"the column '{column}' is missing: it says what is right")

    def written(self, batch: Batch) -> list[str]:
        """Return the text that the model writes for each record, if it writes any."""
        from privet.common.tasks.language import TextToText

        return self.task.write(self.network, batch) if isinstance(self.task, TextToText) else []

    def wanted(self, frame: pd.DataFrame) -> list[str]:
        """Return the text that each record holds for what the model writes, cleaned alike."""
        from privet.common.tasks.language import TextToText

        assert isinstance(self.task, TextToText)
        return self.task.wanted(frame)

    def scores(
        self, batch: Batch, network: nn.Module | None = None, chunk: int = 256
    ) -> np.ndarray:
        """Return what each record is measured by, [N, K]; by another network if one is given."""
        import torch

        chosen = self.network if network is None else network
        count, parts = len(next(iter(batch.values()))), []
        with torch.no_grad():
            for start in range(0, count, chunk):
                part = {name: tensor[start : start + chunk] for name, tensor in batch.items()}
                parts.append(self.task.scores(chosen, part).float().numpy())
        return np.concatenate(parts)


def load(folder: str | Path) -> Trained:
    """Read the model of a run's folder, of a simulation or of a coordinator.

    Of a coordinator's run that failed it is the one after its last round.

    Args:
        folder: of the run.

    Raises:
        InputError: if there is no finished or failed run, or its parts are not of one plan.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    path, plan_path = _file_of(folder), folder / "plan.json"
    for needed in (plan_path, path):
        if not needed.is_file():
            raise InputError(
                f"{needed}: there is no such file; name the folder of a finished run, such as "
                "`privet simulate --out` or a coordinator's runs/NAME, or of one that failed after "
                "its first round"
            )
    try:
        plan = Plan.parse(json.loads(plan_path.read_text(encoding="utf-8")), where=str(plan_path))
    except ValueError as error:
        raise InputError(f"{plan_path}: cannot be read: {error}") from error
    try:
        with safe_open(str(path), framework="numpy") as stored:
            facts = dict(stored.metadata() or {})
            arrays = {name: stored.get_tensor(name) for name in json.loads(facts["names"])}
        if path.name == _SNAPSHOT:
            arrays, facts = _shown(arrays, facts, plan)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error!r}") from error
    if name := not_finite(arrays):
        raise InputError(f"{path}: '{name}' holds numbers that are not finite: no trained model")
    if facts.get("plan") != plan.digest:
        raise InputError(f"{path}: this model is of another plan than {plan_path}")
    return Trained(plan, arrays, facts, folder)


def _file_of(folder: Path) -> Path:
    """Return the file of a run's model: of one that failed, its last snapshot."""
    path = folder / "model" / "model.safetensors"
    last = path.with_name(_SNAPSHOT)
    status = folder / "status.json"
    failed = not path.is_file() and status.is_file() and _read(status).get("state") == "failed"
    return last if failed and last.is_file() else path


def _shown(arrays: Arrays, facts: dict[str, str], plan: Plan) -> tuple[Arrays, dict[str, str]]:
    """Return the model that a snapshot's round ended with, and what its own file would say.

    Where the plan averages the models of the last rounds, a snapshot holds them beside it.
    """
    earlier = int(facts["earlier"])
    names = list(arrays)[: len(arrays) // (earlier + 1)]
    shown: Arrays = {}
    for name in names:
        models = [*(arrays[f"{place}/{name}"] for place in range(earlier)), arrays[name]]
        total = models[0].astype("float64")
        for more in models[1:]:
            total = total + more
        shown[name] = (total / len(models)).astype("float32") if earlier else arrays[name]
    private = str(plan.privacy is not None).lower()
    return shown, {
        "plan": plan.digest, "private": private, "round": facts["round"],
        "names": json.dumps(names),
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}
