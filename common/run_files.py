"""Where files lie in the folder of a run, for those who write them and those who read them."""

from __future__ import annotations

from pathlib import Path


def figures_path(folder: Path, number: int) -> Path:
    """Return where a coordinator keeps what the sites of a run measured in a round."""
    return folder / "figures" / f"round-{number}.json"
