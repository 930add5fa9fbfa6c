from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ledger_kit import opened

from privet.privacy.evidence.ledger import Ledger


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a site keeps its ledger."""
    return tmp_path / "site"


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    """A ledger that is ready to reserve."""
    return opened(folder)
