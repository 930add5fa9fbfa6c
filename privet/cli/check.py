"""``privet client check``: what a site's records are worth to a plan, for its operator's eyes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli.client import PolicyFile, client
from privet.cli.output.done import AsJson
from privet.common.errors import DataError, DataMissingError, InputError

if TYPE_CHECKING:
    from privet.common.plan import Plan


@client.command(
    epilog="[bold]Examples[/bold]\n\nprivet client check plan.toml --policy north/site.toml"
    "\n\nprivet client check sha256:… --policy north/site.toml     a plan that was offered"
)
def check(
    plan: Annotated[
        str | None,
        typer.Argument(
            help="A plan file, or the digest of an offered plan; default the newest offered one.",
            metavar="PLAN|HASH",
        ),
    ] = None,
    policy: PolicyFile = Path("site.toml"),
    data_set: Annotated[
        str | None, typer.Option("--data-set", help="Name of the data set; default what fits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try the site's own records with a plan, before anything is paid for.

    It reads the records as a run would and says, by file and line, what would be left out and why:
    cells that are no numbers, labels that nobody declared, people without a name; what lies outside
    the plan's ranges; people with more records than count; and whether the model treats real
    records as it treats generated ones. Nothing leaves this machine, and nothing is spent. When it
    was run, on which file and with what outcome is kept in checks/ beside the policy. Exit code 1:
    these records cannot be used; 0: they can, perhaps with warnings.
    """
    from privet.client.data.loader import forget_snapshot
    from privet.client.data.records import open_records
    from privet.client.data.source import require_source
    from privet.client.operator.check import check_records, unreadable
    from privet.client.operator.check_format import compare_format
    from privet.client.operator.check_record import CheckRecord, stamp_of
    from privet.privacy.accounting.noise_calibration import calibrated
    from privet.privacy.policy import Policy

    site = Policy.load(policy)
    chosen = calibrated(_plan(plan, policy.parent))  # its digest is that which is approved
    name = data_set or site.data_set_for(chosen)
    data = site.data_set(name)[1]
    from privet.cli.output.show import stage

    path = site.path_of(data)
    stamp = stamp_of(path) if path is not None else None
    place = policy.parent / "checks"
    with stage("checking the records") as tell:
        try:
            require_source(site, name, chosen)
            # Not where a client that runs has its snapshot.
            records = open_records(site, name, chosen, place)
            found = check_records(
                records,
                chosen,
                site.site,
                max_rows=data.sql.max_rows if data.sql else None,
                min_units=data.min_units,
                tell=tell,
            )
        except (DataError, DataMissingError) as error:
            found = unreadable(str(path or data.sql), chosen, error)
        else:
            if path is not None:
                compare_format(found, path, data.format, f"[data.{name}] of the policy")
        finally:
            forget_snapshot(site, name, place)
    unit = site.populations[data.population].unit
    if chosen.privacy is not None and chosen.privacy.unit != unit:
        found.add(
            "fault",
            "unit",
            f"the plan protects a {chosen.privacy.unit}, population '{data.population}' is counted "
            f"per {unit}",
        )
    elif refused := site.fault(chosen, data_set=name):
        found.add("warning", "policy", f"the policy would refuse this plan: {refused}")
    few = any(finding.kind == "min-units" for finding in found.findings)
    usable = not any(
        finding.level == "fault" and finding.kind != "min-units" for finding in found.findings
    )
    CheckRecord.of(site, name, stamp, ok=usable, units_ok=usable and not few).write(
        policy.parent, name
    )
    if as_json:
        typer.echo(json.dumps({"data_set": name, **found.to_dict()}, ensure_ascii=False))
    else:
        from privet.cli.output import show_check

        show_check.data_check(found, name)
    if not found.ok:
        raise typer.Exit(1)


def _plan(text: str | None, folder: Path) -> Plan:
    """Return the plan that is named: a file, an offered one's digest, or the newest offered."""
    from privet.client.link.offers import Offers
    from privet.common.plan import Plan

    if text is not None and not text.removeprefix("sha256:").isalnum():
        return Plan.load(text)
    offers = Offers(folder)
    if text is None:
        path = offers.newest
        if path is None:
            raise InputError(
                "no plan was offered here yet: name a plan file, as in `privet client check "
                "plan.toml`"
            )
    else:
        from privet.client.operator.decisions import full_digest

        path = offers.path_of(full_digest(text))
        if not path.exists():
            raise InputError(f"{text}: no plan of this digest was offered here; name its file")
    value: Any = json.loads(path.read_text(encoding="utf-8"))
    return Plan.parse(value, where=str(path))
