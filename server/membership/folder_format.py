"""The format of a federation's folder, noted in its ``federation.json``.

Format 1 has only a name. From format 2 on, ``software`` names the version of Privet that wrote the
folder last, so that an earlier version can tell its operator which version to use. The format
covers all files of the folder.
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
    """The formats that this version of Privet reads and writes.

    Attributes:
        newest: number of the format that is written.
        steps: by a format's number, the step that converts it to the next one.
    """

    newest: int
    steps: dict[int, Step[dict[str, Any]]]

    @property
    def marks(self) -> dict[str, str]:
        """The keys that mark the format, written into the file beside its facts."""
        return {"format": f"privet/{_KIND}/v{self.newest}", "software": f"privet {__version__}"}

    def take_marks(self, value: dict[str, Any], path: Path) -> int:
        """Convert a file's value to the newest format, and remove the marks from it.

        Args:
            value: the file's content; it is changed in place.
            path: of the file, for error messages.

        Returns:
            The number of the format that the file had.

        Raises:
            InputError: if the file is no federation's, or a later version wrote it.
            KeyError: if it names no format.
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
        """Rewrite a file of an earlier format or version as this version does; leave a current one.

        Raises:
            InputError: as :meth:`take_marks`.
        """
        before = json.loads(path.read_text(encoding="utf-8"))
        value = dict(before)
        self.take_marks(value, path)
        if (after := {**self.marks, **value}) != before:
            write_json(path, after)


FORMATS = FolderFormats(2, {1: _to_2})
