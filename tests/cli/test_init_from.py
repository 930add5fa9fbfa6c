"""A plan drafted from a user's table: ``privet init DIR --from FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_commands import Run, privet

from privet.common.plan import Plan
from privet.simulations.draft.from_header import KINDS, is_identifier, known_kind

__all__ = ["privet"]
WORDS = ("--site-column", "clinic", "--label", "ill", "--classes", "no,yes", "--sites", "A,B,C")


def patients(count: int = 300, seed: int = 0) -> pd.DataFrame:
    """Return records whose label follows from age and smoking."""
    draws = np.random.default_rng(seed)
    age = draws.integers(18, 90, count)
    smokes = draws.random(count) < 0.4
    ill = age / 90 + 0.6 * smokes + draws.normal(0, 0.15, count) > 0.9
    return pd.DataFrame(
        {
            "patient_id": np.arange(count) + 10_000 * seed,
            "Age": age,
            "sysBP": draws.normal(130, 15, count).round(),
            "smokes": np.where(smokes, "y", "n"),
            "score7": draws.random(count).round(3),
            "clinic": draws.choice(["A", "B", "C"], count),
            "ill": np.where(ill, "yes", "no"),
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    patients().to_csv(path, index=False)
    return path


def test_the_header_alone_gives_a_plan_that_can_be_run(
    privet: Run, table: Path, tmp_path: Path
) -> None:
    done = privet("init", tmp_path / "mine", "--from", table, *WORDS, "--size", 70)
    assert done.code == 0, done.err
    assert "score7" in done.out
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert set(plan.task.numeric) == {"Age", "sysBP"}
    assert plan.task.classes == ("no", "yes")
    assert [(site.name, site.nominal_size) for site in plan.sites] == [
        ("A", 70), ("B", 70), ("C", 70)
    ]  # fmt: skip
    words = ["--rounds", 2, "--evidence", "off", "--out", tmp_path / "run"]
    done = privet("simulate", tmp_path / "mine" / "plan.toml", *words)
    assert done.code == 0, done.err
    assert "training.learning_rate" in done.err  # what was chosen is printed, with its reason
    assert (tmp_path / "run" / "plan.toml").exists()


def _draft(privet: Run, tmp_path: Path, frame: pd.DataFrame | bytes, *words: Any) -> str:
    (tmp_path / "t").mkdir(exist_ok=True)
    path = tmp_path / "t" / "patients.csv"
    if isinstance(frame, bytes):
        path.write_bytes(frame)
    else:
        frame.to_csv(path, index=False)
    folder = tmp_path / f"drafted-{len(list(tmp_path.iterdir()))}"
    done = privet("init", folder, "--from", path, *words)
    assert done.code == 0, done.err
    return (folder / "plan.toml").read_text().replace(folder.name, "drafted")


def test_neighbouring_files_and_all_others_of_that_header_give_the_same_plan(
    privet: Run, tmp_path: Path
) -> None:
    """Nothing of a private record is in the plan: not one's presence, nor all of them (H12)."""
    frame = patients()
    first = _draft(privet, tmp_path, frame, *WORDS)
    assert _draft(privet, tmp_path, frame.iloc[1:], *WORDS) == first
    assert _draft(privet, tmp_path, patients(9, 5), *WORDS) == first
    assert _draft(privet, tmp_path, frame.iloc[:0], *WORDS) == first
    header = (",".join(frame.columns) + "\n").encode()
    assert _draft(privet, tmp_path, header + b'\xff\xfe\0garbage\n"\n', *WORDS) == first


