from __future__ import annotations

import hashlib
import math
import os
import warnings

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from dp_kit import FALSE_ALARM, Weak, examples, rate_fits, scale_fits, shape_fits
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privet.common.errors import PrivacyError
from privet.privacy.mechanism import device_noise, noise
from privet.privacy.mechanism.noise import Stream

MANY = 400_000


@pytest.fixture(scope="module")
def normals():
    return Stream.seeded("normals").normal(MANY)


def test_normals_are_normal(normals):
    assert shape_fits(normals, 1.0)
    assert scale_fits(normals, 1.0)
    assert abs(normals.mean()) < 6 / MANY**0.5


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2, 0.97, 1.03])
def test_another_scale_is_rejected(normals, factor):
    assert not scale_fits(normals * factor, 1.0)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_another_scale_is_rejected_by_the_shape_too(normals, factor):
    assert not shape_fits(normals * factor, 1.0)


def test_another_shape_of_the_same_scale_is_rejected():
    uniform = Stream.seeded("flat").uniform(MANY)
    flat = (uniform - 0.5) * 12**0.5
    laplace = stats.laplace.ppf(uniform, scale=0.5**0.5)
    assert not shape_fits(flat, 1.0)
    assert not shape_fits(laplace, 1.0)
    assert not scale_fits(Weak.seeded("x").normal(MANY), 1.0)


def test_normals_are_independent_of_each_other(normals):
    half = 1 << 15  # within a block, Box and Muller's pairs lie this far apart
    for lag in (1, 2, half, 2 * half):
        one, two = normals[:-lag], normals[lag:]
        assert abs(np.dot(one, two)) < 6 * len(one) ** 0.5
        assert abs(np.dot(one**2 - 1, two**2 - 1)) < 6 * 2 * len(one) ** 0.5
    repeated = np.concatenate([normals[:half], normals[:half]])
    assert abs(np.dot(repeated[:-half], repeated[half:])) > 6 * half**0.5


