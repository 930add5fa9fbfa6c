"""``privet client plans``, ``approve`` and ``refuse``: what was offered, and decided."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from privet.cli.client import SITE, Person, PolicyFile, catalogue_of, checks, client, desk_of, who
from privet.cli.officer import KeyFile, KeyLabel, KeyModule, KeyToken, signer_for
from privet.cli.output.done import AsJson, done
from privet.common.errors import InputError
from privet.common.printable import printable

Digest = Annotated[str, typer.Argument(help="Digest of a plan, sha256:…", metavar="HASH")]


@client.command(epilog="[bold]Example[/bold]\n\nprivet client plans --policy north/site.toml")
def plans(policy: PolicyFile = SITE, as_json: AsJson = False) -> None:
    """List the plans that were offered, approved or refused: what each costs and changes.

    The ledger is read without its key. "left after" is what the population would have left of its
    cap after the run, of an approved plan after one more run of it. A change is a key that the last
    approved plan of the same name, or else of the same coordinator, has otherwise.
    """
    from privet.cli.output.show import stage

    catalogue = catalogue_of(policy)
    listed = catalogue.plans()
    with stage("pricing the plans"):
        found = [catalogue.priced(one) for one in listed]
    if as_json:
        typer.echo(json.dumps({"plans": [one.to_dict() for one in found]}, ensure_ascii=False))
        return
    from privet.cli.output import show_plans

    show_plans.listed([one.to_dict() for one in found], policy.parent / "operator.log")


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client approve sha256:… --policy north/site.toml"
    '\n\nprivet client approve sha256:… --as "Ada Lovelace" --key ~/.ssh/id_ed25519'
)
def approve(
    plan: Digest,
    policy: PolicyFile = SITE,
    name: Person = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    ahead: Annotated[
        bool, typer.Option("--ahead", help="Also a plan that was not offered here yet.")
    ] = False,
    key: KeyFile = None,
    module: KeyModule = None,
    token: KeyToken = "",
    label: KeyLabel = "",
    as_json: AsJson = False,
) -> None:
    """Approve a plan by its digest, in your name.

    HASH is the digest of an offered plan. It is printed as by `privet client plans`: what it
    costs and what it changes. On a terminal you are asked; elsewhere HASH is the decision. Where
    the policy wants two approvers, a second person must do the same under another name.

    Where the policy has officers, your own key signs: that of your SSH agent, of --key FILE, or
    of a token (--module, --token, --label).
    """
    from privet.client.link.offers import Offers
    from privet.client.operator.approval import approval_fault, approvers
    from privet.client.operator.decisions import full_digest
    from privet.privacy.person_names import tidy

    digest = full_digest(plan)
    person, desk = tidy(who(name)), desk_of(policy)
    known = _show_offer(policy, digest, ahead=ahead, as_json=as_json)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Approve this plan as {person}?", abort=True, err=True)
    failed, most = desk.ledger.attempts(digest)
    by = desk.approve(digest, person, signer_for(key, module, token, label))
    allow = desk.policy.allow
    offered = Offers(policy.parent).has(digest)
    missing = approval_fault(desk.policy, desk.ledger.state, digest)
    note = ""
    if allow.approval == "listed" and missing:
        note = f'without effect: {missing}. Write it there, or set approval = "manual"'
    elif digest in allow.plans and failed < most:
        note = "the policy lists this plan, so nobody has to approve it"
    value = {"plan": digest, "by": list(by), "needed": allow.approvers, "offered": offered}
    if failed:
        value |= {"failed_attempts": failed, "max_attempts": most}
    count = "noted"
    if allow.approval == "manual":
        count = f"{approvers(desk.policy, desk.ledger.state, digest)} of {allow.approvers}"
    text = f"Approved by {', '.join(by)} ({count})."
    if note:
        text += f" But {note}."
    if failed:
        text += f" {failed} of its attempts had failed in a row"
        if failed >= most:
            text += f", which closed it; from now on {most} may fail"
        text += f": {policy.parent / 'operator.log'} says why, and each is charged again."
    if not known:
        text += " No plan with this digest was offered here yet: compare it with the one you got."
    text += "".join(f"\n{said}" for said in checks(policy))
    done({**value, "enough": missing is None, "note": note or None}, text, as_json)


@client.command(
    epilog="[bold]Example[/bold]\n\nprivet client refuse sha256:… --policy north/site.toml"
)
def refuse(
    plan: Digest, policy: PolicyFile = SITE, name: Person = None, as_json: AsJson = False
) -> None:
    """Refuse a plan from now on, also one that was approved; HASH is its digest."""
    from privet.client.operator.decisions import full_digest

    desk_of(policy).refuse(plan, who(name))
    done({"plan": full_digest(plan), "state": "refused"}, "Refused.", as_json)


@client.command(
    "sign-policy",
    epilog="[bold]Example[/bold]\n\n"
    'privet client sign-policy --as "Ada Lovelace" --policy north/site.toml',
)
def sign_policy(
    policy: PolicyFile = SITE,
    name: Person = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    key: KeyFile = None,
    module: KeyModule = None,
    token: KeyToken = "",
    label: KeyLabel = "",
    as_json: AsJson = False,
) -> None:
    """Sign a changed policy, as an officer of the one in force; with the last one it holds.

    Once a policy with officers was in force, a client does not start under another one until as
    many of these officers have signed it as approve a plan. All changes are printed first. What is
    not published (paths, columns, sizes of data) is not signed. Stop the client before, and start
    it afterwards.
    """
    from privet.client.operator.catalogue import policy_changes

    desk, person = desk_of(policy), who(name)
    desk.ledger.log.refresh()
    found = list(policy_changes(desk.ledger.state.policy or {}, desk.policy.public()))
    for one in found:
        typer.echo(printable(f"{one.key}: {one.before} → {one.after}"), err=True)
    if found and not yes and sys.stdin.isatty():
        typer.confirm(f"Sign this policy as {person}?", abort=True, err=True)
    by, needed = desk.sign_policy(person, signer_for(key, module, token, label))
    value: dict[str, Any] = {"policy": desk.policy.digest, "by": by, "needed": needed}
    value |= {"in_force": len(by) >= needed, "changes": [vars(one) for one in found]}
    rest = "" if value["in_force"] else " It comes into force when as many have signed."
    done(value, f"Signed by {', '.join(by)} ({len(by)} of {needed}).{rest}", as_json)


def _show_offer(policy: Path, digest: str, *, ahead: bool, as_json: bool) -> bool:
    """Show what is to be approved; with JSON, on standard error.

    Returns:
        Whether the plan is known here, from its offer or from the ledger.

    Raises:
        InputError: if this site was never offered it, or what is kept cannot be read; with
            ``ahead`` that is printed only.
    """
    from privet.cli.output import show_plans
    from privet.cli.output.show import stage

    catalogue = catalogue_of(policy)
    found = catalogue.plan(digest)
    if found.plan is None and not ahead:
        raise InputError(
            found.why
            or f"no plan {digest} was offered here: `privet client plans` lists what was. Compare "
            "the digest; where it is right and the offer is still to come, say --ahead"
        )
    with stage("pricing the plan"):
        found = catalogue.priced(found)
    if found.plan is not None:
        show_plans.listed([found.to_dict()], policy.parent / "operator.log", stderr=as_json)
    if found.misfit:
        text = f"warning: no order of this plan could be answered now: {found.misfit}"
        typer.echo(printable(text), err=True)
    return found.plan is not None
