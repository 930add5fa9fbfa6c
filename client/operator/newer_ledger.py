"""A note that a newer ledger of this site exists elsewhere: the client writes it, commands obey it.

A coordinator sends the newest head that it saw, signed by this ledger's own key. If the ledger does
not extend it, the file was restored from an older copy, and any further entry splits the history
permanently. So the head is stored beside the ledger, and a command that writes an entry compares it
first. The note has no effect once the newer ledger is back.
"""

from __future__ import annotations

from contextlib import suppress

from privet.common.canonical import write_atomic
from privet.common.errors import NoteError, RefusedError, RolledBackError
from privet.privacy.evidence.ledger import Ledger

FILE = "newer-head.txt"


def note_newer(ledger: Ledger, head: str) -> None:
    """Store a head that the ledger does not extend; if that fails, the next one is stored.

    Args:
        ledger: of the site, as it is here.
        head: a checkpoint of a newer one, signed by its key.
    """
    with suppress(OSError):
        write_atomic(ledger.log.store.path.parent / FILE, head.encode())


def require_newest(ledger: Ledger) -> None:
    """Check that no newer ledger was seen than this one.

    Args:
        ledger: into which an entry is to be written.

    Raises:
        RefusedError: if one was.
    """
    path = ledger.log.store.path.parent / FILE
    try:
        head = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    try:
        ledger.log.require_extends(head, keep=False)
    except RolledBackError as error:
        raise RefusedError(
            f"{error}. A coordinator holds the newer ledger's head ({path}), so nothing was "
            "written: an entry here would split the history. Get the newer ledger back by "
            "`privet client recover` or from a newer backup, then decide again"
        ) from None
    except NoteError:
        return  # no head of this ledger, or damaged
    with suppress(OSError):
        path.unlink()
