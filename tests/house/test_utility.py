"""The benchmark of utility, a short round of it: rows with and without privacy, and resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


def measured(root: Path, results: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "benchmarks/utility.py", "--quick", "--threads", "1", "--json"]
    done = subprocess.run(
        [*command, "--results", str(results)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


@pytest.mark.long
def test_rows_are_made_once_and_read_again(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "utility.jsonl"
    rows = measured(root, results)
    assert {row["name"] for row in rows} == {"medpar/linear", "medpar/dense", "digits/vit"}
    private = [row for row in rows if row["epsilon"] is not None]
    assert len(private) == 3 and len(rows) == 6
    assert all(row["delta"] and row["privacy_unit"] and row["trust"] for row in private)
    lines = results.read_text().splitlines()
    made = [json.loads(line) for line in lines]
    assert all(set(one["figures"]) == {"test", "validation"} for one in made)
    # A run that ended is not made again: a figure that was changed in the file is what is told.
    # No share of these records is 0.123456, which 0.125 was by chance.
    made[-1]["figures"]["test"]["accuracy"] = 0.123456
    results.write_text("".join(json.dumps(one) + "\n" for one in made))
    again = measured(root, results)
    assert len(results.read_text().splitlines()) == len(lines)
    assert [row["value"] for row in again].count(0.123456) == 1
    differ = [(a, b) for a, b in zip(rows, again, strict=True) if a["value"] != b["value"]]
    assert len(differ) == 1, differ
