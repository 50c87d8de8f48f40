"""An energy from a network that was made to denoise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._checks import check_callable
from ..models import Conditions, HalfLogSNR, ScoreModel
from ..models.base import check_model
from ..processes import Level
from .energy import EnergyModel

__all__ = ["DenoiserEnergy"]


class DenoiserEnergy(EnergyModel):
    """E(x, t) = |x - alpha D(x, t)|^2 / (2 sigma^2) + c(lam): the (x - D) form of an energy.

    Half the squared norm of the noise that a network of any parameterization predicts (Salimans and
    Ho 2021, "Should EBMs model the energy or the score?"; Du et al. 2023, 2302.11552), so that
    architecture and preconditioning serve as they are. The score, -grad E, is a product with the
    Jacobian of D. Trained by denoising score matching this E becomes -log p_t up to a constant of
    each level; D is then no denoiser any more: for data N(0, v I), x - alpha D is
    sigma x / sqrt(alpha^2 v + sigma^2).

    Args:
        model: a score model, such as a `ScoreNetwork`.
        offset: c, from lam = log(alpha / sigma) of shape (batch,) to (batch,), a module or a
            function; none unless given. No score can see it: `NoiseClassification` trains it, and
            E is then normalised at every level but for one constant.

    >>> import torch
    >>> from scoregen import EDMSDE, Gaussian
    >>> model = DenoiserEnergy(Gaussian(EDMSDE(), torch.zeros(1), 1.0))
    >>> model(torch.full((1, 1), 2.0), 1.0).energy.detach()
    tensor([0.5000])
    """

    def __init__(self, model: ScoreModel, offset: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        check_model(model)
        if offset is not None:
            check_callable("offset", offset, "(batch,) values of log(alpha / sigma) -> (batch,)")
        self.model, self.sde, self.event = model, model.sde, model.event
        self.offset = offset

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        eps = self.model.predict(x, t, **condition).eps
        energy = eps.square().reshape(len(x), x.shape[1:].numel()).sum(1) / 2
        if self.offset is None:
            return energy
        return energy + self.offset(HalfLogSNR()(self.sde, t, x)).to(energy)

    @property
    def conditions(self) -> Conditions | None:
        return self.model.conditions

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)
