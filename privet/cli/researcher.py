"""``privet server grant``, ``connect`` and ``fetch``: a researcher on a machine of his own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet.cli.output.done import AsJson, done
from privet.cli.server import Folder, join_path, open_federation, server, write_join


@server.command(epilog="[bold]Example[/bold]\n\nprivet server grant hub Ada --out ada.json")
def grant(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name of a researcher.", metavar="NAME")],
    out: Annotated[Path | None, typer.Option(help="The join file; default NAME.join.json.")] = None,
    hours: Annotated[float, typer.Option(help="How long the join file works.")] = 72.0,
    again: Annotated[
        bool,
        typer.Option("--again", help="Another certificate for one who has one: it replaces it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a researcher submit from his own machine: write a join file that works once.

    Send it by a way that others cannot read. He submits, watches, cancels, resumes and fetches
    his own runs, and nothing else; each site decides by its own policy, as ever.
    `privet server revoke` ends it.
    """
    from privet.server.membership.researchers import Researchers

    path = join_path(name, hours, out)
    join = Researchers(open_federation(folder)).grant(name, hours, again=again)
    about = {"join": str(path), "researcher": join["name"], "expires": join["expires"]}
    then = f"On the researcher's machine: privet server connect {path.name} --dir FOLDER"
    write_join(path, join, about, then, as_json)


@server.command(epilog="[bold]Example[/bold]\n\nprivet server connect ada.json --dir study")
def connect(
    join: Annotated[Path, typer.Argument(help="The join file.", metavar="JOINFILE")],
    folder: Annotated[
        Path, typer.Option("--dir", help="A new folder, or the one whose certificate is replaced.")
    ],
    as_json: AsJson = False,
) -> None:
    """On a researcher's machine: make a key, fetch its certificate.

    The folder takes the place of the federation's in submit, status, cancel, resume and fetch. The
    key never leaves this machine, and is readable by its owner only.
    """
    from privet.common.link.research import connect as come_in

    made = come_in(join, folder)
    value = {"folder": str(folder), "researcher": made.name, "federation": made.federation}
    text = f"Made {folder}: {made.name} at {made.federation}"
    done(value, f"{text}\nNext: privet server submit {folder} PLAN", as_json)


@server.command(
    epilog="[bold]Example[/bold]\n\nprivet server fetch study study-20261122-120000 --out result"
)
def fetch(
    folder: Annotated[Path, typer.Argument(help="The researcher's folder.", metavar="DIR")],
    run: Annotated[str, typer.Argument(help="Name of a run that has ended.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Where its files are written.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a run that has ended: its model, its metrics, and the coordinator's part of a bundle.

    Files that are there, unchanged, are not fetched again; a file that was cut is completed. The
    folder is one for `privet model` and, beside the sites' ledgers, for `privet audit bundle`.
    """
    from privet.common.link.research import Researcher

    files = Researcher.load(folder).fetch(run, out)
    text = f"Wrote {len(files)} files of {run} to {out}"
    done({"run": run, "out": str(out), "files": files}, text, as_json)
