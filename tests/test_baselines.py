"""The other families: closed forms, limits, and other libraries beside each."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor, nn
from torch import distributions as td

from scoregen import (
    DDIM,
    EDMSDE,
    MALA,
    MLP,
    VPSDE,
    Constant,
    Data,
    DiscreteVPSDE,
    Gaussian,
    Level,
    Potential,
    ProbabilityFlow,
    Sampler,
    ScoreModel,
    StaticSDE,
    UniformLam,
    UniformTime,
    V,
    compare,
    fit,
)
from scoregen.baselines import (
    GAN,
    VAE,
    Autoregressive,
    BlockGibbs,
    BoltzmannMachine,
    ConditionalGAN,
    DensityRatio,
    Flow,
    Generator,
    HierarchicalVAE,
    MixtureFit,
    NaiveBayes,
    Perceptron,
    Sampled,
    WassersteinGAN,
)
from scoregen.energies import EnergyModel, GeometricPath, Product
from scoregen.flowmaps import ConsistencyModel, GaussianFlowMap
from scoregen.guidance import Classifier
from scoregen.likelihood import GaussianDecoder, bound
from scoregen.mcmc import annealed_importance
from scoregen.metrics import SlicedWasserstein
from scoregen.models import Prediction
from scoregen.noise import ReplayNoise, SampleNoise
from scoregen.objectives import PersistentContrastiveDivergence, ReplayBuffer
from scoregen.solvers import RK4
from scoregen.solvers.ancestral import posterior

F64 = torch.float64
LEVELS = (0.01, 0.3, 1.0)


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """A network whose first weights come from a seed, without moving the global stream."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(z), z standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def plane(n: int, reach: float) -> tuple[Tensor, float]:
    """Points (n^2, 2) of a square grid and the area of a cell."""
    axis = torch.linspace(-reach, reach, n, dtype=F64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return points, float(axis[1] - axis[0]) ** 2


def two_clusters(n: int = 300) -> Data:
    x = torch.cat([normal(n, 2, seed=1) * 0.5 - 1.5, normal(n, 2, seed=2) + 1.0])
    label = torch.cat([torch.zeros(n), torch.ones(n)]).long()
    return Data(x, label)


def within(found: Tensor, wanted: Tensor, stderr: Tensor) -> bool:
    """Six standard errors in every coordinate: a false alarm in 5e8 per coordinate."""
    return bool(((found - wanted).abs() <= 6 * stderr).all())


# Mixtures


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_em_is_scikit_learns_and_its_score_is_exact_at_every_level(covariance: Any) -> None:
    data = two_clusters().unlabelled()
    model = MixtureFit((2,), 3, covariance).fit(data, seed=0)
    from sklearn.mixture import GaussianMixture as Theirs

    theirs = Theirs(3, covariance_type=covariance, random_state=0, max_iter=500).fit(data.x.numpy())
    x = normal(40, 2, seed=3) * 2
    wanted = torch.from_numpy(theirs.score_samples(x.numpy()))
    assert torch.allclose(model.log_prob(x), wanted, atol=1e-9)
    full = {"full": model.covariances, "diag": torch.diag_embed(model.covariances)}.get(
        covariance, model.covariances.reshape(-1, 1, 1) * torch.eye(2, dtype=F64)
    )
    sde = VPSDE()
    for t in LEVELS:
        level = sde.level(t)
        law = td.MixtureSameFamily(
            td.Categorical(model.weights),
            td.MultivariateNormal(
                level.alpha * model.means,
                level.alpha**2 * full + level.sigma**2 * torch.eye(2, dtype=F64),
            ),
        )
        y = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(law.log_prob(y).sum(), y)
        assert torch.allclose(model.density(sde).score(x, t), score, atol=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_samples_of_a_mixture_have_its_moments(covariance: Any) -> None:
    model = MixtureFit((2,), 2, covariance).fit(two_clusters().unlabelled())
    x = model.sample(20_000, seed=0).double()
    exact = model.density(StaticSDE()).sample(20_000, generator=1)
    both = torch.stack([torch.cat([x, x.square(), x.prod(1, keepdim=True)], 1) for x in (x, exact)])
    stderr = (both.var(1) / both.shape[1]).sum(0).sqrt()
    assert within(both[0].mean(0), both[1].mean(0), stderr)
    assert torch.equal(model.sample(5, seed=0), model.sample(9, seed=0)[:5])


def test_naive_bayes_is_scikit_learns_and_guides_exactly() -> None:
    data, sde = two_clusters(), VPSDE()
    model = NaiveBayes((2,), 2).fit(data)
    from sklearn.naive_bayes import GaussianNB

    theirs = GaussianNB(var_smoothing=1e-6).fit(data.x.numpy(), data.label.numpy())
    x = normal(30, 2, seed=3)
    found = model.classifier(1, sde)(x, sde.level(0.0))
    wanted = torch.from_numpy(theirs.predict_log_proba(x.numpy()))[:, 1]
    assert torch.allclose(found, wanted, atol=1e-9)
    whole = model.density(sde)
    for label, t in itertools.product((0, 1), LEVELS):
        level = sde.level(t)
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.classifier(label, sde)(y, level).sum(), y)
        own = model.given(label, sde).score(x, t)
        assert torch.allclose(slope, own - whole.score(x, t), atol=1e-9)
        guided = Classifier(whole, model.classifier(label, sde))
        assert torch.allclose(guided.score(x, t), own, atol=1e-9)


def test_naive_bayes_draws_the_class_that_is_wanted() -> None:
    model = NaiveBayes((2,), 2).fit(two_clusters())
    x = model.sample(4000, seed=0, condition={"label": torch.arange(4000) % 2}).double()
    for c in (0, 1):
        part = x[torch.arange(4000) % 2 == c]
        stderr = (model.covariances[c] / len(part)).sqrt()
        assert within(part.mean(0), model.means[c], stderr)


# Flows


def bent(model: Any) -> Any:
    """Larger weights than the first ones, so that a flow is far from the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
        model.mean.add_(0.2)
        model.std.mul_(0.7)
    return model.double()


def flows() -> list[Any]:
    return [
        bent(seeded(lambda: Flow((2,), 3, (16,)))),
        bent(seeded(lambda: Autoregressive((2,), (16,)))),
    ]


@pytest.mark.parametrize("model", flows(), ids=["flow", "autoregressive"])
def test_a_flow_integrates_to_one(model: Any) -> None:
    points, area = plane(300, 6.0)
    with torch.no_grad():
        total = float(model.log_prob(points).exp().sum()) * area
    assert abs(total - 1) < 2e-3  # splines have kinks, so quadrature is of second order


@pytest.mark.parametrize("model", flows(), ids=["flow", "autoregressive"])
def test_change_of_variables_by_the_jacobian_of_the_sampling_map(model: Any) -> None:
    z = normal(6, 2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model.inverse(z[None])[0]))(z)
    base = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    wanted = base - jacobian.det().abs().log()
    assert torch.allclose(model.log_prob(model.inverse(z)), wanted, atol=1e-7)


def test_samples_of_a_flow_follow_its_density() -> None:
    model = flows()[0]
    points, area = plane(250, 6.0)
    with torch.no_grad():
        p = model.log_prob(points).exp() * area
    x = model.sample(8000, seed=0)
    mean = (p.unsqueeze(1) * points).sum(0)
    assert within(x.mean(0), mean, x.std(0) / math.sqrt(len(x)) + 1e-3)


def test_an_autoregressive_density_is_the_product_of_its_conditionals() -> None:
    model = bent(seeded(lambda: Autoregressive((1, 3), (16,))))
    x = normal(5, 1, 3)
    found = model.conditionals(x)
    assert torch.allclose(found.sum(1), model.log_prob(x), atol=1e-10)
    changed = x.clone()
    changed[:, 0, 2] += 1.0  # the last coordinate: no other factor may see it
    assert torch.allclose(model.conditionals(changed)[:, :2], found[:, :2], atol=1e-12)
    axis = torch.linspace(-8, 8, 8001, dtype=F64)
    for i in range(3):  # each factor is a density of its own coordinate
        lines = x[:1].repeat(len(axis), 1, 1)
        lines[:, 0, i] = axis
        with torch.no_grad():
            total = float(model.conditionals(lines)[:, i].exp().sum() * (axis[1] - axis[0]))
        assert abs(total - 1) < 1e-3


@pytest.mark.slow
def test_mala_leaves_a_flow_invariant() -> None:
    """Exact draws moved by MALA on -log p keep the moments, at six standard errors."""
    model = flows()[0]
    energy = Potential(lambda x: -model.log_prob(x))
    x = model.sample(4000, seed=0)
    y = Sampler(MALA(0.1), Constant(0.0, 5)).run(energy, x, noise=SampleNoise(1))
    y = y.detach()
    assert float((y - x).norm(dim=1).mean()) > 0.1
    stderr = x.std(0) * math.sqrt(2 / len(x))
    assert within(y.mean(0), x.mean(0), stderr)
    assert within(y.square().mean(0), x.square().mean(0), x.square().std(0) * math.sqrt(2 / 4000))


@pytest.mark.slow
def test_training_a_flow_reaches_the_law_of_the_data() -> None:
    data = two_clusters().unlabelled()
    model = seeded(lambda: Flow((2,), 2, (32,)))
    model.fit(Data(data.x.float()), steps=150, batch=64, lr=5e-3, progress=False)
    fitted = MixtureFit((2,), 2).fit(data)
    with torch.no_grad():
        gap = fitted.log_prob(data.x).mean() - model.log_prob(data.x.float()).mean()
    assert float(gap) < 0.15  # nats; an unfitted Gaussian is 0.45 off


# Boltzmann machine


def machine(hidden: int = 3) -> BoltzmannMachine:
    model = seeded(lambda: BoltzmannMachine((2,), hidden, std=0.8)).double()
    with torch.no_grad():
        model.W.copy_(normal(2, hidden, seed=7))
        model.b.copy_(torch.tensor([0.3, -0.2]))
        model.c.copy_(torch.tensor([-0.5, 0.2, 0.1])[:hidden])
        model.log_std.fill_(math.log(0.8))
    return model


def joint_energy(model: BoltzmannMachine, v: Tensor, h: Tensor) -> Tensor:
    s2 = 0.8**2
    return (v - model.b).square().sum(-1) / (2 * s2) - h @ model.c - (v @ model.W * h).sum(-1) / s2


STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=F64)


def test_the_free_energy_sums_over_all_hidden_states() -> None:
    model, v = machine(), normal(20, 2)
    each = torch.stack([-joint_energy(model, v, h) for h in STATES], 1)
    with torch.no_grad():
        assert torch.allclose(model(v, 0.0).energy, -each.logsumexp(1), atol=1e-12)
        wanted = (each.softmax(1) @ STATES).clamp(0, 1)
        assert torch.allclose(torch.sigmoid(model.activation(v)), wanted, atol=1e-12)


def test_the_partition_function_by_enumeration_is_the_integral() -> None:
    model = machine()
    points, area = plane(600, 10.0)
    with torch.no_grad():
        total = float(torch.logsumexp(-model.energy(points, model.sde.level(0.0)), 0))
    assert abs(model.log_z() - total - math.log(area)) < 1e-10
    v = normal(10, 2)
    assert torch.allclose(model.density(StaticSDE()).log_prob(v), model.log_prob(v), atol=1e-10)


def test_a_diffused_machine_is_the_diffused_mixture() -> None:
    model, sde = machine(), VPSDE()
    t = 0.2
    level = sde.level(t)
    points, area = plane(500, 8.0)
    with torch.no_grad():
        log_p = model.log_prob(points)
    for y in normal(3, 2):
        square = (y - level.alpha * points).square().sum(1) / (2 * level.sigma**2)
        wanted = torch.logsumexp(log_p - square, 0) + math.log(area)
        wanted = wanted - math.log(2 * math.pi * level.sigma**2)
        assert abs(float(model.density(sde).log_prob(y[None], t) - wanted)) < 1e-9


def test_block_gibbs_leaves_the_law_of_the_hidden_units() -> None:
    """Exact draws, one sweep, then E[p(h | v)]: a wrong scale in a conditional is off by .05."""
    model, n = machine(), 40_000
    v = model.density(StaticSDE()).sample(n, generator=0)
    moved = Sampler(BlockGibbs(), Constant(0.0, 1)).run(model, v, noise=SampleNoise(1))
    with torch.no_grad():
        for f in (lambda v: torch.sigmoid(model.activation(v)), lambda v: v, torch.square):
            before, after = f(v), f(moved)
            stderr = ((before.var(0) + after.var(0)) / n).sqrt()
            assert within(after.mean(0), before.mean(0), stderr)
    assert BlockGibbs().invariant


@pytest.mark.parametrize(("kernel", "moves"), [(BlockGibbs(), 60), (MALA(0.3), 200)], ids=repr)
def test_block_gibbs_and_mala_reach_one_law_from_afar(kernel: Any, moves: int) -> None:
    """2,000 chains started at (3, 3): mean and second moments within six standard errors."""
    model, n = machine(), 2000
    x = torch.full((n, 2), 3.0, dtype=F64)
    x = Sampler(kernel, Constant(0.0, moves)).run(model, x, noise=SampleNoise(0)).detach()
    exact = model.density(StaticSDE()).sample(100_000, generator=0)
    for f in (lambda v: v, torch.square, lambda v: v.prod(1, keepdim=True)):
        stderr = f(exact).std(0) * math.sqrt(1 / n + 1e-5)
        assert within(f(x).mean(0), f(exact).mean(0), stderr)


def test_log_z_by_annealing_holds_the_sum() -> None:
    """An interval of confidence 1 - 1e-7."""
    model = machine()
    start = Gaussian(StaticSDE(), torch.zeros(2, dtype=F64), 4.0)
    path = GeometricPath(start, model)
    found = annealed_importance(
        MALA(0.2),
        UniformTime(40),
        path,
        start.sample(1000),
        noise=SampleNoise(0),
        confidence=1 - 1e-7,
    )
    assert found.low < model.log_z() < found.high
    assert found.high - found.low < 0.5


@pytest.mark.slow
def test_contrastive_divergence_trains_a_machine() -> None:
    x = torch.cat([normal(200, 1) * 0.2 - 1, normal(200, 1, seed=1) * 0.2 + 1]).float()
    model = seeded(lambda: BoltzmannMachine((1,), 4, std=0.5, mean=x.mean(0)))
    before = float(model.log_prob(x).detach().mean())
    objective = PersistentContrastiveDivergence(
        Sampler(BlockGibbs(), Constant(0.0, 3)), ReplayBuffer(x[:200].clone())
    )
    for _ in fit(model, Data(x), objective, steps=300, batch=100, lr=2e-2, progress=False):
        pass
    after = float(model.log_prob(x).detach().mean())
    exact = math.log(0.5) - math.log(0.2 * math.sqrt(2 * math.pi * math.e))
    single = -math.log(float(x.std()) * math.sqrt(2 * math.pi * math.e))
    assert before < single < single + 0.2 < after < exact + 0.1


def test_a_machine_with_many_hidden_units_names_the_estimate() -> None:
    with pytest.raises(ValueError, match="annealed_importance"):
        seeded(lambda: BoltzmannMachine((2,), 21)).log_z()
    with pytest.raises(TypeError, match="BlockGibbs needs a BoltzmannMachine"):
        Sampler(BlockGibbs(), Constant(0.0, 1)).sample(
            Potential(lambda x: x.square().sum(1)), (2, 2)
        )


# Variational autoencoders


class Linear(nn.Module):
    """A linear map with a constant appended: mean W x, log variance c; or the mean alone."""

    def __init__(self, weight: Tensor, constant: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight.to(F64))
        self.register_buffer("constant", None if constant is None else constant.to(F64))

    def forward(self, x: Tensor) -> Tensor:
        mean = x @ self.weight.mT
        if self.constant is None:
            return mean
        return torch.cat([mean, self.constant.expand(len(x), -1)], 1)


def scalar_vae(shrink: float, widen: float) -> VAE:
    """z ~ N(0, 1), x ~ N(1.2 z, .25), with an encoder whose mean and variance are factors off."""
    v = 1 / (1 + 1.2**2 / 0.25)
    encoder = Linear(
        torch.tensor([[shrink * v * 1.2 / 0.25]], dtype=F64),
        torch.tensor([math.log(widen * v)], dtype=F64),
    )
    return VAE(encoder, Linear(torch.tensor([[1.2]], dtype=F64)), (1,), 1, variance=0.25)


def bound_of(model: VAE, x: float, samples: int) -> float:
    """E log (1/K) sum_k w_k, the draws by Gauss-Hermite nodes in K dimensions."""
    nodes, weights = hermite(48)
    grid = list(itertools.product(range(48), repeat=samples))
    index = torch.tensor(grid)
    with torch.no_grad():
        at = torch.full((48, 1), x, dtype=F64)
        logs = model.log_ratio(at, lambda like: nodes.reshape(48, 1))
    every = logs[index].logsumexp(1) - math.log(samples)
    return float((weights[index].prod(1) * every).sum())


def test_the_importance_bound_rises_from_the_elbo_to_the_likelihood() -> None:
    model = scalar_vae(0.7, 1.6)
    found = [bound_of(model, 1.1, k) for k in (1, 2, 3)]
    assert found == pytest.approx([-1.78987, -1.63295, -1.59517], abs=2e-5)
    exact = float(td.Normal(0.0, math.sqrt(1.69)).log_prob(torch.tensor(1.1, dtype=F64)))
    assert exact == pytest.approx(-1.53929, abs=1e-5)
    assert found[0] < found[1] < found[2] < exact
    # the estimators draw what the nodes stand for: within six standard errors
    x = torch.full((20_000, 1), 1.1, dtype=F64)
    for estimate, wanted in (
        (model.elbo(x), found[0]),
        (model.importance_bound(x, samples=2), found[1]),
        (model.importance_bound(x, samples=3), found[2]),
    ):
        assert abs(float(estimate.mean()) - wanted) < 6 * float(estimate.std()) / math.sqrt(20_000)


def test_with_the_exact_posterior_the_bound_is_the_likelihood() -> None:
    model = scalar_vae(1.0, 1.0)
    x = normal(10, 1)
    wanted = td.Normal(0.0, math.sqrt(1.69)).log_prob(x[:, 0])
    assert torch.allclose(model.elbo(x), wanted, atol=1e-10)
    assert torch.allclose(model.importance_bound(x, samples=5), wanted, atol=1e-10)


def ppca() -> tuple[VAE, Tensor, Tensor, Tensor, float]:
    """A linear VAE at the optimum for data of a covariance, its eigenvectors and values, s2."""
    a = normal(4, 4, seed=2)
    covariance = a @ a.mT / 4 + 0.2 * torch.eye(4, dtype=F64)
    values, vectors = (v.flip(-1) for v in torch.linalg.eigh(covariance))
    s2 = float(values[2:].mean())
    w = vectors[:, :2] * (values[:2] - s2).sqrt()
    inverse = torch.linalg.inv(w.mT @ w + s2 * torch.eye(2, dtype=F64))  # diagonal
    encoder = Linear(inverse @ w.mT, (s2 * inverse.diagonal()).log())
    return VAE(encoder, Linear(w), (4,), 2, variance=s2), covariance, vectors, values, s2


def test_the_optimum_of_a_linear_vae_is_probabilistic_pca() -> None:
    """There the bound is the likelihood of PPCA, and its gradient vanishes."""
    model, covariance, _, values, s2 = ppca()
    w = model.decoders[0].weight.detach()
    law = td.MultivariateNormal(torch.zeros(4, dtype=F64), w @ w.mT + s2 * torch.eye(4, dtype=F64))
    x = normal(10, 4)
    assert torch.allclose(model.elbo(x), law.log_prob(x), atol=1e-10)
    # cubature of a quadratic in (x, eps): 6 inputs, of covariance (S, I)
    root = torch.linalg.cholesky(covariance)
    points = math.sqrt(6) * torch.cat([torch.eye(6, dtype=F64), -torch.eye(6, dtype=F64)])
    mean = model.log_ratio(points[:, :4] @ root.mT, lambda like: points[:, 4:]).mean()
    exact = -0.5 * (
        4 * math.log(2 * math.pi) + 4 + float(values[:2].log().sum()) + 2 * math.log(s2)
    )
    assert float(mean.detach()) == pytest.approx(exact, abs=1e-10)
    for slope in torch.autograd.grad(mean, list(model.parameters())):
        assert float(slope.abs().max()) < 1e-9


@pytest.mark.slow
def test_training_a_linear_vae_approaches_probabilistic_pca() -> None:
    covariance = ppca()[1]
    x = normal(2000, 4, seed=4) @ torch.linalg.cholesky(covariance).mT
    x = (x - x.mean(0)).float()
    free = seeded(
        lambda: VAE(Perceptron((4,), (4,), depth=0), Perceptron((2,), (4,), depth=0), (4,), 2)
    )
    free.fit(Data(x), steps=600, batch=256, lr=3e-2, progress=False)
    sample = torch.linalg.eigvalsh(torch.cov(x.double().mT)).flip(0)
    best = float(sample[:2].log().sum() + 2 * sample[2:].mean().log())
    exact = -0.5 * (4 * math.log(2 * math.pi) + 4 + best)
    assert -0.01 < float(free.elbo(x, samples=20).mean()) - exact < 0.005


def test_a_chain_is_a_hierarchical_vae_with_a_fixed_encoder() -> None:
    """-bound(chain) = ELBO, both as exact expectations over the noise and over the data."""
    chain = DiscreteVPSDE.exact(VPSDE(), 10)
    mu, v = 0.4, 0.5
    model = Gaussian(chain, torch.tensor([mu], dtype=F64), v)
    levels = chain.levels([*chain.knots[::-1], 0.0])[::-1]
    for variance, golden in (("small", -1.484045), ("large", -1.095677)):
        encoders: list[nn.Module] = []
        decoders: list[nn.Module] = []
        last = 0.0
        for i, (s, t) in enumerate(itertools.pairwise(levels)):
            keep = t.alpha / s.alpha
            encoders.append(
                Linear(
                    torch.tensor([[keep]], dtype=F64),
                    torch.tensor([math.log(1 - keep**2)], dtype=F64),
                )
            )
            _, _, small, large = posterior(t, s)
            spread = large if variance == "large" or i == 0 else small
            decoders.append(Reverse(model, t, s, None if i == 0 else math.log(spread)))
            last = last or spread
        vae = HierarchicalVAE(encoders, decoders, (1,), (1,) * 10, variance=last)
        # quadratic in (x, eps_1 .. eps_10): the mean by 2 x 11 points
        points = math.sqrt(11) * torch.cat([torch.eye(11, dtype=F64), -torch.eye(11, dtype=F64)])
        x = mu + math.sqrt(v) * points[:, :1]
        draws = iter(points[:, 1:].unsqueeze(-1).unbind(1))
        with torch.no_grad():
            elbo = float(vae.log_ratio(x, lambda like, draws=draws: next(draws)).mean())
        # the chain's bound is quadratic in (x, eps) term by term
        points = math.sqrt(2) * torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)])
        x = mu + math.sqrt(v) * points[:, :1]
        found = bound(
            model,
            x,
            variance=variance,  # type: ignore[arg-type]
            decoder=GaussianDecoder(),
            noise=ReplayNoise([points[:, 1:]] * 10),
        )
        assert elbo == pytest.approx(golden, abs=1e-6)
        assert elbo == pytest.approx(-float(found.total.mean()), abs=1e-10)


class Reverse(nn.Module):
    """p(x_s | x_t) of a chain: its mean by the model's x0, and a fixed log variance."""

    def __init__(self, model: ScoreModel, t: Level, s: Level, log_var: float | None):
        super().__init__()
        self.model, self.t, self.log_var = model, t, log_var
        self.c0, self.c1, *_ = posterior(t, s)

    def forward(self, z: Tensor) -> Tensor:
        mean = self.c0 * self.model.predict(z, self.t).x0 + self.c1 * z
        if self.log_var is None:
            return mean
        return torch.cat([mean, torch.full_like(mean, self.log_var)], 1)


def test_samples_of_a_noisy_vae_have_the_law_that_the_bound_is_of() -> None:
    model, _, _, _, s2 = ppca()
    w = model.decoders[0].weight.detach()
    for noisy, extra in ((True, s2), (False, 0.0)):
        model.noisy = noisy
        x = model.sample(20_000, seed=0)
        wanted = (w @ w.mT).diagonal() + extra
        assert within(x.var(0), wanted, wanted * math.sqrt(2 / 20_000))


def test_a_decoder_may_give_the_variance_too() -> None:
    """With a constant log variance it is the same model as with that variance."""
    plain = scalar_vae(0.7, 1.6)
    constant = torch.tensor([math.log(0.25)], dtype=F64)
    decoder = Linear(plain.decoders[0].weight.detach(), constant)
    both = VAE(plain.encoders[0], decoder, (1,), 1, variance=None)
    x, z = normal(8, 1), normal(8, 1)
    assert torch.allclose(both.elbo(x), plain.elbo(x), atol=1e-12)
    assert torch.equal(both.decode(z), plain.decode(z))
    plain.noisy = both.noisy = True
    assert torch.allclose(both.sample(5, seed=0), plain.sample(5, seed=0), atol=1e-12)
    with pytest.raises(ValueError, match="decoder 0"):
        VAE(plain.encoders[0], plain.decoders[0], (1,), 1, variance=None)


# Adversarial networks


class Quadratic(nn.Module):
    """a + b x + c x^2, one logit per sample."""

    def __init__(self, *coefficients: float):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(coefficients or (0.0, 0.0, 0.0), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.k[0] + x[:, 0] * self.k[1] + x[:, 0].square() * self.k[2]


class Affine(nn.Module):
    """G(z) = m + s z, of the first latent coordinates."""

    def __init__(self, m: float, *s: float):
        super().__init__()
        self.m, self.s = m, nn.Parameter(torch.tensor([s], dtype=F64))

    def forward(self, z: Tensor) -> Tensor:
        return self.m + z @ self.s.mT


LOGIT = (math.log(1.5) + 1 / 4.5, -2 / 4.5, 1 / 4.5 - 0.5)  # log N(0, 1) / N(1, 1.5^2)


def test_the_optimum_critic_is_the_log_ratio_and_its_value_the_divergence() -> None:
    gan = GAN(Affine(1.0, 1.5), Quadratic(), (1,), 1, penalty=0.0)
    z, w = hermite(120)
    real, fake = z.unsqueeze(1), gan.generated(z.unsqueeze(1)).detach()
    optimizer = torch.optim.LBFGS(gan.critic.parameters(), 1, 200, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w * gan.critic_loss(real, fake, torch.zeros_like(z))).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert gan.critic.k.tolist() == pytest.approx(LOGIT, abs=1e-4)
    value = -float(closure().detach())
    assert value == pytest.approx(-1.18771417, abs=1e-6)
    assert value == pytest.approx(2 * 0.09929010 - math.log(4), abs=1e-6)
    generator_loss = float((w * gan.generator_loss(fake)).sum().detach())
    assert generator_loss == pytest.approx(1.333208, abs=1e-4)


def test_the_penalty_of_a_gan_is_half_the_squared_slope() -> None:
    gan = GAN(Affine(0.0, 1.0), Quadratic(0.0, 3.0, 0.5), (1,), 1, penalty=0.2)
    plain = GAN(gan.generator, gan.critic, (1,), 1, penalty=0.0)
    x, u = normal(5, 1), torch.zeros(5)
    found = gan.critic_loss(x, x, u) - plain.critic_loss(x, x, u)
    assert torch.allclose(found, 0.1 * (3 + x[:, 0]).square(), atol=1e-12)


def test_the_critic_of_a_shift_reads_the_wasserstein_distance() -> None:
    class Slope(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x[:, 0]

    gan = WassersteinGAN(Affine(1.7, 1.0), Slope(), (1,), 1)
    z = normal(500, 1)
    assert float(gan.distance(z, gan.generated(z))) == pytest.approx(1.7, abs=1e-12)
    # slope 1 pays no penalty, slope 2 pays lambda
    u = torch.linspace(0, 1, 500, dtype=F64)
    gain = gan.critic_loss(z, gan.generated(z), u)
    assert torch.allclose(gain, torch.full_like(gain, -1.7), atol=1e-12)


class Overshoot(nn.Module):
    """-f of slope 1 + (P - Q) / (2 lambda rho) along a table, plus a share of a test function."""

    def __init__(self, x: np.ndarray, slope: np.ndarray):
        super().__init__()
        f = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x))])
        self.x, self.f, self.slope = (torch.from_numpy(a) for a in (x, f, slope))
        self.share = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        i = torch.searchsorted(self.x, x.detach()).clamp(1, len(self.x) - 1) - 1
        h = x - self.x[i]
        width = self.x[i + 1] - self.x[i]
        curve = (self.slope[i + 1] - self.slope[i]) / width
        return -(self.f[i] + self.slope[i] * h + curve * h**2 / 2) + self.share * torch.sin(x)


