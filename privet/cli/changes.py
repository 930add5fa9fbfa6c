"""Changes of a federation in use: the coordinator's address, its keys."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli.client import SITE, PolicyFile, client
from privet.cli.output.done import AsJson, done
from privet.cli.server import Folder, given_authority, open_federation, place_of, server
from privet.common.errors import InputError
from privet.common.files.lock import holder

if TYPE_CHECKING:
    from privet.server.membership.registry import MemberRegistry


class Which(StrEnum):
    """The coordinator's keys."""

    ORDERS = "orders"
    AUTHORITY = "authority"
    WITNESS = "witness"


@server.command(
    "set-address",
    epilog="[bold]Example[/bold]\n\nprivet server set-address hub hub2.example.org:7443",
)
def set_address(
    folder: Folder,
    address: Annotated[
        str, typer.Argument(help="host:port that sites dial from now on.", metavar="HOST:PORT")
    ],
    enrolment: Annotated[
        str, typer.Option(help="host:port where sites enrol; default the next port.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Change the address that sites dial; do it before the coordinator moves.

    A running coordinator sends the new address to its sites at once, over the link, and listens at
    the old one until it is started again; `privet server status` says which sites know. From then
    on they dial the new address first, and the old one after it. A site that was away gets it when
    it connects, or its operator sets it (`privet client move`). No certificate names an address, so
    none changes.
    """
    from privet.common.link.address import show_address
    from privet.server.membership.registry import MemberRegistry

    host, port = place_of(address)
    if enrolment:
        place_of(enrolment)
    federation = MemberRegistry.load(folder)
    federation.set_address(address, enrolment or show_address(host, port + 1))
    running = holder(folder) != 0
    value = {"address": address, "enrolment": federation.enrolment, "running": running}
    if running:
        text = (
            "The running coordinator sends it to its sites now, and listens at the old address "
            f"until it is started again. Wait until `privet server status {folder}` says that all "
            "sites know it."
        )
    else:
        text = (
            "No coordinator runs. Sites get the address when they connect: start it where they "
            "dial now, or have their operators run: privet client move --address"
        )
    done(value, f"The address is now {address}, enrolment {federation.enrolment}.\n{text}", as_json)


@server.command(
    "rotate-key",
    epilog="[bold]Examples[/bold]\n\nprivet server rotate-key hub --key orders\n\n"
    "privet server rotate-key hub --key authority",
)
def rotate_key(
    folder: Folder,
    key: Annotated[Which, typer.Option(help="Which key.")],
    authority: Annotated[
        Path | None,
        typer.Option(help="Your organisation's next authority (PEM, elliptic); default a new one."),
    ] = None,
    authority_key: Annotated[
        Path | None, typer.Option(help="Its key (PEM); if encrypted, under the same passphrase.")
    ] = None,
    finish: Annotated[
        bool,
        typer.Option("--finish", help="Drop the former authority, also where sites are left."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replace a key of the coordinator; the old one signs for the new one.

    orders: sites continue without their operators, because the old key names the new one; each
    keeps that in its ledger, and takes no new run under the old key. A policy with key_rotation =
    "listed" waits for its operator. Not while a run is open. Tell auditors the new fingerprint.
    authority: both are good until every site has a certificate of the new one, which it fetches
    over the link; the former is then dropped by itself, or by --finish.
    witness: it is not rotated; the message says what to do.
    A command that was killed is run again. Where others may have the old key, its word is worth
    nothing: see docs/how-to/keys.md, The coordinator's keys.
    """
    from privet.server import rotation

    if key is Which.WITNESS:
        raise InputError(rotation.WITNESS)
    if key is Which.ORDERS and (authority or authority_key or finish):
        raise InputError("--authority, --authority-key and --finish belong to --key authority")
    federation = open_federation(folder)
    if key is Which.ORDERS:
        old, new = rotation.rotate_orders(federation)
        text = (
            f"The order key is now {new}; {old} signed that.\n"
            "Give the new fingerprint to sites and auditors by another way, such as the contract."
        )
        done({"old": old, "orders": new}, text, as_json)
        return
    _rotate_authority(federation, authority, authority_key, finish, as_json)


def _rotate_authority(
    federation: MemberRegistry,
    certificate: Path | None,
    key: Path | None,
    finish: bool,
    as_json: bool,
) -> None:
    files = federation.authorities
    given = given_authority(certificate, key, federation.passphrase)
    if finish:
        if not files.in_overlap or files.is_moving:
            raise InputError("no authority follows another one; nothing was dropped")
        left = federation.left_behind()
        files.drop_former()
        value: dict[str, Any] = {"authority": files.newest, "state": "done", "left": left}
        text = "The former authority is dropped."
        if left:
            text += (
                f" These sites have to enrol again (`privet server enroll … --again`): "
                f"{', '.join(left)}"
            )
        done(value, text, as_json)
        return
    if not files.in_overlap or files.is_moving:
        files.change(federation.name, given)
    left = federation.left_behind()
    value = {"authority": files.newest, "state": "overlap", "left": left}
    who = ", ".join(left) or "none"
    text = (
        f"The authority is now {files.newest}. The former one is good, too, until every site has a "
        f"certificate of the new one; left: {who}.\nA running coordinator sends it now."
    )
    done(value, text, as_json)


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client move --address hub2.example.org:7443\n\n"
    "privet client move north.join.json --policy north/site.toml"
)
def move(
    join: Annotated[
        Path | None,
        typer.Argument(help="A newer join file of the same federation.", metavar="JOINFILE"),
    ] = None,
    address: Annotated[
        str, typer.Option(help="host:port where the coordinator is now.", metavar="HOST:PORT")
    ] = "",
    coordinator: Annotated[
        str, typer.Option(help="Which one, with --address, where the site has several.")
    ] = "",
    policy: PolicyFile = SITE,
    as_json: AsJson = False,
) -> None:
    """Dial the coordinator at another address; the old ones are tried after it.

    A coordinator that moves sends its new address over the link. This is for one that could not. A
    running client uses the address the next time it dials, without a restart. The server there
    must show a certificate of the authority that this site trusts.
    """
    import privet.common.link
    from privet.client.link.join import Join
    from privet.client.link.move import move as dial
    from privet.client.link.move import place_of

    assert privet.common.link
    if (join is None) == (not address):
        raise InputError("name a join file, or --address HOST:PORT")
    newer = None if join is None else Join.load(join)
    place = place_of(policy.parent, name=coordinator, join=newer)
    found = dial(place, address=address, join=newer)
    text = f"The coordinator is dialed at {found[0]}"
    if found[1:]:
        text += f", and where nobody answers there at {', '.join(found[1:])}"
    done({"addresses": found}, text, as_json)
