"""The policy: one site's limits and data, in a file of its own.

The site's operator writes it (``site.toml``) and nobody else. It names the populations
whose lifetime budgets are kept, the data sets that hold their records, and what may be
asked of them and by whom. What it says is published in the ledger, without paths, columns,
sizes and where keys are (:meth:`Policy.public`).
"""

from __future__ import annotations

import functools
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from privet.common.canonical import digest_json
from privet.common.config import load_toml
from privet.common.errors import PlanError, PolicyError
from privet.common.person_id import PersonId
from privet.common.plan import Plan
from privet.common.schema import ABSOLUTE, DIGEST, KEY, SSH_KEY, Count, Line, Part, SiteName, parse
from privet.common.site_name import spelled
from privet.common.text_format import TextFormat
from privet.privacy.accounting.events import decimal
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.database import Database, Identifier
from privet.privacy.evidence.officers import ssh_key, ssh_text
from privet.privacy.evidence.order_keys import OrderKeys
from privet.privacy.person_names import same_person, tidy

Key = Annotated[str, Field(pattern=KEY)]
"""Name of a population or a data set; safe as a file name."""
Digest = Annotated[str, Field(pattern=DIGEST)]
ANY = "*"
GOVERNANCE = ("controller", "purpose", "retention", "contact", "next_review")
"""Fields of a policy that say who answers for a site's data; published where they are stated."""


def _day(text: str) -> str:
    """Refuse what is not a day of the calendar, written as ISO 8601 has it."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:
        raise ValueError("must be a date, such as 2027-06-30")
    return text


class Population(Part):
    """The people whose lifetime budget this is; unit and relation never change.

    Attributes:
        unit: what one person's contribution is.
        relation: neighbouring relation of the accounting.
        epsilon, delta: the lifetime cap. ε is None, no cap, in simulations only.
        max_records: most records of one person that a plan may use (unit ``person``).
    """

    unit: Literal["record", "person"]
    relation: Literal["add_or_remove_one", "replace_one"] = "add_or_remove_one"
    epsilon: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None
    delta: Annotated[float, Field(gt=0, le=1e-2)]
    max_records: Count = 1

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.unit == "record" and self.max_records != 1:
            raise ValueError("'max_records' belongs to unit = 'person'")
        return self

    def misfit(self, plan: Plan) -> str | None:
        """Return why ``plan`` does not fit these people's terms, or None."""
        privacy = plan.privacy
        if privacy is None:
            return "has no [privacy] section" if self.epsilon is not None else None
        if privacy.unit != self.unit:
            return f"protects a {privacy.unit}, the population is counted per {self.unit}"
        if privacy.relation != self.relation:
            return f"has relation '{privacy.relation}', the population '{self.relation}'"
        if privacy.max_records > self.max_records:
            return (
                f"uses up to {privacy.max_records} records of a person, "
                f"the population allows {self.max_records}"
            )
        if self.epsilon is not None and privacy.epsilon > self.epsilon:
            return (
                f"asks for ε {privacy.epsilon:g}, above the population's lifetime ε "
                f"{self.epsilon:g} (δ {self.delta:g}, per {self.unit})"
            )
        if privacy.delta > self.delta:
            return f"has δ {privacy.delta:g}, above the population's {self.delta:g}"
        return None


