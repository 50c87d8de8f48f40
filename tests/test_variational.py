"""L_vlb and L_hybrid: their means are the bound, their gradients go where they should."""

from __future__ import annotations

import math

import pytest
import torch

from scoregen import (
    MLP,
    VPSDE,
    Ancestral,
    DiscreteVPSDE,
    Eps,
    Gaussian,
    Index,
    Sampler,
    ScoreModel,
    ScoreNetwork,
    Strided,
)
from scoregen.likelihood import DiscretisedGaussian, GaussianDecoder, bound
from scoregen.models import LearnedVariance, Prediction
from scoregen.objectives import Hybrid, LossAwareKnots, VariationalBound
from scoregen.solvers.ancestral import posterior

F64 = torch.float64
VARIANCES = torch.tensor([0.05, 0.7, 2.0], dtype=F64)


def gaussian(steps: int = 12) -> Gaussian:
    sde = DiscreteVPSDE.exact(VPSDE(), steps)
    return Gaussian(sde, torch.tensor([1.0, 0.0, -0.5]), VARIANCES)


class Spread(ScoreModel):
    """An exact model whose learned variance is one number."""

    def __init__(self, inner: ScoreModel, spread: float):
        super().__init__()
        self.inner, self.sde = inner, inner.sde
        self.spread = torch.nn.Parameter(torch.tensor(spread, dtype=F64))

    def predict(self, x, t, **condition):
        p = self.inner.predict(x, t)
        return Prediction(self.sde, t, x, x0=p.x0, eps=p.eps, spread=self.spread.expand_as(x))


def network(steps: int = 20) -> ScoreNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(3,), hidden=16, depth=1, outputs=2).double()
    return ScoreNetwork(net, DiscreteVPSDE.cosine(steps), LearnedVariance(), Index())


def cubature(model: Gaussian) -> tuple[torch.Tensor, torch.Tensor]:
    n = 2 * len(VARIANCES)
    points = math.sqrt(n) * torch.eye(n, dtype=F64)
    points = torch.cat([points, -points])
    return model.mean + VARIANCES.sqrt() * points[:, :3], points[:, 3:]


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_each_knot_gives_its_term_of_the_bound(variance: str) -> None:
    exact = gaussian()
    model = Spread(exact, 0.3) if variance == "learned" else exact
    x, eps = cubature(exact)
    draws = []

    def noise(like, t, s):
        draws.append(t)
        return eps

    expected = bound(model, x, variance=variance, noise=noise)
    terms = [*expected.steps.unbind(1), expected.data][::-1]
    loss = VariationalBound(variance)
    for i, term in enumerate(terms):
        found = loss.at(model, x, torch.full((len(x),), i), eps)
        torch.testing.assert_close(found, term, rtol=1e-9, atol=1e-9)
    assert len(draws) == exact.sde.steps


def test_all_knots_in_one_batch_and_in_float32() -> None:
    model = gaussian(1000)
    index = torch.arange(1000)
    g = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(1000, 3, generator=g, dtype=F64) for _ in range(2))
    loss = VariationalBound("large")
    wide = loss.at(model, x, index, eps)
    narrow = loss.at(model, x.float(), index, eps.float())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-4)
    for i in (0, 1, 500):
        row = slice(i, i + 1)
        torch.testing.assert_close(loss.at(model, x[row], index[row], eps[row]), wide[row])


def test_the_loss_is_an_unbiased_estimate_of_the_bound() -> None:
    model = gaussian(6)
    x = model.sample(1).expand(40000, 3)
    g = torch.Generator().manual_seed(0)
    found = VariationalBound("small")(model, x, generator=g)
    other = bound(model, x[:4000], variance="small").total
    error = math.sqrt(float(found.var()) / len(found) + float(other.var()) / len(other))
    assert abs(float(found.mean() - other.mean())) < 5.5 * error


