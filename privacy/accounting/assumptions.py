"""The assumption register: 32 ways in which an ε becomes false, and what holds in a given run.

What differs from run to run is in :class:`Facts`: the self-tests, the plan, what somebody
attests, and whether the numbers come from a real site's ledger, witnessed by others.

States: ``enforced`` (the code makes it impossible), ``tested`` (at run start or in the
test suite), ``attested`` (somebody signs that it holds), ``unknown``. A claim is
``proved-in-model`` when no row is unknown, ``conditional`` with the unknown rows
otherwise, and ``none`` when an event was not private or noise came from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["enforced", "tested", "attested", "unknown"]


@dataclass(frozen=True)
class Assumption:
    """One row of the list in one run."""

    id: str
    name: str
    state: State
    why: str


@dataclass(frozen=True)
class Facts:
    """What decides the rows that differ from run to run.

    Attributes:
        self_tests: ids that passed at the start of this run.
        person: the unit is a person.
        metrics: ``public``, ``gate`` or ``off``.
        attested: rows somebody vouches for, with the reason.
        setting: ``site`` where the ledgers are those of real sites, or ``simulation``.
        witnessed: a quorum of others cosigned the head of every ledger.
        runs: most runs that were charged to one population.
        own_task: a task of a user's own, which may have a measure of its own.
        trust: who sees un-noised values, as the plans say; "" where one does not say it.
        central: this is a simulation whose coordinator added the noise.
        seeded: the noise came from a seed.
        second: the sites with a second population, each with its own reason why nobody is in
            both; "" where it gives none.
        others: by site, the first keys of other ledgers that keep a budget of the same people, as
            it stated when its ledger began; None where it stated nothing.
    """

    self_tests: tuple[str, ...] = ()
    person: bool = False
    metrics: str = "public"
    attested: dict[str, str] | None = None
    setting: Literal["site", "simulation"] = "simulation"
    witnessed: bool = False
    runs: int = 1
    own_task: bool = False
    trust: str = "local"
    central: bool = False
    seeded: bool = False
    second: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, tuple[str, ...] | None], ...] = ()


_FIXED: dict[str, tuple[str, State, str]] = {
    "H1": ("sampling", "enforced", "one Poisson sampler draws the batch and emits the event"),
    "H2": ("public-constants", "enforced", "rate, steps and divisor are constants of the plan"),
    "H3": ("weighted-sampler", "enforced", "no weighted sampler exists"),
    "H4": ("partial-batch", "enforced", "Poisson batches and a constant divisor only"),
    "H5": ("buffers", "enforced", "only trained parameters are released; others may not move"),
    "H6": ("coupled-forward", "unknown", "the start-up test did not run"),
    "H7": ("non-finite", "enforced", "unusable records and non-finite gradients count for nothing; "
           "every tensor is checked"),
    "H8": ("bypass", "enforced", "parameters are watched around each step"),
    "H9": ("fresh-accountant", "enforced", "ε is computed from the site's whole history"),
    "H10": ("wrong-count", "enforced", "noise additions are counted where noise is added"),
    "H11": ("composition", "unknown", "a simulation's history starts empty: other runs on the "
            "same records are not in it"),
    "H12": ("provenance", "unknown", "nobody declared where the plan's constants come from"),
    "H13": ("metrics", "unknown", ""),
    "H14": ("rng", "enforced", "AES-CTR under a key of the operating system, new each release"),
    "H15": ("floating-point", "attested", "real-arithmetic model, low bits removed: noised sums "
            "are on a public grid, tables of metrics are whole numbers"),
    "H16": ("per-sample-gradient", "unknown", "the start-up test did not run"),
    "H17": ("parameter-coverage", "enforced", "checked at each order"),
    "H18": ("accumulation", "enforced", "micro-batches are summed before one noise addition"),
    "H19": ("empty-batch", "enforced", "an empty batch is noised and counted"),
    "H20": ("unit", "enforced", ""),
    "H21": ("overlap", "unknown", "nobody attested that no person is at two sites"),
    "H22": ("client-sampling", "enforced", "no amplification from sampling sites is claimed"),
    "H23": ("dropouts", "enforced", "each site's noise suffices alone; weights are public"),
    "H24": ("local-steps", "enforced", "every noisy step is an event"),
    "H25": ("trust-model", "enforced", "local: nobody outside the site sees un-noised values"),
    "H26": ("adaptive-clip", "enforced", "the clip norm is a constant of the plan"),
    "H27": ("bare-epsilon", "enforced", "the type that prints ε carries δ, unit and relation"),
    "H28": ("saved-state", "enforced", "safetensors only; no gradient or optimizer state kept"),
    "H29": ("adaptive-parameters", "enforced", "the plan is fixed before its first round"),
    "H30": ("side-channels", "enforced", "closed status codes, charge kept once data was opened; "
            "no check on records decides what leaves; timing is outside the guarantee"),
    "H31": ("rollback", "unknown", "a simulation's history has no outside witness: all that "
            "cosigned it lay on the same machine"),
    "H32": ("re-registered", "unknown", "a simulation does not know the same people under "
            "another name"),
}  # fmt: skip

_CENTRAL: dict[str, tuple[State, str]] = {
    "H1": ("enforced", "the plan's turns say who takes part; nothing is drawn by chance"),
    "H2": ("enforced", "clip, noise, turns and divisor are constants of the plan"),
    "H4": ("enforced", "the divisor is the plan's, also where fewer sites answered"),
    "H9": ("unknown", "simulated: there is no history before this run"),
    "H10": ("unknown", "simulated: a site's turns in the plan are counted, not noise additions"),
    "H15": ("unknown", "the noised sum is on a public grid, and is divided after that"),
    "H20": ("enforced", "a site with its training records; its whole update is clipped"),
    "H23": ("unknown", "no site's own noise protects it; weights are equal, the divisor is public"),
    "H24": ("enforced", "one event for each turn of a site, whatever its local steps"),
    "H30": ("unknown", "simulated: the coordinator sees everything"),
    "H31": ("unknown", "simulated: nothing is written down"),
}
"""Rows that differ where the coordinator of a simulation adds the noise."""

_TESTED = {
    "H6": "records are read one by one; the model passed at the start of this run",
    "H16": "passed at the start of this run on generated records; real ones are compared by the "
    "operator's check alone",
}

IDS = tuple(_FIXED)
SELF_TESTS = ("H6", "H7", "H16", "H17")
"""The rows that a start-up test is of. No test can stand for another row."""


def assess(facts: Facts) -> list[Assumption]:
    """Return the 32 rows as they stand for a run."""
    rows = {key: Assumption(key, *value) for key, value in _FIXED.items()}
    for key in set(SELF_TESTS) & set(facts.self_tests):
        row = rows[key]
        if row.state == "unknown":
            rows[key] = Assumption(
                key, row.name, "tested", _TESTED.get(key, "passed at the start of this run")
            )
    measured: dict[str, tuple[State, str]] = {
        "public": (
            "unknown",
            "published without noise: nobody attested that the test split is public",
        ),
        "gate": (
            "enforced",
            "noised, debited; the metrics mechanism adds up the table, by a unit's weight",
        ),
        "off": ("enforced", "none are published"),
    }
    if facts.own_task:
        measured["gate"] = (
            "tested",
            "noised, debited; a measure of one's own is called for one record at a time and was "
            "tried on generated ones: it must remember none",
        )
    rows["H13"] = Assumption("H13", "metrics", *measured[facts.metrics])
    unit = "per record: a person with many records is protected less, see the unit"
    if facts.person:
        unit = "contribution bounded, summed and clipped per person; the unit is the folded id"
    rows["H20"] = Assumption("H20", "unit", "enforced", unit)
    rows["H25"] = Assumption("H25", "trust-model", *_trust(facts.trust))
    rows |= _of_ledgers(facts)
    if facts.central:
        rows |= {key: Assumption(key, rows[key].name, *said) for key, said in _CENTRAL.items()}
    if facts.seeded:
        rows["H14"] = Assumption("H14", rows["H14"].name, "unknown", "the noise came from a seed")
    for key, why in (facts.attested or {}).items():
        if rows[key].state == "unknown":
            rows[key] = Assumption(key, rows[key].name, "attested", why)
    return list(rows.values())


def _of_ledgers(facts: Facts) -> dict[str, Assumption]:
    """Return the rows that the ledgers decide, where they are not as in one simulation."""
    found: dict[str, tuple[State, str]] = {}
    if facts.setting == "site":
        found["H11"] = (
            "enforced",
            "every run, retry and crash that this ledger knows counts against the population",
        )
        found["H31"] = "unknown", "too few others cosigned the ledger's head"
        if facts.witnessed:
            why = "others cosigned the ledger's head; the site must extend it to spend"
            found["H31"] = "enforced", why
        found["H32"] = _with_others(*_second(facts.second), facts.others)
    if facts.runs > 1:
        found["H29"] = (
            "unknown",
            f"{facts.runs} runs: later plans may follow from earlier results. The cap is held by a "
            "Rényi filter, which allows that; the ε over all runs is conditional",
        )
    return {key: Assumption(key, _FIXED[key][0], *value) for key, value in found.items()}


def _second(second: tuple[tuple[str, str], ...]) -> tuple[State, str]:
    """Return H32 of real sites: it rests on a site's word as soon as one has two populations."""
    if not second:
        return "enforced", "each site has one population: one cap for all its data sets"
    said = "; ".join(
        f"site {site} says: {why}" if why else f"site {site} does not say why nobody is in both"
        for site, why in second
    )
    return ("attested" if all(why for _, why in second) else "unknown"), said


