"""What follows from the evidence: facts of the register, claims, witnesses, ε over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from privet.common.errors import InputError, PrivetError
from privet.common.printable import printable_all
from privet.privacy.accounting import assumptions, ceiling
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.interval import Interval, NoInterval, certified_interval
from privet.privacy.accounting.pld import GRID, LIVE_GRID, epsilon, remark
from privet.privacy.accounting.units import Relation, finite
from privet.privacy.audit.report.input import (
    ReportGroup,
    ReportInput,
    ReportLedger,
    dig,
    read,
    texts,
)
from privet.privacy.audit.verify import AuditedRecord, LogRecord, SiteFinding, Verdict

Intervals = Mapping[tuple[str, str], Interval | NoInterval]
"""What an independent accountant says of each site's population."""

_BY_PLAN = ("H12", "H13", "H21")
_BY_SITE = ("H6", "H12", "H21")
COARSE_GRID = 100 * GRID
_MAX_POINTS = 200
_FEW_MECHANISMS = 8
_MAX_EPSILON = 100.0
_SEEN = 1.004  # a drawing is 250 pixels high


@dataclass(frozen=True)
class Claim:
    """``none``, ``conditional`` or ``proved-in-model``, with rows that are unknown and why.

    ``alarm``: what was let out is not protected, although somebody might think so.
    """

    word: str
    conditional: list[str]
    why: str = ""
    alarm: bool = False


def facts(case: ReportInput, ledgers: list[ReportLedger]) -> assumptions.Facts:
    """Return the facts about ``ledgers``, from entries, plans and policies alone.

    Args:
        case: what was read.
        ledgers: of it that count.
    """
    charges = [charge for ledger in ledgers for charge in ledger.charges]
    plans = [case.plans.get(name, {}) for name in dict.fromkeys(c.plan for c in charges)]
    tested = [set(charge.self_tests) for charge in charges]
    sources = {str(dig(plan, "metrics", "source")) for plan in plans}
    known = [name for name in ("gate", "off") if name in sources]
    groups = [group for ledger in ledgers for group in ledger.groups.values()]
    simulated = case.settings != {"site"}
    return assumptions.Facts(
        self_tests=tuple(
            row for row in assumptions.SELF_TESTS if tested and set.intersection(*tested) >= {row}
        ),
        person=bool(groups) and all(group.unit == "person" for group in groups),
        metrics=known[0] if known and sources <= {"gate", "off"} else "public",
        attested=_attested(case, plans),
        setting="simulation" if simulated else "site",
        witnessed=bool(ledgers) and all(held(case, ledger.log).whole for ledger in ledgers),
        runs=max((len(group.runs) for group in groups), default=0),
        own_task=any(":" in str(dig(plan, "task", "kind")) for plan in plans),
        trust=trust_of(plans),
        second=tuple((ledger.site, why) for ledger in ledgers for why in ledger.disjoint),
        others=tuple((ledger.site, ledger.other_ledgers) for ledger in ledgers),
    )


def trust_of(plans: Iterable[Mapping[str, object]]) -> str:
    """Return who sees un-noised values by the plans' own words; "" if one does not say it."""
    said = {str(dig(plan, "privacy", "trust") or "") for plan in plans if dig(plan, "privacy")}
    odd = said - {"local"}
    return ", ".join(sorted(filter(None, odd))) if odd else "local"


def _attested(case: ReportInput, plans: list[dict[str, object]]) -> dict[str, str]:
    """Return the rows that every plan or every site vouches for, each with its source."""
    found: dict[str, str] = {}
    for row in _BY_SITE:
        # Where a site's own test stands for a row, it has nothing to vouch for.
        asked_of = [
            ledger
            for ledger in case.ledgers
            if row not in assumptions.SELF_TESTS
            or not ledger.charges
            or any(row not in charge.self_tests for charge in ledger.charges)
        ]
        reasons = {ledger.site: ledger.attested.get(row) for ledger in asked_of}
        if reasons and all(reasons.values()):
            said = dict.fromkeys(str(reason) for reason in reasons.values())
            found[row] = f"each site says: {' / '.join(said)}"
    for row in _BY_PLAN:
        # A plan that publishes no metrics without noise has nothing to vouch for.
        asked = [p for p in plans if row != "H13" or dig(p, "metrics", "source") == "public"]
        reasons_of = [texts(dig(plan, "attested")).get(row) for plan in asked]
        if reasons_of and all(reasons_of):
            said = dict.fromkeys(str(reason) for reason in reasons_of)
            # Beside the sites' own words: who signs a row is what an officer asks.
            own = f"{found[row]}; " if row in found else ""
            found[row] = f"{own}the plan's author says: {' / '.join(said)}"
    return found


