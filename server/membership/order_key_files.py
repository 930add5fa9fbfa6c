"""The coordinator's order key, and those that it had: one names the next (evidence/order_keys.py).

::

    coordinator/
      orders.pem               signs the orders of new runs
      orders-until-FP16.pem    an earlier one: a run goes on under the key that it began with
      orders-next.pem          made, and not in force yet
      order-keys.json          who follows whom, each signed by the key before
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, KeyFault, reason_of
from privet.common.files.private_files import FILE_MODE, read_private
from privet.privacy.evidence.keys import FileSigner, load_or_make
from privet.privacy.evidence.order_keys import MAX_HANDOVERS, KeyHandover
from privet.privacy.evidence.signed_note import SIGN, Key, fingerprint
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store

KEY, _NEXT, _LINE = "orders.pem", "orders-next.pem", "order-keys.json"


def handovers(folder: Path) -> list[dict[str, Any]]:
    """Return the handovers that sites are shown, the oldest first.

    One that a rotation wrote and did not finish is not among them.

    Args:
        folder: the coordinator's keys.

    Raises:
        InputError: if they cannot be read.
    """
    found = _line(folder)
    return found[:-1] if found and (folder / _NEXT).exists() else found


def rotate_order_key(folder: Path, coordinator: str, passphrase: str | None) -> tuple[str, str]:
    """Replace the order key; return the fingerprints of the old one and of the new.

    Whatever step the process ends after, the next call goes on with the key that was made.

    Args:
        folder: the coordinator's keys.
        coordinator: its name.
        passphrase: of the key files.

    Raises:
        KeyFault: if a key does not open.
        InputError: if the handovers cannot be read, or there are as many as sites follow.
    """
    path, coming = folder / KEY, folder / _NEXT
    line = _line(folder)
    if len(line) >= MAX_HANDOVERS and not coming.exists():
        raise InputError(
            f"the order key was replaced {len(line)} times, and sites follow no further one. Begin "
            "a federation anew; sites come in with the ledgers that they have"
        )
    old = FileSigner.load(path, passphrase)
    new = load_or_make(coming, passphrase)
    handover = KeyHandover.make(coordinator, old, new)
    if handover.to_json() not in line:
        # An earlier call may have named another key, whose file was lost: nobody was shown it.
        line = [one for one in line if one["old"] != str(handover.old)]
        write_json(folder / _LINE, [*line, handover.to_json()])
    kept = folder / _until(fingerprint(old.public))
    write_atomic(kept, read_private(path), mode=FILE_MODE)
    coming.replace(path)
    return handover.old.fingerprint, handover.new.fingerprint


def order_signer(folder: Path, journal: Path, passphrase: str | None) -> FileSigner:
    """Return the key that signs the orders of a run: the one that its journal names.

    Args:
        folder: the coordinator's keys.
        journal: of the run, if it has one.
        passphrase: of the key files.

    Raises:
        KeyFault: if that key is not here any more.
    """
    signer = load_or_make(folder / KEY, passphrase)
    named = _named(journal)
    if named is None or named.public == signer.public:
        return signer
    path = folder / _until(named.fingerprint)
    if not path.exists():
        raise KeyFault(
            f"{path}: the run was begun under order key {named.fingerprint}, which is not here any "
            "more; put it back, or cancel the run"
        )
    return FileSigner.load(path, passphrase)


def _named(journal: Path) -> Key | None:
    """Return the order key in a journal's first entry."""
    if not journal.exists():
        return None
    with closing(Store(journal)) as store:
        if not store.count():
            return None
        return Key.parse(Entry.read(store.leaf(0)).predicate["orders"], type_=SIGN)


def _line(folder: Path) -> list[dict[str, Any]]:
    path = folder / _LINE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [KeyHandover.from_json(one).to_json() for one in found]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error


def _until(key: str) -> str:
    return f"orders-until-{key.partition(':')[2][:16]}.pem"
