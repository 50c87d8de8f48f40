"""The variational bound of a chain, every term against its closed form for Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from scoregen import (
    EDMSDE,
    MLP,
    VPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Gaussian,
    ScoreModel,
    ScoreNetwork,
)
from scoregen.likelihood import (
    DiscretisedGaussian,
    GaussianDecoder,
    bound,
    continuous_bound,
    importance_bound,
)
from scoregen.models import LearnedVariance, Prediction
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.solvers.ancestral import posterior

# d = 3; the eigenvalues and the length of the mean of the published-to-four-digits table below
VARIANCES = torch.tensor([0.0522852, 0.69632461, 0.79751408], dtype=torch.float64)
MEAN = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
ENTROPY = 2.487197


def exact_model(sde, mean: Tensor = MEAN, variances: Tensor = VARIANCES) -> Gaussian:
    return Gaussian(sde, mean, variances)


def exact_log_variance(model: Gaussian):
    """The log variance of the exact reverse kernel: beta-tilde + c0^2 Var[x0 | x_t]."""

    def rule(p: Prediction, t, s) -> Tensor:
        c0, _, small, _ = posterior(t, s)
        total = t.alpha**2 * model.variances + t.sigma**2
        return (small + c0**2 * model.variances * t.sigma**2 / total).log()

    return rule


def cubature(model: Gaussian, draws: int) -> tuple[Tensor, ReplayNoise]:
    """Data and noise whose row means integrate every polynomial of degree 3 in (x0, eps)."""
    d = len(model.mean)
    n = 2 * d
    points = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    points = torch.cat([points, -points])
    x = model.mean + model.variances.sqrt() * points[:, :d]
    return x, ReplayNoise([points[:, d:]] * draws)


def exact_bound(model: Gaussian, steps: int, variance):
    x, noise = cubature(model, steps)
    return bound(model, x, variance=variance, noise=noise)


TABLE = {  # steps: (variance, sum L_{t-1}, L_0, total)
    10: [("small", 3.333, 0.497, 3.8299), ("large", 2.435, 0.497, 2.9319),
         ("exact", 2.193, 0.294, 2.48722)],
    50: [("small", 8.284, -3.477, 4.8070), ("large", 6.080, -3.477, 2.6024),
         ("exact", 5.967, -3.480, 2.48722)],
    1000: [("small", 13.229, -9.418, 3.8118), ("large", 11.911, -9.418, 2.4934),
           ("exact", 11.905, -9.418, 2.48722)],
}  # fmt: skip


@pytest.mark.parametrize("steps", TABLE)
def test_the_terms_of_a_gaussian_to_the_printed_digits(steps: int) -> None:
    model = exact_model(DiscreteVPSDE.exact(VPSDE(), steps))
    for variance, between, data, total in TABLE[steps]:
        rule = exact_log_variance(model) if variance == "exact" else variance
        found = exact_bound(model, steps, rule)
        assert float(found.prior.mean()) == pytest.approx(5.5e-5, abs=5e-7)
        assert float(found.steps.sum(1).mean()) == pytest.approx(between, abs=5.2e-4)
        assert float(found.data.mean()) == pytest.approx(data, abs=5.2e-4)
        digits = 6e-6 if variance == "exact" else 5.2e-5
        assert float(found.total.mean()) == pytest.approx(total, abs=digits)


@pytest.mark.parametrize("steps", [1, 2, 10, 200])
def test_exact_reverse_kernels_make_the_bound_tight_at_any_length(steps: int) -> None:
    """VLB = H(x0) + KL(q_T, N(0, I)) (Sohl-Dickstein 2015, in the Gaussian case)."""
    model = exact_model(DiscreteVPSDE.exact(VPSDE(), steps))
    found = exact_bound(model, steps, exact_log_variance(model)).total.mean()
    top = model.sde.level(1.0)
    total = top.alpha**2 * VARIANCES + top.sigma**2
    kl = 0.5 * (total + top.alpha**2 * MEAN**2 - 1 - total.log()).sum()
    entropy = 0.5 * (VARIANCES * 2 * math.pi * math.e).log().sum()
    torch.testing.assert_close(found, entropy + kl, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sde", [DiscreteVPSDE.exact(VPSDE(), 30), DiscreteVESDE.geometric(30)])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_every_term_is_its_closed_form(sde, variance: str) -> None:
    model = exact_model(sde)
    found = exact_bound(model, sde.steps, variance)
    levels = sde.levels((0.0, *sde.knots))
    for i in range(2, sde.steps + 1):
        c0, _, small, large = posterior(levels[i], levels[i - 1])
        sigma2 = small if variance == "small" else large
        total = levels[i].alpha ** 2 * VARIANCES + levels[i].sigma ** 2
        left = (VARIANCES * levels[i].sigma ** 2 / total).sum()
        ratio = small / sigma2
        expected = 0.5 * (3 * (ratio - 1 - math.log(ratio)) + c0**2 * left / sigma2)
        torch.testing.assert_close(
            found.steps[:, sde.steps - i].mean(), expected, rtol=1e-9, atol=1e-11
        )
        if variance == "small":  # 1/2 (SNR_{t-1} - SNR_t) mmse_t
            snr = [(lv.alpha / lv.sigma) ** 2 for lv in (levels[i - 1], levels[i])]
            torch.testing.assert_close(expected, 0.5 * (snr[0] - snr[1]) * left, rtol=1e-9, atol=0)
    top, std = levels[-1], sde.prior_std(1.0)
    second = top.alpha**2 * (VARIANCES + MEAN**2) + top.sigma**2
    expected = 0.5 * (second / std**2 - 1 - math.log(top.sigma**2 / std**2)).sum()
    torch.testing.assert_close(found.prior.mean(), expected, rtol=0, atol=1e-12)


@given(
    seed=st.integers(0, 1000),
    log_variances=st.lists(st.floats(-4, 2), min_size=3, max_size=3),
    variance=st.sampled_from(["small", "large"]),
)
def test_a_step_is_the_divergence_of_two_gaussians(seed, log_variances, variance) -> None:
    """Per sample, against torch.distributions; the model is wrong on purpose."""
    sde = DiscreteVPSDE.linear(6, 0.05, 0.4)
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor(log_variances, dtype=torch.float64).exp()
    model = exact_model(sde, torch.randn(3, generator=g).double(), spread)
    x = torch.randn(4, 3, generator=g, dtype=torch.float64)
    draws = [torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(6)]
    found = bound(model, x, variance=variance, noise=ReplayNoise(draws))
    levels = sde.levels((0.0, *sde.knots))
    for k, i in enumerate(range(6, 1, -1)):
        t, s = levels[i], levels[i - 1]
        y = t.alpha * x + t.sigma * draws[k]
        c0, c1, small, large = posterior(t, s)
        mean, chosen = model(y, t).x0, small if variance == "small" else large
        q = Independent(Normal(c0 * x + c1 * y, math.sqrt(small)), 1)
        p = Independent(Normal(c0 * mean + c1 * y, math.sqrt(chosen)), 1)
        torch.testing.assert_close(found.steps[:, k], kl_divergence(q, p), rtol=1e-10, atol=1e-12)
    top = levels[-1]
    q = Independent(Normal(top.alpha * x, top.sigma), 1)
    p = Independent(Normal(torch.zeros_like(x), 1.0), 1)
    torch.testing.assert_close(found.prior, kl_divergence(q, p), rtol=1e-10, atol=1e-12)
    assert found.times == tuple(level.t for level in levels[:1:-1])


class Learned(ScoreModel):
    """An exact model with a reverse variance made to order."""

    def __init__(self, inner: ScoreModel, spread: float):
        super().__init__()
        self.inner, self.sde, self.spread = inner, inner.sde, spread

    def predict(self, x, t, **condition):
        p = self.inner.predict(x, t)
        return Prediction(
            self.sde, t, x, x0=p.x0, eps=p.eps, spread=torch.full_like(x, self.spread)
        )


def test_a_learned_variance_runs_from_small_to_large_in_log_space() -> None:
    sde = DiscreteVPSDE.exact(VPSDE(), 20)
    model = exact_model(sde)
    for spread, fixed in [(0.0, "small"), (1.0, "large")]:
        x, noise = cubature(model, 20)
        learned = bound(Learned(model, spread), x, variance="learned", noise=noise)
        expected = exact_bound(model, 20, fixed)
        torch.testing.assert_close(learned.steps, expected.steps)
        if fixed == "large":
            torch.testing.assert_close(learned.data, expected.data)
    x, noise = cubature(model, 20)
    half = bound(Learned(model, 0.5), x, variance="learned", noise=noise)

    def geometric(p, t, s):
        _, _, small, large = posterior(t, s)
        if small == 0:  # the first transition: beta-tilde_2 stands in for 0
            small = posterior(sde.level(2 / 20), sde.level(1 / 20))[2]
        return torch.tensor(0.5 * (math.log(small) + math.log(large)), dtype=torch.float64)

    x, noise = cubature(model, 20)
    expected = bound(model, x, variance=geometric, noise=noise)
    torch.testing.assert_close(half.total, expected.total)
    assert bool(half.total.isfinite().all())


@pytest.mark.slow
def test_the_bound_bounds_the_likelihood_of_its_own_chain() -> None:
    """Importance weighting closes the gap from above; the limit is the chain's exact density."""
    steps = 5
    sde = DiscreteVPSDE.exact(VPSDE(), steps)
    model = exact_model(sde)
    # the chain's own law: x_s = c0 x0_hat + c1 x_t + std z is affine, x_0 = x0_hat + sigma_1 z
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    levels = sde.levels((0.0, *sde.knots))
    for i in range(steps, 0, -1):
        t = levels[i]
        c0, c1, small, large = posterior(t, levels[i - 1])
        gain = t.alpha * VARIANCES / (t.alpha**2 * VARIANCES + t.sigma**2)
        mean = c0 * (MEAN + gain * (mean - t.alpha * MEAN)) + c1 * mean
        var = (c0 * gain + c1) ** 2 * var + (small if i > 1 else large)
    g = torch.Generator().manual_seed(0)
    x = model.draw(400, g)
    terms = (x - mean) ** 2 / var + (2 * math.pi * var).log()
    exact = 0.5 * terms.sum(1).mean()
    one = bound(model, x.repeat(25, 1)).total.mean()
    few, many = (
        importance_bound(model, x, samples=k, noise=SampleNoise(3)).mean() for k in (10, 2000)
    )
    assert float(one) > float(few) + 0.05 > float(many) + 0.05
    assert float(few) > float(exact)
    assert float(many) == pytest.approx(float(exact), abs=0.02)
    single = importance_bound(model, x.repeat(25, 1), samples=1).mean()
    assert float(single) == pytest.approx(float(one), abs=0.15)


