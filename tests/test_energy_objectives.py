"""Objectives that see the weights of modes: no gradient at the exact energy, and only there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoregen.densities import Gaussian, GaussianMixture
from scoregen.energies import DenoiserEnergy, EnergyModel, EnergyNetwork, Potential, energy_of
from scoregen.grids import Times, UniformLam
from scoregen.models import Eps, HalfLogSNR, ScoreNetwork
from scoregen.networks import MLP
from scoregen.objectives import (
    DenoisingScoreMatching,
    DiffusionRecovery,
    NoiseClassification,
    UniformLaw,
)
from scoregen.processes import EDMSDE, VPSDE, Level

F64 = torch.float64
VP = VPSDE()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TwoModes(EnergyModel):
    """-log of w N(-m, v) + (1 - w) N(m, v) noised, plus an offset that grows with lam."""

    def __init__(self, share: float, slope: float = 0.0, m: float = 2.0, v: float = 0.04) -> None:
        super().__init__()
        self.sde = VP
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share)), dtype=F64))
        self.slope = nn.Parameter(torch.tensor(slope, dtype=F64))
        self.width = nn.Parameter(torch.tensor(v, dtype=F64))
        self.m = m

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        alpha, sigma, lam = (torch.as_tensor(c, dtype=F64) for c in (t.alpha, t.sigma, t.lam))
        c = alpha**2 * self.width + sigma**2
        logs = [
            nn.functional.logsigmoid(sign * self.logit)
            - (x + sign * alpha * self.m).square() / (2 * c)
            for sign in (1.0, -1.0)
        ]
        joint = torch.cat(logs, 1) - 0.5 * (2 * math.pi * c).log().reshape(-1, 1)
        return self.slope * lam.reshape(-1) - joint.logsumexp(1)


def nodes(count: int = 40) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points and weights of N(0, 1)."""
    z, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(z, dtype=F64), torch.tensor(w / w.sum(), dtype=F64)


def classified(model: EnergyModel, share: float = 0.3) -> list[float]:
    """Gradient of the expected classification loss over .3 N(-2, .04) + .7 N(2, .04), exactly."""
    data = GaussianMixture(
        VP,
        torch.tensor([share, 1 - share], dtype=F64),
        torch.tensor([[-2.0], [2.0]]),
        torch.full((2,), 0.04, dtype=F64),
    )
    times = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=F64)
    x = torch.linspace(-9, 9, 9001, dtype=F64).unsqueeze(1)
    loss = torch.zeros((), dtype=F64)
    for i, t in enumerate(times.tolist()):
        p = data.log_prob(x, t).exp() * 0.002
        which, still = torch.full((len(x),), i), torch.zeros_like(x)
        x0 = x / VP.level(t).alpha  # without noise x_t is any point of the grid
        found = NoiseClassification(denoising=None).at(model, x0, times, which, still)
        loss = loss + (p * found).sum() / len(times)
    return [float(g) for g in torch.autograd.grad(loss, list(model.parameters()))]


def test_classification_is_stationary_at_the_exact_energy_alone() -> None:
    """sum_i p_i (1[i = j] - r_j) = 0 pointwise; by quadrature over modes, data and noise."""
    assert classified(TwoModes(0.3)) == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)
    logit, _slope, _width = classified(TwoModes(0.5))
    assert logit > 0.01  # the share of the left mode must fall
    assert abs(classified(TwoModes(0.3, slope=0.2))[1]) > 0.01  # log Z between levels
    assert abs(classified(TwoModes(0.3, v=0.06))[2]) > 0.01
    # a function of x alone cancels: the classifier cannot see it
    shifted = TwoModes(0.3)
    bare = shifted.energy
    shifted.energy = lambda x, t, **c: bare(x, t, **c) + x.pow(3).sum(1)  # type: ignore[method-assign]
    assert classified(shifted) == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)


def test_score_matching_is_blind_to_the_weights_of_modes_apart() -> None:
    """At a level where the modes do not meet its gradient in the weight is zero for any weight."""
    z, w = nodes(60)
    rows = torch.cartesian_prod(torch.tensor([-1.0, 1.0], dtype=F64), z, z)
    weight = torch.tensor([0.3, 0.7], dtype=F64).reshape(2, 1, 1) * torch.outer(w, w)
    x0, eps = (2 * rows[:, 0] + 0.2 * rows[:, 1]).unsqueeze(1), rows[:, 2:]

    def slope(share: float, t: float) -> float:
        model = TwoModes(share)
        time = torch.full((len(rows),), t, dtype=F64)
        loss = (weight.flatten() * DenoisingScoreMatching().at(model, x0, time, eps)).sum()
        return float(torch.autograd.grad(loss, model.logit)[0])

    for share in (0.1, 0.5, 0.9):
        assert abs(slope(share, 0.05)) < 1e-9
    assert abs(slope(0.5, 0.4)) > 1e-3
    assert abs(slope(0.3, 0.4)) < 1e-7


