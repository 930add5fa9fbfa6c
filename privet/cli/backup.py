"""``backup``: a coordinator's or a site's folder in one file, also while it is at work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privet.cli.client import PolicyFile, client
from privet.cli.output.done import AsJson, done
from privet.cli.server import Folder, server

if TYPE_CHECKING:
    from privet.common.files.backup import Backup

Out = Annotated[Path, typer.Option(help="The tar file to write.", metavar="FILE")]


@server.command("backup", epilog="[bold]Example[/bold]\n\nprivet server backup hub --out hub.tar")
def server_backup(folder: Folder, out: Out, as_json: AsJson = False) -> None:
    """Write the coordinator's folder into a tar file, as of one moment, also while it runs.

    It contains the authority, keys (encrypted as they are), members, runs with their journals and
    models, and the encrypted copies of the sites' ledgers. Only its owner can read the file.
    """
    from privet.server.membership.registry import MemberRegistry
    from privet.server.recovery.backup import back_up_federation

    _show(back_up_federation(MemberRegistry.load(folder), out), as_json)


@client.command(
    "backup",
    epilog="[bold]Example[/bold]\n\nprivet client backup --policy north/site.toml --out north.tar",
)
def client_backup(
    out: Out, policy: PolicyFile = Path("site.toml"), as_json: AsJson = False
) -> None:
    """Write policy, ledger, keys and certificates into a tar file, also while the client runs.

    Records, logs and checks are not in it, nor is offline/recovery.pem. Only its owner can read
    the file. A ledger that is restored from it is good only if nothing was spent since.
    """
    from privet.client.backup import back_up_site

    _show(back_up_site(policy, out), as_json)


def _show(made: Backup, as_json: bool) -> None:
    text = f"Wrote {made.path}: {made.files} files. Keep it where this disk is not."
    done({"backup": str(made.path), "files": made.files}, text, as_json)
