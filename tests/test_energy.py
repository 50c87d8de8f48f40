"""Energies, compositions, and the way between a score and an energy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import (
    EnergyModel,
    EnergyNetwork,
    GeometricPath,
    Mixture,
    Negated,
    Potential,
    Product,
    ReconstructionEnergy,
    Tempered,
    check_energy_sign,
    curl,
    energy_from_score,
    energy_of,
    line_integral,
)
from scoregen.models import Counted, Eps, Prediction, ScoreModel, ScoreNetwork
from scoregen.networks.mlp import MLP
from scoregen.objectives import DenoisingScoreMatching
from scoregen.processes import EDMSDE, VPSDE, Level, StaticSDE

F64 = torch.float64
STATIC, VP = StaticSDE(), VPSDE()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(event: tuple[int, ...] = (2,), **options: Any) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(event, hidden=16, depth=1, **options).double()


def slanted(sde: Any) -> GaussianMixture:
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.4]]])
    means = torch.tensor([[-1.5, 0.2], [0.5, -1.2]])
    return GaussianMixture(sde, torch.tensor([0.3, 0.7]), means, covariances)


class ScoreOnly(ScoreModel):
    """Hides the density of a model, and counts as a network that has only a score."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model, self.sde = model, model.sde

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=self.model.predict(x, t).score)


class Field(ScoreModel):
    """score = A x, a gradient only if A is symmetric."""

    sde = STATIC

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return Prediction(self.sde, t, x, score=x @ self.matrix.mT)


def cubic(x: Tensor) -> Tensor:
    return (x.pow(4) / 4 + x.roll(1, -1) * x).flatten(1).sum(1)


@pytest.mark.parametrize("event", [(1,), (3,), (1, 4, 4)])
def test_score_is_minus_the_gradient(event: tuple[int, ...]) -> None:
    x = normal(5, *event)
    with torch.no_grad():
        said = Potential(cubic)(x, 0.0)
        h = 1e-5
        for i in range(3):
            d = torch.zeros_like(x).flatten(1)
            d[:, i % d.shape[1]] = h
            d = d.reshape(x.shape)
            slope = (cubic(x + d) - cubic(x - d)) / (2 * h)
            mine = -said.score.flatten(1)[:, i % d[0].numel()]
            torch.testing.assert_close(mine, slope, rtol=1e-8, atol=1e-8)
    assert not said.score.requires_grad
    torch.testing.assert_close(said.energy, cubic(x))


def test_gradients_of_the_score_reach_the_parameters() -> None:
    model = EnergyNetwork(ReconstructionEnergy(mlp()), VP)
    x = normal(3, 2)
    loss = model(x, 0.5).score.square().sum()
    loss.backward()
    found = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters()]
    assert sum(found) >= len(found) - 2  # the clock's last layers may be silent


def test_score_passes_jvp_and_vmap() -> None:
    model = Potential(lambda x: x.pow(4).flatten(1).sum(1) / 4)
    level = STATIC.level(0.0)
    x, v = normal(3, 2), normal(3, 2, seed=1)
    score, pushed = torch.func.jvp(lambda y: model.predict(y, level).score, (x,), (v,))
    torch.testing.assert_close(score, -x.pow(3))
    torch.testing.assert_close(pushed, -3 * x.square() * v)
    each = torch.func.vmap(lambda row: model.predict(row.unsqueeze(0), level).score[0])(x)
    torch.testing.assert_close(each, -x.pow(3))


def test_score_twice_differentiable_through_autograd() -> None:
    x = normal(3, 2).requires_grad_()
    score = Potential(lambda y: y.pow(4).sum(1) / 4)(x, 0.0).score
    (second,) = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(second, -3 * x.detach().square())


def test_only_x_itself_is_differentiated() -> None:
    x = normal(3, 2).requires_grad_()
    friend = 2 * x  # made from x, but a constant of the energy
    score = Potential(lambda y: ((y - friend) ** 2).sum(1) / 2)(x, 0.0).score
    torch.testing.assert_close(score.detach(), x.detach())


@pytest.mark.parametrize(
    ("potential", "error", "word"),
    [
        (lambda x: x.square(), ValueError, "one number per sample"),
        (lambda x: x.square().sum(1, keepdim=True), ValueError, "one number per sample"),
        (lambda x: x.square().sum(), ValueError, "one number per sample"),
        (lambda x: x.detach().square().sum(1), ValueError, "does not depend on x"),
        (lambda x: torch.zeros(len(x), requires_grad=True), ValueError, "does not depend on x"),
        (lambda x: 3.0, TypeError, "must be a tensor"),
    ],
)
def test_bad_energies_are_refused(potential: Any, error: type, word: str) -> None:
    with pytest.raises(error, match=word):
        Potential(potential)(torch.ones(3, 2), 0.0)


