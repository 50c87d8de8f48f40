"""Models made of models: products, quotients, tempering, mixtures, bridges.

At t > 0 the score of a product of noised densities is not the noised score of the product, so
ordinary diffusion samplers are biased on a `Product`; MCMC at each level is not (Du et al. 2023,
2302.11552).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_entries, check_number, check_numbers
from ..models import Prediction, ScoreModel
from ..processes import SDE, Level, StaticSDE
from .energy import EnergyModel, EnergyPrediction, energy_of

__all__ = ["GeometricPath", "Mixture", "Negated", "Product", "Tempered"]


Exponent = float | Callable[[Level], float]


def common_process(models: Sequence[ScoreModel]) -> SDE:
    """The one process of all models; a time-free energy goes with any."""
    for model in models:
        if not isinstance(model, ScoreModel):
            raise TypeError(
                f"need score models, got {type(model).__name__}; wrap an energy with Potential"
            )
    moving = [m.sde for m in models if not isinstance(m.sde, StaticSDE)]
    if any(sde != moving[0] for sde in moving):
        raise ValueError(f"models must share one process, got {', '.join(map(str, moving))}")
    return moving[0] if moving else models[0].sde


def _own_level(sde: SDE, model: ScoreModel, t: Level) -> Level:
    """The level of a part: a time-free part of a moving whole has only its own."""
    return t if model.sde == sde else model.sde.level(0.0)


class Weighted(EnergyModel):
    """E(x, t) = sum_i w_i(t) E_i(x, t). Works for models that have only a score, too."""

    def __init__(self, models: Sequence[ScoreModel]):
        super().__init__()
        if not models:
            raise ValueError("need at least one model")
        self.sde = common_process(models)
        self.models = nn.ModuleList(models)

    @abstractmethod
    def weights_at(self, t: Level) -> Sequence[Any]:
        """One weight per model at a level."""

    def parts(self, t: Level) -> list[tuple[Any, ScoreModel, Level]]:
        """(weight, model, its own level) of every model that counts at this level."""
        found = []
        for weight, model in zip(self.weights_at(t), self.models, strict=True):
            if isinstance(model, ScoreModel) and (isinstance(weight, Tensor) or weight != 0):
                found.append((weight, model, _own_level(self.sde, model, t)))
        return found

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        total = x.new_zeros(len(x))
        for weight, model, level in self.parts(t):
            total = total + _per_sample(weight) * energy_of(model, x, level, **condition)
        return total

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        score, energy = torch.zeros_like(x), x.new_zeros(len(x))
        known = True
        for weight, model, level in self.parts(t):
            p = model.predict(x, level, **condition)
            score = score + weight * p.score
            if isinstance(p, EnergyPrediction):
                energy = energy + _per_sample(weight) * p.energy
            else:
                known = False
        if known:
            return EnergyPrediction(self.sde, t, x, score=score, energy=energy)
        return Prediction(self.sde, t, x, score=score)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        """Sum of the parts' differences: exact where they are, line integrals otherwise."""
        total = x.new_zeros(len(x))
        for weight, model, level in self.parts(t if isinstance(t, Level) else self.level(t, x)):
            change = model.energy_difference(x, y, level, nodes=nodes, **condition)
            total = total + _per_sample(weight) * change
        return total


def _per_sample(weight: Any) -> Any:
    return weight.reshape(-1) if isinstance(weight, Tensor) else weight


class Product(Weighted):
    """p_t(x) proportional to prod_i p_i,t(x)^w_i: experts that must all agree, prior x likelihood.

    Args:
        *models: score models of one process, each with its own condition bound by `given`;
            time-free energies (`Potential`) join at every level.
        weights: exponents, one per model, not zero; all 1 unless given. (1 + w, -w) on a
            conditional and an unconditional model is guidance of strength w. A function of the
            level in place of a number is an exponent that changes on the way.

    >>> from scoregen.energies import Potential
    >>> half = Potential(lambda x: x.square().sum(1) / 2)
    >>> Product(half, half)(torch.ones(1, 1), 0.0).score.detach()
    tensor([[-2.]])
    """

    def __init__(self, *models: ScoreModel, weights: Sequence[Exponent] | None = None):
        super().__init__(models)
        given: list[Any] = [1.0] * len(models)
        if weights is not None:
            given = list(check_entries("weights", weights, "numbers or functions of the level"))
        if len(given) != len(models):
            raise ValueError(f"need one weight per model ({len(models)}), got {len(given)}")
        numbers = check_numbers("weights", [w for w in given if not callable(w)])
        if not all(w and math.isfinite(w) for w in numbers):
            raise ValueError(f"weights must be finite and not zero, got {numbers}")
        rest = iter(numbers)
        self.weights = tuple(w if callable(w) else next(rest) for w in given)

    @property
    def scheduled(self) -> bool:
        """Whether an exponent depends on the level."""
        return any(callable(w) for w in self.weights)

    def weights_at(self, t: Level) -> Sequence[Any]:
        return [w(t) if callable(w) else w for w in self.weights]


