"""Metropolis-corrected chains: each sample moves, is accepted or stays, by itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count
from ..energies import EnergyPrediction, energy_change
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel, MoveReport, StepSize, check_positive, check_step_size, step_at

__all__ = ["MALA", "ChainState", "Metropolis"]

_HOPELESS = 500.0  # nats: a proposal this much worse means that the integrator is unstable


class ChainState(NamedTuple):
    """Where a Metropolis chain stands and how its last move went, per sample.

    Attributes:
        here: the prediction at the current x, so that the next move need not evaluate again.
        acceptance: probability with which the last proposal was accepted, shape (batch,).
        accepted: whether it was, shape (batch,).
        divergent: whether the proposal was not finite, or worse by more than 500 nats.
        step_size: the step used, a float or one per sample.
        energy_error: estimated absolute error of the energy difference that judged the proposal,
            shape (batch,): 0 where the model has an energy, the error of the line integral where
            it has a score only, nan where a model's own energy_difference states none.

    >>> from scoregen import Constant, Potential, Sampler
    >>> from scoregen.noise import SampleNoise
    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> moves = Sampler(MALA(0.5), Constant(0.0, 1)).iterate(
    ...     model, torch.zeros(3, 1), noise=SampleNoise(0)
    ... )
    >>> list(moves)[-1].state.acceptance.shape
    torch.Size([3])
    """

    here: Prediction
    acceptance: Tensor
    accepted: Tensor
    divergent: Tensor
    step_size: Any
    energy_error: Tensor


def column(value: Any, x: Tensor) -> Any:
    """A number per sample, shaped to broadcast against x; a float stays a float."""
    return value.reshape(-1, *(1,) * (x.dim() - 1)) if isinstance(value, Tensor) else value


def root(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def total(x: Tensor) -> Tensor:
    """Sum over the event, shape (batch,)."""
    return x.reshape(len(x), x.shape[1:].numel()).sum(1)


def resumed(model: ScoreModel, x: Tensor, t: Level, here: Prediction | None) -> Prediction:
    """The prediction at x: the one kept from the last move where it still holds."""
    if here is not None and here.x is x and (here.t is t or here.t == t):
        return here
    return model(x, t)


def chosen(accepted: Tensor, there: Prediction, here: Prediction) -> Prediction:
    """Row by row, the prediction at the new place or at the old."""
    rows = column(accepted, here.x)
    x = torch.where(rows, there.x, here.x)
    score = torch.where(rows, there.score, here.score)
    if isinstance(there, EnergyPrediction) and isinstance(here, EnergyPrediction):
        energy = torch.where(accepted, there.energy, here.energy)
        return EnergyPrediction(here.sde, here.t, x, score=score, energy=energy)
    return Prediction(here.sde, here.t, x, score=score)


class Metropolis(Kernel):
    """Propose, then accept with probability min(1, exp(log ratio)), each sample by itself.

    Leaves p_t^(1 / temperature) exactly invariant at every step size. A proposal that is not
    finite is rejected, and the state flags it. Models with a score only are accepted by the line
    integral of the score between the two points.

    >>> issubclass(MALA, Metropolis)
    True
    """

    step_size: StepSize
    temperature: float
    nodes: int
    nfe = None
    target: ClassVar[float] = 0.574

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_positive("temperature", self.temperature)
        check_count("nodes", self.nodes)

    @abstractmethod
    def propose(
        self, model: ScoreModel, here: Prediction, t: Level, h: Any, noise: Noise
    ) -> tuple[Prediction, Tensor, Tensor]:
        """(prediction at the proposal, log Metropolis ratio, error of the energy difference).

        The last two have shape (batch,).

        Args:
            model: predicts at a level.
            here: the prediction at the current x.
            t: the level.
            h: step, a float or one per sample of shape (batch,).
            noise: gives fresh N(0, I) draws.
        """

    @property
    def invariant(self) -> bool:
        """At temperature 1 only; with a score alone, up to the error of the line integral."""
        return self.temperature == 1.0

    def report(self, state: Any) -> MoveReport | None:
        if state is None:
            return None
        return MoveReport(state.acceptance, state.divergent, state.step_size)

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        return self.move(model, x, t, step_at(self.step_size, t), state, noise)

    def move(
        self, model: ScoreModel, x: Tensor, t: Level, h: Any, state: Any, noise: Noise
    ) -> tuple[Tensor, ChainState]:
        """One move with a given step, a float or one per sample of shape (batch,)."""
        here = resumed(model, x, t, None if state is None else state.here)
        there, log_ratio, error = self.propose(model, here, t, h, noise)
        # a uniform by way of the normal, so that one source of draws serves everything
        log_u = torch.special.log_ndtr(noise(x.new_zeros(len(x)), t, t))
        divergent = ~(log_ratio > -_HOPELESS)
        accepted = (log_u < log_ratio) & ~divergent
        acceptance = log_ratio.clamp(max=0).exp().masked_fill(divergent, 0.0)
        here = chosen(accepted, there, here)
        return here.x, ChainState(here, acceptance, accepted, divergent, h, error)


@dataclass(frozen=True)
class MALA(Metropolis):
    """Metropolis-adjusted Langevin: propose y = x + h score + sqrt(2 h T) z, accept or stay.

    log ratio = -(E(y) - E(x)) / T - |x - y - h score(y)|^2 / (4 h T) + |z|^2 / 2
    (Roberts and Tweedie 1996, doi:10.2307/3318418). One new evaluation per move, and one draw of
    the state's shape and one of shape (batch,). On a `Staircase` or any falling grid it acts at t
    and then calls the state s; a last move to sigma = 0 returns x0.

    Args:
        step_size: h, or a rule that gives it from the level; acceptance is best near 0.574.
        temperature: T of the target p_t^(1 / T).
        nodes: of the line integral, for models with a score only.

    >>> MALA(0.1).direction
    'fixed'
    """

    step_size: StepSize
    temperature: float = 1.0
    nodes: int = 8

    def propose(
        self, model: ScoreModel, here: Prediction, t: Level, h: Any, noise: Noise
    ) -> tuple[Prediction, Tensor, Tensor]:
        z = noise(here.x, t, t)
        spread = 2 * h * self.temperature
        step = column(h, z)
        moved = step * here.score + root(column(spread, z)) * z
        there = model(here.x + moved, t)
        back = total((moved + step * there.score).square()) / (2 * spread)
        rise = energy_change(model, here, there, t, self.nodes)
        log_ratio = total(z.square()) / 2 - back - rise.difference / self.temperature
        return there, log_ratio, rise.error