def test_the_gradient_penalty_overshoots_by_the_ratio_of_its_terms() -> None:
    """On a unit shift with lambda 10 the optimum reads 1.0545, not 1; there the gradient is 0."""
    x = np.linspace(-9, 10, 4001)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    e, b = (nodes + 1) / 2, weights / 2
    std = np.sqrt(e**2 + (1 - e) ** 2)[:, None]
    rho = (b[:, None] * np.exp(-0.5 * ((x - (1 - e)[:, None]) / std) ** 2) / std).sum(0)
    rho = rho / math.sqrt(2 * math.pi)
    gap = special.ndtr(x) - special.ndtr(x - 1)
    slope = 1 + gap / (20 * rho)
    gan = WassersteinGAN(Affine(1.0, 1.0), Overshoot(x, slope), (1,), 1, penalty=10.0)
    z, w = hermite(40)
    real, fake, u = torch.meshgrid(z, z + 1, torch.from_numpy(e), indexing="ij")
    mass = torch.einsum("i,j,k->ijk", w, w, torch.from_numpy(b)).flatten()
    pairs = real.reshape(-1, 1), fake.reshape(-1, 1)
    loss = (mass * gan.critic_loss(*pairs, u.flatten())).sum()
    difference = float((mass * (gan.judged(pairs[0]) - gan.judged(pairs[1]))).detach().sum())
    assert difference == pytest.approx(1.0545, abs=1e-4)
    (found,) = torch.autograd.grad(loss, gan.critic.share)
    assert abs(float(found)) < 1e-3
    straight = Overshoot(x, np.ones_like(x))  # the slope of the distance itself is no optimum
    gan = WassersteinGAN(Affine(1.0, 1.0), straight, (1,), 1, penalty=10.0)
    loss = (mass * gan.critic_loss(*pairs, u.flatten())).sum()
    (found,) = torch.autograd.grad(loss, straight.share)
    assert abs(float(found)) > 0.05


