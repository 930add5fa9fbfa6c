"""``privet client``: what a site's operator decides, as entries in the site's ledger."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli import app
from privet.cli.passphrase import passphrase, passphrase_of
from privet.cli.watch import Log, LogLevel, Metrics, logged
from privet.common.errors import InputError
from privet.common.logs import Level, Style

if TYPE_CHECKING:
    from privet.client.desk import Desk
    from privet.privacy.policy import Keys

_SITE = Path("site.toml")
client = typer.Typer(
    no_args_is_help=True,
    help="A site's ledger and what its operator decides. Each decision is a signed entry.",
    epilog="[bold]Example[/bold]\n\nprivet client status --policy north/site.toml",
)
app.add_typer(client, name="client")


def _policy_of(path: Path) -> Path:
    return path / _SITE if path.is_dir() else path


PolicyFile = Annotated[
    Path,
    typer.Option(
        "--policy", help="The site's policy, or its folder.", metavar="FILE", callback=_policy_of
    ),
]
Digest = Annotated[str, typer.Argument(help="Digest of a plan, sha256:…", metavar="HASH")]
Person = Annotated[
    str | None, typer.Option("--as", help="Who decides; default the name you are logged in by.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client init north.join.json     joins a federation"
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
        Path | None,
        typer.Option(help="The certificate that came back for such a request."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a site's folder: a policy to fill in, keys, an empty ledger; come in to a federation.

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
    from privet.client.desk import POLICY_FILE, make_site

    keys = _keys(module, token, ledger_key)
    join = None
    if folder.is_file():
        import privet.common.link
        from privet.client.join import Join

        assert privet.common.link
        join = Join.load(folder)
        if site and site != join.site:
            raise InputError(f"{folder} is for site '{join.site}', not for '{site}'")
        site, folder = join.site, place or Path(join.site.replace(" ", "-"))
    elif request is not None or certificate is not None:
        raise InputError(f"{folder}: --request and --certificate need a join file that is there")
    elif not site:
        raise InputError(f"{folder}: name the site with --site, or a join file that is there")
    if join is not None and (folder / POLICY_FILE).exists():
        from privet.client.desk import public_keys

        kinds = ("ledger", "witness")
        made = {k: key.fingerprint for k, key in zip(kinds, public_keys(folder), strict=True)}
    else:
        secret = None if plain_keys else passphrase(new=True)
        coordinators = [join.coordinator["orders"]] if join else []
        made = make_site(folder, site, secret, keys=keys, coordinators=coordinators)
    if join is not None:
        from privet.client.start import come_in, come_in_by_file, take_certificate

        if certificate is not None:
            take_certificate(join, folder, certificate)
        elif request is not None:
            come_in_by_file(join, folder, request)
        else:
            come_in(join, folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "site": site, **made}))
        return
    typer.echo(f"Made {folder}: {POLICY_FILE}, ledger/, offline/recovery.pem")
    typer.echo(f"  ledger key   {made['ledger']}")
    typer.echo(f"  witness key  {made['witness']}")
    typer.echo(f"Next: fill in {folder / POLICY_FILE}; move offline/ to a safe place.")
    if request is not None and certificate is None:
        typer.echo(f"Send {request} to the coordinator: it is as secret as the join file.")
    elif join is not None:
        typer.echo(f"Then: privet client start --policy {folder / POLICY_FILE}")


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client start --policy north/site.toml\n\n"
    "privet client start --policy north/site.toml --log json --metrics 9465"
)
def start(
    policy: PolicyFile = _SITE,
    unconfined: Annotated[
        bool,
        typer.Option(
            "--unconfined-trainer",
            help="Train also where the kernel cannot close the network to the trainer.",
        ),
    ] = False,
    metrics: Metrics = "",
    log: Log = Style.TEXT,
    log_level: LogLevel = Level.INFO,
) -> None:
    """Stay at the coordinator and answer its orders, until stopped (Ctrl-C or SIGTERM).

    The site dials out; nothing listens here, but for --metrics on this machine. Training runs
    in a process of its own, which has no keys and no network. What the site lets itself be asked
    is in the policy, which is read again before each run. It may be killed at any moment: started
    again, it answers a repeated order with the release that was paid for.
    What may speak of records is in operator.log and trainer.log beside the policy, never on
    standard error.
    """
    with logged(log, log_level, policy.parent / "operator.log"):
        _attend(policy, metrics, unconfined=unconfined)


def _attend(policy: Path, metrics: str, *, unconfined: bool) -> None:
    import asyncio
    import logging
    from contextlib import ExitStack
    from functools import partial

    import privet.common.link
    from privet.client.start import LINK, dialer, make_gate, run
    from privet.common.lock import CLIENT, alone
    from privet.common.process_output import to_operator

    assert privet.common.link
    own = logging.getLogger("privet.client")
    secret = passphrase_of(policy)
    with ExitStack() as held:
        if policy.is_file():
            held.enter_context(to_operator(policy.parent / "operator.log"))
            # Two clients of one site would close each other's reservations.
            held.enter_context(alone(policy.parent, CLIENT))
        gate = make_gate(policy, secret, unconfined=unconfined)
        held.callback(gate.close)
        for said in _checks(policy):
            own.info(said)

        def tell(state: str) -> None:
            own.info(state, extra={"site": gate.join.site, "address": gate.join.address})

        link = dialer(policy, gate, tell)
        if metrics:
            from privet.client.metrics import ClientMetrics
            from privet.common.metrics import Endpoint, parse_address, registry
            from privet.privacy.policy import Policy

            read = partial(Policy.load, policy)
            certificate = policy.parent / LINK / "link.pem"
            figures = registry("client", ClientMetrics(link, read, certificate))
            place = parse_address(metrics)
            held.enter_context(Endpoint(figures, place, lambda: link.tally.connected))
        asyncio.run(run(link))


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
    from privet.client.launcher import write_launcher

    supernode = write_launcher(folder)
    text = f"Wrote {folder}. Start the SuperNode by {supernode}"
    _done({"folder": str(folder), "supernode": str(supernode)}, text, as_json)


@client.command(epilog="[bold]Example[/bold]\n\nprivet client status --policy north/site.toml")
def status(policy: PolicyFile = _SITE, as_json: AsJson = False) -> None:
    """Show what was spent and is left, approvals, and who witnessed the ledger."""
    value = _desk(policy).status()
    if as_json:
        typer.echo(json.dumps(value))
        return
    from privet.cli import show_site

    show_site.site_status(value, policy.parent / "operator.log")


@client.command(epilog="[bold]Example[/bold]\n\nprivet client plans --policy north/site.toml")
def plans(policy: PolicyFile = _SITE, as_json: AsJson = False) -> None:
    """List the plans that were approved or refused, and by whom."""
    found = _desk(policy).status()["plans"]
    if as_json:
        typer.echo(json.dumps({"plans": found}))
        return
    from privet.cli import show_site

    show_site.plans(found, policy.parent / "operator.log")
    if not found:
        typer.echo("No plan was approved or refused yet.")


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client approve sha256:… --policy north/site.toml"
)
def approve(
    plan: Digest, policy: PolicyFile = _SITE, name: Person = None, as_json: AsJson = False
) -> None:
    """Approve a plan by its digest, in your name.

    HASH is the plan's digest. Where the policy wants two approvers, a second person must
    do the same under another name.
    """
    from privet.client.approval import approval_fault, people
    from privet.client.desk import full_digest
    from privet.client.offers import Offers

    desk = _desk(policy)
    failed, most = desk.ledger.attempts(full_digest(plan))
    by = desk.approve(plan, _who(name))
    digest, allow = full_digest(plan), desk.policy.allow
    offered = Offers(policy.parent).has(digest)
    missing = approval_fault(desk.policy, desk.ledger.book, digest)
    note = ""
    if allow.approval == "listed" and missing:
        note = f'without effect: {missing}. Write it there, or set approval = "manual"'
    elif digest in allow.plans and failed < most:
        note = "the policy lists this plan, so nobody has to approve it"
    value = {"plan": digest, "by": list(by), "needed": allow.approvers, "offered": offered}
    if failed:
        value |= {"failed_attempts": failed, "max_attempts": most}
    count = f"{people(by)} of {allow.approvers}" if allow.approval == "manual" else "noted"
    text = f"Approved by {', '.join(by)} ({count})." + (f" But {note}." if note else "")
    if failed:
        text += (
            f" {failed} of its attempts had failed in a row"
            + (f", which closed it; from now on {most} may fail" if failed >= most else "")
            + f": {policy.parent / 'operator.log'} says why, and each is charged again."
        )
    if not offered:
        text += (
            " No plan with this digest was offered here yet: compare it with the one you were told."
        )
    text += "".join(f"\n{said}" for said in _checks(policy))
    _done({**value, "enough": missing is None, "note": note or None}, text, as_json)


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client refuse sha256:… --policy north/site.toml"
)
def refuse(
    plan: Digest, policy: PolicyFile = _SITE, name: Person = None, as_json: AsJson = False
) -> None:
    """Refuse a plan from now on, also one that was approved; HASH is its digest."""
    from privet.client.desk import full_digest

    _desk(policy).refuse(plan, _who(name))
    _done({"plan": full_digest(plan), "state": "refused"}, "Refused.", as_json)


@client.command(epilog="[bold]Example[/bold]\n\nprivet client pause --policy north/site.toml")
def pause(
    policy: PolicyFile = _SITE,
    end: Annotated[bool, typer.Option("--end", help="End the pause.")] = False,
    name: Person = None,
    as_json: AsJson = False,
) -> None:
    """Reserve nothing until the pause is ended with --end."""
    _desk(policy).pause(_who(name), end=end)
    state = "open" if end else "paused"
    _done({"state": state}, f"The site is {state}.", as_json)


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client withdraw --yes --policy north/site.toml"
)
def withdraw(
    policy: PolicyFile = _SITE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    name: Person = None,
    as_json: AsJson = False,
) -> None:
    """Spend nothing ever again. This cannot be undone; what was released stays released."""
    if not yes:
        typer.confirm("Withdraw this site for good?", abort=True, err=True)
    _desk(policy).withdraw(_who(name))
    _done({"state": "withdrawn"}, "The site has withdrawn.", as_json)


@client.command(
    "rotate-key",
    epilog="[bold]Examples[/bold]\n\nprivet client rotate-key --policy north/site.toml\n\n"
    "privet client rotate-key --recovery safe/recovery.pem     the ledger key was lost\n\n"
    "privet client rotate-key --to ledger-key-2                a new key in the token",
)
def rotate_key(
    policy: PolicyFile = _SITE,
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
    from privet.client.rotation import rotate_key as rotate

    fingerprint = rotate(policy, passphrase_of(policy), recovery=recovery, to=to)
    then = f'\nNext: write ledger = "{to}" under [keys] in {policy}' if to else ""
    _done({"ledger": fingerprint}, f"The ledger key is now {fingerprint}{then}", as_json)


def _desk(policy: Path) -> Desk:
    from privet.client.desk import Desk

    return Desk.open(policy, passphrase_of(policy))


def _checks(policy: Path) -> list[str]:
    """Return how the last check of each data set stands, a line each."""
    from privet.client.check_record import outcome
    from privet.privacy.policy import Policy

    found = Policy.load(policy)
    return [outcome(found, name, policy.parent) for name in found.data]


def _who(name: str | None) -> str:
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


def _done(value: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(value) if as_json else text)
