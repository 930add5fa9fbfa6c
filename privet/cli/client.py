"""``privet client``: what a site's operator decides, as entries in the site's ledger."""

from __future__ import annotations

import getpass
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privet.cli import app
from privet.cli.other_ledgers import asked_ledgers
from privet.cli.output.done import AsJson, done
from privet.cli.output.watch import Log, LogLevel, Metrics, logged
from privet.cli.passphrase import passphrase, passphrase_of
from privet.common.errors import InputError
from privet.common.output.logs import Level, Style

if TYPE_CHECKING:
    from privet.client.endpoint import SiteEndpoint
    from privet.client.link.dial import Dialer
    from privet.client.link.join import Join
    from privet.client.operator.catalogue import Catalogue
    from privet.client.operator.decisions import OperatorDecisions
    from privet.privacy.policy import Keys

SITE = Path("site.toml")
client = typer.Typer(
    no_args_is_help=True,
    help="A site's ledger and what its operator decides. Each decision is a signed entry.",
    epilog="[bold]Example[/bold]\n\nprivet client status --policy north/site.toml",
)
app.add_typer(client, name="client")


def _policy_of(path: Path) -> Path:
    return path / SITE if path.is_dir() else path


PolicyFile = Annotated[
    Path,
    typer.Option(
        "--policy", help="The site's policy, or its folder.", metavar="FILE", callback=_policy_of
    ),
]
Person = Annotated[
    str | None, typer.Option("--as", help="Who decides; default the name you are logged in by.")
]


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client init north.join.json     joins a federation"
    "\n\nprivet client init hearts.join.json --dir north     adds a coordinator to that site"
    "\n\nprivet client init north --site North     only makes the folder; asks for a passphrase"
)
def init(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The join file that the coordinator sent, or a new folder.", metavar="JOINFILE|DIR"
        ),
    ],
    site: Annotated[
        str, typer.Option(help="Name of the site, as plans call it; with DIR only.")
    ] = "",
    place: Annotated[
        Path | None,
        typer.Option("--dir", help="The site's folder, with JOINFILE; default the site's name."),
    ] = None,
    plain_keys: Annotated[
        bool, typer.Option("--plain-keys", help="Keep the keys unencrypted, for trials only.")
    ] = False,
    module: Annotated[
        Path | None,
        typer.Option(help="PKCS#11 library of the token that holds the ledger key."),
    ] = None,
    token: Annotated[str, typer.Option(help="Label of the token.")] = "",
    ledger_key: Annotated[
        str, typer.Option(help="Label of the Ed25519 key pair in the token.")
    ] = "",
    request: Annotated[
        Path | None,
        typer.Option(help="Write what the coordinator must know here, in place of calling it."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The certificate that came back for such a request.")
    ] = None,
    only_ledger: Annotated[
        bool,
        typer.Option(
            "--only-ledger",
            help="State that no other ledger keeps a budget of these people; with a new ledger.",
        ),
    ] = False,
    other_ledger: Annotated[
        list[str] | None,
        typer.Option(
            help="State that another ledger does: the fingerprint of its first key. Repeatable.",
            metavar="FINGERPRINT",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a site's folder: a policy to fill in, keys, an empty ledger; enrol in a federation.

    In the folder of a site that is there, JOINFILE adds one more coordinator to the same ledger.
    A new ledger begins at zero, so you are asked whether another one keeps a budget of the same
    people (--only-ledger, --other-ledger); what you state is signed, and auditors read it.
    With JOINFILE the site also gets its certificate from the coordinator, whose enrolment must be
    reachable now; where it was not, the same command tries again. Keys are made here and encrypted
    under the passphrase in PRIVET_PASSPHRASE, or in the file that PRIVET_PASSPHRASE_FILE names, at
    least 8 characters; you are asked for it where neither is set: it belongs on no command line.
    Give the fingerprints that are printed to the coordinator and to your auditor; put
    offline/recovery.pem in a safe.
    With --module, --token and --ledger-key the ledger key is one that you made in a
    hardware token; its PIN is in PRIVET_PIN, or asked for.
    With --request nothing is called: send that file to the coordinator by a way that others cannot
    read, for `privet server admit`. The link needs the certificate that comes back (--certificate),
    stock Flower does not.
    """
    from privet.client.operator.decisions import POLICY_FILE, make_site, stated_ledgers
    from privet.client.operator.new_folder import whole_or_gone

    others = stated_ledgers(other_ledger or (), only=only_ledger)
    keys = _keys(module, token, ledger_key)
    by_file = request is not None or certificate is not None
    join, site, folder = _new_site(folder, site, place, by_file=by_file)
    added = join is not None and (folder / POLICY_FILE).exists()
    if added:
        made = _kept_keys(folder, states=others is not None)
        _come_in(join, folder, request, certificate)
    else:
        secret = None if plain_keys else passphrase(new=True)
        coordinators = [join.coordinator["orders"]] if join else []
        if others is None:
            others = asked_ledgers()
        with whole_or_gone(folder, POLICY_FILE):
            made = make_site(
                folder, site, secret, keys=keys, coordinators=coordinators, other_ledgers=others
            )
            _come_in(join, folder, request, certificate)
    missing: dict[str, str] = {}
    if join is not None and (certificate is not None or request is None):
        missing = _missing(folder / POLICY_FILE)
    if as_json:
        value = {"folder": str(folder), "site": site, **made, "may_not_ask": missing}
        typer.echo(json.dumps(value))
        return
    _say_made(folder / POLICY_FILE, made, missing, added=added)
    if request is not None and certificate is None:
        typer.echo(f"Send {request} to the coordinator: it is as secret as the join file.")
    elif join is not None:
        typer.echo(f"Then: privet client start --policy {folder / POLICY_FILE}")


def _new_site(
    folder: Path, site: str, place: Path | None, *, by_file: bool
) -> tuple[Join | None, str, Path]:
    """Return the join file, the site's name and its folder.

    Args:
        folder: a join file, or the folder that is to be made.
        site: the name that was given, or "".
        place: the folder, where ``folder`` is a join file; None for one called as the site is.
        by_file: whether the site enrols by files, for which it needs a join file.

    Raises:
        InputError: if these do not go together.
    """
    if folder.is_file():
        import privet.common.link
        from privet.client.link.join import Join
        from privet.common.site_name import fold

        assert privet.common.link
        join = Join.load(folder)
        if site and fold(site) != fold(join.site):
            raise InputError(f"{folder} is for site '{join.site}', not for '{site}'")
        return join, join.site, place or Path(join.site.replace(" ", "-"))
    if by_file:
        raise InputError(f"{folder}: --request and --certificate need a join file that is there")
    if not site:
        raise InputError(f"{folder}: name the site with --site, or a join file that is there")
    return None, site, folder


def _kept_keys(folder: Path, *, states: bool) -> dict[str, str]:
    """Return the fingerprints of a site that is there, to which a coordinator is added.

    Args:
        folder: of the site.
        states: whether the command line states something of other ledgers.

    Raises:
        InputError: if it does: that was stated when the ledger began.
    """
    from privet.client.operator.decisions import public_keys

    if states:
        raise InputError(f"{folder}: its ledger is there; its statements were fixed when it began")
    pairs = zip(("ledger", "witness"), public_keys(folder), strict=True)
    return {kind: key.fingerprint for kind, key in pairs}


def _missing(policy: Path) -> dict[str, str]:
    """Return the order keys of coordinators that the policy does not let ask, by their names."""
    from privet.client.start import missing_coordinators
    from privet.privacy.evidence.ledger import Ledger
    from privet.privacy.policy import Policy

    return missing_coordinators(policy, Ledger.read(Policy.load(policy).ledger_folder))


def _say_made(policy: Path, made: dict[str, str], missing: dict[str, str], *, added: bool) -> None:
    """Print what was made, and what its operator does next."""
    folder = policy.parent
    if added:
        typer.echo(f"{folder} is there")
    else:
        typer.echo(f"Made {folder}: {policy.name}, ledger/, offline/recovery.pem")
    typer.echo(f"  ledger key   {made['ledger']}")
    typer.echo(f"  witness key  {made['witness']}")
    if not added:
        typer.echo(f"Next: fill in {policy}; move offline/ to a safe place.")
    for name, key in missing.items():
        typer.echo(
            f"Next: let '{name}' ask: add to coordinators under [allow] in {policy}\n  \"{key}\""
        )


def _come_in(
    join: Join | None, folder: Path, request: Path | None, certificate: Path | None
) -> None:
    """Enrol a site by its join file, if there is one: by a call, or by files."""
    if join is None:
        return
    from privet.client.start import come_in, come_in_by_file, take_certificate

    if certificate is not None:
        take_certificate(join, folder, certificate)
    elif request is not None:
        come_in_by_file(join, folder, request)
    else:
        come_in(join, folder)


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client start --policy north/site.toml\n\n"
    "privet client start --policy north/site.toml --log json --metrics 9465"
)
def start(
    policy: PolicyFile = SITE,
    unconfined: Annotated[
        bool,
        typer.Option(
            "--unconfined-trainer",
            help="Train also where the kernel cannot close the network to the trainer.",
        ),
    ] = False,
    not_restored: Annotated[
        bool,
        typer.Option(
            "--not-restored",
            help="Of several coordinators: do not wait until each has sent what it saw of the "
            "ledger. You state that the ledger was not restored from an older copy.",
        ),
    ] = False,
    metrics: Metrics = "",
    log: Log = Style.TEXT,
    log_level: LogLevel = Level.INFO,
) -> None:
    """Stay at the coordinators and answer their orders, until stopped (Ctrl-C or SIGTERM).

    The site dials out, to each coordinator that it enrolled with; nothing listens here, but for
    --metrics on this machine. Training runs in a process of its own, which has no keys and no
    network. What the site lets itself be asked is in the policy, which is read again before each
    run. It may be killed at any moment: started again, it answers a repeated order with the
    release that was paid for.
    Messages that may contain data of records go to operator.log and trainer.log beside the policy,
    never to standard error.
    """
    with logged(log, log_level, policy.parent / "operator.log"):
        _attend(policy, metrics, unconfined=unconfined, not_restored=not_restored)


def _attend(policy: Path, metrics: str, *, unconfined: bool, not_restored: bool) -> None:
    import asyncio
    import logging
    from contextlib import ExitStack

    import privet.common.link
    from privet import __version__
    from privet.client.start import dialer, make_endpoints, missing_coordinators, only_client, run
    from privet.common.output.process_output import to_operator

    assert privet.common.link
    own = logging.getLogger("privet.client")
    secret = passphrase_of(policy)
    with ExitStack() as held:
        if policy.is_file():
            held.enter_context(to_operator(policy.parent / "operator.log"))
            held.enter_context(only_client(policy))
        endpoints = make_endpoints(policy, secret, unconfined=unconfined, not_restored=not_restored)
        site = {"site": endpoints[0].join.site}
        own.info("started", extra={**site, "version": __version__})
        held.callback(own.info, "stopped", extra=site)
        for endpoint in endpoints:
            held.callback(endpoint.close)
        for said in checks(policy):
            own.info(said)
        for name, key in missing_coordinators(policy, endpoints[0].ledger).items():
            own.warning("may not ask: its order key is not under [allow] coordinators",
                        extra={"coordinator": name, "key": key})  # fmt: skip

        def tell(endpoint: SiteEndpoint, state: str) -> None:
            about = {
                "coordinator": endpoint.membership.name,
                "address": endpoint.addresses.all()[0],
            }
            own.info(state, extra={**site, **about})

        links = [dialer(endpoint, partial(tell, endpoint)) for endpoint in endpoints]
        if metrics:
            from privet.client.metrics import ClientMetrics
            from privet.common.output.metrics import Endpoint, parse_address, registry
            from privet.privacy.policy import Policy

            pairs = [
                (endpoint.membership, link) for endpoint, link in zip(endpoints, links, strict=True)
            ]
            figures = registry("client", ClientMetrics(pairs, partial(Policy.load, policy)))
            place = parse_address(metrics)
            ready = partial(_all_connected, links)
            held.enter_context(Endpoint(figures, place, ready))
        asyncio.run(run(*links, turns=endpoints[0].turns))


def _all_connected(links: list[Dialer]) -> bool:
    return all(link.tally.connected for link in links)


@client.command(epilog="[bold]Example[/bold]\n\nprivet client launcher north/launcher")
def launcher(
    folder: Annotated[
        Path, typer.Argument(help="A folder for the programs, new or empty.", metavar="DIR")
    ],
    as_json: AsJson = False,
) -> None:
    """Write the programs by which a stock Flower SuperNode runs only what is installed here.

    Start the SuperNode by DIR/flower-supernode, with Flower's own arguments and --node-config
    'policy="/absolute/path/of/site.toml"'. A SuperNode that is started otherwise runs whatever
    code the coordinator sends.
    """
    from privet.client.stock_flower.launcher import write_launcher

    supernode = write_launcher(folder)
    text = f"Wrote {folder}. Start the SuperNode by {supernode}"
    done({"folder": str(folder), "supernode": str(supernode)}, text, as_json)


@client.command(epilog="[bold]Example[/bold]\n\nprivet client status --policy north/site.toml")
def status(policy: PolicyFile = SITE, as_json: AsJson = False) -> None:
    """Show what was spent and is left, approvals, and who witnessed the ledger."""
    from privet.client.link.coordinators import standing

    waits = [one.to_dict() for one in catalogue_of(policy).waiting()]
    keys = ("plan", "name", "coordinator", "also", "why")
    waiting = [{key: one[key] for key in keys} for one in waits]
    desk = desk_of(policy)
    value = {**desk.status(), "waiting": waiting, **standing(policy, desk.ledger)}
    if as_json:
        typer.echo(json.dumps(value))
        return
    from privet.cli.output import show_site

    show_site.site_status(value, policy.parent / "operator.log")


@client.command(epilog="[bold]Example[/bold]\n\nprivet client pause --policy north/site.toml")
def pause(
    policy: PolicyFile = SITE,
    end: Annotated[bool, typer.Option("--end", help="End the pause.")] = False,
    name: Person = None,
    as_json: AsJson = False,
) -> None:
    """Reserve nothing until the pause is ended with --end."""
    desk_of(policy).pause(who(name), end=end)
    state = "open" if end else "paused"
    done({"state": state}, f"The site is {state}.", as_json)


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client withdraw --yes --policy north/site.toml"
)
def withdraw(
    policy: PolicyFile = SITE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    name: Person = None,
    as_json: AsJson = False,
) -> None:
    """Spend nothing ever again. This cannot be undone; what was released stays released."""
    if not yes:
        typer.confirm("Withdraw this site permanently?", abort=True, err=True)
    desk_of(policy).withdraw(who(name))
    done({"state": "withdrawn"}, "The site has withdrawn.", as_json)


@client.command(
    "rotate-key",
    epilog="[bold]Examples[/bold]\n\nprivet client rotate-key --policy north/site.toml\n\n"
    "privet client rotate-key --recovery safe/recovery.pem     the ledger key was lost\n\n"
    "privet client rotate-key --to ledger-key-2                a new key in the token",
)
def rotate_key(
    policy: PolicyFile = SITE,
    recovery: Annotated[
        Path | None, typer.Option(help="The recovery key, where the ledger key is lost.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Label of a new key pair in the token of the policy.", metavar="LABEL"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Replace the ledger key by a new one; the old one signs that.

    Where the policy has \[keys], the new key is one that you made in the token: --to names
    it, and you then write its label into the policy.
    """
    from privet.client.operator.rotation import rotate_key as rotate

    fingerprint = rotate(policy, passphrase_of(policy), recovery=recovery, to=to)
    text = f"The ledger key is now {fingerprint}"
    if to:
        text += f'\nNext: write ledger = "{to}" under [keys] in {policy}'
    done({"ledger": fingerprint}, text, as_json)


def catalogue_of(policy: Path) -> Catalogue:
    """Return what the site of a policy was offered and decided; its ledger's key is not needed."""
    from privet.client.operator.catalogue import Catalogue
    from privet.client.operator.decisions import require_ledger
    from privet.client.operator.forecast import Place
    from privet.privacy.policy import Policy

    found = Policy.load(policy)
    require_ledger(found)
    return Catalogue(Place(policy, found), policy.parent)


def desk_of(policy: Path) -> OperatorDecisions:
    """Return the operator decisions of a policy; ask for the passphrase of its keys if need be."""
    from privet.client.operator.decisions import OperatorDecisions

    return OperatorDecisions.open(policy, passphrase_of(policy))


def checks(policy: Path) -> list[str]:
    """Return how the last check of each data set stands, a line each."""
    from privet.client.operator.check_record import outcome
    from privet.privacy.policy import Policy

    found = Policy.load(policy)
    return [outcome(found, name, policy.parent) for name in found.data]


def who(name: str | None) -> str:
    """Return who decides: the name that is given, or that of the login."""
    try:
        return getpass.getuser() if name is None else name
    except (KeyError, OSError):
        raise InputError("nobody is logged in by a name: say who decides with --as NAME") from None


def _keys(module: Path | None, token: str, ledger_key: str) -> Keys | None:
    from privet.common.schema import parse
    from privet.privacy.policy import Keys

    if module is None and not token and not ledger_key:
        return None
    if module is None or not token or not ledger_key:
        raise InputError("a key in a token needs all of --module, --token and --ledger-key")
    value = {"module": str(module.absolute()), "token": token, "ledger": ledger_key}
    return parse(Keys, value, where="--module, --token, --ledger-key", error=InputError)
