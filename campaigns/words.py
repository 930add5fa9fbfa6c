"""The fields that are somebody's word: nobody who reads a bundle can check them."""

from __future__ import annotations

from dataclasses import dataclass

from trial import Forgery

SIGNER, COORDINATOR = "its signer's", "the coordinator's"
ALL, HOLDER = "that of all who state it", "that of whoever hands the file on"


@dataclass(frozen=True)
class Word:
    """Whose word a field is, and why nobody can check it."""

    whose: str
    why: str


WORDS: dict[str, Word] = {}
GAPS: dict[str, Word] = {}


def find(field: str, rows: dict[str, Word]) -> str | None:
    """Return the row that a field belongs to: its own, or that of all below an object."""
    if field in rows:
        return field
    return next(
        (name for name in rows if name.endswith(".**") and f"{field}.".startswith(name[:-2])), None
    )


def known(forgery: Forgery, rows: dict[str, Word]) -> bool:
    """Return whether an accepted forgery is listed, and made by those whose word it is."""
    name = find(forgery.field, rows)
    if name is None:
        return False
    whose = rows[name].whose
    if whose == ALL:
        return forgery.coalition == "everybody"
    if whose == COORDINATOR:
        return "coordinator" in forgery.coalition or forgery.coalition == "everybody"
    return whose == HOLDER or forgery.owner in forgery.members


def table() -> str:
    """Return the table of the format page."""
    head = "| field | whose word | why nobody can check it |\n|---|---|---|\n"
    return head + "\n".join(
        f"| `{field}` | {word.whose} | {word.why} |" for field, word in WORDS.items()
    )
