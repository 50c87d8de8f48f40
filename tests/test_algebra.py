"""`a * b`, `a / b`, `a ** e`, `a + b`: exact where a class holds the result, refused elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoregen.densities import Empirical, Gaussian, GaussianMixture
from scoregen.energies import Mixture, Potential, Product, Tempered, energy_of
from scoregen.grids import UniformLam
from scoregen.inverse import TMPD, LinearMeasurement, exact_posterior
from scoregen.mcmc import FeynmanKac
from scoregen.models import Eps, HalfLogSNR, ScoreNetwork
from scoregen.processes import EDMSDE, VPSDE, StaticSDE
from scoregen.sampling import Sampler

F64 = torch.float64
VP = VPSDE()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def slanted(seed: int, d: int = 3) -> Gaussian:
    root = normal(d, d, seed=seed)
    return Gaussian(
        VP, normal(d, seed=seed + 50), root @ root.mT / d + 0.2 * torch.eye(d, dtype=F64)
    )


def mixture(seed: int, full: bool, k: int = 3, d: int = 3) -> GaussianMixture:
    root = normal(k, d, d, seed=seed)
    covariances = root @ root.mT / d + 0.3 * torch.eye(d, dtype=F64)
    if not full:
        covariances = covariances.diagonal(dim1=-2, dim2=-1)
    return GaussianMixture(
        VP, normal(k, seed=seed + 1).exp(), normal(k, d, seed=seed + 2), covariances
    )


def difference(found: Any, parts: list[tuple[float, Any]]) -> Tensor:
    """log of the result less sum b_i log p_i: one constant if and only if it is their product."""
    x = 2 * normal(40, *found.event, seed=9)
    gap = found.log_prob(x) - sum(b * p.log_prob(x) for b, p in parts)
    return (gap - gap[0]).abs().max()


DIAGONAL = Gaussian(VP, normal(3, seed=7), torch.tensor([0.3, 1.0, 2.0], dtype=F64))


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (lambda: slanted(1) * slanted(2), [(1, slanted(1)), (1, slanted(2))]),
        (lambda: slanted(1) * DIAGONAL, [(1, slanted(1)), (1, DIAGONAL)]),
        (lambda: DIAGONAL * DIAGONAL, [(2, DIAGONAL)]),
        (lambda: DIAGONAL**0.4, [(0.4, DIAGONAL)]),
        (lambda: slanted(1) ** 3, [(3, slanted(1))]),
        (lambda: slanted(1) ** 3 / slanted(1), [(2, slanted(1))]),
        (lambda: slanted(1) ** -0.1 * slanted(1), [(0.9, slanted(1))]),
        (lambda: mixture(3, True) * slanted(1), [(1, mixture(3, True)), (1, slanted(1))]),
        (lambda: slanted(1) * mixture(3, False), [(1, mixture(3, False)), (1, slanted(1))]),
        (lambda: mixture(3, False) * DIAGONAL, [(1, mixture(3, False)), (1, DIAGONAL)]),
        (
            lambda: mixture(3, True) * mixture(4, False),
            [(1, mixture(3, True)), (1, mixture(4, False))],
        ),
        (lambda: mixture(4, False) ** 2, [(2, mixture(4, False))]),
    ],
)
def test_exact_products_are_the_product_of_the_densities(found: Any, parts: Any) -> None:
    result = found()
    assert isinstance(result, Gaussian | GaussianMixture)
    assert isinstance(result, Gaussian) == all(isinstance(p, Gaussian) for _, p in parts)
    assert difference(result, parts) < 1e-9
    assert result.sde == VP


def test_exact_products_are_normalised_and_noised() -> None:
    a = Gaussian(VP, torch.tensor([1.0], dtype=F64), 0.5)
    b = Gaussian(VP, torch.tensor([-0.5], dtype=F64), 1.0)
    c: Any = a * b
    assert (float(c.mean), float(c.variances)) == pytest.approx((0.5, 1 / 3))
    x = torch.linspace(-12, 12, 20_001, dtype=F64).unsqueeze(1)
    two: Any = mixture(4, False, d=1) * b
    for t in (0.0, 0.3):
        assert float(two.log_prob(x, t).exp().sum() * 0.0012) == pytest.approx(1.0, abs=1e-8)
    # the noised product, not the product of the noised laws
    t = 0.3
    level_by_level = energy_of(Product(a, b), x, t) + c.log_prob(x, t)
    assert float((level_by_level - level_by_level[0]).abs().max()) > 0.1
    # events of any shape keep it
    image = Gaussian(VP, torch.zeros(1, 4, 4), 1.0)
    assert (image * image).event == (1, 4, 4)
    assert (mixture(3, True) ** 2).event == (3,)


def test_a_time_free_density_takes_the_process_of_the_other() -> None:
    prior = mixture(3, True)
    likelihood = Gaussian(StaticSDE(), torch.zeros(3), 0.5)
    posterior: Any = prior * likelihood
    assert posterior.sde == VP
    assert difference(posterior, [(1, prior), (1, likelihood)]) < 1e-9


def test_products_without_a_class_are_products_at_every_level() -> None:
    prior, network = mixture(3, True), ScoreNetwork(lambda x, c: x, VP, Eps(), HalfLogSNR())
    potential = Potential(lambda x: x.pow(4).sum(1))
    cloud = Empirical(VP, normal(5, 3))
    for found, kinds in [
        (prior * potential, (1.0, 1.0)),
        (network * network, (1.0, 1.0)),
        (potential * network * prior, (1.0, 1.0, 1.0)),
        (network**2.5 * network**-1.5, (2.5, -1.5)),
        (network**2 / network, (2.0, -1.0)),
        (cloud * prior, (1.0, 1.0)),
        (prior / prior, (1.0, -1.0)),
    ]:
        assert isinstance(found, Product)
        assert found.weights == kinds
    tempered = prior**0.5
    assert isinstance(tempered, Tempered)
    assert tempered.temperature == 2.0
    assert isinstance(network**3, Tempered)
    assert network**1 is network
    x = normal(4, 3)
    torch.testing.assert_close(tempered.score(x, 0.3), 0.5 * prior.score(x, 0.3))
    # guidance in the notation of the papers is what the corrector takes
    guided = network**2.5 * network**-1.5
    assert Sampler(FeynmanKac(), UniformLam(3)).sample(guided, (4, 3), seed=0).shape == (4, 3)


def test_sums_are_mixtures_with_the_masses_that_were_given() -> None:
    a, b, c = mixture(3, True), DIAGONAL, slanted(1)
    x = normal(6, 3)
    for t in (0.0, 0.4):
        pa, pb, pc = (p.log_prob(x, t).exp() for p in (a, b, c))
        for found, want in [
            (a + b, (pa + pb) / 2),
            (0.3 * a + 0.7 * b, 0.3 * pa + 0.7 * pb),
            (a + b + c, (pa + pb + pc) / 3),
            (a + (b + c), (pa + pb + pc) / 3),
            (0.5 * (a + b) + 3 * c, (0.5 * pa + 0.5 * pb + 3 * pc) / 4),
            (b / 4 + c, (pb / 4 + pc) / 1.25),
        ]:
            assert isinstance(found, GaussianMixture)
            torch.testing.assert_close(found.log_prob(x, t).exp(), want)
    assert a.mass == 1.0
    assert (2 * a).log_weights is a.log_weights


def test_sums_of_other_densities_keep_their_models() -> None:
    cloud = Empirical(VP, normal(5, 3))
    found = 0.25 * cloud + 0.75 * DIAGONAL + slanted(1)
    assert isinstance(found, Mixture)
    x, t = normal(6, 3), 0.4
    want = 0.25 * cloud.log_prob(x, t).exp() + 0.75 * DIAGONAL.log_prob(x, t).exp()
    want = (want + slanted(1).log_prob(x, t).exp()) / 2
    torch.testing.assert_close(energy_of(found, x, t).neg().exp(), want)
    # a normaliser that was stated is kept
    shifted = Potential(lambda x: x.square().sum(1) / 2 + 5)
    log_z = 1.5 * math.log(2 * math.pi) - 5
    stated = Mixture(shifted, Gaussian(StaticSDE(), torch.zeros(3), 2.0), log_z=(log_z, 0.0))
    both = stated + Gaussian(StaticSDE(), torch.zeros(3), 1.0)
    p = Gaussian(StaticSDE(), torch.zeros(3, dtype=F64), 1.0).log_prob(x).exp()
    q = Gaussian(StaticSDE(), torch.zeros(3, dtype=F64), 2.0).log_prob(x).exp()
    torch.testing.assert_close(
        energy_of(both, x).neg().exp(), (0.5 * p + 0.5 * q + p) / 2, rtol=1e-6, atol=0
    )


def test_what_has_no_meaning_is_refused_in_words() -> None:
    network = ScoreNetwork(lambda x, c: x, VP, Eps(), HalfLogSNR())
    a = slanted(1)
    with pytest.raises(TypeError, match="does not know its normaliser"):
        a + network
    with pytest.raises(TypeError, match="does not know its normaliser"):
        Potential(lambda x: x.sum(1)) + a
    with pytest.raises(ValueError, match="share one process"):
        a * Gaussian(EDMSDE(), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="shape of a sample"):
        a * Gaussian(VP, torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="no density to multiply"):
        a * Gaussian(VP, torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="must not be 0"):
        a**0
    for exponent in (math.nan, math.inf):
        with pytest.raises(ValueError, match="exponent"):
            a**exponent
    for factor in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="factor"):
            factor * a
    for other in ("b", None, torch.ones(3), [a], True):
        with pytest.raises(TypeError):
            a * other
        with pytest.raises(TypeError):
            a + other
    with pytest.raises(TypeError):
        a ** torch.ones(2)


# prior * measurement


@pytest.mark.parametrize("full", [True, False])
def test_posteriors_of_mixtures_are_prior_times_likelihood(full: bool) -> None:
    prior = mixture(3, full)
    seen = LinearMeasurement(normal(2, 3, seed=5), torch.tensor([0.7, -0.2]), 0.4)
    posterior = prior * seen
    assert isinstance(posterior, GaussianMixture)
    x = normal(40, 3, seed=9)
    gap = posterior.log_prob(x) - prior.log_prob(x) - seen.log_prob(x)
    torch.testing.assert_close(gap, gap[:1].expand(40), rtol=0, atol=1e-10)


def test_posterior_of_the_worked_example() -> None:
    """Prior .3 N(-1.5, .1) + .7 N(1, .2), y = 0 with variance .5."""
    prior = GaussianMixture(
        VP, torch.tensor([0.3, 0.7]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.1, 0.2])
    )
    seen = LinearMeasurement(torch.ones(1, 1), torch.zeros(1), math.sqrt(0.5))
    posterior: Any = prior * seen
    assert posterior.log_weights.exp().tolist() == pytest.approx([0.1266, 0.8734], abs=5e-5)
    assert posterior.means.flatten().tolist() == pytest.approx([-1.25, 0.7143], abs=5e-5)
    w, m, v = posterior.log_weights.exp(), posterior.means[:, 0], posterior.variances[:, 0]
    mean = float((w * m).sum())
    assert mean == pytest.approx(0.4655, abs=5e-5)
    assert float((w * (v + m**2)).sum() - mean**2) ** 0.5 == pytest.approx(0.7497, abs=5e-5)
    # E[x | y] = y + G grad log p(y) with p the law of y
    law: Any = GaussianMixture(
        StaticSDE(),
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.5], [1.0]]),
        torch.tensor([0.6, 0.7]),
    )
    assert 0.5 * float(law.score(torch.zeros(1, 1, dtype=F64), 0.0)) == pytest.approx(mean)


def test_the_posterior_noised_is_prior_score_plus_likelihood_score() -> None:
    """grad log p_t(x | y) = prior score + grad log sum_k r_k(x_t) N(y; A E_k, A Cov_k A' + G)."""
    prior, t = mixture(3, True), VP.level(0.3)
    seen = LinearMeasurement(normal(2, 3, seed=5), torch.tensor([0.7, -0.2]), 0.4)
    posterior = prior * seen
    x = normal(6, 3, seed=8).requires_grad_()
    s = prior.vectors @ torch.diag_embed(prior.variances) @ prior.vectors.mT  # type: ignore[union-attr, operator]
    c = t.alpha**2 * s + t.sigma**2 * torch.eye(3, dtype=F64)
    gain = t.alpha * s @ torch.linalg.inv(c)
    means = prior.means + ((x.unsqueeze(1) - t.alpha * prior.means).unsqueeze(2) @ gain.mT).squeeze(
        2
    )
    spread = seen.matrix @ (s - t.alpha * gain @ s) @ seen.matrix.mT + 0.16 * torch.eye(
        2, dtype=F64
    )
    law = torch.distributions.MultivariateNormal(means @ seen.matrix.mT, spread)
    joint = prior.log_joint(x, t).log_softmax(1) + law.log_prob(seen.y)
    (slope,) = torch.autograd.grad(joint.logsumexp(1).sum(), x)
    torch.testing.assert_close(
        posterior.score(x.detach(), 0.3), prior.score(x.detach(), 0.3) + slope
    )


def test_posterior_of_a_gaussian_known_exactly_in_part() -> None:
    seen = LinearMeasurement(torch.eye(3)[:1], torch.tensor([0.7]), 0.0)
    found: Any = slanted(1) * seen
    assert isinstance(found, Gaussian)
    assert float(found.mean[0]) == pytest.approx(0.7)
    # Tweedie moment projection is exact for Gaussians: the same score
    noisy = LinearMeasurement(torch.eye(3)[:1], torch.tensor([0.7]), 0.3)
    x = normal(5, 3)
    torch.testing.assert_close(
        exact_posterior(slanted(1), noisy).score(x, 0.4), TMPD(slanted(1), noisy).score(x, 0.4)
    )


def test_posteriors_that_are_not_known_are_refused() -> None:
    seen = LinearMeasurement(torch.eye(3)[:1], torch.tensor([0.7]), 0.0)
    with pytest.raises(TypeError, match="TwistedSMC"):
        ScoreNetwork(lambda x, c: x, VP, Eps(), HalfLogSNR()) * seen
    with pytest.raises(ValueError, match="without noise"):
        mixture(3, True) * seen
    with pytest.raises(ValueError, match="one posterior each"):
        slanted(1) * LinearMeasurement(torch.eye(3)[:1], torch.zeros(4, 1), 0.1)
    with pytest.raises(TypeError):
        3.0 * seen
