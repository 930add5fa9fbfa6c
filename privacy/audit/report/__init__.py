"""The report for a data-protection officer: what a verified bundle shows, in plain words.

::

    Verdict ── reading ── judging ── view ── page.html.j2 ── report.html
     (+Record)  Case      claims,     │ sentences            report.json
                          witnesses   └────── registry ───── registry.json

The report claims nothing that the verifier did not answer. Where it found faults, the
report says so first and calls the numbers claimed. It never says that something is lawful.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from privet import __version__
from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.printable import printable, printable_all
from privet.privacy.audit.report import context, input, registry
from privet.privacy.audit.report.claims import Intervals, intervals
from privet.privacy.audit.verify import AuditedRecord, Verdict

__all__ = ["Intervals", "check_folder", "intervals", "write_report"]

_HERE = Path(__file__).parent


def write_report(
    verdict: Verdict,
    out_dir: Path,
    *,
    interval: Intervals | None = None,
    bundle: Path | None = None,
) -> list[Path]:
    """Write ``report.html``, ``report.json`` and ``registry.json``; return their paths.

    The same verdict gives the same bytes: the report is dated by the newest entry.

    Args:
        verdict: of ``verify(bundle, roster, keep=True)``.
        out_dir: folder for the files, new or empty.
        interval: of an independent accountant, by (site, population): see :func:`intervals`.
        bundle: the file that was verified; its name and digest are printed.

    Raises:
        InputError: if the verdict has no record, or ``out_dir`` is not empty.
    """
    if verdict.record is None or verdict.record.brief:
        raise InputError("the verdict has no whole record: verify with keep=True")
    check_folder(out_dir)
    verdict = printable_all(verdict)
    case = input.read(verdict.record or AuditedRecord())
    content = context.view(case, verdict, interval or {})
    made: dict[str, Any] = {
        "software": f"privet {__version__}",
        "date": case.period[1],
        "bundle": None,
        "bundle_sha256": None,
    }
    if bundle:
        made |= {"bundle": printable(bundle.name), "bundle_sha256": _sha256(bundle)}
    files = {
        "report.html": _page(content, made),
        "report.json": _json(context.as_json(case, verdict, content, made)),
        "registry.json": _json(
            registry.record(case, verdict, content["in_words"], content["rows"])
        ),
    }
    for name, text in files.items():
        write_atomic(out_dir / name, text.encode())
    return [out_dir / name for name in files]


def check_folder(out_dir: Path) -> None:
    """Refuse a folder that a report cannot be written to.

    Raises:
        InputError: if it is a file, or not empty.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir} is a file; name a new or empty folder")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise InputError(f"{out_dir} is not empty; a report is never overwritten")


def _page(content: dict[str, Any], made: dict[str, Any]) -> str:
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    return _template().render(**content, made=made, style=style)


@cache
def _template() -> jinja2.Template:
    """Return the page's template; a process that writes several reports compiles it once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        extensions=["jinja2.ext.do"],
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
