"""What a site's operator sees: what a plan would cost, and how the site stands."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from privet.cli.output.console import OUT, or_dash, say
from privet.cli.output.show import loss_of
from privet.common.printable import counted, printable_all
from privet.privacy.accounting.plan_events import trainings
from privet.privacy.accounting.units import rounded_down

if TYPE_CHECKING:
    from privet.client.operator.forecast import Forecast

_ANSWERS = {
    False: "The site would refuse this plan.",
    True: "The site would let this plan run to its end, once it is approved.",
}
"""By whether nothing but an approval is missing."""


def budget(forecast: Forecast) -> None:
    """Print what a plan would cost."""
    plan = forecast.plan
    say(
        f"Plan {plan.name} at site {forecast.policy.site}, on data set {forecast.data_set} of "
        f"population {forecast.population}"
    )
    if plan.privacy is not None:
        say(_noise(forecast))
    say(f"Digest {plan.digest} (of the plan with its noise: this is what is approved)")
    OUT.print(_costs(forecast))
    if forecast.runs_left is not None:
        count = "at least 1000" if forecast.many else forecast.runs_left
        say(f"Such runs that still fit, this one included: {count}")
    for note in forecast.notes:
        say(f"note: {note}")
    if forecast.faults:
        OUT.print(_ANSWERS[forecast.only_undecided], style="bold")
        return
    OUT.print("The site would let this plan run to its end.", style="bold")
    say(_rule(forecast))


def _noise(forecast: Forecast) -> str:
    """Return by how much noise a private plan is protected, and for which ε."""
    plan, privacy = forecast.plan, forecast.plan.privacy
    assert privacy is not None
    terms = f"ε {privacy.epsilon:g} at δ {privacy.delta:g}"
    if not plan.trains:
        return (
            f"Nothing is trained: one table with noise multiplier "
            f"{plan.metrics.noise_multiplier:g} on its cells; the plan allows itself {terms}"
        )
    how = "calibrated to" if forecast.calibrated else "set by the plan, which allows itself"
    return f"Noise multiplier {privacy.noise_multiplier:g}, {how} {terms}"


def _costs(forecast: Forecast) -> Table:
    """Return the table of what a plan costs, and of what is spent and left at the site."""
    title = f"Budget · {forecast.total.terms}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    table.add_column("ε", justify="right")
    table.add_row("one round", forecast.per_round.figure)
    whole = "the whole run"
    if forecast.plan.trains:
        whole = f"all {forecast.plan.last_round} rounds"
        if forecast.plan.schedule is not None:
            most = trainings(forecast.plan)
            whole = f"at most {most} of {forecast.plan.last_round} rounds at a site"
    table.add_row(whole, forecast.total.figure)
    if forecast.spent is None:
        return table
    cap = forecast.cap.epsilon
    table.add_section()
    table.add_row("lifetime cap", f"{cap:g}" if cap else "none")
    table.add_row("spent so far", forecast.spent.figure)
    if forecast.left_after is not None:
        is_covered = forecast.decision is not None and forecast.decision.allowed
        left = rounded_down(forecast.left_after) if is_covered else "not covered"
        table.add_row("left after this run", left)
    return table


def _rule(forecast: Forecast) -> str:
    """Return by which rule a plan's charge is compared with the cap."""
    decision = forecast.decision
    if decision is None:
        return ""
    against = decision.against(forecast.cap)
    return {
        "one run": "Nothing else was charged, so the plan counts as a whole, composed tightly.",
        "filter": "Other runs were charged before, so a Rényi filter decides; it counts higher: "
        + against,
        "gaussian filter": "Other runs were charged before; all of it is plain Gaussian noise, so "
        f"a Gaussian filter decides, which loses nothing: {against}",
        "no cap": "This population has no cap.",
    }[decision.rule]


def site_status(value: dict[str, Any], log: Path) -> None:
    """Print a site's ledger: what was spent and is left, by population.

    Args:
        value: as ``privet client status --json`` has it.
        log: the operator's.
    """
    value = printable_all(value)
    say(f"{value['site']}: {value['state']} · {_witnessed(value)} · {_key(value)}")
    OUT.print(_populations(value["populations"]))
    for note in value["notes"]:
        say(f"note: {note}")
    plans(value["plans"], log)
    for one in value["coordinators"]:
        _coordinator(one)
    for plan in value["waiting"]:
        names = ", ".join(filter(None, (plan["coordinator"], *plan["also"]))) or "not known"
        text = f"waits for approval: {plan['plan']}  {plan['name']}, offered by {names}"
        text += " (`privet client plans`)"
        if plan["why"]:
            text += f"; {plan['why']}"
        say(text)
    asked = [(f"{one['coordinator']}: ", one) for one in value["coordinators"]]
    if len(asked) <= 1:
        asked = [("", value)]
    for whose, one in asked:
        for line in last_refusals(one, log):
            say(f"{whose}{line}")
    for slot in value["open"]:
        say(f"reserved and not finished: {slot} (it counts)")


