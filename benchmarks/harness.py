"""What all benchmarks share: the machine, a row, the command line, the printing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def row(
    name: str, value: float, unit: str, peer: str | None, peer_value: float | None, **more: Any
) -> Row:
    """Return one row of a benchmark's JSON."""
    ratio = value / peer_value if peer_value else None
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        **more,
    }


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options all benchmarks have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", action="store_true", help="one JSON object on standard output")
    made.add_argument("--quick", action="store_true", help="under a minute, for CI")
    return made


def finish(rows: list[Row], as_json: bool, line: Callable[[Row], str]) -> None:
    """Print the rows."""
    if as_json:
        print(json.dumps({"machine": machine(), "rows": rows}))
        return
    for item in rows:
        print(line(item))


def tell(text: str) -> None:
    """Say on standard error what goes on."""
    print(text, file=sys.stderr, flush=True)
