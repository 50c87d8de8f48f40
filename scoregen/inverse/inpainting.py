"""Inpainting by replacement: the known region is kept at the noise level of the state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_count,
    check_finite,
    check_kind,
    check_tensor,
)
from ..models import ScoreModel
from ..models.prediction import mix
from ..noise import Noise
from ..processes import Level
from ..sampling import Direction, Solver
from ..solvers import Ancestral
from ..solvers.ancestral import posterior
from .measurement import broadcasts

__all__ = ["RePaint", "Replacement"]


def _check(mask: Tensor, known: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(
            "the mask must be a boolean tensor, True where the data is known; use mask.bool()"
        )
    check_tensor("known", known)
    fewer = min(mask.dim(), known.dim())
    ends = mask.shape[mask.dim() - fewer :], known.shape[known.dim() - fewer :]
    if abs(mask.dim() - known.dim()) > 1 or not broadcasts(*ends):
        raise ValueError(
            "the mask must have the shape of one sample of the known data, or one that broadcasts "
            f"to it such as (1, H, W), or (batch, ...) with one per sample; got "
            f"{tuple(mask.shape)} beside {tuple(known.shape)}"
        )
    shown = torch.where(mask, known, 0.0)
    check_finite("known, under the mask,", shown.reshape(1, shown.numel()))


def _pinned(x: Tensor, level: Level, mask: Tensor, known: Tensor, noise: Noise) -> Tensor:
    """x with the known region at the level of x: alpha known + sigma z."""
    for name, tensor in (("mask", mask), ("known data", known)):
        if not (broadcasts(tensor.shape, x.shape) or broadcasts(tensor.shape, x.shape[1:])):
            raise ValueError(
                f"the {name} must have the shape of one sample, {tuple(x.shape[1:])}, or of the "
                f"batch, {tuple(x.shape)}, or 1 where it is the same along an axis; got "
                f"{tuple(tensor.shape)}"
            )
    noised = level.alpha * known.to(x)
    if level.sigma:
        noised = noised + level.sigma * noise(x, level, level)
    return torch.where(mask.to(x.device), noised, x)


@dataclass(frozen=True, eq=False)
class Replacement(Solver):
    """Any solver, with the known region overwritten by alpha known + sigma z at each level.

    (Song et al. 2021, 2011.13456, appendix I.2.) The start is overwritten too. The unknown region
    sees the known one only through its noised value, so this does not sample the posterior, however
    many steps are taken.

    Args:
        solver: what moves the state.
        mask: boolean, True where known; shape event, or (batch, *event) with one per sample, and 1
            for an axis along which it is the same, such as (1, H, W) for all channels.
        known: the known data, likewise of shape event or (batch, *event); read only under the mask.

    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> mask = torch.tensor([True, False])
    >>> solver = Replacement(DDIM(), mask, torch.tensor([0.7, 0.0]))
    >>> Sampler(solver, UniformTime(10)).sample(model, (2, 2), seed=0)[:, 0]
    tensor([0.7000, 0.7000])
    """

    solver: Solver
    mask: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        check_kind("solver", self.solver, Solver, "DDIM()")
        _check(self.mask, self.known)

    @property
    def direction(self) -> Direction:
        return self.solver.direction

    @property
    def nfe(self) -> int | None:
        return self.solver.nfe

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if state is None:
            x = _pinned(x, t, self.mask, self.known, noise)
        inner = None if state is None else state[0]
        x, inner = self.solver.step(model, x, t, s, inner, noise)
        return _pinned(x, s, self.mask, self.known, noise), (inner,)


@dataclass(frozen=True, eq=False)
class RePaint(Solver):
    """Replacement, with each move down repeated after a move back up (Lugmayr et al. 2022,
    2201.09865): the unknown region gets time to agree with the known one.

    One move is `resample` times: an ancestral move t -> s, the known region overwritten, and
    x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z before the
    next. The paper's jump length is 1.

    Args:
        mask: boolean, True where known; shape event, or (batch, *event) with one per sample, and 1
            for an axis along which it is the same, such as (1, H, W) for all channels.
        known: the known data, likewise of shape event or (batch, *event); read only under the mask.
        resample: times each move is made, at least 1.
        variance: of the ancestral move, "small" or "large".

    >>> from scoregen import VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> solver = RePaint(torch.tensor([True, False]), torch.tensor([0.7, 0.0]), resample=3)
    >>> Sampler(solver, UniformTime(10)).sample(model, (2, 2), seed=0)[:, 0]
    tensor([0.7000, 0.7000])
    """

    mask: Tensor
    known: Tensor
    resample: int = 10
    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        _check(self.mask, self.known)
        check_count("resample", self.resample)
        check_choice("variance", self.variance, ("small", "large"))

    @property
    def nfe(self) -> int:
        return self.resample

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        ancestral = Ancestral(self.variance)
        up, std = t.alpha / s.alpha, math.sqrt(posterior(t, s)[3])
        if state is None:
            x = _pinned(x, t, self.mask, self.known, noise)
        for again in reversed(range(self.resample)):
            x, _ = ancestral.step(model, x, t, s, None, noise)
            x = _pinned(x, s, self.mask, self.known, noise)
            if again:
                x = mix(up, x, std, noise(x, s, t))
        return x, ()
