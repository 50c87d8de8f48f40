"""Stochastic gradient Langevin dynamics: minibatches of a sum of terms, and shrinking steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_finite, check_number, check_tensor
from ..energies import EnergyModel
from ..models import ScoreModel
from ..noise import Noise
from ..processes import Level, StaticSDE
from .kernel import Kernel, check_positive

__all__ = ["SGLD", "PolynomialDecay", "PosteriorEnergy"]


class PosteriorEnergy(EnergyModel):
    """E(x) = prior(x) + sum_i term(x, row_i): a posterior over N rows of data, on `StaticSDE`.

    With the condition `rows` it is the unbiased estimate prior + N / m sum over m rows, which
    `SGLD` follows.

    Args:
        prior: x -> (batch,).
        term: (x, *rows) -> (batch, m), for rows of each data tensor of shape (batch, m, ...), or
            (1, N, ...) when no rows are chosen.
        *data: tensors of N rows each.

    >>> y = torch.tensor([0.0, 1.0, 2.0])
    >>> def term(x, y):
    ...     return (x - y).square() / 2
    >>> model = PosteriorEnergy(lambda x: x.square().sum(1) / 2, term, y)
    >>> model(torch.ones(1, 1), 0.0).energy.detach()
    tensor([1.5000])
    """

    def __init__(
        self, prior: Callable[[Tensor], Tensor], term: Callable[..., Tensor], *data: Tensor
    ):
        super().__init__()
        check_callable("prior", prior, "(batch, *event) -> (batch,), the prior's energy")
        check_callable("term", term, "(x, *rows of data) -> (batch, rows)")
        for i, d in enumerate(data):
            check_finite(f"data[{i}]", check_tensor(f"data[{i}]", d))
            if d.dim() == 0:
                raise ValueError(f"data[{i}] must have an axis of rows, got a scalar")
        if not data or any(len(d) != len(data[0]) for d in data) or not len(data[0]):
            raise ValueError("need data tensors with the same number of rows, at least one")
        self.sde, self.prior, self.term, self.count = StaticSDE(), prior, term, len(data[0])
        for i, tensor in enumerate(data):
            self.register_buffer(f"data{i}", tensor)
        self._names = [f"data{i}" for i in range(len(data))]

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        rows = condition.get("rows")
        data = [getattr(self, name) for name in self._names]
        if rows is None:
            data = [d.unsqueeze(0) for d in data]  # broadcasts: no copy per chain
        else:
            data = [d[rows] for d in data]
        terms = self.term(x, *data)
        wanted = (len(x), self.count if rows is None else rows.shape[1])
        if terms.shape != wanted:
            raise ValueError(f"term must return {wanted}, one per row, got {tuple(terms.shape)}")
        return self.prior(x) + self.count / wanted[1] * terms.sum(1)

    def check_condition(self, **condition: Any) -> None:
        super().check_condition(**{k: v for k, v in condition.items() if k != "rows"})


@dataclass(frozen=True)
class PolynomialDecay:
    """h_k = first (1 + k / delay)^-power for move k = 0, 1, ... (Welling and Teh 2011).

    With power in (1/2, 1] the steps sum to infinity and their squares do not.

    Args:
        first: the first step.
        delay: moves after which the decay sets in.
        power: in (0, 1].

    >>> PolynomialDecay(0.1, delay=1.0, power=1.0)(1)
    0.05
    """

    first: float
    delay: float = 1.0
    power: float = 0.55

    def __post_init__(self) -> None:
        check_positive("first", self.first)
        check_positive("delay", self.delay)
        check_number("power", self.power, 0.0, 1.0, open_low=True)

    def __call__(self, move: int) -> float:
        return self.first * (1 + move / self.delay) ** -self.power


@dataclass(frozen=True)
class SGLD(Kernel):
    """x + h score_m + sqrt(2 h T) z, with the score of m rows drawn afresh for every sample.

    (Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics"; their
    epsilon is 2 h.) Rows are drawn with replacement, from the same noise source. The gradient
    noise biases a constant step at first order in h; weight draws by h where steps shrink.

    Args:
        step_size: h, or a rule that gives it from the number of the move, such as
            `PolynomialDecay`.
        rows: m, rows per minibatch.
        temperature: T of the target.

    >>> SGLD(PolynomialDecay(1e-3), rows=32).rows
    32
    """

    step_size: float | Callable[[int], float]
    rows: int = 32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.step_size):
            check_positive("step_size", self.step_size)
        check_count("rows", self.rows)
        check_positive("temperature", self.temperature)

    def transition(
        self, model: ScoreModel, x: Tensor, t: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if not isinstance(model, PosteriorEnergy):
            raise TypeError(
                f"SGLD needs a sum over data rows, PosteriorEnergy(prior, term, data), got "
                f"{type(model).__name__}; use Langevin for a model without rows"
            )
        move = 0 if state is None else state
        h = self.step_size(move) if callable(self.step_size) else self.step_size
        u = torch.special.ndtr(noise(x.new_zeros(len(x), self.rows), t, t).double())
        rows = (u * model.count).long().clamp(max=model.count - 1)
        x = x.add(model(x, t, rows=rows).score, alpha=h)
        return x.add(noise(x, t, t), alpha=math.sqrt(2 * h * self.temperature)), move + 1