def test_classification_of_one_energy_for_all_levels_is_log_n() -> None:
    model = Potential(lambda x: x.square().sum(1))
    model.sde = VP  # type: ignore[assignment]
    loss = NoiseClassification(5, denoising=None, weight=2.0)
    found = loss(model, torch.zeros(7, 3), generator=generator())
    torch.testing.assert_close(found.detach(), torch.full((7,), 2 * math.log(5)))
    together = NoiseClassification(5, denoising=lambda m, x, *, generator: torch.ones(len(x)))
    torch.testing.assert_close(
        together(model, torch.zeros(7, 3), generator=generator()).detach(),
        torch.full((7,), math.log(5) + 1),
    )


def test_classification_bad_inputs() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        NoiseClassification(1)
    with pytest.raises(ValueError, match="no levels to tell apart"):
        NoiseClassification()(
            Potential(lambda x: x.sum(1)), torch.zeros(2, 1), generator=generator()
        )
    network = ScoreNetwork(lambda x, c: x, VP, Eps(), HalfLogSNR())
    with pytest.raises(TypeError, match="has a score but no energy"):
        NoiseClassification()(network, torch.zeros(2, 1), generator=generator())


# Diffusion recovery likelihood


def recovered(model: EnergyModel, objective: DiffusionRecovery, calls: int = 40) -> list[float]:
    """z-scores of the mean gradient over calls of 4,000 samples of .3 N(-2, .04) + .7 N(2, .04)."""
    data = GaussianMixture(
        VP, torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [2.0]]), torch.full((2,), 0.04)
    )
    found = []
    for k in range(calls):
        x0 = data.sample(4000, generator=100 + k)
        loss = objective(model, x0, generator=generator(k)).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append([0.0 if g is None else float(g) for g in grads])
    table = torch.tensor(found, dtype=F64)
    error = table.std(0) / math.sqrt(calls)
    return [float(m / e) if e > 0 else 0.0 for m, e in zip(table.mean(0), error, strict=True)]


@pytest.mark.slow
def test_recovery_has_no_gradient_at_the_exact_energy() -> None:
    """From the data, an exact draw of the conditional, chains stay exact. Student's t with 39
    degrees: |t| > 8 has probability 1e-9."""
    objective = DiffusionRecovery(Times(0.8, 0.5, 0.3), moves=10, start="data")
    logit, _, width = recovered(TwoModes(0.3), objective)
    assert abs(logit) < 8
    assert abs(width) < 8
    logit, _, _ = recovered(TwoModes(0.8), objective)
    assert logit > 8  # the share of the left mode must fall
    assert abs(recovered(TwoModes(0.3, v=0.5), objective)[2]) > 8


def test_recovery_chains_reach_the_conditional() -> None:
    """Gaussian energy: x_s given x_t is N(m, V) in closed form, and so is the mean loss."""
    model = DenoiserEnergy(Root())
    t, s = VP.level(0.6), VP.level(0.45)
    objective = DiffusionRecovery(Times(t.t, s.t), moves=30, step=0.5)
    x0 = 3 * torch.randn(20_000, 1, generator=generator(3), dtype=F64)
    loss = objective(model, x0, generator=generator(4)).detach()
    # data of variance 9 under an energy of variance 1: E_s = x^2 / 2 on VP
    a = t.alpha / s.alpha
    v = t.sigma**2 - (a * s.sigma) ** 2
    real = s.alpha**2 * 9 + s.sigma**2
    width = 1 / (1 + a**2 / v)
    fake = width + (width * a / v) ** 2 * (a**2 * real + v)
    exact = (real - fake) / 2
    # five standard errors, and the chains' remaining bias
    assert float(loss.mean()) == pytest.approx(exact, abs=5 * float(loss.std()) / 141 + 0.01)
    assert exact > 0.4  # 0.2 less with the width of sigma_t^2 - sigma_s^2


class Root(ScoreNetwork):
    """eps = x / sqrt(C), whose half square is the energy of N(0, C); C = 1 on VP for v = 1."""

    def __init__(self, v: float = 1.0, sde: Any = VP) -> None:
        super().__init__(nn.Identity(), sde, Eps(), HalfLogSNR())
        self.v = v

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Any:
        c = t.alpha**2 * self.v + t.sigma**2
        root = c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)
        return Eps().decode(self.sde, t, x, x / root)