def test_tails():
    """Beyond 4 σ and 4.5 σ there is as much as there should be; a cut tail is noticed."""
    count, beyond = 10_000_000, {4.0: 0, 4.5: 0, 5.0: 0}
    stream = Stream.seeded("tails")
    for _ in range(20):
        part = np.abs(stream.normal(count // 20))
        for limit in beyond:
            beyond[limit] += int((part > limit).sum())
    for limit, hits in beyond.items():
        assert rate_fits(hits, count, 2 * stats.norm.sf(limit))
    for limit in (4.0, 4.5):
        assert not rate_fits(0, count, 2 * stats.norm.sf(limit))
    assert beyond[5.0] > 0


def test_uniforms():
    values = Stream.seeded("uniform").uniform(MANY)
    assert stats.kstest(values, "uniform").pvalue > 1e-8
    assert not stats.kstest(values * 0.99, "uniform").pvalue > 1e-8


class Fixed(Stream):
    """A stream whose every word is ``word``: the extremes of the transform."""

    word = 0

    def words(self, count):
        return np.full(count, self.word, dtype=np.uint64)

    def _draw(self, words):
        words[:] = np.uint64(self.word)


@pytest.mark.parametrize("word", [0, 1, 2047, 2**63, 2**64 - 1])
def test_extreme_words_give_no_zero_and_no_infinity(word):
    stream = Fixed.seeded("extreme")
    stream.word = word
    assert 0 < stream.uniform(1)[0] <= 1
    assert np.isfinite(stream.normal(6)).all()


def test_the_tail_reaches_as_far_as_the_docstring_says():
    assert np.abs(Fixed.seeded("far").normal(2)).max() == pytest.approx(8.57, abs=0.01)


@examples(60)
@given(st.one_of(st.integers(0, 9), st.integers(65_530, 65_550)), st.integers(0, 3))
def test_any_number_of_normals(count, seed):
    values = Stream.seeded("count", seed).normal(count)
    assert values.shape == (count,)
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == count


@examples(30)
@given(st.integers(0, 9), st.floats(0.1, 9.0), st.sampled_from([torch.float32, torch.float64]))
def test_noise_is_added_to_every_number_once(count, scale, dtype):
    values = torch.arange(count, dtype=dtype)
    Stream.seeded("add").add_normal(values, scale)
    drawn = torch.from_numpy(Stream.seeded("add").normal(count)) * scale
    step = noise.grid_of(scale)
    assert torch.allclose(values, (torch.arange(count) + drawn).to(dtype), rtol=1e-7, atol=step / 2)


# --- on a device ----------------------------------------------------------------------------

CPU = torch.device("cpu")


def test_the_devices_words_are_the_key_stream_of_chacha20():
    key = hashlib.sha256(b"device").digest()
    theirs = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(64 * 50))
    assert device_noise.words(key, 50, CPU).numpy().tobytes() == theirs


def test_the_devices_words_are_those_of_the_rfc():
    """RFC 8439, 2.3.2 is for another nonce; its appendix A.1, vector 1, is for one of zeros."""
    words = device_noise.words(bytes(32), 1, CPU).numpy().tobytes()
    assert words[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_a_devices_normals_are_normal():
    values = device_noise.normals(hashlib.sha256(b"normal").digest(), MANY, CPU).numpy()
    assert scale_fits(values, 1.0) and shape_fits(values, 1.0)
    assert not scale_fits(values * 1.01, 1.0)
    for power in (1, 2):
        lagged = np.corrcoef(values[1:] ** power, values[:-1] ** power)[0, 1]
        halves = np.corrcoef(values[: MANY // 2] ** power, values[MANY // 2 :] ** power)[0, 1]
        assert max(abs(lagged), abs(halves)) < 6 / np.sqrt(MANY / 2)


def test_a_devices_uniforms_are_never_zero():
    values = device_noise.uniforms(bytes(32), 100_001, CPU)
    assert len(values) == 100_001
    assert float(values.min()) > 0 and float(values.max()) <= 1
    assert stats.kstest(values.numpy(), "uniform").pvalue > FALSE_ALARM


def test_a_device_is_keyed_by_the_stream_and_never_twice(monkeypatch):
    keys = []
    honest = device_noise.normals

    def normals(key, count, device):
        keys.append(key)
        return honest(key, count, CPU)

    monkeypatch.setattr(device_noise, "normals", normals)
    monkeypatch.setattr(noise, "_ON_DEVICE", 1000)
    values = OnDevice(torch.zeros(2500, dtype=torch.float64))
    Stream.fresh().add_normal(values, 2.0)
    assert [len(key) for key in keys] == [32] * 3 and len(set(keys)) == 3
    assert len(torch.unique(values.inner)) > 2490
    assert torch.equal(values.inner, multiples(values.inner, noise.grid_of(2.0)))
    assert 1.8 < float(values.inner.std()) < 2.2


class OnDevice:
    """Numbers that say that they are elsewhere, and are here."""

    device = torch.device("meta")
    dtype = torch.float64

    def __init__(self, inner):
        self.inner = inner

    def is_floating_point(self):
        return True

    def view(self, *shape):
        return Elsewhere(self.inner.view(*shape))


class Elsewhere(OnDevice):
    """A flat one."""

    def numel(self):
        return self.inner.numel()

    def __getitem__(self, rows):
        return self.inner[rows]


def test_words_are_the_key_stream_of_aes():

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b"privet seeded stream\0" + b"a\x1f7").digest()
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    expected = np.frombuffer(cipher.update(bytes(8 * 50)), dtype="<u8")
    stream = Stream.seeded("a", 7)
    assert (np.concatenate([stream.words(20), stream.words(30)]) == expected).all()


# --- low bits -------------------------------------------------------------------------------


def multiples(values, step):
    return (values.double() / step).round() * step


def noised(kind, start, scale, count, *seed):
    values = torch.full((count,), start, dtype=kind)
    Stream.seeded("grid", *seed).add_normal(values, scale)
    return values


@examples(60)
@given(
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.floats(-1e4, 1e4, width=16),
    st.floats(0.01, 900.0),
    st.integers(1, 9),
)
def test_noised_numbers_are_multiples_of_a_public_power_of_two(kind, start, scale, count):
    step = noise.grid_of(scale)
    assert math.log2(step).is_integer() and 2**20 <= scale / step < 2**21
    values = noised(kind, start, scale, count)
    assert torch.equal(values.double(), multiples(values, step))
    assert not torch.signbit(values[values == 0]).any()


@pytest.mark.parametrize("start", [1e12, -3e17, 2.0**62])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_sums_far_above_the_noise_are_multiples_too(kind, start):
    """Where adding and taking away 1.5 · 2^52 steps would leave halves."""
    values = noised(kind, start, 1e-3, 10_001)
    assert torch.equal(values.double(), multiples(values, noise.grid_of(1e-3)))
    assert torch.allclose(values.double(), torch.tensor(float(np.float32(start))).double(), atol=1)


@pytest.mark.parametrize("scale", [0.0, 1e-170, 1e170, math.inf, math.nan])
def test_noise_that_would_vanish_is_refused(scale):
    with pytest.raises(PrivacyError, match="standard deviation"):
        noised(torch.float64, 0.0, scale, 4)


def before(start, scale, count, *seed):
    """As noise was added: rounded to float32 by itself, and added there."""
    drawn = torch.from_numpy(Stream.seeded("grid", *seed).normal(count)) * scale
    return torch.full((count,), start) + drawn.float()


def could_come_from(values, start):
    """Whether a float32 noise exists that makes each value of this sum (Mironov 2012)."""
    found = torch.zeros(len(values), dtype=torch.bool)
    near = values - start
    for tried in (near, *(torch.nextafter(near, torch.full_like(near, e)) for e in (9e9, -9e9))):
        found |= start + tried == values
    return found


def told_apart(made, one, two, count=1_000_000):
    """How much more often a value near 0 rules out one of two sums when it came from the other.

    So near that the density, which differs as it may, is flat: what is left are the low bits.
    """
    shares = []
    for number, start in enumerate((one, two)):
        values = made(start, 1.0, count, number)
        values = values[values.abs() < 1 / 64]
        only_one = could_come_from(values, one) & ~could_come_from(values, two)
        shares.append(float(only_one.float().mean()))
    return shares[0] - shares[1]


def only_noised(start, scale, count, *seed):
    return noised(torch.float32, start, scale, count, *seed)


@pytest.mark.parametrize(("one", "two"), [(0.0, 1.0), (0.0, 0.3), (0.1, 1.1)])
def test_low_bits_tell_nothing_of_the_sum(one, two):
    assert abs(told_apart(only_noised, one, two)) < 0.04  # 6 standard deviations
    assert abs(told_apart(only_noised, two, one)) < 0.04


def test_low_bits_of_the_old_way_proved_which_sum_it_was():
    assert told_apart(before, 0.0, 1.0) > 0.8
    assert told_apart(before, 0.1, 1.1) > 0.2


def off_lattice(values, start):
    """Share of values near 0 that are off the lattice of a float32 sum."""
    near = values[values.abs() < 1 / 8].double()
    step = float(np.spacing(np.float32(start))) / 2
    return float((near != multiples(near, step)).double().mean())


def test_no_value_is_off_the_lattice_of_a_sum():
    assert off_lattice(before(0.0, 1.0, 100_000), 1.0) > 0.5
    assert off_lattice(before(1.0, 1.0, 100_000), 1.0) == 0.0
    for start in (0.0, 1.0, 0.3):
        assert off_lattice(only_noised(start, 1.0, 100_000), 1.0) == 0.0


# --- keys ---------------------------------------------------------------------------------


def test_two_fresh_streams_differ():
    first, second = Stream.fresh().words(1000), Stream.fresh().words(1000)
    assert not np.intersect1d(first, second).size
    assert not Stream.fresh().reproducible


def test_a_seed_names_one_stream_and_says_so():
    one, two = Stream.seeded("run", 3), Stream.seeded("run", 3)
    assert one.reproducible
    assert (one.normal(10) == two.normal(10)).all()
    for other in (("run", 4), ("run3",), ("ru", "n3"), ("run", 3, 0)):
        assert not (Stream.seeded(*other).normal(10) == Stream.seeded("run", 3).normal(10)).any()


def test_the_stream_goes_on():
    stream = Stream.seeded("on")
    assert not np.intersect1d(stream.normal(1000), stream.normal(1000)).size


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = Stream.fresh().normal(100)
    Stream.fresh().bernoulli(100, 0.5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state[1]).all()
    torch.manual_seed(0)
    np.random.seed(0)
    assert not (Stream.fresh().normal(100) == first).any()
    # Control: this is what a generator with a global seed does.
    torch.manual_seed(0)
    one = torch.randn(100)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(100), one)


def in_a_fork(action) -> int:
    """Run ``action`` in a forked process; return 0 for done, 7 for PrivacyError, 1 for else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except PrivacyError:
            code = 7
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("draw", ["words", "uniform", "normal"])
def test_a_stream_does_not_survive_a_fork(draw):
    stream = Stream.fresh()
    assert in_a_fork(lambda: getattr(stream, draw)(4)) == 7
    assert in_a_fork(lambda: stream.bernoulli(4, 0.5)) == 7
    assert len(getattr(stream, draw)(4)) == 4
    assert in_a_fork(lambda: getattr(Stream.fresh(), draw)(4)) == 0
