"""``privet server``: the coordinator of a federation over the link."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli import app
from privet.cli.output.done import AsJson, done
from privet.cli.output.watch import Log, LogLevel, Metrics, logged
from privet.cli.passphrase import passphrase
from privet.common.errors import InputError
from privet.common.files.lock import alone as _alone
from privet.common.files.lock import holder as _pid
from privet.common.output.logs import Level, Style

if TYPE_CHECKING:
    from privet.common.link.research import Researcher
    from privet.server.membership.certificates import Authority
    from privet.server.membership.registry import MemberRegistry
    from privet.server.queue import Run

server = typer.Typer(
    no_args_is_help=True,
    help="A coordinator: invites sites, runs plans with them over mutually authenticated gRPC.",
    epilog="[bold]Example[/bold]\n\nprivet server init hub --name study --address "
    "hub.example.org:7443",
)
app.add_typer(server, name="server")

Folder = Annotated[Path, typer.Argument(help="The federation's folder.", metavar="DIR")]
Mine = Annotated[
    Path, typer.Argument(help="The federation's folder, or a researcher's.", metavar="DIR")
]
Site = Annotated[str, typer.Argument(help="Name of a site.", metavar="SITE")]


@server.command(
    epilog="[bold]Example[/bold]\n\nprivet server init hub --name study "
    "--address hub.example.org:7443"
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    name: Annotated[str, typer.Option(help="Name of the coordinator, as ledgers will call it.")],
    address: Annotated[str, typer.Option(help="host:port that sites dial.")],
    enrolment: Annotated[
        str, typer.Option(help="host:port where sites enrol; default the next port.")
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
    from privet.common.link.address import show_address
    from privet.server.membership.registry import MemberRegistry

    host, port = place_of(address)
    if enrolment:
        place_of(enrolment)
    secret = None if plain_keys else passphrase(new=True)
    made = MemberRegistry.found(
        folder, name, address, enrolment or show_address(host, port + 1), secret,
        given_authority(authority, authority_key, secret),
    )  # fmt: skip
    value = {"folder": str(folder), "name": name, "orders": made.order_key().fingerprint}
    text = (
        f"Made {folder}. Order key: {value['orders']}\n"
        f"Witness key: {made.witness().key.fingerprint}\n"
        "Give both to sites and auditors by another way, such as the contract.\n"
        f"Next: privet server enroll {folder} SITE, and privet server start {folder}"
    )
    done(value, text, as_json)


def given_authority(
    certificate: Path | None, key: Path | None, secret: str | None
) -> Authority | None:
    """Read the organisation's authority, where one is named."""
    from privet.server.membership.certificates import Authority

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("--authority and --authority-key belong together")
    from privet.common.files.private_files import read_private

    try:
        pair = certificate.read_bytes(), read_private(key)
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
        bool, typer.Option("--again", help="For a site that is enrolled, or was revoked.")
    ] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="End the invitation; write no join file.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Invite a site: write a join file that works once.

    Send it by a way that others cannot read, such as encrypted mail: the first to use it is the
    site. An earlier invitation of the same name ends.
    A certificate is renewed over the link by itself. Where a site lost it, or its key, was away
    for longer than it was good, or was revoked, --again lets it in once more, with the same ledger.
    Where others may have its key, revoke the site first: that ends the certificates that there are.
    With --withdraw the invitation of this name ends, and the name is free again.
    Blanks around a name are no part of it, and two names must differ in more than case.
    """
    if withdraw:
        from privet.server.membership.registry import MemberRegistry

        MemberRegistry.load(folder).withdraw(site)
        value = {"site": site.strip(), "state": "withdrawn"}
        done(value, f"{site.strip()} is no longer invited", as_json)
        return
    path = join_path(site, hours, out)
    join = open_federation(folder).invite(site, hours, again=again)
    about = {"join": str(path), "site": join["site"], "expires": join["expires"]}
    then = f"At the site: privet client init {path.name} --dir FOLDER"
    write_join(path, join, about, then, as_json)


def join_path(name: str, hours: float, out: Path | None) -> Path:
    """Return where the join file of this name is written.

    Raises:
        InputError: if a file is there, or no invitation is open for that many hours.
    """
    if not 0 < hours <= 24 * 365:
        raise InputError("--hours must be above 0 and at most 8760")
    path = out or Path(f"{name.strip().replace(' ', '-')}.join.json")
    if path.exists():
        raise InputError(f"{path} exists; name another --out")
    return path


def write_join(
    path: Path, join: dict[str, Any], about: dict[str, str], then: str, as_json: bool
) -> None:
    """Write a join file, and print what it is: ``about`` as JSON, or what comes next."""
    from privet.common.canonical import write_atomic
    from privet.common.files.private_files import FILE_MODE

    write_atomic(path, (json.dumps(join, indent=2) + "\n").encode(), mode=FILE_MODE)
    done(about, f"Wrote {path}: it works once, until {join['expires']}\n{then}", as_json)


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
    site, certificate = open_federation(folder).admit(request)
    if out is not None:
        write_atomic(out, certificate)
    done({"site": site, "certificate": out and str(out)}, f"{site} is enrolled", as_json)


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
    again, it continues at the same round, and no site trains or pays twice.
    """
    with logged(log, log_level):
        _serve(folder, listen, listen_enrolment, metrics)