def test_the_latent_energy_pushes_forward_to_the_data() -> None:
    """With the exact logit the tilted latent law becomes N(0, 1); with log D it does not."""
    gan = GAN(Affine(1.0, 0.9, 1.2), Quadratic(*LOGIT), (1,), 2)
    points, _ = plane(500, 8.0)
    with torch.no_grad():
        x = gan.generated(points)[:, 0]
        for energy, exact in (
            (gan.latent_energy(points), True),
            (points.square().sum(1) / 2 + gan.generator_loss(x.unsqueeze(1)), False),
        ):
            weight = torch.softmax(-energy, 0)
            mean = float((weight * x).sum())
            variance = float((weight * x.square()).sum()) - mean**2
            if exact:
                assert abs(mean) < 1e-9
                assert abs(variance - 1) < 1e-9
            else:
                assert mean == pytest.approx(0.239, abs=1e-3)
                assert variance == pytest.approx(1.22, abs=1e-2)


def test_mala_on_the_latent_energy_samples_the_data() -> None:
    """4,000 chains of 60 moves: mean and variance within six standard errors."""
    gan = GAN(Affine(1.0, 0.9, 1.2), Quadratic(*LOGIT), (1,), 2)
    chains = Sampler(MALA(0.5), Constant(0.0, 60))
    z = chains.run(Potential(gan.latent_energy), normal(4000, 2), noise=SampleNoise(0))
    x = gan.generated(z).detach()[:, 0]
    assert abs(float(x.mean())) < 6 / math.sqrt(4000)
    assert abs(float(x.var()) - 1) < 6 * math.sqrt(2 / 4000)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        pytest.param("conditional", marks=pytest.mark.slow),
        pytest.param("wasserstein", marks=pytest.mark.slow),
    ],
)
def test_adversarial_training_moves_the_samples_to_the_data(kind: str) -> None:
    data = two_clusters(150)
    data = Data(data.x.float(), data.label)
    classes = 2 if kind == "conditional" else 0

    def nets() -> Any:
        up = Perceptron((2,), (2,), 64, classes=classes)
        return up, Perceptron((2,), (), 64, classes=classes), (2,), 2

    made: dict[str, Callable[[], Any]] = {
        "plain": lambda: GAN(*nets(), penalty=0.05),
        "conditional": lambda: ConditionalGAN(*nets(), 2, penalty=0.05),
        "wasserstein": lambda: WassersteinGAN(*nets(), penalty=1.0),
    }
    gan = seeded(made[kind])
    distance = SlicedWasserstein(64)
    before = distance(gan.sample(600, seed=0), data.x).value
    options: dict[str, Any] = {"critic_steps": 3} if kind == "wasserstein" else {}
    gan.fit(
        data if classes else data.unlabelled(),
        steps=150,
        batch=64,
        lr=2e-3,
        progress=False,
        **options,
    )
    x = gan.sample(600, seed=0)
    assert distance(x, data.x).value < 0.4 * before
    if classes:
        y = gan.sample(600, seed=0, condition={"label": 0})
        assert float(y.mean()) < float(x.mean()) - 0.5


