"""Task, model and gradient engine of a plan: what is dear to make, and made once a process."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from privet.common.errors import DataError, SelfTestFailed
from privet.common.flat import Arrays
from privet.common.models import build_model, trainable
from privet.common.plan import Plan
from privet.common.tasks import Batch, augment_of, build_task, sizes_of
from privet.common.tasks.encoding import Encoded, encode_records
from privet.common.tasks.measure import Measure, measure_of
from privet.privacy import selftest
from privet.privacy.clipping import GradientEngine
from privet.privacy.dpsgd import Views


class Workbench:
    """Task, model and gradient engine of one plan; a process has one for each plan.

    One model serves all sites that a process simulates: weights are set at each order,
    and nothing else of it may change between orders (the watch sees to that).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._passed: tuple[str, ...] | None = None
        self._fault: SelfTestFailed | None = None
        self.task = build_task(plan)
        augment, copies = augment_of(self.task), plan.training.copies
        self.views = Views(augment, copies) if augment else None
        self.engine = GradientEngine(
            build_model(plan),
            self.task.loss if copies == 1 else self._mean_loss,
            mode=plan.training.clipping,
            micro_batch=plan.training.micro_batch,
            sizes=sizes_of(self.task),
        )

    def _mean_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what a view adds to the mean over the views of its record, [B]."""
        return self.task.loss(model, batch) / self.plan.training.copies

    def load(self, model: Arrays) -> None:
        """Set the trained parameters."""
        with torch.no_grad():
            for name, parameter in self.engine.named.items():
                parameter.copy_(torch.from_numpy(np.array(model[name])))

    @property
    def self_tests(self) -> tuple[str, ...]:
        """Rows of the honesty list whose start-up tests this model passed; they run once.

        Raises:
            SelfTestFailed: naming the row and the layer; the same each time.
        """
        if self._fault is not None:
            raise self._fault
        if self._passed is None:
            try:
                self._passed = self._tested()
            except SelfTestFailed as fault:
                self._fault = fault
                self.engine.close()
                raise
        return self._passed

    def _tested(self) -> tuple[str, ...]:
        if self.views is not None:
            selftest.augmentation(self.views, self._random_batch)
        declared = trainable(self.engine.model)
        before = {name: parameter.detach().clone() for name, parameter in declared.items()}
        generator = torch.Generator().manual_seed(0)
        bounded = self.plan.privacy is not None or self.plan.training.clip is not None
        test = functools.partial(
            selftest.run, self.engine, self._random_batch, declared, bounded=bounded
        )
        try:
            with torch.no_grad():
                # Away from initial zeros, where the gradients of whole layers vanish.
                for parameter in declared.values():
                    moved = 0.1 * torch.randn(parameter.shape, generator=generator)
                    parameter.add_(moved.to(parameter.device))
            try:
                return tuple(test())
            except SelfTestFailed as fault:
                if not self.engine.fall_back(str(fault)):
                    raise
                try:
                    return tuple(test())
                except SelfTestFailed as again:
                    raise SelfTestFailed(
                        f"{again} (by opacus-hooks, after book-keeping failed: {fault})"
                    ) from again
        finally:
            with torch.no_grad():
                for name, parameter in declared.items():
                    parameter.copy_(before[name])

    def _random_batch(self, records: int, seed: int) -> Batch:
        batch = self.task.random_batch(records, seed)
        return {name: tensor.to(self.plan.device) for name, tensor in batch.items()}

    def score(self, examples: Batch) -> np.ndarray:
        """Return what each record is measured by, [N, K], of the model as it is now."""
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
            return self._no_scores()
        scores = np.concatenate(parts)
        return scores if sizes is None else scores[torch.argsort(order).numpy()]

    @property
    def measure(self) -> Measure:
        """How the task is measured."""
        return measure_of(self.task)

    def _no_scores(self) -> np.ndarray:
        """Return the scores of no records, [0, K]; K is that of a made-up one."""
        model = self.engine.model
        model.eval()
        try:
            with torch.no_grad(), self.engine.hooks_off():
                one = self.task.scores(model, self._random_batch(1, 0))
        finally:
            model.train()
        return one[:0].float().cpu().numpy()

    def encode_records(self, frame: pd.DataFrame) -> Encoded:
        """Return the usable records as tensors on the plan's device.

        Raises:
            DataError: if a column is missing that the task reads.
        """
        found = encode_records(self.task, frame)
        batch = {name: tensor.to(self.plan.device) for name, tensor in found.batch.items()}
        return dataclasses.replace(found, batch=batch)

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


def labels_of(examples: Batch) -> np.ndarray:
    """Return class numbers [N]; zeros where a task has none."""
    if "label" not in examples:
        return np.zeros(_count(examples), dtype=np.int64)
    labels: np.ndarray = examples["label"].cpu().numpy()
    return labels


def _count(examples: Batch) -> int:
    return len(next(iter(examples.values())))


@functools.lru_cache(maxsize=4)
def workbench(plan: Plan) -> Workbench:
    """Return the process's workbench for ``plan``."""
    return Workbench(plan)