HOSTILE = (
    'foo\r[attested]\rH12 = "known to all"\r#',
    'foo\n[attested]\nH12 = "known to all"\n#',
    "bell\x07",
    "delete\x7f",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_columns_name_writes_nothing_into_the_plan(
    privet: Run, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "t.parquet"
    patients().rename(columns={"score7": name}).to_parquet(path)
    done = privet("init", tmp_path / "mine", "--from", path, *WORDS)
    assert done.code == 2
    assert "does not look like names of columns" in " ".join(done.err.split())
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["a] = 1", 'quo"te', "back\\slash", "#hash", "tröt", "[x]", "a.b"])
def test_odd_names_are_declared_as_they_are(privet: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    patients().rename(columns={"score7": name, "Age": f"{name} age"}).to_csv(path, index=False)
    words = ("--site-column", "clinic", "--label", "ill", "--public")
    done = privet("init", tmp_path / "mine", "--from", path, *words)
    assert done.code == 0, done.err
    assert {name, f"{name} age"} <= set(Plan.load(tmp_path / "mine" / "plan.toml").task.numeric)
    done = privet("init", tmp_path / "private", "--from", path, *WORDS)
    assert done.code == 0, done.err
    Plan.load(tmp_path / "private" / "plan.toml")


def test_a_record_in_place_of_names_is_not_quoted(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Jane Doe,30,HIV\nJohn Roe,31,none\n")
    words = ["--site-column", "site", "--label", "y"]
    done = privet("init", tmp_path / "mine", "--from", path, *words)
    assert done.code == 2
    assert "does not look like names of columns" in " ".join(done.err.split())
    assert "Jane" not in done.out + done.err
    assert not (tmp_path / "mine").exists()


def test_public_records_that_cannot_be_read_are_counted(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = patients()
    path.write_text(frame.to_csv(index=False) + "one,too,few\n")
    words = ["--site-column", "clinic", "--label", "ill", "--public"]
    done = privet("init", tmp_path / "mine", "--from", path, *words)
    assert "1 record of" in done.out
    assert "line 302: 3 cells" in " ".join(done.out.split())
    path.write_text(",".join(frame.columns) + "\n1,2\n")
    done = privet("init", tmp_path / "none", "--from", path, *words)
    assert done.code == 2
    assert "no record that can be read" in done.err


def test_a_damaged_record_does_not_end_a_check(privet: Run, table: Path, tmp_path: Path) -> None:
    done = privet("init", tmp_path / "mine", "--from", table, *WORDS, "--size", 70)
    assert done.code == 0, done.err
    whole = table.read_text()
    for odd in ("x" * 1_100_000 + ",1,1,y,1,A,yes\n", '"open,1,1,y,1,A,yes\n' + whole * 90):
        table.write_text(whole + odd)
        done = privet("simulate", tmp_path / "mine" / "plan.toml", "--check")
        assert "should not have happened" not in done.err
        said = " ".join(done.out.split())
        assert "of the file for all sites cannot be read" in said


def test_control_a_public_draft_follows_the_records(privet: Run, tmp_path: Path) -> None:
    words = ("--site-column", "clinic", "--label", "ill", "--public")
    first = _draft(privet, tmp_path, patients(), *words)
    assert _draft(privet, tmp_path, patients().assign(Age=7.0), *words) != first


def test_public_records_declare_all(privet: Run, table: Path, tmp_path: Path) -> None:
    words = ["--site-column", "clinic", "--label", "ill", "--public"]
    done = privet("init", tmp_path / "mine", "--from", table, *words)
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert set(plan.task.numeric) == {"Age", "sysBP", "score7"}
    assert plan.task.categorical == {"smokes": ("n", "y")}
    assert plan.task.classes == ("no", "yes")
    assert "patient_id" in done.out  # left out, and why
    low, high = plan.task.numeric["Age"].low, plan.task.numeric["Age"].high
    assert 18 <= low < 30 < 80 < high <= 95
    assert [site.name for site in plan.sites] == ["A", "B", "C"]
    assert all(60 <= site.nominal_size <= 100 for site in plan.sites)
    words = ["--epsilon", 8, "--evidence", "off", "--out", tmp_path / "run"]
    done = privet("simulate", tmp_path / "mine" / "plan.toml", *words)
    assert done.code == 0, done.err
    assert "always the same" not in done.out


def test_a_dictionary_declares_what_it_names(privet: Run, table: Path, tmp_path: Path) -> None:
    dictionary = tmp_path / "dictionary.csv"
    dictionary.write_text(
        "Variable,Min,Max,Levels,Role\nAge,18,95,,\nsmokes,,,y;n,\nill,,,no;yes,label\n"
        "clinic,,,,site\npatient_id,,,,person\nsysBP,,,,ignore\nelsewhere,0,1,,\n"
    )
    words = ["--dictionary", dictionary, "--sites", "A,B"]
    done = privet("init", tmp_path / "mine", "--from", table, *words)
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert {name: (one.low, one.high) for name, one in plan.task.numeric.items()} == {
        "Age": (18, 95)
    }
    assert plan.task.categorical == {"smokes": ("y", "n")}
    assert plan.task.classes == ("no", "yes")
    assert plan.data.person_column == "patient_id"
    assert plan.privacy is not None
    assert plan.privacy.unit == "person"
    assert "score7" in done.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "no heading 'column'"),
        ("column,low,high\nAge,old,95\n", "line 2: the range of 'Age' is not two numbers"),
        ("column,low,high\nAge,95,18\n", "line 2: the range of 'Age' must begin below its end"),
        ("column,low,high\nAge,1,2\nAge,1,2\n", "line 3: column 'Age' is there twice"),
        ("column,role\nAge,owner\n", "line 2: role 'owner' is none of"),
        ("column,role\nAge,label\nill,label\n", "'ill' is a second label"),
        ("column,low\nAge,1,2\n", "line 2: 3 cells"),
    ],
)
def test_a_faulty_dictionary_is_named_by_line(
    privet: Run, table: Path, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "dictionary.csv"
    path.write_text(text)
    words = ["--dictionary", path, "--site-column", "clinic"]
    done = privet("init", tmp_path / "mine", "--from", table, *words)
    assert done.code != 0
    assert said in " ".join(done.err.split())
    assert str(path) in done.err.replace("\n", "")
    assert not (tmp_path / "mine").exists()


def test_units_are_people_where_a_column_names_them(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = patients().assign(patient_id=lambda t: t.index // 3)
    frame.to_csv(path, index=False)
    words = ["--site-column", "clinic", "--label", "ill", "--public"]
    done = privet("init", tmp_path / "m", "--from", path, *words, "--person-column", "patient_id")
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "m" / "plan.toml")
    for site in plan.sites:
        people = frame[frame["clinic"] == site.name]["patient_id"].nunique()
        assert site.nominal_size == pytest.approx(0.7 * people, rel=0.05)


def test_a_dictionarys_site_lists_the_sites_and_what_it_names_in_vain_is_said(
    privet: Run, table: Path, tmp_path: Path
) -> None:
    dictionary = tmp_path / "d.csv"
    dictionary.write_text(
        "column;low;high;values;role\nAge;18;95;;\nclinic;;;A|B|C;site\nAgee;1;2;;\n"
    )
    done = privet("init", tmp_path / "m", "--from", table, "--dictionary", dictionary)
    assert done.code == 0, done.err
    assert "Agee" in done.out
    assert [site.name for site in Plan.parse(_read(tmp_path / "m")).sites] == ["A", "B", "C"]


def _read(folder: Path) -> dict[str, Any]:
    import tomllib

    value = tomllib.loads((folder / "plan.toml").read_text())
    value["task"]["label"], value["task"]["classes"] = "ill", ["no", "yes"]
    return value


def test_files_are_sites_in_plain_letters_and_a_columns_names_must_be(
    privet: Run, tmp_path: Path
) -> None:
    for name in ("münchen", "köln"):
        patients().drop(columns="clinic").to_csv(tmp_path / f"{name}.csv", index=False)
    words = ["--from", tmp_path / "münchen.csv", "--from", tmp_path / "köln.csv"]
    done = privet("init", tmp_path / "m", *words, "--label", "ill", "--public")
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "m" / "plan.toml")
    assert [site.name for site in plan.sites] == ["munchen", "koln"]
    path = tmp_path / "all.csv"
    patients().replace({"clinic": {"A": "Zürich"}}).to_csv(path, index=False)
    words = ["--from", path, "--site-column", "clinic", "--label", "ill", "--public"]
    done = privet("init", tmp_path / "n", *words)
    assert done.code == 2
    assert "'Zürich' cannot be that of a site" in " ".join(done.err.split())
    assert not (tmp_path / "n").exists()


def test_columns_that_are_no_features(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = patients().assign(seen="2024-03-05", amount=lambda t: t["score7"] * 1000)
    frame["seen"] = [f"2024-03-{1 + n % 28:02}" for n in range(len(frame))]
    frame.to_csv(path)  # with pandas' index
    words = ["--from", path, "--site-column", "clinic", "--public"]
    done = privet("init", tmp_path / "m", *words, "--label", "ill")
    assert done.code == 0, done.err
    assert "seen (dates" in " ".join(done.out.split())
    assert "seen" not in Plan.load(tmp_path / "m" / "plan.toml").task.columns
    done = privet("init", tmp_path / "n", *words, "--label", "amount")
    assert done.code == 2
    assert "a class is predicted, and no number" in " ".join(done.err.split())
    frame.rename(columns={"seen": "site"}).to_csv(path, index=False)
    done = privet("init", tmp_path / "o", *words, "--label", "ill")
    assert (done.code, "reserved" in done.err) == (2, True)


def test_a_decimal_comma_of_private_records_is_said(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    patients().to_csv(path, index=False, sep=";", decimal=",")
    more = ["--decimal", ",", "--na", "k.A.", "--na", "-"]
    done = privet("init", tmp_path / "m", "--from", path, *WORDS, *more)
    assert done.code == 0, done.err
    form = Plan.load(tmp_path / "m" / "plan.toml").data.format
    assert form is not None
    assert (form.separator, form.decimal, form.na) == (";", ",", ("k.A.", "-"))
    done = privet("init", tmp_path / "n", "--from", path, *WORDS, "--decimal", "x")
    assert done.code == 2


def test_a_file_for_each_site(privet: Run, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.csv" for name in ("north", "south")]
    for number, path in enumerate(paths):
        patients(120, number).drop(columns="clinic").to_csv(path, index=False)
    words = [word for path in paths for word in ("--from", path)]
    done = privet("init", tmp_path / "mine", *words, "--label", "ill", "--public")
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert [(site.name, site.path) for site in plan.sites] == [
        ("north", "../north.csv"), ("south", "../south.csv")
    ]  # fmt: skip
    run = ["--rounds", 1, "--evidence", "off", "--out", tmp_path / "run"]
    assert privet("simulate", tmp_path / "mine" / "plan.toml", *run).code == 0


@pytest.mark.parametrize("public", [True, False])
def test_a_european_export_is_declared_as_it_is(privet: Run, tmp_path: Path, public: bool) -> None:
    path = tmp_path / "patienten.csv"
    frame = patients().rename(columns={"smokes": "Größe"}).assign(score7=lambda t: t["score7"] + 1)
    frame.to_csv(path, index=False, sep=";", decimal=",", encoding="cp1252")
    words = ["--public", *WORDS[:4]] if public else list(WORDS)
    done = privet("init", tmp_path / "mine", "--from", path, *words)
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert plan.data.format is not None
    assert plan.data.format.separator == ";"
    # Of private records the first line alone was read, which holds no number.
    assert plan.data.format.decimal == ("," if public else ".")
    if public:
        assert 1 <= plan.task.numeric["score7"].low < 1.1
        assert "Größe" in plan.task.categorical
    else:
        text = (tmp_path / "mine" / "plan.toml").read_text()
        text = text.replace(
            "\n[task.numeric]\n", "\n[task.numeric]\nscore7 = { low = 1, high = 2 }\n"
        )
        (tmp_path / "mine" / "plan.toml").write_text(text)
    checked = privet("simulate", tmp_path / "mine" / "plan.toml", "--check")
    said = " ".join((checked.out + checked.err).split())
    advice = 'format = { separator = ";", encoding = "cp1252", decimal = "," } under [data]'
    assert (advice in said) is not public


def test_texts(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    pd.DataFrame({"note": ["a, b"], "ward": ["x"], "kind": ["k"]}).to_csv(path, index=False)
    words = ["--text", "note", "--label", "kind", "--classes", "k,l", "--site-column", "ward"]
    done = privet("init", tmp_path / "mine", "--from", path, *words, "--sites", "x,y")
    assert done.code == 0, done.err
    plan = Plan.load(tmp_path / "mine" / "plan.toml")
    assert (plan.task.kind, plan.task.text, plan.model.kind) == ("text", "note", "minilm")


def test_what_is_left_to_fill_in_is_named_and_the_plan_says_where(
    privet: Run, table: Path, tmp_path: Path
) -> None:
    done = privet("init", tmp_path / "mine", "--from", table, "--site-column", "clinic")
    assert done.code == 0, done.err
    for part in ("task.label", "task.classes", "[[sites]]"):
        assert f"to fill in: {part}" in done.out
    assert "FILL IN" in (tmp_path / "mine" / "plan.toml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "il", "--site-column", "clinic"], "no column 'il'; did you mean 'ill'?"),
        (["--label", "ill"], "say --site-column"),
        (["--public", "--dictionary", "d.csv"], "--public goes without --dictionary"),
        (["--like", "lending"], "--from goes without --like"),
    ],
)
def test_wrong_use_writes_nothing(
    privet: Run, table: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    done = privet("init", tmp_path / "mine", "--from", table, *words)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not (tmp_path / "mine").exists()


def test_options_of_a_table_need_one(privet: Run, tmp_path: Path) -> None:
    done = privet("init", tmp_path / "mine", "--public")
    assert (done.code, "--public goes with --from" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Age", "age in years"), ("patient_age", "age in years"), ("AgeYears", "age in years"),
        ("heartRate", "heart rate, per minute"), ("systolic", "systolic blood pressure, mmHg"),
        ("annual_income", "yearly income, USD or EUR"), ("loan_amount", "money, USD or EUR"),
        ("n_visits", "a count"), ("pct", "per cent"), ("BMI", "body mass index, kg/m²"),
    ],
)  # fmt: skip
def test_known_kinds(name: str, kind: str) -> None:
    found = known_kind(name)
    assert found is not None
    assert found.name == kind


@pytest.mark.parametrize("name", ["age_group", "agent", "image", "smokes", "x1", "stage", "rates"])
def test_a_name_that_only_has_a_known_word_in_it_is_unknown(name: str) -> None:
    assert known_kind(name) is None


def test_each_kind_has_a_range_and_a_source() -> None:
    assert all(kind.low < kind.high and kind.source for kind in KINDS)
    assert is_identifier("patientId")
    assert not is_identifier("width")
