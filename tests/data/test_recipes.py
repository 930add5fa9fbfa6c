"""The recipes of docs/how-to/omop-and-fhir.md, run as they stand, on made-up hospitals.

A person who comes or goes changes no row of anybody else, in the database as in the export.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from postgres_kit import READER, READER_PASSWORD, Postgres

from privet.cli import main as privet
from privet.client.data.loader import take_snapshot
from privet.privacy.policy import Policy

Make = Callable[..., Any]
pytestmark = pytest.mark.xdist_group("postgres")
PEOPLE = 30
CDM = """
CREATE TABLE person (person_id integer PRIMARY KEY, gender_concept_id integer NOT NULL,
    year_of_birth integer NOT NULL);
CREATE TABLE visit_occurrence (visit_occurrence_id integer PRIMARY KEY,
    person_id integer NOT NULL, visit_concept_id integer NOT NULL,
    visit_start_date date NOT NULL, visit_end_date date);
CREATE TABLE condition_occurrence (condition_occurrence_id integer PRIMARY KEY,
    person_id integer NOT NULL, condition_concept_id integer NOT NULL,
    condition_start_date date NOT NULL);
CREATE TABLE measurement (measurement_id integer PRIMARY KEY, person_id integer NOT NULL,
    measurement_concept_id integer NOT NULL, measurement_date date NOT NULL,
    value_as_number numeric);
"""
"""The columns of the CDM 5.4 that the view reads, with the CDM's types."""


class Person:
    """A made-up patient: stays, diagnoses, blood pressures, by a seed."""

    def __init__(self, number: int) -> None:
        chance = np.random.default_rng(number)
        self.number = number
        self.born = int(chance.integers(1930, 2000))
        self.sex = str(chance.choice(["female", "male"]))
        start = date(2024, 1, 1) + timedelta(days=int(chance.integers(0, 300)))
        self.stays: list[tuple[date, date]] = []
        for _ in range(int(chance.integers(1, 4))):
            end = start + timedelta(days=int(chance.integers(1, 12)))
            self.stays.append((start, end))
            start = end + timedelta(days=int(chance.integers(1, 60)))
        first = self.stays[0][0]
        self.conditions = [
            (int(chance.integers(1, 30)), first + timedelta(days=int(chance.integers(-400, 60))))
            for _ in range(int(chance.integers(0, 6)))
        ]
        self.pressures = [
            (begin + timedelta(days=k % max(1, (end - begin).days)), int(chance.integers(90, 190)))
            for begin, end in self.stays
            for k in range(int(chance.integers(0, 3)))
        ]


