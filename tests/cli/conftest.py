from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

# Once they are loaded, the figures of runs are made and not drawn: tests/conftest.py.
import privet.simulations.plots  # noqa: F401


@pytest.fixture
def desk(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    write_toml: Any,
    plan_value: Any,
) -> Desk:
    """An operator's desk in an empty folder, with no passphrase set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    monkeypatch.delenv("PRIVET_PASSPHRASE_FILE", raising=False)
    return Desk(capsys, monkeypatch, tmp_path, write_toml, plan_value)