def test_inference_mode_is_named() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        Potential(cubic)(torch.ones(3, 2), 0.0)
    with torch.inference_mode():
        x = torch.ones(3, 2)
    assert torch.isfinite(Potential(cubic)(x, 0.0).score).all()


def test_score_where_an_energy_is_needed() -> None:
    network = ScoreNetwork(mlp(), VP, Eps())
    with pytest.raises(TypeError, match="energy_from_score"):
        energy_of(network, normal(2, 2), 0.5)
    with pytest.raises(TypeError, match="energy_from_score"):
        energy_of(Product(network, network), normal(2, 2), 0.5)
    with pytest.raises(TypeError, match="energy_from_score"):
        Mixture(network, network)(normal(2, 2), 0.5)
    with pytest.raises(TypeError, match="Potential"):
        Product(cubic)  # type: ignore[arg-type]


def test_energy_of_a_bound_condition() -> None:
    model = EnergyNetwork(ReconstructionEnergy(mlp(classes=3)), VP)
    x, label = normal(4, 2), torch.tensor([0, 1, 2, 0])
    bound = model.given(label=label)
    torch.testing.assert_close(energy_of(bound, x, 0.5), energy_of(model, x, 0.5, label=label))
    other = energy_of(model, x, 0.5, label=label.flip(0) * 0 + 2)
    assert not torch.allclose(energy_of(bound, x, 0.5), other)
    with pytest.raises(TypeError):
        model(x, 0.5, colour=label)


def test_row_alone_is_the_same() -> None:
    model = Potential(cubic)
    x = normal(7, 4)
    torch.testing.assert_close(model.score(x, 0.0)[3:4], model.score(x[3:4], 0.0), rtol=0, atol=0)


def test_energies_are_counted_at_the_leaves() -> None:
    model = Product(Potential(cubic), Gaussian(VP, torch.zeros(4), 1.0))
    with Counted(model) as count:
        model(normal(5, 4), 0.5)
    assert count.rows == 10


# Compositions against closed forms


def gauss(sde: Any, mean: float, variance: float) -> Gaussian:
    return Gaussian(sde, torch.full((1,), mean, dtype=F64), variance)


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_product_of_gaussians(t: float) -> None:
    a, b = gauss(VP, -1.0, 1.0), gauss(VP, 1.0, 0.25)
    level = VP.level(t)
    va, vb = (level.alpha**2 * v + level.sigma**2 for v in (1.0, 0.25))
    mean = level.alpha * (1 / vb - 1 / va) / (1 / va + 1 / vb)
    exact = gauss(STATIC, mean, 1 / (1 / va + 1 / vb))
    product = Product(a, b)
    x = normal(9, 1)
    torch.testing.assert_close(product.score(x, t), exact.score(x, 0.0))
    change = energy_of(product, x, t) - energy_of(exact, x)
    # the normaliser of a product: N(m1; m2, S1 + S2)
    log_z = gauss(STATIC, level.alpha, va + vb).log_prob(torch.full((1, 1), -level.alpha).double())
    torch.testing.assert_close(change, -log_z.expand(9))
    torch.testing.assert_close(
        product.energy_difference(x, x.flip(0), t), exact.energy_difference(x, x.flip(0), 0.0)
    )


def test_weights_temper_and_negate() -> None:
    a, b = slanted(VP), Gaussian(VP, torch.zeros(2), 1.0)
    x = normal(6, 2)
    quotient = Product(Tempered(a, 2.0), Negated(b), Negated(b), weights=[3.0, 0.5, 1.5])
    wanted = 1.5 * a.score(x, 0.4) - 2 * b.score(x, 0.4)
    torch.testing.assert_close(quotient.score(x, 0.4), wanted)
    energies = 1.5 * energy_of(a, x, 0.4) - 2 * energy_of(b, x, 0.4)
    torch.testing.assert_close(energy_of(quotient, x, 0.4), energies)
    with pytest.raises(ValueError, match="weight"):
        Product(a, b, weights=[1.0])
    with pytest.raises(ValueError, match="one process"):
        Product(a, slanted(EDMSDE()))


def test_potential_joins_at_every_level() -> None:
    prior = slanted(VP)
    product = Product(prior, Potential(cubic), Gaussian(STATIC, torch.ones(2), 0.5))
    x = normal(6, 2)
    for t in (0.1, 0.9):
        wanted = prior.score(x, t) + Potential(cubic).score(x, 0.0) - (x - 1) / 0.5
        torch.testing.assert_close(product.score(x, t).detach(), wanted.detach())


