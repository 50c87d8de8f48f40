"""The exact law of a sampler's output on Gaussian data, without Monte Carlo.

For Gaussian data every sampler whose coefficients do not depend on x is affine in x_T and in its
noise draws. So the real, unmodified sampler is run once on a batch of unit inputs, its coefficients
are read off, and the mean and variance of its output follow exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_kind
from ..densities import Gaussian, gaussian_kl, gaussian_w2
from ..processes import SDE, Level
from ..sampling import Sampler
from .probe import TOLERANCE, NotAffineError, gaussian_model, probe, refuse_bends

__all__ = ["OutputLaw", "is_affine", "output_law"]


@dataclass(frozen=True, eq=False)
class OutputLaw:
    """The exact law of a sampler's output on N(m, diag(v)), beside the law it should have.

    Each coordinate is offset + gain x_T + sum_k draws[k] z_k. All tensors are float64.

    Attributes:
        mean, variance: of the output, shape (d,).
        target_mean, target_variance: of p_s at the last time of the grid, shape (d,).
        offset, gain: shape (d,).
        draws: coefficient of every noise draw, shape (K, d).
        flow_offset, flow_gain: of the exact probability-flow map of x_T, shape (d,).
        start_mean, start_variance: of the law of x_T, shape (d,).
        nfe: evaluations of the model per sample, counted.
        start, stop: first and last level of the grid.

    >>> from scoregen import DDIM, EDMSDE, UniformLam
    >>> law = output_law(Sampler(DDIM(), UniformLam(8, stop=0.02)), EDMSDE(), (0.05, 0.5, 2.0))
    >>> print(f"{law.w2:.2f} in {law.nfe:g} evaluations")
    0.36 in 8 evaluations
    """

    mean: Tensor
    variance: Tensor
    target_mean: Tensor
    target_variance: Tensor
    offset: Tensor
    gain: Tensor
    draws: Tensor
    flow_offset: Tensor
    flow_gain: Tensor
    start_mean: Tensor
    start_variance: Tensor
    nfe: float
    start: Level
    stop: Level

    @property
    def flow_error(self) -> float:
        """Root mean square distance from the exact probability-flow map; noise-free solvers only.

        Raises:
            ValueError: if the sampler draws noise: its output is no function of x_T.
        """
        if len(self.draws):
            raise ValueError(
                "the sampler draws noise, so its output is no function of x_T: compare laws (w2)"
            )
        gain = self.gain - self.flow_gain
        shift = self.offset - self.flow_offset + gain * self.start_mean
        return float((shift**2 + gain**2 * self.start_variance).mean().sqrt())

    @property
    def w2(self) -> float:
        """Wasserstein-2 distance from the target, in the unit of the data."""
        return float(gaussian_w2(self.mean, self.variance, self.target_mean, self.target_variance))

    @property
    def kl(self) -> float:
        """KL(output || target) in nats; infinite where the output has no spread."""
        return float(gaussian_kl(self.mean, self.variance, self.target_mean, self.target_variance))

    @property
    def mean_error(self) -> Tensor:
        """Mean of the output minus that of the target, shape (d,)."""
        return self.mean - self.target_mean

    @property
    def std_error(self) -> Tensor:
        """Relative error of the standard deviation, shape (d,); negative: too little spread."""
        return (self.variance / self.target_variance).sqrt() - 1


def is_affine(
    sampler: Sampler,
    sde: SDE,
    variances: Tensor | Sequence[float],
    mean: Tensor | float = 0.0,
) -> bool:
    """Whether the sampler is affine in x_T and its draws, row by row, so that `output_law` answers.

    Two guards: its output for one random input at the scales 1 and 8 must be the superposition of
    its outputs for unit inputs (clipping, thresholds, norm-based steps and Metropolis fail), and a
    row must come out the same alone as in a batch (steps shared by the batch fail).

    Args:
        sampler: any sampler.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,).
        mean: of the data in the eigenbasis, () or (d,).

    >>> from scoregen import DDIM, VPSDE, Dopri5, UniformTime
    >>> is_affine(Sampler(DDIM(), UniformTime(5)), VPSDE(), (0.5, 2.0))
    True
    >>> is_affine(Sampler(Dopri5(), UniformTime(2)), VPSDE(), (0.5, 2.0))
    False
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    try:
        found = probe(sampler, gaussian_model(sde, variances, mean))
    except NotAffineError:
        return False
    return found.bend <= TOLERANCE and found.coupling <= TOLERANCE


def output_law(
    sampler: Sampler,
    sde: SDE,
    variances: Tensor | Sequence[float],
    mean: Tensor | float = 0.0,
    *,
    start: Literal["exact", "prior"] = "exact",
    kind: type[Gaussian] = Gaussian,
) -> OutputLaw:
    """The exact mean and variance of a sampler's output on N(mean, diag(variances)) data.

    With x_s = offset + gain x_T + sum_k draws_k z_k per eigen-direction, the output has mean
    offset + gain E x_T and variance gain^2 Var x_T + sum_k draws_k^2. One batch of K + 2 rows
    (zeros, a unit x_T, a unit for every draw) gives all the coefficients; coordinates do not mix,
    so one row serves all of them. The target is the exact p_s at the last time of the grid.

    Args:
        sampler: the real sampler.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,), positive.
        mean: of the data in the eigenbasis, () or (d,).
        start: x_T from the "exact" law at the grid's first time, or from the "prior"
            N(0, prior_std^2) that `Sampler.sample` uses.
        kind: class of the exact model, `flowmaps.GaussianFlowMap` for the samplers of flow maps.

    Raises:
        NotAffineError: if the sampler is not affine (clipping, Metropolis, adaptive steps) or
            couples the rows of a batch: the answer would be wrong.

    >>> from scoregen import Ancestral, DiscreteVPSDE, Knots
    >>> law = output_law(Sampler(Ancestral("large"), Knots()), DiscreteVPSDE.linear(50), (1.0,))
    >>> law.draws.shape, round(float(law.std_error), 12) <= 0
    (torch.Size([49, 1]), True)
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    check_choice("start", start, ("exact", "prior"))
    model = gaussian_model(sde, variances, mean, kind)
    found = refuse_bends(sampler, model)
    levels = sampler.levels(sde)
    first, last = levels[0], levels[-1]
    if start == "exact":
        mean_t = first.alpha * model.mean
        var_t = first.alpha**2 * model.variances + first.sigma**2
    else:
        mean_t = torch.zeros_like(model.mean)
        var_t = torch.full_like(model.variances, sde.prior_std(first.t) ** 2)
    ends = torch.stack([torch.zeros_like(mean_t), torch.ones_like(mean_t)])
    flow_offset, one = model.flow(ends, first.t, last.t)
    return OutputLaw(
        mean=found.offset + found.gain * mean_t,
        variance=found.gain**2 * var_t + found.draws.square().sum(0),
        target_mean=last.alpha * model.mean,
        target_variance=last.alpha**2 * model.variances + last.sigma**2,
        offset=found.offset,
        gain=found.gain,
        draws=found.draws,
        flow_offset=flow_offset,
        flow_gain=one - flow_offset,
        start_mean=mean_t,
        start_variance=var_t,
        nfe=found.nfe,
        start=first,
        stop=last,
    )