# Discriminator guidance


class LogRatio(EnergyModel):
    """E = -scale log N(x; 0, v + sigma^2) / N(x; 0, w + sigma^2)."""

    def __init__(self, v: float, w: float, scale: float = 1.0):
        super().__init__()
        self.sde, self.v, self.w = EDMSDE(t_min=1e-5), v, w
        self.scale = nn.Parameter(torch.tensor(scale, dtype=F64))

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        a, b = self.v + t.sigma**2, self.w + t.sigma**2
        square = x.square() / 2 * (1 / a - 1 / b)
        width = (torch.as_tensor(a).log() - torch.as_tensor(b).log()) / 2
        return self.scale * (square + width).sum(1)


class Wrong(ScoreModel):
    """The score of N(0, v) times 1 + e."""

    def __init__(self, v: float, e: float):
        super().__init__()
        self.sde, self.v, self.e = EDMSDE(t_min=1e-5), v, e

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=-(1 + self.e) * x / (self.v + t.sigma**2))


def gain(model: ScoreModel) -> float:
    """dx_0 / dx_T of the flow, which is linear."""
    flow = Sampler(ProbabilityFlow(RK4), UniformLam(300))
    x = flow.run(model, torch.ones(1, 1, dtype=F64), noise=SampleNoise(0))
    return float(x.detach())


