"""A real site's ledger, and the copies of it that a coordinator and another site keep."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import ledger_kit
from ledger_kit import PLAN, SITE, key

from privet.client.recovery.copying import LedgerCopier
from privet.common.order import ORDER_TYPE, Order
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.copies.ledger_copy import CopyPiece
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.signed_note import Checkpoint, Key, key_name
from privet.privacy.evidence.statement import pae
from privet.privacy.evidence.witness import Witness

CHIEF = FileSigner.generate()
"""Signs the orders."""


def orders_key(signer: FileSigner = CHIEF) -> Key:
    return Key(key_name("orders", "hub", signer.public), signer.public)


def policy(*coordinators: FileSigner) -> dict[str, Any]:
    """A policy under which these may ask."""
    allowed = [orders_key(signer).fingerprint for signer in coordinators or (CHIEF,)]
    return {"site": SITE, "allow": {"coordinators": allowed, "plans": []}}


def signed(signer: FileSigner = CHIEF, **changes: Any) -> Order:
    """An order with a coordinator's signature."""
    found = ledger_kit.order(
        **{"keyid": orders_key(signer).fingerprint.partition(":")[2], **changes}
    )
    signature = base64.b64encode(signer.sign(pae(ORDER_TYPE, found.encode()))).decode()
    return replace(found, signature=signature)


def opened(folder: Path, **more: Any) -> Ledger:
    """A ledger that is ready to reserve, under :func:`policy`."""
    ledger = ledger_kit.opened(folder, **more)
    ledger.set_policy(policy())
    return ledger


def witness_of(folder: Path) -> Witness:
    return Witness(folder / "witness.json", key(folder, "witness"), SITE)


def fetch(ledger: Ledger, folder: Path, store: CopyStore, *, allowed: bool = True) -> int:
    """Bring a copy up to the ledger, as rounds do; return how many pieces that took."""
    witness = witness_of(folder)
    copier = LedgerCopier(ledger, witness, lambda: allowed)
    count = 0
    while answer := copier.answer(store.held(ledger.log.origin), ledger.log.head().text):
        piece = CopyPiece.from_json(answer["piece"])
        assert store.add(piece, witness.key.public)
        count += 1
    return count


def file_of(
    store: CopyStore, ledger: Ledger, path: Path, *heads: Checkpoint, signer: FileSigner = CHIEF,
    orders: tuple[Order, ...] = (), **changes: Any,
) -> Path:  # fmt: skip
    """Write what a coordinator would hand back; the head is the ledger's own unless given."""
    witness = key(ledger.log.store.path.parent, "witness").public
    found = CopyFile(
        ledger.log.origin, "hub", Key("witness", witness, 4), orders_key(signer),
        tuple(store.all(ledger.log.origin)), heads or (ledger.log.head(),),
        (PLAN,) if orders else (), orders,
    )  # fmt: skip
    replace(found, **changes).write(path)
    return path
