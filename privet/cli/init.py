"""``privet init``: a plan and real records to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet.cli import app
from privet.cli.output.done import AsJson, done
from privet.common.errors import InputError


@app.command(
    epilog="[bold]Examples[/bold]\n\nprivet init mine && privet simulate mine/plan.toml\n\n"
    "privet init cards --from cards.csv --site-column branch --label card --classes no,yes "
    "--sites North,South\n\n"
    "privet init open --from north.csv --from south.csv --label outcome --public\n\n"
    "privet init texts --like banking77     its settings, for texts of your own"
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Draft a plan from this table; repeat it for a file a site.",
            metavar="FILE",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column that is predicted.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Every label that may occur.", metavar="A,B")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of texts, which is read in place of the others.")
    ] = None,
    site_column: Annotated[
        str | None, typer.Option("--site-column", help="Column that names a record's site.")
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="Names of the sites in that column.", metavar="A,B")
    ] = None,
    person_column: Annotated[
        str | None,
        typer.Option("--person-column", help="Column that names a record's person: the unit."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="About how many records a site trains on.", min=1)
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="Declare the columns by this data dictionary, a CSV file."),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option(help='Sign in numbers: "." or ","; of private records.')
    ] = None,
    na: Annotated[
        list[str] | None, typer.Option(help="Text of missing cells, such as n/a; repeat it.")
    ] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="The records are public: read types, ranges and sizes from them."
        ),
    ] = False,
    epsilon: Annotated[float, typer.Option(help="With --from: ε of the plan.")] = 3.0,
    delta: Annotated[float, typer.Option(help="With --from: δ of the plan.")] = 1e-5,
    like: Annotated[
        str | None,
        typer.Option(
            help="Write a plan with this scenario's settings, for records of your own. "
            "`privet simulate --list` shows the scenarios.",
            metavar="SCENARIO",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --like: another model of the scenario.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder with a plan, three hospitals' records, and a model of one's own.

    DIR is a new or empty folder.

    The records are 569 real diagnoses (scikit-learn's breast cancer set). Put your own
    files in their place and change the plan; every line of it is explained.

    With --from it holds a plan alone, drafted from your table. What is private stays so: of the
    records nothing is read but the names of columns, unless --public says that anybody may see
    them. Columns of a known kind, such as age or blood pressure, get their usual range; a data
    dictionary declares the others, or you do.

    With --like it holds a plan alone: model, training, strategy and privacy are the
    scenario's, columns and files are for you to write.
    """
    if model is not None and like is None:
        raise InputError("--model goes with --like")
    if from_ and like is not None:
        raise InputError("--from goes without --like")
    if not from_:
        said: dict[str, object] = {
            "--label": label, "--classes": classes, "--text": text, "--site-column": site_column,
            "--sites": sites, "--person-column": person_column, "--size": size,
            "--dictionary": dictionary, "--public": public or None, "--decimal": decimal,
            "--na": na,
        }  # fmt: skip
        for option, one in said.items():
            if one is not None:
                raise InputError(f"{option} goes with --from")
        _start(folder, like, model, as_json)
        return
    if public and dictionary is not None:
        raise InputError("--public goes without --dictionary: one of them declares the columns")
    from privet.simulations.draft.write import DraftRequest, summary, write_draft

    request = DraftRequest(
        files=tuple(from_), is_public=public, dictionary=dictionary, label=label, text=text,
        site=site_column, person=person_column, classes=_list(classes), sites=_list(sites),
        size=size, epsilon=epsilon, delta=delta, decimal=decimal, na=tuple(na or ()),
    )  # fmt: skip
    made = write_draft(folder, request)
    plan = folder / "plan.toml"
    lines = [f"Made {plan}. It", *(f"  {line}" for line in summary(made))]
    first = f"fill that in in {plan}, then\n" if made.to_fill else ""
    lines.append(f"Next: {first}privet simulate {plan} --check")
    value = {
        "folder": str(folder), "files": ["plan.toml"], "to_fill": list(made.to_fill),
        "unknown": made.columns.unknown, "left_out": list(made.columns.left_out),
    }  # fmt: skip
    done(value, "\n".join(lines), as_json)


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(one.strip() for one in (text or "").split(",") if one.strip())


def _start(folder: Path, like: str | None, model: str | None, as_json: bool) -> None:
    from privet.simulations.starter import write_like, write_starter

    files = write_starter(folder) if like is None else write_like(folder, like, model)
    text = "\n  ".join((f"Made {folder}:", *files))
    if like is None:
        text += f"\nNext: privet simulate {folder}/plan.toml"
    else:
        text += (
            f"\nNext: put your columns and files into {folder}/plan.toml, then\n"
            f"privet simulate {folder}/plan.toml --check"
        )
    done({"folder": str(folder), "files": files}, text, as_json)
