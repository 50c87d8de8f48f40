"""Twisted sequential Monte Carlo: the posterior, exactly, as particles grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._checks import (
    check_choice,
    check_kind,
    check_number,
)
from ..guidance.gradients import denoised
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..sampling.resampling import fresh, selected
from ..solvers.ancestral import posterior
from .measurement import LinearMeasurement
from .models import isotropic_spread

__all__ = ["TwistedSMC"]


@dataclass(frozen=True, eq=False)
class TwistedSMC(Solver):
    """The twisted diffusion sampler (Wu et al. 2023, 2306.17775): the batch is the population.

    Particles move by N(mean + variance grad log p~(y | x_t), variance), where the twist
    p~(y | x_t) = N(y; A x0_hat, r^2 A A^T + noise^2 I), and carry the weights that make up for it:
    p(x_s | x_t) p~(y | x_s) / (p~(y | x_t) q(x_s | x_t, y)). At the data the twist is the
    likelihood itself, so as particles grow the output is the posterior of the chain that
    `Ancestral(variance)` samples on the same grid. Systematic resampling where the effective number
    falls below `threshold` times the particles, and once at the end, so the samples returned are
    equally likely. Samples of one run depend on one another; independent answers need independent
    runs. Rows change places, so a bound condition must be the same for all of them.

    Args:
        measurement: y = A x + noise, with one y and some noise.
        prior_variance: v in r^2 = v sigma^2 / (alpha^2 v + sigma^2); only the variance of the
            weights depends on it.
        variance: of the chain's moves, "small" or "large".
        threshold: share of effective particles below which they are resampled, in [0, 1].

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformTime
    >>> seen = LinearMeasurement(torch.eye(2)[:1], torch.tensor([1.0]), 0.5)
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> Sampler(TwistedSMC(seen), UniformTime(20)).sample(model, (64, 2), seed=0).shape
    torch.Size([64, 2])
    """

    measurement: LinearMeasurement
    prior_variance: float = 1.0
    variance: Literal["small", "large"] = "small"
    threshold: float = 0.5
    nfe = 2  # the evaluation, and one product with its Jacobian
    population = True

    def __post_init__(self) -> None:
        check_number("prior_variance", self.prior_variance, 0.0, open_low=True)
        check_choice("variance", self.variance, ("small", "large"))
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_kind(
            "measurement", self.measurement, LinearMeasurement, "LinearMeasurement(a, y, 0.1)"
        )
        if self.measurement.y.dim() != 1 or self.measurement.noise == 0:
            raise ValueError(
                "the population has one posterior: give one y of shape (m,), with noise > 0"
            )

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        seen = self.measurement
        p, pull = denoised(model, x, t, {})
        spread2 = isotropic_spread(t, self.prior_variance)
        residual = seen.residual(p.x0)
        weighed = seen.solve(residual, spread2, seen.noise**2)
        slope = pull(seen.transposed(weighed, x))
        twist = seen.log_prob(p.x0, spread2)
        state = fresh(x) if state is None else state
        logs = state.log_weights + twist.double()  # the weights are without the twist of x itself
        last = s.sigma == 0
        if last:  # the chain's last move is certain, and the twist there is the likelihood
            logs = logs + (seen.log_prob(p.x0) - twist).double()
        weighed_state = state._replace(log_weights=logs)
        index, state = selected(weighed_state, self.threshold, last, noise, t, x)
        if last:
            return p.x0[index], state
        c0, c1, small, large = posterior(t, s)
        variance = small if self.variance == "small" else large
        mean, push, twist = mix(c1, x, c0, p.x0)[index], variance * slope[index], twist[index]
        z = math.sqrt(variance) * noise(x, t, s)
        # log p(x_s | x_t) - log q(x_s | x_t, y), of which only the cross terms stay
        gap = (z.square() - (z + push).square()).reshape(len(x), math.prod(x.shape[1:]))
        ratio = gap.sum(1) / (2 * variance) - twist
        return mean + push + z, state._replace(log_weights=state.log_weights + ratio.double())
