"""The coordinator's order key and its former ones, each of which signs its successor's handover.

The verifier's side is :mod:`privet.privacy.evidence.order_keys`.

::

    coordinator/
      orders.pem               signs the orders of new runs
      orders-until-FP16.pem    a former key: a run continues under the key with which it began
      orders-next.pem          made, and not in force yet
      order-keys.json          which key follows which, each signed by the key before
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, PrivateKeyError, reason_of
from privet.common.files.private_files import FILE_MODE, read_private
from privet.privacy.evidence.keys import FileSigner, load_or_make
from privet.privacy.evidence.order_keys import MAX_HANDOVERS, KeyHandover
from privet.privacy.evidence.signed_note import SIGN, Key, fingerprint
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store

KEY, _NEXT, _LINE = "orders.pem", "orders-next.pem", "order-keys.json"


def handovers(folder: Path) -> list[dict[str, Any]]:
    """Return the handovers that are sent to sites, the oldest first.

    A handover of a rotation that was interrupted is left out.

    Args:
        folder: folder of the coordinator's keys.

    Raises:
        InputError: if they cannot be read.
    """
    found = _line(folder)
    return found[:-1] if (folder / _NEXT).exists() else found


def rotate_order_key(folder: Path, coordinator: str, passphrase: str | None) -> tuple[str, str]:
    """Replace the order key; return the fingerprints of the old one and of the new.

    The process may be killed at any step: the next call continues with the key that was made.

    Args:
        folder: folder of the coordinator's keys.
        coordinator: its name.
        passphrase: of the key files.

    Raises:
        PrivateKeyError: if a key cannot be decrypted.
        InputError: if the handovers cannot be read, or there are already as many as sites accept.
    """
    path, coming = folder / KEY, folder / _NEXT
    line = _line(folder)
    if len(line) >= MAX_HANDOVERS and not coming.exists():
        raise InputError(
            f"the order key was replaced {len(line)} times, and sites follow no further one. Begin "
            "a new federation; sites enrol with the ledgers that they have"
        )
    old = FileSigner.load(path, passphrase)
    new = load_or_make(coming, passphrase)
    handover = KeyHandover.make(coordinator, old, new)
    if handover.to_json() not in line:
        # An earlier call may have named another key, whose file was lost: it was sent to no site.
        line = [one for one in line if one["old"] != str(handover.old)]
        write_json(folder / _LINE, [*line, handover.to_json()])
    kept = folder / _until(fingerprint(old.public))
    write_atomic(kept, read_private(path), mode=FILE_MODE)
    coming.replace(path)
    return handover.old.fingerprint, handover.new.fingerprint


def order_signer(folder: Path, journal: Path, passphrase: str | None) -> FileSigner:
    """Return the key that signs the orders of a run: the key that its journal names.

    Args:
        folder: folder of the coordinator's keys.
        journal: file of the run's journal; it need not exist yet.
        passphrase: of the key files.

    Raises:
        PrivateKeyError: if that key is no longer here.
    """
    signer = load_or_make(folder / KEY, passphrase)
    named = _named(journal)
    if named is None or named.public == signer.public:
        return signer
    path = folder / _until(named.fingerprint)
    if not path.exists():
        raise PrivateKeyError(
            f"{path}: the run was begun under order key {named.fingerprint}, which is not here any "
            "more; restore it, or cancel the run"
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
