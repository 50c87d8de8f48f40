"""Rewards: a solver's own law, tilted by any function of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._checks import check_callable, check_number
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import Level
from ..sampling import Solver
from ..sampling.resampling import fresh, selected
from .rates import check_reward

__all__ = ["RewardSteering"]


class _First(ScoreModel):
    """Passes on to a model, and keeps x0 of the first prediction."""

    def __init__(self, model: ScoreModel):
        super().__init__()
        self.model, self.sde = model, model.sde
        self.x0: Tensor | None = None

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p = self.model.predict(x, t, **condition)
        if self.x0 is None:
            self.x0 = p.x0
        return p


@dataclass(frozen=True)
class RewardSteering(Solver):
    """A solver's own law times exp(reward(x0)), by particles: no gradient, any reward.

    Each move multiplies the weights by exp(r(x0_hat(x_t)) - r before), with the solver's own
    prediction x0_hat, so that along a path they multiply to exp(r(x_0)): whatever the solver
    samples, on this grid, is reweighted exactly as particles grow (Singhal et al. 2025,
    2501.06848; the "difference" potential). Resampled where the effective number falls below
    `threshold` times the particles, and at the last move to sigma = 0, where the grid must end.
    Take a solver with noise, such as DDIM(1.0): copies of a particle must part again.

    Args:
        solver: from noise to data, without memory between its moves.
        reward: x0 of shape (batch, *event) -> (batch,), in nats.
        threshold: share of effective particles below which they are resampled, in [0, 1].

    >>> import torch
    >>> from scoregen import VPSDE, Ancestral, Gaussian, Sampler, UniformLam
    >>> model = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> steered = RewardSteering(Ancestral("large"), lambda x: x.sum(1))
    >>> x = Sampler(steered, UniformLam(20)).sample(model, (1000, 1), seed=0)
    >>> 0.8 < float(x.mean()) < 1.2
    True
    """

    solver: Solver
    reward: Callable[[Tensor], Tensor]
    threshold: float = 0.5
    population = True

    @property
    def nfe(self) -> int | None:
        return self.solver.nfe

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver) or self.solver.direction not in ("down", "both"):
            raise TypeError(
                f"solver must move from noise to data, such as DDIM(1.0), got {self.solver!r}"
            )
        if self.solver.population:
            raise TypeError(f"a population cannot steer a population, got {self.solver!r}")
        check_callable("reward", self.reward, "x0 of shape (batch, *event) -> (batch,)")
        check_number("threshold", self.threshold, 0.0, 1.0)

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        state = fresh(x) if state is None else state
        seen, last = _First(model), s.sigma == 0
        after, memory = self.solver.step(seen, x, t, s, None, noise)
        if memory is not None or (seen.x0 is None and not last):
            raise TypeError(
                f"{type(self.solver).__name__} keeps a state between moves, which resampling would "
                "mix up: steer a solver without memory, such as DDIM(1.0) or Ancestral()"
            )
        x0 = after if last or seen.x0 is None else seen.x0
        r = check_reward(self.reward(x0), len(x0)).double()
        gain = r if state.before is None else r - state.before
        state = state._replace(log_weights=state.log_weights + gain, before=r)
        chosen, state = selected(state, self.threshold, last, noise, s, x)
        return after[chosen], state._replace(before=r[chosen])
