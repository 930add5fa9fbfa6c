"""A ledger's file: how it is opened and begun, and whose key signs its entries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from privet import __version__
from privet.common.canonical import digest
from privet.common.errors import (
    LedgerError,
    NoteError,
    PrivateKeyError,
    SiteClosedError,
    WrongLedgerError,
)
from privet.privacy.evidence.ledger_state import LedgerState
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.signed_note import Key, Signer
from privet.privacy.evidence.statement import LEDGER, Entry
from privet.privacy.evidence.store import Store

FILE = "ledger.db"


class LedgerBase:
    """The ledger of one site, in ``folder``: it opens, begins and changes its key.

    Args:
        folder: holds ``ledger.db``.
        signer: the site's ledger key.
        site: its name.
        witness: the site's own witness key; needed to make a new ledger.
        recovery: a key kept elsewhere that may replace a lost ledger key.
        setting: ``site``, ``simulation``, or ``bundle``: one whose app the coordinator shipped.
        create: make a new ledger where there is none.
        patience: seconds to wait for another process.
        key_now: finds the key in force once another process has replaced ``signer``.
        other_ledgers: first keys of other ledgers of the same people, as a new ledger states;
            None states nothing.

    Raises:
        WrongLedgerError: if there is no ledger, or it is another site's.
        LedgerError: if it is damaged.
        PrivateKeyError: if ``signer`` is not its key.
    """

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        site: str,
        *,
        witness: Key | None = None,
        recovery: Key | None = None,
        setting: str = "site",
        create: bool = False,
        patience: float = 30.0,
        key_now: Callable[[], Signer] | None = None,
        other_ledgers: Sequence[str] | None = None,
    ) -> None:
        self.log = Log(
            folder / FILE, signer, LEDGER, site, LedgerState,
            create=create, patience=patience, key_now=key_now,
        )  # fmt: skip
        if not len(self.log):
            if witness is None:
                raise LedgerError(f"{folder}: the ledger is empty")
            with self.log.writing():
                if not len(self.log):
                    self._begin(site, witness, recovery, setting, other_ledgers)
        if self.state.site != site:
            raise WrongLedgerError(
                f"{folder}: this is the ledger of '{self.state.site}', not of '{site}'"
            )

    @classmethod
    def read(cls, folder: Path, site: str | None = None) -> Self:
        """Open a ledger without its key: all can be read and is checked, nothing written.

        Args:
            folder: holds ``ledger.db``.
            site: whose ledger it must be; default any site's.

        Raises:
            WrongLedgerError: if there is no ledger, or it is another site's.
            LedgerError: if it is damaged.
        """
        store = Store(folder / FILE)
        named = [
            entry.predicate
            for entry in map(Entry.read, store.leaves())
            if entry.kind in ("genesis", "key-rotated")
        ]
        store.close()
        if not named:
            raise LedgerError(f"{folder}: the ledger is empty")
        try:
            signer = _Keyless(Key.parse(str(named[-1].get("key"))).public)
        except NoteError as error:
            raise LedgerError(f"{folder}: the ledger names no key: {error}") from error
        return cls(folder, signer, site or str(named[0].get("site")))

    @property
    def state(self) -> LedgerState:
        """What the entries add up to, as of the last read."""
        return self.log.state

    def keep(self, kind: str, name: str, value: Any) -> None:
        """Keep a paper beside the ledger, such as a plan, for those who verify it later.

        Args:
            kind: of the paper.
            name: by which it is found.
            value: of JSON.
        """
        with self.log.store.transaction():
            self.log.store.file(kind, name, json.dumps(value))

    @classmethod
    def recover(cls, folder: Path, site: str, recovery: Signer, new: Signer) -> Self:
        """Replace a lost ledger key with the recovery key that the genesis names.

        Args:
            folder: holds ``ledger.db``.
            site: whose ledger it must be.
            recovery: the recovery key.
            new: the key from now on.

        Raises:
            PrivateKeyError: if the genesis names no recovery key, or another one.
        """
        ledger = cls.read(folder, site)
        ledger.rotate(new, recovery=recovery)
        return ledger

    def rotate(self, new: Signer, *, recovery: Signer | None = None) -> None:
        """Replace the ledger key; with ``recovery`` where the key in force is lost.

        Args:
            new: the key from now on.
            recovery: the recovery key; None: the key in force signs.

        Raises:
            PrivateKeyError: if the genesis does not name the recovery key.
            LedgerError: if ``new`` was in force before.
            SitePausedError: if the site has withdrawn.
        """
        key = Key(self.log.origin, new.public)
        if recovery is not None:
            self.require_recovery(recovery)
        with self.log.writing():
            self.require_present()
            self.log.append(
                "key-rotated",
                "key",
                digest(new.public),
                signers=(recovery or self.log.signer, new),
                key=str(key),
                why="recovery" if recovery else "rotation",
            )

    def require_recovery(self, key: Signer) -> None:
        """Check that ``key`` is the recovery key that the genesis names.

        Raises:
            PrivateKeyError: if it is not.
        """
        named = Entry.read(self.log.store.leaf(0)).predicate["recovery"]
        if not named or Key.parse(named).public != key.public:
            raise PrivateKeyError("the genesis of this ledger does not name this recovery key")

    def require_present(self) -> None:
        """Check that the site may still decide something.

        Raises:
            SiteClosedError: if it has withdrawn.
        """
        if self.state.withdrawn:
            raise SiteClosedError("the site has withdrawn: nothing can be decided any more")

    def _begin(
        self,
        site: str,
        witness: Key,
        recovery: Key | None,
        setting: str,
        other_ledgers: Sequence[str] | None,
    ) -> None:
        key = self.log.key
        stated: dict[str, Any] = {}
        if other_ledgers is not None:
            stated["other_ledgers"] = sorted(set(other_ledgers))
        self.log.append(
            "genesis",
            "key",
            digest(key.public),
            site=site,
            key=str(key),
            recovery=recovery and str(recovery),
            witness=str(witness),
            setting=setting,
            software=f"privet {__version__}",
            **stated,
        )

    def _append_plain(self, kind: str, **fields: Any) -> None:
        origin = hashlib.sha256(self.log.origin.encode()).hexdigest()
        self.log.append(kind, "ledger", f"sha256:{origin}", **fields)


class _Keyless:
    """Stands for a key that is not at hand: it opens a ledger and signs nothing."""

    def __init__(self, public: bytes) -> None:
        self.public = public

    def sign(self, message: bytes) -> bytes:
        raise LedgerError("the ledger was opened without its key, so nothing can be signed")
