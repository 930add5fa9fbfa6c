"""The low bits of a noised table do not tell whether a cell was empty (H15, Mironov 2012)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from privet.privacy.accounting.events import Repeated, gate_release
from privet.privacy.accounting.pld import epsilon
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism import metrics_mechanism
from privet.privacy.mechanism.noise import Stream

Array = npt.NDArray[Any]
CLASSES = 77
NOISE = 20.0
RELEASES = 10
FILLED = 190
"""Records, each alone in its cell: 77 x 77 cells, of which 5,739 are empty."""


def held_out() -> tuple[Array, Array, Array]:
    """Scores and labels of records in cells of their own, and the table of their counts."""
    places = np.random.default_rng(16).choice(CLASSES**2, FILLED, replace=False)
    labels, guesses = np.divmod(places, CLASSES)
    table = np.zeros((CLASSES, CLASSES), int)
    table[labels, guesses] = 1
    return np.eye(CLASSES)[guesses], labels, table


def new_gate(scores: Array, labels: Array, stream: Stream) -> Array:
    return metrics_mechanism.noised_histogram(
        scores, labels, UnitIndex.by_record(len(labels)), shape=(CLASSES, CLASSES),
        noise_multiplier=NOISE, stream=stream,
    )[0]  # fmt: skip


def old_gate(scores: Array, labels: Array, stream: Stream) -> Array:
    """The gate as it was: counts in float64, plus normals of Box and Muller in float64."""
    table = np.zeros((CLASSES, CLASSES))
    np.add.at(table, (labels, scores.argmax(1)), 1.0)
    return table + stream.normal(table.size).reshape(table.shape) * NOISE


def releases(make: Any) -> Array:
    scores, labels, _ = held_out()
    return np.stack([make(scores, labels, Stream.seeded("bits", k)) for k in range(RELEASES)])


def finer_than(values: Array, bits: int) -> Array:
    """Whether a value has a binary digit below 2^-bits; exact, since only the exponent changes."""
    scaled = np.ldexp(values, bits)
    return scaled != np.floor(scaled)


def proved_empty(tables: Array) -> Array:
    """Cells of which some release proves that nobody was counted there.

    Were the count c from 1 on, a value below 1/2 in size would be c plus a number of 1/2 or more in
    size, whose last digit is 2^-53 or above: so would be that of their sum.
    """
    return ((np.abs(tables) < 0.5) & finer_than(tables, 53)).any(0)


def test_no_cell_is_proved_empty() -> None:
    _, _, counts = held_out()
    assert epsilon([Repeated(gate_release(NOISE), RELEASES)], 1e-5) < 0.57
    assert (counts == 0).sum() == 5739
    assert proved_empty(releases(new_gate)).sum() == 0
    # The control: the old gate, at the same ε, without one mistake.
    found = proved_empty(releases(old_gate))
    assert found.sum() > 400 and not counts[found].any()


def test_every_number_is_on_the_grid() -> None:
    assert not finer_than(releases(new_gate), 20).any()
    assert finer_than(releases(old_gate), 20).mean() > 0.99


def test_the_lowest_digits_are_the_same_by_chance_for_counts_of_zero_and_one() -> None:
    """Whatever a distinguisher makes of the low digits, they have one distribution."""
    _, _, counts = held_out()
    tables = releases(new_gate).ravel()
    where = np.tile(counts.ravel(), RELEASES)
    digits = (tables * 2**20).astype(np.int64)
    for modulus in (2, 16, 1024):
        parts = digits % modulus * 16 // max(modulus, 16)
        groups = [np.bincount(parts[where == count], minlength=16) for count in (0, 1)]
        seen = np.stack([group for group in np.stack(groups).T if group.sum()])
        assert stats.chi2_contingency(seen).pvalue > 1e-8
    # The control: with a weight that is off the grid of the noise the digits tell.
    coarse = digits // 16 * 16 + where
    shares = [np.bincount(coarse[where == count] % 16, minlength=16) for count in (0, 1)]
    seen = np.stack([group for group in np.stack(shares).T if group.sum()])
    assert stats.chi2_contingency(seen).pvalue < 1e-8


def test_numbers_are_exact_up_to_the_largest() -> None:
    """The clip at 2^53 is where a float64 would round; no noise of a usual plan goes there."""
    scores, labels, _ = held_out()
    table, _ = metrics_mechanism.noised_histogram(
        scores, labels, UnitIndex.by_record(len(labels)), shape=(CLASSES, CLASSES),
        noise_multiplier=8e9, stream=Stream.seeded("large"),
    )  # fmt: skip
    whole = [float(value) * 2**20 for value in table.ravel()]
    assert all(value == int(value) and abs(value) <= 2**53 - 1 for value in whole)
    assert max(map(abs, whole)) == 2**53 - 1  # σ itself is nearly as large here
    usual = releases(new_gate)
    assert np.abs(usual).max() < 200 and usual.dtype == np.float64
