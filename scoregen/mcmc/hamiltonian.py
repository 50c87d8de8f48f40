"""Hamiltonian Monte Carlo: several leapfrog steps, then accept or stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._checks import check_count
from ..energies import energy_change
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import Level
from .metropolis import Metropolis, StepSize, column, total

__all__ = ["HMC", "leapfrog"]


def leapfrog(
    model: ScoreModel,
    here: Prediction,
    momentum: Tensor,
    t: Level,
    h: Any,
    leaps: int,
    temperature: float = 1.0,
) -> tuple[Prediction, Tensor]:
    """`leaps` steps of p += h/2 F; x += h p; p += h/2 F, with the force F = score / temperature.

    Symplectic, reversible, of second order (Neal 2011, 1206.1901). Costs `leaps` evaluations.

    Args:
        model: predicts at a level.
        here: the prediction at the start.
        momentum: shaped like x.
        t: the level.
        h: step in time, a float or one per sample of shape (batch,).
        leaps: steps.
        temperature: of the target p_t^(1 / temperature).

    Returns:
        (the prediction at the end, the momentum there).

    >>> import torch
    >>> from scoregen.energies import Potential
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> here = model(torch.zeros(1, 1), 0.0)
    >>> there, p = leapfrog(model, here, torch.ones(1, 1), here.t, 0.1, 10)
    >>> round(there.x.item(), 2), round(p.item(), 2)
    (0.84, 0.54)
    """
    h = column(h, momentum)
    kick = h / temperature
    momentum = momentum + kick / 2 * here.score
    for leap in range(1, leaps + 1):
        here = model(here.x + h * momentum, t)
        momentum = momentum + (kick if leap < leaps else kick / 2) * here.score
    return here, momentum


@dataclass(frozen=True)
class HMC(Metropolis):
    """Fresh momentum p ~ N(0, I), `leaps` leapfrog steps of length h, accept by exp(-dH).

    H = E / T + |p|^2 / 2 (Duane et al. 1987; Neal 2011, 1206.1901). One leap is MALA with
    h_MALA = h^2 / 2. Costs `leaps` evaluations per move.

    Args:
        step_size: h in time, or a rule that gives it from the level.
        leaps: leapfrog steps per move.
        temperature: T of the target p_t^(1 / T).
        nodes: of the line integral, for models with a score only.

    >>> HMC(0.2, leaps=5).target
    0.8
    """

    step_size: StepSize
    leaps: int = 10
    temperature: float = 1.0
    nodes: int = 8
    target: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leaps", self.leaps)

    def propose(
        self, model: ScoreModel, here: Prediction, t: Level, s: Level, h: Any, noise: Noise
    ) -> tuple[Prediction, Tensor]:
        before = noise(here.x, t, s)
        there, after = leapfrog(model, here, before, t, h, self.leaps, self.temperature)
        kinetic = total(after.square() - before.square()) / 2
        rise = energy_change(model, here, there, t, self.nodes) / self.temperature
        return there, -rise - kinetic
