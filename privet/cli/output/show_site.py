"""What a site's operator sees: what a plan would cost, and how the site stands."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from privet.cli.output.show import loss_of
from privet.common.printable import printable_all
from privet.privacy.accounting.units import rounded_down

if TYPE_CHECKING:
    from privet.client.operator.forecast import Forecast

_out = Console(width=None if sys.stdout.isatty() else 100)
_ANSWERS = {
    False: "The site would refuse this plan.",
    True: "The site would let this plan run to its end, once it is approved.",
}
"""By whether nothing but an approval is missing."""


def budget(forecast: Forecast) -> None:
    """Print what a plan would cost."""
    plan, cap, decision = forecast.plan, forecast.cap, forecast.decision
    _out.print(
        f"Plan {plan.name} at site {forecast.policy.site}, on data set {forecast.data_set} of "
        f"population {forecast.population}",
        highlight=False,
        soft_wrap=True,
    )
    if plan.privacy is not None and not plan.trains:
        _out.print(
            f"Nothing is trained: one table with noise multiplier "
            f"{plan.metrics.noise_multiplier:g} on its cells; the plan allows itself ε "
            f"{plan.privacy.epsilon:g} at δ {plan.privacy.delta:g}",
            highlight=False,
            soft_wrap=True,
        )
    elif plan.privacy is not None:
        how = "calibrated to" if forecast.calibrated else "set by the plan, which allows itself"
        _out.print(
            f"Noise multiplier {plan.privacy.noise_multiplier:g}, {how} ε {plan.privacy.epsilon:g} "
            f"at δ {plan.privacy.delta:g}",
            highlight=False,
            soft_wrap=True,
        )
    title = f"Budget · {forecast.total.terms}"
    _out.print(
        f"Digest {plan.digest} (of the plan with its noise: this is what is approved)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    table.add_column("ε", justify="right")
    table.add_row("one round", forecast.per_round.figure)
    table.add_row(
        f"all {plan.last_round} rounds" if plan.trains else "the whole run", forecast.total.figure
    )
    if forecast.spent is not None:
        table.add_section()
        table.add_row("life-time cap", f"{cap.epsilon:g}" if cap.epsilon else "none")
        table.add_row("spent so far", forecast.spent.figure)
        if forecast.left_after is not None:
            covered = decision is not None and decision.allowed
            table.add_row(
                "left after this run",
                rounded_down(forecast.left_after) if covered else "not covered",
            )
    _out.print(table)
    if forecast.runs_left is not None:
        least = "at least " if forecast.many else ""
        count = 1000 if forecast.many else forecast.runs_left
        _out.print(f"Such runs that still fit, this one included: {least}{count}", highlight=False)
    for note in forecast.notes:
        _out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if forecast.faults:
        _out.print(_ANSWERS[forecast.only_undecided], style="bold")
        return
    rule = {
        "one run": "Nothing else was charged, so the plan counts as a whole, composed tightly.",
        "filter": "Other runs were charged before, so a Rényi filter decides; it counts higher: "
        + (decision.against(cap) if decision else ""),
        "gaussian filter": "Other runs were charged before; all of it is plain Gaussian noise, so "
        "a Gaussian filter decides, which loses nothing: "
        + (decision.against(cap) if decision else ""),
        "no cap": "This population has no cap.",
    }
    _out.print("The site would let this plan run to its end.", style="bold")
    _out.print(rule[decision.rule] if decision else "", highlight=False, soft_wrap=True)


def site_status(value: dict[str, Any], log: Path) -> None:
    """Print a site's ledger: what was spent and is left, by population.

    Args:
        value: as ``privet client status --json`` has it.
        log: the operator's.
    """
    value = printable_all(value)
    _out.print(
        f"{value['site']}: {value['state']} · {_witnessed(value)} · {_key(value)}",
        soft_wrap=True,
        highlight=False,
    )
    table = Table()
    for name in ("population", "ε spent", "ε cap", "cap − spent", "δ, unit, relation", "runs"):
        table.add_column(name)
    for item in value["populations"]:
        loss = loss_of(item)
        cap, left = ("–" if item[key] is None else item[key] for key in ("cap", "cap_minus_spent"))
        name = item["population"] + (" (closed)" if item["closed"] else "")
        table.add_row(
            name,
            loss.figure,
            cap if isinstance(cap, str) else f"{cap:g}",
            left if isinstance(left, str) else rounded_down(left),
            loss.terms,
            str(item["runs"]),
        )
    _out.print(table)
    for note in value["notes"]:
        _out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    plans(value["plans"], log)
    for one in value["coordinators"]:
        text = f"coordinator {one['coordinator']} at {one['address']}"
        if not one["may_ask"]:
            text += f": may not ask; {one['orders_key']} is not under [allow] coordinators"
        for line in (text, *(f"note: {said}" for said in _coordinator(one))):
            _out.print(line, markup=False, highlight=False, soft_wrap=True)
    for plan in value["waiting"]:
        names = ", ".join(filter(None, (plan["coordinator"], *plan["also"]))) or "not known"
        text = f"waits for approval: {plan['plan']}  {plan['name']}, offered by {names}"
        text += " (`privet client plans`)" + (f"; {plan['why']}" if plan["why"] else "")
        _out.print(text, markup=False, highlight=False, soft_wrap=True)
    several = len(value["coordinators"]) > 1
    for one in value["coordinators"] if several else [value]:
        whose = f"{one['coordinator']}: " if several else ""
        for said in last_refusals(one, log):
            _out.print(f"{whose}{said}", markup=False, highlight=False, soft_wrap=True)
    for slot in value["open"]:
        _out.print(f"reserved and not finished: {slot} (it counts)", soft_wrap=True, markup=False)


def plans(found: list[dict[str, Any]], log: Path) -> None:
    """Print the plans that were decided, by whom, and whether failures closed them.

    Args:
        found: as ``privet client status --json`` lists them.
        log: the operator's.
    """
    for plan in printable_all(found):
        line = f"{plan['state']:9} {plan['plan']}  {', '.join(plan['by'])}"
        _out.print(line, markup=False, highlight=False, soft_wrap=True)
        if said := failures(plan, log):
            _out.print(f"          {said}", markup=False, highlight=False, soft_wrap=True)


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


def _coordinator(value: dict[str, Any]) -> list[str]:
    """Return where the coordinator is, if it moved, and which order keys follow which."""
    said = []
    if len(found := value.get("addresses", ())) > 1:
        said.append(f"the coordinator is dialed at {found[0]}, then at {', '.join(found[1:])}")
    for one in value.get("order_keys", ()):
        then = (
            "it may ask, because the policy lets the old one ask"
            if one["may_ask"]
            else "it may not ask here: write it under `coordinators` if you trust it"
        )
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
    times = "attempt failed" if failed == 1 else "attempts failed in a row"
    if not plan["closed"]:
        return f"{failed} {times}, of {most} that may; each was charged. See {log}"
    return (
        f"closed: {failed} {times}, each was charged, and further orders are refused at no cost. "
        f"See {log}; mend it, then `privet client approve` opens the plan again"
    )


def _key(value: dict[str, Any]) -> str:
    """Return the ledger key in force, and by which first one others know the ledger."""
    if not (earlier := value["earlier_keys"]):
        return str(value["key"])
    count = "one earlier key" if len(earlier) == 1 else f"{len(earlier)} earlier keys"
    return f"{value['key']} (in force, after {count}; the ledger began with {value['fingerprint']})"


def _witnessed(value: dict[str, Any]) -> str:
    entries, seen = value["entries"], value["witnessed"]
    count = f"{entries} {'entry' if entries == 1 else 'entries'}"
    if seen == 0:
        return f"{count}, not witnessed yet"
    return f"{count}, all witnessed" if seen == entries else f"{count}, the first {seen} witnessed"