class DataSet(Part):
    """Records of one population, and where they are.

    Attributes:
        population: whose records.
        nominal_size: number of units, public and fixed by hand; never counted (H2).
        path: the file, relative to the policy; it never leaves the site.
        sql: the table of a database, in place of a file; it never leaves the site.
        columns: the columns that are read, and that a plan may use; None: all of a file's.
        person_column: the column that names the person.
        person_ignore_case, person_numeric: how ids of people are folded
            (:class:`privet.common.person_id.PersonId`).
        multiline: quoted cells of a CSV or TSV file may contain line breaks; the site vouches for
            its quoting.
        format: how a CSV or TSV file writes its cells; None: a comma or tab, a decimal point and
            UTF-8. It never leaves the site.
        independent: why rows of a view that is not plain do not depend on each other (H6).
        min_units: with fewer units the site does not train. Its operator's check decides that,
            before the client starts, and no answer does; it never leaves the site.
        disjoint: why its people are in no other population of this site (H32).
    """

    population: Key
    nominal_size: Count
    path: str | None = None
    sql: Database | None = None
    columns: Annotated[tuple[Identifier, ...], Field(min_length=1)] | None = None
    person_column: str | None = None
    person_ignore_case: bool = False
    person_numeric: bool = False
    multiline: bool = False
    format: TextFormat | None = None
    independent: str = ""
    min_units: Count | None = None
    disjoint: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.sql is not None and self.path is not None:
            raise ValueError("name 'path' or 'sql', not both")
        if self.columns is None:
            if self.sql is not None:
                raise ValueError("'sql' needs 'columns': which columns of the table are read")
            return self
        if twice := {name for name in self.columns if self.columns.count(name) > 1}:
            raise ValueError(f"'columns' names '{min(twice)}' twice")
        if self.person_column is not None and self.person_column not in self.columns:
            raise ValueError(f"'columns' lacks the person_column '{self.person_column}'")
        return self

    @property
    def coupling_attested(self) -> str | None:
        """What the site vouches for of its records not changing each other before they are read.

        None where Privet reads each from its own bytes or its own row, so that H6 needs no word of
        anybody's.
        """
        if self.independent.strip():
            return self.independent.strip()
        if self.multiline and self.sql is None:
            # Ledgers hold this text, and a policy's digest is over it: it must not change.
            return "quoted cells hold line ends: the site keeps the quotes of its files closed"
        return None

    @property
    def person(self) -> PersonId:
        """How ids of people are folded."""
        return PersonId(self.person_ignore_case, self.person_numeric)


LEAST_WITNESSES = 5
"""Sites that cosign each ledger, at least, where a policy does not say another number."""


class Allow(Part):
    """What may be asked. An empty list is none, ``["*"]`` any.

    Attributes:
        tasks, models: kinds.
        max_rounds: most rounds of a plan.
        max_parameters: most parameters that are trained.
        metrics: where metrics may come from.
        coordinators: fingerprints of the order keys that may ask.
        plans: digests of plans approved beforehand.
        approval: ``listed``: only those plans; ``manual``: the operator approves others.
        approvers: how many different people must approve a plan.
        key_rotation: ``signed``, the same as None: a key that a listed one signed to follow it may
            ask, too (privacy/evidence/order_keys.py); ``listed``: only listed keys.
        witnesses: least number of sites that cosign each ledger in a round, where a plan has them
            drawn by lot; None, the same as 5. With all other sites as witnesses any number is
            enough.
    """

    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    max_rounds: Count = 1000
    max_parameters: Count = 100_000_000
    metrics: tuple[Literal["public", "gate", "off"], ...] = ("public", "gate", "off")
    coordinators: tuple[Digest, ...] = ()
    plans: tuple[Digest, ...] = ()
    approval: Literal["manual", "listed"] = "manual"
    approvers: Annotated[int, Field(ge=1, le=2)] = 1
    key_rotation: Literal["signed", "listed"] | None = None
    witnesses: Annotated[int, Field(ge=2, le=1000)] | None = None


class Keys(Part):
    """The ledger's key in a hardware token (privacy/evidence/pkcs11.py). Never published.

    Attributes:
        module: absolute path of the vendor's PKCS#11 library.
        token: label of the token.
        ledger: label of the ledger's key pair.
    """

    module: Annotated[str, Field(pattern=ABSOLUTE)]
    token: Annotated[str, Field(min_length=1, max_length=32)]
    ledger: Annotated[str, Field(min_length=1)]


class Keep(Part):
    """How long a site keeps what it may need again. Never published.

    Attributes:
        trainer_minutes: a trainer that nobody has asked for so long is ended, and with it the
            records that it holds in memory and the snapshot of a database.
        releases_days: releases of earlier runs are kept so long after they were made.
    """

    trainer_minutes: Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)] = 10.0
    releases_days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] = 30.0