def test_mixture_of_models_is_the_mixture() -> None:
    parts = [Gaussian(VP, torch.full((2,), m), v) for m, v in ((-1.0, 0.3), (0.5, 1.2))]
    shifted = [Tempered(p, 1.0) for p in parts]
    exact = GaussianMixture(
        VP,
        torch.tensor([1.0, 3.0]),
        torch.tensor([[-1.0, -1.0], [0.5, 0.5]]),
        torch.tensor([0.3, 1.2]),
    )
    x = normal(6, 2)
    for models in (parts, shifted):
        mine = Mixture(*models, weights=[1.0, 3.0])
        torch.testing.assert_close(mine.score(x, 0.2), exact.score(x, 0.2))
        torch.testing.assert_close(energy_of(mine, x, 0.2), -exact.log_prob(x, 0.2))
    # unnormalised energies need their log Z: here E = x^2 / 2v, without its constant
    free = [Potential(lambda y, v=v: y.square().sum(1) / (2 * v)) for v in (0.3, 1.2)]
    logs = [math.log(2 * math.pi * v) for v in (0.3, 1.2)]
    centred = GaussianMixture(STATIC, torch.ones(2), torch.zeros(2, 2), torch.tensor([0.3, 1.2]))
    mine = Mixture(*free, log_z=logs)
    torch.testing.assert_close(mine.score(x, 0.0).detach(), centred.score(x, 0.0))
    torch.testing.assert_close(energy_of(mine, x), -centred.log_prob(x))


def test_bridge_is_linear_in_the_energies() -> None:
    path = GeometricPath(gauss(STATIC, 0.0, 2.0), Potential(cubic))
    x = normal(5, 1)
    wanted = 0.25 * energy_of(path.models[0], x) + 0.75 * cubic(x)  # type: ignore[arg-type]
    torch.testing.assert_close(energy_of(path, x, 0.25), wanted)
    torch.testing.assert_close(energy_of(path, x, 0.0), cubic(x))
    with pytest.raises(ValueError, match="StaticSDE"):
        GeometricPath(gauss(VP, 0.0, 1.0), Potential(cubic))


# From scores to energies


def test_line_integral_on_a_mixture() -> None:
    model = slanted(EDMSDE())
    hidden = ScoreOnly(model)
    x, y = 1.5 * normal(200, 2), 1.5 * normal(200, 2, seed=1)
    for t in (0.05, 0.5, 5.0):
        exact = model.energy_difference(x, y, t)
        found = line_integral(hidden, x, y, t, nodes=32, pieces=4)
        error = (found.difference - exact).abs()
        assert error.max() < 1e-8
        assert found.error.max() < 1e-4  # the default tolerance
    # few nodes: wrong, and the estimate says so, row by row
    exact = model.energy_difference(x, y, 0.05)
    seen = 0
    for nodes in (4, 8, 16, 32):
        rough = line_integral(hidden, x, y, 0.05, nodes=nodes, tolerance=math.inf)
        error = (rough.difference - exact).abs()
        trusted = rough.error < 1e-6
        seen += int(trusted.sum())
        assert not trusted.any() or error[trusted].max() < 1e-6
        assert (rough.error > error).double().mean() > 0.9
        assert nodes > 4 or error.max() > 1e-2
    assert seen > 20
    with pytest.raises(ValueError, match="even"):
        line_integral(hidden, x, y, 0.5, nodes=5)


def test_one_node_is_exact_for_a_linear_score() -> None:
    model = Gaussian(EDMSDE(), torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 2.0]))
    x, y = normal(20, 2), normal(20, 2, seed=1)
    exact = model.energy_difference(x, y, 0.7)
    torch.testing.assert_close(
        ScoreOnly(model).energy_difference(x, y, 0.7, nodes=1), exact, rtol=1e-12, atol=1e-12
    )


def test_closed_loop_sees_rotation() -> None:
    matrix = torch.tensor([[-1.0, 0.4], [-0.2, -2.0]], dtype=F64)
    field = Field(matrix)
    a, b, c = normal(3, 1, 2)
    ring = [(a, b), (b, c), (c, a)]
    loop = sum(field.energy_difference(p, q, 0.0, nodes=2) for p, q in ring)
    # Stokes: the loop of the score is the curl times the signed area
    area = ((b - a)[0, 0] * (c - a)[0, 1] - (b - a)[0, 1] * (c - a)[0, 0]) / 2
    torch.testing.assert_close(loop[0], -(matrix[1, 0] - matrix[0, 1]) * area)


