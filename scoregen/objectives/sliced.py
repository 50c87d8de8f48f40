"""Score matching by random projections of the score's Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_flag,
    check_number,
)
from ..models import ScoreModel
from .implicit import differentiable_score, noised, pulled_back

__all__ = ["SlicedScoreMatching"]


@dataclass(frozen=True)
class SlicedScoreMatching:
    """v^T J v + norm(score)^2 / 2 with random signs v (Song et al. 2019, 1905.07088).

    Its mean over v is `ImplicitScoreMatching`. Without variance reduction the second term is
    (v . score)^2 / 2, which needs nothing but projections.

    Args:
        t: the time whose marginal is matched; 0 on StaticSDE.
        probes: projections per sample.
        variance_reduced: use the exact square of the score (SSM-VR).

    >>> from scoregen.energies import Potential
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> g = torch.Generator().manual_seed(0)
    >>> SlicedScoreMatching()(model, torch.ones(1, 2), generator=g).detach()
    tensor([-1.])
    """

    t: float = 0.0
    probes: int = 1
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        check_number("t", self.t, 0.0)
        check_count("probes", self.probes)
        check_flag("variance_reduced", self.variance_reduced)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: any score model, twice differentiable.
            x0: clean data, shape (batch, *event).
            generator: source of the projections, and of the noise where t > 0.
            **condition: passed on to the model.
        """
        x, level = noised(model, x0, self.t, generator)
        leaf, score = differentiable_score(model, x, level, condition)
        total = score.new_zeros(len(x))
        for _ in range(self.probes):
            bits = torch.randint(0, 2, x.shape, generator=generator, device=generator.device)
            v = (2 * bits - 1).to(x.device, x.dtype)
            bent = (pulled_back(score, leaf, v) * v).reshape(len(x), -1).sum(1)
            if self.variance_reduced:
                size = score.square().reshape(len(x), -1).sum(1)
            else:
                size = (score * v).reshape(len(x), -1).sum(1).square()
            total = total + (bent + size / 2) / self.probes
        return total
