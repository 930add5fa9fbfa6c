"""Snapshots: the model after each round, durable before the next order leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from privet.common.canonical import write_atomic
from privet.common.errors import RunError
from privet.common.flat import Arrays


@dataclass(frozen=True)
class Snapshot:
    """The model after ``round`` rounds, and what the journal says of the last one.

    ``earlier`` are the models of the rounds before it that the plan averages, oldest first.
    """

    round: int
    arrays: Arrays
    record: dict[str, Any]
    earlier: tuple[Arrays, ...] = ()


def save_model(path: Path, arrays: Arrays, facts: dict[str, str]) -> None:
    """Write a model as safetensors, atomically, with ``facts`` in its header.

    It is written array by array: the library's own writer holds all of it twice.
    """
    write_atomic(path, _safetensors(arrays, {**facts, "names": json.dumps(list(arrays))}))


def _safetensors(arrays: Arrays, metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the file's parts (format: the safetensors README, "Format")."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in arrays.items():
        kind = _KINDS[array.dtype.newbyteorder("<").str]
        place = [at, at + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        at = place[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if little.size:
            yield little.reshape(-1).view(np.uint8).data


_KINDS = {"<f2": "F16", "<f4": "F32", "<f8": "F64"}


def load_model(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read a model and the facts of its header.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        facts: dict[str, str] = json.loads(raw[8 : 8 + size])["__metadata__"]
        stored = load(raw)
        return {name: stored[name] for name in json.loads(facts["names"])}, facts
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise RunError(f"{path}: the model cannot be read: {error}") from error


class Snapshots:
    """A folder that holds the latest snapshot of one run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "snapshot.safetensors"

    @property
    def is_there(self) -> bool:
        """Whether a round was done."""
        return self._path.exists()

    def store(self, snapshot: Snapshot) -> None:
        """Replace the latest snapshot, durably."""
        earlier = snapshot.earlier
        facts = {
            "round": str(snapshot.round),
            "record": json.dumps(snapshot.record),
            "earlier": str(len(earlier)),
        }
        arrays = dict(snapshot.arrays)
        for place, model in enumerate(earlier):
            arrays |= {f"{place}/{name}": array for name, array in model.items()}
        save_model(self._path, arrays, facts)

    def latest(self) -> Snapshot | None:
        """Return the latest snapshot, or None.

        Raises:
            RunError: if it cannot be read.
        """
        if not self._path.exists():
            return None
        stored, facts = load_model(self._path)
        try:
            names, count = list(stored), int(facts.get("earlier", "0"))
            size = len(names) // (count + 1)
            models: list[Arrays] = [{name: stored[name] for name in names[:size]}]
            models += [{name: stored[f"{k}/{name}"] for name in names[:size]} for k in range(count)]
            record = json.loads(facts["record"])
            return Snapshot(int(facts["round"]), models[0], record, tuple(models[1:]))
        except (ValueError, KeyError, ZeroDivisionError, RecursionError) as error:
            raise RunError(f"{self._path}: not a snapshot of a run: {error!r}") from error
