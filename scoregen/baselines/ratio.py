"""A critic at every noise level: the log density ratio that corrects a score model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_batch, check_callable, check_data, check_kind
from ..energies import energy_of
from ..models import ScoreModel, check_model
from ..noise.sources import normal_like
from ..objectives import TimeLaw, UniformLaw
from ..processes import StaticSDE

__all__ = ["DensityRatio"]


@dataclass(frozen=True, eq=False)
class DensityRatio:
    """Tell noised data from noised samples: -log D(x_t, t) - log(1 - D(y_t, t)), logit D = -E.

    At the optimum E = -log p_t / q_t, with q_t the law of the samples noised to t. So for a model
    whose samples they are, `Product(model, energy)` has the score s + grad log p_t / q_t:
    discriminator guidance (Kim et al. 2023, 2211.17091). If s is the score of q_t, that is the
    true score; a model's own s need not be, and then the law of the samples comes out right where
    the guided flow or SDE follows q_t, though the score does not.

    Args:
        samples: of the model to be corrected, shape (m, *event).
        law: the law of t.

    >>> from scoregen import EDMSDE, MLP
    >>> from scoregen.energies import EnergyNetwork, ReconstructionEnergy
    >>> with torch.random.fork_rng():
    ...     energy = EnergyNetwork(ReconstructionEnergy(MLP(event=(2,), hidden=16)), EDMSDE())
    >>> loss = DensityRatio(torch.ones(100, 2))
    >>> loss(energy, torch.zeros(8, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([8])
    """

    samples: Tensor
    law: TimeLaw = field(default_factory=UniformLaw)

    def __post_init__(self) -> None:
        check_data(self.samples, "samples")
        if not len(self.samples):
            raise ValueError("samples must hold at least one sample, got none")
        check_callable("law", self.law, "(sde, count, generator) -> times, such as UniformLaw()")

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: an energy model.
            x0: clean data, shape (batch, *event).
            generator: source of the times, of the noise and of the choice of samples.
            **condition: bound to the model.
        """
        model = check_model(model).given(**condition)
        check_batch(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        if isinstance(model.sde, StaticSDE):
            raise ValueError("DensityRatio compares at noise levels, and StaticSDE has none")
        if self.samples.shape[1:] != x0.shape[1:]:
            raise ValueError(
                f"samples and data must have one event, got {tuple(self.samples.shape[1:])} and "
                f"{tuple(x0.shape[1:])}"
            )
        rows = torch.randint(
            len(self.samples), (len(x0),), generator=generator, device=generator.device
        )
        y0 = self.samples[rows.to(self.samples.device)].to(x0)
        level = model.sde.level_of(self.law(model.sde, len(x0), generator).to(x0.device), x0)
        logits = []
        for clean in (x0, y0):
            noised = level.alpha * clean + level.sigma * normal_like(x0, generator)
            logits.append(-energy_of(model, noised, level))
        return nn.functional.softplus(-logits[0]) + nn.functional.softplus(logits[1])
