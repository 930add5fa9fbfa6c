"""The format of a federation's folder, which stands in its ``federation.json``.

Format 1 has a name alone. From format 2 on ``software`` says which version of Privet wrote it last,
so that an earlier one can tell its operator which to use. All files of the folder are of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet import __version__
from privet.common.canonical import write_json
from privet.common.errors import InputError
from privet.common.files.format_version import Step, bring_up, newer_fault, number_of

_KIND = "federation"


def _to_2(value: dict[str, Any]) -> None:
    value["software"] = ""


@dataclass(frozen=True)
class FolderFormats:
    """What this version of Privet reads and writes.

    Attributes:
        newest: the number that is written.
        steps: by number, what leads to the next one.
    """

    newest: int
    steps: dict[int, Step[dict[str, Any]]]

    @property
    def marks(self) -> dict[str, str]:
        """What is written into the file beside its facts."""
        return {"format": f"privet/{_KIND}/v{self.newest}", "software": f"privet {__version__}"}

    def take_marks(self, value: dict[str, Any], path: Path) -> int:
        """Take the marks out of what stands in a file, brought up; return the number it had.

        Args:
            value: what stands in it; it is changed.
            path: names the file.

        Raises:
            InputError: if it is no federation's, or a later version's.
            KeyError: if it has no format.
        """
        text = value.pop("format")
        found = number_of(text, _KIND)
        if found is None or found < 1:
            raise InputError(f"{path}: not a federation of format privet/{_KIND}/v{self.newest}")
        software = str(value.get("software", ""))
        if fault := newer_fault(path, found, self.newest, software=software):
            raise InputError(fault)
        bring_up(value, found, self.steps)
        value.pop("software", None)
        return found

    def bring_up(self, path: Path) -> None:
        """Write a file of an earlier format, or software, as this version does; else leave it.

        Raises:
            InputError: as :meth:`take_marks`.
        """
        before = json.loads(path.read_text(encoding="utf-8"))
        value = dict(before)
        self.take_marks(value, path)
        if (after := {**self.marks, **value}) != before:
            write_json(path, after)


FORMATS = FolderFormats(2, {1: _to_2})
