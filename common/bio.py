"""Tags of words: the BIO scheme for spans, or plain tags.

In BIO, ``B-X`` begins a span of type X, ``I-X`` continues it, and ``O`` is outside of all spans
(Ramshaw and Marcus 1995). Classes of which none begins with ``B-`` or ``I-`` are plain tags, such
as parts of speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OUTSIDE = "O"


@dataclass(frozen=True)
class TagScheme:
    """What each class means in BIO.

    Attributes:
        types: the number of its span's type, from 1; 0 for ``O``.
        begins: whether it begins a span.
    """

    types: tuple[int, ...]
    begins: tuple[bool, ...]


def tag_scheme(classes: Sequence[str]) -> TagScheme | None:
    """Return the BIO scheme of declared classes; None if they are plain tags.

    Args:
        classes: as declared, in order.

    Raises:
        ValueError: if some classes are of BIO, and together they are no such scheme.
    """
    names = [name.strip() for name in classes]
    if not any(name.startswith(("B-", "I-")) for name in names):
        return None
    if OUTSIDE not in names:
        raise ValueError("'classes' has tags such as 'B-X' of BIO: it needs 'O', for no span")
    known: dict[str, int] = {}
    types, begins = [], []
    for name in names:
        mark, _, kind = name.partition("-")
        if name != OUTSIDE and (mark not in ("B", "I") or not kind):
            raise ValueError(
                f"'classes' mixes '{name}' with tags of BIO, which are 'O', 'B-X' and 'I-X'; "
                "convert other schemes, such as BIOES, to BIO"
            )
        if mark == "I" and f"B-{kind}" not in names:
            raise ValueError(f"'classes' has '{name}' without 'B-{kind}', which begins its span")
        types.append(known.setdefault(kind, len(known) + 1) if kind else 0)
        begins.append(mark == "B")
    return TagScheme(tuple(types), tuple(begins))
