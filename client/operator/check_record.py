"""The last check of a data set, stored in the site's folder: ``checks/DATASET.json``.

::

    privet client check ── CheckRecord.of(...).write ──► checks/DATASET.json
    privet client approve, start ── outcome ◄───────────┘

The file says when a data set was checked, on which file, and with what outcome. It is for the
operator's eyes, never leaves the site, and holds no number of records. A policy with ``min_units``
lets the client start only after a check that passed on the present file: the operator decides that
a site is too small before any order comes, so that no answer depends on it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from privet.common.canonical import digest_json, write_json
from privet.common.errors import InputError, RefusedError
from privet.common.files.private_files import FILE_MODE, private_folder
from privet.privacy.policy import Policy

FOLDER = "checks"
"""Where the records are, in a site's folder."""

Stamp = tuple[int, int, int, int, int]
"""``st_dev``, ``st_ino``, ``st_size``, ``st_mtime_ns`` and ``st_ctime_ns`` of a file."""


@dataclass(frozen=True)
class CheckRecord:
    """The outcome of a check.

    Attributes:
        when: its time, ISO 8601 in UTC.
        file: the path that was read, or the database in words.
        stamp: of the file before it was read; None for a database.
        ok: whether the records can be used.
        units_ok: whether there are at least ``min_units`` units; True if the policy sets none.
        policy: digest of the policy's settings of the data set (:func:`settings_digest`).
    """

    when: str
    file: str
    stamp: Stamp | None
    ok: bool
    units_ok: bool
    policy: str

    @classmethod
    def of(
        cls, policy: Policy, data_set: str, stamp: Stamp | None, *, ok: bool, units_ok: bool
    ) -> Self:
        """Return the record of a check that ends now.

        Args:
            policy: the site's own.
            data_set: that was checked.
            stamp: of its file (:func:`stamp_of`), taken before the file was read.
            ok: whether the records can be used.
            units_ok: whether there are enough units.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file, digest = _place(policy, data_set), settings_digest(policy, data_set)
        return cls(now, file, stamp, ok, units_ok, digest)

    @classmethod
    def read(cls, home: Path, data_set: str) -> Self | None:
        """Return the record of the last check of a data set, or None.

        A damaged file counts as none: the check must be run again.

        Args:
            home: the site's folder.
            data_set: name in the policy.
        """
        try:
            value = json.loads(_path(home, data_set).read_text(encoding="utf-8"))
            stamp = None if value["stamp"] is None else _stamp(value["stamp"])
            texts = [value[name] for name in ("when", "file", "policy")]
            flags = [value[name] for name in ("ok", "units_ok")]
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None
        if not all(isinstance(text, str) for text in texts):
            return None
        if not all(isinstance(flag, bool) for flag in flags):
            return None
        return cls(texts[0], texts[1], stamp, flags[0], flags[1], texts[2])

    def write(self, home: Path, data_set: str) -> None:
        """Store this as the last check of a data set, readable by the site's user only.

        Args:
            home: the site's folder.
            data_set: name in the policy.
        """
        path = _path(home, data_set)
        private_folder(path.parent)
        write_json(path, asdict(self), mode=FILE_MODE)

    def fault(self, policy: Policy, data_set: str) -> str | None:
        """Return why the check no longer holds for the data set, or None if it does.

        Args:
            policy: as it is now.
            data_set: name in it.
        """
        if self.policy != settings_digest(policy, data_set):
            return "what the policy says of the data set has changed since"
        if self.file != _place(policy, data_set) or self.stamp != _now(policy, data_set):
            return "the file has changed since"
        if not self.ok:
            return "it found records that cannot be used"
        return None if self.units_ok else "it found fewer units than min_units"


def stamp_of(path: Path) -> Stamp | None:
    """Return a stamp that changes when the file does; None if there is no file."""
    try:
        known = path.stat()
    except OSError:
        return None
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


def settings_digest(policy: Policy, data_set: str) -> str:
    """Return one digest over all settings of a data set and its population.

    Unlike :attr:`Policy.digest` it includes unpublished settings, such as ``min_units``.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.
    """
    data = policy.data[data_set]
    population = policy.populations[data.population]
    return digest_json([data.model_dump(mode="json"), population.model_dump(mode="json")])


def outcome(policy: Policy, data_set: str, home: Path) -> str:
    """Return in one line the outcome of a data set's last check, and whether it still holds.

    Args:
        policy: the site's own.
        data_set: name in it.
        home: the site's folder.
    """
    found = CheckRecord.read(home, data_set)
    if found is None:
        return f"data set '{data_set}': `privet client check` was not run"
    text = f"data set '{data_set}': checked at {found.when} on {found.file}"
    fault = found.fault(policy, data_set)
    return f"{text}, and passed" if fault is None else f"{text}, but {fault}"


def require_checked(policy: Policy, home: Path) -> None:
    """Refuse to start if ``min_units`` is set and the last check no longer holds.

    Args:
        policy: the site's own.
        home: the site's folder.

    Raises:
        RefusedError: naming the data set, and what to do.
    """
    for name, data in policy.data.items():
        if data.min_units is None:
            continue
        found = CheckRecord.read(home, name)
        if found is None or found.fault(policy, name) is not None:
            raise RefusedError(
                f"{outcome(policy, name, home)}. The policy sets min_units, so this site starts "
                "only after a check that passed on the file as it is now: run `privet client check`"
            )


def _path(home: Path, data_set: str) -> Path:
    return home / FOLDER / f"{data_set}.json"


def _place(policy: Policy, data_set: str) -> str:
    data = policy.data[data_set]
    return str(data.sql or policy.path_of(data))


def _now(policy: Policy, data_set: str) -> Stamp | None:
    path = policy.path_of(policy.data[data_set])
    return None if path is None else stamp_of(path)


def _stamp(value: Any) -> Stamp:
    """Read a stamp.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(value, list) or len(value) != 5:
        raise InputError("a stamp has five numbers")
    one, two, three, four, five = (int(number) for number in value)
    return one, two, three, four, five