def _serve(folder: Path, listen: str, listen_enrolment: str, metrics: str) -> None:
    import logging
    import signal
    from contextlib import ExitStack

    import privet.common.link
    from privet import __version__
    from privet.common.link.address import read_address
    from privet.server.coordinator import Coordinator
    from privet.server.membership.certificates import validity_faults

    assert privet.common.link
    own = logging.getLogger("privet.server")
    for given in filter(None, (listen, listen_enrolment)):
        read_address(given)
    federation = open_federation(folder)
    office = Coordinator(
        federation,
        link=listen or _anywhere(federation.address),
        enrolment=listen_enrolment or _anywhere(federation.enrolment),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: office.stopped.set())
    with ExitStack() as held:
        held.enter_context(_alone(folder))
        federation.bring_up_to_date()
        own.info("started", extra={"federation": federation.name, "version": __version__})
        held.callback(own.info, "stopped")
        for fault in validity_faults(folder):
            own.error("a certificate is not good now", extra={"why": fault})
        federation.require_keys()
        if metrics:
            from privet.common.output.metrics import Endpoint, parse_address, registry
            from privet.server.metrics import ServerMetrics

            figures = registry("server", ServerMetrics(office))
            place = parse_address(metrics)
            held.enter_context(Endpoint(figures, place, lambda: office.is_listening))
        office.serve()


