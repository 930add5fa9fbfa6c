"""Back up a site: its files that cannot be made again, and no record."""

from __future__ import annotations

from pathlib import Path

from privet.client.link.coordinators import LINK, STATE
from privet.client.operator.decisions import POLICY_FILE
from privet.common.errors import InputError
from privet.common.files.backup import Backup, back_up
from privet.privacy.policy import Policy

_FOLDERS = (LINK, STATE, "ledger", "offers", "outbox", "copies", "journals")
_LEFT_OUT = ("trainer", "snapshots", "trainer.log")
"""Files of a coordinator's state folder with data about records, or that can be made again."""


def back_up_site(policy_file: Path, out: Path) -> Backup:
    """Write policy, ledger, keys and the state kept for coordinators into a tar file.

    The file holds no records, logs or checks, which are about people; nor the recovery key, which
    must be kept elsewhere.

    Args:
        policy_file: the site's ``site.toml``.
        out: the tar file; it must not exist.

    Raises:
        PolicyError: if the policy is wrong.
        InputError: if the ledger is in another folder, or ``out`` cannot be written.
        RunError: if the ledger is held by another process for too long.
    """
    home = policy_file.parent
    ledger = Policy.load(policy_file).ledger_folder
    if ledger.resolve() != (home / "ledger").resolve():
        raise InputError(
            f"{policy_file}: the ledger is in {ledger}, outside the site's folder; a backup is of "
            f"one folder. Copy it with: sqlite3 {ledger / 'ledger.db'} \".backup 'copy.db'\""
        )

    def takes(name: Path) -> bool:
        if name.parts[0] not in _FOLDERS:
            return str(name) in (POLICY_FILE, "refusals.json")
        # A coordinator may be called as one of them is: in its own folder it counts.
        return name.parts[0] != STATE or not set(name.parts[2:]) & set(_LEFT_OUT)

    return back_up(home, out, takes)
