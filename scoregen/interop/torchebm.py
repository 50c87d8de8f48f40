"""Energies to and from torchebm, whose `gradient` is +grad E, with the sign checked in numbers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_count, check_data, check_number
from ..energies import EnergyModel, Potential, ScoreEnergy, check_energy_sign
from ..models import ScoreModel, check_model

__all__ = ["from_torchebm", "to_torchebm"]


def from_torchebm(model: nn.Module, x: Tensor, *, samples: Tensor | None = None) -> EnergyModel:
    """A torchebm model as a time-free energy: E = model(x), score = -model.gradient(x).

    Its `gradient` is compared with finite differences of its `forward` at x. With samples of the
    data it was trained on, E[grad E . (x - mean)] must be positive, too: energies that torchebm up
    to 0.8.9 trained by denoising score matching are upside down.

    Args:
        model: a torchebm `BaseModel`, or any module with forward(x) -> (batch,).
        x: a few points to compare at, shape (batch, *event), away from the modes.
        samples: data, shape (n, *event).

    Raises:
        ValueError: for a wrong sign, or a wrong shape.

    >>> class Quadratic(nn.Module):
    ...     def forward(self, x):
    ...         return x.square().sum(1) / 2
    ...     def gradient(self, x):
    ...         return x
    >>> from_torchebm(Quadratic(), torch.ones(3, 2)).score(torch.ones(1, 2), 0.0).detach()
    tensor([[-1., -1.]])
    """
    check_data(x)
    energy = Potential(model)
    gradient: Callable[[Tensor], Tensor] | None = getattr(model, "gradient", None)
    if gradient is not None:
        with torch.no_grad():
            own, ours = gradient(x), -energy.score(x, 0.0)
        agree = float((own * ours).sum() / ours.square().sum())
        if not 0.8 < agree < 1.25:
            raise ValueError(
                f"this model's gradient is {agree:.3g} times the gradient of its own forward; "
                "torchebm's gradient must be +grad E: check the overridden method"
            )
    check_energy_sign(energy, x, samples=samples)
    return energy


def to_torchebm(
    model: ScoreModel, x: Tensor, t: float = 0.0, *, nodes: int = 16, **options: Any
) -> nn.Module:
    """A scoregen model at one time as a torchebm `BaseModel`, for its samplers and losses.

    forward is the energy (exact, or the line integral of the score from the origin) and gradient
    is -score, one evaluation. The sign is checked at x in numbers before anything is returned.

    Args:
        model: any score model, its condition bound.
        x: a few points to check at, shape (batch, *event).
        t: the time at which it is frozen; above 0 unless on StaticSDE.
        nodes: Gauss-Legendre nodes of the line integral.
        **options: of torchebm's `BaseModel`, such as dtype and device.

    Raises:
        ImportError: without torchebm.
        ValueError: if the score is not minus the gradient of the energy.

    >>> from scoregen import VPSDE, Gaussian
    >>> to_torchebm(Gaussian(VPSDE(), torch.zeros(2), 1.0), torch.ones(1, 2), 0.5)
    ... # doctest: +SKIP
    """
    check_data(x)
    check_model(model)
    check_number("t", t, 0.0)
    check_count("nodes", nodes)
    try:
        base: Any = importlib.import_module("torchebm.core").BaseModel
    except ImportError as error:
        raise ImportError("to_torchebm needs torchebm: pip install torchebm") from error
    frozen = ScoreEnergy(model, t, nodes=nodes)
    check_energy_sign(frozen, x)

    class ScoregenEnergy(base):
        """A scoregen model behind torchebm's interface."""

        def __init__(self) -> None:
            super().__init__(**options)
            self.frozen = frozen

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen.energy(x, self.frozen.level(0.0, x))

        def gradient(self, x: Tensor, model_kwargs: dict[str, Any] | None = None) -> Tensor:
            if model_kwargs:
                raise TypeError("bind conditions with model.given(...) before to_torchebm")
            with torch.no_grad():
                return -self.frozen.score(x, 0.0)

    return ScoregenEnergy()
