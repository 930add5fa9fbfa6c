"""A step with clipped per-unit gradients, beside the same step without privacy and beside peers.

    python benchmarks/clipping.py
    python benchmarks/clipping.py --quick --json
    python benchmarks/clipping.py --model gpt2 --threads 2 --times 5

A step is one forward and one backward pass over a batch, to the sum of clipped gradients (the peer
`plain`: to the sum of gradients). All ways are run in turn in one process with the same allocator
settings; times are CPU seconds, medians. Peak memory is of a process of its own for each way, over
what it held before the model was made. Errors are against a loop of single records. The noise is
timed apart, in nanoseconds a value. With `--device cuda` times are wall seconds between
synchronisations.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipping_models
import numpy as np
import torch
from harness import Row, finish, parser, row, tell
from torch import Tensor

from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.noise import Stream

OURS, PLAIN, VMAP, GHOST = "bookkeeping", "plain", "vmap", "opacus-ghost"
PEERS = ("opacus-hooks", GHOST, "functorch", VMAP)
GOALS: dict[str, float | None] = {
    "bert": 1.15, "lora": 1.02, "tiny": 1.25, "minilm": 1.2, "gpt2": 1.25, "lending": None,
}  # fmt: skip
MOST_MEMORY, MOST_NANOSECONDS = 1.3, 7.0
Batch = dict[str, Tensor]
Step = Callable[[], Any]


def step_of(kind: str, model: Any, loss: clipping_models.Loss, batch: Batch) -> Step:
    """Return one step.

    Raises:
        Exception: whatever a peer says to a model that it cannot treat.
    """
    records = len(next(iter(batch.values())))
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind == PLAIN:

        def plain() -> list[Tensor | None]:
            for parameter in parameters:
                parameter.grad = None
            loss(model, batch).sum().backward()
            return [parameter.grad for parameter in parameters]

        return plain
    if kind == VMAP:
        return vmapped(model, loss, batch)
    if kind == GHOST:
        return ghost(model, loss, batch)
    engine = GradientEngine(model, loss, mode=kind)
    owner = np.arange(records)
    return lambda: list(engine.clipped_sum(batch, owner, records, 1.0).tensors)


def vmapped(model: Any, loss: clipping_models.Loss, batch: Batch) -> Step:
    """Per-record gradients by ``torch.func``, clipped and summed."""
    from torch.func import functional_call, grad, vmap

    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    others = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    others |= dict(model.named_buffers())

    class Bound:
        def __init__(self, values: dict[str, Tensor]) -> None:
            self.values = values

        def __call__(self, *given: Any, **more: Any) -> Any:
            return functional_call(model, {**self.values, **others}, given, more)

    def alone(values: dict[str, Tensor], record: Batch) -> Tensor:
        return loss(Bound(values), {k: t.unsqueeze(0) for k, t in record.items()}).sum()

    by_record = vmap(grad(alone), in_dims=(None, 0))

    def step() -> list[Tensor]:
        made = by_record(named, batch)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in made.values()]).sum(0).sqrt()
        factors = (1.0 / norms).clamp(max=1.0)
        return [torch.tensordot(factors, g, dims=1) for g in made.values()]

    return step


def ghost(model: Any, loss: clipping_models.Loss, batch: Batch) -> Step:
    """Opacus's ghost clipping: a backward pass for the norms, and a second one for the sum."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=1.0, strict=False
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        losses = loss(wrapped, batch)
        losses.sum().backward(retain_graph=True)
        factors = wrapped.get_clipping_coef()
        for parameter in parameters:
            parameter.grad = None
        wrapped.disable_hooks()
        try:
            (losses * factors.to(losses.dtype)).sum().backward()
        finally:
            wrapped.enable_hooks()
        return [parameter.grad for parameter in parameters]

    return step