def test_recovery_bad_inputs() -> None:
    model = DenoiserEnergy(Root())
    for grid in (UniformLam(5), Times(0.2, 0.5), Times(0.5, 0.5)):
        with pytest.raises(ValueError, match="keep some noise"):
            DiffusionRecovery(grid)(model, torch.zeros(2, 1), generator=generator())
    with pytest.raises(ValueError, match="no noise to recover"):
        DiffusionRecovery(UniformLam(5))(
            Potential(lambda x: x.sum(1)), torch.zeros(2, 1), generator=generator()
        )
    with pytest.raises(ValueError, match="start"):
        DiffusionRecovery(UniformLam(5), start="prior")  # type: ignore[arg-type]


# The (x - D) form


@pytest.mark.parametrize("sde", [VP, EDMSDE()], ids=["VP", "EDM"])
def test_denoiser_energy_of_a_gaussian(sde: Any) -> None:
    """D of the exact energy is x - sigma x / sqrt(C), and the score is that of the Gaussian."""
    exact = Gaussian(sde, torch.zeros(3, dtype=F64), 0.4)
    model = DenoiserEnergy(Root(0.4, sde))
    x = torch.randn(5, 3, generator=generator(), dtype=F64)
    for t in (0.1, 0.7):
        torch.testing.assert_close(model.score(x, t), exact.score(x, t))
        gap = energy_of(model, x, t) - energy_of(exact, x, t)
        torch.testing.assert_close(gap, gap[:1].expand(5))
    # E is half the squared residual over sigma^2, whatever the network predicts
    p, level = exact(x, 0.5), sde.level(0.5)
    want = (x - level.alpha * p.x0).square().sum(1) / (2 * level.sigma**2)
    torch.testing.assert_close(energy_of(DenoiserEnergy(exact), x, 0.5), want)


def test_denoising_of_the_exact_energy_is_stationary() -> None:
    """The optimal energy of Gaussian data, over its scale: slope zero there and nowhere near."""
    z, w = nodes(5)
    rows, weight = torch.cartesian_prod(z, z), torch.outer(w, w).flatten()
    for scale, still in ((1.0, True), (1.1, False)):
        gain = torch.tensor(scale, dtype=F64, requires_grad=True)

        class Scaled(Root):
            def predict(self, x: Tensor, t: Level, **condition: Any) -> Any:
                p = super().predict(x, t)
                return Eps().decode(self.sde, t, x, gain * p.eps)  # noqa: B023

        loss = DenoisingScoreMatching(UniformLaw()).at(
            DenoiserEnergy(Scaled(0.3)),
            math.sqrt(0.3) * rows[:, :1],
            torch.full((len(rows),), 0.4, dtype=F64),
            rows[:, 1:],
        )
        (slope,) = torch.autograd.grad((weight * loss).sum(), gain)
        assert (abs(float(slope)) < 1e-12) == still


def test_denoiser_energy_takes_conditions_and_an_offset() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(event=(2,), hidden=8, classes=3)
        offset = nn.Linear(1, 1)
    network = ScoreNetwork(net, VP, Eps(), HalfLogSNR())
    lift = lambda lam: offset(lam.unsqueeze(1)).squeeze(1)  # noqa: E731
    plain, lifted = DenoiserEnergy(network), DenoiserEnergy(network, lift)
    x, label = torch.ones(4, 2), torch.tensor([0, 1, 2, 3])
    gap = energy_of(lifted, x, 0.3, label=label) - energy_of(plain, x, 0.3, label=label)
    want = lift(torch.full((1,), VP.level(0.3).lam)).expand(4)
    torch.testing.assert_close(gap, want)
    torch.testing.assert_close(lifted.score(x, 0.3, label=label), plain.score(x, 0.3, label=label))
    loss = NoiseClassification(3)(lifted, x, generator=generator(), label=label)
    loss.mean().backward()
    assert offset.weight.grad is not None
    assert float(offset.weight.grad.abs().sum()) > 0
    with pytest.raises(TypeError, match="guess"):
        plain(x, 0.3, guess=1)
    # another library's energy, without our attributes
    foreign = EnergyNetwork(lambda x, clock: x.pow(4).sum(1), VP)
    assert NoiseClassification(3)(foreign, x, generator=generator()).shape == (4,)
    assert DiffusionRecovery(UniformLam(3, stop=0.1), 2)(
        foreign, x, generator=generator()
    ).shape == (4,)
