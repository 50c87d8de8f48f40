"""Our solvers and energies behind the interfaces of other programs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from cases import F64, normal, tensor
from torch import Tensor

from scoregen import (
    DDIM,
    EDMSDE,
    VPSDE,
    Ancestral,
    DPMSolverPP,
    Gaussian,
    KarrasHeun,
    Potential,
    Sampler,
    SDEDPMSolverPP,
    Times,
    UniPC,
)
from scoregen.interop import as_distribution, as_k_diffusion, logdensity_fn, potential_fn
from scoregen.noise import ReplayNoise, SampleNoise

SIGMAS = [20.0, 7.0, 2.0, 0.6, 0.1, 0.02, 0.0]


def denoiser(x: Tensor, sigma: Tensor, mean: float = 0.3) -> Tensor:
    return mean + 0.25 / (0.25 + sigma.reshape(-1, 1) ** 2) * (x - mean)


SOLVERS = [DDIM(), DPMSolverPP(2), UniPC(2), KarrasHeun(), Ancestral("small"), SDEDPMSolverPP(2)]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_as_k_diffusion_is_the_same_sampler(solver: Any) -> None:
    x = 20 * normal(4, 2)
    exact = Gaussian(EDMSDE(0.01, 80.0), tensor(0.3, 0.3), 0.25)
    want = Sampler(solver, Times(*SIGMAS)).run(exact, x, noise=SampleNoise(7))
    sample = as_k_diffusion(solver, seed=7)
    got = sample(denoiser, x, tensor(*SIGMAS), disable=True)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    draws = [normal(4, 2, seed=50 + i) for i in range(9)]
    want = Sampler(solver, Times(*SIGMAS)).run(exact, x, noise=ReplayNoise(draws))
    rest = iter(draws)
    got = sample(denoiser, x, tensor(*SIGMAS), noise_sampler=lambda s, after: next(rest))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_as_k_diffusion_calls_back_and_passes_arguments_on() -> None:
    seen: list[dict[str, Any]] = []
    x = 20 * normal(2, 2)
    out = as_k_diffusion(DDIM())(denoiser, x, tensor(*SIGMAS), {"mean": 1.0}, seen.append)
    assert [info["i"] for info in seen] == list(range(6))
    assert [float(info["sigma"]) for info in seen] == SIGMAS[:-1]
    torch.testing.assert_close(seen[0]["x"], x)
    torch.testing.assert_close(seen[0]["denoised"], denoiser(x, tensor(20.0), mean=1.0))
    # Euler's method by hand
    y = x
    for sigma, after in itertools.pairwise(SIGMAS):
        d = (y - denoiser(y, tensor(sigma), mean=1.0)) / sigma
        y = y + (after - sigma) * d
    torch.testing.assert_close(out, y, rtol=1e-9, atol=1e-9)


def test_as_k_diffusion_refuses() -> None:
    with pytest.raises(TypeError, match="Solver"):
        as_k_diffusion("euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be at least 0"):
        as_k_diffusion(DDIM(), seed=-1)
    with pytest.raises(ValueError, match=r"sigmas\[1\] must lie in"):
        as_k_diffusion(DDIM())(denoiser, normal(1, 2), tensor(1.0, math.nan, 0.0))
    with pytest.raises(ValueError, match="times must lie in"):
        as_distribution(Gaussian(VPSDE(), tensor(0.0), 1.0), 2.0)
    with pytest.raises(ValueError, match="positive"):
        as_k_diffusion(DDIM())(denoiser, normal(1, 2), tensor(0.0, 0.0))
    with pytest.raises(ValueError, match="fall"):
        as_k_diffusion(Ancestral())(denoiser, normal(1, 2), tensor(1.0, 2.0, 0.0))


def test_as_distribution_is_the_marginal_law() -> None:
    sde = VPSDE()
    law = as_distribution(Gaussian(sde, tensor(0.3, -0.1), 0.25), 0.4)
    level = sde.level(0.4)
    std = (level.alpha**2 * 0.25 + level.sigma**2) ** 0.5
    plain = torch.distributions.Independent(
        torch.distributions.Normal(level.alpha * tensor(0.3, -0.1), std), 1
    )
    x = normal(3, 5, 2)
    torch.testing.assert_close(law.log_prob(x), plain.log_prob(x))
    assert law.log_prob(x).shape == (3, 5)
    assert law.event_shape == (2,)
    drawn = law.sample((2, 20000), generator=1)
    assert drawn.shape == (2, 20000, 2)
    # 40,000 draws: 6 standard errors of mean and variance, a false alarm below 1e-8
    error = 6 * std / 200
    torch.testing.assert_close(
        drawn.mean((0, 1)), level.alpha * tensor(0.3, -0.1), rtol=0, atol=error
    )
    torch.testing.assert_close(drawn.var((0, 1)), tensor(std**2, std**2), rtol=0.05, atol=0)
    assert torch.equal(law.sample((2,)), law.sample((2,)))
    with pytest.raises(TypeError, match="exact density"):
        as_distribution(Potential(lambda x: x.square().sum(1)))  # type: ignore[arg-type]


def test_potentials_of_one_event_transform() -> None:
    scale = tensor(1.0, 4.0, 9.0)
    quadratic = Potential(lambda x: (x.square() / scale).sum(1) / 2)
    energy, log_density = potential_fn(quadratic), logdensity_fn(quadratic)
    x = normal(6, 3)
    torch.testing.assert_close(energy(x[0]), (x[0] ** 2 / scale).sum() / 2)
    assert energy(x[0]).shape == ()
    torch.testing.assert_close(torch.func.grad(log_density)(x[0]), -x[0] / scale)
    many = torch.func.vmap(torch.func.grad(energy))(x)
    torch.testing.assert_close(many, x / scale)
    second = torch.func.jacrev(torch.func.grad(energy))(x[0])
    torch.testing.assert_close(second, torch.diag(1 / scale))
    exact = Gaussian(VPSDE(), torch.zeros(3, dtype=F64), 1.0)
    torch.testing.assert_close(logdensity_fn(exact, 0.5)(x[0]), exact.log_prob(x[:1], 0.5)[0])
    with pytest.raises(TypeError, match="energy"):
        potential_fn(torch.nn.Identity())  # type: ignore[arg-type]


def test_a_leapfrog_written_elsewhere_conserves_the_energy() -> None:
    """A foreign integrator on `potential_fn`: its energy error falls with the step squared."""
    energy = potential_fn(Potential(lambda x: x.pow(4).sum(1) / 4))
    gradient = torch.func.grad(energy)

    def drift(h: float) -> float:
        x, p = tensor(0.8, -0.5), tensor(0.3, 0.4)
        before = energy(x) + p.square().sum() / 2
        for _ in range(round(2 / h)):
            p = p - h / 2 * gradient(x)
            x = x + h * p
            p = p - h / 2 * gradient(x)
        return float((energy(x) + p.square().sum() / 2 - before).abs())

    assert drift(0.05) / drift(0.1) == pytest.approx(1 / 4, rel=0.2)
