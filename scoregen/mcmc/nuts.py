"""The No-U-Turn sampler: Hamiltonian trajectories that stop where they would turn back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count
from ..energies import energy_change
from ..models import Prediction, ScoreModel
from ..noise import Noise
from ..processes import Level
from .kernel import Kernel, MoveReport, StepSize, check_step_size, step_at
from .metropolis import chosen, column, resumed, total

__all__ = ["NUTS", "TreeState"]

_HOPELESS = 1000.0  # nats above the start: the integrator is unstable


class TreeState(NamedTuple):
    """Where a NUTS chain stands, and how its last trajectory went, per sample.

    Attributes:
        here: the prediction at the current x.
        acceptance: mean of min(1, exp(-dH)) over the trajectory, for tuning, shape (batch,).
        divergent: whether the energy error passed 1,000 nats or was not a number.
        steps: leapfrog steps of the trajectory, shape (batch,).
        step_size: the step used.
        energy_error: sum of the estimated errors of the energy differences, shape (batch,).

    >>> TreeState(None, None, None, torch.tensor([7]), 0.1, None).steps
    tensor([7])
    """

    here: Any
    acceptance: Any
    divergent: Any
    steps: Any
    step_size: Any
    energy_error: Any


class _End(NamedTuple):
    """One end of the trajectories: prediction, momentum, and energy above the start."""

    here: Prediction
    p: Tensor
    rise: Tensor


def _where(rows: Tensor, new: _End, old: _End) -> _End:
    p = torch.where(column(rows, old.p), new.p, old.p)
    return _End(chosen(rows, new.here, old.here), p, torch.where(rows, new.rise, old.rise))


@dataclass(frozen=True)
class NUTS(Kernel):
    """Multinomial No-U-Turn sampler (Hoffman and Gelman 2014, 1111.4246).

    A trajectory z_0 = (x, p) is doubled in random directions. A doubling is thrown away where it,
    or a subtree of it, has ends with p . (x_right - x_left) <= 0 or diverges, and the trajectory
    stops there; else the draw moves into the new half with probability min(1, W_new / W_old),
    W = sum exp(-H), and stops growing where the whole turns. Within a subtree the draw is
    multinomial, p_k proportional to exp(-H(z_k)) (Betancourt 2017, 1701.02434,
    appendix A). Each sample grows its
    own tree; the batch runs until the longest is done, so uneven chains cost what the longest
    costs. p_t stays exactly invariant at every step size. With a score only, energies along the
    trajectory are line integrals from step to step.

    Args:
        step_size: h in time, or a rule that gives it from the level; acceptance is best near 0.8.
        depth: doublings at most: 2^depth - 1 leapfrog steps.
        nodes: of the line integral, for models with a score only.

    >>> from scoregen import Constant, Gaussian, Sampler, StaticSDE
    >>> model = Gaussian(StaticSDE(), torch.zeros(2), 1.0)
    >>> Sampler(NUTS(0.5), Constant(0.0, 10)).sample(model, (4, 2), seed=0).shape
    torch.Size([4, 2])
    """

    step_size: StepSize
    depth: int = 8
    nodes: int = 8
    nfe = None
    invariant = True
    target: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_count("depth", self.depth)
        check_count("nodes", self.nodes)

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
    ) -> tuple[Tensor, TreeState]:
        """One trajectory with a given step, a float or one per sample of shape (batch,)."""
        here = resumed(model, x, t, None if state is None else state.here)
        p = noise(x, t, t)
        # all decisions at once, so that a row's numbers do not depend on its batch mates: a
        # direction and an acceptance for each doubling, and one for each step of its subtree
        count = 2 * self.depth + 2**self.depth - 1
        uniforms = torch.special.ndtr(noise(x.new_zeros(len(x), count), t, t))
        zero = x.new_zeros(len(x))
        left = right = draw = _End(here, p, zero)
        weight, growing = zero, torch.ones(len(x), dtype=torch.bool, device=x.device)
        divergent, steps = ~growing, torch.zeros(len(x), dtype=torch.long, device=x.device)
        accepted, error = zero, zero
        for level in range(self.depth):
            forward, accept = uniforms[:, level] < 0.5, uniforms[:, self.depth + level]
            inner = uniforms[:, 2 * self.depth + 2**level - 1 :]
            tree = self._subtree(
                model, _where(forward, right, left), t, h, level, forward, growing, inner
            )
            steps, accepted = steps + tree.steps, accepted + tree.accepted
            error, divergent = error + tree.error, divergent | tree.divergent
            sound = growing & ~tree.divergent & ~tree.turned
            right = _where(sound & forward, tree.last, right)
            left = _where(sound & ~forward, tree.last, left)
            moves = sound & (accept.log() <= tree.weight - weight)
            draw = _where(moves, tree.draw, draw)
            weight = torch.where(sound, torch.logaddexp(weight, tree.weight), weight)
            growing = sound & ~_turned(left, right)
            if not bool(growing.any()):
                break
        rate = accepted / steps.clamp(min=1)
        return draw.here.x, TreeState(draw.here, rate, divergent, steps, h, error)

    def _subtree(
        self,
        model: ScoreModel,
        start: _End,
        t: Level,
        h: Any,
        level: int,
        forward: Tensor,
        alive: Tensor,
        uniforms: Tensor,
    ) -> _Subtree:
        """2^level more leapfrog steps from an end, judged on the way (iterative tree building)."""
        sign = torch.where(forward, 1.0, -1.0).to(start.p)
        end = start
        draw, zero = start, start.rise.new_zeros(len(start.rise))
        weight = torch.full_like(zero, -torch.inf)
        turned, divergent = ~alive & alive, ~alive & alive
        accepted, error, steps = zero, zero, torch.zeros_like(zero, dtype=torch.long)
        kept = [start] * level  # kept[j]: first point of the open subtree of 2^(j + 1) points
        for k in range(2**level):
            going = alive & ~turned & ~divergent
            if not bool(going.any()):
                break
            step, change = self._leapfrog(model, end, t, column(sign * h, end.p))
            end = _where(going, step, end)
            steps, error = steps + going, error + torch.where(going, change, 0.0)
            lost = going & ~(end.rise < _HOPELESS)
            divergent = divergent | lost
            sure = torch.where(lost, 0.0, end.rise.neg().clamp(max=0).exp())
            accepted = accepted + torch.where(going, sure, 0.0)
            going = going & ~lost
            total_weight = torch.logaddexp(weight, -end.rise)
            takes = going & (uniforms[:, k].log() <= -end.rise - total_weight)
            draw = _where(takes, end, draw)
            weight = torch.where(going, total_weight, weight)
            # point k opens a subtree of 2^j for every 2^j that divides k, and closes one for every
            # 2^j that divides k + 1
            for j in range(1, level + 1):
                if k % 2**j == 0:
                    kept[j - 1] = end
                if (k + 1) % 2**j == 0:
                    turned = turned | (going & _turned_along(kept[j - 1], end, sign))
        return _Subtree(end, draw, weight, turned, divergent, steps, accepted, error)

    def _leapfrog(self, model: ScoreModel, end: _End, t: Level, h: Tensor) -> tuple[_End, Tensor]:
        """One step, and the estimated error of its energy difference."""
        half = end.p + h / 2 * end.here.score
        there = model(end.here.x + h * half, t)
        p = half + h / 2 * there.score
        change = energy_change(model, end.here, there, t, self.nodes)
        kinetic = total(p.square() - end.p.square()) / 2
        rise = end.rise + change.difference + kinetic
        return _End(there, p, rise.nan_to_num(nan=torch.inf)), change.error


class _Subtree(NamedTuple):
    """What a doubling found, per sample."""

    last: _End
    draw: _End
    weight: Tensor
    turned: Tensor
    divergent: Tensor
    steps: Tensor
    accepted: Tensor
    error: Tensor


def _turned(left: _End, right: _End) -> Tensor:
    """Whether the ends move towards each other: (x_right - x_left) . p <= 0 at either."""
    across = right.here.x - left.here.x
    return (total(across * left.p) <= 0) | (total(across * right.p) <= 0)


def _turned_along(first: _End, last: _End, sign: Tensor) -> Tensor:
    """The same for a subtree that grew in a direction: its first point may be its right end."""
    across = column(sign, last.p) * (last.here.x - first.here.x)
    return (total(across * first.p) <= 0) | (total(across * last.p) <= 0)