def reference(model: Any, loss: clipping_models.Loss, batch: Batch) -> list[Tensor]:
    """The clipped sum by a loop of single records."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for i in range(len(next(iter(batch.values())))):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        made = torch.autograd.grad(loss(model, one).sum(), parameters, allow_unused=True)
        length = sum(float(g.double().square().sum()) for g in made if g is not None) ** 0.5
        for running, g in zip(total, made, strict=True):
            if g is not None:
                running.add_(g.double(), alpha=min(1.0, 1.0 / length))
    return total


def relative(got: list[Tensor], want: list[Tensor]) -> float:
    """Norm of the difference over the norm of what is right."""
    off = sum(float((g.double() - w).square().sum()) for g, w in zip(got, want, strict=True))
    return (off / sum(float(w.square().sum()) for w in want)) ** 0.5


# what runs in a process of its own


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_all(options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways of one model, in turn."""
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    errors: dict[str, float] = {}
    for kind in (PLAIN, OURS) if options.alone else (PLAIN, OURS, *PEERS):
        # Opacus hangs its hooks on a model: each way has its own.
        model, loss, batch = clipping_models.make(options.model, options.device)
        want = [] if kind == PLAIN else reference(model, loss, batch)
        try:
            step = step_of(kind, model, loss, batch)
            made = step()
            if kind != PLAIN:
                errors[kind] = relative(made, want)
            steps[kind] = step
        except Exception as error:
            failed[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(options.times):
        for kind, step in steps.items():
            began = _clock(options.device)
            step()
            seconds[kind].append(_clock(options.device) - began)
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    return {"seconds": medians, "errors": errors, "failed": failed}


def peak_of(options: argparse.Namespace) -> dict[str, Any]:
    """Take two steps of one way; return what they held at most, in bytes."""
    model, loss, batch = clipping_models.make("tiny", options.device)
    step_of(options.kind, model, loss, batch)()  # what is loaded and set up once
    del model, loss, batch
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    model, loss, batch = clipping_models.make(options.model, options.device)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    step = step_of(options.kind, model, loss, batch)
    step()
    step()
    if options.device == "cuda":
        return {"peak": torch.cuda.max_memory_allocated()}
    return {"peak": _resident("VmHWM") - before}


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


def noise(options: argparse.Namespace) -> dict[str, Any]:
    """Nanoseconds a value: ours, torch's generator, and Opacus's way."""
    count = 1 << (20 if options.quick else 24)
    stream, values = Stream.fresh(), torch.zeros(count)
    generator = torch.Generator()
    ways: dict[str, Step] = {
        "ours": lambda: stream.add_normal(values, 1.0),
        "torch": lambda: torch.randn(count, generator=generator),
        # Opacus 1.6, optimizers/optimizer.py, _generate_noise: a zero, a normal of its size, a sum.
        "opacus": lambda: values + torch.normal(0.0, 1.0, (count,), generator=generator),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.times + 1):
        for name, work in ways.items():
            began = time.process_time()
            work()
            if turn:
                taken[name].append(time.process_time() - began)
    return {name: 1e9 * statistics.median(found) / count for name, found in taken.items()}


WORK = {"time": time_all, "peak": peak_of, "noise": noise}


def apart(work: str, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Run a part of the work in a process of its own."""
    told = {**vars(options), **more}
    command = [sys.executable, __file__, "--work", work, "--told", json.dumps(told)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(told["threads"])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{work} of {told.get('model')} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(options: argparse.Namespace, model: str, threads: int) -> list[Row]:
    """Return the rows of one model."""
    found = apart("time", options, model=model, threads=threads)
    seconds, plain = found["seconds"], found["seconds"][PLAIN]
    peaks: dict[str, float] = {}
    if threads == 1 and not options.no_memory:
        kinds = (PLAIN, OURS) if options.quick else seconds
        for kind in kinds:
            if kind in seconds:
                told = apart("peak", options, model=model, threads=threads, kind=kind)
                peaks[kind] = told["peak"]
    rows: list[Row] = []
    for kind in (OURS,) if options.alone else (OURS, *PEERS):
        name = f"{model}, {threads} thread{'s' if threads > 1 else ''}: {kind}"
        if kind not in seconds:
            rows.append(row(name, float("inf"), "s", PLAIN, plain, why=found["failed"][kind]))
            rows[-1]["value"] = None
            rows[-1]["ratio"] = None
            continue
        more: dict[str, Any] = {"relative_error": found["errors"][kind]}
        if kind in peaks:
            more |= {"peak_bytes": peaks[kind], "peak_ratio": peaks[kind] / peaks[PLAIN]}
        if kind == OURS:
            more["goal"] = GOALS.get(model)
        rows.append(row(name, seconds[kind], "s", PLAIN, plain, **more))
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", action="append", help="one of the table; may be repeated")
    made.add_argument("--threads", type=int, action="append", help="default 1 and 2")
    made.add_argument("--times", type=int, default=0, help="steps of each way")
    made.add_argument("--device", default="cpu")
    made.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    made.add_argument("--alone", action="store_true", help="leave out the peers")
    made.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    made.add_argument("--told", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.work:
        warnings.simplefilter("ignore")
        told = argparse.Namespace(**json.loads(options.told))
        torch.set_num_threads(told.threads)
        print(json.dumps(WORK[options.work](told)))
        return
    models = options.model or (["tiny"] if options.quick else list(GOALS))
    if options.device == "cuda" and not options.model:
        models = ["bert-base", "llama-1b-lora"]
    threads = options.threads or ([1] if options.quick else [1, 2])
    rows: list[Row] = []
    for model in models:
        slow = model in ("gpt2", "minilm")
        options.times = options.times or (3 if options.quick else 0)
        times = options.times or (5 if slow else 15 if model != "tiny" else 60)
        for count in threads:
            tell(f"{model}, {count} threads, {times} times")
            given = argparse.Namespace(**{**vars(options), "times": times})
            found = rows_of(given, model, count)
            for item in found:  # half an hour is lost otherwise where it is stopped
                tell(_line(item))
            rows += found
    if not options.model:
        given = argparse.Namespace(**{**vars(options), "times": 3 if options.quick else 9})
        values = apart("noise", given, threads=1)
        name = "noise a value"
        rows += [
            row(
                name, values["ours"], "ns", "Opacus's way", values["opacus"], goal=MOST_NANOSECONDS
            ),
            row(name, values["ours"], "ns", "torch.randn", values["torch"]),
        ]
    finish(rows, options.json, _line)


def _line(item: Row) -> str:
    if item["value"] is None:
        return f"{item['name']:36} cannot: {item['why']}"
    text = f"{item['name']:36} {item['value']:8.3f} {item['unit']}"
    text += f"  ÷ {item['peer']}: {item['ratio']:.3f}"
    if "peak_ratio" in item:
        text += f"  memory {item['peak_ratio']:.2f} ×"
    if "relative_error" in item:
        text += f"  error {item['relative_error']:.1e}"
    return text + (f"  goal {item['goal']}" if item.get("goal") else "")


if __name__ == "__main__":
    main()
