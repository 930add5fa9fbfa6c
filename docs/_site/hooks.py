"""What the site's builder adds: every decision record stands in the navigation."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """List docs/adr in the navigation, in order of its numbers.

    Args:
        config: of mkdocs; its ``nav`` has an empty section Decisions.

    Returns:
        The same configuration.
    """
    records = sorted((Path(config["docs_dir"]) / "adr").glob("*.md"))
    for section in config["nav"]:
        if "Decisions" in section:
            section["Decisions"] = [f"adr/{path.name}" for path in records]
    return config
