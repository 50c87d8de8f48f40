"""Which level of noise made this sample? A question that only normalised energies answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._checks import check_batch, check_callable, check_count, check_kind, check_number
from ..energies import energy_of
from ..models import ScoreModel, check_model
from ..noise.sources import normal_like
from ..processes import Level, StaticSDE
from .denoising import DenoisingScoreMatching, Objective, per_sample
from .laws import TimeLaw, UniformLamLaw

__all__ = ["NoiseClassification"]


@dataclass(frozen=True)
class NoiseClassification:
    """-log p(i | x_i) with p(j | x) = exp(-E(x, t_j)) / sum_k exp(-E(x, t_k)): which level made x?

    The diffusive classification loss (Grenioux et al. 2026, 2601.21025). Levels t_1 .. t_n are
    drawn for the batch, each sample is noised to one of them, and the energies at all of them are
    the logits of a classifier. The loss is least where E(x, t) = -log p_t(x) + c(x) with one c for
    all levels; denoising score matching, which fixes the slope at every level, leaves of c a
    constant. So together they fix what score matching alone is blind to, the weights of modes far
    apart, through the noisy levels where modes meet, and log Z(t) between levels.

    Args:
        levels: n, levels per batch, at least 2; each costs an evaluation of the energy.
        law: the law of the levels.
        denoising: added to the classification; None leaves it out.
        weight: of the classification.

    >>> from scoregen import Gaussian, VPSDE
    >>> from scoregen.energies import Mixture
    >>> model = Mixture(Gaussian(VPSDE(), torch.zeros(2), 1.0))
    >>> loss = NoiseClassification(levels=4, denoising=None)
    >>> loss(model, torch.zeros(3, 2), generator=torch.Generator().manual_seed(0))
    tensor([1.3863, 1.3863, 1.3863])
    """

    levels: int = 8
    law: TimeLaw = field(default_factory=UniformLamLaw)
    denoising: Objective | None = field(default_factory=DenoisingScoreMatching)
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_count("levels", self.levels, 2)
        check_callable("law", self.law, "(sde, count, generator) -> times, such as UniformLamLaw()")
        if self.denoising is not None:
            check_callable("denoising", self.denoising, "an objective, or None")
        check_number("weight", self.weight, 0.0, open_low=True)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: an energy model on a process with noise.
            x0: clean data, shape (batch, *event).
            generator: source of the levels and of the noise.
            **condition: passed on to the model.

        Raises:
            ValueError: for a process without noise.
        """
        check_model(model)
        check_batch(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        if isinstance(model.sde, StaticSDE):
            raise ValueError(
                "StaticSDE has no levels to tell apart; train a time-free energy by contrast, with "
                "NoiseContrastive or PersistentContrastiveDivergence"
            )
        times = self.law(model.sde, self.levels, generator)
        which = torch.randint(self.levels, (len(x0),), generator=generator, device=generator.device)
        eps = normal_like(x0, generator)
        loss = self.weight * self.at(model, x0, times, which, eps, **condition)
        if self.denoising is None:
            return loss
        return loss + self.denoising(model, x0, generator=generator, **condition)

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        times: Tensor,
        which: Tensor,
        eps: Tensor,
        **condition: Any,
    ) -> Tensor:
        """The classification loss at given levels and noise, shape (batch,): a pure function.

        Args:
            model: an energy model.
            x0: clean data, shape (batch, *event).
            times: of the levels, shape (n,), float64.
            which: index of every sample's level, shape (batch,).
            eps: noise shaped like x0.
        """
        # in float64 where the times live, since not every device of x0 knows float64
        exact: Level = model.sde.level_of(times.double(), times.double())
        which = which.to(times.device)
        alpha, sigma = (per_sample(c[which], x0) for c in (exact.alpha, exact.sigma))
        x = alpha * x0 + sigma * eps
        logits = -torch.stack(
            [
                energy_of(
                    model, x, Level(*(per_sample(c[j : j + 1], x) for c in exact)), **condition
                )
                for j in range(len(times))
            ],
            1,
        )
        own = logits.gather(1, which.to(x.device).unsqueeze(1)).squeeze(1)
        return logits.logsumexp(1) - own
