"""What a new ledger states about others: asked, where somebody can be asked."""

from __future__ import annotations

import sys

import typer


def asked_ledgers() -> tuple[str, ...] | None:
    """Ask whether another ledger keeps a budget of the same people; None without a terminal."""
    from privet.client.operator.decisions import stated_ledgers

    if not sys.stdin.isatty():
        typer.echo(
            "note: nothing is stated about other ledgers of these people (--only-ledger, "
            "--other-ledger); the report will say so",
            err=True,
        )
        return None
    if not typer.confirm("Does another ledger keep a budget of the same people?", err=True):
        return ()
    said = typer.prompt("Fingerprint of its first key (`privet client status` there)", err=True)
    return stated_ledgers([said])
