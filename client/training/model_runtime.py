"""Task, model and gradient engine of a plan, which are expensive and made once a process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from privet.common.errors import DataError, InputError, SelfTestError
from privet.common.flat import Arrays
from privet.common.models import build_model, initial_model, trainable
from privet.common.plan import Plan
from privet.common.tasks import Batch, augment_of, build_task, sizes_of
from privet.common.tasks.encoding import Encoded, encode_records
from privet.common.tasks.measure import Measure, Shape, measure_of
from privet.privacy.mechanism import exactness, metrics_mechanism, selftest
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.dpsgd import Views

_MEASURED = 8
"""Generated records on which the measure is tried."""
_ROUNDING = 1e-2
"""How far scores may move, relative to 1 + their size, when they are computed with others."""


_MAX_TEXT = 300
"""Characters of an error that are kept for the operator."""
_SCORING_BATCH = 64
"""Records whose loss and scores are tried together."""


class ModelRuntime:
    """Task, model and gradient engine of one plan; a process has one for each plan.

    All sites that a process simulates share the model: each order sets its weights, and nothing
    else of it may change between orders (the check of parameter integrity enforces that).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._passed: tuple[str, ...] | None = None
        self._fault: SelfTestError | None = None
        self._begun = False
        self.task = build_task(plan)
        augment, copies = augment_of(self.task), plan.training.copies
        # A user's own sees one record at a time; ours are proved by the start-up test.
        alone = ":" in plan.task.kind
        self.views = Views(augment, copies, alone=alone) if augment else None
        self.loss = self.task.loss if copies == 1 else self._mean_loss
        self.engine = GradientEngine(
            build_model(plan),
            self.loss,
            mode=plan.training.clipping,
            micro_batch=plan.training.micro_batch,
            sizes=sizes_of(self.task),
        )

    def _mean_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each view's share in the mean loss over the views of its record, [B]."""
        return self.task.loss(model, batch) / self.plan.training.copies

    def load(self, model: Arrays) -> None:
        """Set the trained parameters to those of ``model``, by name."""
        self._begun = True
        with torch.no_grad():
            for name, parameter in self.engine.named.items():
                parameter.copy_(torch.from_numpy(np.array(model[name])))

    @property
    def self_tests(self) -> tuple[str, ...]:
        """Rows of the assumption register whose start-up tests this model passed; they run once.

        The tests run at the plan's first weights, whatever was loaded since, so that the state
        after another run decides nothing.

        Raises:
            SelfTestError: naming the row and the layer; the same each time.
        """
        if self._fault is not None:
            raise self._fault
        if self._passed is None:
            try:
                self._passed = self._tested()
            except SelfTestError as fault:
                self._fault = fault
                self.engine.close()
                raise
        return self._passed

    def _tested(self) -> tuple[str, ...]:
        if self.views is not None:
            selftest.augmentation(self.views, self._random_batch)
        declared = trainable(self.engine.model)
        records, together = self._expected()
        test = functools.partial(
            selftest.run, self.engine, self._random_batch, declared,
            bounded=self.plan.privacy is not None or self.plan.training.clip is not None,
            records=records, together=together,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        with exactness.kept_weights(self.engine.model):
            begins = initial_model(self.plan) if self._begun else {}
            for name, parameter in declared.items():
                start = parameter.data
                if name in begins:
                    start = torch.from_numpy(np.array(begins[name])).to(start)
                # Away from initial zeros, where the gradients of whole layers vanish.
                moved = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data = start + moved.to(start)
            passed = tuple(test())
            if self.plan.metrics.source == "gate":
                self._test_measure()
            return passed

    def _expected(self) -> tuple[int, int]:
        """Return how many records a large batch has, and how many of them a unit has at most.

        The expected batch of the largest site and four standard deviations.
        """
        plan = self.plan
        units = plan.training.sample_rate * max(site.nominal_size for site in plan.sites)
        together = plan.training.copies
        if plan.privacy is not None and plan.privacy.unit == "person":
            together *= plan.privacy.max_records
        return math.ceil(units + 4 * math.sqrt(units)) * together, together

    def _test_measure(self) -> None:
        """Try scores and measure on generated records, so that none of it fails after a debit.

        Raises:
            SelfTestError: if there is no table, no record has a cell in it, or the scores of one
                depend on the records beside it (H6).
        """
        examples = self._random_batch(_MEASURED, 0)
        try:
            shape = self.table_shape
            together = self.score(examples)
            alone = [
                self.score({name: tensor[k : k + 1] for name, tensor in examples.items()})
                for k in range(_MEASURED)
            ]
            moved = np.abs(together - np.concatenate(alone))
        except InputError as error:
            raise SelfTestError(f"H13: {error}") from error
        except Exception as error:
            raise SelfTestError(f"H13: generated records cannot be scored: {error!r}") from error
        if (moved > _ROUNDING * (1 + np.abs(together))).any():
            raise SelfTestError("H6: the scores of a record depend on the records beside it")
        metrics_mechanism.check_measure(self.measure, shape, together, labels_of(examples))

    def _random_batch(self, records: int, seed: int) -> Batch:
        batch = self.task.random_batch(records, seed)
        return {name: tensor.to(self.plan.device) for name, tensor in batch.items()}

    def score(self, examples: Batch) -> np.ndarray:
        """Return the scores by which the task measures each record, [N, K], with the present
        weights.
        """
        model, parts = self.engine.model, []
        sizes = self.engine.sizes(examples)
        if sizes is not None:
            order = torch.argsort(sizes, stable=True)
            examples = {name: tensor[order] for name, tensor in examples.items()}
        chunk = max(1, min(1024, 4 * self.plan.training.micro_batch))
        model.eval()
        try:
            with torch.no_grad(), self.engine.hooks_off():
                for start in range(0, _count(examples), chunk):
                    batch = {name: t[start : start + chunk] for name, t in examples.items()}
                    parts.append(self.task.scores(model, batch).float().cpu().numpy())
        finally:
            model.train()
        if not parts:
            return np.zeros((0, 1), dtype=np.float32)
        scores = np.concatenate(parts)
        return scores if sizes is None else scores[torch.argsort(order).numpy()]

    @property
    def measure(self) -> Measure:
        """The measure of the task."""
        return measure_of(self.task)

    def encode_records(self, frame: pd.DataFrame) -> Encoded:
        """Return the usable records as tensors on the plan's device.

        Raises:
            DataError: if a column is missing that the task reads.
        """
        found = encode_records(self.task, frame)
        batch = {name: tensor.to(self.plan.device) for name, tensor in found.batch.items()}
        return dataclasses.replace(found, batch=batch)

    def not_computable(self, examples: Batch) -> dict[int, str]:
        """Return by its number why the loss or the scores of a record cannot be computed.

        It tries several records together on the CPU and, if that fails, each half: a label beyond
        the scores or a number beyond an embedding must not stop the other records.
        """
        found: dict[int, str] = {}
        records = _count(examples)
        todo = [
            (start, min(start + _SCORING_BATCH, records))
            for start in range(0, records, _SCORING_BATCH)
        ]
        model = self.engine.model
        with self.engine.hooks_off():
            if self.plan.device != "cpu":  # where what is out of bounds would end the process
                model = copy.deepcopy(model).cpu()
            model.eval()
            try:
                while todo:
                    start, end = todo.pop()
                    batch = {name: tensor[start:end].cpu() for name, tensor in examples.items()}
                    why = self._reason(model, batch, end - start)
                    if why and end - start > 1:
                        middle = (start + end) // 2
                        todo += [(start, middle), (middle, end)]
                    elif why:
                        found[start] = why
            finally:
                model.train()
        return found

    def _reason(self, model: nn.Module, batch: Batch, count: int) -> str:
        try:
            with torch.no_grad():
                losses, scores = self.task.loss(model, batch), self.task.scores(model, batch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # code of a user's own, on one record
            return _text_of(error)
        if tuple(losses.shape) == (count,) and len(scores) == count:
            return ""
        return f"a loss of shape {tuple(losses.shape)} and {len(scores)} scores for {count} records"

    @property
    def table_shape(self) -> Shape:
        """Rows and columns of the metrics mechanism's table.

        Raises:
            InputError: if the plan lacks a setting from which the shape follows.
        """
        return self.measure.shape(self.plan)

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Return the records as tensors on the plan's device.

        Raises:
            DataError: if one of them cannot be used.
        """
        found = self.encode_records(frame)
        if found.faults:
            row = min(found.faults)
            raise DataError(f"row {frame.index[row]}: {found.faults[row]}")
        return found.batch


def _text_of(error: BaseException) -> str:
    """Return what an error of a user's own code says, whatever its class does."""
    try:
        return repr(error)[:_MAX_TEXT]
    except Exception:
        return type(error).__name__


def labels_of(examples: Batch) -> np.ndarray:
    """Return class numbers [N]; zeros if the task has none."""
    if "label" not in examples:
        return np.zeros(_count(examples), dtype=np.int64)
    labels: np.ndarray = examples["label"].cpu().numpy()
    return labels


def _count(examples: Batch) -> int:
    return len(next(iter(examples.values())))


@functools.lru_cache(maxsize=4)
def model_runtime(plan: Plan) -> ModelRuntime:
    """Return the process's runtime for ``plan``."""
    return ModelRuntime(plan)