def test_a_density_ratio_corrects_the_law_though_not_the_score() -> None:
    v, e, top = 1.0, 0.1, 80.0
    wrong = Wrong(v, e)
    start = v + top**2
    generated = start * gain(wrong) ** 2
    assert generated == pytest.approx(0.416270, abs=2e-5)
    guided = Product(wrong, LogRatio(v, generated))
    assert start * gain(guided) ** 2 == pytest.approx(v * (generated + top**2) / start, abs=2e-5)
    x = torch.ones(1, 1, dtype=F64)
    right = float(Gaussian(wrong.sde, torch.zeros(1, dtype=F64), v).score(x, 0.5))
    assert float(guided.score(x, 0.5).detach()) / right - 1 == pytest.approx(-0.776, abs=1e-3)
    # where the model's score is that of its samples, the corrected score is the true one
    honest = Product(Gaussian(wrong.sde, torch.zeros(1, dtype=F64), 0.4), LogRatio(v, 0.4))
    assert float(honest.score(x, 0.5).detach()) == pytest.approx(right, abs=1e-12)


def test_the_density_ratio_is_where_its_loss_is_least() -> None:
    """The mean gradient at the exact ratio is 0 within six standard errors, elsewhere not."""
    real, fake = normal(20_000, 1), 0.5 * normal(20_000, 1, seed=1)
    loss = DensityRatio(fake, law=lambda sde, n, g: torch.full((n,), 0.5, dtype=F64))
    found = []
    for scale in (1.0, 0.7, 1.4):
        model = LogRatio(1.0, 0.25, scale)
        values = loss(model, real, generator=torch.Generator().manual_seed(2))
        slopes = []
        for part in values.reshape(100, 200).mean(1):
            (slope,) = torch.autograd.grad(part, model.scale, retain_graph=True)
            slopes.append(slope)
        s = torch.stack(slopes)
        found.append(float(s.mean()) / (float(s.std()) / 10))
    assert abs(found[0]) < 6
    assert found[1] < -10
    assert found[2] > 6


