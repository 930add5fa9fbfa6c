"""The fields that are somebody's word: nobody who reads a bundle can check them."""

from __future__ import annotations

from dataclasses import dataclass

from trial import Forgery

SIGNER, COORDINATOR = "its signer's", "the coordinator's"
ALL, HOLDER = "that of all who state it", "that of whoever hands the file on"


@dataclass(frozen=True)
class Word:
    """Whose word a field is, and why nobody can check it."""

    whose: str
    why: str


def _coordinator(why: str, *fields: str) -> dict[str, Word]:
    return {field: Word(COORDINATOR, why) for field in fields}


def _signer(why: str, *fields: str) -> dict[str, Word]:
    return {field: Word(SIGNER, why) for field in fields}


def _all(why: str, *fields: str) -> dict[str, Word]:
    return {field: Word(ALL, why) for field in fields}


def _holder(why: str, *fields: str) -> dict[str, Word]:
    return {field: Word(HOLDER, why) for field in fields}


def _told(wanted: str, *lies: str) -> dict[str, Word]:
    return {f"lie: {lie}": Word("", wanted) for lie in lies}


#: A name that ends in ``.**`` stands for an object and all that is in it.
WORDS: dict[str, Word] = {
    # plans
    **_coordinator(
        "names and describes the plan; each site approved the plan's digest",
        "plan.name", "plan.title", "plan.scenario",
    ),
    **_coordinator(
        "what is learnt, from which columns, by which model: it changes no event",
        "plan.task.**", "plan.model.**", "plan.data.**", "plan.split.**", "plan.compression.**",
    ),
    **_coordinator(
        "how it is computed: it changes no event, and no record of the computing is kept",
        "plan.seed", "plan.device", "plan.threads", "plan.training.learning_rate",
        "plan.training.optimizer", "plan.training.momentum", "plan.training.micro_batch",
        "plan.training.clip", "plan.training.clipping", "plan.training.copies",
        "plan.training.max_attempts", "plan.metrics.bins", "plan.strategy.kind",
        "plan.strategy.options.**", "plan.strategy.proximal_mu", "plan.strategy.timeout",
        "plan.strategy.attempts",
    ),
    **_coordinator(
        "whether the model that is shown is a mean; a mean is computed from releases and costs"
        " nothing",
        "plan.strategy.average_last",
    ),
    **_coordinator("declared, not counted: counting records would tell about them",
                   "plan.sites[].nominal_size"),
    **_coordinator("figures that do not come from the gate leave nothing in a ledger; those of the"
                   " gate are checked", "plan.metrics.source", "plan.metrics.every",
                   "plan.metrics.noise_multiplier"),
    **_coordinator("where the records of a simulation lie", "plan.sites[].path"),
    **_coordinator("what the operator vouches for, in words", "plan.attested.**"),
    **_coordinator("which noise protects against whom; the events do not tell",
                   "plan.privacy.trust"),
    **_coordinator("fields that a verifier does not know: a later version may have them",
                   "plan", "plan.metrics", "plan.privacy", "plan.sites[]", "plan.strategy",
                   "plan.training"),
    **_all("what a unit is, and what its neighbours are, is said by plan and population alike;"
           " nobody sees the records", "plan.privacy.unit", "plan.privacy.relation",
           "ledger.population.unit", "ledger.population.relation"),
    **_coordinator("what it asks for, as long as its events cost no more and the population"
                   " allows it", "plan.privacy.epsilon", "plan.privacy.delta",
                   "plan.privacy.max_records"),
    **_coordinator("how many sites a round needs at least; that it had them is checked",
                   "plan.strategy.min_sites"),
    # orders and the journal
    **_coordinator("which parameters a model has; that all orders of a run ask for the same is"
                   " checked", "order.parameters", "order.parameters[]"),
    **_coordinator("a name that the coordinator chose, the same wherever the run is named",
                   "order.run", "journal.run-opened.run", "journal.round.run",
                   "journal.run-closed.run", "journal.run-resumed.run", "receipt.run",
                   "ledger.reserved.run", "ledger.refused.run"),
    **_coordinator("the arrays of a model are in no bundle; that one round begins where the last"
                   " ended is checked", "order.model", "journal.run-opened.model",
                   "journal.round.model", "journal.round.next", "journal.round.shown",
                   "journal.run-closed.model", "journal.run-resumed.model",
                   "ledger.reserved.model",
                   "ledger.refused.model"),
    **_coordinator("how often it asked before is known to the coordinator and the site",
                   "order.attempt", "journal.round.orders[].attempt",
                   "ledger.reserved.attempt", "ledger.refused.attempt"),
    **_coordinator("the order in which things are listed says nothing",
                   "journal.round.orders", "journal.round.witnessed"),
    **_coordinator("what was received is known to the receiver: a reply can be lost",
                   "journal.round.orders[].answer"),
    **_coordinator("which head of a log was cosigned is free beyond the round's releases",
                   "journal.round.witnessed[].size"),
    **_coordinator("the arrays of a release are in no bundle; that it is the ledger's is checked",
                   "journal.round.joined[].digest", "journal.round.metrics[].digest"),
    **_coordinator("why a run ended, in words", "journal.run-closed.fault"),
    **_coordinator("whether it is content with its run", "journal.run-closed.how"),
    # ledgers
    **_signer("what a program says of itself", "ledger.genesis.software",
              "journal.genesis.software"),
    **_signer("whether the app of a simulation came in a bundle; that a real site's policy says"
              " `site` is checked", "ledger.genesis.setting", "ledger.policy.policy.setting"),
    **_signer("whether its runs are real; that a site's policy says the same is checked",
              "journal.genesis.setting"),
    **_signer("whether other ledgers keep a budget of the same people: nobody else can know",
              "ledger.genesis.other_ledgers", "ledger.genesis.other_ledgers[]"),
    **_signer("which key may follow a lost one is the owner's choice", "ledger.genesis.recovery",
              "journal.genesis.recovery"),
    **_signer("what its clock said; only the order within a log is checked", "entry.time"),
    **_signer("a name that the site chose, the same wherever it stands",
              "ledger.population.population", "ledger.data-set.data_set",
              "ledger.data-set.population", "ledger.reserved.population",
              "ledger.reserved.data_set", "ledger.budget-closed.population"),
    **_signer("why its persons are in no other population, in words",
              "ledger.data-set.disjoint"),
    **_signer("what the site vouches for, in words", "ledger.policy.policy.attested.**"),
    **_signer("who decides by the ledger's first policy, or that nobody is named; that officers"
              " signed each later one, and each approval, is checked",
              "ledger.policy.policy.officers.**"),
    **_signer("its own policy, which it may change at any time; that each reservation keeps to the"
              " policy in force is checked",
              "ledger.policy.policy", "ledger.policy.policy.allow.**",
              "ledger.policy.policy.populations", "ledger.policy.policy.populations.*",
              "ledger.policy.policy.data", "ledger.policy.policy.data.*"),
    **_signer("how many parameters were trained stands in no bundle; the site checks it",
              "ledger.policy.policy.allow.max_parameters"),
    **_signer("its own budget, for the life of the population; the policy says the same",
              "ledger.population.epsilon", "ledger.population.max_records",
              "ledger.policy.policy.populations.*.epsilon",
              "ledger.policy.policy.populations.*.max_records",
              "ledger.policy.policy.populations.*.unit",
              "ledger.policy.policy.populations.*.relation",
              "ledger.policy.policy.data.*.population",
              "ledger.policy.policy.data.*.disjoint"),
    **_signer("how it came to its decision, of a plan that its policy lists",
              "ledger.plan-approved.how"),
    **_signer("how its files are read; nobody sees them",
              "ledger.policy.policy.data.*.independent", "ledger.policy.policy.data.*.multiline",
              "ledger.policy.policy.data.*.person_ignore_case",
              "ledger.policy.policy.data.*.person_numeric"),
    **_signer("who agreed, by the names that the site writes", "ledger.plan-approved.by",
              "ledger.plan-approved.by[]", "ledger.plan-refused.by", "ledger.plan-refused.by[]",
              "ledger.paused.by", "ledger.paused.by[]", "ledger.resumed.by",
              "ledger.resumed.by[]", "ledger.withdrawn.by", "ledger.withdrawn.by[]"),
    **_signer("which plan it does not want, and how it decided, is its own affair",
              "ledger.plan-refused.plan", "ledger.plan-refused.how"),
    **_signer("why it answered no", "ledger.refused.status"),
    **_signer("what it tested at the start of the run, of the tests that exist",
              "ledger.reserved.self_tests"),
    **_all("what ran is seen by the site alone; that all sites name one code is checked, and"
           " `--code` pins it", "ledger.reserved.code"),
    **_signer("the arrays of a release are in no bundle; that the journal names the same is"
              " checked", "ledger.released.digest", "ledger.metric-released.digest"),
    **_signer("how often it ran, up to what was reserved and charged",
              "ledger.released.event.count"),
    **_signer("whether its noise came from a fixed seed", "ledger.released.reproducible",
              "ledger.metric-released.reproducible"),
    **_signer("why an attempt broke", "ledger.aborted.reason"),
    **_signer("whether records were read before it broke", "ledger.aborted.data_opened"),
    # checkpoints and receipts
    **_signer("what the witness's clock said", "checkpoint.signatures[].time"),
    **_holder("a cosignature can be left out, and the verdict says what is not witnessed then",
              "checkpoint.signatures"),
    **_holder("any later checkpoint proves a release as well", "receipt.checkpoint"),
}  # fmt: skip


#: What is accepted although a rule can refuse it, or a label can say it: none may be left.
GAPS: dict[str, Word] = {}


def find(field: str, rows: dict[str, Word]) -> str | None:
    """Return the row that a field belongs to: its own, or that of all below an object."""
    if field in rows:
        return field
    return next(
        (name for name in rows if name.endswith(".**") and f"{field}.".startswith(name[:-2])), None
    )


def known(forgery: Forgery, rows: dict[str, Word]) -> bool:
    """Return whether an accepted forgery is listed, and made by those whose word it is."""
    name = find(forgery.field, rows)
    if name is None:
        return False
    whose = rows[name].whose
    if not whose:  # a lie, by whomever it was told
        return True
    if whose == ALL:
        return forgery.coalition == "everybody"
    if whose == COORDINATOR:
        return "coordinator" in forgery.coalition or forgery.coalition == "everybody"
    return whose == HOLDER or forgery.owner in forgery.members


def table() -> str:
    """Return the table of the format page."""
    head = "| field | whose word | why nobody can check it |\n|---|---|---|\n"
    return head + "\n".join(
        f"| `{field}` | {word.whose} | {word.why} |" for field, word in WORDS.items()
    )
