"""Recover a site's ledger from the copies of others.

::

    copies ── open_copies ── Rebuilt (in a folder of its own) ── moved into the site's folder
                 │              ├─ key-rotated, signed by the recovery key
                 │              └─ reserved + aborted, for each order newer than the copies
                 └─ signatures, tree, newest witnessed head

The site's folder changes only after everything was checked and written; the ledger itself comes
last.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

import tomli_w

from privet.client.operator.decisions import (
    FINGERPRINTS,
    LEDGER_KEY,
    POLICY_FILE,
    WITNESS_KEY,
    in_token,
)
from privet.client.recovery.recovered_orders import Counted, count_orders
from privet.common.canonical import fsync_folder, write_atomic
from privet.common.errors import (
    InputError,
    LedgerError,
    PrivateKeyError,
    PrivetError,
    WrongLedgerError,
)
from privet.common.files.lock import CLIENT, alone
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.copies.copy_open import OpenedLedger, open_copies
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_base import FILE
from privet.privacy.evidence.signed_note import Key, Signer
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import ASIDE, Store
from privet.privacy.policy import TEMPLATE, Keys, Policy

_NOTE = """\
# Written by `privet client recover`, from what the ledger says. It never says where records are:
# fill in nominal_size and path or sql of each [data.NAME], and person_column where the unit is a
# person.
"""


@dataclass(frozen=True)
class Recovery:
    """The result of a recovery.

    Attributes:
        site: its name.
        ledger_folder: folder of the recovered ledger.
        entries: number of entries in the copies.
        source: the copy that reached farthest.
        key: fingerprint of the new ledger key; "" if the site had withdrawn.
        counted: the outcome of each order that is newer than the copies.
        spent: by population, what its history costs now.
        witness: whether the site's witness key is there.
        policy_written: whether the policy was missing, and was written again.
        aside: folder of the damaged files, if there were any.
    """

    site: str
    ledger_folder: Path
    entries: int
    source: str
    key: str
    counted: tuple[Counted, ...]
    spent: dict[str, str]
    witness: bool
    policy_written: bool
    aside: Path | None


def recover_site(
    files: Sequence[CopyFile],
    folder: Path,
    recovery_file: Path,
    passphrase: str | None,
    *,
    first_key: str = "",
    to: str | None = None,
    no_other_orders: bool = False,
) -> Recovery:
    """Rebuild a site's ledger in ``folder`` from copies, under a new ledger key.

    Args:
        files: copies of the ledger, from every site and coordinator that keeps one.
        folder: the site's damaged folder, or a new one.
        recovery_file: the recovery key that the ledger's genesis names.
        passphrase: of the recovery key, and of the keys that are written.
        first_key: fingerprint of the ledger's first key; "" takes the one beside the recovery key.
        to: label of a new ledger key in the token that the policy in ``folder`` names.
        no_other_orders: the operator's statement that every coordinator that may ask by the site's
            policy, and whose copy is not here, got no answer to an order since.

    Raises:
        InputError: if the statement is missing, or ``folder`` is in use.
        PrivateKeyError, WrongLedgerError, LedgerError: as
            :func:`privet.privacy.evidence.copies.copy_open.open_copies`; and WrongLedgerError if
            the ledger in ``folder`` is whole and not an older one.
    """
    recovery = FileSigner.load(recovery_file, passphrase)
    first_key = first_key or _first_key(recovery_file)
    found = open_copies(files, recovery, first_key)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, CLIENT), _beside(folder) as work:
        policy = _policy(folder)
        place = folder / "ledger" if policy is None else policy.ledger_folder
        _require_older(place, found)
        ledger = _rebuilt(found, work)
        with closing(ledger.log.store):
            if not no_other_orders:
                _require_all_coordinators(ledger, files)
            key = ""
            if not ledger.state.withdrawn:
                # Before the charges below: they are entries, and the lost key can sign none.
                new = _new_key(policy.keys if policy else None, to, work, passphrase)
                ledger.rotate(new, recovery=recovery)
                key = Key("ledger", new.public).fingerprint
            counted = tuple(count_orders(ledger, files, policy))
            spent = {name: str(ledger.spent(name)) for name in ledger.state.populations}
            public = ledger.state.policy
        has_witness = _put_witness(found, place, work, passphrase)
        aside = _move_in(work, place)
        written = policy is None and not (folder / POLICY_FILE).exists()
        if written:
            write_atomic(folder / POLICY_FILE, _policy_text(found.site, public).encode())
    return Recovery(
        found.site, place, len(found.leaves), found.source, key, counted, spent, has_witness,
        written, aside,
    )  # fmt: skip


def _first_key(recovery_file: Path) -> str:
    path = recovery_file.with_name(FINGERPRINTS)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["ledger"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not there: name the fingerprint of the ledger's first key with --ledger. "
            "`privet client init` printed it; your auditor and the coordinator have it"
        ) from None


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give a folder to work in, on the same disk, which is gone afterwards."""
    work = folder / ".recovering"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _policy(folder: Path) -> Policy | None:
    path = folder / POLICY_FILE
    return Policy.load(path) if path.exists() else None


