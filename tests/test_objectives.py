"""Laws of t, weights and the denoising loss, against closed forms and formulas written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import NoFloat64
from scipy import stats
from torch import Tensor, nn

import scoregen
from scoregen import (
    EDM,
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    X0,
    CosineVPSDE,
    DiscreteVPSDE,
    Eps,
    Gaussian,
    Index,
    Level,
    RectifiedSDE,
    Score,
    ScoreModel,
    ScoreNetwork,
    StaticSDE,
    SubVPSDE,
    V,
    Velocity,
)
from scoregen.models import LearnedVariance, Parameterization, Prediction
from scoregen.objectives import (
    AtKnots,
    DenoisingScoreMatching,
    EDMWeight,
    Hybrid,
    Likelihood,
    LogitNormal,
    LogNormalSigma,
    LossAwareKnots,
    MinSNR,
    Simple,
    Stratified,
    UniformLamLaw,
    UniformLaw,
    Unit,
    VariationalBound,
)

PROCESSES: dict[str, tuple[SDE, tuple[float, ...]]] = {
    "vp": (VPSDE(), (0.01, 0.3, 1.0)),
    "cosine": (CosineVPSDE(), (0.01, 0.5, 0.99)),
    "subvp": (SubVPSDE(), (0.05, 0.5, 1.0)),
    "ve": (VESDE(), (0.01, 0.5, 1.0)),
    "edm": (EDMSDE(), (0.02, 1.0, 30.0)),
    "flow": (RectifiedSDE(), (0.05, 0.5, 0.95)),
    "chain": (DiscreteVPSDE.linear(100), (0.01, 0.5, 1.0)),
}
EACH = [pytest.param(s, t, id=f"{name}-{t:g}") for name, (s, ts) in PROCESSES.items() for t in ts]
OUTPUTS = [Eps(), X0(), V(), Velocity(), Score(), EDM(0.7)]

MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[0.9, 0, 0], [0.3, 0.4, 0], [-0.2, 0.5, 1.1]], dtype=torch.float64)
S = ROOT @ ROOT.T
D = len(MEAN)
EYE = torch.eye(D, dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("own_generator")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cubature(root: Tensor = ROOT, mean: Tensor = MEAN) -> tuple[Tensor, Tensor]:
    """The 2n points +-sqrt(n) e_i in (x0, eps): exact for every quadratic function of them."""
    n = 2 * len(mean)
    nodes = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    nodes = torch.cat([nodes, -nodes])
    return mean + nodes[:, : len(mean)] @ root.T, nodes[:, len(mean) :]


def expected(loss: DenoisingScoreMatching, model: ScoreModel, t: float) -> Tensor:
    """The exact mean of the loss at one time over the data and the noise."""
    x0, eps = cubature()
    return loss.at(model, x0, torch.full((len(x0),), t, dtype=torch.float64), eps).mean()


def scales(sde: SDE, t: float) -> tuple[float, float, Tensor]:
    level = sde.level(t)
    inverse = torch.linalg.inv(level.alpha**2 * S + level.sigma**2 * EYE)
    return level.alpha, level.sigma, inverse


class Linear(ScoreModel):
    """score = A x + b."""

    def __init__(self, sde: SDE, matrix: Tensor, shift: Tensor):
        super().__init__()
        self.sde, self.matrix, self.shift = sde, nn.Parameter(matrix), nn.Parameter(shift)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=x @ self.matrix.T + self.shift)


class Encoded(ScoreModel):
    """Another model, speaking through a parameterization as a network would."""

    def __init__(self, model: ScoreModel, parameterization: Parameterization):
        super().__init__()
        self.model, self.sde, self.parameterization = model, model.sde, parameterization

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        said = self.model.predict(x, t)
        out = self.parameterization.target(self.sde, t, said.x0, said.eps)
        return self.parameterization.decode(self.sde, t, x, out)


# Closed-form minima on Gaussian data


@pytest.mark.parametrize(("sde", "t"), EACH)
def test_minima_are_the_closed_forms(sde: SDE, t: float) -> None:
    a, s, inverse = scales(sde, t)
    da, ds = sde.rates_at(t)
    model = Gaussian(sde, MEAN, S)
    core = torch.trace(S @ inverse)
    minima = {
        Eps(): a**2 * core,
        X0(): s**2 * core,
        Score(): D / s**2 - torch.trace(inverse),
        V(): (a**2 + s**2) ** 2 * core,
        Velocity(): (da - ds * a / s) ** 2 * s**2 * core,
    }
    for of, value in minima.items():
        got = expected(DenoisingScoreMatching(weight=Unit(of)), model, t)
        torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-11)
    simple = expected(DenoisingScoreMatching(weight=Simple()), model, t)
    torch.testing.assert_close(simple, a**2 * core, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("std", [0.5, 1.3])
def test_the_edm_loss_at_its_optimum_is_one_per_coordinate(t: float, std: float) -> None:
    model = Gaussian(EDMSDE(), torch.zeros(D), std**2)
    x0, eps = cubature(std * EYE, torch.zeros(D, dtype=torch.float64))
    loss = DenoisingScoreMatching(weight=EDMWeight(std))
    got = loss.at(model, x0, torch.full((len(x0),), t, dtype=torch.float64), eps).mean()
    assert float(got) == pytest.approx(D, rel=1e-10)


@pytest.mark.parametrize(("sde", "t"), EACH)
def test_denoising_is_explicit_score_matching_plus_a_constant(sde: SDE, t: float) -> None:
    a, s, inverse = scales(sde, t)
    matrix = torch.randn(D, D, generator=generator(3), dtype=torch.float64)
    shift = torch.randn(D, generator=generator(4), dtype=torch.float64)
    total = torch.linalg.inv(inverse)
    wrong, centre = matrix + inverse, a * MEAN
    explicit = torch.trace(wrong @ total @ wrong.T) + (
        (wrong @ centre + shift - inverse @ centre).square().sum()
    )
    got = expected(DenoisingScoreMatching(weight=Unit(Score())), Linear(sde, matrix, shift), t)
    constant = D / s**2 - torch.trace(inverse)
    torch.testing.assert_close(got.detach(), explicit + constant, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sde", "t"), EACH)
def test_the_gradient_vanishes_at_the_exact_score_and_nowhere_near(sde: SDE, t: float) -> None:
    a, s, inverse = scales(sde, t)
    model = Linear(sde, -inverse, a * inverse @ MEAN)
    loss = DenoisingScoreMatching(weight=Unit(Score()))
    gradient = torch.autograd.grad(expected(loss, model, t), list(model.parameters()))
    assert all(float(g.abs().max()) < 1e-9 * (1 + 1 / s**2) for g in gradient)
    moved = Linear(sde, -1.1 * inverse, a * inverse @ MEAN)
    gradient = torch.autograd.grad(expected(loss, moved, t), list(moved.parameters()))
    # 2 (A + C^-1) C + 2 (A m + b) m^T at A = -1.1 C^-1, b = C^-1 m
    centre = a * MEAN
    longhand = -0.2 * EYE - 0.2 * inverse @ torch.outer(centre, centre)
    torch.testing.assert_close(gradient[0], longhand, rtol=1e-6, atol=1e-6)


# The same loss in every parameterization


WEIGHTS = [Simple(), Unit(V()), Unit(X0()), EDMWeight(0.7), MinSNR(5.0), Likelihood()]


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@pytest.mark.parametrize(("sde", "t"), EACH)
def test_the_loss_does_not_depend_on_the_parameterization(sde: SDE, t: float, weight: Any) -> None:
    wrong = Gaussian(sde, MEAN + 0.3, 1.7 * S)
    loss = DenoisingScoreMatching(UniformLaw(), weight)
    x0, eps = cubature()
    times = torch.full((len(x0),), t, dtype=torch.float64)
    values = [loss.at(Encoded(wrong, p), x0, times, eps) for p in OUTPUTS]
    values.append(loss.at(wrong, x0, times, eps))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("of", OUTPUTS, ids=repr)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_unit_loss_is_the_squared_error_of_the_networks_own_output(
    name: str, of: Parameterization
) -> None:
    sde, times = PROCESSES[name]
    model = ScoreNetwork(MLP((D,), hidden=8).double(), sde, of)
    t = torch.tensor(times, dtype=torch.float64)
    x0 = torch.randn(len(t), D, generator=generator(1), dtype=torch.float64)
    eps = torch.randn(len(t), D, generator=generator(2), dtype=torch.float64)
    level = sde.level_of(t, x0)
    x = level.alpha * x0 + level.sigma * eps
    out = model.net(of.input_scale(sde, level) * x, level.lam.flatten())
    longhand = (out - of.target(sde, level, x0, eps)).square().sum(1)
    got = DenoisingScoreMatching(weight=Unit()).at(model, x0, t, eps)
    torch.testing.assert_close(got, longhand, rtol=1e-8, atol=1e-10)
    named = DenoisingScoreMatching(weight=Unit(of)).at(model, x0, t, eps)
    torch.testing.assert_close(named, longhand, rtol=1e-8, atol=1e-10)


def test_the_default_on_a_chain_is_algorithm_1_written_out() -> None:
    sde = DiscreteVPSDE.linear(50)
    net = MLP((2,), hidden=8).double()
    model = ScoreNetwork(net, sde, Eps(), Index())
    x0 = torch.randn(6, 2, generator=generator(5), dtype=torch.float64)
    got = DenoisingScoreMatching(AtKnots())(model, x0, generator=generator(9))
    again = generator(9)
    index = (torch.rand(6, generator=again, dtype=torch.float64) * 50).long()
    eps = torch.randn(x0.shape, generator=again, dtype=torch.float64)
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50, dtype=torch.float64), 0)[index, None]
    said = net(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, index)
    torch.testing.assert_close(got, (eps - said).square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("t", [0.02, 0.2, 0.4, 0.9])
def test_min_snr_is_right_for_noise_data_and_v(gamma: float, t: float) -> None:
    sde = VPSDE()
    a, s = sde.level(t).alpha, sde.level(t).sigma
    snr = (a / s) ** 2
    wrong = Gaussian(sde, MEAN + 0.3, 1.7 * S)
    x0, eps = cubature()
    times = torch.full((len(x0),), t, dtype=torch.float64)
    said = wrong(a * x0 + s * eps, t)
    got = DenoisingScoreMatching(weight=MinSNR(gamma)).at(wrong, x0, times, eps)
    target = a * eps - s * x0
    for weight, error in (
        (min(snr, gamma) / snr, eps - said.eps),
        (min(snr, gamma), x0 - said.x0),
        (min(snr, gamma) / (snr + 1), target - (a * said.eps - s * said.x0)),
    ):
        torch.testing.assert_close(got, weight * error.square().sum(1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SubVPSDE()], ids=repr)
def test_the_likelihood_weight_is_half_g2_on_the_score(sde: SDE, t: float) -> None:
    wrong = Gaussian(sde, MEAN + 0.3, 1.7 * S)
    x0, eps = cubature()
    times = torch.full((len(x0),), t, dtype=torch.float64)
    level = sde.level(t)
    score = wrong.score(level.alpha * x0 + level.sigma * eps, t)
    g2 = float(sde.g2(torch.tensor(t, dtype=torch.float64)))
    law = UniformLaw(0.01, 0.96)
    got = DenoisingScoreMatching(law, Likelihood()).at(wrong, x0, times, eps)
    longhand = 0.95 * g2 / 2 * (score + eps / level.sigma).square().sum(1)
    torch.testing.assert_close(got, longhand, rtol=1e-9, atol=1e-10)


LAWS: dict[str, tuple[Any, SDE]] = {
    "uniform-vp": (UniformLaw(), VPSDE()),
    "uniform-part": (UniformLaw(0.2, 0.7), VPSDE()),
    "uniform-edm": (UniformLaw(), EDMSDE()),
    "lam-vp": (UniformLamLaw(), VPSDE()),
    "lam-part": (UniformLamLaw(-2.0, 3.0), RectifiedSDE()),
    "lam-ve": (UniformLamLaw(), VESDE()),
    "sigma-edm": (LogNormalSigma(), EDMSDE()),
    "sigma-vp": (LogNormalSigma(0.0, 2.0), VPSDE()),
    "sigma-flow": (LogNormalSigma(-0.5, 1.0), RectifiedSDE()),
    "sigma-cut": (LogNormalSigma(3.0, 1.5), VPSDE(t_max=0.5)),
    "logit-flow": (LogitNormal(), RectifiedSDE()),
    "logit-vp": (LogitNormal(-0.5, 0.8), VPSDE(t_min=0.1)),
    "strata": (Stratified(LogNormalSigma()), EDMSDE()),
}


# not those whose ends lie at infinite or at rarely drawn levels: there the mean converges slowly
BOUNDED = [name for name in LAWS if name not in ("sigma-flow", "sigma-cut", "logit-flow")]


@pytest.mark.parametrize("name", BOUNDED)
def test_the_likelihood_is_the_same_integral_under_every_law(name: str) -> None:
    law, sde = LAWS[name]
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    t = law.quantile(sde, u)
    # against 1/2 log det (I + snr S) between the ends of the law, for the exact model
    ends = law.quantile(sde, torch.tensor([1e-15, 1 - 1e-15], dtype=torch.float64))
    snr = torch.exp(2 * sde.lam(ends))
    information = [torch.logdet(EYE + r * S) / 2 for r in snr]
    model = Gaussian(sde, MEAN, S)
    loss = DenoisingScoreMatching(law, Likelihood())
    x0, eps = cubature()
    rows = len(x0)
    every = loss.at(
        model, x0.repeat(len(t), 1), t.repeat_interleave(rows), eps.repeat(len(t), 1)
    ).mean()
    assert float(every) == pytest.approx(float((information[0] - information[1]).abs()), rel=2e-2)


@pytest.mark.parametrize("name", LAWS)
def test_the_density_is_the_slope_of_the_quantile(name: str) -> None:
    law, sde = LAWS[name]
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    h = 1e-6
    slope = (law.quantile(sde, u + h) - law.quantile(sde, u - h)).abs() / (2 * h)
    density = law.log_density(sde, law.quantile(sde, u)).exp()
    torch.testing.assert_close(slope * density, torch.ones_like(u), rtol=1e-5, atol=0)
    assert law.log_density(sde, torch.tensor([sde.t_max * 1.5]).double()).item() == -math.inf


CDFS: dict[str, Callable[[SDE, Tensor], Any]] = {
    "uniform-vp": lambda sde, t: stats.uniform(sde.t_min, 1 - sde.t_min).cdf(t),
    "lam-vp": lambda sde, t: stats.uniform.cdf(
        sde.lam(t), sde.level(1.0).lam, sde.level(1e-3).lam - sde.level(1.0).lam
    ),
    "sigma-edm": lambda sde, t: stats.norm(-1.2, 1.2).cdf(t.log()),
    "sigma-flow": lambda sde, t: stats.norm(-0.5, 1.0).cdf((t / (1 - t)).log()),
    "logit-flow": lambda sde, t: stats.norm.cdf((t / (1 - t)).log()),
    "strata": lambda sde, t: stats.norm(-1.2, 1.2).cdf(t.log()),
}


@pytest.mark.parametrize("name", CDFS)
def test_draws_follow_the_law(name: str) -> None:
    law, sde = LAWS[name]
    t = law(sde, 20000, generator(1))
    assert t.shape == (20000,)
    assert t.dtype == torch.float64
    assert float(t.min()) >= sde.t_min
    assert float(t.max()) <= sde.t_max
    shares = torch.as_tensor(CDFS[name](sde, t))
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 1e-6
    torch.testing.assert_close(t, law(sde, 20000, generator(1)), rtol=0, atol=0)


def test_every_knot_is_as_likely() -> None:
    sde = DiscreteVPSDE.linear(10)
    t = AtKnots()(sde, 20000, generator(1))
    index = sde.index(t)
    assert torch.equal(index, index.round())
    counts = torch.bincount(index.long(), minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_strata_hold_one_draw_each_in_random_order() -> None:
    t = Stratified(UniformLaw())(RectifiedSDE(), 64, generator(1))
    strata = (t * 64).long()
    assert torch.equal(strata.sort().values, torch.arange(64))
    assert not torch.equal(strata, torch.arange(64))
    # the first sample alone follows the law: its stratum is any
    first = torch.stack(
        [Stratified()(RectifiedSDE(), 4, generator(seed))[0] for seed in range(2000)]
    )
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-6


def test_the_loss_follows_the_law_and_the_noise_of_the_generator() -> None:
    model = Gaussian(VPSDE(), MEAN, S)
    x0 = cubature()[0]
    loss = DenoisingScoreMatching(LogitNormal())
    again = generator(7)
    t = loss.law(model.sde, len(x0), again)
    eps = torch.randn(x0.shape, generator=again, dtype=x0.dtype)
    got = loss(model, x0, generator=generator(7))
    assert torch.equal(got, loss.at(model, x0, t, eps))
    assert not torch.equal(got, loss(model, x0, generator=generator(8)))


@pytest.mark.parametrize("event", [(), (2,), (1, 4, 4)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_event_and_batch(event: tuple[int, ...], batch: int) -> None:
    model = ScoreNetwork(MLP(event, hidden=8, classes=3), VPSDE(), V())
    label = torch.zeros(batch, dtype=torch.int64)
    loss = DenoisingScoreMatching(Stratified())(
        model, torch.zeros(batch, *event), generator=generator(), label=label
    )
    assert loss.shape == (batch,)
    assert loss.dtype == torch.float32


def test_the_label_reaches_the_network() -> None:
    model = ScoreNetwork(MLP((2,), hidden=8, classes=3), VPSDE(), V())
    x0 = torch.ones(4, 2)
    losses = [
        DenoisingScoreMatching()(
            model, x0, generator=generator(), label=torch.full((4,), k, dtype=torch.int64)
        )
        for k in (0, 1)
    ]
    assert not torch.allclose(losses[0], losses[1])


# What is refused


class TwoHeads(nn.Module):
    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


def test_a_learned_variance_is_refused_but_measured_by_at() -> None:
    model = ScoreNetwork(TwoHeads(), VPSDE(), LearnedVariance(Eps()))
    x0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="learned variance"):
        DenoisingScoreMatching()(model, x0, generator=generator())
    got = DenoisingScoreMatching().at(model, x0, torch.full((2,), 0.5), torch.ones_like(x0))
    assert got.shape == (2,)


def test_bad_laws_and_weights_are_refused() -> None:
    model = Gaussian(VPSDE(), MEAN, S)
    x0 = cubature()[0]

    def bare(sde: SDE, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), 0.5, dtype=torch.float64)

    with pytest.raises(TypeError, match="density"):
        DenoisingScoreMatching(bare, Likelihood())(model, x0, generator=generator())
    assert DenoisingScoreMatching(bare)(model, x0, generator=generator()).shape == (len(x0),)
    with pytest.raises(TypeError, match="knots"):
        AtKnots()(VPSDE(), 3, generator())
    with pytest.raises(ValueError, match="no density"):
        AtKnots().log_density(DiscreteVPSDE.linear(3), torch.ones(1))
    with pytest.raises(ValueError, match="finite interval"):
        UniformLamLaw()(RectifiedSDE(), 3, generator())
    with pytest.raises(ValueError, match="fit its noise levels"):
        LogNormalSigma(20.0, 0.5)(EDMSDE(), 3, generator())
    with pytest.raises(ValueError, match="stop"):
        UniformLaw(stop=2.0)(VPSDE(), 3, generator())
    with pytest.raises(ValueError, match="start"):
        UniformLaw(start=0.9, stop=0.5)(VPSDE(), 3, generator())
    with pytest.raises(ValueError, match="std"):
        LogitNormal(std=0.0)
    with pytest.raises(ValueError, match="gamma"):
        MinSNR(-1.0)
    with pytest.raises(ValueError, match="sigma_data"):
        EDMWeight(0.0)
    with pytest.raises(TypeError, match="exactly one ScoreNetwork"):
        DenoisingScoreMatching(weight=Unit())(model, x0, generator=generator())


def test_bad_data_and_processes_are_refused() -> None:
    model = Gaussian(VPSDE(), MEAN, S)
    with pytest.raises(TypeError, match="floating"):
        DenoisingScoreMatching()(model, torch.zeros(2, 3, dtype=torch.int64), generator=generator())
    with pytest.raises(ValueError, match="shape of x"):
        DenoisingScoreMatching().at(model, torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 1))
    static = Linear(StaticSDE(), EYE, MEAN)
    with pytest.raises(ValueError, match="no noise"):
        DenoisingScoreMatching()(static, torch.zeros(2, 3).double(), generator=generator())


@pytest.mark.parametrize(
    "objective",
    [
        DenoisingScoreMatching(),
        VariationalBound("large"),
        VariationalBound("learned", law=LossAwareKnots(20)),
        Hybrid(),
    ],
    ids=repr,
)
def test_no_float64_is_made_on_the_datas_device(objective: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        plain, learned = scoregen.MLP(hidden=8), scoregen.MLP(hidden=8, outputs=2)
    sde = scoregen.DiscreteVPSDE.linear(20)
    if isinstance(objective, DenoisingScoreMatching):
        model = scoregen.ScoreNetwork(plain, sde, scoregen.V()).to("meta")
    else:
        model = scoregen.ScoreNetwork(learned, sde, LearnedVariance()).to("meta")
    x0 = torch.empty(4, 2, device="meta")
    if isinstance(objective, VariationalBound) and objective.law is not None:
        objective = objective.at  # the law remembers the losses' values
        index, eps = torch.tensor([0, 5, 19, 3]), torch.empty(4, 2, device="meta")
        with NoFloat64():
            loss = objective(model, x0, index, eps)
    else:
        with NoFloat64():
            loss = objective(model, x0, generator=torch.Generator())
    assert loss.device.type == "meta"
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (4, 2)])
def test_times_are_one_per_sample(shape: tuple[int, ...]) -> None:
    model = scoregen.Gaussian(scoregen.VPSDE(), torch.zeros(2), 1.0)
    x0 = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"one per sample \(4\)"):
        DenoisingScoreMatching().at(model, x0, torch.full(shape, 0.5), x0)
