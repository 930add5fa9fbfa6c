"""Store the model after each round, durably, before the next order is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privet.common.canonical import write_atomic
from privet.common.errors import RunError
from privet.common.flat import BLOCK, Arrays, FrozenArrays
from privet.common.mapped import Mapped


@dataclass(frozen=True)
class Snapshot:
    """The model after a round, with the facts that continue the run from there.

    Attributes:
        round: number of the last round that is done.
        arrays: the model after it.
        record: the journal's record of that round.
        earlier: models of the rounds before it that the plan averages, oldest first.
        state: the strategy's state.
    """

    round: int
    arrays: Arrays
    record: dict[str, Any]
    earlier: tuple[Arrays, ...] = ()
    state: Arrays = field(default_factory=dict)


def save_model(path: Path, arrays: Arrays, facts: dict[str, str]) -> None:
    """Write a model as safetensors, atomically.

    It is written piece by piece: the library's own writer holds all of it twice.

    Args:
        path: of the file; an existing one is replaced.
        arrays: parameters by name.
        facts: stored as text in the file's header.
    """
    _save(path, arrays, facts, [arrays])


def _save(path: Path, arrays: Arrays, facts: dict[str, str], models: Iterable[Arrays]) -> None:
    metadata = {**facts, "names": json.dumps(list(arrays))}
    sealed = [model for model in models if isinstance(model, FrozenArrays)]
    write_atomic(path, _safetensors(arrays, metadata, sealed))


def _safetensors(
    arrays: Arrays, metadata: dict[str, str], models: list[FrozenArrays]
) -> Iterator[bytes | memoryview]:
    """Yield the file's parts (format: the safetensors README, "Format").

    ``models`` hold the arrays; arrays in files are dropped from memory once they are written.
    """
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
        if not little.size:
            continue
        data = little.reshape(-1).view(np.uint8).data
        for start in range(0, data.nbytes, _PIECE):
            yield data[start : start + _PIECE]
            for model in models:
                model.forget()


_KINDS = {"<f2": "F16", "<f4": "F32", "<f8": "F64"}
_PIECE = 4 * BLOCK
"""Bytes that are written at once."""


def map_model(path: Path) -> tuple[Mapped, dict[str, str]]:
    """Read a model and the facts of its header; its arrays are left in the file.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        return Mapped.of_safetensors(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise RunError(f"{path}: the model cannot be read: {error}") from error


_STATE = "strategy:"
"""Prefix of the names of a strategy's state."""


def _named(snapshot: Snapshot, mark: str) -> Arrays:
    """Return all arrays of a snapshot; those that are not the model have names that start with
    ``mark``.
    """
    arrays = dict(snapshot.arrays)
    for place, model in enumerate(snapshot.earlier):
        arrays |= {f"{mark}{place}/{name}": array for name, array in model.items()}
    return arrays | {f"{mark}{_STATE}{name}": array for name, array in snapshot.state.items()}


class Snapshots:
    """A folder that holds the latest snapshot of one run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "snapshot.safetensors"

    @property
    def is_there(self) -> bool:
        """Whether a round is done."""
        return self._path.exists()

    def store(self, snapshot: Snapshot) -> None:
        """Replace the latest snapshot, durably."""
        earlier = snapshot.earlier
        facts = {
            "round": str(snapshot.round),
            "record": json.dumps(snapshot.record),
            "earlier": str(len(earlier)),
            "state": json.dumps(list(snapshot.state)),
        }
        count = sum(map(len, (snapshot.arrays, *earlier, snapshot.state)))
        mark, arrays = "", _named(snapshot, "")
        while len(arrays) < count:  # a parameter is called as one of the others would be
            mark += "~"
            arrays = _named(snapshot, mark)
        _save(self._path, arrays, {**facts, "mark": mark}, (snapshot.arrays, *earlier))

    def latest(self) -> Snapshot | None:
        """Return the latest snapshot, or None.

        Raises:
            RunError: if it cannot be read.
        """
        if not self._path.exists():
            return None
        stored, facts = map_model(self._path)
        try:
            mark = facts.get("mark", "")
            kept = {name: mark + _STATE + name for name in json.loads(facts.get("state", "[]"))}
            names = [name for name in stored if name not in set(kept.values())]
            count = int(facts.get("earlier", "0"))
            own = names[: len(names) // (count + 1)]
            models = [stored.part({name: name for name in own})]
            models += [
                stored.part({name: f"{mark}{k}/{name}" for name in own}) for k in range(count)
            ]
            record = json.loads(facts["record"])
            # In memory, as the strategy has it; the model stays in its file.
            state = {name: np.array(array) for name, array in stored.part(kept).items()}
            return Snapshot(int(facts["round"]), models[0], record, tuple(models[1:]), state)
        except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise RunError(f"{self._path}: not a snapshot of a run: {error!r}") from error
