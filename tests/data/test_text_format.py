"""Files as they come: separators, decimal commas, encodings, marks of missing values."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget_kit import policy_value

from privet.client.data.detect import detected
from privet.client.data.tables import Table, read_table, read_text
from privet.common.errors import DataError, PlanError
from privet.common.plan import Plan
from privet.common.text_format import PLAIN, TextFormat, with_point
from privet.privacy.policy import Policy

Make = Callable[..., Any]
EUROPEAN = TextFormat(separator=";", decimal=",", encoding="cp1252", na=("k.A.",))
LINES = [
    "Größe;Gewicht;Stadt",
    "117,8;1.234,5;Köln",
    "k.A.;-0,5;Zürich, West",
    '1e3;12;"a;b"',
]


def read(lines: list[bytes] | list[str], form: TextFormat, *, multiline: bool = False) -> Table:
    data = b"".join(
        (line if isinstance(line, bytes) else line.encode(form.encoding)) + b"\r\n"
        for line in lines
    )
    numbers = ("Größe", "Gewicht", "a")
    return read_text(io.BytesIO(data), multiline=multiline, form=form, numbers=numbers)


@pytest.mark.parametrize("multiline", [False, True])
def test_a_european_export(multiline: bool) -> None:
    found = read(LINES, EUROPEAN, multiline=multiline)
    assert found.faults == ()
    assert list(found.frame.columns) == ["Größe", "Gewicht", "Stadt"]
    assert found.frame["Größe"].tolist() == ["117.8", None, "1e3"]
    assert found.frame["Gewicht"].tolist() == ["1234.5", "-0.5", "12"]
    assert found.frame["Stadt"].tolist() == ["Köln", "Zürich, West", "a;b"]


def test_names_people_and_categories_keep_their_characters() -> None:
    """Two people are not one because their ids look like numbers (H20)."""
    lines = ["patient;class;a", "1.234;1,5;1,5", "1234;1.500;2,5"]
    found = read(lines, EUROPEAN).frame
    assert found["patient"].tolist() == ["1.234", "1234"]
    assert found["class"].tolist() == ["1,5", "1.500"]
    assert found["a"].tolist() == ["1.5", "2.5"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("117,8", "117.8"), ("1.234.567,25", "1234567.25"), ("1.234", "1234"), (",5", "0.5"),
        ("7,", "7"), ("+3,5e-2", "+3.5e-2"), (" 2,5 ", "2.5"),
        # Not numbers of this form, and so as they are.
        ("1.23", "1.23"), ("12.34,5", "12.34,5"), ("1,2,3", "1,2,3"), ("01.02.2024", "01.02.2024"),
        ("a,b", "a,b"), (",", ","), (".", "."), ("12", "12"), ("", ""), ("١,٢", "١,٢"),
        ("1" * 500 + ",5", "1" * 500 + ",5"),
    ],
)  # fmt: skip
def test_decimal_commas(text: str, read: str) -> None:
    assert with_point(text) == read


FORMS = [
    PLAIN,
    EUROPEAN,
    TextFormat(separator="\t", decimal=","),
    TextFormat(separator="|", encoding="latin-1", na=("-",)),
    TextFormat(encoding="iso-8859-15", separator=";"),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.separator}{f.decimal}{f.encoding}")
def test_a_line_of_any_bytes_changes_no_other_record(form: TextFormat) -> None:
    """Neighbouring files: each record is read from its own line alone, whatever the format (H6)."""
    mark = form.separator or ","
    rows = [f"{n},5{mark}tön{n}" if mark != "," else f"{n}.5,ton{n}" for n in range(40)]
    header = f"a{mark}b"
    whole = read([header, *rows], form).frame
    draws = np.random.default_rng(0)
    for trial in range(300):
        place = int(draws.integers(40))
        damage = bytes(draws.integers(0, 256, int(draws.integers(1, 30)), dtype=np.uint8))
        damage = damage.replace(b"\n", b"x")
        lines = [line.encode(form.encoding) for line in (header, *rows)]
        lines[place + 1] = damage
        found = read(lines, form).frame
        rest = [line for line in whole.index if line != place + 2]
        assert found.loc[[line for line in rest if line in found.index]].equals(whole.loc[rest]), (
            trial
        )


def test_control_a_format_that_followed_from_the_records_would_let_one_change_all(
    tmp_path: Path,
) -> None:
    """Why nothing is detected in a run: one record more is another format."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"x;y\n1,5;2\n")
    before = detected(path)
    path.write_bytes(b"x;y\n1,5;2\n1.5;2\n1.5;2\n")
    assert detected(path) != before


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.separator}{f.decimal}{f.encoding}")
def test_what_a_file_is_written_in_is_found(form: TextFormat, tmp_path: Path) -> None:
    mark = form.separator or ","
    path = tmp_path / "f.csv"
    missing = form.na[0] if form.na else ""
    rows = [f"{n},25" if form.decimal == "," else f"{n}.25" for n in range(20)] + [missing]
    text = "".join(f"{row}{mark}Zoë{mark}x\n" for row in ["a", *rows])
    path.write_bytes(text.encode(form.encoding))
    found = detected(path)
    assert (found.separator or ",") == mark
    assert found.decimal == form.decimal
    assert found.na == form.na
    table = read_table(path, form=found, numbers=["a"]).frame
    own = read_table(path, form=form, numbers=["a"]).frame
    if form.encoding != "iso-8859-15":  # whose bytes are cp1252's, too
        assert table.equals(own)


