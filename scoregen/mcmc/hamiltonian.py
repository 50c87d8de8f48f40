"""Hamiltonian Monte Carlo: several leapfrog steps, then accept or stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._checks import (
    check_count,
    check_kind,
    check_number,
    check_same_shape,
    check_state,
    check_tensor,
)
from ..energies import energy_change
from ..models import Prediction, ScoreModel
from ..models.base import check_model
from ..noise import Noise
from ..processes import Level
from .kernel import StepSize, check_positive
from .metropolis import Metropolis, column, total

__all__ = ["HMC", "leapfrog"]


def leapfrog(
    model: ScoreModel,
    here: Prediction,
    momentum: Tensor,
    t: Level,
    h: Any,
    steps: int,
    temperature: float = 1.0,
) -> tuple[Prediction, Tensor]:
    """`steps` steps of p += h/2 F; x += h p; p += h/2 F, with the force F = score / temperature.

    Symplectic, reversible, of second order (Neal 2011, 1206.1901). Costs `steps` evaluations.

    Args:
        model: predicts at a level.
        here: the prediction at the start.
        momentum: shaped like x.
        t: the level.
        h: step in time, a float or one per sample of shape (batch,).
        steps: how many.
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
    check_model(model)
    check_kind("here", here, Prediction, "model(x, t)")
    check_kind("t", t, Level, "model.sde.level(0.5)")
    check_same_shape("momentum", check_state(momentum, "momentum"), here.x)
    if not isinstance(h, Tensor):
        check_number("h", h)
    elif check_tensor("h", h).numel() not in (1, len(momentum)):
        raise ValueError(f"h must be a number or of shape (batch,), got {tuple(h.shape)}")
    check_count("steps", steps)
    check_positive("temperature", temperature)
    h = column(h, momentum)
    kick = h / temperature
    momentum = momentum + kick / 2 * here.score
    for step in range(1, steps + 1):
        here = model(here.x + h * momentum, t)
        momentum = momentum + (kick if step < steps else kick / 2) * here.score
    return here, momentum


@dataclass(frozen=True)
class HMC(Metropolis):
    """Fresh momentum p ~ N(0, I), `leapfrog_steps` steps of length h, accept by exp(-dH).

    H = E / T + |p|^2 / 2 (Duane et al. 1987; Neal 2011, 1206.1901). One step is MALA with
    h_MALA = h^2 / 2. Costs `leapfrog_steps` evaluations per move.

    Args:
        step_size: h in time, or a rule that gives it from the level.
        leapfrog_steps: per move.
        temperature: T of the target p_t^(1 / T).
        nodes: of the line integral, for models with a score only.

    >>> HMC(0.2, leapfrog_steps=5).target
    0.8
    """

    step_size: StepSize
    leapfrog_steps: int = 10
    temperature: float = 1.0
    nodes: int = 8
    target: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leapfrog_steps", self.leapfrog_steps)

    def propose(
        self, model: ScoreModel, here: Prediction, t: Level, h: Any, noise: Noise
    ) -> tuple[Prediction, Tensor, Tensor]:
        before = noise(here.x, t, t)
        there, after = leapfrog(model, here, before, t, h, self.leapfrog_steps, self.temperature)
        kinetic = total(after.square() - before.square()) / 2
        rise = energy_change(model, here, there, t, self.nodes)
        return there, -rise.difference / self.temperature - kinetic, rise.error
