"""Layers that Opacus has in place of torch's fused ones train like any other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from families_kit import plan_for

from privet.client.training.model_runtime import ModelRuntime

NET = """
from opacus import layers
from torch import nn

class Net(nn.Module):
    def __init__(self, layer, classes):
        super().__init__()
        self.table = nn.Embedding(30522, 16)
        kind = getattr(layers, layer, None) or getattr(nn, layer)
        second = 2 if "Attention" in layer else 16
        self.inner = kind(16, second, batch_first=True)
        self.head = nn.Linear(16, classes)

    def forward(self, tokens):
        found = self.table(tokens)
        known = (found, found, found) if hasattr(self.inner, "num_heads") else (found,)
        return self.head(self.inner(*known)[0].mean(1))

def make(task, layer):
    return Net(layer, len(task.classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net_of_layers.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net_of_layers", raising=False)
    importlib.invalidate_caches()
    return tmp_path


def bench_of(layer: str, folder: Path) -> ModelRuntime:
    model = {"kind": "net_of_layers:make", "options": {"layer": layer}}
    return ModelRuntime(plan_for("text", model, folder))


@pytest.mark.parametrize("layer", ["DPGRU", "DPLSTM", "DPRNN", "DPMultiheadAttention"])
def test_a_layer_of_opacus_is_kept_by_book_keeping(folder: Path, layer: str) -> None:
    made = bench_of(layer, folder)
    assert made.self_tests == ("H6", "H7", "H16", "H17")
    assert made.engine.mode == "bookkeeping"


@pytest.mark.parametrize("layer", ["GRU", "LSTM", "RNN", "MultiheadAttention"])
def test_a_fused_layer_of_torch_is_kept_by_book_keeping(folder: Path, layer: str) -> None:
    made = bench_of(layer, folder)
    assert made.self_tests == ("H6", "H7", "H16", "H17")
    assert made.engine.mode == "bookkeeping"
