"""What becomes of a trained model: evaluated, explained, exported, served.

::

    run folder ── trained.load ── Trained ─┬─ evaluate   figures, calibration, groups
     plan.json      plan, weights          ├─ explain    which words or cells decided
     model/                                ├─ export     a folder for transformers, ONNX, a card
                                           └─ (client.serve: an HTTP service at a site)
"""

from __future__ import annotations

from pathlib import Path


def figures_path(folder: Path, number: int) -> Path:
    """Return where a coordinator keeps what the sites of a run measured in a round."""
    return folder / "figures" / f"round-{number}.json"
