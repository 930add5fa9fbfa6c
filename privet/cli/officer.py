"""How an officer signs at the command line: by SSH agent, by a key in a file, or in a token."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privet.common.errors import InputError

if TYPE_CHECKING:
    from privet.client.operator.decisions import SignerFor
    from privet.privacy.evidence.signed_note import Signer

OFFICER_PASSPHRASE = "PRIVET_OFFICER_PASSPHRASE"
"""Environment variable that holds the passphrase of an officer's key file."""

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", help="File with the officer's private key; default the SSH agent.", metavar="FILE"
    ),
]
KeyModule = Annotated[
    Path | None, typer.Option("--module", help="PKCS#11 library of the officer's token.")
]
KeyToken = Annotated[str, typer.Option("--token", help="Label of the officer's token.")]
KeyLabel = Annotated[str, typer.Option("--label", help="Label of the key pair in the token.")]


def signer_for(key: Path | None, module: Path | None, token: str, label: str) -> SignerFor:
    """Return what opens an officer's private key, once it is known which one is meant.

    Args:
        key: file of the private key.
        module: PKCS#11 library, with ``token`` and ``label``.
        token: label of the token.
        label: of the key pair in it.

    Raises:
        InputError: if the options do not name one key.
    """
    if key is not None and module is not None:
        raise InputError("--key and --module name two keys; name one")
    if (module is not None) != bool(token and label) or bool(token) != bool(label):
        raise InputError("--module, --token and --label belong together")

    def find(public: bytes) -> Signer:
        from privet.privacy.evidence.officers import AgentSigner, key_from_file
        from privet.privacy.evidence.pkcs11 import Pkcs11Signer

        if module is not None:
            return Pkcs11Signer.open(module, token, label)
        if key is None:
            return AgentSigner(public)
        return key_from_file(key, _passphrase(key))

    return find


def _passphrase(path: Path) -> str | None:
    """Return the passphrase of a key file; it is asked for where the file has one."""
    found = os.environ.get(OFFICER_PASSPHRASE)
    if found:
        return found
    if not _is_encrypted(path):
        return None
    if not sys.stdin.isatty():
        raise InputError(
            f"{path}: nobody can be asked for the passphrase here: set {OFFICER_PASSPHRASE}, or "
            "add the key to your SSH agent and leave --key out"
        )
    return str(typer.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _is_encrypted(path: Path) -> bool:
    from privet.common.errors import PrivateKeyError
    from privet.privacy.evidence.officers import key_from_file

    try:
        key_from_file(path, None)
    except PrivateKeyError as error:
        return "passphrase" in str(error) and path.is_file()
    return False