def claim_of(case: ReportInput, verdict: Verdict, ledgers: list[ReportLedger]) -> Claim:
    """Return what may be claimed for ``ledgers``.

    Args:
        case: what was read.
        verdict: of the verifier.
        ledgers: of the case that count.
    """
    names = {ledger.site for ledger in ledgers}
    findings = [finding for finding in verdict.sites if finding.site in names]
    if not verdict.ok:
        return Claim("none", [], "verification found faults")
    if "bundle" in case.settings:
        return Claim("none", [], "the sites ran an app that the coordinator shipped to them")
    charges = [charge for ledger in ledgers for charge in ledger.charges]
    if charges and all(charge.unnoised for charge in charges):
        return Claim("none", [], "trained without noise", True)
    if any(charge.reproducible for charge in charges if not charge.unnoised):
        return Claim("none", [], "noise came from a seed that somebody knows", True)
    if not findings or not charges:
        return Claim("none", [], "nothing was let out yet")
    if any(finding.epsilon is None for finding in findings):
        return Claim("none", [], "something that was let out has no privacy guarantee", True)
    word, unknown = assumptions.claim(assumptions.assess(facts(case, ledgers)), private=True)
    return Claim(word, unknown)


@dataclass(frozen=True)
class ReportStanding:
    """Setting, claim, trust and assumption register of a case, with what each population spent.

    Attributes:
        setting: of the geneses; None without one.
        claim: over all sites.
        findings: what each population spent in its life.
        trust: who sees un-noised values, by the plans.
        rows: the assumption register over all sites.
        verified: whether no fault was found; with a fault the numbers are only claimed.
    """

    setting: str | None
    claim: Claim
    findings: tuple[SiteFinding, ...] = ()
    trust: str = "local"
    rows: tuple[assumptions.Assumption, ...] = ()
    verified: bool = True


def standing(verdict: Verdict) -> ReportStanding:
    """Return what a report puts on top of a verdict, for those who only verify.

    Args:
        verdict: of ``verify(…, brief=True)``, or of ``keep=True``.

    Raises:
        InputError: if the verdict has no record.
    """
    if verdict.record is None:
        raise InputError("the verdict has no record: verify with brief=True")
    shown = printable_all(verdict)
    return standing_in(read(shown.record or AuditedRecord()), shown)


def standing_in(case: ReportInput, verdict: Verdict) -> ReportStanding:
    """Return the setting, the claim and the spent budgets of a case that was read.

    Args:
        case: what was read.
        verdict: of the verifier.
    """
    known = ("bundle", "simulation", "site")
    setting = next((name for name in known if name in case.settings), None)
    found = facts(case, case.ledgers)
    return ReportStanding(
        setting,
        claim_of(case, verdict, case.ledgers),
        tuple(verdict.sites),
        found.trust,
        tuple(assumptions.assess(found)),
        verdict.ok,
    )


@dataclass(frozen=True)
class Held:
    """How the heads of one log are witnessed.

    Attributes:
        whole: the last head, over all entries, has a quorum.
        heads: how many signed heads are in the bundle.
        enough: how many of them have a quorum.
        tail: entries after the last head with a quorum.
        by: how many heads each witness cosigned.
        last: who cosigned the last head with a quorum.
    """

    whole: bool
    heads: int
    enough: int
    tail: int
    by: Counter[str]
    last: tuple[str, ...] = ()


def held(case: ReportInput, log: LogRecord) -> Held:
    """Count the cosignatures of others on the heads of ``log``.

    Args:
        case: what was read.
        log: of it.
    """
    owners, by, sizes = case.owners, Counter[str](), {0: set[str]()}
    for size, cosigners in log.checkpoints:
        others = {owners[name] for name in cosigners if owners.get(name) not in (None, log.name)}
        by.update(others)
        if case.quorum and len(others) >= case.quorum:
            sizes[size] = others
    last = max(sizes)
    entries = len(log.entries) + log.passed
    signers = tuple(sorted(str(name) for name in sizes[last]))
    whole = last == entries > 0
    return Held(whole, len(log.checkpoints), len(sizes) - 1, entries - last, by, signers)


@dataclass(frozen=True)
class ReportLine:
    """ε of one population after each of its charges: (charges so far, time, round, run, ε)."""

    group: ReportGroup
    points: list[tuple[int, str, int, str, float]]


