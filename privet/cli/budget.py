"""``privet budget``: what a plan will cost a site, before anything is spent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privet.cli import app, plan_of_json
from privet.cli.output.done import AsJson
from privet.common.errors import InputError

if TYPE_CHECKING:
    from privet.client.operator.forecast import Place
    from privet.common.plan import Plan

_EPILOG = """[bold]Examples[/bold]

privet budget plan.toml site.toml

privet budget lending site.toml --json > cost.json

privet budget sha256:… north/site.toml     a plan that was offered
"""


@app.command(epilog=_EPILOG)
def budget(
    plan: Annotated[
        str,
        typer.Argument(
            help="A scenario, a plan file, an offer, or the digest of an offered plan.",
            metavar="PLAN|HASH",
        ),
    ],
    policy: Annotated[Path, typer.Argument(help="The site's policy file.", metavar="POLICY")],
    data_set: Annotated[
        str | None, typer.Option("--data-set", help="Which one, if the policy names several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan will cost and what will be left, before anything is spent.

    PLAN is the name of a scenario, a plan file (*.toml) or an offer (offers/*.json), HASH the
    digest of a plan that was offered to the site. POLICY is the site's own file; it names the
    ledger, which is read without its key. Nothing is written and no record is read. The exit code
    is 3 if the site would not let the plan run to its end now: the policy or the budget forbids it,
    the site is paused, or nobody approved the plan yet.
    The digest that it prints is the one that `privet client approve` takes.
    """
    from privet.cli.output import show, show_site
    from privet.client.operator.forecast import Forecast, Place
    from privet.common.errors import RefusedError
    from privet.privacy.accounting import noise_calibration
    from privet.privacy.policy import Policy
    from privet.simulations.planning import attested, find_plan

    site = Policy.load(policy)
    place = Place(policy, site)
    chosen = _offered(plan, place)
    if chosen is None:
        chosen, _ = find_plan(plan)
        chosen = attested(chosen)  # as `privet simulate` runs it
    name, _ = site.data_set(data_set or site.data_set_for(chosen))
    with show.stage("budget") as tell:
        if chosen.trains and chosen.privacy and chosen.privacy.noise_multiplier is None:
            tell(f"calibrating the noise to ε {chosen.privacy.epsilon:g}, the plan's own …")
        fitted = noise_calibration.calibrated(chosen)
        forecast = Forecast(chosen, fitted, place, name)
    if as_json:
        typer.echo(json.dumps(forecast.to_dict(), ensure_ascii=False))
    else:
        show_site.budget(forecast)
    if forecast.faults:
        raise RefusedError("\n".join(forecast.faults))


def _offered(text: str, place: Place) -> Plan | None:
    """Return the plan of an offer, by its file or its digest; None where ``text`` names neither.

    Raises:
        InputError: if no plan of this digest was offered here, or it cannot be read.
    """
    from privet.client.link.offers import Offers
    from privet.client.operator.decisions import full_digest

    if text.endswith(".json"):
        return plan_of_json(text)
    bare = text.removeprefix("sha256:")
    if bare == text and not re.fullmatch(r"[0-9a-f]{64}", text):
        return None
    digest = full_digest(text)
    if found := Offers(place.file.parent).plan(digest) or place.kept(digest):
        return found
    raise InputError(
        f"{digest}: no plan of this digest was offered here; `privet client plans` lists what was"
    )
