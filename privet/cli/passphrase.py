"""The passphrase of keys: from the environment, from a file that it names, or asked for."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import typer

from privet.common.errors import InputError, PrivetError
from privet.privacy.evidence.keys import (
    MIN_PASSPHRASE_CHARACTERS,
    PASSPHRASE,
    PASSPHRASE_FILE,
    passphrase_from_environment,
)


def passphrase(*, new: bool = False) -> str:
    """Return the passphrase; at a terminal it is asked for, twice where it is ``new``.

    Raises:
        InputError: if nobody can be asked, or a new one is too short.
        PrivateKeyError: if both variables are set, or the file is not there.
    """
    found = passphrase_from_environment()
    if found is None:
        found = _asked(new)
    if new and len(found) < MIN_PASSPHRASE_CHARACTERS:
        raise InputError(
            f"a passphrase has at least {MIN_PASSPHRASE_CHARACTERS} characters; no key was made"
        )
    return found


def passphrase_of(policy: Path) -> str | None:
    """Return the passphrase of a site's keys; it is asked for where they have one.

    Args:
        policy: of the site; the keys lie in folders beside it, and where it says.

    Raises:
        InputError: if it is needed and nobody can be asked.
    """
    from privet.privacy.policy import Policy

    found = passphrase_from_environment()
    if found is not None:
        return found
    keys = [path for path in policy.parent.glob("*/*.pem") if path.parent.name != "offline"]
    with suppress(PrivetError):  # the next reader of the policy reports what is wrong
        keys += Policy.load(policy).ledger_folder.glob("*.pem")
    with suppress(OSError):
        if any(b"ENCRYPTED" in path.read_bytes() for path in keys):
            return _asked(new=False)
    return None


def _asked(new: bool) -> str:
    how = f"set {PASSPHRASE} or {PASSPHRASE_FILE}"
    if new:
        how += ", or use --plain-keys for a trial"
    if not sys.stdin.isatty():
        raise InputError(f"nobody can be asked for a passphrase here: {how}")
    try:
        return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True))
    except typer.Abort:
        raise InputError(f"a passphrase is needed: {how}") from None
