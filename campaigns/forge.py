"""Forge evidence with the keys of one party, of two, or of everybody; no lie may pass unnamed.

    python campaigns/forge.py --json             three bundles, every field, every named lie
    python campaigns/forge.py --quick            one bundle, some changes of each field
    python campaigns/forge.py --fields           the table for docs/reference/evidence-format.md

A bundle is taken apart into what it says. One field is changed, at one place or wherever the same
is said; then all that follows is made anew and signed with the keys that a coalition owns: nobody,
one site, the coordinator, two of them, or everybody. What somebody else signed stays as it was.
The verifier gets the true roster. A forgery that it accepts must be in the list of fields that are
somebody's word (words.py), and that somebody must be in the coalition.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from bundles import Made, linked, simulated
from fields import places
from harness import Row, finish, parser, row, tell
from lies import LIES
from tamper import memoise
from trial import OLD_BYTES, Forgery, Trial
from words import GAPS, WORDS, known, table

_FAULTY = ("accepted and not listed", "accepted, a rule or a label is wanted", "errors")
"""The rows that must be 0."""
_SHARE = 12
"""Fields in one job of a process."""

_trials: dict[str, Trial] = {}


_FEW = {
    "up", "down", "turned round", "another digest", "other text", "last dropped", "2099",
    "another digest, everywhere", "other text, everywhere", "up, everywhere",
}  # fmt: skip
"""The changes of a quick campaign."""


def _walk(job: tuple[str, list[str], int, bool]) -> tuple[str, list[Forgery], list[str]]:
    """Try all changes of some fields of a bundle."""
    name, fields, seed, quick = job
    memoise()
    how: dict[str, Any] = {"most": 1}
    if quick:
        how = {"most": 1, "keep": _FEW.__contains__, "coalitions": _some}
    return name, *_all(_trials[name].walk(random.Random(seed), fields=fields, **how))


def _some(coalition: str) -> bool:
    """Who tries in a quick campaign: one in time, and everybody."""
    return coalition in ("site, in time", "coordinator, in time", "everybody")


def _lie(job: tuple[str, str, bool]) -> tuple[str, list[Forgery], list[str]]:
    """Tell one of the named lies, by each coalition."""
    name, lie, quick = job
    memoise()
    return name, *_all(LIES[lie].told(_trials[name], *([_some] if quick else [])))


def _all(forgeries: Iterator[Forgery]) -> tuple[list[Forgery], list[str]]:
    """Collect forgeries; an exception that is no verdict ends them and is counted."""
    found: list[Forgery] = []
    try:
        found += forgeries
    except Exception as error:
        last = f" after {found[-1].field}, {found[-1].change}" if found else ""
        return found, [f"{error!r}{last}"]
    return found, []


def campaign(made: list[Made], folder: Path, quick: bool, seed: int, processes: int) -> list[Row]:
    """Forge all bundles; return the rows."""
    started = time.monotonic()
    walks, lies = [], []
    for number, one in enumerate(made):
        (folder / f"forged-{number}").mkdir()
        trial = _trials[one.name] = one.trial(folder / f"forged-{number}")
        names = list(places(trial.original))
        if quick:
            names = random.Random(seed).sample(names, len(names) // 10)
        walks += [
            (one.name, names[n : n + _SHARE], seed + n, quick) for n in range(0, len(names), _SHARE)
        ]
        lies += [(one.name, lie, quick) for lie in LIES]
    found: list[Forgery] = []
    errors: list[str] = []
    with multiprocessing.get_context("fork").Pool(processes, _own_file) as pool:
        jobs: list[tuple[Callable[[Any], Any], list[Any]]] = [(_lie, lies), (_walk, walks)]
        for function, work in jobs:
            for name, forgeries, raised in pool.imap_unordered(function, work):
                if len(found) // 5_000 != (len(found) + len(forgeries)) // 5_000:
                    tell(f"{len(found):,} forgeries, {time.monotonic() - started:.0f} s ({name})")
                found += forgeries
                errors += raised
    return _rows(made, found, errors, time.monotonic() - started)


def _own_file() -> None:
    """Let each process write a file of its own."""
    for trial in _trials.values():
        trial.path = trial.path.with_suffix(f".{os.getpid()}")


def _rows(made: list[Made], found: list[Forgery], errors: list[str], seconds: float) -> list[Row]:
    accepted = [one for one in found if not one.rule]
    named = [one for one in accepted if known(one, WORDS)]
    gaps = [one for one in accepted if not known(one, WORDS) and known(one, GAPS)]
    unnamed = [one for one in accepted if not known(one, WORDS) and not known(one, GAPS)]
    for one in unnamed[:40]:
        tell(f"not listed: {one.field}: {one.change}, by {one.coalition} (owner: {one.owner})")
    for text in errors[:20]:
        tell(text)
    rules = Counter(one.rule for one in found if one.rule)
    return [
        row("forgeries", len(found), "bundles", None, None, bundles=[one.name for one in made]),
        row("fields", len({one.field for one in found} - LIES.keys()), "fields", None, None),
        row("named lies", len({one.field for one in found} & LIES.keys()), "lies", None, None),
        row("refused by a rule", len(found) - len(accepted) - rules[OLD_BYTES], "bundles",
            None, None, rules=dict(rules)),
        row("not made: a signature of others", rules[OLD_BYTES], "bundles", None, None),
        row("accepted, listed as somebody's word", len(named), "bundles", None, None,
            fields=_by_field(named)),
        row("accepted, a rule or a label is wanted", len(gaps), "bundles", "goal", 0,
            fields=_by_field(gaps)),
        row("accepted and not listed", len(unnamed), "bundles", "goal", 0,
            fields=_by_field(unnamed)),
        row("errors", len(errors), "exceptions", "goal", 0),
        row("time", round(seconds), "s", None, None),
    ]  # fmt: skip


def _by_field(forgeries: list[Forgery]) -> dict[str, dict[str, list[str]]]:
    """Return by field and coalition which changes were made."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in forgeries:
        changes = found.setdefault(one.field, {}).setdefault(one.coalition, [])
        if one.change not in changes:
            changes.append(one.change)
    return found


def main() -> None:
    """Run the campaign."""
    options = parser(__doc__)
    options.add_argument("--fields", action="store_true", help="print the table of the format page")
    options.add_argument("--seed", type=int, default=0, help="chooses among places of a field")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--only", choices=("public", "gate", "link"), help="one bundle")
    arguments = options.parse_args()
    if arguments.fields:
        print(table())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = (arguments.only,) if arguments.only else ("gate", "public", "link")
        made = []
        for source in wanted[:1] if arguments.quick else wanted:
            (folder / source).mkdir()
            one = (
                linked(folder / source) if source == "link" else simulated(folder / source, source)
            )
            made.append(one)
        rows = campaign(made, folder, arguments.quick, arguments.seed, arguments.processes)
    finish(rows, arguments.json, lambda r: f"{r['name']:40} {r['value']:>9g} {r['unit']}")
    if any(r["value"] for r in rows if r["name"] in _FAULTY):
        sys.exit(1)


if __name__ == "__main__":
    main()
