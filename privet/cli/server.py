"""``privet server``: the coordinator of a federation over the link."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli import app
from privet.cli.passphrase import passphrase
from privet.cli.watch import Log, LogLevel, Metrics, logged
from privet.common.errors import InputError
from privet.common.lock import alone as _alone
from privet.common.lock import holder as _pid
from privet.common.logs import Level, Style

if TYPE_CHECKING:
    from privet.server.certificates import Authority
    from privet.server.federation import Federation

server = typer.Typer(
    no_args_is_help=True,
    help="A coordinator: invites sites, runs plans with them over mutually authenticated gRPC.",
    epilog="[bold]Example[/bold]\n\nprivet server init hub --name study --address "
    "hub.example.org:7443",
)
app.add_typer(server, name="server")

Folder = Annotated[Path, typer.Argument(help="The federation's folder.", metavar="DIR")]
Site = Annotated[str, typer.Argument(help="Name of a site.", metavar="SITE")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@server.command(
    epilog="[bold]Example[/bold]\n\nprivet server init hub --name study "
    "--address hub.example.org:7443"
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    name: Annotated[str, typer.Option(help="Name of the coordinator, as ledgers will call it.")],
    address: Annotated[str, typer.Option(help="host:port that sites dial.")],
    enrolment: Annotated[
        str, typer.Option(help="host:port where sites come in; default the next port.")
    ] = "",
    plain_keys: Annotated[
        bool, typer.Option("--plain-keys", help="Keep the keys unencrypted, for trials only.")
    ] = False,
    authority: Annotated[
        Path | None,
        typer.Option(help="Your organisation's authority (PEM, elliptic); default a new one."),
    ] = None,
    authority_key: Annotated[
        Path | None, typer.Option(help="Its key (PEM); if encrypted, under the same passphrase.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a federation's folder: a certificate authority, keys, and nothing else.

    The keys are encrypted under the passphrase in PRIVET_PASSPHRASE, or in the file that
    PRIVET_PASSPHRASE_FILE names, at least 8 characters; you are asked for it where neither is set.
    Sites reach the address by its one port; the port for enrolment listens only while an
    invitation is open.
    With --authority and --authority-key the certificates of coordinator and sites are of your
    organisation's authority, best one made for this federation alone: sites trust whatever it
    signs to be the coordinator, and the key is kept in the folder, encrypted like the others.
    """
    from privet.server.federation import Federation

    host, port = _place(address)
    secret = None if plain_keys else passphrase(new=True)
    made = Federation.found(
        folder, name, address, enrolment or f"{host}:{port + 1}", secret,
        _authority(authority, authority_key, secret),
    )  # fmt: skip
    value = {"folder": str(folder), "name": name, "orders": made.order_key().fingerprint}
    if as_json:
        typer.echo(json.dumps(value))
        return
    typer.echo(f"Made {folder}. Order key: {value['orders']}")
    typer.echo(f"Witness key: {made.witness().key.fingerprint}")
    typer.echo("Give both to sites and auditors by another way, such as the contract.")
    typer.echo(f"Next: privet server enroll {folder} SITE, and privet server start {folder}")


def _authority(certificate: Path | None, key: Path | None, secret: str | None) -> Authority | None:
    """Read the organisation's authority, where one is named."""
    from privet.server.certificates import Authority

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("--authority and --authority-key belong together")
    try:
        pair = certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
    encrypted = secret.encode() if secret and b"ENCRYPTED" in pair[1] else None
    return Authority.load(*pair, encrypted)