class Policy(Part):
    """One site's limits and data.

    ``keys`` is None where the ledger's key is a file beside the ledger. With ``ledger_copy`` the
    coordinator and other sites may keep a copy of the ledger that only the site's recovery key
    opens. Neither is published.

    ``attested`` names rows of the assumption register that the site vouches for, with the reason:
    H12 (where its constants come from), H21 (nobody is at two sites). H13 is a plan's.

    ``controller`` (who decides why and how the records are used), ``purpose``, ``retention``,
    ``contact`` and ``next_review`` are the site's own words for an officer's report. Each may be
    left out, and is then not published: a policy without them has the digest that it always had.

    ``officers`` maps names to the public keys (OpenSSH's form) of those who approve plans and
    change this policy: what they decide is signed by their own keys
    (:mod:`privet.privacy.evidence.officers`).
    Without officers, anyone who has the ledger's key decides, under any name.
    """

    site: SiteName
    controller: Line | None = None
    purpose: Line | None = None
    retention: Line | None = None
    contact: Line | None = None
    next_review: Annotated[Line, AfterValidator(_day)] | None = None
    setting: Literal["site", "simulation"] = "site"
    ledger: str = "ledger"
    ledger_copy: bool = True
    keys: Keys | None = None
    officers: dict[Line, Annotated[str, Field(pattern=SSH_KEY)]] = {}
    populations: Annotated[dict[Key, Population], Field(min_length=1)]
    data: Annotated[dict[Key, DataSet], Field(min_length=1)]
    allow: Allow = Allow()
    keep: Keep = Keep()
    attested: dict[Literal["H12", "H21"], str] = {}
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, data in self.data.items():
            if data.population not in self.populations:
                known = ", ".join(self.populations)
                raise ValueError(
                    f"data set '{name}' names population '{data.population}'; there is {known}"
                )
            population = self.populations[data.population]
            if population.unit == "person" and not data.person_column and self.setting == "site":
                raise ValueError(f"data set '{name}' needs a 'person_column': its unit is a person")
            if data.population != self.first_population and not data.disjoint.strip():
                raise ValueError(
                    f"data set '{name}' needs 'disjoint': why none of its people is in another "
                    f"population of this site; or name population '{self.first_population}' (H32)"
                )
        for name, population in self.populations.items():
            if population.epsilon is None and self.setting == "site":
                raise ValueError(f"population '{name}' has no cap: 'epsilon' must be a number")
        self._require_officers()
        return self

    def _require_officers(self) -> None:
        """Check that as many people can sign as must, each by a key of her own."""
        if not self.officers:
            return
        for name in self.officers:
            if tidy(name) != name:
                raise ValueError(f"write the officer's name '{name}' as '{tidy(name)}'")
        keys = {ssh_key(key) for key in self.officers.values()}
        if len(keys) < len(self.officers):
            raise ValueError("two 'officers' have the same key; each signs by a key of her own")
        if len({same_person(name) for name in self.officers} - {""}) < len(self.officers):
            raise ValueError("two 'officers' have the same name; each is one person")
        if self.allow.approval == "manual" and len(self.officers) < self.allow.approvers:
            raise ValueError(
                f"allow.approvers is {self.allow.approvers}, and 'officers' names "
                f"{len(self.officers)}: nobody else can approve a plan"
            )

    @classmethod
    def parse(cls, value: dict[str, Any], *, where: str = "policy") -> Policy:
        """Build a policy from a mapping, as TOML or JSON gives it.

        Raises:
            PolicyError: naming every wrong key and what was expected.
        """
        if isinstance(value, dict) and "task" in value and "populations" not in value:
            raise PolicyError(f"{where}: this is a plan, not a policy")
        if isinstance(value, dict) and type(day := value.get("next_review")) is date:
            value = {**value, "next_review": day.isoformat()}  # TOML has dates of its own
        return parse(cls, value, where=where, error=PolicyError)

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a site's policy from a TOML file.

        Raises:
            PolicyError: if the file cannot be read or is not a policy.
        """
        path = Path(path)
        try:
            value = load_toml(path)
        except PlanError as error:
            raise PolicyError(str(error)) from None
        if "setting" in value:
            raise PolicyError(f"{path}: setting: is for simulations, which write no file")
        policy = cls.parse(value, where=str(path))
        policy._folder = path.parent
        return policy

    @classmethod
    def for_simulation(
        cls, plan: Plan, site: str, coordinator: str, cap: tuple[float | None, float] | None = None
    ) -> Policy:
        """Return the policy of a simulated site that allows ``plan`` and nothing else.

        Args:
            plan: the plan, noise calibrated.
            site: name of one of its sites.
            coordinator: fingerprint of the key that signs the orders.
            cap: lifetime (ε, δ) of its population; default the plan's own.

        Raises:
            PlanError: if the plan has no such site.
            PolicyError: if ``coordinator`` is not a fingerprint.
        """
        spec, key, privacy = plan.site(site), site.replace(" ", "_"), plan.privacy
        own: tuple[float | None, float] = (None, 1e-5)
        terms = {"unit": "record", "relation": "add_or_remove_one", "max_records": 1}
        if privacy is not None:
            own = privacy.epsilon, privacy.delta
            terms |= {"unit": privacy.unit, "relation": privacy.relation}
            if privacy.unit == "person":
                terms["max_records"] = privacy.max_records
        epsilon, delta = cap or own
        return cls.parse(
            {
                "site": site,
                "setting": "simulation",
                "populations": {key: {**terms, "epsilon": epsilon, "delta": delta}},
                "data": {
                    key: {
                        "population": key,
                        "nominal_size": spec.nominal_size,
                        "path": spec.path,
                        "person_column": plan.data.person_column,
                        "person_ignore_case": plan.data.person_ignore_case,
                        "person_numeric": plan.data.person_numeric,
                        "multiline": plan.data.multiline,
                        "format": plan.data.format and plan.data.format.model_dump(mode="json"),
                    }
                },
                "allow": {
                    "tasks": [plan.task.kind],
                    "models": [plan.model.kind],
                    "max_rounds": plan.last_round,
                    "metrics": [plan.metrics.source],
                    "coordinators": [coordinator],
                    "plans": [plan.digest],
                    "approval": "listed",
                    "witnesses": plan.strategy.witnesses,
                },
                "attested": {key: why for key, why in plan.attested.items() if key != "H13"},
            },
            where=f"simulated site '{site}'",
        )

    @property
    def first_population(self) -> str:
        """Name of the population that is named first; others must be disjoint from it."""
        return next(iter(self.populations))

    @property
    def folder(self) -> Path:
        """The folder that paths in the policy start from."""
        return self._folder

    def at(self, folder: Path) -> Policy:
        """Return the policy as if it had been read from a file in ``folder``."""
        moved = self.model_copy()
        moved._folder = folder
        return moved

    @property
    def ledger_folder(self) -> Path:
        """Where the ledger is kept."""
        return self._folder / self.ledger

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:…`` over the canonical JSON of :meth:`public`."""
        return digest_json(self.public())

    def public(self) -> dict[str, Any]:
        """Return what is published in the ledger: no paths, no columns, no sizes, no keys.

        Numbers other than integers are decimal strings.
        """
        unstated = {key for key in GOVERNANCE if getattr(self, key) is None}
        private = {"ledger", "ledger_copy", "keys", "keep"}
        value = self.model_dump(mode="json", exclude={*private, *unstated})
        value["attested"] = self.vouched
        for key in ("key_rotation", "witnesses"):
            if getattr(self.allow, key) is None:
                del value["allow"][key]
        if self.officers:
            value["officers"] = {
                name: ssh_text(ssh_key(key)) for name, key in self.officers.items()
            }
        else:
            del value["officers"]
        for population in value["populations"].values():
            for key in ("epsilon", "delta"):
                if population[key] is not None:
                    population[key] = decimal(population[key])
        for data in value["data"].values():
            for key in (
                "path", "sql", "columns", "person_column", "nominal_size", "min_units", "format",
            ):  # fmt: skip
                del data[key]
        return value

    @property
    def vouched(self) -> dict[str, str]:
        """The rows of the assumption register that the site vouches for, with the reason.

        H6 is among them where a data set's records may change each other before Privet reads them.
        """
        found = {name: data.coupling_attested for name, data in self.data.items()}
        reasons = [f"data set '{name}': {why}" for name, why in found.items() if why]
        own = {str(row): why for row, why in self.attested.items()}
        if reasons:
            own["H6"] = "; ".join(reasons)
        return own

    def data_set(self, name: str | None = None) -> tuple[str, DataSet]:
        """Return the data set called ``name``, or the only one, with its name.

        Raises:
            PolicyError: if there is none of that name, or several and none was named.
        """
        known = ", ".join(self.data)
        if name is None and len(self.data) > 1:
            raise PolicyError(f"site '{self.site}' has the data sets {known}: name one")
        key = next(iter(self.data)) if name is None else name
        if key not in self.data:
            raise PolicyError(f"site '{self.site}' has no data set '{key}'; it has {known}")
        return key, self.data[key]

    def data_set_for(self, plan: Plan) -> str:
        """Return the name of the data set that a plan fits; where it fits none, the first.

        Raises:
            PolicyError: if it fits several.
        """
        named = any(site.name == self.site for site in plan.sites)
        fit = [name for name in self.data if named and self._data_fault(plan, name) is None]
        if len(fit) > 1:
            raise PolicyError(
                f"plan '{plan.name}' fits the data sets {' and '.join(fit)} of site '{self.site}': "
                "name one, or give them different values of nominal_size"
            )
        return (fit or list(self.data))[0]

    def path_of(self, data: DataSet) -> Path | None:
        """Return the file of a data set, or None if the policy names none."""
        return None if data.path is None else self._folder / data.path

    def terms(self, population: str) -> tuple[Unit, Relation]:
        """Return unit and relation of a population."""
        found = self.populations[population]
        return Unit(found.unit), Relation(found.relation)

    def may_ask(self, coordinator: str, keys: OrderKeys | None = None) -> bool:
        """Whether the holder of the order key with this fingerprint may send orders.

        Args:
            coordinator: the fingerprint.
            keys: which key follows which, by the ledger.
        """
        if keys is None or self.allow.key_rotation == "listed":
            return coordinator in self.allow.coordinators
        return keys.leads(self.allow.coordinators, coordinator)

    def listed(self, plan: Plan) -> bool:
        """Whether the plan is approved by its digest; no person has to approve it."""
        return plan.digest in self.allow.plans

    def fault(
        self, plan: Plan, parameters: int | None = None, *, data_set: str | None = None
    ) -> str | None:
        """Return why ``plan`` is not allowed, for the operator, or None.

        Args:
            plan: what is asked.
            parameters: how many parameters it trains; None: not known yet.
            data_set: the data set it would use; None: any that fits.
        """
        if fault := self._allow_fault(plan, parameters):
            return fault
        names = list(self.data) if data_set is None else [data_set]
        faults = [self._data_fault(plan, name) for name in names]
        return None if None in faults else faults[0]

    def _allow_fault(self, plan: Plan, parameters: int | None) -> str | None:
        allow, who = self.allow, f"plan '{plan.name}'"
        names = [site.name for site in plan.sites]
        if self.site not in names:
            other = spelled(self.site, names)
            so = f"; it names '{other}', which must be spelled alike" if other in names else ""
            return f"{who} does not name site '{self.site}'{so}"
        if plan.privacy is not None and plan.privacy.is_central:
            return (
                f"{who}: privacy.trust 'central' is for simulations: a coordinator adds the noise"
            )
        if not _allowed(plan.task.kind, allow.tasks):
            return f"{who}: task '{plan.task.kind}' is not in allow.tasks"
        if not _allowed(plan.model.kind, allow.models):
            return f"{who}: model '{plan.model.kind}' is not in allow.models"
        if plan.training.rounds > allow.max_rounds:
            return f"{who}: {plan.training.rounds} rounds, allow.max_rounds is {allow.max_rounds}"
        if parameters is not None and parameters > allow.max_parameters:
            return (
                f"{who}: {parameters:,} trained parameters, allow.max_parameters is "
                f"{allow.max_parameters:,}"
            )
        drawn, least = plan.strategy.witnesses, allow.witnesses or LEAST_WITNESSES
        if drawn is not None and drawn < min(least, len(plan.sites) - 1):
            return (
                f"{who}: {drawn} sites cosign each ledger (strategy.witnesses), allow.witnesses is "
                f"{least}"
            )
        if plan.metrics.source not in allow.metrics:
            return f"{who}: metrics '{plan.metrics.source}' are not in allow.metrics"
        if allow.approval == "listed" and not self.listed(plan):
            return f"{who}: {plan.digest} is not in allow.plans, and only listed plans are allowed"
        return None

    def _data_fault(self, plan: Plan, name: str) -> str | None:
        data = self.data_set(name)[1]
        said = next(site.nominal_size for site in plan.sites if site.name == self.site)
        if said != data.nominal_size:
            return (
                f"plan '{plan.name}' counts {said} units here, data set '{name}' has nominal_size "
                f"{data.nominal_size}"
            )
        if data.columns is not None and (other := set(plan.task.columns) - set(data.columns)):
            return (
                f"plan '{plan.name}' uses column '{min(other)}', which is not among the columns of "
                f"data set '{name}'"
            )
        if misfit := self.populations[data.population].misfit(plan):
            return f"plan '{plan.name}' {misfit} (population '{data.population}')"
        return None