# Rows of a comparison


class Noise:
    """Somebody's own row, which derives from nothing here."""

    evaluations = 1

    def sample(self, n: int, *, seed: int, condition: Any = None) -> Tensor:
        return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def every(event: tuple[int, ...] = (2,)) -> dict[str, Generator]:
    """An untrained instance of every family but the fitted ones."""
    d = math.prod(event)
    return {
        "flow": Flow(event, 2, (8,)),
        "autoregressive": Autoregressive(event, (8,)),
        "vae": VAE(Perceptron(event, (4,)), Perceptron((2,), event), event, 2),
        "hierarchy": HierarchicalVAE(
            [Perceptron(event, (4,)), Perceptron((2,), (2,))],
            [Perceptron((2,), event), Perceptron((1,), (4,))],
            event,
            (2, 1),
        ),
        "gan": GAN(Perceptron((3,), event), Perceptron(event, ()), event, 3),
        "conditional": ConditionalGAN(
            Perceptron((3,), event, classes=2), Perceptron(event, (), classes=2), event, 3, 2
        ),
        "wasserstein": WassersteinGAN(Perceptron((d,), event), Perceptron(event, ()), event, d),
    }


def test_every_family_is_a_row_of_a_comparison(tmp_path: Path) -> None:
    data = two_clusters(50)
    rows: dict[str, Any] = {
        **seeded(every),
        "mixture": MixtureFit((2,), 2).fit(data.unlabelled()),
        "naive": NaiveBayes((2,), 2).fit(data),
        "machine": Sampled(machine(), Sampler(BlockGibbs(), Constant(0.0, 5)), (2,), evaluations=5),
        "score": Sampled(
            Gaussian(VPSDE(), torch.zeros(2), 1.0), Sampler(DDIM(), UniformTime(4)), (2,)
        ),
        "own": Noise(),
    }
    options: dict[str, Any] = {
        "metrics": [SlicedWasserstein(16)],
        "reference": data.x.float(),
        "samples": 40,
        "progress": False,
        "pictures": False,
        "out": tmp_path,
    }
    first = compare({}, {}, baselines=rows, **options)
    assert {r.sampler for r in first.rows} == set(rows)
    assert all(r.status == "done" for r in first.rows)
    nfe = {r.sampler: r.nfe for r in first.rows}
    assert (nfe["flow"], nfe["autoregressive"], nfe["gan"], nfe["score"]) == (4, 2, 1, 4)
    again = compare({}, {}, baselines=rows, **options)  # all of it is found by identity
    assert [r.seconds for r in again.rows] == [r.seconds for r in first.rows]