def _populations(found: list[dict[str, Any]]) -> Table:
    """Return the table of populations, with what each has spent and has left."""
    table = Table("population", "ε spent", "ε cap", "cap − spent", "δ, unit, relation", "runs")
    for item in found:
        loss, name = loss_of(item), item["population"]
        if item["closed"]:
            name += " (closed)"
        table.add_row(
            escape(name),
            loss.figure,
            or_dash(item["cap"], "{:g}".format),
            or_dash(item["cap_minus_spent"], rounded_down),
            loss.terms,
            str(item["runs"]),
        )
    return table


def _coordinator(value: dict[str, Any]) -> None:
    """Print one coordinator of a site, and what changed of it."""
    text = f"coordinator {value['coordinator']} at {value['address']}"
    if not value["may_ask"]:
        text += f": may not ask; {value['orders_key']} is not under [allow] coordinators"
    say(text)
    for note in _changes_of(value):
        say(f"note: {note}")


def plans(found: list[dict[str, Any]], log: Path) -> None:
    """Print the plans that were decided, by whom, and whether failures closed them.

    Args:
        found: as ``privet client status --json`` lists them.
        log: the operator's.
    """
    for plan in printable_all(found):
        line = f"{plan['state']:9} {plan['plan']}  {', '.join(plan['by'])}"
        say(line)
        if failed := failures(plan, log):
            say(f"          {failed}")


def last_refusals(value: dict[str, Any], log: Path) -> list[str]:
    """Return what the site did not do last, a line each.

    Args:
        value: as ``privet client status --json`` has it.
        log: the operator's, which says why.
    """
    found, offer, order = [], value["offer"], value["last_order"]
    if offer is not None:
        plan, status = offer.get("plan") or "a plan that cannot be read", offer.get("status")
        if status != "waits-for-approval":
            found.append(f"not ready for {plan}: '{status}' since {_time(offer)}; {log} says why")
    if order is not None:
        about = {name: order.get(name) for name in ("status", "run", "purpose", "round", "attempt")}
        found.append(
            "last order without a release: '{status}', run {run}, {purpose}, round {round}, "
            "attempt {attempt}, ".format(**about)
            + f"at {_time(order)}; {log} says why"
        )
    if "refused-rollback" in [one.get("status") for one in (offer, order) if one is not None]:
        found.append(
            "This ledger is older than what others saw of it. Nothing is spent. Decide nothing "
            "here before the newer one is back: `privet client recover`, or a newer backup"
        )
    return found


def _changes_of(value: dict[str, Any]) -> list[str]:
    """Return where the coordinator is, if it moved, and which order keys follow which."""
    said = []
    if len(found := value.get("addresses", ())) > 1:
        said.append(f"the coordinator is dialed at {found[0]}, then at {', '.join(found[1:])}")
    for one in value.get("order_keys", ()):
        then = "it may not ask here: write it under `coordinators` if you trust it"
        if one["may_ask"]:
            then = "it may ask, because the policy lets the old one ask"
        said.append(f"order key {one['new']} follows {one['old']}, which signed that; {then}")
    return said


def _time(value: dict[str, Any]) -> str:
    when = value.get("time")
    if not isinstance(when, int | float):
        return "?"
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M UTC")


def failures(plan: dict[str, Any], log: Path) -> str:
    """Return what a decided plan's failures mean, in one line, or ''.

    Args:
        plan: as ``privet client plans --json`` lists it.
        log: the operator's, which says what failed.
    """
    if not (failed := plan.get("failed_attempts", 0)):
        return ""
    most = plan["max_attempts"]
    times = counted(failed, "attempt failed", "attempts failed in a row")
    if not plan["closed"]:
        return f"{times}, of {most} that may; each was charged. See {log}"
    return (
        f"closed: {times}, each was charged, and further orders are refused at no cost. "
        f"See {log}; correct the cause, then `privet client approve` opens the plan again"
    )


def _key(value: dict[str, Any]) -> str:
    """Return the ledger key in force, and by which first one others know the ledger."""
    if not (earlier := value["earlier_keys"]):
        return str(value["key"])
    count = "one earlier key" if len(earlier) == 1 else f"{len(earlier)} earlier keys"
    return f"{value['key']} (in force, after {count}; the ledger began with {value['fingerprint']})"


def _witnessed(value: dict[str, Any]) -> str:
    entries, seen = value["entries"], value["witnessed"]
    count = counted(entries, "entry", "entries")
    if seen == 0:
        return f"{count}, not witnessed yet"
    if seen == entries:
        return f"{count}, all witnessed"
    return f"{count}, the first {seen} witnessed"
