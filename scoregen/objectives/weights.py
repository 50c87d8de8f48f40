"""How much each noise level counts: weights stated once, right for every parameterization.

The errors of the data and of the noise at one state are proportional, so one number describes a
loss at a level. Here that number multiplies

    e2 = norm(x0 - x0_hat)^2 + norm(eps - eps_hat)^2,

which is finite at both ends of every process. A unit loss on a form a x0 + b eps is
(alpha b - sigma a)^2 / (alpha^2 + sigma^2) of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_kind,
    check_number,
)
from ..models import EDM, Eps, Parameterization, ScoreModel, ScoreNetwork
from ..processes import SDE, Level
from .laws import TimeLaw, lam_rate

__all__ = ["EDMWeight", "Likelihood", "MinSNR", "Simple", "Unit", "Weight"]

Weight = Callable[[ScoreModel, Level, TimeLaw], Tensor]


def _unit(parameterization: Parameterization, sde: SDE, t: Level) -> Tensor:
    a, b = parameterization.coefficients(sde, t)
    weight: Tensor = (t.alpha * b - t.sigma * a) ** 2 / (t.alpha**2 + t.sigma**2)
    return weight


def own_parameterization(model: torch.nn.Module) -> Parameterization:
    """The parameterization of the one network inside a model.

    Raises:
        TypeError: if there is not exactly one network in it.

    >>> from scoregen import MLP, VPSDE, ScoreNetwork
    >>> own_parameterization(ScoreNetwork(MLP(), VPSDE(), Eps()))
    Eps()
    """
    found = [m.parameterization for m in model.modules() if isinstance(m, ScoreNetwork)]
    if len(found) != 1:
        raise TypeError(
            f"a loss on the network's own output needs a model with exactly one ScoreNetwork, and "
            f"{type(model).__name__} has {len(found)}; name the output, as in Unit(V())"
        )
    return found[0]


@dataclass(frozen=True)
class Unit:
    """Weight 1 on the squared error of one output, by default the network's own.

        w norm(a x0 + b eps - out)^2,  w = 1

    `Unit(V())` is the v-loss (Salimans and Ho 2022, 2202.00512), `Unit()` on a velocity network
    flow matching (Lipman et al. 2023, 2210.02747), `Unit(X0())` the denoising loss.

    Args:
        of: the output whose error counts 1; None means whatever the network predicts.

    Raises:
        TypeError: for None, if the model is not one network.

    >>> from scoregen import MLP, V, VPSDE, ScoreNetwork
    >>> model = ScoreNetwork(MLP(), VPSDE(), V())
    >>> round(float(Unit()(model, model.sde.level(0.5), None)), 12)
    1.0
    """

    of: Parameterization | None = None

    def __post_init__(self) -> None:
        check_kind("of", self.of, (Parameterization, type(None)), "V()")

    def __call__(self, model: ScoreModel, t: Level, law: TimeLaw) -> Tensor:
        return _unit(self.of or own_parameterization(model), model.sde, t)


@dataclass(frozen=True)
class Simple:
    """Weight 1 on the noise: L_simple = norm(eps - eps_hat)^2 (Ho et al. 2020, 2006.11239).

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> level = model.sde.level(0.5)
    >>> Simple()(model, level, None) == level.alpha**2 / (level.alpha**2 + level.sigma**2)
    True
    """

    def __call__(self, model: ScoreModel, t: Level, law: TimeLaw) -> Tensor:
        return _unit(Eps(), model.sde, t)


@dataclass(frozen=True)
class Likelihood:
    """The weight that bounds the log-likelihood, in nats (Song et al. 2021, 2101.09258).

        1/2 int g^2 norm(score - score_hat)^2 dt = int (-d lam / dt) norm(eps - eps_hat)^2 dt

    Divided by the density of the law of t, so that the mean over the law is the integral over the
    law's interval whatever the law is. With `UniformLamLaw` it is constant in the noise.

    Raises:
        TypeError: if the law states no density.

    >>> from scoregen import EDMSDE, Gaussian
    >>> from scoregen.objectives import UniformLaw
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), 1.0)
    >>> t = torch.tensor([0.5], dtype=torch.float64)
    >>> Likelihood()(model, model.sde.level_of(t, t), UniformLaw(0.4, 0.6))
    tensor([0.3200], dtype=torch.float64)
    """

    def __call__(self, model: ScoreModel, t: Level, law: TimeLaw) -> Tensor:
        log_density = getattr(law, "log_density", None)
        if log_density is None:
            raise TypeError(
                f"the likelihood weight divides by the density of the law of t, and {law!r} states "
                "none; give it a method log_density(sde, t), or use UniformLaw()"
            )
        rate = lam_rate(model.sde, t.t)
        return rate * torch.exp(-log_density(model.sde, t.t)) * _unit(Eps(), model.sde, t)


@dataclass(frozen=True)
class EDMWeight:
    """Weight 1 on EDM's network F: (r^2 + sigma_data^2) / (r sigma_data)^2 on the data.

    With r = sigma / alpha (Karras et al. 2022, 2206.00364). At the optimum for N(0, sigma_data^2)
    data the loss is 1 per coordinate at every level.

    Args:
        sigma_data: standard deviation of the data, per coordinate.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), 0.25)
    >>> round(EDMWeight(0.5)(model, model.sde.level(0.5), None), 12)
    1.6
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, 0.0, open_low=True)

    def __call__(self, model: ScoreModel, t: Level, law: TimeLaw) -> Tensor:
        return _unit(EDM(self.sigma_data), model.sde, t)


@dataclass(frozen=True)
class MinSNR:
    """min(snr, gamma) on the data, snr = (alpha / sigma)^2 (Hang et al. 2023, 2303.09556).

    That is min(snr, gamma) / snr on the noise and, on a variance preserving process,
    min(snr, gamma) / (snr + 1) on v.

    Args:
        gamma: the largest weight on the data.

    >>> from scoregen import EDMSDE, Gaussian
    >>> model = Gaussian(EDMSDE(), torch.zeros(2), 1.0)
    >>> t = torch.tensor([0.1], dtype=torch.float64)
    >>> MinSNR(5.0)(model, model.sde.level_of(t, t), None)
    tensor([0.0495], dtype=torch.float64)
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0.0, open_low=True)

    def __call__(self, model: ScoreModel, t: Level, law: TimeLaw) -> Tensor:
        alpha2, sigma2 = t.alpha**2, t.sigma**2
        # min(alpha^2 / sigma^2, gamma) sigma^2, without the division that fails at sigma = 0
        least: Any = torch.minimum(torch.as_tensor(alpha2), torch.as_tensor(self.gamma * sigma2))
        return least / (alpha2 + sigma2)
