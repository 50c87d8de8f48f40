"""Densities by the probability-flow ODE against densities known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scoregen import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Eps,
    Gaussian,
    GaussianMixture,
    RectifiedSDE,
    ScoreNetwork,
    StaticSDE,
    SubVPSDE,
    UNet,
    Velocity,
)
from scoregen.densities import Analytic
from scoregen.likelihood import (
    Exact,
    Hutchinson,
    bits_per_dim,
    decode,
    dequantise,
    encode,
    log_prob,
)
from scoregen.models import Counted

PROCESSES = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    EDMSDE(),
    RectifiedSDE(),
    CosineVPSDE(),
    DiscreteVPSDE.linear(50, 0.01, 0.2),
    DiscreteVESDE.geometric(20, 0.05, 20.0),
]
each_process = pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def exact_prior(model: Analytic):
    level = model.sde.level(model.sde.t_max)
    return lambda x: model.log_density(x, level)


def random_gaussian(sde, event: tuple[int, ...], seed: int = 0) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    d = math.prod(event)
    root = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(d)
    mean = torch.randn(event, generator=g, dtype=torch.float64)
    return Gaussian(sde, mean, root @ root.mT + 0.2 * torch.eye(d, dtype=torch.float64))


def random_mixture(sde, event: tuple[int, ...]) -> GaussianMixture:
    g = torch.Generator().manual_seed(1)
    means = 1.5 * torch.randn(3, *event, generator=g, dtype=torch.float64)
    return GaussianMixture(
        sde, torch.tensor([1.0, 2.0, 3.0]), means, torch.tensor([0.3, 0.5, 0.8]).double()
    )


@each_process
def test_log_prob_is_exact_on_gaussians(sde) -> None:
    model = random_gaussian(sde, (2,))
    x = model.sample(5)
    found = log_prob(model, x, prior=exact_prior(model), **TIGHT)
    assert found.t_min == sde.t_min
    torch.testing.assert_close(found.value, model.log_prob(x, sde.t_min), rtol=0, atol=2e-7)
    assert bool((found.stderr == 0).all())


@pytest.mark.parametrize("event", [(), (1,), (2,), (16,), (64,), (1, 8, 8), (2, 3)])
def test_log_prob_is_exact_on_mixtures_of_any_event_shape(event: tuple[int, ...]) -> None:
    model = random_mixture(VPSDE(), event)
    x = model.sample(3)
    found = log_prob(model, x, prior=exact_prior(model), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.value, model.log_prob(x, 1e-3), rtol=0, atol=2e-6)


def test_a_full_covariance_in_64_dimensions_is_exact() -> None:
    model = random_gaussian(VPSDE(), (1, 8, 8))
    x = model.sample(2)
    found = log_prob(model, x, prior=exact_prior(model), trace=Exact(chunk=20), **TIGHT)
    torch.testing.assert_close(found.value, model.log_prob(x, 1e-3), rtol=0, atol=1e-6)


def test_the_density_of_the_data_itself_where_velocities_are_finite() -> None:
    model = random_mixture(RectifiedSDE(), (2,))
    x = model.sample(4)
    found = log_prob(model, x, **TIGHT)  # N(0, I) is the exact prior at t = 1
    assert found.t_min == 0
    torch.testing.assert_close(found.value, model.log_prob(x), rtol=0, atol=1e-7)


def test_the_error_of_the_tolerance_falls_with_it() -> None:
    model = random_mixture(VPSDE(), (2,))
    x = model.sample(8)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = log_prob(model, x, prior=exact_prior(model), rtol=tolerance, atol=tolerance)
        errors.append(float((found.value - model.log_prob(x, 1e-3)).abs().max()))
    assert errors[0] < 3e-2
    assert errors[1] < 1e-3
    assert errors[2] < 1e-5
    assert errors[2] < errors[1] < errors[0]


def test_the_volume_change_is_the_determinant_of_the_flow() -> None:
    """int div = 1/2 log det C_t / C_u, whatever the prior."""
    model = random_gaussian(VESDE(), (3,))
    x = model.sample(2)
    flat = log_prob(model, x, prior=lambda z: z.new_zeros(len(z)), **TIGHT).value
    low, high = model.sde.level(model.sde.t_min), model.sde.level(model.sde.t_max)
    spread = [level.alpha**2 * model.variances + level.sigma**2 for level in (low, high)]
    expected = 0.5 * (spread[1] / spread[0]).log().sum()
    torch.testing.assert_close(flat, expected.expand(2), rtol=0, atol=1e-6)


@given(
    log_scale=st.floats(-1.5, 1.0),
    shift=st.floats(-2.0, 2.0),
    seed=st.integers(0, 100),
)
@settings(max_examples=10)
def test_log_prob_of_any_gaussian(log_scale: float, shift: float, seed: int) -> None:
    model = Gaussian(VPSDE(), torch.tensor([shift, 0.0]), math.exp(log_scale))
    x = model.sample(2, generator=seed)
    found = log_prob(model, x, prior=exact_prior(model), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.value, model.log_prob(x, 1e-3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedSDE(), DiscreteVPSDE.linear(50, 0.01, 0.2)])
def test_the_gradient_is_the_score(sde) -> None:
    model = random_mixture(sde, (2,))
    x = model.sample(4).requires_grad_()
    value = log_prob(model, x, prior=exact_prior(model), rtol=1e-7, atol=1e-7).value
    (slope,) = torch.autograd.grad(value.sum(), x)
    at = x.detach().requires_grad_()
    low = sde.level(sde.t_min)
    (expected,) = torch.autograd.grad(model.log_density(at, low).sum(), at)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-4)


def small_network(**options) -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=16, depth=1, **options).double()
    return ScoreNetwork(net, RectifiedSDE(t_min=1e-3, t_max=0.99), Velocity())


@pytest.mark.slow
def test_the_gradient_reaches_the_parameters() -> None:
    model = small_network()
    x = torch.tensor([[0.3, -0.5]], dtype=torch.float64, requires_grad=True)
    weight = model.net.outlet.weight
    value = log_prob(model, x, **TIGHT).value.sum()
    (slope,) = torch.autograd.grad(value, weight)
    step = 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
            ends.append(float(log_prob(model, x.detach(), **TIGHT).value))
            weight[0, 0] -= sign * step
    assert float(slope[0, 0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


def test_without_a_gradient_of_x_no_graph_is_built() -> None:
    value = log_prob(small_network(), torch.zeros(1, 2, dtype=torch.float64)).value
    assert not value.requires_grad


def test_hutchinson_covers_the_truth() -> None:
    """Two standard errors of 32 probes hold the truth in about 95 of 100 seeds."""
    model = random_mixture(VPSDE(), (4,))
    x = model.sample(1).expand(100, 4)
    trace = Hutchinson(32, "gaussian", seed=3)  # row i has its own probes: 100 seeds at once
    found = log_prob(model, x, trace=trace, prior=exact_prior(model), rtol=1e-6, atol=1e-6)
    truth = model.log_prob(x, 1e-3)
    inside = (found.value - truth).abs() <= 2 * found.stderr
    assert 90 <= int(inside.sum()) < 100
    # and the estimate is unbiased: the mean of all 3,200 probes within 5 of its standard errors
    error = (found.value - truth).mean() / found.stderr.mean() * math.sqrt(100)
    assert abs(float(error)) < 5


def test_more_probes_have_the_variance_of_their_number() -> None:
    model = random_gaussian(VPSDE(), (4,))
    x = model.sample(1).expand(200, 4)
    spread = []
    for probes in (2, 32):
        found = log_prob(model, x, trace=Hutchinson(probes, seed=1), rtol=1e-4, atol=1e-4)
        spread.append(float(found.value.var()))
    assert 8 < spread[0] / spread[1] < 32  # 16, within five standard errors of a variance ratio


def test_rademacher_probes_are_exact_on_a_diagonal_jacobian() -> None:
    model = Gaussian(VPSDE(), torch.zeros(3), torch.tensor([0.1, 1.0, 4.0]))
    x = model.sample(4)
    one = log_prob(model, x, trace=Hutchinson(1), **TIGHT)
    exact = log_prob(model, x, **TIGHT)
    torch.testing.assert_close(one.value, exact.value, rtol=0, atol=1e-7)
    assert bool(one.stderr.isnan().all())
    gaussian = log_prob(model, x, trace=Hutchinson(1, "gaussian"), **TIGHT)
    assert float((gaussian.value - exact.value).abs().min()) > 1e-3


def test_the_probes_belong_to_the_sample() -> None:
    x = torch.zeros(6, 3)
    whole = Hutchinson(4, seed=7).products(x)
    tail = Hutchinson(4, seed=7, first=2).products(x[2:])
    assert torch.equal(whole[:, 2:], tail)
    assert not torch.equal(whole, Hutchinson(4, seed=8).products(x))
    assert not torch.equal(whole[0], whole[1])


@each_process
def test_encode_and_decode_are_inverse_and_exact(sde) -> None:
    model = random_gaussian(sde, (2,))
    x = model.sample(3)
    z = encode(model, x, **TIGHT)
    start = model.flow(x, sde.t_min, sde.t_max)
    torch.testing.assert_close(z, start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decode(model, z, **TIGHT), x, rtol=0, atol=1e-6)


def test_a_chain_costs_no_more_than_its_process() -> None:
    """The rates of a chain jump at every knot; integrated in lam, the solver need not see it."""
    x = torch.ones(1, 2, dtype=torch.float64)
    smooth, chain = (
        log_prob(Gaussian(sde, torch.zeros(2), 0.5), x).nfe
        for sde in (VPSDE(), DiscreteVPSDE.exact(VPSDE(), 1000))
    )
    assert chain <= 2 * smooth


def test_evaluations_and_products_are_counted() -> None:
    model = random_gaussian(VPSDE(), (3,))
    x = model.sample(2)
    with Counted(model) as count:
        found = log_prob(model, x)
    assert found.nfe == count.rows / 2 * (1 + 3)


def test_a_batch_mate_moves_nothing_beyond_the_tolerance() -> None:
    model = random_mixture(VPSDE(), (2,))
    x = model.sample(4)
    far = torch.cat([x, torch.full((1, 2), 30.0, dtype=torch.float64)])
    both = log_prob(model, far, rtol=1e-7, atol=1e-7).value[:4]
    torch.testing.assert_close(log_prob(model, x, rtol=1e-7, atol=1e-7).value, both, atol=1e-5,
                               rtol=0)  # fmt: skip


@pytest.mark.slow
def test_networks_of_images_and_labels_pass() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(channels=1, width=8, classes=3)
        nn.init.normal_(net.outlet.weight, std=0.05)
    model = ScoreNetwork(net, VPSDE(), Eps()).given(label=torch.tensor([0, 2]))
    x = torch.zeros(2, 1, 4, 4)
    exact = log_prob(model, x, rtol=1e-3, atol=1e-3)
    random = log_prob(model, x, trace=Hutchinson(200), rtol=1e-3, atol=1e-3)
    assert bool(((exact.value - random.value).abs() < 5 * random.stderr + 0.05).all())


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x, clock):
            return self.inner(x)

    model = ScoreNetwork(Net(), VPSDE(), Eps()).train()
    x = torch.ones(1, 2)
    assert torch.equal(log_prob(model, x).value, log_prob(model, x).value)
    assert net.training
    assert model.training


def test_an_empty_batch_and_one_sample() -> None:
    model = random_gaussian(VPSDE(), (2,))
    assert log_prob(model, torch.zeros(0, 2)).value.shape == (0,)
    assert encode(model, torch.zeros(0, 2)).shape == (0, 2)
    assert log_prob(model, torch.zeros(1, 2)).value.dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, TypeError),
        ({"x": torch.full((2, 2), math.nan)}, ValueError),
        ({"rtol": 0.0}, ValueError),
        ({"atol": -1.0}, ValueError),
        ({"t_min": 0.0}, ValueError),
        ({"t_min": 0.9, "t_max": 0.5}, ValueError),
        ({"t_max": 2.0}, ValueError),
        ({"max_steps": 3}, RuntimeError),
    ],
)
def test_bad_input_is_refused(kwargs, error) -> None:
    model = Gaussian(VPSDE(), torch.zeros(2), 1e-4)
    x = kwargs.pop("x", torch.zeros(2, 2))
    with pytest.raises(error):
        log_prob(model, x, **kwargs)


def test_inference_mode_and_static_processes_are_refused() -> None:
    model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        log_prob(model, torch.zeros(2, 2))
    with torch.no_grad():
        log_prob(model, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="no noise"):
        log_prob(Gaussian(StaticSDE(), torch.zeros(2), 1.0), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="kind"):
        Hutchinson(kind="uniform")
    with pytest.raises(ValueError, match="probes"):
        Hutchinson(0)


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_uniform_levels_have_log2_bins_bits(bins: int, data_range: tuple[float, float]) -> None:
    width = (data_range[1] - data_range[0]) / (bins - 1)
    density = torch.tensor(-5 * math.log(bins * width), dtype=torch.float64)
    found = bits_per_dim(density, 5, bins=bins, data_range=data_range, dequantised=True)
    assert float(found) == pytest.approx(math.log2(bins), abs=1e-12)


def test_the_offsets_that_papers_use() -> None:
    nats = torch.zeros(())
    for low, high, offset in [(-1.0, 1.0, math.log2(127.5)), (0.5 / 128 - 1, 255.5 / 128 - 1, 7.0),
                              (0.5 / 256, 255.5 / 256, 8.0)]:  # fmt: skip
        found = bits_per_dim(nats, 3, bins=256, data_range=(low, high), dequantised=True)
        assert float(found) == pytest.approx(offset, abs=1e-6)


def test_dequantised_levels_are_uniform_within_their_bins() -> None:
    x = torch.linspace(-1, 1, 17, dtype=torch.float64).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)
    moved = (dequantise(x, bins=17, data_range=(-1.0, 1.0), generator=g) - x) * 8
    assert float(moved.abs().max()) <= 0.5
    share = np.sort(moved.flatten().numpy()) + 0.5
    gap = np.abs(share - (np.arange(share.size) + 0.5) / share.size).max()
    assert gap < math.sqrt(math.log(2 / 1e-7) / (2 * share.size))  # Dvoretzky-Kiefer-Wolfowitz


def test_levels_have_their_entropy_under_the_right_density() -> None:
    """A piecewise constant density makes the dequantised log-density the level's probability."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    level = torch.multinomial(p, 1000, replacement=True, generator=torch.Generator().manual_seed(0))
    log_density = (p[level] / 0.5).log()  # three levels of width 1/2 on [-1/2, 1/2]
    bits = bits_per_dim(log_density, 1, bins=3, data_range=(-0.5, 0.5), dequantised=True)
    torch.testing.assert_close(bits, -p[level].log2(), rtol=0, atol=1e-12)


def test_bits_of_real_data_are_refused() -> None:
    nats, g = torch.zeros(2), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="levels"):
        bits_per_dim(nats, 2, bins=None, data_range=None, dequantised=True)
    with pytest.raises(ValueError, match="dequantise"):
        bits_per_dim(nats, 2, bins=17, data_range=(-1.0, 1.0), dequantised=False)
    with pytest.raises(ValueError, match="dims"):
        bits_per_dim(nats, 0, bins=17, data_range=(-1.0, 1.0), dequantised=True)
    real = torch.tensor([[0.03, 1.0]])
    with pytest.raises(ValueError, match="17 levels"):
        dequantise(real, bins=17, data_range=(-1.0, 1.0), generator=g)
    with pytest.raises(ValueError, match="17 levels"):
        dequantise(real + 1.22, bins=17, data_range=(-1.0, 1.0), generator=g)
    with pytest.raises(ValueError, match="finite and rising"):
        bits_per_dim(nats, 2, bins=17, data_range=(1.0, 1.0), dequantised=True)