def test_the_hybrid_loss_moves_the_variance_by_the_bound_and_the_mean_by_l_simple() -> None:
    model, g = network(), torch.Generator()
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    last = model.net.outlet

    def slopes(loss) -> torch.Tensor:
        model.zero_grad()
        loss(model, x, generator=g.manual_seed(0)).mean().backward()
        return last.weight.grad.clone()

    simple, light, heavy = (slopes(Hybrid(w)) for w in (0.0, 1e-3, 2e-3))
    whole = slopes(VariationalBound("learned"))
    mean, spread = slice(0, 3), slice(3, 6)
    assert torch.equal(simple[spread], torch.zeros_like(simple[spread]))
    torch.testing.assert_close(light[mean], simple[mean])  # the bound leaves the mean alone
    torch.testing.assert_close(heavy[mean], simple[mean])
    torch.testing.assert_close(light[spread], 1e-3 * whole[spread])
    torch.testing.assert_close(heavy[spread], 2e-3 * whole[spread])
    assert float(whole[mean].abs().max()) > 0
    assert float(whole[spread].abs().max()) > 0


def test_the_hybrid_loss_at_weight_0_is_l_simple() -> None:
    model, x = network(), torch.zeros(5, 3, dtype=F64)
    g = torch.Generator().manual_seed(3)
    found = Hybrid(0.0)(model, x, generator=g)
    g.manual_seed(3)
    index = torch.randint(20, (5,), generator=g)
    eps = torch.randn(5, 3, generator=g, dtype=F64)
    level = model.sde.level_of((index.double() + 1) / 20, x)
    said = model(level.sigma * eps, level).eps
    torch.testing.assert_close(found, (eps - said).square().sum(1))


def test_training_the_variance_finds_the_optimum_between_small_and_large() -> None:
    """For isotropic data the best variance is the exact kernel's, known in closed form."""
    sde = DiscreteVPSDE.exact(VPSDE(), 4)
    v, i = 0.3, 2
    model = Spread(Gaussian(sde, torch.zeros(2), v), 0.5)
    levels = sde.levels((0.0, *sde.knots))
    c0, _, small, large = posterior(levels[i + 1], levels[i])
    t = levels[i + 1]
    left = v * t.sigma**2 / (t.alpha**2 * v + t.sigma**2)
    best = math.log((small + c0**2 * left) / small) / math.log(large / small)
    n = 4
    points = math.sqrt(n) * torch.eye(n, dtype=F64)
    points = torch.cat([points, -points])
    x, eps = math.sqrt(v) * points[:, :2], points[:, 2:]
    optimiser = torch.optim.LBFGS(
        [model.spread], max_iter=100, tolerance_grad=1e-13, tolerance_change=1e-16
    )

    def closure():
        optimiser.zero_grad()
        loss = VariationalBound("learned").at(model, x, torch.full((8,), i), eps).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(model.spread.detach()) == pytest.approx(best, abs=1e-5)
    assert 0 < best < 1


def test_importance_sampled_knots_have_less_variance_and_the_same_mean() -> None:
    """E f = sum of the terms for any law; with p_i ~ sqrt(E L_i^2) the variance is the least."""
    model = gaussian(20)
    x = model.sample(1).expand(20000, 3)
    law = LossAwareKnots(20, history=200)
    assert torch.equal(law.shares(), torch.full((20,), 0.05, dtype=F64))
    g = torch.Generator().manual_seed(0)
    loss, uniform = VariationalBound("large", law=law), VariationalBound("large")
    warm = VariationalBound("large")
    index = torch.arange(20).repeat(200)
    eps = torch.randn(4000, 3, generator=g, dtype=F64)
    law.update(index, warm.at(model, x[:4000], index, eps))
    assert float(law.shares().sum()) == pytest.approx(1)
    assert float(law.shares().max()) > 3 * float(law.shares().min())
    flat, aware = uniform(model, x, generator=g), loss(model, x, generator=g)
    error = math.sqrt((float(flat.var()) + float(aware.var())) / len(x))
    assert abs(float(flat.mean() - aware.mean())) < 5.5 * error
    assert float(aware.var()) < 0.5 * float(flat.var())


def test_the_law_keeps_the_last_losses_and_forgets_the_first() -> None:
    law = LossAwareKnots(2, history=2, uniform=0.5)
    law.update(torch.tensor([0, 0, 0, 1]), torch.tensor([100.0, 3.0, 4.0, 1.0]))
    assert torch.equal(law.shares(), torch.full((2,), 0.5, dtype=F64))  # knot 1 has one loss only
    law.update(torch.tensor([1]), torch.tensor([math.nan]))
    assert int(law.seen[1]) == 1
    law.update(torch.tensor([1]), torch.tensor([1.0]))
    first, second = math.sqrt((9 + 16) / 2), 1.0
    expected = 0.5 * first / (first + second) + 0.25
    assert float(law.shares()[0]) == pytest.approx(expected)
    other = LossAwareKnots(2, history=2, uniform=0.5)
    other.load_state_dict(law.state_dict())
    assert torch.equal(other.shares(), law.shares())


