"""``copy`` and ``recover``: a ledger's encrypted copy goes back to its site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli.client import PolicyFile, client
from privet.cli.output.done import AsJson, done
from privet.cli.passphrase import passphrase
from privet.cli.server import Folder, Site, open_federation, server
from privet.common.errors import InputError
from privet.privacy.evidence.keys import passphrase_from_environment

if TYPE_CHECKING:
    from privet.client.recovery.recover import Recovery
    from privet.privacy.evidence.copies.copy_file import CopyFile

Out = Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")]


@server.command(
    "copy", epilog="[bold]Example[/bold]\n\nprivet server copy hub North --out north.hub.copy"
)
def server_copy(folder: Folder, site: Site, out: Out, as_json: AsJson = False) -> None:
    """Write what this coordinator keeps of a site's ledger, for a site that lost it.

    It holds the ledger's encrypted copy, which only the site can read, the newest heads that were
    witnessed, and the orders that the site may have answered since.
    """
    from privet.server.recovery.copy_export import copy_of

    _write(copy_of(open_federation(folder), site), site, out, as_json)


@client.command(
    "copy", epilog="[bold]Example[/bold]\n\nprivet client copy North --out north.east.copy"
)
def client_copy(
    site: Site, out: Out, policy: PolicyFile = Path("site.toml"), as_json: AsJson = False
) -> None:
    """Write what this site keeps of another one's ledger, for a site that lost it.

    Send it by any way: only the other site can read the copy.
    """
    from privet.client.recovery.copy_export import copy_kept

    _write(copy_kept(policy, site), site, out, as_json)


def _write(found: CopyFile, site: str, out: Path, as_json: bool) -> None:
    found.write(out)
    size = max((piece.end for piece in found.pieces), default=0)
    seen = max((head.size for head in found.heads), default=0)
    value = {"copy": str(out), "site": site, "entries": size, "witnessed": seen,
             "orders": len(found.orders)}  # fmt: skip
    text = f"Wrote {out}: {size} entries of the ledger of {site}, encrypted; witnessed to {seen}"
    if found.orders:
        text += f"\n  and {len(found.orders)} orders that the site may have answered since"
    if seen > size:
        text += f"\n  {seen - size} entries that others saw are missing in it: get other copies"
    done(value, text, as_json)


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client recover north.hub.copy north.east.copy "
    "--recovery safe/recovery.pem --dir north"
)
def recover(
    copies: Annotated[
        list[Path],
        typer.Argument(help="Copies of the ledger, of all who keep it.", metavar="COPY"),
    ],
    recovery: Annotated[
        Path, typer.Option(help="The recovery key, from the safe.", metavar="FILE")
    ],
    folder: Annotated[
        Path, typer.Option("--dir", help="The site's folder, damaged, or a new one.", metavar="DIR")
    ],
    ledger: Annotated[
        str,
        typer.Option(
            help="Fingerprint of the ledger's first key; default what lies beside the recovery key."
        ),
    ] = "",
    to: Annotated[
        str | None,
        typer.Option(help="Label of a new key pair in the token of the policy.", metavar="LABEL"),
    ] = None,
    no_other_orders: Annotated[
        bool,
        typer.Option(
            "--no-other-orders",
            help="You state that no coordinator whose copy is not here had an order answered.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild a lost or damaged ledger from copies that others kept, under a new ledger key.

    The copies are opened with the recovery key and checked to the last entry. They must reach the
    newest head that anybody shows in them. An entry that the recovery key signs brings a new
    ledger key into force; orders that are newer than the copies count as spent. Nothing is written
    unless all of it holds. The passphrase is that of the recovery key; new keys get it, too.
    """
    from privet.client.recovery.recover import recover_site
    from privet.privacy.evidence.copies.copy_file import CopyFile

    files = [CopyFile.read(path) for path in copies]
    done = recover_site(
        files, folder, recovery, _passphrase_of(recovery),
        first_key=ledger, to=to, no_other_orders=no_other_orders,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_values(done)))
        return
    _show(done, folder)


def _passphrase_of(recovery: Path) -> str | None:
    """Return the recovery key's passphrase; it is asked for where it has one."""
    found = passphrase_from_environment()
    if found is not None:
        return found
    try:
        encrypted = b"ENCRYPTED" in recovery.read_bytes()
    except OSError as error:
        raise InputError(f"{recovery}: cannot be read: {error.strerror}") from None
    return passphrase() if encrypted else None


def _values(made: Recovery) -> dict[str, Any]:
    return {
        "site": made.site,
        "entries": made.entries,
        "ledger": made.key or None,
        "counted": [vars(one) for one in made.counted],
        "spent": made.spent,
        "witness": made.witness,
        "policy_written": made.policy_written,
        "aside": made.aside and str(made.aside),
    }


def _show(made: Recovery, folder: Path) -> None:
    typer.echo(f"Recovered {made.entries} entries of the ledger of {made.site}, by {made.source}")
    for one in made.counted:
        what = f"not counted: {one.why}" if one.entry is None else "counts as spent"
        typer.echo(f"  order {one.slot}: {what}")
    for population, cost in made.spent.items():
        typer.echo(f"  {population}: {cost} is spent")
    if made.key:
        typer.echo(f"The ledger key is now {made.key}")
    if made.aside is not None:
        typer.echo(f"What was there before is in {made.aside}")
    if not made.witness:
        typer.echo("The witness key is in no copy: restore ledger/witness.pem from a backup.")
    if made.policy_written:
        typer.echo(f"Next: say in {folder / 'site.toml'} where the records are.")
    if not (folder / "link" / "link.pem").exists():
        typer.echo(
            "Ask the coordinator for `privet server enroll --again`, then: privet client init "
            f"JOINFILE --dir {folder}"
        )
