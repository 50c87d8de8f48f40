"""Training on the variational bound of a chain: L_vlb, L_hybrid, and importance-sampled knots."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import (
    check_batch,
    check_choice,
    check_count,
    check_kind,
    check_number,
    check_same_shape,
    check_state,
    check_tensor,
)
from ..likelihood import Decoder, GaussianDecoder
from ..likelihood.terms import half_sum, log_variance, prior_kl, transition, transition_kl
from ..models import Prediction, ScoreModel, check_model
from ..noise.sources import normal_like
from ..processes import DiscreteSDE

__all__ = ["Hybrid", "LossAwareKnots", "VariationalBound"]


class LossAwareKnots(nn.Module):
    """Knots drawn with p_i proportional to sqrt(E L_i^2), from the last losses at each knot.

    The estimate L_i / p_i of sum_i L_i then has the least variance (Nichol and Dhariwal 2021,
    2102.09672, section 3.3). Uniform until every knot has `history` losses; a share `uniform` of
    the draws stays uniform after that. The history is a buffer, saved with the state dict; each
    process of a distributed run keeps its own.

    Args:
        steps: N, the number of knots of the chain.
        history: losses remembered per knot.
        uniform: share of uniform draws, in (0, 1].

    >>> law = LossAwareKnots(2, history=1)
    >>> law.update(torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    >>> [round(p, 3) for p in law.shares().tolist()]
    [0.75, 0.25]
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 1e-3):
        super().__init__()
        check_count("steps", steps)
        check_count("history", history)
        self.uniform = check_number("uniform", uniform, 0.0, 1.0, open_low=True)
        self.register_buffer("squares", torch.zeros(steps, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.long))
        self.squares: Tensor
        self.seen: Tensor

    def shares(self) -> Tensor:
        """The probability of each knot, shape (N,), float64."""
        flat = torch.full_like(self.squares[:, 0], 1 / len(self.seen))
        root = self.squares.mean(1).sqrt()
        if bool((self.seen < self.squares.shape[1]).any()) or not bool(root.sum() > 0):
            return flat
        return (1 - self.uniform) * root / root.sum() + self.uniform * flat

    def update(self, index: Tensor, losses: Tensor) -> None:
        """Remember losses, shape (batch,), at the knots `index`; values not finite are left out."""
        for i, loss in zip(index.tolist(), losses.detach().double().tolist(), strict=True):
            if math.isfinite(loss):
                self.squares[i, int(self.seen[i]) % self.squares.shape[1]] = loss**2
                self.seen[i] += 1


@lru_cache(maxsize=64)
def _table(sde: DiscreteSDE) -> Tensor:
    """(c0, log small, log large) of the move down from each knot, shape (N, 3), float64."""
    levels = sde.levels((0.0, *sde.knots))
    moves = [
        transition(levels[i], levels[i - 1], levels[i + 1] if sde.steps > 1 and i == 1 else None)
        for i in range(1, sde.steps + 1)
    ]
    return torch.tensor(moves, dtype=torch.float64)


