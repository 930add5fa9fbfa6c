"""A site's policy: what is a policy, what it publishes, and what it lets others ask."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.common.canonical import canonical_json, digest_json
from privet.common.errors import InputError, PlanError, PolicyError
from privet.common.plan import Plan
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.database import Database
from privet.privacy.policy import GOVERNANCE, TEMPLATE, Policy

Make = Callable[..., dict[str, Any]]
KEY = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
OLD_DIGEST = "sha256:59ad90f8ee9756ec5753689fa11c39ba0b997150ed0bb981c2a99b31e0f86794"


def value(**allow: Any) -> dict[str, Any]:
    """Return a policy for site North of the tiny plan; ``allow`` changes that section."""
    return {
        "site": "North",
        "populations": {"patients": {"unit": "record", "epsilon": 20.0, "delta": 1e-4}},
        "data": {
            "admissions": {
                "population": "patients", "nominal_size": 60, "path": "secret/north.csv",
                "person_column": "secret_id",
            }
        },
        "allow": {
            "tasks": ["tabular"], "models": ["linear"], "max_rounds": 5, "max_parameters": 1000,
            "metrics": ["public"], "coordinators": [KEY], **allow,
        },
        "attested": {"H21": "nobody lives twice"},
    }  # fmt: skip


def second(disjoint: str = "") -> dict[str, Any]:
    """Return the policy with a second population and a data set of it."""
    both = value()
    both["populations"]["staff"] = {"unit": "record", "epsilon": 1.0, "delta": 1e-5}
    both["data"]["payroll"] = {"population": "staff", "nominal_size": 9, "disjoint": disjoint}
    return both


def with_sql(**sql: Any) -> dict[str, Any]:
    """Return the policy with a table in place of its file; ``sql`` is all that names it."""
    of_table = value()
    data = of_table["data"]["admissions"]
    del data["path"]
    data |= {"columns": ["secret_id", "x1"], "sql": {"table": "secret", **sql}}
    return of_table


def refused(wrong: Any, *said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(wrong, where="site.toml")
    message = str(caught.value)
    assert message.startswith("site.toml")
    for part in said:
        assert part in message


def changed(path: str, new: Any) -> dict[str, Any]:
    """Return the policy with the value at a dotted path set, or removed if ``new`` is ..."""
    result = copy.deepcopy(value())
    *above, last = path.split(".")
    part = result
    for key in above:
        part = part[key]
    if new is ...:
        del part[last]
    else:
        part[last] = new
    return result


# what is a policy


def test_the_template_is_a_policy():
    policy = Policy.parse(tomllib.loads(TEMPLATE))
    assert policy.site == "North"
    assert policy.data_set()[0] == "admissions-2026"
    assert policy.terms("patients") == (Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
    assert not policy.may_ask(KEY)


def test_every_key_is_in_the_template():
    for part in ("url", "table", "table_schema", "password_file", "password_variable", "timeout",
                 "max_rows", "columns", "unit", "relation", "epsilon", "delta", "max_records", "population", "path",
                 "nominal_size", "person_column", "disjoint", "tasks", "models", "max_rounds",
                 "max_parameters", "metrics", "coordinators", "plans", "approval", "approvers",
                 "site", "ledger", "[keys]", "module", "token", "[attested]"):  # fmt: skip
        assert part in TEMPLATE


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        ("sit", "North", ("sit: unknown key", "did you mean 'site'?")),
        ("populations.patients.epsilom", 3.0, ("unknown key", "did you mean 'epsilon'?")),
        ("data.admissions.pth", "a.csv", ("unknown key", "did you mean 'path'?")),
        ("allow.model", ["linear"], ("allow.model: unknown key", "did you mean 'models'?")),
        ("site", ..., ("site: missing",)),
        ("populations", ..., ("populations: missing",)),
        ("populations.patients.epsilon", ..., ("populations.patients.epsilon: missing",)),
        ("populations.patients.epsilon", None, ("has no cap",)),
        ("populations.patients.epsilon", "3", ("populations.patients.epsilon",)),
        ("populations.patients.epsilon", 0, ("populations.patients.epsilon",)),
        ("populations.patients.epsilon", float("inf"), ("populations.patients.epsilon",)),
        ("populations.patients.delta", 0.5, ("populations.patients.delta",)),
        ("populations.patients.unit", "household", ("populations.patients.unit",)),
        ("populations.patients.relation", "add", ("populations.patients.relation",)),
        ("populations.patients.max_records", 3, ("'max_records' belongs to unit = 'person'",)),
        ("populations", {}, ("populations",)),
        ("data", {}, ("data",)),
        ("data.admissions.population", "pupils", ("names population 'pupils'; there is patients",)),
        ("data.admissions.nominal_size", 0, ("data.admissions.nominal_size",)),
        ("data.admissions.nominal_size", 60.5, ("data.admissions.nominal_size",)),
        ("keys", {"module": "lib.so", "token": "t", "ledger": "k"}, ("keys.module",)),
        ("keys", {"module": "/lib.so", "token": "t"}, ("keys.ledger: missing",)),
        ("keys", {"module": "/l.so", "token": "t", "legder": "k"}, ("did you mean 'ledger'?",)),
        ("keys", {"module": "/lib.so", "token": "t" * 33, "ledger": "k"}, ("keys.token",)),
        ("allow.metrics", ["train-loss"], ("allow.metrics",)),
        ("allow.coordinators", ["alice"], ("allow.coordinators",)),
        ("allow.coordinators", ["*"], ("allow.coordinators",)),
        ("allow.plans", ["sha256:AB"], ("allow.plans",)),
        ("allow.approval", "auto", ("allow.approval",)),
        ("allow.approvers", 3, ("allow.approvers",)),
        ("allow.approvers", True, ("allow.approvers",)),
        ("attested", {"H9": "trust me"}, ("attested.H9: this name must be 'H12' or 'H21'",)),
        ("attested", {"H13": "open data"}, ("attested.H13: this name must be 'H12' or 'H21'",)),
        ("site", "../up", ("site",)),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path, new, said):
    refused(changed(path, new), *said)


PG = "postgresql+psycopg://reader@db.example.org/ehr"
MS = "mssql+pymssql://reader@db.example.org/ehr"
ORA = "oracle+oracledb://reader@db.example.org/EHRPDB"
PW = {"password_file": "a"}


@pytest.mark.parametrize(
    ("url", "system", "mode", "port"),
    [
        (MS, "mssql", "verify-full", 1433),
        (f"{MS}?sslmode=disable", "mssql", "disable", 1433),
        ("mssql://reader@127.0.0.1:14330/ehr", "mssql", "disable", 14330),
        (ORA, "oracle", "verify-full", 2484),
        (f"{ORA}?sslmode=require", "oracle", "require", 2484),
        ("oracle://reader@localhost/X", "oracle", "disable", 1521),
        ("oracle://reader@[::1]:99/X", "oracle", "disable", 99),
        ("mssql://reader@127.0.0.1.example.org/ehr", "mssql", "verify-full", 1433),
    ],
)
def test_a_server_elsewhere_is_spoken_to_by_checked_tls(url, system, mode, port):
    database = Database.model_validate({"url": url, "table": "t", **PW})
    server = database.server()
    assert (database.dbms, server.sslmode, server.port) == (system, mode, port)
    assert server.user == "reader"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ({"url": "postgresql://reader:hunter2@db/ehr"}, "without a password"),
        ({"url": "postgresql://reader:hun/ter2@db/ehr"}, "without a password"),
        ({"url": f"{PG}?password=hunter2"}, "may not set 'password'"),
        ({"url": f"{PG}?options=-c%20hunter2"}, "may not set 'options'"),
        ({"url": f"{PG}?service=hunter2"}, "may not set 'service'"),
        ({"url": "mysql://reader@db/ehr"}, "must be postgresql+psycopg://"),
        ({"url": "sqlite://"}, "must be postgresql+psycopg://"),
        ({"url": "sqlite:///:memory:?mode=rw"}, "must be postgresql+psycopg://"),
        ({"url": "sqlite:///a.db", "password_file": "hunter2"}, "'password_file' is for Postgre"),
        ({"url": "sqlite:///a.db", "table_schema": "main"}, "'table_schema' is for PostgreSQL"),
        ({"url": PG, "password_file": "a", "password_variable": "B"}, "not both"),
        ({"url": f"{MS}?encrypt=no", **PW}, "may not set 'encrypt'"),
        ({"url": f"{MS}?sslmode=prefer", **PW}, "sslmode must be verify-full, require, disable"),
        ({"url": f"{MS}?sslmode=require&sslrootcert=a", **PW}, "with sslmode=verify-full alone"),
        ({"url": f"{MS}?sslrootcert=a%0Aencryption=off", **PW}, "control character"),
        ({"url": MS}, "name 'password_file' or 'password_variable'"),
        ({"url": "mssql://reader:hunter2@db/ehr", **PW}, "without a password"),
        ({"url": "mssql+pyodbc://reader@db/ehr", **PW}, "mssql+pymssql://"),
        ({"url": "mssql://reader@db\\SQL2019/ehr", **PW}, "mssql+pymssql://"),
        ({"url": "oracle://db/ehr", **PW}, "oracle+oracledb://USER@HOST"),
        ({"url": f"{ORA}?wallet_location=a", **PW}, "may not set 'wallet_location'"),
        ({"url": PG, "table": "a\nb"}, "sql.table"),
        ({"url": PG, "table": ""}, "sql.table: must not be empty"),
        ({"url": PG, "password": "hunter2"}, "sql.password: unknown key"),
        ({"url": PG, "quey": "hunter2"}, "sql.quey: unknown key"),
        ({"url": PG, "tabel": "hunter2"}, "did you mean 'table'?"),
        ({"url": PG, "timeout": 0.0}, "sql.timeout: must be at least 1"),
        ({"url": PG, "max_rows": 0}, "sql.max_rows"),
        ({}, "sql.url: missing"),
    ],
)
def test_what_is_wrong_with_a_database_is_named_without_its_password(sql, said):
    refused(with_sql(**sql), said)
    with pytest.raises(PolicyError) as caught:
        Policy.parse(with_sql(**sql))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "new", "said"),
    [
        ("path", "a.csv", "name 'path' or 'sql', not both"),
        ("columns", None, "'sql' needs 'columns'"),
        ("columns", [], "columns: must not be empty"),
        ("columns", ["x1"], "'columns' lacks the person_column 'secret_id'"),
        ("columns", ["secret_id", "x1", "x1"], "'columns' names 'x1' twice"),
        ("columns", ["secret_id", "a\tb"], "columns"),
    ],
)
def test_a_table_needs_its_columns(key, new, said):
    wrong = with_sql(url=PG)
    wrong["data"]["admissions"][key] = new
    refused(wrong, said)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (PG, "verify-full"),
        ("postgresql://db/ehr", "verify-full"),
        ("postgresql://localhost,db/ehr", "verify-full"),
        ("postgresql://localhost/ehr?hostaddr=192.0.2.1", "verify-full"),
        ("postgresql://r@/ehr?host=db", "verify-full"),
        (f"{PG}?sslmode=require", "require"),
        ("postgresql://r@127.0.0.1:5433/ehr", None),
        ("postgresql://r@[::1]/ehr", None),
        ("postgresql:///ehr?host=/run/postgresql", None),
    ],
)
def test_a_network_is_not_crossed_in_the_clear(url, expected):
    sql = Policy.parse(with_sql(url=url)).data["admissions"].sql
    assert sql is not None
    assert sql.connection().get("sslmode") == expected


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "x" * 65, "ä"])
@pytest.mark.parametrize("section", ["populations", "data"])
def test_names_are_safe(section, name):
    wrong = value()
    wrong[section][name] = next(iter(wrong[section].values()))
    refused(wrong, section)


@pytest.mark.parametrize("wrong", [None, [], "policy", 3])
def test_something_else_than_a_mapping_is_refused(wrong):
    refused(wrong)


def test_a_person_needs_a_column():
    wrong = changed("populations.patients.unit", "person")
    del wrong["data"]["admissions"]["person_column"]
    refused(wrong, "needs a 'person_column'")


@pytest.mark.parametrize("disjoint", ["", "  "])
def test_h32_a_second_population_must_say_why_it_is_disjoint(disjoint):
    refused(second(disjoint), "needs 'disjoint'", "H32")


def test_h32_a_second_population_that_says_so_is_accepted():
    policy = Policy.parse(second("staff are not treated here"))
    assert policy.data_set("payroll")[1].population == "staff"


def test_a_second_extract_of_the_first_population_needs_no_reason():
    more = value()
    more["data"]["later"] = {"population": "patients", "nominal_size": 70}
    assert Policy.parse(more).data_set("later")[1].population == "patients"


# files


def test_paths_start_at_the_file(tmp_path: Path, write_toml):
    policy = Policy.load(write_toml(tmp_path / "here" / "site.toml", value()))
    assert policy.ledger_folder == tmp_path / "here" / "ledger"
    assert policy.path_of(policy.data_set()[1]) == tmp_path / "here" / "secret" / "north.csv"


@pytest.mark.parametrize("raw", [b"site = ", b"\xff\xfe\x00", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, raw: bytes):
    (tmp_path / "site.toml").write_bytes(raw)
    with pytest.raises(PolicyError, match=r"site\.toml: (not valid TOML|cannot be read)"):
        Policy.load(tmp_path / "site.toml")


def test_a_missing_policy_is_named(tmp_path: Path):
    with pytest.raises(PolicyError, match="there is no such file"):
        Policy.load(tmp_path / "none.toml")


def test_a_file_cannot_make_a_site_a_simulation(tmp_path: Path, write_toml):
    path = write_toml(tmp_path / "site.toml", {"setting": "simulation", **value()})
    with pytest.raises(PolicyError, match="setting"):
        Policy.load(path)


# what is published


def test_neither_paths_nor_columns_nor_sizes_are_published():
    keys = {"module": "/secret/lib.so", "token": "secret token", "ledger": "secret-key"}
    with_keys = Policy.parse({**value(), "keys": keys})
    text = canonical_json(with_keys.public()).decode()
    assert with_keys.digest == Policy.parse(value()).digest
    for private in ("secret", "60", "path", "person_column", "nominal_size", "ledger", "keys"):
        assert private not in text


def test_a_database_and_its_columns_are_not_published():
    plain = Policy.parse(changed("data.admissions.path", ...))
    of_table = Policy.parse(
        with_sql(url="postgresql://secret@secret/secret", password_file="secret.password")
    )
    assert of_table.digest == plain.digest
    text = canonical_json(of_table.public()).decode()
    for private in ("secret", "sql", "columns", "table", "timeout", "x1"):
        assert private not in text


def test_published_numbers_are_decimals():
    public = Policy.parse(value()).public()
    assert public["populations"]["patients"]["epsilon"] == "20.0"
    assert public["populations"]["patients"]["delta"] == "0.0001"
    assert public["allow"]["max_rounds"] == 5


def test_the_digest_follows_what_is_published():
    policy = Policy.parse(value())
    assert policy.digest == digest_json(json.loads(canonical_json(policy.public())))
    assert Policy.parse(changed("data.admissions.path", "moved.csv")).digest == policy.digest
    assert Policy.parse(changed("populations.patients.epsilon", 21.0)).digest != policy.digest


# who answers for the data

STATED = {
    "controller": "North Hospital Trust",
    "purpose": "Research on readmission",
    "retention": "Deleted at the end of 2027.",
    "contact": "dpo@north.example",
    "next_review": "2027-06-30",
}


def test_who_answers_for_the_data_is_published_and_nothing_where_it_is_not_stated():
    bare = Policy.parse(value())
    assert not set(GOVERNANCE) & set(bare.public())
    # The digest of this policy before there were such fields.
    assert bare.digest == OLD_DIGEST
    full = Policy.parse({**value(), **STATED})
    assert {key: full.public()[key] for key in GOVERNANCE} == STATED
    assert full.digest != bare.digest
    one = Policy.parse({**value(), "contact": "dpo@north.example"}).public()
    assert {key for key in GOVERNANCE if key in one} == {"contact"}


def test_a_date_may_be_one_of_toml(tmp_path: Path):
    text = "next_review = 2027-06-30\n" + TEMPLATE
    (tmp_path / "site.toml").write_text(text, encoding="utf-8")
    assert Policy.load(tmp_path / "site.toml").next_review == "2027-06-30"


@pytest.mark.parametrize("key", GOVERNANCE)
@pytest.mark.parametrize("text", ["", "a\x1b[2J", "two\nlines", "\u202ereversed", "x" * 201, 7])
def test_what_a_site_says_of_itself_is_one_short_line(key: str, text: object):
    with pytest.raises(PolicyError, match=rf"policy: {key}: ") as caught:
        Policy.parse({**value(), key: text})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("day", ["2027-02-30", "20270630", "30.06.2027", "2027-W26-3", "soon"])
def test_the_next_review_is_a_day(day: str):
    with pytest.raises(PolicyError, match="next_review: must be a date, such as 2027-06-30"):
        Policy.parse({**value(), "next_review": day})


def test_the_template_names_what_may_be_stated():
    lines = [line for line in TEMPLATE.splitlines() if line.startswith("# ")]
    for key in GOVERNANCE:
        (line,) = (line for line in lines if line.startswith(f"# {key} = "))
        found = tomllib.loads(line.removeprefix("# "))
        assert Policy.parse({**value(), **found}).public()[key] == found[key]


# what may be asked


def plan_of(plan_value: Make, **changes: Any) -> Plan:
    return Plan.parse(plan_value(**changes))


def test_what_is_allowed_is_allowed(plan_value: Make):
    plan = plan_of(plan_value)
    policy = Policy.parse(value())
    assert policy.fault(plan) is None
    assert policy.fault(plan, 1000) is None
    assert Policy.parse(value(tasks=["*"], models=["*"])).fault(plan) is None


def test_nothing_is_allowed_by_default(plan_value: Make):
    bare = value()
    del bare["allow"]
    assert "task 'tabular' is not in allow.tasks" in str(
        Policy.parse(bare).fault(plan_of(plan_value))
    )


@pytest.mark.parametrize(
    ("allow", "changes", "said"),
    [
        ({"tasks": []}, {}, "task 'tabular' is not in allow.tasks"),
        ({"models": ["ft-transformer"]}, {}, "model 'linear' is not in allow.models"),
        ({"models": ["linear", "*"]}, {"model": {"kind": "my:own"}}, "model 'my:own' is not in"),
        ({"max_rounds": 1}, {}, "2 rounds, allow.max_rounds is 1"),
        ({"metrics": ["off"]}, {}, "metrics 'public' are not in allow.metrics"),
        ({"approval": "listed"}, {}, "only listed plans"),
        ({"approval": "listed", "plans": [OTHER]}, {}, "only listed plans"),
        ({}, {"sites": [{"name": "East", "nominal_size": 60}]}, "does not name site 'North'"),
        ({}, {"sites": [{"name": "North", "nominal_size": 61}]}, "counts 61 units here"),
        ({}, {"privacy": None}, "has no [privacy] section"),
        ({}, {"privacy": {"unit": "person"}}, "protects a person, the population is counted per"),
        ({}, {"privacy": {"relation": "replace_one"}}, "has relation 'replace_one'"),
        ({}, {"privacy": {"epsilon": 20.5}}, "asks for ε 20.5, above the population's"),
        ({}, {"privacy": {"delta": 2e-4}}, "has δ 0.0002, above the population's 0.0001"),
    ],
)
def test_what_is_not_allowed_is_refused_with_the_reason(plan_value: Make, allow, changes, said):
    fault = Policy.parse(value(**allow)).fault(plan_of(plan_value, **changes))
    assert fault is not None
    assert said in fault


def test_too_many_parameters(plan_value: Make):
    fault = Policy.parse(value()).fault(plan_of(plan_value), 1001)
    assert fault is not None
    assert "1,001 trained parameters, allow.max_parameters is 1,000" in fault


@pytest.mark.parametrize(("records", "fits"), [(3, True), (4, True), (5, False)])
def test_the_contribution_of_a_person_is_bounded_by_the_policy(plan_value: Make, records, fits):
    limits = changed("populations.patients.unit", "person")
    limits["populations"]["patients"]["max_records"] = 4
    plan = plan_of(plan_value, privacy={"unit": "person", "max_records": records})
    assert (Policy.parse(limits).fault(plan) is None) is fits


def test_one_data_set_that_fits_is_enough(plan_value: Make):
    more = second("staff are not treated here")
    more["data"]["payroll"]["nominal_size"] = 60
    policy, plan = Policy.parse(more), plan_of(plan_value)
    assert policy.fault(plan) is None
    assert policy.fault(plan, data_set="admissions") is None
    assert "above the population's lifetime ε 1" in str(policy.fault(plan, data_set="payroll"))


@pytest.mark.parametrize(
    ("sizes", "site", "chosen"),
    [
        ((60, 9), "North", "admissions"),
        ((9, 60), "North", "feedback"),
        ((8, 9), "North", "admissions"),  # none fits: the first, whose fault is told
        ((60, 60), "West", "admissions"),
    ],
)
def test_the_data_set_of_a_plan_is_the_one_that_it_fits(plan_value: Make, sizes, site, chosen):
    policy, plan = fed_back(*sizes), plan_of(plan_value)
    assert policy.model_copy(update={"site": site}).data_set_for(plan) == chosen


def test_a_plan_that_fits_two_data_sets_is_refused(plan_value: Make):
    with pytest.raises(PolicyError, match="fits the data sets admissions and feedback of site"):
        fed_back(60, 60).data_set_for(plan_of(plan_value))


def fed_back(*sizes: int) -> Policy:
    """Return a policy with two data sets of the same patients."""
    limits = value()
    first = limits["data"]["admissions"]
    limits["data"] = {
        name: {**first, "nominal_size": size}
        for name, size in zip(("admissions", "feedback"), sizes, strict=True)
    }
    return Policy.parse(limits)


def test_a_data_set_must_be_named_when_there_are_several():
    policy = Policy.parse(second("staff are not treated here"))
    with pytest.raises(PolicyError, match="admissions, payroll: name one"):
        policy.data_set()
    with pytest.raises(PolicyError, match="has no data set 'x'"):
        policy.data_set("x")


def test_a_listed_plan_is_allowed_and_only_the_named_may_ask(plan_value: Make):
    plan = plan_of(plan_value)
    policy = Policy.parse(value(approval="listed", plans=[plan.digest]))
    assert policy.fault(plan) is None
    assert policy.listed(plan)
    assert not policy.listed(plan_of(plan_value, seed=1))
    assert policy.may_ask(KEY)
    assert not policy.may_ask(OTHER)


# simulations


@pytest.mark.parametrize("privacy", [{}, {"unit": "person", "max_records": 3}, None])
def test_a_simulated_site_allows_its_plan_and_no_other(plan_value: Make, privacy):
    plan = plan_of(plan_value, privacy=privacy, data={"person_column": "patient"})
    policy = Policy.for_simulation(plan, "North", KEY)
    assert policy.fault(plan) is None
    assert policy.fault(plan.changed(seed=1)) is not None
    assert policy.may_ask(KEY)
    population = policy.populations[policy.first_population]
    assert population.epsilon == (plan.privacy.epsilon if plan.privacy else None)
    assert policy.public()["setting"] == "simulation"


def test_a_simulated_site_with_blanks_in_its_name(plan_value: Make):
    plan = plan_of(plan_value, sites=[{"name": "New England", "nominal_size": 4}])
    assert Policy.for_simulation(plan, "New England", KEY).first_population == "New_England"


def test_a_simulated_site_must_be_in_the_plan_and_know_who_asks(plan_value: Make):
    with pytest.raises(PlanError, match="has no site"):
        Policy.for_simulation(plan_of(plan_value), "West", KEY)
    with pytest.raises(InputError, match="coordinators"):
        Policy.for_simulation(plan_of(plan_value), "North", "somebody")


def test_a_site_by_another_spelling(plan_value: Make):
    assert Policy.parse({**value(), "site": " North "}).site == "North"
    other = plan_value(sites=[{"name": "NORTH", "nominal_size": 60}])
    fault = Policy.parse({**value(), "site": "North"}).fault(Plan.parse(other))
    assert fault is not None and "it names 'NORTH', which must be spelled alike" in fault
    strange = plan_value(sites=[{"name": "East", "nominal_size": 60}])
    fault = Policy.parse({**value(), "site": "North"}).fault(Plan.parse(strange))
    assert fault is not None and "spelled" not in fault
