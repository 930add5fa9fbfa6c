"""What the report says in plain words: units, odds, statuses, glossary, what it may help with.

The odds are those of Kairouz, Oh and Viswanath 2015 (The composition theorem for
differential privacy, theorem 3.1): whatever an (ε, δ)-private site lets out can be made
from a game that gives the answer outright with probability δ, and otherwise answers
rightly with probability e^ε / (1 + e^ε). So nobody learns more than from that game.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from privet.common.printable import counted
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit, rounded_down, rounded_up
from privet.privacy.audit.report.input import dig, number

_DIGEST = re.compile(r"sha256:([0-9a-f]+)(?!…)\b")
_MAX_NAMES = 4
_UNITS = {
    "record": "one record",
    "person": "one person (one patient), all their records together",
    "account": "one account, all its records together",
    "site": "one whole site",
}
_QUESTIONS = {
    "record": "whether one given record was used",
    "person": "whether one given person's records were used, all of them together",
}
_RELATIONS = {
    "add_or_remove_one": "with it, or without it",
    "replace_one": "with it, or with another in its place",
}
STATUSES = {
    "refused-plan": "the site has not approved the plan, or has refused it",
    "refused-parameters": "the parameters to train are not those of the plan",
    "refused-budget": "the population's budget would not have covered it",
    "refused-conflict": "the same attempt was asked before with something else in it",
    "refused-self-test": "a start-up test of the model failed",
    "refused-policy": "the site's policy does not allow it",
    "refused-paused": "the site was paused, had withdrawn, or had closed the budget",
    "refused-signature": "the order was not signed by an accepted coordinator",
    "refused-rollback": "the site's ledger did not extend its last witnessed head",
    "no-reply": "the site did not answer",
    "not-now": "the site could not work at that time, and spent nothing",
}
RULES = {
    "bundle": "the file is damaged or incomplete",
    "roster": "names or keys are not the roster's",
    "signature": "a signature does not hold",
    "tree": "entries are not what was signed",
    "consistency": "the log was rewritten",
    "witness": "a cosignature is missing or wrong",
    "sequence": "entries are out of order",
    "entry": "an entry cannot be read",
    "vocabulary": "an entry of an unknown kind",
    "population": "a population is not used as registered",
    "policy": "no policy was in force before",
    "plan": "the plan is missing, not approved or does not fit",
    "code": "sites ran different programs",
    "event": "what ran is not what was planned and reserved",
    "reservation": "something was not reserved as it should be",
    "release": "a release does not belong to a reservation",
    "cap": "the lifetime cap was exceeded",
    "accounting": "two ways of counting contradict each other",
    "order": "an order is missing, unsigned or not answered",
    "round": "rounds are missing or out of order",
    "model": "a round did not begin where the last one ended",
    "receipt": "a proof is missing or wrong",
}
REASONS = {
    "failed": "it failed at the site",
    "recovered": "the site was restarted in the middle",
    "does-not-fit": "what ran was not what had been reserved",
}
CLAIMS = {
    "proved-in-model": "Proved in the model: no row of the assumption register is unknown.",
    "conditional": "Conditional: it holds if the rows named here hold, which nobody has proved.",
    "none": "None: no privacy is claimed.",
}
STATES = {
    "enforced": "the software makes the mistake impossible",
    "tested": "tested when the run started",
    "attested": "somebody signs that it holds",
    "unknown": "nobody knows; the claim is conditional on it",
}
HOLDERS = {
    "pld": "each charge was checked against it beforehand, by the accounting of the one plan",
    "gaussian filter": "each charge was checked against it beforehand, by a filter for Gaussian "
    "noise that allows for plans chosen later",
    "filter": "each charge was checked against it beforehand, by a filter that allows for plans "
    "chosen later",
    "none": "nothing: the population has no cap",
}


def marked(text: str) -> str:
    """Return a text in which a digest that was shortened shows that it was."""
    return _DIGEST.sub(lambda m: m[0] if len(m[1]) == 64 else f"{m[0]}…", text)


def signers(by: Mapping[str, int]) -> str:
    """Return who cosigned how often; many who did so equally often are counted."""
    often = set(by.values())
    if len(by) > _MAX_NAMES and len(often) == 1:
        return f"{len(by)} others ({often.pop()} each)"
    return ", ".join(f"{name} ({times})" for name, times in sorted(by.items())) or "nobody"


def unit_of(unit: str, max_records: int = 1) -> str:
    """Return a privacy unit in words.

    Args:
        unit: as the ledger names it.
        max_records: most records of one person.
    """
    words = _UNITS.get(unit, f"one {unit}")
    return f"{words} (at most {max_records} are used)" if max_records > 1 else words


def relation_of(unit: str, relation: str) -> str:
    """Return what is compared, in words.

    Args:
        unit: as the ledger names it.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    return f"the data {_RELATIONS.get(relation, relation)}: {_UNITS.get(unit, unit)}"


