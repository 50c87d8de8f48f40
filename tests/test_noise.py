"""Noise: sample i depends on (seed, i, draw) alone; draws are standard normal and independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from cases import F64, generator
from hypothesis import given
from hypothesis import strategies as st

from scoregen import Level
from scoregen.noise import ReplayNoise, SampleNoise, TorchNoise

LEVEL = Level(1.0, 0.0, 1.0, -math.inf)
PINNED = [0.381921, -0.891256, -0.103187, 0.041094]
SHAPES = [(), (2,), (3,), (17,), (1, 8, 8), (3, 32, 32)]


def draw(source, batch: int, shape: tuple[int, ...], dtype=torch.float32) -> torch.Tensor:
    return source(torch.empty((batch, *shape), dtype=dtype), LEVEL, LEVEL)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_i_is_the_same_for_every_batch(shape: tuple[int, ...], batch: int) -> None:
    whole, part = SampleNoise(7), SampleNoise(7)
    for _ in range(3):
        assert torch.equal(draw(whole, 8, shape)[:batch], draw(part, batch, shape))


@given(
    shape=st.sampled_from([*SHAPES, (1025,)]),
    first=st.integers(0, 2000),
    cuts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_any_chunking_gives_the_same_samples(shape, first: int, cuts: list[int]) -> None:
    whole = draw(SampleNoise(3, first), sum(cuts), shape)
    parts, at = [], first
    for count in cuts:
        parts.append(draw(SampleNoise(3, at), count, shape))
        at += count
    assert torch.equal(torch.cat(parts), whole)


def test_the_stream_is_pinned() -> None:
    """Values that a change of the generator, of its key or of its counter would move."""
    got = draw(SampleNoise(0), 2, (2,), F64).flatten().tolist()
    assert got == pytest.approx(PINNED, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_seeds_indices_and_draws_differ(shape: tuple[int, ...]) -> None:
    seeds = [0, 1, 2**32, 2**63, 2**64, 2**64 + 1, 2**65, 2**87]
    sources = [SampleNoise(seed) for seed in seeds]
    rows = [draw(source, 3, shape) for source in sources] + [draw(sources[0], 3, shape)]
    flat = torch.cat([r.reshape(3, -1) for r in rows])
    assert len({tuple(row.tolist()) for row in flat}) == len(flat)


def test_neighbouring_keys_do_not_share_values() -> None:
    """Counters one apart would repeat a stream one position later; so look for any common value."""
    seen: set[float] = set()
    count = 0
    for seed in (0, 1):
        for first in (0, 512, 1024):
            source = SampleNoise(seed, first)
            for _ in range(3):
                values = draw(source, 100, (2,)).flatten().tolist()
                seen |= set(values)
                count += len(values)
    # float32 normals collide by chance: about 3600^2 / 2 / 1e7 pairs, below 10 but for 1e-7
    assert len(seen) > count - 10


def test_events_of_different_size_are_unrelated() -> None:
    a, b = draw(SampleNoise(0), 4, (2,)).flatten(), draw(SampleNoise(0), 4, (4,)).flatten()
    assert not torch.equal(a, b[:8])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_a_cast_of_one_float32_draw(dtype: torch.dtype) -> None:
    want = draw(SampleNoise(5), 4, (3,)).to(dtype)
    got = draw(SampleNoise(5), 4, (3,), dtype)
    assert got.dtype == dtype
    assert torch.equal(got, want)


def test_empty_batches_and_events() -> None:
    assert draw(SampleNoise(0), 0, (3,)).shape == (0, 3)
    assert draw(SampleNoise(0), 2, (0,)).shape == (2, 0)
    assert draw(SampleNoise(0), 2, ()).shape == (2,)


@pytest.mark.parametrize(
    "source",
    [SampleNoise(4), TorchNoise(generator(4)), ReplayNoise(list(torch.eye(6).reshape(3, 2, 6)))],
    ids=lambda s: type(s).__name__,
)
def test_rewinding_repeats_every_draw(source) -> None:
    first = [draw(source, 2, (6,)) for _ in range(3)]
    source.rewind()
    assert all(torch.equal(z, draw(source, 2, (6,))) for z in first)
    assert not torch.equal(first[0], first[1])


def test_a_later_first_draw_continues_the_stream() -> None:
    source = SampleNoise(9)
    rows = [draw(source, 2, (3,)) for _ in range(4)]
    late = SampleNoise(9, draw=2)
    assert torch.equal(draw(late, 2, (3,)), rows[2])
    assert torch.equal(draw(late, 2, (3,)), rows[3])
    late.rewind()
    assert torch.equal(draw(late, 2, (3,)), rows[2])


# 12 statistics, each within 6.1 standard deviations: false alarms 12 x 1.1e-9 if they were normal,
# and below 1e-6 with the tails of sums of squares at these sizes.
@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_moments_are_those_of_independent_standard_normals(shape: tuple[int, ...]) -> None:
    n = 40_000 if shape == (2,) else 4_000
    source = SampleNoise(11)
    first, second = (draw(source, n, shape).double().reshape(n, -1) for _ in range(2))
    size = first.numel()
    pairs = {
        "neighbouring samples": (first[1:] * first[:-1]),
        "neighbouring coordinates": (first[:, 1:] * first[:, :-1]),
        "draws": (first * second),
        "seeds": (first * draw(SampleNoise(12), n, shape).double().reshape(n, -1)),
    }
    assert abs(float(first.mean())) < 6.1 / math.sqrt(size)
    assert abs(float(first.square().mean()) - 1) < 6.1 * math.sqrt(2 / size)
    assert abs(float(first.pow(4).mean()) - 3) < 6.1 * math.sqrt(96 / size)
    for what, products in pairs.items():
        assert abs(float(products.mean())) < 6.1 / math.sqrt(products.numel()), what


def test_distribution_is_normal_by_dvoretzky_kiefer_wolfowitz() -> None:
    x = draw(SampleNoise(2), 100_000, ()).double().sort().values
    gap = (torch.special.ndtr(x) - (torch.arange(len(x)) + 0.5) / len(x)).abs().max()
    assert float(gap) < math.sqrt(math.log(2 / 1e-7) / (2 * len(x))) + 0.5 / len(x)


def test_torch_noise_draws_from_its_generator_in_the_state_dtype() -> None:
    got = draw(TorchNoise(generator(3)), 2, (4,), F64)
    assert torch.equal(got, torch.randn(2, 4, generator=generator(3), dtype=F64))


def test_replayed_draws_come_in_order_and_run_out() -> None:
    source = ReplayNoise([torch.ones(1, 2), 2 * torch.ones(1, 2)])
    assert draw(source, 1, (2,)).tolist() == [[1.0, 1.0]]
    assert draw(source, 1, (2,), F64).tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match="only 2 draws"):
        draw(source, 1, (2,))
    source.rewind()
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        draw(source, 1, (3,))


@pytest.mark.parametrize(
    ("act", "error", "word"),
    [
        (lambda: SampleNoise(-1), ValueError, "seed"),
        (lambda: SampleNoise(2**88), ValueError, "seed"),
        (lambda: SampleNoise(0.5), TypeError, "seed"),
        (lambda: SampleNoise(True), TypeError, "seed"),
        (lambda: SampleNoise(0, first=-1), ValueError, "first"),
        (lambda: SampleNoise(0, draw=-1), ValueError, "draw"),
        (lambda: TorchNoise(0), TypeError, r"torch\.Generator"),
    ],
)
def test_wrong_seeds_are_refused(act, error, word: str) -> None:
    with pytest.raises(error, match=word):
        act()


@pytest.mark.parametrize("shape", [*SHAPES, (127,), (129,), (1025,)])
def test_any_choice_of_samples_gives_their_rows(shape: tuple[int, ...]) -> None:
    whole = draw(SampleNoise(3, 5), 40, shape)
    for indices in ([7], [0, 1, 2], [39, 3, 4, 5, 3], []):
        some = draw(SampleNoise(3, 5, indices=indices), len(indices), shape)
        assert torch.equal(some, whole[indices])
    with pytest.raises(ValueError, match="2 samples, and the batch has 3"):
        draw(SampleNoise(3, indices=[1, 2]), 3, shape)


def test_streams_of_samples_draws_and_seeds_do_not_overlap() -> None:
    """Large indices and draws reach all words of the counter; 64-bit words come twice by 1e-12."""
    seen = []
    for seed in (0, 2**64):
        for first in (0, 2**33, 2**63):
            for number in (0, 1, 2**60, 2**61, 2**62 + 5):
                seen.append(SampleNoise(seed, first, number))
    rows = torch.cat([draw(source, 3, (6,)) for source in seen])
    pairs = rows.reshape(-1, 2)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_normals_are_box_mullers_of_philox() -> None:
    """Independent: 32-bit halves of the raw words, in Python floats."""
    for seed, first, size in ((5, 3, 2), (2**70 + 1, 0, 6)):
        number = 4
        key = (seed & (2**64 - 1)) | ((size + ((seed >> 64) << 40)) << 64)
        raw = np.random.Philox(key=key, counter=number << 128).random_raw(64)
        halves = [int(w) >> shift & (2**32 - 1) for w in raw for shift in (0, 32)]
        got = draw(SampleNoise(seed, first, number), 2, (size,), F64)
        for i in range(2):
            own = halves[(first + i) * size : (first + i + 1) * size]
            half = size // 2
            for a, b, z0, z1 in zip(
                own[:half], own[half:], got[i][:half], got[i][half:], strict=True
            ):
                radius = math.sqrt(-2 * math.log((a + 0.5) / 2**32))
                assert float(z0) == pytest.approx(radius * math.cos(math.pi * b / 2**31), abs=2e-5)
                assert float(z1) == pytest.approx(radius * math.sin(math.pi * b / 2**31), abs=2e-5)


def check_normal(count: int, seed: int) -> None:
    """Kolmogorov-Smirnov by Dvoretzky-Kiefer-Wolfowitz, and tails: false alarms below 1e-6."""
    x = draw(SampleNoise(seed), count, ()).double().sort().values
    at = (torch.arange(count) + 0.5) / count
    gap = float((torch.special.ndtr(x) - at).abs().max())
    assert gap < math.sqrt(math.log(2 / 1e-7) / (2 * count)) + 0.5 / count
    for edge in (2.0, 3.0, 4.0, 4.5, 5.0):
        mean = count * float(torch.special.ndtr(torch.tensor(-edge, dtype=F64)))
        for beyond in (int((x > edge).sum()), int((x < -edge).sum())):
            # Poisson, 5e-9 on each of 20 sides
            assert scipy.stats.poisson.sf(beyond - 1, mean) > 5e-9
            assert scipy.stats.poisson.cdf(beyond, mean) > 5e-9
    assert float(x.abs().max()) <= math.sqrt(66 * math.log(2)) + 1e-5


def test_distribution_and_tails_of_a_million() -> None:
    check_normal(1_000_000, 21)


@pytest.mark.slow
def test_distribution_and_tails_of_ten_million() -> None:
    check_normal(10_000_000, 22)


def test_squares_and_neighbours_of_a_pair_are_independent() -> None:
    """The two normals of a pair share radius and angle; their squares must not be related."""
    n = 200_000
    z = draw(SampleNoise(31), n, (2,)).double()
    a, b = z[:, 0], z[:, 1]
    for u, v in ((a, b), (a**2 - 1, b**2 - 1), (a**3, b), (a.abs(), b.abs())):
        u, v = u - u.mean(), v - v.mean()
        # 1.1e-9 each for a normal statistic; cubes have heavier tails, so seven sigmas
        assert abs(float((u * v).mean())) < 7 * float(u.std() * v.std()) / math.sqrt(n)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_cuda_device_gets_the_hosts_draws_without_waiting() -> None:
    like = torch.empty((5, 3), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [SampleNoise(7)(like.to(dtype), LEVEL, LEVEL) for dtype in (torch.float32, F64)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for z in got:
        assert torch.equal(z.cpu(), draw(SampleNoise(7), 5, (3,), z.dtype))
