"""Populations: particles that carry weights along the reverse process, and are resampled.

A composed model's score, sum_i b_i s_i, is not the score of a noised law, so the reverse process
it drives ends at the wrong law. The weights here make up for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_number
from ..energies import energy_of
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..sampling.resampling import fresh, selected
from .kernel import Kernel
from .metropolis import total
from .rates import Factors, check_signal, factors, kernel_scale, summed_scores

__all__ = ["FeynmanKac"]


@dataclass(frozen=True)
class FeynmanKac(Solver):
    """The reverse process of a composed model prod_i p_i^b_i, with the weights that correct it.

    In y = x / alpha and c = (sigma / alpha)^2, with D = c_t - c_s, particles move by
    y + D S + sqrt(v) z, S = sum b_i s_i, and gain
    log W = sum b_i log N(y'; y + D s_i, v) + (1 - sum b_i) log N(y; y', D) - log N(y'; y + D S, v):
    the factors' reverse kernels over the noising kernel and the proposal. As steps shrink this is
    the Feynman-Kac corrector of Skreta et al. (2025, 2503.02819), whose rate `weight_rate` gives.
    It serves products, tempering, guidance (`Product(conditional, unconditional, weights=(1 + w,
    -w))`) and geometric means. Where the factors know their densities,
    `weights="densities"` takes log W = L_s(x') - L_t(x) + log q(x | x') - log K(x' | x) instead, q
    the noising kernel and K the step: then E W = Z_s / Z_t at any step, and exponents may depend on
    the level. The target at each level is the product of the noised laws, at the
    data the product itself. Systematic resampling where the effective number falls below
    `threshold` times the particles, and once at the last move to sigma = 0, which returns x0; so
    samples are equally likely, and depend on one another. The batch is one population: results do
    not split into chunks.

    Args:
        variance: v, of the chain "large" (exact for unit Gaussian data) or "small" (for a point).
        threshold: share of effective particles below which they are resampled, in [0, 1].
        kernel: an invariant MCMC kernel that moves the particles at every level; none unless given.
        moves: of the kernel at each level.
        start: "prior": the first x is a draw of N(0, prior_std^2), as `Sampler.sample` makes it,
            and is shrunk to N(0, prior_std^2 / sum b_i); "exact": it is a draw of prod_i p_i^b_i.
        weights: from "scores", right as steps shrink, or from "densities", right at any step; with
            a start from the prior these count the start too, and `log_z` is that of the product.

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformLam
    >>> from scoregen.energies import Product
    >>> a, b = (Gaussian(VPSDE(), torch.full((1,), m), 0.5) for m in (-1.0, 1.0))
    >>> Sampler(FeynmanKac(), UniformLam(30)).sample(Product(a, b), (64, 1), seed=0).shape
    torch.Size([64, 1])
    """

    variance: Literal["small", "large"] = "large"
    threshold: float = 0.5
    kernel: Kernel | None = None
    moves: int = 1
    start: Literal["prior", "exact"] = "prior"
    weights: Literal["scores", "densities"] = "scores"
    order = None
    weak_order = 1
    population = True

    @property
    def nfe(self) -> int | None:
        """An evaluation of every factor for each move; with a kernel it is not fixed."""
        return 1 if self.kernel is None and self.weights == "scores" else None

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large"))
        check_choice("start", self.start, ("prior", "exact"))
        check_choice("weights", self.weights, ("scores", "densities"))
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_count("moves", self.moves)
        if self.kernel is not None and not (
            isinstance(self.kernel, Kernel) and self.kernel.invariant
        ):
            raise ValueError(
                "the kernel must leave each level exactly invariant, like MALA or HMC at "
                f"temperature 1, got {self.kernel!r}"
            )

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        check_signal(t)
        known = self.weights == "densities"
        parts = factors(model, t if known else None)
        mass = sum(b for b, _ in parts)
        if state is None:
            state = fresh(x)
            if self.start == "prior":
                std = model.sde.prior_std(t.t) / math.sqrt(self._proper(mass))
                x = x / math.sqrt(mass)
                if known:
                    d = x.shape[1:].numel()
                    log_p = -total((x / std).square()) / 2 - d / 2 * math.log(2 * math.pi * std**2)
                    state = state._replace(log_weights=(_log_product(parts, x, t) - log_p).double())
        summed, scores = summed_scores(parts, x, t)
        if s.sigma == 0:
            chosen, state = selected(state, self.threshold, True, noise, t, x)
            return (x + t.sigma**2 * summed)[chosen] / t.alpha, state
        gap, v = kernel_scale(t, s, self.variance)
        z = noise(x, t, s)
        ahead = gap * t.alpha * summed + math.sqrt(v) * z  # y' - y
        # of densities in x, whose kernels stand in x / alpha
        scale = x.shape[1:].numel() * (math.log(v / gap) / 2 + math.log(s.alpha / t.alpha))
        if known:
            after = s.alpha * (x / t.alpha + ahead)
            log_w = _log_product(factors(model, s), after, s) - _log_product(parts, x, t)
            log_w = log_w + total(z.square()) / 2 - total(ahead.square()) / (2 * gap) + scale
        else:
            log_w = total(z.square()) / 2 - (1 - mass) * total(ahead.square()) / (2 * gap)
            for b, score in scores:
                log_w = log_w - b * total((ahead - gap * t.alpha * score).square()) / (2 * v)
            log_w = log_w + (1 - mass) * scale
        x = s.alpha * (x / t.alpha + ahead)
        state = state._replace(log_weights=state.log_weights + log_w.double())
        chosen, state = selected(state, self.threshold, False, noise, s, x)
        x = x[chosen]
        if self.kernel is not None:
            inner: Any = None
            for _ in range(self.moves):
                x, inner = self.kernel.step(model, x, s, s, inner, noise)
        return x, state

    def _proper(self, mass: float) -> float:
        if mass <= 0:
            raise ValueError(
                f"the exponents sum to {mass:g}, and the product of the noise laws has no finite "
                'mass: their sum must be positive, or start="exact" from draws of your own'
            )
        return mass


def _log_product(parts: Factors, x: Tensor, t: Level) -> Tensor:
    """L = sum b_i log q_i(x, t), shape (batch,)."""
    return -torch.stack([b * energy_of(part, x, t) for b, part in parts]).sum(0)