def test_the_bound_is_at_least_the_entropy_and_falls_with_its_kernels() -> None:
    for steps in (5, 40):
        model = exact_model(DiscreteVPSDE.exact(VPSDE(), steps))
        totals = [
            float(exact_bound(model, steps, rule).total.mean())
            for rule in ("small", "large", exact_log_variance(model))
        ]
        assert totals[0] > totals[2] + 0.1
        assert totals[1] > totals[2] + 0.05
        assert totals[2] > ENTROPY


@pytest.mark.parametrize("variance", ["small", "large"])
def test_more_knots_lead_to_the_continuous_bound(variance: str) -> None:
    """Between fixed ends, sum L_{t-1} falls to int |eps - eps_hat|^2 d lam as 1 / T."""
    sde = VPSDE(t_min=0.01)
    model = exact_model(sde)
    x, noise = cubature(model, 200)
    limit = continuous_bound(model, x, nodes=60, noise=noise)
    snr = [(sde.level(t).alpha / sde.level(t).sigma) ** 2 for t in (sde.t_min, sde.t_max)]
    closed = 0.5 * (torch.log1p(snr[0] * VARIANCES) - torch.log1p(snr[1] * VARIANCES)).sum()
    torch.testing.assert_close(limit.steps.sum(1).mean(), closed, rtol=0, atol=1e-8)
    gaps = []
    for steps in (100, 200, 400):
        lam = torch.linspace(sde.level(1.0).lam, sde.level(0.01).lam, steps, dtype=torch.float64)
        times = sde.time(lam).tolist()
        times[0], times[-1] = 1.0, 0.01
        x, noise = cubature(model, steps)
        found = bound(model, x, variance=variance, times=times, noise=noise)
        torch.testing.assert_close(found.data.mean(), limit.data.mean(), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.prior, limit.prior, rtol=0, atol=1e-12)
        gaps.append(float(found.steps.sum(1).mean() - closed))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.1)