def _with_others(
    state: State, said: str, others: tuple[tuple[str, tuple[str, ...] | None], ...]
) -> tuple[State, str]:
    """Return H32 with what sites state about other ledgers of the same people.

    Nobody can know of a ledger that is kept elsewhere, so it is their word; another ledger that
    is stated takes the claim away, for what it spent is not counted here.
    """
    parts = [said]
    none = [site for site, stated in others if stated == ()]
    if none:
        who, whose = f"sites {', '.join(none)} state", "their"
        if len(none) == 1:
            who, whose = f"site {none[0]} states", "its"
        parts.append(f"{who} that no other ledger keeps a budget of these people, on {whose} word")
    for site, stated in others:
        if stated:
            state = "unknown"
            parts.append(
                f"site {site} states that another ledger keeps a budget of these people, which is "
                f"not added up here: {', '.join(stated)}"
            )
    silent = [site for site, stated in others if stated is None]
    if silent:
        parts.append(f"nothing is stated about other ledgers by {', '.join(silent)}")
    return state, "; ".join(parts)


def _trust(said: str) -> tuple[State, str]:
    """Return H25 by what the plans say; central trust is of simulations."""
    if said == "local":
        return "enforced", "local: nobody outside the site sees un-noised values"
    if not said:
        return "enforced", "the plan does not state it; noise is added at the site alone"
    if said == "central":
        return "unknown", "central: the coordinator saw every site's update without noise"
    return "unknown", f"the plan says ‘{said}’, which is no trust model of this software"


def claim(rows: list[Assumption], *, private: bool) -> tuple[str, list[str]]:
    """Return the claim and the ids it is conditional on.

    Args:
        rows: of :func:`assess`.
        private: every event is private and no noise came from a seed.
    """
    if not private:
        return "none", []
    unknown = [row.id for row in rows if row.state == "unknown"]
    return ("conditional", unknown) if unknown else ("proved-in-model", [])