def question_of(unit: str, relation: str) -> str:
    """Return what somebody might want to find out, in words.

    Args:
        unit: as the ledger names it.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    words = _QUESTIONS.get(unit, f"whether the data of one given {unit} were used")
    return words + {"replace_one": ", or another in its place"}.get(relation, "")


def terms_of(delta: float, unit: str, relation: str) -> str:
    """Return δ, unit and relation as they are printed with an ε.

    Args:
        delta: of (ε, δ).
        unit: as the ledger names it.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    try:
        return PrivacyLoss(0.0, delta, Unit(unit), Relation(relation)).terms
    except ValueError:
        return f"δ {delta:g}, per {unit}, {relation.replace('_', ' ')}"


def figure_of(epsilon: float | None) -> str:
    """Return ε alone, rounded up, for a place below a heading with its terms."""
    return rounded_up(math.inf if epsilon is None else max(0.0, epsilon))


def left_of(epsilon: float | None, cap: float | None) -> str:
    """Return cap minus ε, rounded down.

    Args:
        epsilon: that was spent; None: not private.
        cap: of the population; None: it has none.
    """
    if cap is None:
        return "no cap"
    if epsilon is None:
        return "0"
    return rounded_down(cap - epsilon)


def percent(share: float) -> str:
    """Return a share in per cent, rounded up, and never as 100 %."""
    value = math.ceil(share * 1000 - 1e-9) / 10
    return f"{value:.1f} %" if value < 99.95 else "more than 99.9 %"


def odds(epsilon: float, delta: float) -> dict[str, str]:
    """Return what (ε, δ) lets somebody find out about one unit.

    ``even`` and ``rare`` are the most that a belief of 50 % and of 1 % can become, but for
    a chance of ``slip``; ``guess`` is how often a guess can be right, slip and all.

    Args:
        epsilon: of (ε, δ).
        delta: of (ε, δ).
    """
    gain = math.exp(min(epsilon, 700.0))
    return {
        "even": percent(gain / (1 + gain)),
        "rare": percent(gain / (gain + 99)),
        "guess": percent((gain + delta) / (1 + gain)),
        "times": f"{math.ceil(gain * 10 - 1e-9) / 10:,.1f}",
        "slip": f"1 in {max(1, math.floor(1 / delta + 1e-9)):,}" if delta > 0 else "0",
    }


def weak(epsilon: float) -> bool:
    """Whether this ε by itself promises little: 50 % can become 99 % and more."""
    return epsilon > math.log(99)


def not_proved(clear: bool, overlap: str | None) -> list[tuple[str, str]]:
    """Return what is not proved, as pairs of a title and why.

    Args:
        clear: metrics on a test split were published without noise.
        overlap: who attests that nobody is at two sites, and why.
    """
    found = []
    for title, why in NOT_PROVED:
        said = f" Attested, not proved: {overlap}." if overlap and "two sites" in title else ""
        found.append((title, why + said))
    if clear:
        found.append(
            (
                "Anything about the records of the test split",
                "Metrics of the model were computed on them and published in the clear, as if "
                "they were public.",
            )
        )
    return found