def test_the_discretised_decoder_is_a_distribution_on_levels() -> None:
    for bins, data_range in [(2, (-1.0, 1.0)), (17, (-1.0, 1.0)), (256, (0.0, 1.0))]:
        levels = torch.linspace(*data_range, bins, dtype=torch.float64).reshape(-1, 1)
        for mean, std in [(0.0, 0.3), (0.9, 0.01), (-3.0, 0.05), (0.5, 10.0)]:
            decoder = DiscretisedGaussian(bins, data_range)
            found = decoder.log_prob(levels, torch.full_like(levels, mean), 2 * math.log(std))
            assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)
            width = levels[1, 0] - levels[0, 0]
            law = Normal(torch.tensor(mean, dtype=torch.float64), std)
            upper, lower = law.cdf(levels + width / 2), law.cdf(levels - width / 2)
            upper[-1], lower[0] = 1.0, 0.0
            near = upper - lower > 1e-9
            torch.testing.assert_close(
                found.unsqueeze(1)[near], (upper - lower)[near].log(), rtol=0, atol=1e-6
            )


def test_far_tails_keep_their_logarithm_and_their_gradient() -> None:
    decoder = DiscretisedGaussian(17, (-1.0, 1.0))
    mean = torch.tensor([[5.0, -5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = decoder.log_prob(torch.tensor([[-1.0, 0.5, 1.0]]).double(), mean, 2 * math.log(0.01))
    found.sum().backward()
    assert bool(found.detach().isfinite().all())
    assert bool(mean.grad.isfinite().all())
    assert float(mean.grad[0, 0]) < 0 < float(mean.grad[0, 1])


def test_narrow_bins_have_the_density_times_their_width() -> None:
    x = torch.tensor([[0.2, -0.4]], dtype=torch.float64)
    mean = torch.zeros_like(x)
    fine = DiscretisedGaussian(2001, (-1.0, 1.0)).log_prob(x, mean, math.log(0.09))
    density = GaussianDecoder().log_prob(x, mean, math.log(0.09))
    torch.testing.assert_close(fine, density + 2 * math.log(1e-3), rtol=0, atol=1e-5)


def test_bits_per_dim_of_the_bound_need_levels() -> None:
    model = exact_model(DiscreteVPSDE.exact(VPSDE(), 10))
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="DiscretisedGaussian"):
        bound(model, x).bits_per_dim(3)
    found = bound(model, x, decoder=DiscretisedGaussian(17, (-1.0, 1.0)))
    torch.testing.assert_close(found.bits_per_dim(3), found.total / (3 * math.log(2)))
    with pytest.raises(ValueError, match="17 levels"):
        bound(model, x + 0.01, decoder=DiscretisedGaussian(17, (-1.0, 1.0)))


def test_terms_belong_to_their_sample() -> None:
    model = exact_model(DiscreteVPSDE.exact(VPSDE(), 10))
    x = model.sample(3)
    torch.testing.assert_close(bound(model, x).total[:1], bound(model, x[:1]).total)
    assert bound(model, x[:0]).total.shape == (0,)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(3,), hidden=8, depth=1, outputs=2)
    learned = ScoreNetwork(net, DiscreteVPSDE.cosine(30), LearnedVariance())
    assert bool(bound(learned, x.float(), variance="learned").total.isfinite().all())


def test_bad_input_is_refused() -> None:
    chain = exact_model(DiscreteVPSDE.exact(VPSDE(), 10))
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="spread"):
        bound(chain, x, variance="learned")
    with pytest.raises(ValueError, match="variance"):
        bound(chain, x, variance="medium")
    with pytest.raises(ValueError, match="no chain"):
        bound(exact_model(VPSDE()), x)
    with pytest.raises(ValueError, match="fall"):
        bound(exact_model(VPSDE()), x, times=(0.1, 1.0))
    with pytest.raises(ValueError, match="NaN"):
        bound(chain, x + math.nan)
    with pytest.raises(TypeError, match="floating"):
        bound(chain, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="samples"):
        importance_bound(chain, x, samples=0)
    with pytest.raises(ValueError, match="nodes"):
        continuous_bound(exact_model(EDMSDE()), x, nodes=0)
    with pytest.raises(ValueError, match="variance"):
        GaussianDecoder(0.0)
    with pytest.raises(ValueError, match="bins"):
        DiscretisedGaussian(1, (-1.0, 1.0))
