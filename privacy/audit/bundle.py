"""Gather what an auditor is given: one file with every ledger, journal, plan and proof.

The form is that of docs/reference/evidence-format.md. Nothing is computed here that the
verifier would believe: leaves, checkpoints and orders are copied as they were signed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from privet.common.canonical import canonical_json, digest_json, fsync_folder
from privet.common.errors import InputError, LedgerError, reason_of
from privet.privacy.evidence.copies.journal_copy import receipts_of
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Checkpoint
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import ASIDE, Store

LEDGER_FILE, JOURNAL_FILE = "ledger.db", "journal.db"
_DEPTH = 3


@dataclass(frozen=True)
class WrittenBundle:
    """What was written: the file, how many sites and entries, and what is missing.

    ``whole`` is False where a ledger is missing: such a bundle does not verify.
    """

    path: Path
    sites: int
    entries: int
    notes: tuple[str, ...]
    whole: bool = True


@dataclass(frozen=True)
class _Source:
    """One log to be bundled."""

    store: Store
    name: str
    origin: str


def write_bundle(sources: Iterable[Path], out: Path, *, partial: bool = False) -> WrittenBundle:
    """Write the bundle of ``sources`` to ``out``, whole or not at all.

    Args:
        sources: run folders, folders of sites, or a coordinator's.
        out: the file; it must not exist.
        partial: write it even if a ledger of the roster is missing; it will not verify then.

    Raises:
        InputError: if a source holds no log, a ledger is missing, or ``out`` exists.
        LedgerError: if a log cannot be read.
    """
    if out.exists():
        raise InputError(f"{out} exists; a bundle is never overwritten")
    gathered = _Gathered(list(sources))
    if gathered.missing and not partial:
        raise InputError(
            f"{_ledgers(gathered.missing)} not in the sources, and a bundle without "
            f"{'it' if len(gathered.missing) == 1 else 'them'} will not verify; name the folders "
            "too, or ask for it as it is with --partial"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        entries = _write_file(gathered, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {reason_of(error)}") from error
    fsync_folder(out.parent)
    return WrittenBundle(
        out, len(gathered.sites), entries, tuple(gathered.notes), whole=not gathered.missing
    )


def _write_file(gathered: _Gathered, out: Path) -> int:
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            entries = _write(gathered, stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(out)
    finally:
        Path(name).unlink(missing_ok=True)
    return entries


def _ledgers(names: list[str]) -> str:
    """Return whose ledgers are meant, up to the verb."""
    if len(names) == 1:
        return f"the ledger of {names[0]} is"
    return f"the ledgers of {', '.join(names[:-1])} and {names[-1]} are"


class _Gathered:
    """The logs and papers of all sources."""

    def __init__(self, folders: list[Path]) -> None:
        self.notes: list[str] = []
        self.sites: dict[str, _Source] = {}
        self.journal: _Source | None = None
        # A log that two sources share, such as a run and its sites, counts once.
        for path in dict.fromkeys(path.resolve() for folder in folders for path in _logs(folder)):
            self._add(path)
        self.roster = self._find_roster(folders)
        self.plans = self._find_plans(folders)
        self.missing = [site.name for site in self.roster.sites if site.name not in self.sites]
        if self.missing:
            self.notes.append(f"{_ledgers(self.missing)} not in the sources")
        named = {site.name for site in self.roster.sites}
        for name in sorted(set(self.sites) - named):
            self.notes.append(f"site '{name}' is not in the roster: its ledger is left out")
            del self.sites[name]
        if self.journal is None:
            self.notes.append("no coordinator's journal is in the sources")

    def _add(self, path: Path) -> None:
        store = Store(path)
        leaves = store.leaves()
        first = next(leaves, None)
        if first is None:
            raise LedgerError(f"{path}: the log is empty")
        value = Entry.read(first).predicate
        source = _Source(store, str(value.get("site", value.get("coordinator"))), value["log"])
        if path.name == JOURNAL_FILE:
            if self.journal is not None:
                raise InputError(f"{path}: a second journal; make one bundle for each coordinator")
            self.journal = source
        elif source.name in self.sites:
            raise InputError(f"{path}: a second ledger of site '{source.name}'")
        else:
            self.sites[source.name] = source

    def _find_roster(self, folders: list[Path]) -> Roster:
        for folder in folders:
            for place in (folder, folder.parent):
                if (place / "roster.json").exists():
                    return Roster.load(place / "roster.json")
        # A site that has several coordinators keeps the roster of each, and the newest first.
        texts = [text for one in self.sites.values() for _, text in one.store.papers("roster")]
        kept = [Roster.parse(json.loads(text)) for text in texts]
        journal = self.journal.origin if self.journal is not None else ""
        if kept:
            return next((one for one in kept if one.coordinator.journal.name == journal), kept[0])
        raise InputError(f"{folders[0]}: there is no roster.json beside the logs")

    def _find_plans(self, folders: list[Path]) -> dict[str, Any]:
        plans: dict[str, Any] = {}
        for site in self.sites.values():
            for name, text in site.store.papers("plan"):
                plans[name] = json.loads(text)
        for folder in folders:
            if (folder / "plan.json").exists():
                plan = _read_json(folder / "plan.json")
                plans[digest_json(plan)] = plan
        return plans

    @property
    def logs(self) -> Iterator[tuple[_Source, str]]:
        """All logs with their roles, in the order of the bundle."""
        for member in self.roster.sites:
            if member.name in self.sites:
                yield self.sites[member.name], "site"
        if self.journal is not None:
            yield self.journal, "coordinator"

    def checkpoints(self, source: _Source, size: int) -> list[str]:
        """Return the heads of a log: those that the journal names, the last, the last witnessed.

        Each that the journal names has all cosignatures that witnesses of the roster gave, any
        other exactly a quorum, or none: nobody says who cosigned it. Those of other witnesses, from
        runs with another coordinator, say nothing under this roster.
        """
        named = self._witnessed.get(source.origin, set())
        heads = self._heads(source)
        own = self._own_witness(source)
        chosen = {number: heads[number] for number in named | {size} if number in heads}
        others = {
            number: [line for line in head.lines[1:] if line.name != own]
            for number, head in heads.items()
        }
        quorum = self.roster.quorum
        witnessed = [n for n, lines in others.items() if n <= size and 0 < quorum <= len(lines)]
        for number in {size, max(witnessed, default=size)} - named:
            enough = others[number][:quorum] if len(others[number]) >= quorum else []
            chosen[number] = heads[number].alone().with_cosignatures(enough)
        return [chosen[number].text for number in sorted(chosen)]

    def _heads(self, source: _Source) -> dict[int, Checkpoint]:
        """Return all heads of a log that are known, with what witnesses of the roster signed."""
        texts = [text for _, text in source.store.papers("checkpoint")]
        if self.journal is not None:
            texts += [text for _, text in self.journal.store.papers("checkpoint")]
        texts += [source.store.fact(name) or "" for name in ("head", "cosigned")]
        heads: dict[int, Checkpoint] = {}
        for text in texts:
            if text.startswith(source.origin + "\n"):
                found = Checkpoint.parse(text)
                ours = [line for line in found.lines[1:] if line.name in self.roster.witnesses]
                known = heads.get(found.size, found.alone())
                heads[found.size] = known.with_cosignatures(ours)
        return heads

    def _own_witness(self, source: _Source) -> str:
        if source is self.journal:
            return self.roster.coordinator.witness.name
        return self.roster.site(source.name).witness.name

    @functools.cached_property
    def _witnessed(self) -> dict[str, set[int]]:
        """The sizes of each log that the journal says were witnessed."""
        sizes: dict[str, set[int]] = {}
        if self.journal is None:
            return sizes
        for leaf in self.journal.store.leaves():
            for item in Entry.read(leaf).predicate.get("witnessed", ()):
                sizes.setdefault(item["log"], set()).add(item["size"])
        return sizes


def _write(gathered: _Gathered, stream: BinaryIO) -> int:
    """Write every log as of one moment, even while its owner continues to write."""
    with ExitStack() as held:
        for source, _ in gathered.logs:
            held.enter_context(source.store.reading())
            source.store.count()  # the first read fixes the moment
        return _write_lines(gathered, stream)


def _write_lines(gathered: _Gathered, stream: BinaryIO) -> int:
    """Write all lines and their digest; return how many entries are among them."""
    total = hashlib.sha256()
    for line in _lines(gathered):
        total.update(line + b"\n")
        stream.write(line + b"\n")
    stream.write(canonical_json({"kind": "end", "sha256": total.hexdigest()}) + b"\n")
    return sum(source.store.count() for source, _ in gathered.logs)


def _lines(gathered: _Gathered) -> Iterator[bytes]:
    """Yield the lines of a bundle but for the last one, by the format page."""
    yield canonical_json({"kind": "bundle", "format": "privet/bundle/v1"})
    yield canonical_json({"kind": "roster", "roster": gathered.roster.to_dict()})
    for name in sorted(gathered.plans.keys() & _referred(gathered)):
        yield canonical_json({"kind": "plan", "plan": gathered.plans[name]})
    if gathered.journal is not None:
        yield from map(canonical_json, _orders(gathered.journal))
    for source, role in gathered.logs:
        size = source.store.count()
        head = {"kind": "log", "log": source.origin, "name": source.name, "role": role}
        yield canonical_json({**head, "size": size})
        for number, leaf in enumerate(source.store.leaves()):
            if number < size:
                yield leaf
        for note in gathered.checkpoints(source, size):
            yield canonical_json({"kind": "checkpoint", "note": note})
    if gathered.journal is not None:
        yield from map(canonical_json, _receipts(gathered.journal))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error


def _referred(gathered: _Gathered) -> set[str]:
    """Return the digests of the plans that an entry names."""
    named: set[str] = set()
    for source, _ in gathered.logs:
        for leaf in source.store.leaves():
            plan = Entry.read(leaf).predicate.get("plan")
            if isinstance(plan, str):
                named.add(plan)
    return named


def _orders(journal: _Source) -> list[dict[str, Any]]:
    lines = [{"kind": "order", **json.loads(text)} for _, text in journal.store.papers("order")]
    keys = ("run", "round", "purpose", "attempt", "site")
    return sorted(lines, key=lambda line: tuple(line["order"][key] for key in keys))


def _receipts(journal: _Source) -> list[dict[str, Any]]:
    """Return the receipts in the order in which the journal names their releases."""
    papers = dict(journal.store.papers("receipt"))
    lines = []
    for leaf in journal.store.leaves():
        entry = Entry.read(leaf)
        if entry.kind != "round":
            continue
        value = entry.predicate
        which = {"kind": "receipt", "run": value["run"], "round": value["round"]}
        for purpose, site, name in receipts_of(value):
            proof = papers.get(name, "")
            lines.append({**which, "purpose": purpose, "site": site, "proof": proof})
    return lines


def _logs(folder: Path) -> list[Path]:
    """Return the log files at ``folder`` or a little below it.

    Raises:
        InputError: if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a run, a site's ledger, or a journal")
    found = [
        path
        for depth in range(_DEPTH)
        for name in (LEDGER_FILE, JOURNAL_FILE)
        for path in sorted(folder.glob("*/" * depth + name))
        if not path.parent.name.startswith(ASIDE)
    ]
    if not found:
        raise InputError(
            f"{folder}: there is no ledger ({LEDGER_FILE}) and no journal in it{_kept_none(folder)}"
        )
    return found


def _kept_none(folder: Path) -> str:
    """Return that a run kept no evidence, if its result says so; else ''."""
    try:
        value = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    if isinstance(value, dict) and value.get("evidence") == "off":
        return ": the run kept no evidence (--evidence off); run it again with evidence"
    return ""
