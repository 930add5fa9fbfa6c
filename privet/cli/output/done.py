"""How a command says what it did: as text, or as one JSON object."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def done(value: dict[str, Any], text: str, as_json: bool) -> None:
    """Print what was done, as text or as JSON."""
    if as_json:
        text = json.dumps(value)
    typer.echo(text)
