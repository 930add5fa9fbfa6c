"""What a draft knows of a table's columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from privet.common.text_format import PLAIN, TextFormat


@dataclass
class Columns:
    """The columns of a table, as a plan declares them.

    Attributes:
        numeric: range of each numeric column, as the plan writes it.
        categorical: values of each categorical column.
        notes: why a column is declared as it is, in one line.
        unknown: columns that nobody has said anything of, for the plan's author to declare.
        left_out: columns that are not read, and why.
        classes: of the label; empty where they are to be filled in.
        label, text, site, person: columns of these roles, or None.
        sizes: nominal size of each site; empty where sites are to be filled in.
        form: how the files write their cells.
        site_values: names of sites, where a data dictionary lists them.
        unused: columns that a data dictionary names and the files lack.
        unread: what is to be said of records that could not be read; ''.
    """

    numeric: dict[str, dict[str, Any]] = field(default_factory=dict)
    categorical: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    label: str | None = None
    text: str | None = None
    site: str | None = None
    person: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    form: TextFormat = PLAIN
    site_values: tuple[str, ...] = ()
    unused: list[str] = field(default_factory=list)
    unread: str = ""

    @property
    def roles(self) -> set[str]:
        """The columns that are no features."""
        return {name for name in (self.label, self.text, self.site, self.person) if name}
