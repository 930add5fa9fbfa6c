"""Names of people, so that one person does not pass for two by another spelling."""

from __future__ import annotations

import unicodedata

from privet.common.errors import InputError


def tidy(name: str) -> str:
    """Return a person's name as it is noted: NFKC, with single spaces, none around it.

    Raises:
        InputError: if nothing is left, or something in it cannot be seen.
    """
    text = " ".join(unicodedata.normalize("NFKC", name).split())
    if not text or not text.isprintable():
        raise InputError(f"{name!r} is not a name: it needs letters, and nothing invisible")
    return text


def same_person(name: str) -> str:
    """Return what all spellings of a name have in common: case and spaces do not count."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = (c for c in " ".join(folded.split()) if c.isprintable() and not _is_ignored(c))
    return "".join(seen)


def _is_ignored(character: str) -> bool:
    """Whether it shows nothing, although it counts as printable (Default_Ignorable_Code_Point)."""
    return character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" or (
        "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    )
