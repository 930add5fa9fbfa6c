"""A site's client, started: gate and dialer from what is in the site's folder."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path

from privet.client.check_record import require_checked
from privet.client.desk import Desk, public_keys
from privet.client.dial import Dialer
from privet.client.gate import Gate
from privet.client.join import Join, enrol, keep, request_by_file
from privet.client.renewal import Renewal
from privet.client.worker.remote import RemoteTrainer
from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.link.identity import is_due, read_certificate
from privet.common.plan import Plan
from privet.common.process_output import in_loop
from privet.privacy.keys import FileSigner
from privet.privacy.policy import Policy
from privet.privacy.witness import Witness

LINK = "link"
"""Folder of certificate, key and join file, beside the policy."""


def come_in(join: Join, folder: Path) -> None:
    """Get a site's certificate from its coordinator.

    Raises:
        InputError: if the site came in before, or the invitation is refused.
        RunError: if the coordinator cannot be reached.
    """
    _require_outside(folder)
    ledger, witness = public_keys(folder)
    enrol(join, folder / LINK, str(ledger), str(witness))


def come_in_by_file(join: Join, folder: Path, out: Path) -> None:
    """Write what this site asks its coordinator into ``out``, readable by its owner only.

    Raises:
        InputError: if the site came in before, or ``out`` exists.
    """
    _require_outside(folder)
    if out.exists():
        raise InputError(f"{out} exists; name another file")
    ledger, witness = public_keys(folder)
    asked = request_by_file(join, folder / LINK, str(ledger), str(witness))
    write_atomic(out, (json.dumps(asked, indent=2) + "\n").encode(), mode=0o600)


def take_certificate(join: Join, folder: Path, path: Path) -> None:
    """Keep the certificate that the coordinator gave for a request by file.

    Raises:
        InputError: if it cannot be read, or the site asked for none.
        RunError: if it is not for this site and its key.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not (folder / LINK / "link.key").exists():
        raise InputError(f"{folder}: this site asked for no certificate; use --request first")
    keep(join, folder / LINK, pem)


def _require_outside(folder: Path) -> None:
    path = folder / LINK / "link.pem"
    if path.exists() and not is_due(read_certificate(path.read_bytes())):
        raise InputError(f"{folder}: this site has its certificate already")


def make_gate(
    policy_file: Path, passphrase: str | None, *, unconfined: bool = False, seed: str = ""
) -> Gate:
    """Return the gate of the site whose policy is ``policy_file``.

    Args:
        policy_file: the site's.
        passphrase: of its keys; None for keys that are not encrypted.
        unconfined: train also where the kernel cannot close the network to the trainer.
        seed: makes the noise again, for tests only.

    Raises:
        InputError: if the policy is wrong, or the site is not enrolled.
        KeyFault: if a key does not open.
        Refused: if the policy sets ``min_units`` and no check of the data stands.
    """
    desk = Desk.open(policy_file, passphrase)
    policy, ledger = desk.policy, desk.ledger
    home = policy_file.parent
    require_checked(policy, home)
    join = Join.kept(home / LINK)
    if join.site != policy.site:
        raise InputError(f"{policy_file}: site '{policy.site}' came in as '{join.site}'")
    signer = FileSigner.load(policy.ledger_folder / "witness.pem", passphrase)
    witness = Witness(policy.ledger_folder / "witness.json", signer, policy.site)

    def training_for(plan: Plan, policy: Policy, data_set: str) -> RemoteTrainer:
        trainer = RemoteTrainer(
            plan, policy, data_set, home, _closed(policy, home), unconfined, seed
        )
        trainer.start()
        return trainer

    return Gate(
        functools.partial(Policy.load, policy_file), ledger, witness, join, home, training_for
    )


def _closed(policy: Policy, home: Path) -> tuple[Path, ...]:
    """Return where keys and passwords lie."""
    sources = [data.sql for data in policy.data.values() if data.sql is not None]
    passwords = [policy.folder / one.password_file for one in sources if one.password_file]
    return policy.ledger_folder, home / LINK, home / "offline", *passwords


def dialer(
    policy_file: Path, gate: Gate, on_state: Callable[[str], None] = lambda state: None
) -> Dialer:
    """Return the dialer of an enrolled site.

    Raises:
        InputError: if its certificate is not there.
    """
    renewal = Renewal(policy_file.parent / LINK, gate.join.site)
    address = gate.join.address
    return Dialer(address, renewal.credentials, gate, renewal=renewal, on_state=on_state)


async def run(dialer: Dialer) -> None:
    """Stay at the coordinator until SIGTERM or SIGINT.

    Raises:
        RunError: if the coordinator does not know this site, or speaks another version.
    """
    task = asyncio.create_task(dialer.run())
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(in_loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