def test_utf_16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    for encoding in ("utf-16", "utf-16-le"):
        path.write_bytes("a,b\n1,2\n".encode(encoding))
        with pytest.raises(DataError, match=r"UTF-16.*iconv -f UTF-16 -t UTF-8"):
            detected(path)


def test_one_that_is_not_declared_says_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("a;b\n1,5;2\n")
    with pytest.raises(DataError, match=r'format = \{ separator = ";" \} under \[data\]'):
        read_table(path)


def test_a_plan_and_a_policy_declare_it_and_older_ones_keep_their_digests(
    plan_value: Make,
) -> None:
    plain = Plan.parse(plan_value())
    assert "format" not in plain.to_dict()["data"]
    said = EUROPEAN.model_dump(mode="json")
    other = Plan.parse(plan_value(data={"format": said}))
    assert other.digest != plain.digest
    assert Plan.parse(json.loads(json.dumps(other.to_dict()))) == other
    with pytest.raises(PlanError, match="cannot both be ','"):
        Plan.parse(plan_value(data={"format": {"separator": ",", "decimal": ","}}))
    with pytest.raises(PlanError, match="utf-16"):
        Plan.parse(plan_value(data={"format": {"encoding": "utf-16"}}))


def test_a_policys_format_stays_at_the_site() -> None:
    value = policy_value()
    plain = Policy.parse(value)
    (name,) = value["data"]
    value["data"][name]["format"] = EUROPEAN.model_dump(mode="json")
    said = Policy.parse(value)
    assert said.data_set(name)[1].format == EUROPEAN
    assert said.digest == plain.digest
    assert "format" not in json.dumps(said.public())


def test_a_federation_trains_on_such_files_as_on_plain_ones(
    plan_value: Make, frame_of: Make, tmp_path: Path
) -> None:
    import privet

    models = []
    for name, form in (("plain", None), ("european", EUROPEAN)):
        folder = tmp_path / name
        folder.mkdir()
        for number, site in enumerate(("north", "east", "south")):
            frame = frame_of(60, number)
            if form is None:
                frame.to_csv(folder / f"{site}.csv", index=False)
            else:
                frame.to_csv(
                    folder / f"{site}.csv", index=False, sep=";", decimal=",", encoding="cp1252"
                )
        data = {} if form is None else {"data": {"format": form.model_dump(mode="json")}}
        plan = Plan.parse(plan_value(**data))
        result = privet.simulate(plan, base=folder, noise_seed=3, out=tmp_path / f"run-{name}")
        assert not result.remarks
        models.append(result.model)
    for key, array in models[0].items():
        np.testing.assert_array_equal(array, models[1][key])
