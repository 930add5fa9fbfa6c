"""Names of sites: outer blanks are no part of one, and two names must not differ by case alone."""

from __future__ import annotations

from collections.abc import Iterable

_BLANKS = " \t"
"""What is left out around a name; a line separator there is a fault of its own."""


def trimmed(name: str) -> str:
    """Return a name without the blanks around it."""
    return name.strip(_BLANKS)


def fold(name: str) -> str:
    """Return what two names of one site have in common."""
    return name.strip(_BLANKS).casefold()


def spelled(name: str, known: Iterable[str]) -> str:
    """Return a name as it is spelled among those that are known; trimmed where it is not."""
    found = {fold(one): one for one in known}
    return found.get(fold(name), trimmed(name))