def plan_of(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a plan's parameters in words, as pairs of a name and what it is."""
    privacy, training = dig(plan, "privacy"), dig(plan, "training")
    if not isinstance(training, dict):
        training = {}
    task, label = str(dig(plan, "task", "kind")), str(dig(plan, "task", "label"))
    rows = [
        ("Task", f"{task}: predict “{label}” from {_features(plan)}"),
        ("Model", _model(plan)),
        ("Training", _training(training)),
    ]
    if not isinstance(privacy, dict):
        return [*rows, ("Privacy", "none: the plan trains without noise")]
    unit = unit_of(str(privacy.get("unit")), int(number(privacy.get("max_records")) or 1))
    loss = terms_of(
        number(privacy.get("delta")) or 0.0, str(privacy.get("unit")), str(privacy.get("relation"))
    )
    rows += [
        ("Protected unit", unit),
        ("Budget asked for", f"ε {_plain(privacy.get('epsilon'))} ({loss}) at each site"),
        ("Noise", _noise(plan, privacy, training)),
        ("Trust", _trust(privacy.get("trust"))),
    ]
    return [*rows, ("Metrics of the model", figures_of(plan))]


def _trust(said: Any) -> str:
    if said == "local":
        return "local: noise is added at the site; nobody outside sees un-noised values"
    return f"the plan says ‘{said}’" if said else "not stated in the plan"


def _noise(plan: Mapping[str, Any], privacy: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if training.get("rounds") == 0:
        deviation = _plain(dig(plan, "metrics", "noise_multiplier"))
        return f"random noise with a standard deviation of {deviation} on each count of the metrics"
    noise, clip = number(privacy.get("noise_multiplier")), number(privacy.get("clip"))
    if noise is None:
        return "not fixed in the plan"
    return (
        f"what a unit adds to a step is cut to length {_plain(clip)}; then random noise with a "
        f"standard deviation of {_plain(noise)} times that length is added"
    )


def _model(plan: Mapping[str, Any]) -> str:
    start = dig(plan, "model", "start")
    kind = str(dig(plan, "model", "kind"))
    return f"{kind}, from the weights {start}" if start else kind


def _training(training: Mapping[str, Any]) -> str:
    rounds, steps = dig(training, "rounds"), dig(training, "steps")
    rate = number(training.get("sample_rate"))
    if rounds == 0:
        return "none: each site measures a trained model once"
    who = "all units of the site take part"
    if rate is None or rate < 1:
        chance = f"with probability {_plain(rate)}, independently of the others"
        who = f"each unit of the site takes part {chance}"
    return (
        f"{counted(rounds, 'round')}; in each, every site takes {counted(steps, 'noisy step')}; "
        f"in a step {who}"
    )


def figures_of(plan: Mapping[str, Any]) -> str:
    """Return in words where a plan's metrics come from."""
    source = dig(plan, "metrics", "source")
    if source == "gate":
        return (
            "by the metrics mechanism: each site's own held-out records, noised and paid for from "
            f"the same budget, every {dig(plan, 'metrics', 'every')} rounds"
        )
    if source == "off":
        return "none are computed"
    return (
        "in the clear, on a test split that counts as public; records in it are outside the promise"
    )


def _features(plan: Mapping[str, Any]) -> str:
    if dig(plan, "task", "kind") == "text":
        return "a text"
    counts = [len(dig(plan, "task", key) or ()) for key in ("numeric", "categorical")]
    return f"{sum(counts)} declared features" if sum(counts) else "the user's own encoding"


def _plain(value: Any) -> str:
    found = number(value)
    return "not given" if found is None else f"{found:g}"


NOT_PROVED = [
    (
        "That the noise was truly random",
        "The software draws it from the operating system's generator. A site that deceives itself "
        "could draw worse noise, and no file can show it.",
    ),
    (
        "That the software named here is what ran",
        "Each entry carries a digest of the installed program, signed by the site. Whether that "
        "program ran, unchanged, on that machine, the site alone knows.",
    ),
    (
        "That nobody is at two sites",
        "For a person whose data are at two sites, or in two populations, the ε values add up.",
    ),
    (
        "That there was no training outside the ledger",
        "Use of the same data by other software, training by this software with another ledger or "
        "without one, and whatever came before the ledger began are not counted.",
    ),
    (
        "That rounding gives nothing away",
        "The promise is proved for exact numbers; computers round.",
    ),
    ("What can be learnt from time", "How long a site took to answer is outside the promise."),
    (
        "That nothing can be learnt about a person",
        "The model teaches general facts, which may apply to a person whether or not their data "
        "were used. The promise is about the use of their data.",
    ),
]

WHO_SEES = [
    ("The site itself", "its records, and un-noised gradients in memory while it trains"),
    ("The coordinator", "orders; each site's update and metrics, after noise; the joint model"),
    (
        "The other sites",
        "the joint model, and each other's signed ledger heads (sizes and digests)",
    ),
    ("Witnesses", "signed heads of ledgers: sizes and digests, no entries"),
    ("The auditor", "this bundle: entries, plans, orders, proofs; no records and no updates"),
    ("Those who get the model", "the published model"),
]

GLOSSARY = [
    (
        "ε (epsilon)",
        "The privacy loss: how much more sure somebody can become that a unit's data were used. "
        "0 is nothing at all; each 0.7 more can double the odds. It means nothing without δ, unit "
        "and relation.",
    ),
    (
        "δ (delta)",
        "The exception to ε: as if, with this small probability, the answer were given outright.",
    ),
    (
        "Unit",
        "Whose presence is protected: one record, or one person with all their records. If the "
        "unit is a record, a person with several records is protected less.",
    ),
    (
        "Relation",
        "What is compared: the data with and without the unit (“add or remove one”), or with "
        "another in its place (“replace one”).",
    ),
    (
        "Population",
        "The people behind a site's data. The lifetime budget belongs to them, whatever data "
        "set or plan their records are used in.",
    ),
    ("Cap", "The most ε that a population may ever spend, over all plans together."),
    ("Charge", "A part of the budget, reserved before data are opened. It is kept if they were."),
    (
        "Ledger",
        "A site's own log of all this. Each entry is signed; none can be changed or left out "
        "later without it showing.",
    ),
    ("Journal", "The coordinator's log: which orders it gave, and which releases it aggregated."),
    (
        "Witness",
        "Another party that signs the state of a ledger, so that its keeper cannot show two "
        "versions or go back to an older one.",
    ),
    (
        "Roster",
        "The list of parties and the fingerprints of their keys. It is pinned if it came to you "
        "another way than the bundle.",
    ),
    ("Bundle", "The one file that an auditor is given."),
    ("Plan", "What is to be trained, and how. Its digest identifies it everywhere."),
]

MAPPING = [
    ("NIST 800-226", "Section 2: privacy parameter, unit", "Spent and left; Plans"),
    ("NIST 800-226", "Section 2: comparing guarantees", "Claims; What is not proved"),
    ("NIST 800-226", "Section 3: algorithms, learning", "Plans; Assumption register H1 to H4, H26"),
    ("NIST 800-226", "Section 4: query and threat model", "Who sees what"),
    ("NIST 800-226", "Section 4: implementation", "Assumption register H5 to H8, H14 to H19, H30"),
    ("NIST 800-226", "Section 4: security, collection", "None: outside this report"),
    ("GDPR", "Art. 30: records of processing", "In short; Runs and refusals; Plans"),
    ("GDPR", "Art. 35(7)(a): the processing", "In short; Plans; Who sees what"),
    ("GDPR", "Art. 35(7)(c): risks", "What the number means; What is not proved"),
    ("GDPR", "Art. 35(7)(d): measures", "Spent and left; Assumption register; Witnesses"),
    ("HIPAA", "(b)(1)(i): the expert's judgement", "What the number means; Claims"),
    ("HIPAA", "(b)(1)(ii): methods and results", "Plans; Spent and left; Check it yourself"),
    ("AI Act", "Point 2(a), (b): development, design", "Plans"),
    ("AI Act", "Point 2(d): training data", "In short (which data sets, not their content)"),
    ("AI Act", "Point 2(g): validation, testing", "Assumption register (rows tested); Plans"),
    ("AI Act", "Point 2(h): cybersecurity", "Witnesses; Keys, pauses, withdrawals"),
    ("SR 26-2", "Development, documentation", "Plans; Runs and refusals"),
    ("SR 26-2", "Validation", "Check it yourself; Assumption register"),
    ("SR 26-2", "Governance, inventory", "In short; Who approved the plans; registry.json"),
]
TEXTS = (
    "NIST SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees (March 2025); "
    "GDPR, Regulation (EU) 2016/679; HIPAA, expert determination, 45 CFR 164.514(b)(1); AI Act, "
    "Regulation (EU) 2024/1689, Annex IV, for systems that it covers; SR 26-2, the model risk "
    "guidance of the US banking agencies of April 2026, which replaced SR 11-7."
)
