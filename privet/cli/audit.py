"""``privet audit``: gather the evidence, verify it offline, report it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from privet.cli import app
from privet.cli.output.done import AsJson
from privet.common.printable import counted

audit = typer.Typer(
    no_args_is_help=True,
    help="Verify what sites spent, from files alone: no network, no trust in who wrote them.",
    epilog="[bold]Example[/bold]\n\n"
    "privet audit bundle runs/lending-1 --out lending.bundle\n\n"
    "privet audit verify lending.bundle --roster fingerprints.json\n\n"
    "privet audit report lending.bundle --roster fingerprints.json --out report",
)
app.add_typer(audit, name="audit")

Roster = Annotated[
    Path | None,
    typer.Option(
        help="Roster of keys or fingerprints that reached you another way than the bundle.",
        metavar="FILE",
    ),
]
Bundle = Annotated[Path, typer.Argument(help="A bundle.", metavar="BUNDLE")]
Witnessed = Annotated[
    bool | None,
    typer.Option(
        "--require-witnessed/--no-require-witnessed",
        help="A charge that no quorum of others witnessed is a fault. Default: in the ledgers of "
        "real sites it is one, in a simulation's it is none.",
        show_default=False,
    ),
]
Code = Annotated[
    list[str] | None,
    typer.Option(
        help="Digest of the code that every run must name; again for another. A release "
        "publishes it, `privet --version --json` prints it.",
        metavar="DIGEST",
    ),
]
FAULTS = 4
"""Exit code when verification found faults."""


@audit.command(
    epilog="[bold]Example[/bold]\n\nprivet audit bundle runs/lending-1 --out lending.bundle"
)
def bundle(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, folders of sites' ledgers, a coordinator's folder.",
            metavar="SOURCE…",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Write it even where a site's ledger is missing; it will not verify."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Gather ledgers, journal, plans, orders and proofs into one file for an auditor.

    SOURCE is a run folder, a folder that holds ledger.db (a site) or journal.db (a
    coordinator), or a folder of such folders.
    """
    from privet.privacy.audit.bundle import write_bundle

    made = write_bundle(sources, out, partial=partial)
    if as_json:
        value = {"bundle": str(made.path), "sites": made.sites, "entries": made.entries}
        typer.echo(json.dumps({**value, "whole": made.whole, "notes": list(made.notes)}))
        return
    sites, entries = counted(made.sites, "site"), counted(made.entries, "entry", "entries")
    typer.echo(f"{made.path}: {sites}, {entries}")
    for note in made.notes:
        typer.echo(f"note: {note}")
    if not made.whole:
        typer.echo("This bundle will not verify.")
    typer.echo(f"Next: privet audit verify {made.path} --roster ROSTER")


@audit.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet audit verify lending.bundle --roster fingerprints.json\n\n"
    "privet audit verify lending.bundle --code sha256:0123…\n\n"
    "privet audit verify lending.bundle --json     exit code 0: no fault; 4: faults"
)
def verify(
    bundle: Bundle,
    roster: Roster = None,
    require_witnessed: Witnessed = None,
    code: Code = None,
    as_json: AsJson = False,
) -> None:
    """Check everything that a bundle says, from the file alone.

    BUNDLE is the file that `privet audit bundle` wrote. Without a roster that reached you
    another way, the bundle's author chose whose signatures count: the answer then says
    that the roster is not pinned. Which code ran is the sites' word; --code holds them to it.
    """
    from privet.cli.output import answer, show
    from privet.privacy.audit.verify import verify as check

    with show.counting("verifying") as progress:
        verdict = check(
            bundle, roster, code=code or (), require_witnessed=require_witnessed, brief=True,
            progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(answer.as_json(verdict)))
    else:
        answer.show(verdict)
    if not verdict.ok:
        raise typer.Exit(FAULTS)


@audit.command(
    epilog="[bold]Example[/bold]\n\n"
    "privet audit report lending.bundle --roster fingerprints.json --out report"
)
def report(
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Folder for the report; new or empty.")],
    roster: Roster = None,
    require_witnessed: Witnessed = None,
    code: Code = None,
    interval: Annotated[
        bool,
        typer.Option(
            "--interval", help="Also ask prv-accountant, an independent one (privet\\[interval])."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a bundle and write the officer's report: one HTML file, JSON, registry form.

    BUNDLE is the file that `privet audit bundle` wrote. A report on a bundle with faults says
    so first, and the exit code is 4.
    """
    from privet.cli.output import answer, show
    from privet.privacy.accounting.interval import check_installed
    from privet.privacy.audit.report import check_folder, intervals, write_report
    from privet.privacy.audit.verify import verify as check

    check_folder(out)
    if interval:
        check_installed()
    with show.counting("verifying") as progress:
        verdict = check(
            bundle, roster, code=code or (), require_witnessed=require_witnessed, keep=True,
            progress=progress,
        )  # fmt: skip
    asked = intervals(verdict) if interval else None
    files = write_report(verdict, out, interval=asked, bundle=bundle)
    if as_json:
        typer.echo(json.dumps({"ok": verdict.ok, "files": [str(path) for path in files]}))
    else:
        answer.show(verdict)
        typer.echo(f"Open {files[0]}")
    if not verdict.ok:
        raise typer.Exit(FAULTS)