@pytest.mark.parametrize("event", [(2,), (1, 2, 2)])
def test_samples_have_the_event_and_depend_on_seed_and_index_alone(event: tuple[int, ...]) -> None:
    for name, model in seeded(lambda: every(event)).items():
        few, many = model.sample(3, seed=4), model.sample(5, seed=4)
        assert few.shape == (3, *event), name
        assert torch.allclose(few, many[:3], atol=1e-5), name
        assert not torch.allclose(few, model.sample(3, seed=5)), name
        assert model.sample(0, seed=0).shape == (0, *event), name


def test_state_is_kept_by_its_dictionary() -> None:
    model = MixtureFit((2,), 2).fit(two_clusters().unlabelled())
    other = MixtureFit((2,), 2)
    with pytest.raises(ValueError, match="call fit"):
        other.sample(2, seed=0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.sample(4, seed=0), other.sample(4, seed=0))


# The consistency function, which flow maps learn


def test_the_consistency_function_is_constant_along_the_flow() -> None:
    """f(x_t, t) = f(x_s, s) along an independent solution of the ODE, and f(x, t_min) = x."""
    sde = VPSDE(t_min=1e-5)
    exact = GaussianFlowMap(sde, torch.tensor([0.3], dtype=F64), 0.4)
    x = normal(5, 1)
    steps = Sampler(ProbabilityFlow(RK4), UniformLam(400, stop=0.05)).iterate(
        exact, x, noise=SampleNoise(0)
    )
    ends = [exact.jump(step.x, step.t, 0.0) for step in list(steps)[::80]]
    assert len(ends) > 4
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], atol=1e-6)
    net = seeded(lambda: MLP((1,), hidden=8, second_clock=True)).double()
    for model in (exact, ConsistencyModel(net, sde, V())):
        assert torch.allclose(model.jump(x, sde.t_min, 0.0), x, atol=5e-3)


# Refusals