def _allowed(kind: str, kinds: tuple[str, ...]) -> bool:
    return kind in kinds or kinds == (ANY,)


TEMPLATE = """\
# What this site lets others do with its data. Keep it at the site.
site = "North"                       # as plans and the roster call it
ledger = "ledger"                    # folder of the ledger, from this file's folder
ledger_copy = true                   # others keep a copy that only your recovery key opens

# Who answers for these data, in the officer's report. What is left out appears as not stated.
# controller = "North Hospital Trust"  # who decides why and how the records are used
# purpose = "Research on readmission after surgery"
# retention = "The extract is deleted at the end of 2027."
# contact = "dpo@north.example"
# next_review = "2027-06-30"           # when this policy is reviewed

# Where the ledger's key is in a hardware token; else it is the file ledger/ledger.pem.
# [keys]
# module = "/usr/lib/softhsm/libsofthsm2.so"    # the vendor's PKCS#11 library
# token = "north"                      # label of the token
# ledger = "ledger-key"                # label of the Ed25519 key pair

# Who approves plans and changes this policy, each by a key of her own (`ssh-keygen -t ed25519`).
# Without it anyone who works at this machine decides, under any name.
# [officers]
# "Ada Lovelace" = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI…"

# The people. Their lifetime budget is spent by every plan on any of their records.
[populations.patients]
unit = "record"                      # "person": all of a person's records together
relation = "add_or_remove_one"       # or "replace_one"
epsilon = 3.0                        # never more than this is spent, by all plans together
delta = 1e-5                         # well below 1 / number of people
max_records = 1                      # most records of one person that a plan may use

# Records of a population. A later extract of the same people names the same population.
# A data set of a second population must say in "disjoint" why nobody is in both.
[data.admissions-2026]
population = "patients"
nominal_size = 1200                  # number of units, a round number set by hand
path = "admissions.csv"              # from this file's folder; never leaves the site
# columns = ["age", "sex", "died"]   # read these only; a database's table needs it
# person_column = "patient_id"       # needed for unit = "person"
# person_ignore_case = false         # true: "P1" and "p1" are one person
# person_numeric = false             # true: "0012", "12" and "12.0" are one person
# multiline = false                  # true: quoted cells of a CSV file may contain line breaks
# format = { separator = ";", decimal = ",", encoding = "cp1252", na = ["k.A."] }  # of a CSV file
disjoint = ""
# min_units = 50                     # with fewer, `privet client start` refuses: run client check

# In place of "path": a table or view of a database, read-only. Needs privet[sql] and "columns".
# SQL Server: mssql+pymssql://USER@HOST/DATABASE (privet[sqlserver]); Oracle:
# oracle+oracledb://USER@HOST/SERVICE (privet[oracle]).
# [data.admissions-2026.sql]
# url = "postgresql+psycopg://reader@db.example.org/ehr?sslmode=verify-full"
# password_file = "db.password"      # readable by its owner only; or password_variable
# table_schema = "research"
# table = "admissions"
# timeout = 600                      # seconds
# max_rows = 10_000_000

# What may be asked. [] is none, ["*"] any.
[allow]
tasks = ["tabular"]
models = ["linear", "ft-transformer"]
max_rounds = 200
max_parameters = 30_000_000          # parameters that are trained
metrics = ["public", "gate", "off"]  # where metrics of the model may come from
coordinators = []                    # fingerprints "sha256:…" of the order keys that may ask
# key_rotation = "listed"            # not those that a listed key signed to follow it
# witnesses = 5                      # least number of sites that cosign the ledger, by lot
plans = []                           # digests "sha256:…" of plans approved beforehand
approval = "manual"                  # "listed": only the plans above
approvers = 1                        # 2: two different people must approve a plan

# How long the site keeps what it may need again.
# [keep]
# trainer_minutes = 10               # an idle trainer, and the records in its memory
# releases_days = 30                 # releases of earlier runs

# Rows of the assumption register that the site vouches for, each with the reason.
[attested]
# H21 = "All patients live in this county, and no other site serves it."
"""
"""A policy to start from."""