@server.command(
    epilog="[bold]Example[/bold]\n\nprivet server enroll hub 'Hospital 1' --out hospital-1.json"
)
def enroll(
    folder: Folder,
    site: Site,
    out: Annotated[Path | None, typer.Option(help="Where the join file is written.")] = None,
    hours: Annotated[float, typer.Option(help="How long the invitation is open.")] = 72.0,
    again: Annotated[
        bool,
        typer.Option("--again", help="For an enrolled site whose certificate has ended."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Invite a site: write a join file that works once.

    Send it by a way that others cannot read, such as encrypted mail: whoever has it first is the
    site. An earlier invitation of the same name ends.
    A certificate is renewed over the link by itself. Where a site was away for longer than its
    certificate was good, --again lets it in once more, with the same keys.
    """
    from privet.common.canonical import write_atomic

    if not 0 < hours <= 24 * 365:
        raise InputError("--hours must be above 0 and at most 8760")
    path = out or Path(f"{site.replace(' ', '-')}.join.json")
    if path.exists():
        raise InputError(f"{path} exists; name another --out")
    join = _open(folder).invite(site, hours, again=again)
    write_atomic(path, (json.dumps(join, indent=2) + "\n").encode(), mode=0o600)
    if as_json:
        typer.echo(json.dumps({"join": str(path), "site": site, "expires": join["expires"]}))
        return
    typer.echo(f"Wrote {path}: it works once, until {join['expires']}")
    typer.echo(f"At the site: privet client init {path.name} --dir FOLDER")


@server.command(
    epilog="[bold]Example[/bold]\n\nprivet server admit hub north.request.json --out north.pem"
)
def admit(
    folder: Folder,
    request: Annotated[
        Path, typer.Argument(help="What `privet client init --request` wrote.", metavar="FILE")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the certificate is written; default nowhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a site in that sent its request as a file: keep its keys, use its invitation up.

    On stock Flower a site needs no certificate. Over the link it does: send it the one that --out
    writes, which is no secret.
    """
    from privet.common.canonical import write_atomic

    if out is not None and out.exists():
        raise InputError(f"{out} exists; name another --out")
    site, certificate = _open(folder).admit(request)
    if out is not None:
        write_atomic(out, certificate)
    value = {"site": site, "certificate": None if out is None else str(out)}
    typer.echo(json.dumps(value) if as_json else f"{site} is enrolled")


@server.command(
    epilog="[bold]Examples[/bold]\n\nprivet server start hub\n\n"
    "privet server start hub --log json --metrics 9464"
)
def start(
    folder: Folder,
    listen: Annotated[
        str, typer.Option(help="host:port to listen at; default the port of the address, anywhere.")
    ] = "",
    listen_enrolment: Annotated[str, typer.Option(help="The same for enrolment.")] = "",
    metrics: Metrics = "",
    log: Log = Style.TEXT,
    log_level: LogLevel = Level.INFO,
) -> None:
    """Run the coordinator until it is stopped (Ctrl-C, SIGTERM, privet server stop).

    It runs what was submitted, one run after the other. It may be killed at any moment: started
    again, it goes on at the same round, and no site trains or pays twice.
    """
    with logged(log, log_level):
        _serve(folder, listen, listen_enrolment, metrics)


def _serve(folder: Path, listen: str, listen_enrolment: str, metrics: str) -> None:
    import signal
    from contextlib import ExitStack

    import privet.common.link
    from privet.server.office import Office

    assert privet.common.link
    federation = _open(folder)
    office = Office(
        federation,
        link=listen or _anywhere(federation.address),
        enrolment=listen_enrolment or _anywhere(federation.enrolment),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: office.stopped.set())
    with ExitStack() as held:
        held.enter_context(_alone(folder))
        federation.require_keys()
        if metrics:
            from privet.common.metrics import Endpoint, parse_address, registry
            from privet.server.metrics import ServerMetrics

            figures = registry("server", ServerMetrics(office))
            place = parse_address(metrics)
            held.enter_context(Endpoint(figures, place, lambda: office.is_listening))
        office.serve()


@server.command(epilog="[bold]Example[/bold]\n\nprivet server submit hub plan.toml")
def submit(
    folder: Folder,
    plan: Annotated[Path, typer.Argument(help="A plan (*.toml).", metavar="PLAN")],
    run: Annotated[
        str, typer.Option(help="Name of the run; default the plan's and the time.")
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Also where this very plan was submitted before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a plan: its noise is calibrated now, and its sites are asked when it is its turn.

    Every site decides by its own policy; their operators approve the digest that is printed. An
    approval holds for later runs of the same plan, too, each of which is paid for anew.
    """
    from privet.common.plan import Plan
    from privet.privacy.program import calibrated
    from privet.server.federation import Federation
    from privet.server.queue import runs
    from privet.server.queue import submit as queue

    found = calibrated(Plan.load(plan))
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    federation = Federation.load(folder)
    same = (found.digest, "")  # where it cannot be read, it may be the same
    before = [one.id for one in runs(federation) if one.digest in same]
    if before and not again:
        raise InputError(
            f"this plan was submitted as {before[-1]}. Another run of it is paid for anew, and its "
            "approvals hold for that, too: say --again, or give the plan another name"
        )
    queued = queue(federation, found, run or f"{found.name.replace(' ', '-')}-{stamp}")
    if as_json:
        typer.echo(json.dumps({"run": queued.id, "plan": found.digest}))
        return
    typer.echo(f"Queued {queued.id}, plan {found.digest}")
    typer.echo(f"At each site: privet client approve {found.digest} --policy FOLDER/site.toml")
    typer.echo(f"Which site released in how many rounds: privet server status {folder}")


@server.command(epilog="[bold]Example[/bold]\n\nprivet server status hub")
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Show sites and runs: who is connected, which round, what each site answered."""
    from privet.server.federation import Federation
    from privet.server.queue import connected, runs

    federation = Federation.load(folder)
    present = connected(federation)
    sites = [
        {"site": record.name, "state": record.state, "connected": record.name in present}
        for record in federation.members().values()
    ]
    value: dict[str, Any] = {
        "federation": federation.name,
        "listening": _pid(folder) != 0,
        "sites": sites,
        "runs": [_with_words(run.status) for run in runs(federation)],
    }
    if as_json:
        typer.echo(json.dumps(value))
        return
    from privet.cli import show_server

    show_server.status(value)


@server.command(epilog="[bold]Example[/bold]\n\nprivet server cancel hub study-20261122-120000")
def cancel(
    folder: Folder, run: Annotated[str, typer.Argument(help="Name of the run.", metavar="RUN")]
) -> None:
    """End a run for good, whether it waits or trains; what sites paid for stays paid for.

    A round that is under way is finished first.
    """
    from privet.server.federation import Federation
    from privet.server.queue import cancel as end

    end(Federation.load(folder), run)
    typer.echo(f"{run} is cancelled")


@server.command(epilog="[bold]Example[/bold]\n\nprivet server revoke hub 'Hospital 1'")
def revoke(folder: Folder, site: Site) -> None:
    """Let nothing of a site in any more; its open streams end within a second."""
    from privet.server.federation import Federation

    Federation.load(folder).revoke(site)
    typer.echo(f"{site} is revoked")


@server.command(epilog="[bold]Example[/bold]\n\nprivet server stop hub")
def stop(folder: Folder) -> None:
    """Tell the coordinator to end; started again, it goes on at the same round."""
    import signal

    from privet.server.federation import Federation

    Federation.load(folder)
    number = _pid(folder)
    if not number:
        raise InputError(f"{folder}: no coordinator is running")
    os.kill(number, signal.SIGTERM)
    typer.echo("It ends now; started again, it goes on at the same round.")


def _with_words(status: dict[str, Any]) -> dict[str, Any]:
    """Return a run's status with who released in how many rounds, in plain words."""
    from privet.server.queue import releases

    told = releases(status)
    return {**status, "told": told} if told else status


def _open(folder: Path) -> Federation:
    from privet.server.federation import Federation

    found = Federation.load(folder)
    if b"ENCRYPTED" in (folder / "authority.key").read_bytes():
        found.passphrase = passphrase()
    return found


def _place(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise InputError(f"'{address}' is not host:port")
    return host, int(port)


def _anywhere(address: str) -> str:
    """Return where to listen: anywhere, but for an address that only this machine can reach."""
    import ipaddress

    host, port = _place(address)
    try:
        here = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        here = host == "localhost"
    return address if here else f"[::]:{port}"
