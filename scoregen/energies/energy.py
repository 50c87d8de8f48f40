"""Energies: p(x) proportional to exp(-E(x, t)), with the score -grad E by autograd.

A score model and an energy model are two views of one thing. What has an energy can be accepted
or rejected exactly; what has only a score goes through the line integral of `conservative`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_kind, check_number, check_same_shape, check_state
from ..densities import Analytic
from ..models import Clock, Conditions, Given, HalfLogSNR, Prediction, ScoreModel, conditions_of
from ..models.base import check_model
from ..models.network import check_network_condition
from ..processes import SDE, Level, StaticSDE

__all__ = [
    "ReconstructionEnergy",
    "EnergyModel",
    "EnergyNetwork",
    "EnergyPrediction",
    "Potential",
    "energy_of",
]


class EnergyPrediction(Prediction):
    """A prediction that also keeps the energy found on the way to the score.

    Attributes:
        energy: E(x, t) of every sample, shape (batch,).

    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> model(torch.ones(1, 2), 0.0).energy.detach()
    tensor([1.])
    """

    __slots__ = ("energy",)

    def __init__(self, sde: SDE, t: Level, x: Tensor, *, score: Tensor, energy: Tensor):
        super().__init__(sde, t, x, score=score)
        self.energy = energy


def _checked(energy: object, x: Tensor) -> Tensor:
    """One number per sample; a map would be summed in silence, and mean something else."""
    if not isinstance(energy, Tensor):
        raise TypeError(
            f"an energy must be a tensor of shape ({len(x)},), got {type(energy).__name__}"
        )
    if energy.shape != x.shape[:1]:
        raise ValueError(
            f"an energy must be one number per sample, shape ({len(x)},), got "
            f"{tuple(energy.shape)} for x of shape {tuple(x.shape)}; sum over the event, as in "
            "e.flatten(1).sum(1)"
        )
    return energy


def _defined(score: Tensor, energy: Tensor) -> Tensor:
    """The score where the energy is a number, nan where it is not."""
    off = energy.detach().isnan().reshape(-1, *(1,) * (score.dim() - 1))
    return score.masked_fill(off, float("nan"))


class EnergyModel(ScoreModel):
    """A score model given by its energy, p_t(x) = exp(-E(x, t)) / Z(t); score = -grad_x E.

    Subclasses set `sde` and write `energy`. A time-free E(x) lives on `StaticSDE`, where only the
    score and the energy exist. The gradient is taken under `torch.no_grad` too. Where gradients
    are enabled and x or anything else that the energy is made of requires one, the score is itself
    differentiable, so every objective can train it; else it holds no graph. Where the energy is
    nan, off the support, there is no score: it is nan too.

    >>> class Quartic(EnergyModel):
    ...     sde = StaticSDE()
    ...     def energy(self, x, t, **condition):
    ...         return x.pow(4).sum(1) / 4
    >>> Quartic()(torch.full((1, 1), 2.0), 0.0).score
    tensor([[-8.]])
    """

    @abstractmethod
    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        """E(x, t) in nats, shape (batch,), differentiable in x and row by row.

        Args:
            x: state of shape (batch, *event).
            t: level of floats, or of tensors that broadcast against x.
        """

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "the score of an energy needs autograd, which torch.inference_mode() switches "
                "off for good; use torch.no_grad() instead"
            )
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if x.is_inference():
                x = x.clone()
            try:
                # an alias, so that nothing else made from x counts as a part of the gradient
                y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            except RuntimeError:  # inside torch.func transforms no leaf can be made
                return self._functional(x, t, condition)
            energy = _checked(self.energy(y, t, **condition), x)
            graph = graph and (x.requires_grad or self._trains(energy, y))
            slope = None
            if energy.requires_grad:
                (slope,) = torch.autograd.grad(
                    energy.sum(), y, create_graph=graph, allow_unused=True
                )
        if slope is None:
            raise ValueError(
                f"the energy of {type(self).__name__} does not depend on x in a way autograd can "
                "follow: compute it from x with torch operations, without detach, numpy or no_grad"
            )
        energy = energy if graph else energy.detach()
        return EnergyPrediction(self.sde, t, x, score=_defined(-slope, energy), energy=energy)

    def _trains(self, energy: Tensor, y: Tensor) -> bool:
        """Whether anything but y, a parameter or a captured tensor, can receive a gradient."""
        if any(p.requires_grad for p in self.parameters()):
            return True
        todo, seen = [energy.grad_fn], {energy.grad_fn}
        while todo:
            node = todo.pop()
            if node is None:
                continue
            if hasattr(node, "variable") and node.variable is not y:
                return True
            for after, _ in node.next_functions:
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        return False

    def _functional(self, x: Tensor, t: Level, condition: dict[str, Any]) -> Prediction:
        def total(y: Tensor) -> Tensor:
            return _checked(self.energy(y, t, **condition), y)

        energy, pull, *_ = torch.func.vjp(total, x)
        (slope,) = pull(torch.ones_like(energy))
        return EnergyPrediction(self.sde, t, x, score=_defined(-slope, energy), energy=energy)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        """E(y) - E(x): exact, shape (batch,)."""
        check_same_shape("y", y, x)
        level = t if isinstance(t, Level) else self.level(t, x)
        return energy_of(self, y, level, **condition) - energy_of(self, x, level, **condition)


class Potential(EnergyModel):
    """Any callable or module x -> E(x) of shape (batch,), as a time-free model on `StaticSDE`.

    As a factor of a `Product` it stands beside models of any process, at every level.

    Args:
        potential: takes x of shape (batch, *event), returns (batch,) in nats.

    >>> model = Potential(lambda x: x.square().sum(1) / 2)
    >>> with torch.no_grad():
    ...     model.score(torch.ones(1, 2), 0.0)
    tensor([[-1., -1.]])
    """

    def __init__(self, potential: Callable[[Tensor], Tensor]):
        super().__init__()
        check_callable("potential", potential, "(batch, *event) -> (batch,), the energy in nats")
        self.potential, self.sde = potential, StaticSDE()

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return self.potential(x)


class EnergyNetwork(EnergyModel):
    """A network net(x, clock, **condition) -> (batch,) read as an energy at every noise level.

    Trained by denoising score matching it learns -log p_t up to a constant (Du et al. 2023,
    2302.11552).

    Args:
        net: returns one number per sample; `ReconstructionEnergy` makes one of a network that
            returns x's shape.
        sde: the process it is trained on.
        clock: the time as the network reads it; half the log-SNR unless given.

    >>> from scoregen import MLP, VPSDE
    >>> model = EnergyNetwork(ReconstructionEnergy(MLP(event=(2,), hidden=16)), VPSDE())
    >>> model(torch.zeros(3, 2), 0.5).eps.shape
    torch.Size([3, 2])
    """

    def __init__(self, net: nn.Module, sde: SDE, clock: Clock | None = None):
        super().__init__()
        check_callable("net", net, "(x, clock, **condition) -> (batch,)")
        check_kind("sde", sde, SDE, "VPSDE()")
        if clock is not None:
            check_callable("clock", clock, "(sde, level, x) -> Tensor, such as HalfLogSNR()")
        self.net, self.sde = net, sde
        self.clock: Clock = HalfLogSNR() if clock is None else clock

    def energy(self, x: Tensor, t: Level, **condition: Any) -> Tensor:
        return self.net(x, self.clock(self.sde, t, x), **condition).to(x.dtype)

    @property
    def conditions(self) -> Conditions | None:
        return conditions_of(self.net)

    def check_condition(self, **condition: Any) -> None:
        check_network_condition(self.net, None, condition)


class ReconstructionEnergy(nn.Module):
    """E = scale |x - net(x, clock)|^2 / 2: an energy from a network that returns x's shape.

    The form of Salimans and Ho (2021, "Should EBMs model the energy or the score?").

    Args:
        net: callable net(x, clock, **condition) shaped like x.
        scale: factor on the energy.

    >>> ReconstructionEnergy(lambda x, clock: 0 * x)(torch.ones(1, 2), torch.zeros(1))
    tensor([1.])
    """

    def __init__(self, net: Callable[..., Tensor], scale: float = 1.0):
        super().__init__()
        check_callable("net", net, "(x, clock, **condition) -> a tensor shaped like x")
        self.net, self.scale = net, check_number("scale", scale, 0.0, open_low=True)

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        out = self.net(x, clock, **condition)
        check_same_shape("the network's output", out, x)
        return self.scale / 2 * (x - out).square().reshape(len(x), -1).sum(1)

    @property
    def conditions(self) -> Conditions | None:
        """What the network inside takes; None where it does not declare it."""
        return conditions_of(self.net)

    def check_condition(self, **condition: Any) -> None:
        """Refuse a condition the network does not know."""
        check_network_condition(self.net, None, condition)


def energy_of(
    model: ScoreModel, x: Tensor, t: Level | float | Tensor = 0.0, **condition: Any
) -> Tensor:
    """E(x, t), shape (batch,), of a model that knows one: an energy model or an exact density.

    Args:
        model: an `EnergyModel`, an `Analytic` model (E = -log p_t), or one of these with its
            condition bound.
        x: state of shape (batch, *event).
        t: a level, a time, or one time per sample.

    Raises:
        TypeError: for a model that has only a score.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), 1.0)
    >>> energy_of(model, torch.zeros(1, 2), 0.0)
    tensor([1.8379])
    """
    if not isinstance(t, Level):
        t = check_model(model).level(t, check_state(x))
    level = t
    if isinstance(model, Given):
        return energy_of(model.model, x, level, **model.condition, **condition)
    if isinstance(model, Analytic):
        return -model.log_density(x, level)
    if isinstance(model, EnergyModel):
        return _checked(model.energy(x, level, **condition), x)
    raise TypeError(
        f"{type(model).__name__} has a score but no energy; wrap it with energy_from_score(model, "
        "t), or use what needs only differences (MALA, HMC), which integrate the score"
    )
