"""Lighter updates: what travels, what comes back, and what it costs in accuracy and in privacy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_kit import Ends, answering

from privet.common import compress as module
from privet.common.compress import GROUP, CompressedUpdate, bytes_of, compress
from privet.common.errors import InputError
from privet.common.flat import Arrays, StreamDecoder, chunks, size_of
from privet.common.order import Status
from privet.common.plan import Compression, Plan
from privet.privacy.mechanism.noise import Stream
from privet.server import aggregate
from privet.server.aggregate import Aggregator

Make = Callable[..., Any]
INT8 = Compression(kind="int8")
TENTH = Compression(kind="top-k", share=0.1)
BOTH = pytest.mark.parametrize("how", [INT8, TENTH], ids=lambda how: how.kind)


def update(seed: int = 0, rows: int = 70, width: int = 100) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "head.weight": generator.normal(size=(rows, width)).astype(np.float32),
        "head.bias": generator.normal(size=3).astype(np.float32),
    }


def shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def there_and_back(arrays: Arrays, how: Compression, stream: Any) -> Arrays:
    return CompressedUpdate(compress(arrays, how, stream)[0], shapes(arrays), how).whole()


# what comes back


def off_in_the_mean(stream: Any, draws: int = 3000) -> float:
    """How far the mean of many roundings is from the number, in standard errors; the worst."""
    arrays = {"w": np.array([1.0, 0.3, -0.777, 0.05, -1e-3, 0.0], np.float32)}
    found = np.stack([there_and_back(arrays, INT8, stream)["w"] for _ in range(draws)])
    step = 1.0 / 127
    return float(np.abs(found.mean(0) - arrays["w"]).max() / (0.5 * step / math.sqrt(draws)))


def test_rounding_is_right_in_the_mean() -> None:
    assert off_in_the_mean(Stream.seeded("rounding")) < 5


def test_rounding_down_would_be_noticed() -> None:
    class Down:
        def uniform(self, count: int) -> npt.NDArray[np.float64]:
            return np.ones(count)

    assert off_in_the_mean(Down()) > 20


@given(st.integers(0, 2**32), st.integers(1, 3 * GROUP), st.floats(1e-30, 1e16))
@settings(max_examples=60, deadline=None)
def test_no_number_is_off_by_more_than_a_step(seed: int, size: int, scale: float) -> None:
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32) * np.float32(scale)
    back = there_and_back({"w": values}, INT8, Stream.seeded(seed))["w"]
    for start in range(0, size, GROUP):
        part = values[start : start + GROUP].astype(np.float64)
        most = np.abs(part).max() / 127
        assert (np.abs(back[start : start + GROUP] - part) <= most * 1.0001).all()


@pytest.mark.parametrize("value", [0.0, 1e18, 1e-45])
def test_the_ends_of_single_precision(value: float) -> None:
    arrays = {"w": np.array([value, -value, 0.0], np.float32)}
    back = there_and_back(arrays, INT8, Stream.seeded(1))["w"]
    assert np.isfinite(back).all() and back == pytest.approx(arrays["w"], rel=0.01, abs=1e-44)


def test_the_largest_numbers_are_sent() -> None:
    arrays = update()
    back = there_and_back(arrays, TENTH, Stream.seeded(1))
    sizes = np.abs(arrays["head.weight"]).ravel()
    kept = back["head.weight"].ravel() != 0
    assert kept.sum() == 700 and sizes[kept].min() >= sizes[~kept].max()
    assert np.array_equal(back["head.weight"].ravel()[kept], arrays["head.weight"].ravel()[kept])
    assert (back["head.bias"] != 0).sum() == 1  # never none of an array


def test_what_was_left_out_comes_later() -> None:
    """Error feedback: nothing is lost, only late."""
    rest: Arrays = {}
    sent = {name: np.zeros(shape) for name, shape in shapes(update()).items()}
    asked = {name: np.zeros(shape) for name, shape in shapes(update()).items()}
    for number in range(30):
        arrays = update(number)
        packed, rest = compress(arrays, TENTH, Stream.seeded(number), rest)
        back = CompressedUpdate(packed, shapes(arrays), TENTH).whole()
        for name in arrays:
            sent[name] += back[name]
            asked[name] += arrays[name]
    for name in asked:
        assert sent[name] + rest[name] == pytest.approx(asked[name], abs=1e-4)
    assert (sent["head.weight"] != 0).mean() > 0.7  # though a tenth is sent each time


@BOTH
@given(a=st.integers(0, 9000), b=st.integers(0, 9000))
@settings(max_examples=60, deadline=None)
def test_a_part_is_a_part_of_the_whole(how: Compression, a: int, b: int) -> None:
    arrays = update(3, 90, 100)
    packed = CompressedUpdate(compress(arrays, how, Stream.seeded(2))[0], shapes(arrays), how)
    low, high = min(a, b), max(a, b)
    assert np.array_equal(
        packed.part("head.weight", low, high), packed.whole()["head.weight"].ravel()[low:high]
    )


# what travels


@BOTH
def test_it_travels_and_its_length_is_known_before(how: Compression) -> None:
    arrays = update()
    packed, _ = compress(arrays, how, Stream.seeded(2))
    intake = StreamDecoder(size_of(packed))
    for chunk in chunks(packed, size=777):
        intake.take(chunk)
    came, _ = intake.finish()
    assert {n: a.tobytes() for n, a in came.items()} == {n: a.tobytes() for n, a in packed.items()}
    assert sum(array.nbytes for array in packed.values()) == bytes_of(shapes(arrays), how)
    assert bytes_of(shapes(arrays), how) < bytes_of(shapes(arrays), None) / 3.5


def spoilt(packed: Arrays, how: Compression) -> Iterator[Arrays]:
    name = "head.weight"
    yield {key: array for key, array in packed.items() if key != name}
    yield dict(reversed(packed.items()))
    yield {**packed, name: packed[name].astype(np.float64)}
    yield {**packed, name: packed[name][..., :-1]}
    yield {**packed, "more": packed[name]}
    if how.kind == "top-k":
        places = packed["head.weight|places"]
        for where, value in ((0, -1), (-1, 7000), (3, int(places[2])), (3, int(places[4]) + 1)):
            wrong = places.copy()
            wrong[where] = value
            yield {**packed, "head.weight|places": wrong}


@BOTH
def test_what_the_plan_does_not_ask_for_is_refused(how: Compression) -> None:
    arrays = update()
    packed, _ = compress(arrays, how, Stream.seeded(2))
    for number, wrong in enumerate(spoilt(packed, how)):
        with pytest.raises(InputError, match="not compressed as|do not ascend"):
            CompressedUpdate(wrong, shapes(arrays), how)
            pytest.fail(f"number {number} was taken")


@BOTH
def test_names_that_would_meet_are_refused_before_anything_is_paid(how: Compression) -> None:
    second = "w|scales" if how.kind == "int8" else "w|places"
    arrays = {"w": np.ones(8, np.float32), second: np.ones(8, np.float32)}
    with pytest.raises(InputError, match="would have one name"):
        bytes_of(shapes(arrays), how)
    with pytest.raises(InputError, match="would have one name"):
        compress(arrays, how, Stream.seeded(2))


# in a federation


def test_a_whole_share_changes_nothing(federation: Make, same: Callable[..., bool]) -> None:
    plain = federation(folder="plain", noise_seed=5).run()
    whole = federation(
        folder="whole", noise_seed=5, compression={"kind": "top-k", "share": 1.0}
    ).run()
    assert same(plain.model, whole.model)


@BOTH
def test_a_lighter_run_costs_the_same_budget(federation: Make, how: Compression) -> None:
    plain, lighter = (
        federation(folder=name, noise_seed=5, compression=value)
        for name, value in (("plain", None), ("lighter", how.model_dump()))
    )
    first, second = plain.run(), lighter.run()
    assert first.progress[-1].spent == second.progress[-1].spent
    assert lighter.verdict().ok
    release = lighter.release("North", 1)
    assert sum(array.nbytes for array in release.values()) == bytes_of(
        shapes(first.model), lighter.plan.compression
    )
    off = [np.abs(first.model[n] - second.model[n]).max() for n in first.model]
    assert max(off) > 0


def test_eight_bits_stay_near(federation: Make) -> None:
    plain = federation(folder="plain", noise_seed=5).run()
    lighter = federation(folder="lighter", noise_seed=5, compression={"kind": "int8"}).run()
    for name, array in plain.model.items():
        assert lighter.model[name] == pytest.approx(array, abs=0.05 * np.abs(array).max())


def test_a_site_that_does_not_compress_fails_alone(
    federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(noise_seed=5, compression={"kind": "int8"}, strategy={"min_sites": 2})
    from privet.client.training import trainer

    real = trainer.compress
    calls = []

    def forgetful(arrays: Arrays, *more: Any) -> tuple[Arrays, Arrays]:
        calls.append(1)
        return (arrays, {}) if len(calls) == 1 else real(arrays, *more)

    monkeypatch.setattr(trainer, "compress", forgetful)
    outcome = made.run()
    assert outcome.progress[0].statuses[made.sites[0].name] is Status.FAILED
    assert list(outcome.progress[0].statuses.values()).count(Status.RELEASED) == 2


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), 1e37])
def test_a_scale_that_no_update_has_is_refused(scale: float) -> None:
    arrays = update()
    packed, _ = compress(arrays, INT8, Stream.seeded(2))
    packed["head.weight|scales"] = np.full_like(packed["head.weight|scales"], scale)
    with pytest.raises(InputError, match="scales of 'head.weight'"):
        CompressedUpdate(packed, shapes(arrays), INT8)


@BOTH
def test_an_array_without_numbers(how: Compression) -> None:
    arrays = {"empty": np.zeros((0, 4), np.float32), "one": np.ones((), np.float32)}
    back = there_and_back(arrays, how, Stream.seeded(1))
    assert back["empty"].shape == (0, 4) and back["one"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("compression", "spoil"),
    [
        ({"kind": "int8"}, lambda a: {k: v if v.dtype == np.int8 else v * 0 + 1e37 for k, v in a.items()}),
        (None, lambda a: {k: np.full(v.shape, 1e300) for k, v in a.items()}),
        (None, lambda a: {k: np.full_like(v, 3e38) for k, v in a.items()}),
    ],
)  # fmt: skip
def test_numbers_without_measure_fail_their_site_alone(
    federation: Make, monkeypatch: pytest.MonkeyPatch, compression: Any, spoil: Any
) -> None:
    made = federation(
        noise_seed=5, compression=compression, strategy={"min_sites": 2}, training={"rounds": 3}
    )
    from privet.client.training import trainer

    real = trainer.Trainer._train

    def hostile(self: Any, *given: Any) -> Any:
        found = real(self, *given)
        if self.site.name != "North":
            return found
        return trainer.TrainerOutput(spoil(found.arrays), found.event, found.reproducible)

    monkeypatch.setattr(trainer.Trainer, "_train", hostile)
    outcome = made.run()
    assert len(outcome.progress) == 3
    for step in outcome.progress:
        assert step.statuses["North"] is Status.FAILED
        assert list(step.statuses.values()).count(Status.RELEASED) == 2
    assert all(np.isfinite(array).all() for array in outcome.model.values())


# the rest holds what was released, and nothing else


TOP = {"kind": "top-k", "share": 0.25}


def test_what_was_not_paid_for_is_not_in_the_next_update(
    federation: Make, order_for: Make, start: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that commit refuses, made with hardly any noise, must not come out later."""
    from dataclasses import replace

    from privet.client.training import trainer

    made = federation(
        compression=TOP, privacy={"noise_multiplier": 50.0, "epsilon": 500.0},
        training={"rounds": 3, "steps": 1, "sample_rate": 1.0, "learning_rate": 1.0},
    )  # fmt: skip
    site = made.sites[0]
    model, honest = start(made.plan), site._trainer.mechanism
    seen: list[Arrays] = []
    real = trainer.compress
    given: list[Any] = []

    def spy(arrays: Arrays, how: Any, stream: Any, rest: Arrays) -> Any:
        seen.append(arrays)
        given.append(rest)
        return real(arrays, how, stream, rest)

    monkeypatch.setattr(trainer, "compress", spy)
    monkeypatch.setattr(trainer.Trainer, "event", property(lambda self: honest.event))
    site._trainer._mechanism = replace(honest, noise_multiplier=1e-6)
    assert site.answer(order_for(made, site.name, model), model).status is Status.FAILED
    site._trainer._mechanism = honest
    second = site.answer(order_for(made, site.name, model, attempt=2), model)
    assert second.status is Status.RELEASED and given[1] == {}
    third = site.answer(order_for(made, site.name, model, round=2), model)
    assert third.status is Status.RELEASED and given[2] != {}
    # What is left of the second, and nothing of the first.
    assert second.release is not None
    back = CompressedUpdate(second.release.arrays, shapes(model), made.plan.compression).whole()
    for name in model:
        assert given[2][name] == pytest.approx(seen[1][name] - back[name], abs=1e-6)