def lines(case: ReportInput, verdict: Verdict) -> list[ReportLine]:
    """Return ε over time, for populations whose ε is finite and not huge.

    A drawing needs no more points than can be told apart: long histories are thinned out, to some
    200 accountings over all populations.

    Args:
        case: what was read.
        verdict: of the verifier.
    """
    found = []
    findings = {(f.site, f.population): f for f in verdict.sites}
    groups = [g for g in case.groups if g.charges and (g.site, g.name) in findings]
    most = max(2, min(60, _MAX_POINTS // max(1, len({tuple(_steps(g)) for g in groups}))))
    for group in groups:
        finding = findings[group.site, group.name]
        if finding.epsilon is None or finding.epsilon > _MAX_EPSILON:
            continue
        try:
            found.append(ReportLine(group, _points(group, finding, most)))
        except (PrivetError, ArithmeticError, ValueError, MemoryError, IndexError):
            continue
    return found


def _steps(group: ReportGroup) -> list[tuple[ev.Event, int]]:
    """Return what alone decides the ε of each point."""
    return [(charge.event, sign) for charge, sign in group.steps]


def _points(
    group: ReportGroup, finding: SiteFinding, most: int
) -> list[tuple[int, str, int, str, float]]:
    counts: Counter[ev.Event] = Counter()
    points = []
    end = finding.epsilon or 0.0
    cost = _cost_on_the_way(group, end)
    wanted = {round(i * (len(group.steps) - 1) / most) for i in range(most + 1)}
    for place, (charge, sign) in enumerate(group.steps):
        counts[charge.event] += sign
        if place not in wanted:
            continue
        value = end if place == len(group.steps) - 1 else cost(counts)
        points.append((place + 1, charge.entry.time, charge.round, charge.run, value))
    return points


def _cost_on_the_way(group: ReportGroup, end: float) -> Callable[[Counter[ev.Event]], float]:
    """Return how the points of a line are accounted: all of them in bounded time.

    A history whose end is at the Rényi ceiling is there all along. Others are composed on the
    coarsest grid on which the end is still where it is, to within a pixel; no point of a history
    that is part of the whole one is above the end. Either is an upper bound.

    Args:
        group: whose history it is.
        end: ε of the whole history, by the verifier.
    """
    relation = Relation(group.relation)
    every = ev.group(charge.event for charge, sign in group.steps if sign > 0)
    whole = Counter[ev.Event]()
    for charge, sign in group.steps:
        whole[charge.event] += sign

    def bound(counts: Counter[ev.Event]) -> float:
        grouped = ev.group(ev.Repeated(event, n) for event, n in counts.items() if n > 0)
        return ceiling.epsilon(grouped, group.delta, relation)

    too_large = remark([ev.Repeated(event, count) for event, count in every], relation)
    if too_large or end >= bound(whole) * (1 - 1e-9):
        return bound
    grid = COARSE_GRID
    if len(every) <= _FEW_MECHANISMS and spent(whole, group, grid) > end * _SEEN:
        grid = LIVE_GRID

    def cost(counts: Counter[ev.Event]) -> float:
        found = spent(counts, group, grid)
        return min(found, end) if counts <= whole else found

    return cost


def spent(counts: Counter[ev.Event], group: ReportGroup, grid: float = GRID) -> float:
    """Return the ε of events that happened so often, on a grid.

    Args:
        counts: how often each event happened.
        group: whose δ and relation count.
        grid: of the distributions.
    """
    events: Iterable[ev.Event] = [ev.Repeated(event, n) for event, n in counts.items() if n > 0]
    return epsilon(events, group.delta, Relation(group.relation), grid=grid)


def intervals(verdict: Verdict, *, seconds: float = 30.0) -> Intervals:
    """Ask prv-accountant about each population of a verified bundle.

    Args:
        verdict: with its record.
        seconds: most time for each different history.
    """
    found: dict[tuple[str, str], Interval | NoInterval] = {}
    known: dict[object, Interval | NoInterval] = {}
    if verdict.record is None or not verdict.ok:
        return found
    for one in read(printable_all(verdict.record)).groups:
        counts = ev.group(charge.event for charge in one.charges if charge.counts)
        asked = (frozenset(counts), one.delta, one.relation)
        if asked not in known:
            relation = Relation(one.relation)
            known[asked] = certified_interval(counts, one.delta, relation, seconds=seconds)
        found[one.site, one.name] = known[asked]
    return found


def of_run(group: ReportGroup, run: str, whole: float | None = None) -> float | None:
    """Return the ε that one run cost a population; None if it is not private or not known.

    Args:
        group: the population.
        run: name of the run.
        whole: ε of all that the population spent, by the verifier: the answer where it spent
            nothing on other runs.
    """
    if whole is not None and group.runs == [run]:
        return whole
    counts = Counter(
        charge.event for charge in group.charges if charge.counts and charge.run == run
    )
    try:
        return finite(spent(counts, group))
    except (PrivetError, ArithmeticError, ValueError, MemoryError, IndexError):
        return None
