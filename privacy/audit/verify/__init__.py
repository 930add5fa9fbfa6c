"""The offline verifier: everything in a bundle, recomputed from the file alone.

It needs no network and shares no code with the programs that write the evidence: of Privet it
imports the errors and nothing else. :func:`verify` answers with faults; a fault names one of
these rules. The numbers are those of ``docs/reference/evidence-format.md``.

===============  ==================================================================================
``bundle``       the file: canonical lines in their order, none too many, the digest at the end
``roster``       keys and names are the roster's (22); the roster is the pinned one
``signature``    entries by the key in force (7), checkpoints by it and by witnesses of the roster;
                 decisions by officers (12), order keys by each other (16)
``tree``         the last checkpoint has the root of the entries
``consistency``  every earlier checkpoint is a prefix of the same tree; sizes rise
``witness``      witnessed checkpoints are here, with exactly the cosigners named, a quorum (19 to
                 21, 31, 32)
``sequence``     places count up from 0, time does not go back, genesis first, nothing after
                 ``withdrawn`` but ``aborted`` (1)
``entry``        a leaf is a canonical DSSE envelope around a Statement with the fields of its kind
                 (11)
``vocabulary``   a kind that this verifier does not know
``population``   populations and data sets are registered, once, and used as registered (2, 3, 9)
``policy``       a policy precedes every reservation, which keeps to it (8, 13 to 18)
``plan``         plans are here, approved, name the site, fit the population, the same everywhere
                 (3, 9, 27, 28)
``code``         one code for one run at all sites (27); one of those that were pinned
``event``        events are well formed, what the plan fixes (27), and no more than was reserved (4)
``reservation``  slots do not go back, nothing is reserved during a pause, what closes was open (3,
                 5)
``release``      a release closes a reservation of its order (4, 10); the journal names real ones
                 (24)
``cap``          the population's cap holds at every prefix (6)
``accounting``   the two accountants do not contradict each other
``order``        orders are signed, listed in the journal and answered in one way (23, 29)
``round``        runs are opened and closed, rounds count up without a gap (25, 26, 30)
``model``        each round begins with the model that the last one made (25, 26, 30)
``receipt``      a proof for each release that was aggregated or published
===============  ==================================================================================

What no verifier can see: whether the noise was random, whether a person is at two sites, whether
there was training outside the ledger.

To read it in an afternoon, read in this order: no file imports one that comes later.

=======================  ==========================================================================
``result``               what the answer is made of
``formats/strict``       which JSON, base64, decimals and times are canonical
``formats/signatures``   whether an Ed25519 signature is true
``formats/notes``        what a key, a checkpoint, a cosignature and a proof say (C2SP)
``formats/tree``         the root of a Merkle tree, and that of an inclusion proof (RFC 6962)
``formats/events``       which mechanism an event describes
``formats/officers``     whether an officer signed a decision
``formats/order_keys``   which order key follows which
``formats/schema``       the kinds of entries with their fields
``formats/rows``         the names of what is read from an entry
``formats/roster``       who takes part; how it differs from the pinned roster
``formats/source``       the lines of the file
``formats/entries``      whether a leaf can be read and is signed: all that needs no other entry
``formats/lines``        the same of orders, checkpoints and receipts
``cost/gaussian``        plain Gaussian noise within (ε, δ)
``cost/size``            how fine a composition is, and whether it is made
``cost/accounting``      ε, by privacy loss distributions and by Rényi divergences
``cost/turns``           which sites take part in which round of a plan
``cost/plans``           which events a plan fixes, and whether it costs more than it says
``cost/compositions``    which histories are composed for the report, in bounded time
``cost/first_plans``     which first plans are composed, in bounded time
``cost/split``           what the first plan leaves of δ to each rule
``cost/budget``          whether a cap holds
``rules/brief``          what is kept of the entries for a claim
``rules/orders``         what became of an order
``rules/state``          what the logs of a bundle share
``rules/log``            a log: sequence, clock, keys, checkpoints
``rules/lot``            which sites the lot names to cosign a log
``rules/policy``         whether a policy allows a reservation
``rules/registered``     a ledger: populations, data sets, policies, approvals
``rules/site``           a ledger: reservations, and what closes them
``rules/journal``        the journal: runs, rounds, orders and receipts against the ledgers
``rules/unfinished``     releases that no finished run accounts for
``pool``                 worker processes
``bundle``               the parts of the file in their order, each handed to the above
=======================  ==========================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from privet.common.errors import InputError, reason_of
from privet.privacy.audit.verify.bundle import BundleReader, begin
from privet.privacy.audit.verify.formats.roster import FORMAT, differences, require_pinned
from privet.privacy.audit.verify.formats.source import Scan, Source, Unreadable, scan
from privet.privacy.audit.verify.formats.strict import MAX_LINE, Malformed, is_digest, read_loose
from privet.privacy.audit.verify.pool import Workers
from privet.privacy.audit.verify.result import (
    RULES,
    AuditedEntry,
    AuditedRecord,
    CodeFinding,
    Fault,
    Findings,
    LogRecord,
    SiteFinding,
    Verdict,
)
from privet.privacy.audit.verify.rules.site import AuditedLedger
from privet.privacy.audit.verify.rules.state import Kept

__all__ = [
    "RULES", "CodeFinding", "AuditedEntry", "Fault", "LogRecord", "AuditedRecord", "SiteFinding",
    "Verdict", "verify",
]  # fmt: skip


def verify(
    path: Path,
    roster: Path | None = None,
    *,
    require_witnessed: bool | None = None,
    code: Iterable[str] = (),
    keep: bool = False,
    brief: bool = False,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
) -> Verdict:
    """Verify the bundle at ``path``.

    Found here are that the file is cut (``bundle``), and that its roster is not the pinned one
    (``roster``).

    Args:
        path: the bundle.
        roster: a roster obtained out of band; without it the keys are only the bundle's word.
        require_witnessed: whether a charge that no quorum of others witnessed is a fault; None:
            it is one as soon as a ledger here is a real site's, and none in a simulation.
        code: digests of the code that may have run, obtained out of band; none: any, on the
            sites' word.
        keep: return the readable parts in ``Verdict.record``; memory then grows with the bundle.
        brief: return in ``Verdict.record`` what a claim depends on, in little memory.
        progress: called with bytes done and bytes in all.
        processes: worker processes for large bundles; 1 for none, None for at most two.

    Raises:
        InputError: if a file cannot be read, or does not begin as a bundle, or is no roster, or
            a code is no digest. Whatever else the files hold is a fault.
    """
    findings = Findings(_digests(code))
    pinned = None if roster is None else _pinned(roster)
    kept: Kept = "nothing"
    if keep:
        kept = "all"
    elif brief:
        kept = "brief"
    try:
        with path.open("rb") as first:
            seen = scan(first)
        if not seen.headed:
            raise InputError(
                f"{path} is not a bundle: it does not begin as one; `privet audit bundle` makes one"
            )
        if seen.cut:
            findings.fault("bundle", "the file is cut: it has no end line")
        with path.open("rb") as stream, Workers(processes, seen.lines) as workers:
            lines = functools.partial(Source, stream, path.stat().st_size, progress, cut=seen.cut)
            reader = _read(lines, seen, workers, findings, kept)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    is_pinned = False
    if pinned is None:
        findings.note("roster unpinned: the keys are only the bundle's word")
    elif reader is not None:
        is_pinned = True
        for message in differences(pinned, reader.state.roster):
            findings.fault("roster", message)
    if reader is not None:
        _require_witnessed(reader.ledgers, require_witnessed, findings)
    findings.close()
    return _verdict(reader, findings, is_pinned, kept)


def _read(
    lines: Callable[[], Source], seen: Scan, workers: Workers, findings: Findings, kept: Kept
) -> BundleReader | None:
    """Read as much of the bundle as can be read (``bundle``); None without a roster.

    Args:
        lines: opens the source.
        seen: the result of the first pass over it.
        workers: that read batches of lines.
        findings: what is wrong goes there.
        kept: how much of the entries is kept.
    """
    reader = source = None
    try:
        source = lines()
        reader = BundleReader(source, seen.sizes, workers, begin(source, findings, kept))
        reader.read()
    except Unreadable as error:
        if source is None or not source.ended_early:
            findings.fault("bundle", str(error))
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as e:
        # Not known to happen. A bundle that does it is not thereby verified.
        findings.fault("bundle", f"the verifier could not continue ({type(e).__name__})")
    return reader


def _require_witnessed(
    ledgers: list[AuditedLedger], required: bool | None, findings: Findings
) -> None:
    """Fault charges that nothing but their own site's word supports (``witness``).

    Args:
        ledgers: that were read.
        required: whether they are a fault; None: where a ledger here is a real site's.
        findings: what is wrong goes there.
    """
    real = any(log.setting == "site" for log in ledgers)
    if required is None:
        required = real
    for log in ledgers:
        if real and log.setting not in ("site", ""):
            findings.note(
                f"{log.name}: its ledger says that it is of a simulation, and others here are of"
                " real sites"
            )
        if not required or log.cut:
            continue
        first = next(
            (n for n in log.charged if n >= log.witnessed.upto and n not in log.given_back), None
        )
        if first is not None:
            findings.fault(
                "witness",
                "charges from here on are not witnessed by a quorum of others: they rest on the"
                " site's word alone. The next round of any run has them witnessed"
                " (--no-require-witnessed: for those who accept that)",
                log.name, first,
            )  # fmt: skip


def _verdict(
    reader: BundleReader | None, findings: Findings, is_pinned: bool, kept: Kept
) -> Verdict:
    """Put together what was found.

    Args:
        reader: that read the bundle; None: there was no roster to read it by.
        findings: with all faults and notes.
        is_pinned: whether the roster was compared with one obtained out of band.
        kept: how much of the entries was kept.
    """
    record = None if kept == "nothing" else AuditedRecord()
    parts = findings.faults, findings.notes
    if reader is None:
        return Verdict(not findings.faults, "unpinned", *parts, [], record, code=findings.code)
    state = reader.state
    if record is not None:
        logs = [log.record for log in reader.logs]
        record = AuditedRecord(state.roster_value, state.plan_values, logs, kept == "brief")
    return Verdict(
        not findings.faults, "pinned" if is_pinned else "unpinned", *parts,
        state.findings_of_sites, record,
        quorum=state.roster.quorum,
        witnessed={log.name: log.witnessed for log in reader.ledgers},
        unfinished=reader.unfinished, code=findings.code,
    )  # fmt: skip


def _digests(texts: Iterable[str]) -> list[str]:
    """Check digests that were obtained out of band; hex digits may be of either case."""
    found = [text.lower() for text in texts]
    for text in found:
        if not is_digest(text):
            raise InputError(f"'{text}' is no digest of code: one is sha256: and 64 hex digits")
    return found


def _pinned(path: Path) -> dict[str, Any]:
    """Read the roster that was obtained out of band; its fields are checked later."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_LINE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    try:
        value = read_loose(content) if len(content) <= MAX_LINE else None
    except (Malformed, RecursionError) as error:
        raise InputError(f"{path} is not a roster: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path} is not a roster: its format is not {FORMAT}")
    try:
        require_pinned(value)
    except (Malformed, RecursionError, TypeError) as error:
        # The user typed it: nothing is wrong with the bundle.
        raise InputError(f"{path}: the roster that you brought: {error}") from None
    return value
