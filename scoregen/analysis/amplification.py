"""How much of a network's error reaches a sampler's output, exactly, for Gaussian data.

An accuracy measured with exact scores says nothing of this: a formula may have large weights of
opposite sign, which cancel on a smooth exact prediction and multiply the errors of a trained one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_kind
from ..densities import Gaussian
from ..models import Eps, Parameterization, Prediction, ScoreModel
from ..models.parameterization import X0
from ..noise import Noise
from ..processes import SDE, Level
from ..sampling import Sampler
from .probe import NotAffineError, gaussian_model, refuse_bends

__all__ = ["Amplification", "amplification"]


@dataclass(frozen=True, eq=False)
class Amplification:
    """The gains G_i = d x_out / d error_i of a sampler, error_i being made in evaluation i.

    A network whose errors have size e changes the output by at most `worst` e; by `constant` e if
    its error is the same at all levels; by `independent` e (standard deviation) if the errors of
    different evaluations are independent. All four numbers are of the eigen-direction where they
    are largest.

    Attributes:
        gains: one for each evaluation and eigen-direction, shape (n, d), float64.
        levels: where each evaluation is made.

    >>> Amplification(torch.tensor([[3.0], [-4.0]]), ()).independent
    5.0
    """

    gains: Tensor
    levels: tuple[Level, ...]

    @property
    def largest(self) -> float:
        """max_i |G_i|: what an error of one evaluation is multiplied by, at most."""
        return float(self.gains.abs().max())

    @property
    def independent(self) -> float:
        """sqrt(sum_i G_i^2)."""
        return float(self.gains.square().sum(0).max().sqrt())

    @property
    def constant(self) -> float:
        """|sum_i G_i|."""
        return float(self.gains.sum(0).abs().max())

    @property
    def worst(self) -> float:
        """sum_i |G_i|."""
        return float(self.gains.abs().sum(0).max())


@dataclass(frozen=True)
class _Circle(Parameterization):
    """(alpha eps - sigma x0) / hypot(alpha, sigma): v, in the same unit on every process."""

    def coefficients(self, sde: SDE, t: Level) -> tuple[float, float]:
        size = math.hypot(t.alpha, t.sigma)
        return -t.sigma / size, t.alpha / size


_FORMS: dict[str, Parameterization] = {"eps": Eps(), "x0": X0(), "v": _Circle()}


class _Erring(ScoreModel):
    """A model whose evaluation i is wrong by 1 in row i + 1; row 0 is right throughout."""

    def __init__(self, model: Gaussian, form: Parameterization) -> None:
        super().__init__()
        self.model, self.sde, self.form = model, model.sde, form
        self.levels: list[Level] = []

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        index = len(self.levels)
        self.levels.append(t)
        p = self.model.predict(x, t)
        if index + 1 >= len(x):
            return p
        a, b = self.form.coefficients(self.sde, t)
        out = p.combine(a, b)
        out[index + 1] += 1.0
        return self.form.decode(self.sde, t, x, out)


def _no_noise(like: Tensor, t: Level, s: Level) -> Tensor:
    return torch.zeros_like(like)


@torch.no_grad()
def amplification(
    sampler: Sampler,
    sde: SDE,
    variances: Tensor | Sequence[float] = (0.25,),
    form: Literal["eps", "x0", "v"] | Parameterization = "eps",
) -> Amplification:
    """What a unit error in each evaluation does to the output, on N(0, diag(variances)) data.

    The output of the sampler is affine in the errors as it is in x_T and the noise, so the real
    sampler is run once on a batch whose row i has a unit error in evaluation i alone. For DDIM,
    with r = sigma / alpha and x_0 = x / alpha at the end,

        G_i = (r_{i+1} - r_i) prod_{j>i} [1 + (r_{j+1} - r_j) r_j / (v + r_j^2)]

    in eps. A gain is in the unit of the data's standard deviation where that is 1; for small data
    it falls with it.

    Args:
        sampler: the real sampler, with or without noise.
        sde: the process.
        variances: eigenvalues of the data's covariance, shape (d,), positive.
        form: which output of the network the error is made in: "eps", "x0", "v", which is
            (alpha eps - sigma x0) / hypot(alpha, sigma) here so that its unit is the same on every
            process, or any parameterization.

    Raises:
        NotAffineError: if the sampler is not affine (clipping, Metropolis, adaptive steps), or
            evaluates the model on other rows than its state's.

    >>> from scoregen import DDIM, VPSDE, UniformLam
    >>> found = amplification(Sampler(DDIM(), UniformLam(10)), VPSDE())
    >>> print(f"{found.largest:.3f} {found.independent:.3f} {found.worst:.3f}")
    0.728 1.652 4.216
    """
    check_kind("sampler", sampler, Sampler, "Sampler(DDIM(), UniformTime(20))")
    if isinstance(form, str):
        check_choice("form", form, tuple(_FORMS))
        meaning = _FORMS[form]
    elif isinstance(form, Parameterization):
        meaning = form
    else:
        raise TypeError(f"form must be eps, x0, v or a parameterization, got {form!r}")
    model = gaussian_model(sde, variances)
    refuse_bends(sampler, model)
    noise: Noise = _no_noise

    def run(rows: int) -> tuple[Tensor, tuple[Level, ...]]:
        erring = _Erring(model, meaning)
        x = torch.zeros(rows, len(model.mean), dtype=torch.float64)
        for step in sampler.iterate(erring, x, noise=noise):
            x = step.x
        return x, tuple(erring.levels)

    _, dry = run(1)
    out, levels = run(len(dry) + 1)
    if levels != dry:
        raise NotAffineError(
            f"the sampler evaluated the model {len(dry)} times in one run and {len(levels)} times "
            "in the next, or at other levels: its moves depend on the rows of the batch"
        )
    return Amplification(out[1:] - out[0], levels)
