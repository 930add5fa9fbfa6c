"""Replace a site's ledger key: a file, a key in a token, or one of each."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from privet.client.operator.decisions import LEDGER_KEY, in_token, require_ledger
from privet.client.operator.newer_ledger import require_newest
from privet.common.errors import InputError, PrivateKeyError, SitePausedError
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.signed_note import Key, Signer
from privet.privacy.policy import Policy


def rotate_key(
    policy_file: Path, passphrase: str | None, *, recovery: Path | None, to: str | None = None
) -> str:
    """Replace the ledger key by a new one; return its fingerprint.

    Every fault is found before anything is written. A new key file is on disk before the entry that
    names it, and replaces the old file afterwards; if the process ends between, the next call
    finishes. The operator makes a new key in a token there: it is ``to``, or the key that the
    policy names if the key in force is still a file, or lost.

    Args:
        policy_file: of the site.
        passphrase: of all key files.
        recovery: the recovery key's file, if the ledger key is lost; else None.
        to: label of the new key pair in the token that the policy names.

    Raises:
        InputError: if ``to`` is given and the policy names no token.
        WrongLedgerError: if the ledger is not there.
        PrivateKeyError: if a key cannot be opened or is another one, or nothing would change.
        SitePausedError: if the site has withdrawn.
        RefusedError: if a newer ledger was seen elsewhere.
        LedgerError: if the ledger cannot be written.
    """
    policy = Policy.load(policy_file)
    folder, keys = policy.ledger_folder, policy.keys
    path, coming = folder / LEDGER_KEY, folder / "ledger-next.pem"
    if to and keys is None:
        raise InputError(f"{policy_file} has no [keys]: there is no token that could hold '{to}'")
    require_ledger(policy)
    ledger = Ledger.read(folder, policy.site)
    with closing(ledger.log.store):
        require_newest(ledger)
        in_force = ledger.log.key
        new: Signer | None = None
        if keys is not None:
            new = in_token(keys, to)
        elif coming.exists():
            new = _left_over(coming, path, in_force, passphrase)
        if new is not None and new.public == in_force.public:
            # An earlier call wrote the entry and ended before the files were moved.
            if keys and not to and not path.exists():
                raise PrivateKeyError(
                    f"the key '{keys.ledger}' is in force already; make another one in token "
                    f"'{keys.token}' and name it with --to"
                )
        else:
            if ledger.state.withdrawn:
                raise SitePausedError("the site has withdrawn: its key is not replaced any more")
            if recovery is not None:
                signs: Signer = FileSigner.load(recovery, passphrase)
                ledger.require_recovery(signs)
            else:
                signs = in_token(keys) if keys and to else FileSigner.load(path, passphrase)
                _require_in_force(path, signs, in_force)
            new = new or _made(coming, passphrase)
            if recovery is not None:
                Ledger.recover(folder, policy.site, signs, new)
            else:
                Ledger(folder, signs, policy.site).rotate(new)
        if path.exists():
            path.replace(folder / f"ledger-until-{new.public.hex()[:8]}.pem")
        if keys is None:
            coming.replace(path)
        return Key("ledger", new.public).fingerprint


def _made(path: Path, passphrase: str | None) -> Signer:
    FileSigner.generate().save(path, passphrase)
    return FileSigner.load(path, passphrase)


def _require_in_force(path: Path, signer: Signer, in_force: Key) -> None:
    if signer.public != in_force.public:
        raise PrivateKeyError(
            f"{path}: is not the key in force, {in_force.fingerprint}; restore that one, or name "
            "the recovery key with --recovery"
        )


def _left_over(path: Path, current: Path, in_force: Key, passphrase: str | None) -> Signer:
    """Return the key that an interrupted rotation made.

    Raises:
        PrivateKeyError: if it cannot be opened; the message says whether anything would be lost
            with it.
    """
    try:
        return FileSigner.load(path, passphrase)
    except PrivateKeyError as error:
        left = f"{error}. A rotation that broke off left this file"
        try:
            unused = FileSigner.load(current, passphrase).public == in_force.public
        except PrivateKeyError:
            unused = False
        if unused:
            raise PrivateKeyError(
                f"{left}; no entry names its key, so it may be deleted. Then run this again"
            ) from None
        raise PrivateKeyError(
            f"{left}, and it may hold the key in force, {in_force.fingerprint}: set the "
            "passphrase that it was made under. If that is lost, move the file away and name the "
            "recovery key with --recovery"
        ) from None
