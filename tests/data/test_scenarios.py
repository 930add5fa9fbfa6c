"""What the scenarios say of their records holds for the records that are there."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from privet.common.tasks import build_task
from privet.simulations import scenarios
from privet.simulations.planning import adjusted, find_plan
from privet.simulations.records import SiteRecords
from privet.simulations.scenarios import Scenario, model_name

FOLDER = Path(os.environ["PRIVET_DATA"]) if os.environ.get("PRIVET_DATA") else None
NAMES = tuple(scenarios.names())


def there(name: str) -> Scenario:
    scenario = scenarios.get(name)
    if not scenario.available(FOLDER):
        pytest.skip(f"the data of '{name}' is not here (PRIVET_DATA)")
    return scenario


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_its_plan_is_a_plan(name: str, tmp_path: Path) -> None:
    scenario, copy = scenarios.get(name), tmp_path / "mine.toml"
    copy.write_bytes(scenario.path.read_bytes())
    plan, base = find_plan(str(copy))
    assert plan == scenario.make_plan() and base == tmp_path
    assert plan.scenario == name


@pytest.fixture(scope="module", params=NAMES)
def records(request: pytest.FixtureRequest) -> SiteRecords:
    return SiteRecords(there(request.param).make_plan(), FOLDER)


@pytest.mark.data
def test_each_site_has_about_as_many_units_as_are_declared(records: SiteRecords) -> None:
    plan, train = records.plan, records.parts()["train"]
    unit = "person" if plan.privacy is not None and plan.privacy.unit == "person" else None
    assert set(train["site"]) == {site.name for site in plan.sites}
    for site in plan.sites:
        mine = train[train["site"] == site.name]
        units = mine["person"].nunique() if unit else len(mine)
        # The divisor of the noisy sum: a wrong one makes every step too long or too short.
        assert 0.8 < units / site.nominal_size < 1.25, site.name


@pytest.mark.data
def test_the_task_reads_every_split(records: SiteRecords) -> None:
    plan = records.plan.changed(model={"kind": "linear", "options": {}})
    if plan.task.kind != "tabular":
        plan = records.plan
    parts = records.parts()
    assert set(plan.task.columns) <= set(parts["train"].columns)
    for name in ("validation", "test"):
        assert len(parts[name]), name
    frame = parts["test"].head(64)
    if plan.task.labels:
        assert {str(x) for x in parts["train"][plan.task.label].unique()} <= set(plan.task.classes)
    if plan.model.kind != "minilm":  # whose features take a while
        assert all(len(tensor) == 64 for tensor in build_task(plan).encode(frame).values())


@pytest.mark.data
def test_h21_is_attested_where_it_holds(records: SiteRecords) -> None:
    table, scenario = records.table(), records.scenario
    if "person" not in table.columns:
        pytest.skip("the unit is a record")
    assert scenario is not None
    holds = bool(table.groupby("person")["site"].nunique().max() == 1)
    assert ("H21" in scenario.attested) <= holds


@pytest.mark.data
def test_no_unit_is_on_both_sides_of_a_split(records: SiteRecords) -> None:
    parts = records.parts()
    if "person" not in parts["train"].columns:
        assert sum(map(len, parts.values())) == len(records.table())
        return
    people = [set(frame["person"]) for frame in parts.values()]
    assert sum(map(len, people)) == len(set().union(*people))


@pytest.mark.data
def test_a_speaker_is_in_one_company() -> None:
    table = there("shakespeare").load(FOLDER)
    # The control: speakers are there, and several in each company.
    assert table.groupby("site")["speaker"].nunique().min() > 3
    assert table.groupby("speaker")["site"].nunique().max() == 1


@pytest.mark.data
def test_a_verse_is_in_one_gospel_and_has_both_languages() -> None:
    table = there("gospels").load(FOLDER)
    assert set(table["site"]) == {"Matthew", "Mark", "Luke", "John"}
    assert table["english"].str.len().min() > 0 and table["spanish"].str.len().min() > 0
    assert not (table["english"] == table["spanish"]).any()


def test_a_grey_value_is_in_the_declared_range() -> None:
    table, image = there("digits").load(FOLDER), scenarios.get("digits").make_plan().task.image
    assert image is not None
    pixels = table[list(image.columns)]
    assert pd.Series(pixels.min()).min() >= image.low and pixels.max().max() <= image.high


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dp", [True, False])
def test_every_model_of_a_scenario_has_a_plan(name: str, dp: bool) -> None:
    scenario = scenarios.get(name)
    own = scenario.make_plan()
    for model in (None, *scenario.models):
        plan = adjusted(scenario.make_plan(model), dp=dp)
        assert (plan.privacy is not None) is dp
        assert plan.task == own.task and plan.sites == own.sites
        assert model is None or model_name(plan.model) == model