def test_a_likelihood_that_is_not_there_is_refused_by_name() -> None:
    x = torch.zeros(2, 2)
    for name, model in seeded(every).items():
        if model.likelihood == "exact":
            assert model.log_prob(x).shape == (2,)
            continue
        with pytest.raises(TypeError, match=f"{type(model).__name__} has no log-density"):
            model.log_prob(x)
        if model.likelihood == "bound":
            assert isinstance(model, VAE | HierarchicalVAE), name
            assert model.elbo(x).shape == (2,)


def test_labels_for_an_unconditional_family_are_refused() -> None:
    for model in seeded(every).values():
        if model.classes:
            model.sample(2, seed=0, condition={"label": 1})
            for wrong in (2, -1):
                with pytest.raises(ValueError, match=r"0 \.\. 1"):
                    model.sample(2, seed=0, condition={"label": wrong})
            with pytest.raises(TypeError, match="unknown condition"):
                model.sample(2, seed=0, condition={"text": 1})
            with pytest.raises(ValueError, match="one class for each"):
                model.sample(2, seed=0, condition={"label": torch.zeros(3, dtype=torch.long)})
            continue
        with pytest.raises(TypeError, match=r"is unconditional, and takes no label"):
            model.sample(2, seed=0, condition={"label": 1})
        with pytest.raises(ValueError, match="unlabelled"):
            model.fit(two_clusters(), steps=1)


def test_em_with_fewer_points_than_components_is_refused() -> None:
    with pytest.raises(ValueError, match="one sample for each of 3 components, got 2"):
        MixtureFit((1,), 3).fit(Data(torch.zeros(2, 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixtureFit((2,), 0), "components"),
        (lambda: MixtureFit((2,), 2, "tied"), "covariance"),
        (lambda: MixtureFit((3,), 2).fit(Data(torch.zeros(5, 2))), "event"),
        (lambda: NaiveBayes((2,), 2).fit(Data(torch.zeros(5, 2))), "labelled"),
        (lambda: NaiveBayes((2,), 3).fit(two_clusters(4)), "have none"),
        (lambda: NaiveBayes((2,), 1).fit(two_clusters(4)), "classes"),
        (lambda: NaiveBayes((2,), 2).fit(two_clusters(4)).given(2, VPSDE()), "label"),
        (lambda: Flow(()), "coordinate"),
        (lambda: Flow((2,)).fit(Data(torch.ones(9, 2)), steps=1, batch=4), "constant"),
        (lambda: Flow((2,)).log_prob(torch.zeros(2, 3)), "event"),
        (lambda: Flow((2,)).log_prob(torch.full((1, 2), math.nan)), "finite"),
        (lambda: Flow((2,)).sample(-1, seed=0), "n must"),
        (lambda: Flow((2,)).sample(2, seed=-1), "seed"),
        (lambda: VAE(nn.Linear(2, 3), nn.Linear(2, 2), (2,), 2), "encoder 0"),
        (lambda: VAE(nn.Linear(2, 4), nn.Linear(3, 2), (2,), 2), "decoder 0"),
        (lambda: VAE(nn.Linear(2, 4), nn.Linear(2, 2), (2,), 2, variance=0.0), "variance"),
        (
            lambda: VAE(nn.Linear(2, 4), nn.Linear(2, 2), (2,), 2, variance=torch.ones(3)),
            "variance",
        ),
        (lambda: HierarchicalVAE([nn.Linear(2, 4)], [nn.Linear(2, 2)], (2,), (2,)), "two levels"),
        (
            lambda: HierarchicalVAE([nn.Linear(2, 4)], [nn.Linear(2, 2)], (2,), (2, 1)),
            "one encoder",
        ),
        (lambda: GAN(nn.Linear(2, 3), nn.Linear(2, 1), (2,), 2), "generator"),
        (lambda: GAN(nn.Linear(2, 2), nn.Linear(2, 1), (2,), 2), "critic"),
        (lambda: every()["conditional"].latent_energy(torch.zeros(1, 3)), "one latent energy"),
        (lambda: BoltzmannMachine((2,), 0), "hidden"),
        (lambda: BoltzmannMachine((2,), 2, std=-1.0), "std"),
        (lambda: BoltzmannMachine((2,), 2, mean=torch.zeros(3)), "mean"),
        (lambda: DensityRatio(torch.zeros(0, 2)), "at least one"),
        (lambda: Perceptron((2,), ())(torch.zeros(2, 3)), "takes"),
        (lambda: Perceptron((2,), (), classes=2)(torch.zeros(2, 2)), "no label"),
        (lambda: Sampled(nn.Linear(2, 2), None, (2,)), "score model"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        seeded(call)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    from scoregen.training import TrainingError

    model = seeded(lambda: VAE(nn.Linear(1, 2), nn.Linear(1, 1), (1,), 1))
    with torch.no_grad():
        model.log_variance.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 1"):
        model.fit(Data(torch.randn(9, 1, generator=torch.Generator())), steps=2, batch=4)


@pytest.mark.parametrize(
    ("module", "call"),
    [("zuko.flows", lambda: Flow((2,))), ("sklearn.mixture", lambda: fitted_mixture())],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, call: Callable[[], Any]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"scoregen\[families\]"):
        call()


def fitted_mixture() -> MixtureFit:
    return MixtureFit((2,), 2).fit(Data(torch.zeros(5, 2)))


def test_dropout_in_a_network_leaves_the_global_stream_alone() -> None:
    """And the training is a function of its seed, dropout included."""
    data = two_clusters(50).unlabelled()
    found = []
    for _ in range(2):
        up = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 4)))
        vae = VAE(up, seeded(lambda: nn.Linear(2, 2)), (2,), 2)
        vae.fit(Data(data.x.float()), steps=3, batch=10, progress=False)
        found.append(vae.sample(3, seed=0))
        gan = GAN(seeded(lambda: nn.Linear(2, 2)), Dropped(), (2,), 2)
        gan.fit(Data(data.x.float()), steps=3, batch=10, progress=False)
        found.append(gan.sample(3, seed=0))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


class Dropped(nn.Module):
    """A critic with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum(1)