def _require_older(place: Path, found: OpenedLedger) -> None:
    """Check that the ledger that is there, if one can be read, is an older one of the same."""
    if not (place / FILE).exists():
        return
    try:
        present = Ledger.read(place)
        with closing(present.log.store):
            leaves = tuple(present.log.store.leaves())
    except PrivetError:
        return  # it is damaged
    same = sum(1 for _ in takewhile(bool, map(eq, leaves, found.leaves)))
    if same < min(len(leaves), len(found.leaves)):
        charged = sum(Entry.read(leaf).kind == "reserved" for leaf in leaves[same:])
        raise WrongLedgerError(
            f"{place}: the ledger here has other entries than the copies, from entry {same} on: it "
            "was restored from an older copy, and written to since. Move that folder away and run "
            f"this again. Orders that it paid for since, and that are not counted then: {charged}"
        )
    if len(leaves) >= len(found.leaves):
        raise WrongLedgerError(
            f"{place}: the ledger here is whole and has {len(leaves)} entries, the copies have "
            f"{len(found.leaves)}: there is nothing to recover. A lost key is replaced by `privet "
            "client rotate-key --recovery`"
        )


def _rebuilt(found: OpenedLedger, work: Path) -> Ledger:
    """Write the entries into a new file and open it: the rules are checked at each entry."""
    store = Store(work / FILE, create=True)
    with closing(store), store.transaction():
        for number, leaf in enumerate(found.leaves):
            store.add(number, leaf)
        for kind, name, text in found.papers:
            store.file(kind, name, text)
        store.put("head", found.head)
    return Ledger.read(work, found.site)


def _require_all_coordinators(ledger: Ledger, files: Sequence[CopyFile]) -> None:
    asked = set((ledger.state.policy or {}).get("allow", {}).get("coordinators", ()))
    here = {key.fingerprint for file in files for key in file.signers}
    keys = ledger.state.order_keys
    here |= {old for key in here for old in keys.line(key)}
    if missing := sorted(asked - here):
        raise InputError(
            f"coordinators that the site lets ask gave no copy: {', '.join(missing)}. What they "
            "had answered since the copies were made is not known here, and would be spent a "
            "second time. Get `privet server copy` of each; where one had nothing answered, or is "
            "no more, say --no-other-orders. Nothing was written"
        )


def _new_key(keys: Keys | None, to: str | None, work: Path, passphrase: str | None) -> Signer:
    if keys is not None:
        return in_token(keys, to)
    if to is not None:
        raise InputError(f"the policy has no [keys]: there is no token that could hold '{to}'")
    FileSigner.generate().save(work / LEDGER_KEY, passphrase)
    return FileSigner.load(work / LEDGER_KEY, passphrase)


def _put_witness(found: OpenedLedger, place: Path, work: Path, passphrase: str | None) -> bool:
    """Keep the witness key that is there, or write the copy's; return whether there is one."""
    try:
        if FileSigner.load(place / WITNESS_KEY, passphrase).public == found.witness:
            return True
    except PrivateKeyError:
        pass
    if not found.witness_seed:
        return False
    FileSigner.from_seed(found.witness_seed).save(work / WITNESS_KEY, passphrase)
    return True


def _move_in(work: Path, place: Path) -> Path | None:
    """Move the new files into place, the ledger last; return the folder of the old ones."""
    if any(work.glob(f"{FILE}-*")):
        raise LedgerError(f"{work / FILE}: could not be closed; is another process reading it?")
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = sorted(path.name for path in work.iterdir())
    old = [path for path in place.glob(f"{FILE}*") if path.is_file()]
    old += [place / name for name in {LEDGER_KEY, *made} - {FILE} if (place / name).exists()]
    aside = None
    if old:
        stamp = ASIDE + time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime())
        aside = Path(tempfile.mkdtemp(prefix=stamp, dir=place))
        for path in old:
            path.replace(aside / path.name)
    for name in [*(name for name in made if name != FILE), FILE]:
        (work / name).replace(place / name)
    fsync_folder(place)
    return aside


def _policy_text(site: str, public: dict[str, Any] | None) -> str:
    """Return a policy to fill in, with all facts that the ledger has."""
    if public is None:
        return TEMPLATE.replace('site = "North"', f"site = {json.dumps(site)}")
    value = {key: one for key, one in public.items() if key not in ("setting", "attested")}
    value["populations"] = {
        name: {k: float(v) if k in ("epsilon", "delta") else v for k, v in terms.items()}
        for name, terms in public.get("populations", {}).items()
    }
    attested = {row: why for row, why in public.get("attested", {}).items() if row != "H6"}
    return _NOTE + tomli_w.dumps({**value, "attested": attested})
