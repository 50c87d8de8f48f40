"""BrownianNoise: one path per sample, whatever is asked of it and in what order."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from cases import F64, mixture, normal
from torch import Tensor

from scoregen import (
    EDMSDE,
    VPSDE,
    EulerMaruyama,
    Gaussian,
    Karras,
    RectifiedSDE,
    Sampler,
    UniformLam,
)
from scoregen.noise import BrownianNoise, SampleNoise
from scoregen.solvers import SDEDPMSolverPP2S, StochasticHeun

SDE = EDMSDE()


def increment(noise: BrownianNoise, like: Tensor, t: float, s: float, sde: Any = SDE) -> Tensor:
    """W(c_t) - W(c_s) in the clock c = (sigma / alpha)^2, from the normalised draw."""
    a, b = sde.level(t), sde.level(s)
    return math.sqrt(math.exp(-2 * a.lam) - math.exp(-2 * b.lam)) * noise(like, a, b)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedSDE()], ids=lambda s: type(s).__name__)
def test_increments_add_up(sde: Any) -> None:
    like = torch.zeros(5, 3, dtype=F64)
    for t, m, s in ((0.9, 0.5, 0.1), (0.5, 0.4999, 0.3), (0.9, 0.02, 0.0), (0.3, 0.2, 0.19)):
        noise = BrownianNoise(3)
        t, m, s = t * sde.t_max, m * sde.t_max, s * sde.t_max
        parts = increment(noise, like, t, m, sde) + increment(noise, like, m, s, sde)
        whole = increment(BrownianNoise(3), like, t, s, sde)
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9 * float(whole.abs().max()))


def test_increments_add_up_in_float32() -> None:
    noise, like = BrownianNoise(0), torch.zeros(64, 3)
    parts = increment(noise, like, 3.0, 2.0) + increment(noise, like, 2.0, 1.0)
    torch.testing.assert_close(parts, increment(noise, like, 3.0, 1.0), rtol=1e-6, atol=3e-6)


def test_answers_do_not_depend_on_order_or_number_of_questions() -> None:
    like = torch.zeros(4, 2)
    levels = SDE.levels(Karras(12)(SDE))
    moves = list(pairwise(levels))
    straight = BrownianNoise(7)
    forward = [straight(like, t, s) for t, s in moves]
    shuffled = BrownianNoise(7)
    for i in np.random.default_rng(0).permutation(len(moves)):
        shuffled(like, levels[0], moves[i][1])  # another question in between
        assert torch.equal(shuffled(like, *moves[i]), forward[i])
    straight.rewind()
    assert torch.equal(straight(like, *moves[3]), forward[3])


def test_a_sample_depends_on_its_index_alone() -> None:
    t, s = SDE.level(3.0), SDE.level(1.0)
    whole = BrownianNoise(2)(torch.zeros(700, 3), t, s)
    part = BrownianNoise(2, first=650)(torch.zeros(50, 3), t, s)
    assert torch.equal(whole[650:], part)
    wide = BrownianNoise(2)(torch.zeros(700, 3, dtype=F64), t, s)
    assert torch.equal(wide.float(), whole)
    assert not torch.equal(BrownianNoise(3)(torch.zeros(700, 3), t, s), whole)


def test_a_change_of_shape_starts_a_tree_of_that_shape() -> None:
    noise, (t, s) = BrownianNoise(2), (SDE.level(3.0), SDE.level(1.0))
    first = noise(torch.zeros(4, 3), t, s)
    noise(torch.zeros(4, 5), t, s)
    assert torch.equal(noise(torch.zeros(4, 3), t, s), first)


def test_disjoint_increments_are_independent_standard_normals() -> None:
    """Ten moves of very different lengths, 20,000 paths: Bonferroni over 110 tests at 1e-6."""
    n, alpha = 20_000, 1e-6 / 110
    times = (79.0, 30.0, 29.9, 7.0, 1.0, 0.5, 0.3, 0.299, 0.01, 0.002, 0.0)
    noise, like = BrownianNoise(11), torch.zeros(n)
    z = torch.stack([noise(like, SDE.level(t), SDE.level(s)) for t, s in pairwise(times)]).double()
    for row in z:
        assert scipy.stats.kstest(row.numpy(), "norm").pvalue > alpha
        total = float(row.square().sum())
        assert alpha < scipy.stats.chi2.cdf(total, n) < 1 - alpha
    bound = scipy.stats.norm.isf(alpha / 2) / math.sqrt(n)
    products = torch.from_numpy(np.corrcoef(z.numpy())) - torch.eye(len(z), dtype=F64)
    assert float(products.abs().max()) < bound


def test_the_path_is_no_other_draw_of_its_seed() -> None:
    """x_T and other noise of one seed are strangers to the path: 1e-6 over 164 correlations."""
    n, level = 20_000, SDE.level(80.0)
    plain = SampleNoise(4)
    draws = torch.stack([plain(torch.zeros(n), level, level) for _ in range(41)])
    bound = scipy.stats.norm.isf(1e-6 / 328) / math.sqrt(n)
    for t, s in ((80.0, 0.0), (80.0, 1.0), (1.0, 0.0), (0.002, 0.0)):
        z = BrownianNoise(4)(torch.zeros(n), SDE.level(t), SDE.level(s))
        assert float((draws * z).mean(1).abs().max()) < bound


def test_standing_still_draws_afresh() -> None:
    noise, like, level = BrownianNoise(0), torch.zeros(10_000), SDE.level(1.0)
    a, b = noise(like, level, level), noise(like, level, level)
    assert not torch.equal(a, b)
    # 5e-7 on each side
    assert abs(float((a * b).mean())) < 4.9 / math.sqrt(10_000)
    noise.rewind()
    assert torch.equal(noise(like, level, level), a)


def test_upward_moves_take_the_same_path_backwards() -> None:
    noise, like = BrownianNoise(0), torch.zeros(3, 2)
    t, s = SDE.level(2.0), SDE.level(1.0)
    torch.testing.assert_close(noise(like, t, s), -noise(like, s, t))


def test_pure_noise_is_capped() -> None:
    sde = RectifiedSDE()
    z = BrownianNoise(0)(torch.zeros(20_000), sde.level(1.0), sde.level(0.3)).double()
    # two-sided 1e-6
    low, high = (scipy.stats.chi2.ppf(q, len(z)) for q in (5e-7, 1 - 5e-7))
    assert low < float(z.square().sum()) < high


def test_moves_shorter_than_the_resolution_are_refused() -> None:
    noise, like = BrownianNoise(0), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="shorter"):
        noise(like, SDE.level(1.0), SDE.level(1.0 - 1e-6))
    with pytest.raises(TypeError, match="floats"):
        noise(like, SDE.level_of(torch.ones(1), like), SDE.level(0.5))


@pytest.mark.parametrize("event", [(), (3,), (1, 4, 4)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_shape(event: tuple[int, ...], batch: int) -> None:
    z = BrownianNoise(0)(torch.zeros(batch, *event), SDE.level(2.0), SDE.level(1.0))
    assert z.shape == (batch, *event)


@pytest.mark.parametrize(
    ("solver", "least"),
    [
        (EulerMaruyama(), 0.8),
        (StochasticHeun(), 0.8),
        pytest.param(SDEDPMSolverPP2S(), 0.8, marks=pytest.mark.slow),
    ],
)
def test_n_and_2n_steps_share_the_path(solver: Any, least: float) -> None:
    """Strong errors on a mixture fall with the steps; with fresh draws they would not."""
    model, x = mixture(SDE), 5 * normal(200, 2)

    def run(n: int) -> Tensor:
        grid = UniformLam(n, start=5.0, stop=0.5)
        return Sampler(solver, grid).run(model, x, noise=BrownianNoise(1))

    outs = [run(n) for n in (16, 32, 64, 128)]
    gaps = [float((a - b).square().mean().sqrt()) for a, b in pairwise(outs)]
    order = math.log2(gaps[0] / gaps[-1]) / 2
    assert order > least, gaps
    fresh = Sampler(solver, UniformLam(128, start=5.0, stop=0.5)).run(
        model, x, noise=SampleNoise(1)
    )
    assert float((outs[-1] - fresh).square().mean().sqrt()) > 20 * gaps[-1]


@pytest.mark.slow
def test_a_strong_solution_is_the_exact_one() -> None:
    """Data at a point: y = x / alpha obeys dy = y dc / c + dW, solved along the same path."""
    model = Gaussian(SDE, torch.zeros(1, dtype=F64), 1e-12)
    x, noise = 4 * normal(50, 1), BrownianNoise(5)
    n = 1024
    levels = SDE.levels(UniformLam(n, start=4.0, stop=0.5)(SDE))
    # y / c is a martingale: y_s / c_s = y_t / c_t + sum of dW / c
    total = x / 16
    for t, s in pairwise(levels):
        middle = math.exp(-t.lam - s.lam)
        total = total + increment(noise, x, t.t, s.t) / middle
    out = Sampler(SDEDPMSolverPP2S(), UniformLam(n, start=4.0, stop=0.5)).run(
        model, x, noise=BrownianNoise(5)
    )
    torch.testing.assert_close(out, 0.25 * total, rtol=1e-2, atol=2e-3)


def test_levels_below_the_resolution_of_the_path_are_refused() -> None:
    """One leaf held everything below sigma / alpha = 6e-6: variances 0.4, covariance 0.3 there."""
    sde = EDMSDE(t_min=1e-9)
    like = torch.zeros(4, 1, dtype=F64)
    for t, s in ((4e-6, 2e-6), (1e-3, 4e-6), (4e-6, 0.0), (2e-6, 1e-3)):
        with pytest.raises(ValueError, match=r"resolved down to sigma / alpha = 6\.1e-06"):
            BrownianNoise(5)(like, sde.level(t), sde.level(s))
    n = 20_000
    like = torch.zeros(n, dtype=F64)
    noise = BrownianNoise(5)
    z = [noise(like, sde.level(t), sde.level(s)) for t, s in ((1e-4, 1e-5), (1e-5, 0.0))]
    for row in z:  # the smallest levels there are keep their law, two-sided 1e-7
        assert abs(float(row.square().mean()) - 1) < 5.4 * math.sqrt(2 / n)
    assert abs(float((z[0] * z[1]).mean())) < 5.4 / math.sqrt(n)


def test_chosen_samples_have_the_paths_of_the_batch() -> None:
    t, s = SDE.level(3.0), SDE.level(1.0)
    whole = BrownianNoise(2)(torch.zeros(20, 3), t, s)
    some = BrownianNoise(2, indices=[11, 4])(torch.zeros(2, 3), t, s)
    assert torch.equal(some, whole[[11, 4]])
