"""Populations: particles that carry weights along the reverse process, and are resampled.

A composed model's score, sum_i b_i s_i, is not the score of a noised law, so the reverse process
it drives ends at the wrong law. The weights here make up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._checks import check_batch, check_callable, check_choice, check_count, check_number
from ..energies import Negated, Product, Tempered
from ..models import Given, Prediction, ScoreModel
from ..models.base import check_model
from ..noise import Noise
from ..processes import Level, StaticSDE
from ..sampling import Solver
from .kernel import Kernel
from .metropolis import total
from .resampling import effective, systematic

__all__ = ["FeynmanKac", "Population", "RewardSteering", "factors", "weight_rate"]


class Population(NamedTuple):
    """What a population carries from move to move.

    Attributes:
        log_weights: of the particles since the last resampling, shape (batch,), float64.
        log_z: log of the mean weight, as estimated up to the last resampling, a scalar tensor.
        effective: effective number of particles before the last decision to resample.
        before: state of the inner solver or reward, None where there is none.

    >>> Population(torch.zeros(4), torch.tensor(0.0), torch.tensor(4.0), None).effective
    tensor(4.)
    """

    log_weights: Tensor
    log_z: Tensor
    effective: Tensor
    before: Any


def _fresh(x: Tensor) -> Population:
    logs = x.new_zeros(len(x), dtype=torch.float64)
    return Population(logs, logs.new_zeros(()), logs.new_tensor(float(len(x))), None)


def _selected(
    state: Population, share: float, last: bool, noise: Noise, t: Level, x: Tensor
) -> tuple[Tensor, Population]:
    """(indices of the survivors, the population after it was resampled or left as it is)."""
    logs, count = state.log_weights, len(state.log_weights)
    keep = torch.arange(count, device=x.device)
    if count == 0:
        return keep, state
    found = effective(logs)
    again = (found < share * count) | last
    u = torch.special.ndtr(noise(x.new_zeros(count), t, t)[:1].double())
    chosen = torch.where(again, systematic(logs.unsqueeze(0), u)[0], keep)
    log_z = state.log_z + torch.where(again, logs.logsumexp(0) - math.log(count), 0.0)
    return chosen, Population(torch.where(again, 0.0, logs), log_z, found, state.before)


def factors(model: ScoreModel, **condition: Any) -> list[tuple[float, ScoreModel]]:
    """(exponent, model) of every factor of a composed model, p = prod_i p_i^b_i.

    Products, tempered and negated models are taken apart; anything else is a factor of its own.

    Args:
        model: a composed model, or any score model.
        **condition: bound to every factor.

    Raises:
        TypeError: for a time-free factor, which is no marginal of the process.

    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.zeros(1), v) for v in (0.3, 1.0))
    >>> [exponent for exponent, _ in factors(Product(a, Tempered(b, 2.0), weights=(2.0, -1.0)))]
    [2.0, -0.5]
    """
    check_model(model)
    if isinstance(model, Given):
        return factors(model.model, **{**model.condition, **condition})
    if isinstance(model, Product | Tempered | Negated):
        level = model.sde.level(model.sde.t_max)  # their exponents are the same at every level
        return [
            (float(weight) * exponent, factor)
            for weight, part, _ in model.parts(level)
            for exponent, factor in factors(part, **condition)
        ]
    if isinstance(model.sde, StaticSDE):
        raise TypeError(
            f"{type(model).__name__} is time-free, so it is no marginal of the process, and its "
            "weights need its Laplacian: steer by a reward instead, RewardSteering(solver, reward)"
        )
    return [(1.0, model.given(**condition))]


def _scores(
    parts: list[tuple[float, ScoreModel]], x: Tensor, t: Level
) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """(S = sum b_i s_i, the pairs (b_i, s_i))."""
    scores = [(b, part(x, t).score) for b, part in parts]
    return torch.stack([b * s for b, s in scores]).sum(0), scores


def weight_rate(model: ScoreModel, x: Tensor, t: float) -> Tensor:
    """Rate of the log-weight per unit of time towards the data, shape (batch,).

    w = (sum b_i - 1) d f + (g^2 / 2) (|S|^2 - sum b_i |s_i|^2) with S = sum b_i s_i, for particles
    that move by -f x + (1 + l^2) / 2 g^2 S with noise l g, any l (Skreta et al. 2025, 2503.02819).

    Args:
        model: a composed model.
        x: shape (batch, *event).
        t: time.

    >>> from scoregen import VPSDE, Gaussian
    >>> one = Gaussian(VPSDE(), torch.zeros(1), 1.0)
    >>> weight_rate(Product(one, one, weights=(2.0, -1.0)), torch.ones(2, 1), 0.5)
    tensor([0., 0.])
    """
    check_model(model)
    t = check_number("t", t)
    parts, level = factors(model), model.level(t, check_batch(x, "x"))
    summed, scores = _scores(parts, x, level)
    sde, time = model.sde, torch.tensor(t, dtype=torch.float64)
    f, g2 = float(sde.f(time)), float(sde.g2(time))
    spread = total(summed.square()) - torch.stack([b * total(s.square()) for b, s in scores]).sum(0)
    excess = sum(b for b, _ in parts) - 1
    return excess * x.shape[1:].numel() * f + g2 / 2 * spread


@dataclass(frozen=True)
class FeynmanKac(Solver):
    """The reverse process of a composed model prod_i p_i^b_i, with the weights that correct it.

    In y = x / alpha and c = (sigma / alpha)^2, with D = c_t - c_s, particles move by
    y + D S + sqrt(v) z, S = sum b_i s_i, and gain
    log W = sum b_i log N(y'; y + D s_i, v) + (1 - sum b_i) log N(y; y', D) - log N(y'; y + D S, v):
    the factors' reverse kernels over the noising kernel and the proposal. As steps shrink this is
    the Feynman-Kac corrector of Skreta et al. (2025, 2503.02819), whose rate `weight_rate` gives.
    It serves products, tempering, guidance (`Product(conditional, unconditional, weights=(1 + w,
    -w))`) and geometric means. The target at each level is the product of the noised laws, at the
    data the product itself. Systematic resampling where the effective number falls below
    `threshold` times the particles, and once at the last move to sigma = 0, which returns x0; so
    samples are equally likely, and depend on one another. The batch is one population: results do
    not split into chunks.

    Args:
        variance: v, of the chain "large" (exact for unit Gaussian data) or "small" (for a point).
        threshold: share of effective particles below which they are resampled, in [0, 1].
        kernel: an invariant MCMC kernel that moves the particles at every level; none unless given.
        moves: of the kernel at each level.
        start: "prior": the first x is a draw of N(0, prior_std^2), as `Sampler.sample` makes it,
            and is shrunk to N(0, prior_std^2 / sum b_i); "exact": it is a draw of prod_i p_i^b_i.

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformLam
    >>> a, b = (Gaussian(VPSDE(), torch.full((1,), m), 0.5) for m in (-1.0, 1.0))
    >>> Sampler(FeynmanKac(), UniformLam(30)).sample(Product(a, b), (64, 1), seed=0).shape
    torch.Size([64, 1])
    """

    variance: Literal["small", "large"] = "large"
    threshold: float = 0.5
    kernel: Kernel | None = None
    moves: int = 1
    start: Literal["prior", "exact"] = "prior"
    order = None
    weak_order = 1
    population = True

    @property
    def nfe(self) -> int | None:
        """An evaluation of every factor for each move; with a kernel it is not fixed."""
        return 1 if self.kernel is None else None

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large"))
        check_choice("start", self.start, ("prior", "exact"))
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_count("moves", self.moves)
        if self.kernel is not None and not (
            isinstance(self.kernel, Kernel) and self.kernel.invariant
        ):
            raise ValueError(
                "the kernel must leave each level exactly invariant, like MALA or HMC at "
                f"temperature 1, got {self.kernel!r}"
            )

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        parts = factors(model)
        mass = sum(b for b, _ in parts)
        if state is None:
            state = _fresh(x)
            if self.start == "prior" and mass != 1:
                x = x / math.sqrt(self._proper(mass))
        summed, scores = _scores(parts, x, t)
        if s.sigma == 0:
            chosen, state = _selected(state, self.threshold, True, noise, t, x)
            return (x + t.sigma**2 * summed)[chosen] / t.alpha, state
        gap = (t.sigma / t.alpha) ** 2 - (s.sigma / s.alpha) ** 2  # D
        if self.variance == "large":
            v = gap * (t.alpha / s.alpha) ** 2
        else:
            v = gap * math.exp(2 * (t.lam - s.lam))
        z = noise(x, t, s)
        ahead = gap * t.alpha * summed + math.sqrt(v) * z  # y' - y
        log_w = total(z.square()) / 2 - (1 - mass) * total(ahead.square()) / (2 * gap)
        for b, score in scores:
            log_w = log_w - b * total((ahead - gap * t.alpha * score).square()) / (2 * v)
        d = x.shape[1:].numel()
        log_w = log_w + (1 - mass) * d * (math.log(v / gap) / 2 + math.log(s.alpha / t.alpha))
        x = s.alpha * (x / t.alpha + ahead)
        state = state._replace(log_weights=state.log_weights + log_w.double())
        chosen, state = _selected(state, self.threshold, False, noise, s, x)
        x = x[chosen]
        if self.kernel is not None:
            inner: Any = None
            for _ in range(self.moves):
                x, inner = self.kernel.step(model, x, s, s, inner, noise)
        return x, state

    def _proper(self, mass: float) -> float:
        if mass <= 0:
            raise ValueError(
                f"the exponents sum to {mass:g}, and the product of the noise laws has no finite "
                'mass: their sum must be positive, or start="exact" from draws of your own'
            )
        return mass


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

    def _rewarded(self, x0: Tensor) -> Tensor:
        r = self.reward(x0)
        if not isinstance(r, Tensor) or r.shape != x0.shape[:1]:
            got = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
            raise ValueError(f"reward must return shape ({len(x0)},), one per sample, got {got}")
        return r.double()

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        state = _fresh(x) if state is None else state
        seen, last = _First(model), s.sigma == 0
        after, memory = self.solver.step(seen, x, t, s, None, noise)
        if memory is not None or (seen.x0 is None and not last):
            raise TypeError(
                f"{type(self.solver).__name__} keeps a state between moves, which resampling would "
                "mix up: steer a solver without memory, such as DDIM(1.0) or Ancestral()"
            )
        x0 = after if last or seen.x0 is None else seen.x0
        r = self._rewarded(x0)
        gain = r if state.before is None else r - state.before
        state = state._replace(log_weights=state.log_weights + gain, before=r)
        chosen, state = _selected(state, self.threshold, last, noise, s, x)
        return after[chosen], state._replace(before=r[chosen])