@dataclass(frozen=True)
class VariationalBound:
    """L_vlb: the variational bound of a chain by one knot per sample, L_i / p_i + L_T, in nats.

    Its mean over knots and noise is the bound of `scoregen.likelihood.bound` (Ho et al. 2020,
    2006.11239, eq. 5; Nichol and Dhariwal 2021, 2102.09672).

    Args:
        variance: of the reverse kernels: "small", "large" or "learned".
        decoder: of L_0: `GaussianDecoder()` for real values, `DiscretisedGaussian(...)` for levels.
        law: of the knots; uniform unless given. A `LossAwareKnots` is updated at every call.

    >>> from scoregen import DiscreteVPSDE, Gaussian
    >>> model = Gaussian(DiscreteVPSDE.linear(100, 1e-3, 0.2), torch.zeros(2), 1.0)
    >>> loss = VariationalBound("large")
    >>> loss(model, torch.zeros(5, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5])
    """

    variance: Literal["small", "large", "learned"] = "learned"
    decoder: Decoder = field(default_factory=GaussianDecoder)
    law: LossAwareKnots | None = None

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("small", "large", "learned"))
        check_kind("decoder", self.decoder, Decoder, "GaussianDecoder()")
        check_kind("law", self.law, (LossAwareKnots, type(None)), "LossAwareKnots(1000)")

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One estimate of the bound per sample, shape (batch,), in nats.

        Args:
            model: any score model on a chain.
            x0: clean data, shape (batch, *event).
            generator: source of the knots and of the noise.
            **condition: passed on to the model.
        """
        index, eps, factor = _draw(model, x0, generator, self.law)
        terms = self.at(model, x0, index, eps, **condition)
        if self.law is not None:
            self.law.update(index, terms)
        sde = model.sde
        top = prior_kl(x0, sde.level(sde.t_max), sde.prior_std(sde.t_max))
        return factor * terms + top

    def at(
        self, model: ScoreModel, x0: Tensor, index: Tensor, eps: Tensor, **condition: Any
    ) -> Tensor:
        """L_i at given knots and noise, shape (batch,): L_0 where index is 0.

        Args:
            model: any score model on a chain.
            x0: clean data, shape (batch, *event).
            index: a knot 0 .. N - 1 per sample, shape (batch,).
            eps: noise shaped like x0.
        """
        check_model(model)
        check_state(x0, "x0")
        check_same_shape("eps", check_tensor("eps", eps), x0)
        return self.term(_predicted(model, x0, index, eps, condition), x0, index)

    def term(self, p: Prediction, x0: Tensor, index: Tensor) -> Tensor:
        """L_i of a prediction made at knot i of each sample, shape (batch,)."""
        sde = _chain(p.sde)
        ends = (1,) * (x0.dim() - 1)
        # looked up in float64 on the host, since not every device of x0 knows float64
        knots = index.to("cpu")
        c0, low, high = _table(sde)[knots].reshape(-1, 3, *ends).to(x0).unbind(1)
        log_var = log_variance(self.variance, p, low, high)
        terms = transition_kl(x0, p.x0, c0, low, log_var)
        first = (knots == 0).nonzero().squeeze(1).to(x0.device)
        if len(first) == 0:
            return terms
        # beta-tilde_1 = 0: a fixed variance of the decoder is beta_1, a learned one starts above 0
        wide = log_var if self.variance == "learned" else high
        wide = self.decoder.log_variance(wide)
        wide = wide[first] if isinstance(wide, Tensor) else wide
        return terms.index_put((first,), -self.decoder.log_prob(x0[first], p.x0[first], wide))


@dataclass(frozen=True)
class Hybrid:
    """L_simple + weight L_vlb, where L_vlb moves only the learned variance.

    L_vlb sees the predicted mean through a stop-gradient (Nichol and Dhariwal 2021, 2102.09672,
    eq. 16). One evaluation serves both.

    Args:
        weight: of the bound, the paper's lambda.
        decoder: of L_0.

    >>> from scoregen import MLP, DiscreteVPSDE, ScoreNetwork
    >>> from scoregen.models import LearnedVariance
    >>> model = ScoreNetwork(MLP(outputs=2), DiscreteVPSDE.cosine(50), LearnedVariance())
    >>> Hybrid()(model, torch.zeros(5, 2), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5])
    """

    weight: float = 1e-3
    decoder: Decoder = field(default_factory=GaussianDecoder)

    def __post_init__(self) -> None:
        check_number("weight", self.weight, 0.0)
        check_kind("decoder", self.decoder, Decoder, "GaussianDecoder()")

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per sample, shape (batch,).

        Args:
            model: a score model with a learned variance, on a chain.
            x0: clean data, shape (batch, *event).
            generator: source of the knots and of the noise.
            **condition: passed on to the model.

        Raises:
            ValueError: if the model's variance is not learned.
        """
        index, eps, factor = _draw(model, x0, generator, None)
        p = _predicted(model, x0, index, eps, condition)
        simple = 2 * half_sum((eps - p.eps).square())
        held = Prediction(p.sde, p.t, p.x, x0=p.x0.detach(), spread=p.spread)
        terms = VariationalBound("learned", self.decoder).term(held, x0, index)
        return simple + self.weight * factor * terms


def _chain(sde: Any) -> DiscreteSDE:
    if not isinstance(sde, DiscreteSDE):
        raise ValueError(
            f"the variational bound needs a chain such as DiscreteVPSDE, got {type(sde).__name__}; "
            "in continuous time it is DenoisingScoreMatching with the Likelihood weight"
        )
    return sde


def _draw(
    model: ScoreModel, x0: Tensor, generator: torch.Generator, law: LossAwareKnots | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """(knots, noise, 1 / p of the knots)."""
    check_batch(x0, "x0")
    check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
    steps, place = _chain(check_model(model).sde).steps, generator.device
    factor: Tensor | int = steps
    if law is None:
        index = torch.randint(steps, (len(x0),), generator=generator, device=place)
    else:
        if len(law.seen) != steps:
            raise ValueError(f"the law has {len(law.seen)} knots and the chain {steps}")
        shares = law.shares().to(place)
        index = torch.multinomial(shares, len(x0), replacement=True, generator=generator)
        factor = (1 / shares[index]).to(x0)
    return index, normal_like(x0, generator), factor  # the knots stay where float64 is known


def _predicted(
    model: ScoreModel, x0: Tensor, index: Tensor, eps: Tensor, condition: dict[str, Any]
) -> Prediction:
    sde = _chain(model.sde)
    level = sde.level_of((index.double() + 1) / sde.steps, x0)
    return model(level.alpha * x0 + level.sigma * eps, level, **condition)