def test_a_full_disk_leaves_no_rest(
    federation: Make, order_for: Make, start: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = federation(compression=TOP, noise_seed=3, privacy={"epsilon": 500.0})
    site, model = made.sites[0], start(made.plan)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.outbox, "put", full)
    assert site.answer(order_for(made, site.name, model), model).status is Status.FAILED
    assert not site._trainer._rest


def test_another_run_begins_with_no_rest(federation: Make, same: Make) -> None:
    found = []
    for name, again in (("warm", False), ("fresh", True)):
        made = federation(
            folder=name, noise_seed=5, compression=TOP, cap=1000.0, privacy={"epsilon": 500.0}
        )
        made.run(run="tiny-run", snapshots="first")
        if again:
            made.sites[:] = [made.restart(site.name) for site in made.sites]
        found.append(made.run(run="another-run", snapshots="second").model)
    assert same(*found)


@BOTH
def test_joined_block_by_block_as_at_once(
    plan_value: Make, monkeypatch: pytest.MonkeyPatch, how: Compression
) -> None:
    from flwr.app import Message, RecordDict

    plan = Plan.parse(plan_value(compression=how.model_dump()))
    model = update(9)
    updates: dict[str, tuple[Message, Arrays]] = {}
    for number, site in enumerate(plan.sites):
        packed, _ = compress(update(number), how, Stream.seeded(number))
        message = Message(RecordDict(), reply_to=Message(RecordDict(), number + 1, "train"))
        updates[site.name] = message, CompressedUpdate(packed, shapes(model), how)
    at_once = Aggregator(plan).aggregate(1, model, updates)
    monkeypatch.setattr(aggregate, "BLOCK", 1000)
    by_block = Aggregator(plan).aggregate(1, model, updates)
    for name in model:
        assert np.array_equal(at_once[name], by_block[name])
        assert not np.array_equal(at_once[name], model[name])


def test_over_the_link(
    federation: Make, tmp_path: Path, same: Callable[[Arrays, Arrays], bool]
) -> None:
    inside = federation(folder="inside", noise_seed=7, compression={"kind": "int8"}).run()
    outside = federation(folder="outside", noise_seed=7, compression={"kind": "int8"})
    ends = Ends(tmp_path / "hub", [site.name for site in outside.sites])
    try:
        for site in outside.sites:
            ends.dial(site.name, answering(site))
        assert same(outside.run(ends.grid()).model, inside.model)
    finally:
        ends.close()
    assert outside.verdict().ok


def test_rounding_that_is_not_random_is_noticed_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the first test, on the code that rounds."""
    monkeypatch.setattr(module.np, "floor", np.ceil)
    assert off_in_the_mean(Stream.seeded("rounding")) > 20