def test_curl_measures_the_antisymmetric_part() -> None:
    g = torch.Generator().manual_seed(0)
    x = normal(50, 2)
    assert curl(slanted(EDMSDE()), x, 0.3, generator=g).relative.max() < 1e-12
    matrix = torch.tensor([[-1.0, 0.9], [-0.3, -2.0]], dtype=F64)
    found = curl(Field(matrix), x, 0.0, generator=g, probes=4000)
    skew = (matrix - matrix.mT) / 2
    # standard errors of the two root mean squares are about 1.5 %
    torch.testing.assert_close(found.skew.mean(), skew.norm(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.size.mean(), matrix.norm(), rtol=0.03, atol=0)
    turned = curl(Field(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()), x, 0.0, generator=g)
    torch.testing.assert_close(turned.relative, torch.ones(50, dtype=F64))
    energy = curl(Potential(cubic), x, 0.0, generator=g)
    assert energy.relative.max() < 1e-12


def test_energy_from_score() -> None:
    model = slanted(EDMSDE())
    frozen = energy_from_score(ScoreOnly(model), 0.5, nodes=40)
    x = normal(20, 2)
    exact = model.log_prob(torch.zeros(1, 2, dtype=F64), 0.5) - model.log_prob(x, 0.5)
    torch.testing.assert_close(energy_of(frozen, x), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(frozen.score(x, 0.0), model.score(x, 0.5))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy_of(frozen, leaf).sum(), leaf)
    torch.testing.assert_close(-slope, model.score(x, 0.5), rtol=1e-5, atol=1e-5)
    assert isinstance(frozen, EnergyModel)
    check_energy_sign(frozen, x)
    with pytest.raises(ValueError, match="no noise"):
        energy_from_score(model, 0.0)
    anchored = energy_from_score(model, 0.5, anchor=torch.ones(2, dtype=F64))
    assert energy_of(anchored, torch.ones(1, 2, dtype=F64)).abs() < 1e-12


def test_wrong_signs_are_refused() -> None:
    class Inverted(EnergyModel):
        sde = STATIC

        def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
            return x.square().sum(1) / 2

        def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
            return Prediction(self.sde, t, x, score=x)

    x = normal(10, 2)
    with pytest.raises(ValueError, match="wrong sign"):
        check_energy_sign(Inverted(), x)
    upside_down = Potential(lambda y: -y.square().sum(1) / 2)
    check_energy_sign(upside_down, x)  # consistent, though not what the data say:
    with pytest.raises(ValueError, match="upside down"):
        check_energy_sign(upside_down, x, samples=normal(500, 2))
    check_energy_sign(slanted(EDMSDE()), x.float(), 0.4)


def test_denoising_trains_an_energy_network() -> None:
    class Well(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, x: Tensor, clock: Tensor) -> Tensor:
            # half the log-SNR is told: p_t of N(m, 1) on VP is N(alpha m, 1)
            alpha = torch.sigmoid(2 * clock).sqrt().unsqueeze(1)
            return (x - alpha * self.mean).square().sum(1) / 2

    net = Well()
    model = EnergyNetwork(net, VP)
    data = 0.7 + normal(400, 1)
    objective = DenoisingScoreMatching()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        objective(model, data, generator=torch.Generator().manual_seed(step)).mean().backward()
        optimiser.step()
    # the data's own mean has a standard error of 0.05; the fit follows it within 0.1
    assert abs(float(net.mean.detach()) - float(data.mean())) < 0.1


def test_a_score_with_curl_says_so_and_offers_the_pair_that_agrees() -> None:
    matrix = torch.tensor([[-1.0, 0.4], [-0.4, -2.0]], dtype=F64)
    x = normal(40, 2)
    with pytest.warns(UserWarning, match=r"% of this score's Jacobian is antisymmetric"):
        frozen = energy_from_score(Field(matrix), 0.0, points=x)
    skew, size = 0.4 * math.sqrt(2), float(matrix.norm())
    # eight pairs of probes: the share is known to about a half
    assert frozen.curl is not None
    assert 0.3 * skew / size < frozen.curl < 2 * skew / size
    pair = frozen.consistent()
    # the line integral from the origin keeps the symmetric part only
    symmetric = (matrix + matrix.mT) / 2
    torch.testing.assert_close(pair.score(x, 0.0).detach(), x @ symmetric)
    torch.testing.assert_close(energy_of(pair, x), -(x @ symmetric * x).sum(1) / 2)
    assert not torch.allclose(frozen.score(x, 0.0), x @ symmetric)
    gradient = energy_from_score(ScoreOnly(slanted(EDMSDE())), 0.5, points=x, nodes=32)
    assert gradient.curl is not None
    assert gradient.curl < 1e-9
    exact = slanted(EDMSDE()).score(x, 0.5)
    torch.testing.assert_close(
        gradient.consistent().score(x, 0.0).detach(), exact, atol=1e-4, rtol=0
    )
