"""A plan that cannot be run is refused with a message that says what and where."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.common.errors import InputError, PlanError
from privet.common.plan import Plan

Make = Callable[..., dict[str, Any]]
FEATURES = {"x1": {"low": -2, "high": 2}, "x2": {"low": -2, "high": 2}}


def refused(value: Any, *said: str) -> str:
    """Parse a plan that must be refused; return the message, which says all of ``said``."""
    with pytest.raises(PlanError) as caught:
        Plan.parse(value, where="mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml")
    for part in said:
        assert part in message
    return message


def test_the_tiny_plan_is_a_plan(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert plan.quorum == 2
    assert plan.site("East").nominal_size == 30


@pytest.mark.parametrize(
    ("changes", "where", "meant"),
    [
        ({"trainin": {}}, "trainin", "training"),
        ({"training": {"round": 3}}, "training.round", "rounds"),
        ({"privacy": {"epsilom": 3.0}}, "privacy.epsilom", "epsilon"),
        ({"task": {"numerics": {}}}, "task.numerics", "numeric"),
        ({"strategy": {"minsites": 2}}, "strategy.minsites", "min_sites"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_meant(
    plan_value: Make, changes: dict[str, Any], where: str, meant: str
) -> None:
    refused(plan_value(**changes), f"{where}: unknown key", f"did you mean '{meant}'?")


def test_an_unknown_key_like_no_other_gets_no_advice(plan_value: Make) -> None:
    assert "did you mean" not in refused(plan_value(zzz=1), "zzz: unknown key")


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"sites": [{"name": "A", "nominal_size": 1, "pth": "a.csv"}]}, "path"),
        ({"task": {"numeric": {"x1": {"low": 0, "high": 1, "logg": True}}}}, "log"),
    ],
)
def test_an_unknown_key_of_a_site_or_feature_gets_advice(
    plan_value: Make, changes: dict[str, Any], meant: str
) -> None:
    refused(plan_value(**changes), "unknown key", f"did you mean '{meant}'?")


def test_a_wrong_site_is_not_reported_as_no_site(plan_value: Make) -> None:
    message = refused(plan_value(sites=[{"name": "A", "nominal_size": 0}]), "sites.0.nominal_size")
    assert "at least 1 item" not in message


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"training": {"rounds": "three"}}, "training.rounds"),
        ({"training": {"rounds": 2.5}}, "training.rounds"),
        ({"training": {"rounds": True}}, "training.rounds"),
        ({"training": {"sample_rate": "0.1"}}, "training.sample_rate"),
        ({"training": []}, "training"),
        ({"name": 3}, "name"),
        ({"name": "../up"}, "name"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"task": {"classes": "01"}}, "task.classes"),
        ({"task": {"numeric": {"x1": {"low": 1, "high": 1}}}}, "task.numeric.x1"),
        ({"task": {"numeric": {"x1": {"low": -2, "high": 1, "log": True}}}}, "task.numeric.x1"),
        ({"task": {"numeric": {"x1": 3}}}, "task.numeric.x1"),
        ({"task": {"numeric": {}, "categorical": {}}}, "task"),
        ({"task": {"kind": "picture"}}, "task"),
        ({"task": {"classes": ["0"]}}, "task"),
        ({"task": {"classes": ["0", "0"]}}, "task"),
        ({"strategy": {"timeout": 0}}, "strategy.timeout"),
        ({"strategy": {"proximal_mu": 1.0}}, "strategy"),
        ({"metrics": {"source": "secret"}}, "metrics.source"),
        ({"split": {"test": 0.6, "validation": 0.5}}, "split"),
        ({"sites": "North"}, "sites"),
        ({"sites": []}, "sites"),
        ({"sites": [{"name": "A"}]}, "nominal_size"),
        ({"sites": [{"name": "A/B", "nominal_size": 1}]}, "sites.0.name"),
        ({"privacy": {"unit": "household"}}, "privacy.unit"),
        ({"privacy": {"trust": "none"}}, "privacy.trust"),
        ({"privacy": {"max_records": 2}}, "privacy"),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value_is_refused_by_its_place(
    plan_value: Make, changes: dict[str, Any], where: str
) -> None:
    refused(plan_value(**changes), where)


@pytest.mark.parametrize("value", [0, -1, math.inf, -math.inf, math.nan, 1e9, "3", True, None])
def test_an_impossible_epsilon_is_refused(plan_value: Make, value: Any) -> None:
    refused(plan_value(privacy={"epsilon": value}), "privacy.epsilon")


@pytest.mark.parametrize("value", [0, -1e-5, 1, 0.5, math.inf, math.nan, "1e-5"])
def test_an_impossible_delta_is_refused(plan_value: Make, value: Any) -> None:
    refused(plan_value(privacy={"delta": value}), "delta")


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, math.inf, math.nan])
def test_a_sample_rate_out_of_range_is_refused(plan_value: Make, value: float) -> None:
    refused(plan_value(training={"sample_rate": value}), "training.sample_rate")


@pytest.mark.parametrize("key", ["steps", "rounds", "micro_batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_steps_or_rounds_are_refused(plan_value: Make, key: str, value: int) -> None:
    refused(plan_value(training={key: value}), f"training.{key}")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0, -1])
@pytest.mark.parametrize("key", ["learning_rate", "clip"])
def test_an_impossible_rate_or_bound_is_refused(plan_value: Make, key: str, value: float) -> None:
    section = "training" if key == "learning_rate" else "privacy"
    refused(plan_value(**{section: {key: value}}), f"{section}.{key}")


def test_a_quorum_above_the_sites_is_refused(plan_value: Make) -> None:
    refused(plan_value(strategy={"min_sites": 4}), "min_sites", "3")
    assert Plan.parse(plan_value(strategy={"min_sites": 3})).quorum == 3


@pytest.mark.parametrize("other", ["North", "north", "NORTH"])
def test_a_site_named_twice_is_refused(plan_value: Make, other: str) -> None:
    sites = [{"name": "North", "nominal_size": 1}, {"name": other, "nominal_size": 1}]
    refused(plan_value(sites=sites), "names a site twice")


def test_a_label_that_is_also_a_feature_is_refused(plan_value: Make) -> None:
    refused(plan_value(task={"label": "x1"}), "label 'x1' is also a feature")
    refused(plan_value(task={"label": "colour"}), "label 'colour' is also a feature")


def test_a_feature_declared_twice_is_refused(plan_value: Make) -> None:
    refused(plan_value(task={"categorical": {"x1": ["a"]}}), "'x1' is declared numeric and")


def test_a_plan_must_say_whether_it_is_private(plan_value: Make) -> None:
    value = plan_value()
    del value["privacy"]
    refused(value, 'privacy: missing; write a section [privacy], or privacy = "none"')
    for nothing in (None, "none"):
        plan = Plan.parse(plan_value(privacy=nothing))
        assert plan.privacy is None and Plan.parse(plan.to_dict()) == plan
    refused(plan_value(privacy="None"), "privacy: ")


def test_every_fault_is_named_at_once(plan_value: Make) -> None:
    message = refused(plan_value(zzz=1, training={"steps": 0}, privacy={"epsilon": -1}))
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("value", [None, [], "plan", 3])
def test_something_else_than_a_mapping_is_refused(value: Any) -> None:
    refused(value, "must be a table")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"strategy": {"kind": "fedprox", "proximal_mu": math.inf}}, "strategy.proximal_mu"),
        ({"strategy": {"kind": "fedadam", "options": {"eta": math.nan}}}, "strategy.options"),
        ({"task": {"numeric": {"x1": {"low": 0, "high": math.inf}}}}, "task.numeric.x1"),
        ({"model": {"kind": "linear", "options": {"scale": math.nan}}}, "model.options"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_its_place(
    plan_value: Make, changes: dict[str, Any], where: str
) -> None:
    refused(plan_value(**changes), where)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"seed": 2**53}, "seed"),
        ({"training": {"steps": 2**60}}, "training.steps"),
        ({"sites": [{"name": "A", "nominal_size": 10**20}]}, "nominal_size"),
    ],
)
def test_an_integer_that_json_cannot_hold_is_refused_by_its_place(
    plan_value: Make, changes: dict[str, Any], where: str
) -> None:
    refused(plan_value(**changes), where)


def test_classes_that_no_label_can_tell_apart_are_refused(plan_value: Make) -> None:
    refused(plan_value(task={"classes": ["1", " 1", "2"]}), "classes")


# files


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.toml: there is no such file"):
        Plan.load(tmp_path / "none.toml")


def test_a_folder_is_not_a_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: it is a folder, not a file$"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("raw", [b"name = ", b"{}", b"a = 1\na = 2", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(raw)
    with pytest.raises(PlanError, match=r"bad\.toml: (not valid TOML|cannot be read)"):
        Plan.load(path)


def test_a_date_in_a_plan_is_refused(tmp_path: Path, plan_value: Make) -> None:
    import tomli_w

    path = tmp_path / "date.toml"
    path.write_text(tomli_w.dumps(plan_value()) + "\n[model.options]\nday = 2020-01-01\n")
    path.write_text(path.read_text().replace('[model]\nkind = "linear"\n', ""))
    with pytest.raises(PlanError, match=r"date\.toml"):
        Plan.load(path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_bytes('title = "Köln"'.encode("latin-1"))
    with pytest.raises(PlanError, match="it is not a text file in UTF-8"):
        Plan.load(tmp_path / "old.toml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "name: must be at most 64 letters, digits, spaces and . _ -"),
        ({"attested": {"H11": "why"}}, "attested.H11: this name must be 'H12', 'H13' or 'H21'"),
        ({"training": {"steps": 0}}, "training.steps: must be at least 1, not 0"),
        ({"training": {"steps": 2.5}}, "training.steps: must be a whole number, not 2.5"),
        ({"training": {"optimizer": "lamb"}}, "must be 'sgd' or 'adam', not 'lamb'"),
        ({"training": 3}, "training: must be a table, not 3"),
        ({"privacy": {"epsilon": 0}}, "privacy.epsilon: must be above 0, not 0"),
        ({"task": {"classes": "ab"}}, "task.classes: must be a list, not 'ab'"),
        ({"title": 4}, "title: must be a text in quotes, not 4"),
        ({"sites": []}, "sites: must not be empty"),
    ],
)
def test_a_fault_is_told_in_plain_words(
    plan_value: Make, changes: dict[str, Any], said: str
) -> None:
    message = refused(plan_value(**changes), said)
    for jargon in ("Input", "String", "[key]", "pattern"):
        assert jargon not in message


def test_a_policy_is_not_a_plan() -> None:
    refused({"site": "North", "populations": {}, "data": {}}, "this is a policy, not a plan")


# names that are looked up when the plan is used


def test_an_unknown_model_is_refused(plan_value: Make) -> None:
    refused(plan_value(model={"kind": "gru"}), "model.kind: must be 'linear', 'dense'", "not 'gru'")


def test_a_model_for_another_task_is_refused(plan_value: Make) -> None:
    from privet.common.models import build_model

    with pytest.raises(PlanError, match="'text-encoder' does not do task 'tabular'"):
        build_model(Plan.parse(plan_value(model={"kind": "text-encoder"})))


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "linear", "options": {"depth": 3}},
        {"kind": "ft-transformer", "options": {"width": 30, "heads": 4}},
        {"kind": "ft-transformer", "options": {"width": "wide"}},
    ],
)
def test_a_wrong_model_option_is_refused(plan_value: Make, model: dict[str, Any]) -> None:
    from privet.common.models import build_model

    with pytest.raises(PlanError, match=r"model\.options"):
        build_model(Plan.parse(plan_value(model=model)))


@pytest.mark.parametrize(
    "options",
    [
        {"width": -32},
        {"heads": 0},
        {"width": 0},
    ],
    ids=["width", "heads", "zero"],
)
def test_an_impossible_model_size_is_refused(plan_value: Make, options: dict[str, Any]) -> None:
    from privet.common.models import build_model

    model = {"kind": "ft-transformer", "options": options}
    with pytest.raises(PlanError, match=r"model\.options"):
        build_model(Plan.parse(plan_value(model=model)))


def test_an_unknown_device_is_refused(plan_value: Make) -> None:
    from privet.common.models import build_model

    with pytest.raises(PlanError, match="device"):
        build_model(Plan.parse(plan_value(device="abacus")))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nothing_here:make", "cannot import 'nothing_here'"),
        ("json:nothing", "module 'json' has no 'nothing'"),
        (":make", "not a reference"),
        ("json:", "not a reference"),
    ],
)
def test_a_model_of_ones_own_that_is_not_there_is_named(
    plan_value: Make, reference: str, said: str
) -> None:
    from privet.common.models import build_model

    with pytest.raises(InputError, match=said):
        build_model(Plan.parse(plan_value(model={"kind": reference})))


def test_a_task_of_ones_own_without_its_methods_is_refused(plan_value: Make) -> None:
    from privet.common.tasks import build_task

    with pytest.raises(InputError, match="must have the methods encode, loss, scores"):
        build_task(Plan.parse(plan_value(task={"kind": "builtins:repr"})))


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"kind": "fedfoo"}, "strategy.kind: must be 'fedavg', .* 'module:object', not 'fedfoo'"),
        ({"kind": "fedavg", "options": {"eta": 1.0}}, r"strategy\.options.*eta"),
        ({"kind": "fedavg", "options": {"min_train_nodes": 1.0}}, r"strategy\.options"),
    ],
)
def test_an_unknown_strategy_or_option_is_refused(
    plan_value: Make, strategy: dict[str, Any], said: str
) -> None:
    from privet.server.aggregate import Aggregator

    with pytest.raises(PlanError, match=said):
        Aggregator(Plan.parse(plan_value(strategy=strategy)))


@pytest.mark.parametrize("part", ["task", "model", "strategy"])
def test_a_factory_of_ones_own_that_fails_is_named(plan_value: Make, part: str) -> None:
    from privet.common.models import build_model
    from privet.common.tasks import build_task
    from privet.server.aggregate import Aggregator

    kind = {"task": "types:SimpleNamespace", "model": "decimal:Decimal", "strategy": "math:sqrt"}
    plan = Plan.parse(plan_value(**{part: {"kind": kind[part]}}))
    build: Callable[[Plan], object] = {
        "task": build_task, "model": build_model, "strategy": Aggregator
    }[part]  # fmt: skip
    with pytest.raises(InputError, match=kind[part]):
        build(plan)


@pytest.mark.parametrize("title", ["two\nlines", "a\x1b[31m", "\u2028", "long" * 51])
def test_a_title_is_one_short_line(plan_value: Make, title: str) -> None:
    refused(plan_value(title=title), "title")


def test_a_way_to_clip_that_was_removed_is_named_with_what_to_use(plan_value: Make) -> None:
    refused(
        plan_value(training={"clipping": "opacus-ghost"}),
        "training.clipping: 'opacus-ghost' was removed; use 'auto'",
    )


@pytest.mark.parametrize("other", ["north", "North ", " NORTH"])
def test_one_site_by_two_spellings(plan_value: Any, other: str) -> None:
    sites = [{"name": name, "nominal_size": 40} for name in ("North", other)]
    with pytest.raises(PlanError, match="names a site twice"):
        Plan.parse(plan_value(sites=sites))
    (site,) = Plan.parse(plan_value(sites=sites[1:])).sites
    assert site.name == other.strip()


@pytest.mark.parametrize("option", ["kind", "reference", "task", "width"])
def test_an_option_of_ones_own_may_have_any_name(
    plan_value: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """One that the factory does not take is named, with the factory."""
    from privet.common.models import build_model

    (tmp_path / "own_options.py").write_text(
        "from torch import nn\n\n\ndef make(task, *, kind='', reference=''):\n"
        "    assert 'x' in (kind, reference)\n    return nn.Linear(4, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_options", raising=False)
    model = {"kind": "own_options:make", "options": {option: "x"}}
    plan = Plan.parse(plan_value(model=model))
    if option in ("kind", "reference"):
        assert sum(p.numel() for p in build_model(plan).parameters()) == 10
    else:
        with pytest.raises(InputError, match=rf"'own_options:make' failed: .*{option}"):
            build_model(plan)