def blocks(root: Path, kind: str) -> list[str]:
    text = (root / "docs" / "how-to" / "omop-and-fhir.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# OMOP


@pytest.fixture
def omop(server: Postgres, run_sql: Make, root: Path) -> Make:
    """Fill the database with people and make the page's view of it; return how to fill it anew."""
    with server.connect() as owner:
        owner.execute("DROP SCHEMA IF EXISTS research CASCADE")
        owner.execute("DROP SCHEMA IF EXISTS omop CASCADE")
        owner.execute("CREATE SCHEMA omop")
        owner.execute("SET search_path TO omop")
        owner.execute(CDM)
        owner.execute(blocks(root, "sql")[0].replace("privet_reader", READER))

    def fill(people: list[Person]) -> None:
        with server.connect() as owner:
            owner.execute("SET search_path TO omop")
            owner.execute("TRUNCATE person, visit_occurrence, condition_occurrence, measurement")
            for person in people:
                _insert(owner, person)

    return fill


def _insert(owner: Any, person: Person) -> None:
    n = person.number
    gender = {"male": 8507, "female": 8532}[person.sex]
    owner.execute("INSERT INTO person VALUES (%s, %s, %s)", (n, gender, person.born))
    for k, (begin, end) in enumerate(person.stays):
        visit = (100 * n + k, n, 9201 if k % 2 else 262, begin, end)
        owner.execute("INSERT INTO visit_occurrence VALUES (%s, %s, %s, %s, %s)", visit)
    outside = (100 * n + 99, n, 9202, person.stays[0][1] + timedelta(days=1), None)
    owner.execute("INSERT INTO visit_occurrence VALUES (%s, %s, %s, %s, %s)", outside)
    for k, (code, day) in enumerate(person.conditions):
        row = (100 * n + k, n, code, day)
        owner.execute("INSERT INTO condition_occurrence VALUES (%s, %s, %s, %s)", row)
    for k, (day, value) in enumerate(person.pressures):
        measured = (100 * n + k, n, 3004249, day, value)
        owner.execute("INSERT INTO measurement VALUES (%s, %s, %s, %s, %s)", measured)


def site(root: Path, folder: Path, which: int, url: str = "") -> Path:
    """Write the page's policy of a recipe, with the server of the test."""
    text = 'site = "North"\n' + blocks(root, "toml")[which]
    text = re.sub(r'^url = ".*"$', f'url = "{url}"', text, flags=re.MULTILINE)
    (folder / "db.password").touch(mode=0o600)
    (folder / "db.password").write_text(f"{READER_PASSWORD}\n")
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def plan(root: Path, folder: Path) -> Path:
    task = blocks(root, "toml")[2]
    text = f'name = "stays"\n[model]\nkind = "linear"\n{task}\n[training]\nrounds = 2\nsteps = 2\n'
    text += 'sample_rate = 0.2\nlearning_rate = 0.1\n[metrics]\nsource = "gate"\n'
    text += '[[sites]]\nname = "North"\nnominal_size = 40\n'
    (folder / "plan.toml").write_text(text)
    return folder / "plan.toml"


def checked(plan_file: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    words = ["client", "check", str(plan_file), "--policy", str(policy), "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["privet", *words])
        with pytest.raises(SystemExit) as ended:
            privet()
    assert not ended.value.code, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_omop_view_gives_the_stays(
    omop: Make, server: Postgres, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [Person(n) for n in range(1, PEOPLE + 1)]
    omop(people)
    policy = site(root, tmp_path, 0, server.url() + "?sslmode=disable")
    frame = pd.read_parquet(take_snapshot(Policy.load(policy), "stays", tmp_path / "home"))
    found = [
        {name: _written(value) for name, value in row.items()} for row in frame.to_dict("records")
    ]
    assert found == [row for person in people for row in expected(person)]
    result = checked(plan(root, tmp_path), policy, capsys)
    assert result["data_set"] == "stays"
    assert not [one for one in result["findings"] if one["level"] == "fault"]


def _written(value: Any) -> str | None:
    """Return a cell of the snapshot as a file would have it."""
    if pd.isna(value):
        return None
    return str(int(value)) if isinstance(value, float) else str(value)


def expected(person: Person) -> list[dict[str, Any]]:
    """What the table should say of a person, from the made-up history itself."""
    rows = []
    for begin, end in person.stays:
        values = [value for day, value in person.pressures if begin <= day <= end]
        latest = max((day for day, _ in person.pressures if begin <= day <= end), default=None)
        last = [value for day, value in person.pressures if day == latest]
        later = [other for other, _ in person.stays if end < other <= end + timedelta(days=30)]
        rows.append(
            {
                "person_id": str(person.number),
                "admitted": begin.isoformat(),
                "age": str(begin.year - person.born),
                "sex": person.sex,
                "days": str((end - begin).days),
                "conditions": str(len({c for c, day in person.conditions if day <= end})),
                "systolic": str(last[-1]) if values else None,
                "readmitted": "yes" if later else "no",
            }
        )
    return rows


def test_a_person_more_in_omop_changes_nobody_elses_rows(
    omop: Make, server: Postgres, root: Path, tmp_path: Path
) -> None:
    url = server.url() + "?sslmode=disable"

    def table(people: list[Person]) -> pd.DataFrame:
        omop(people)
        policy = Policy.load(site(root, tmp_path, 0, url))
        return pd.read_parquet(take_snapshot(policy, "stays", tmp_path / "home"))

    _neighbours(table)
    # The control: a rank among all patients, which the page warns of.
    with server.connect() as owner:
        owner.execute("ALTER VIEW research.stays RENAME TO plain")
        owner.execute(
            "CREATE VIEW research.stays AS SELECT person_id, admitted, "
            "(rank() OVER (ORDER BY age))::int AS age, sex, days, conditions, systolic, readmitted "
            f"FROM research.plain; GRANT SELECT ON research.stays TO {READER}"
        )
    with pytest.raises(AssertionError):
        _neighbours(table)


def _neighbours(table: Callable[[list[Person]], pd.DataFrame]) -> None:
    people = [Person(n) for n in range(1, 13)]
    before = table(people)
    for extra in (Person(500), Person(501)):
        after = table([*people[:6], extra, *people[6:]])
        others = after[after["person_id"].astype(str) != str(extra.number)]
        assert len(others) < len(after)
        assert others.reset_index(drop=True).equals(before)


# FHIR


def export(folder: Path, people: list[Person]) -> Path:
    """Write a bulk export, its encounters in two files."""
    folder.mkdir(exist_ok=True)
    lines: dict[str, list[dict[str, Any]]] = {
        "Patient": [], "Encounter.1": [], "Encounter.2": [], "Condition": [], "Observation": [],
    }  # fmt: skip
    for person in people:
        n, who = person.number, {"reference": f"Patient/{person.number}"}
        patient = {"id": str(n), "gender": person.sex, "birthDate": f"{person.born}-02-03"}
        lines["Patient"].append({"resourceType": "Patient", **patient})
        for k, (begin, end) in enumerate(person.stays):
            period = {"start": f"{begin}T08:00:00Z", "end": f"{end}T10:00:00Z"}
            stay = {"id": f"{n}-{k}", "class": {"code": "IMP"}, "subject": who, "period": period}
            lines[f"Encounter.{1 + k % 2}"].append({"resourceType": "Encounter", **stay})
        walk_in = {"id": f"{n}-x", "class": {"code": "AMB"}, "subject": who, "period": {}}
        lines["Encounter.1"].append({"resourceType": "Encounter", **walk_in})
        for code, day in person.conditions:
            coded = {"coding": [{"system": "http://snomed.info/sct", "code": str(code)}]}
            condition = {"code": coded, "subject": who, "onsetDateTime": f"{day}"}
            lines["Condition"].append({"resourceType": "Condition", **condition})
        for k, (day, value) in enumerate(person.pressures):
            seen = {
                "id": f"{n}-{k}", "subject": who, "effectiveDateTime": f"{day}T09:00:00Z",
                "code": {"coding": [{"code": "8480-6"}]}, "valueQuantity": {"value": value},
            }  # fmt: skip
            lines["Observation"].append({"resourceType": "Observation", **seen})
    for name, resources in lines.items():
        text = "".join(json.dumps(one) + "\n" for one in resources)
        (folder / f"{name}.ndjson").write_text(text)
    return folder


def converted(root: Path, folder: Path, people: list[Person]) -> Path:
    script = folder / "fhir_to_table.py"
    script.write_text(blocks(root, "python")[0])
    words = [sys.executable, str(script), str(export(folder / "export", people))]
    done = subprocess.run(
        [*words, str(folder / "stays.csv")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "stays.csv"


def test_the_fhir_script_gives_the_same_stays(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [Person(n) for n in range(1, PEOPLE + 1)]
    frame = pd.read_csv(converted(root, tmp_path, people), dtype=str)
    wanted = sorted((row for person in people for row in expected(person)), key=_order)
    found = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert sorted(found, key=_order) == wanted
    policy = site(root, tmp_path, 1)
    result = checked(plan(root, tmp_path), policy, capsys)
    assert not [one for one in result["findings"] if one["level"] == "fault"]


def _order(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["person_id"]), str(row["admitted"])


def test_a_person_more_in_the_export_changes_nobody_elses_rows(root: Path, tmp_path: Path) -> None:
    _neighbours(lambda people: pd.read_csv(converted(root, tmp_path, people), dtype=str))


def test_a_line_that_is_no_json_is_named(root: Path, tmp_path: Path) -> None:
    converted(root, tmp_path, [Person(1)])
    with (tmp_path / "export" / "Condition.ndjson").open("a") as stream:
        stream.write("{half")
    words = [sys.executable, str(tmp_path / "fhir_to_table.py"), str(tmp_path / "export")]
    done = subprocess.run([*words, str(tmp_path / "out.csv")], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Condition.ndjson, line" in done.stderr
    assert not (tmp_path / "out.csv").exists()