def test_levels_are_trained_through_the_discretised_decoder() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=8, depth=1, outputs=2)
    model = ScoreNetwork(net, DiscreteVPSDE.linear(8, 0.01, 0.5), LearnedVariance())
    x = torch.tensor([[-1.0, 1.0], [0.0, 0.125]])
    loss = VariationalBound("learned", DiscretisedGaussian(17, (-1.0, 1.0)))
    terms = loss.at(model, x, torch.zeros(2, dtype=torch.long), torch.zeros(2, 2))
    assert bool((terms > 0).all())  # minus a log-probability
    terms.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_a_chain_of_4000_is_sampled_in_50_moves_with_its_own_betas() -> None:
    """Cosine schedule, learned variances: the transition's beta and beta-tilde, in log space."""
    sde = DiscreteVPSDE.cosine(4000)
    grid = Strided(50)
    levels = sde.levels(grid(sde))
    assert len(levels) == 51
    assert levels[-1].t == 0

    class Told(ScoreModel):
        """The variance that is exact for N(0, 0.3): the learned one a network would reach."""

        def __init__(self) -> None:
            super().__init__()
            self.sde, self.inner = sde, Gaussian(sde, torch.zeros(2).double(), 0.3)

        def predict(self, x, t, **condition):
            p = self.inner.predict(x, t)
            k = next(i for i, level in enumerate(levels) if level.t == t.t)
            spread = 0.0
            if levels[k + 1].sigma > 0:
                c0, _, small, large = posterior(t, levels[k + 1])
                left = 0.3 * t.sigma**2 / (t.alpha**2 * 0.3 + t.sigma**2)
                spread = math.log((small + c0**2 * left) / small) / math.log(large / small)
            assert -1e-9 <= spread <= 1 + 1e-9
            wide = torch.full_like(x, spread)
            return Prediction(sde, t, x, x0=p.x0, eps=p.eps, spread=wide)

    runs = {}
    for variance in ("learned", "small", "large"):
        sampler = Sampler(Ancestral(variance), grid)
        x = sampler.sample(Told(), (20000, 2), seed=0, dtype=F64)
        runs[variance] = float(x.var()) / 0.3
    # exact kernels: the output variance is right at any stride (six standard errors)
    last = levels[-2]
    shrunk = last.alpha**2 * 0.3 / (last.alpha**2 * 0.3 + last.sigma**2)
    assert runs["learned"] == pytest.approx(shrunk, abs=6 * math.sqrt(2 / 40000))
    assert runs["small"] < 0.9 < runs["learned"]
    assert runs["large"] > runs["learned"] + 0.03


def test_bad_input_is_refused() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 3, dtype=F64)
    with pytest.raises(ValueError, match="chain"):
        VariationalBound("small")(Gaussian(VPSDE(), torch.zeros(3), 1.0), x, generator=g)
    with pytest.raises(ValueError, match="spread"):
        VariationalBound("learned")(gaussian(), x, generator=g)
    with pytest.raises(ValueError, match="spread"):
        Hybrid()(gaussian(), x, generator=g)
    with pytest.raises(ValueError, match="variance"):
        VariationalBound("medium")
    with pytest.raises(ValueError, match="weight"):
        Hybrid(-1.0)
    with pytest.raises(ValueError, match="knots"):
        VariationalBound("small", law=LossAwareKnots(5))(gaussian(), x, generator=g)
    with pytest.raises(ValueError, match="uniform"):
        LossAwareKnots(5, uniform=0.0)
    with pytest.raises(TypeError, match="floating"):
        VariationalBound("small")(gaussian(), x.long(), generator=g)
    with pytest.raises(ValueError, match="eps"):
        VariationalBound("small").at(gaussian(), x, torch.zeros(2).long(), x[:1])
    with torch.random.fork_rng():
        plain = ScoreNetwork(MLP(event=(3,)), DiscreteVPSDE.cosine(10), Eps())
    with pytest.raises(ValueError, match="LearnedVariance"):
        Hybrid()(plain, x.float(), generator=g)
    assert GaussianDecoder(2.0).log_variance(0.0) == math.log(2.0)