@server.command(epilog="[bold]Example[/bold]\n\nprivet server submit hub plan.toml")
def submit(
    folder: Mine,
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
    approval holds for later runs of the same plan, too, each of which is paid for again.
    """
    from privet.common.plan import Plan
    from privet.privacy.accounting.noise_calibration import calibrated

    found = calibrated(Plan.load(plan))
    if mine := _researcher(folder):
        text = json.dumps(found.to_dict()).encode()
        _tell_queued(folder, mine.submit(text, run, again=again), as_json)
        return
    from privet.server.membership.registry import MemberRegistry
    from privet.server.queue import require_new
    from privet.server.queue import submit as queue

    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    federation = MemberRegistry.load(folder)
    if not again:
        require_new(federation, found)
    queued = queue(federation, found, run or f"{found.name.replace(' ', '-')}-{stamp}")
    _tell_queued(folder, {"run": queued.id, "plan": found.digest}, as_json)


def _tell_queued(folder: Path, value: dict[str, Any], as_json: bool) -> None:
    text = (
        f"Queued {value['run']}, plan {value['plan']}\n"
        f"At each site: privet client approve {value['plan']} --policy FOLDER/site.toml\n"
        f"Which site released in how many rounds: privet server status {folder}"
    )
    done(value, text, as_json)


@server.command(epilog="[bold]Example[/bold]\n\nprivet server status hub")
def status(folder: Mine, as_json: AsJson = False) -> None:
    """Show sites and runs: who is connected, which round, what each site answered.

    A researcher sees his own runs.
    """
    mine = _researcher(folder)
    value = mine.show() if mine else _status_here(folder)
    if as_json:
        typer.echo(json.dumps(value))
        return
    from privet.cli.output import show_server

    show_server.status(value)


def _status_here(folder: Path) -> dict[str, Any]:
    from privet.server.membership.registry import MemberRegistry
    from privet.server.membership.researchers import Researchers
    from privet.server.queue import connected, doubled, in_words, lost, runs, told_of

    federation = MemberRegistry.load(folder)
    present, twice = connected(federation), doubled(federation)
    sites: list[dict[str, Any]] = [
        {"site": record.name, "state": record.state, "connected": record.name in present}
        for record in federation.members().values()
    ]
    for site in sites:
        if site["site"] in twice:
            site["doubled"] = twice[site["site"]]
    told = told_of(federation)
    overlap, left = federation.authorities.in_overlap, []
    if overlap:
        left = federation.left_behind()
    value: dict[str, Any] = {
        "federation": federation.name,
        "address": federation.address,
        "noticed": told,
        "authority": {"overlap": overlap, "left": left},
        "listening": _pid(folder) != 0,
        "sites": sites,
        "runs": [in_words(run.status) for run in runs(federation)],
    }
    if away := lost(federation):
        value["lost"] = [
            {"run": run, "plan": one["key"]["plan"], "entries": one["held"], "site": one["site"]}
            for run, one in away.items()
        ]
    if people := Researchers(federation).all():
        value["researchers"] = [
            {"researcher": one.name, "state": one.state} for one in people.values()
        ]
    return value


@server.command(epilog="[bold]Example[/bold]\n\nprivet server cancel hub study-20261122-120000")
def cancel(
    folder: Mine, run: Annotated[str, typer.Argument(help="Name of the run.", metavar="RUN")]
) -> None:
    """End a run permanently, whether it waits or trains; what sites paid for stays paid for.

    A round that is under way is finished first.
    """
    if mine := _researcher(folder):
        mine.cancel(run)
    else:
        from privet.server.membership.registry import MemberRegistry
        from privet.server.queue import cancel as end

        end(MemberRegistry.load(folder), run)
    typer.echo(f"{run} is cancelled")


@server.command(epilog="[bold]Example[/bold]\n\nprivet server resume hub study-20261122-120000")
def resume(
    folder: Mine,
    run: Annotated[str, typer.Argument(help="Name of a run that failed.", metavar="RUN")],
    as_json: AsJson = False,
) -> None:
    """Queue a failed run again: it continues after its last round, and pays for no round twice.

    Its sites keep their ledgers and its journal says that it was resumed. A site that had
    released in the round that broke hands out the same release; one that had failed or refused
    is asked again. A run that was cancelled is not resumed.

    A run that sites know and this coordinator does not, because it was restored from an older copy
    (status names it), comes back whole.
    """
    where = ""
    if mine := _researcher(folder):
        value = mine.resume(run)
    else:
        from privet.server.membership.registry import MemberRegistry
        from privet.server.queue import lost
        from privet.server.queue import resume as again

        federation = MemberRegistry.load(folder)
        if run in lost(federation):
            queued = _bring_back(folder, run)
            where = "its journal and its releases come from its sites"
        else:
            queued = again(federation, run)
        value = {"run": queued.id, "state": "queued", "round": queued.status.get("round", 0)}
    where = where or f"it continues after round {value['round']}"
    done(value, f"Queued {value['run']} again: {where}", as_json)


@server.command(epilog="[bold]Example[/bold]\n\nprivet server revoke hub 'Hospital 1'")
def revoke(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of a site or a researcher.", metavar="NAME")],
) -> None:
    """Let nothing of a site or a researcher in any more; open streams end within a second.

    Its certificates are worth nothing from then on, and its name goes to no other ledger. `privet
    server enroll --again` lets the same site in once more. An invitation that was not used yet is
    ended by `privet server enroll --withdraw`.
    """
    from privet.server.membership.registry import MemberRegistry
    from privet.server.membership.researchers import Researchers

    federation = MemberRegistry.load(folder)
    if not Researchers(federation).revoke(site):
        federation.revoke(site)
    typer.echo(f"{site} is revoked")


@server.command(epilog="[bold]Example[/bold]\n\nprivet server stop hub")
def stop(folder: Folder) -> None:
    """Stop the coordinator; started again, it continues at the same round."""
    import signal

    from privet.server.membership.registry import MemberRegistry

    MemberRegistry.load(folder)
    number = _pid(folder)
    if not number:
        raise InputError(f"{folder}: no coordinator is running")
    os.kill(number, signal.SIGTERM)
    typer.echo("It stops now. Started again, it continues at the same round.")


def _researcher(folder: Path) -> Researcher | None:
    """Return the researcher whose folder it is; None for a federation's."""
    if not (folder / "researcher.json").exists():
        return None
    from privet.common.link.research import Researcher

    return Researcher.load(folder)


def _bring_back(folder: Path, run: str) -> Run:
    from privet.server.recovery.lost_runs import bring_back

    return bring_back(open_federation(folder), run)


def open_federation(folder: Path) -> MemberRegistry:
    """Open a federation with its passphrase, which is asked for where its keys have one."""
    from privet.server.membership.registry import MemberRegistry

    found = MemberRegistry.load(folder)
    if b"ENCRYPTED" in (folder / "authority.key").read_bytes():
        found.passphrase = passphrase()
    return found


def place_of(address: str) -> tuple[str, int]:
    """Return host and port of an address that is typed.

    Raises:
        InputError: if it is none.
    """
    from privet.common.link.address import MAX_PORT, read_address

    host, port = read_address(address)
    if not 0 < port < MAX_PORT:  # the next one is for enrolment
        raise InputError(f"'{address}' is not host:port: a port is from 1 to {MAX_PORT - 1}")
    return host, port


def _anywhere(address: str) -> str:
    """Return where to listen: anywhere, but for an address that only this machine can reach."""
    import ipaddress

    host, port = place_of(address)
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return address if here else f"[::]:{port}"