class Tempered(Weighted):
    """p_t(x)^(1 / T) / Z: E / T, flatter for T > 1, sharper for T < 1.

    Args:
        model: any score model.
        temperature: T > 0.

    >>> from scoregen.energies import Potential
    >>> model = Tempered(Potential(lambda x: x.square().sum(1)), 4.0)
    >>> energy_of(model, torch.full((1, 1), 2.0))
    tensor([1.])
    """

    def __init__(self, model: ScoreModel, temperature: float):
        super().__init__([model])
        self.temperature = check_number("temperature", temperature, 0.0, open_low=True)

    def weights_at(self, t: Level) -> Sequence[Any]:
        return (1 / self.temperature,)


class Negated(Weighted):
    """1 / p_t(x): -E, a factor that pushes away. Alone it has no finite mass.

    Args:
        model: any score model.

    >>> from scoregen.energies import Potential
    >>> model = Negated(Potential(lambda x: x.square().sum(1)))
    >>> energy_of(model, torch.full((1, 1), 2.0))
    tensor([-4.])
    """

    def __init__(self, model: ScoreModel):
        super().__init__([model])

    def weights_at(self, t: Level) -> Sequence[Any]:
        return (-1.0,)


class GeometricPath(Weighted):
    """E(x, t) = t E_reference(x) + (1 - t) E_target(x) on `StaticSDE`, t from 1 down to 0.

    The geometric path of annealed importance sampling (Neal 2001, physics/9803008).

    Args:
        reference: a time-free model that can be sampled, such as a Gaussian on `StaticSDE`.
        target: a time-free energy.

    >>> from scoregen.densities import Gaussian
    >>> from scoregen.energies import Potential
    >>> start = Gaussian(StaticSDE(), torch.zeros(1), 1.0)
    >>> path = GeometricPath(start, Potential(lambda x: 2 * x.square().sum(1)))
    >>> path(torch.ones(1, 1), 0.5).score.detach()
    tensor([[-2.5000]])
    """

    def __init__(self, reference: ScoreModel, target: ScoreModel):
        super().__init__([reference, target])
        if not isinstance(self.sde, StaticSDE):
            raise ValueError(
                "a geometric path joins two time-free models on StaticSDE; for a model at one "
                "level of a process use energy_from_score(model, t)"
            )

    def weights_at(self, t: Level) -> Sequence[Any]:
        return t.t, 1 - t.t


class Mixture(EnergyModel):
    """p_t(x) = sum_k w_k p_k,t(x), with E = -log sum_k w_k exp(-E_k - log Z_k).

    Args:
        *models: models with energies, of one process.
        weights: shares, one per model, positive; normalised here; equal unless given.
        log_z: log normalisers of exp(-E_k), one per model; zero suits exact densities.

    Raises:
        TypeError: when evaluated, if a model has only a score: shares need energies, and
            `mcmc.Superposition` samples without them.

    >>> from scoregen import Gaussian
    >>> left, right = (Gaussian(StaticSDE(), torch.full((1,), m), 1.0) for m in (-2.0, 2.0))
    >>> Mixture(left, right)(torch.zeros(1, 1), 0.0).score
    tensor([[0.]])
    """

    def __init__(
        self,
        *models: ScoreModel,
        weights: Sequence[float] | None = None,
        log_z: Sequence[float] | None = None,
    ):
        super().__init__()
        if not models:
            raise ValueError("need at least one model")
        ones = [1.0] * len(models)
        shares = check_numbers("weights", ones if weights is None else weights, 0.0, open_low=True)
        log_z = check_numbers("log_z", [0.0] * len(models) if log_z is None else log_z)
        if not len(shares) == len(log_z) == len(models):
            raise ValueError(f"need one weight and one log_z per model ({len(models)})")
        self.sde, self.models, self.log_z = common_process(models), nn.ModuleList(models), log_z
        share = torch.tensor(shares, dtype=torch.float64)
        share = share / share.sum()
        self.register_buffer("shares", share)
        self.register_buffer("offset", share.log() - torch.tensor(log_z, dtype=torch.float64))
        self.shares: Tensor
        self.offset: Tensor

    def _evaluated(self, x: Tensor, t: Level, **condition: Any) -> tuple[Tensor, Tensor]:
        scores, joints = [], []
        for model, offset in zip(self.models, self.offset, strict=True):
            if isinstance(model, ScoreModel):
                level = _own_level(self.sde, model, t)
                p = model.predict(x, level, **condition)
                if isinstance(p, EnergyPrediction):
                    energy = p.energy
                else:
                    energy = energy_of(model, x, level, **condition)
                scores.append(p.score)
                joints.append(offset.to(x.dtype) - energy)
        return torch.stack(scores, 1), torch.stack(joints, 1)

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return -self._evaluated(x, t, **condition)[1].logsumexp(1)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scores, joints = self._evaluated(x, t, **condition)
        share = joints.softmax(1).reshape(joints.shape + (1,) * (x.dim() - 1))
        energy = -joints.logsumexp(1)
        return EnergyPrediction(self.sde, t, x, score=(share * scores).sum(1), energy=energy)
