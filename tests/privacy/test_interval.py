"""The interval of prv-accountant, in a process of its own that cannot hang."""

from __future__ import annotations

import importlib.util
import math
import time

import pytest

from privet.common.errors import InputError
from privet.privacy.accounting import interval
from privet.privacy.accounting.events import (
    Counts,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
)
from privet.privacy.accounting.interval import Interval, NoInterval, certified_interval
from privet.privacy.accounting.pld import epsilon
from privet.privacy.accounting.units import Relation

INSTALLED = importlib.util.find_spec("prv_accountant") is not None
with_package = pytest.mark.skipif(not INSTALLED, reason="prv-accountant is not installed")


def sgd(rate: float, noise: float, steps: int) -> Counts:
    step = Gaussian(noise, 1.0)
    return (((step if rate == 1 else PoissonSampled(rate, step)), steps),)


GOLDEN = {
    "mnist": (sgd(256 / 60000, 1.1, 14_062), 1e-5, 2.3715, 2.3917),
    "much noise": (sgd(0.01, 4, 10_000), 1e-5, 0.9368, 0.9569),
    "no sampling": (sgd(1, 10, 100), 1e-5, 4.3669, 4.3874),
    "with metrics": (
        (*sgd(0.01, 1, 2000), (Gaussian(20, 1), 5), (Gaussian(10, 1), 3)), 1e-6, 3.0972, 3.1175,
    ),
    "small hospital": (sgd(16 / 150, 1.5, 282), 1e-3, 4.6619, 4.6828),
}  # fmt: skip


@with_package
@pytest.mark.parametrize("row", GOLDEN)
def test_golden_table(row):
    counts, delta, low, high = GOLDEN[row]
    found = certified_interval(counts, delta)
    assert isinstance(found, Interval), found
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    record = epsilon([Repeated(event, count) for event, count in counts], delta)
    assert found.low <= record <= found.high


@with_package
def test_the_interval_would_notice_another_noise():
    found = certified_interval(sgd(0.01, 4, 10_000), 1e-5)
    assert isinstance(found, Interval)
    other = epsilon([Repeated(PoissonSampled(0.01, Gaussian(4.2, 1.0)), 10_000)], 1e-5)
    assert not found.low <= other <= found.high


@with_package
def test_noise_and_sensitivity_count_together():
    one = certified_interval(((Gaussian(20, 2), 10), (Gaussian(30, 2), 1)), 1e-5)
    assert one == certified_interval(((Gaussian(10, 1), 10), (Gaussian(15, 1), 1)), 1e-5)


def test_nothing_costs_nothing():
    assert certified_interval((), 1e-5) == Interval(0.0, 0.0)
    assert certified_interval(((NonPrivate("x"), 0),), 1e-5) == Interval(0.0, 0.0)


@pytest.mark.parametrize(
    "event",
    [NonPrivate("x"), PoissonSampled(0.1, PoissonSampled(0.1, Gaussian(9, 1)))],
)
def test_events_that_it_does_not_know_have_no_interval(event):
    found = certified_interval(((event, 3),), 1e-5)
    assert isinstance(found, NoInterval)
    assert "does not know" in found.reason
    assert not found


def test_replace_one_has_no_interval():
    found = certified_interval(sgd(0.1, 2, 3), 1e-5, Relation.REPLACE_ONE)
    assert isinstance(found, NoInterval)
    assert "replace_one" in found.reason


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_an_impossible_delta(delta):
    with pytest.raises(InputError, match="delta"):
        certified_interval(sgd(0.1, 2, 3), delta)


WORKERS = {
    "hangs": ("import time; time.sleep(60)", "did not finish within 1 s"),
    "dies": ("import sys; sys.exit('memory')", "ended with code 1: memory"),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "code -9: no answer"),
    "babbles": ("print('hello')", "ended with code 0"),
    "is not installed": (
        "import sys, runpy; sys.modules['prv_accountant'] = None\n"
        "runpy.run_path({worker!r}, run_name='__main__')",
        "is not installed",
    ),
}


@pytest.mark.parametrize("fault", WORKERS)
def test_a_worker_that_fails_gives_a_reason(fault, tmp_path, monkeypatch):
    code, said = WORKERS[fault]
    script = tmp_path / "worker.py"
    script.write_text(code.replace("{worker!r}", repr(str(interval._WORKER))))
    monkeypatch.setattr(interval, "_WORKER", script)
    began = time.monotonic()
    found = certified_interval(sgd(0.1, 2, 3), 1e-5, seconds=1 if fault == "hangs" else 30)
    assert time.monotonic() - began < 20
    assert isinstance(found, NoInterval)
    assert said in found.reason
