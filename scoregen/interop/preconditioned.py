"""A raw network F inside one of the preconditionings of EDM, as the denoiser D."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_number

__all__ = ["Preconditioned"]

Kind = Literal["edm", "vp", "ve", "iddpm"]


class Preconditioned(nn.Module):
    """D(x; sigma, label) = c_skip x + c_out F(c_in x; c_noise, label), Table 1 of Karras et al.

    | | c_skip | c_out | c_in | c_noise |
    |---|---|---|---|---|
    | vp | 1 | -sigma | 1 / sqrt(sigma^2 + 1) | (M - 1) t(sigma) |
    | ve | 1 | sigma | 1 | log(sigma / 2) |
    | iddpm | 1 | -sigma | 1 / sqrt(sigma^2 + 1) | M - 1 - index of the nearest level |
    | edm | s^2 / (sigma^2 + s^2) | sigma s / sqrt(sigma^2 + s^2) | 1 / sqrt(sigma^2 + s^2) | log(sigma) / 4 |

    with s the standard deviation of the data (2022, 2206.00364).

    Args:
        net: F, called net(x, clock, label).
        kind: "edm", "vp", "ve" or "iddpm".
        event: shape of one sample.
        classes: number of classes, 0 for none.
        sigma_data: s of "edm".
        span: least and greatest sigma; of "vp" and "iddpm" their own unless given.
        beta: beta_d and beta_min of "vp".
        knots: M of "vp".
        levels: the falling sigmas of "iddpm", the last of them 0.

    Raises:
        ValueError: for an unknown kind, or "iddpm" without levels.

    >>> d = Preconditioned(lambda x, clock, label: 0 * x, "edm", (1, 2, 2))
    >>> d(torch.ones(1, 1, 2, 2), torch.tensor([0.5]))[0, 0, 0]
    tensor([0.5000, 0.5000])
    """  # noqa: E501

    def __init__(
        self,
        net: nn.Module,
        kind: Kind,
        event: tuple[int, ...],
        *,
        classes: int = 0,
        sigma_data: float = 0.5,
        span: tuple[float, float] | None = None,
        beta: tuple[float, float] = (19.9, 0.1),
        knots: int = 1000,
        levels: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("edm", "vp", "ve", "iddpm"))
        self.net, self.kind, self.event = net, kind, event
        self.label_dim = classes
        self.sigma_data = check_number("sigma_data", sigma_data, 0.0, open_low=True)
        self.beta, self.knots = beta, knots
        if kind == "iddpm":
            if levels is None:
                raise ValueError('kind="iddpm" needs levels, its falling sigmas')
            knots = len(levels) - 1
            self.knots = knots
            span = (float(levels[knots - 1]), float(levels[0]))
        elif kind == "vp" and span is None:
            span = (self._sigma(1e-5), self._sigma(1.0))
        self.register_buffer("levels", levels)
        self.sigma_min, self.sigma_max = (0.0, math.inf) if span is None else span

    def _sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(self.beta[0] * t**2 / 2 + self.beta[1] * t))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        each = sigma.reshape(-1)
        each = each.expand(len(x)) if len(each) == 1 else each
        s = each.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
        out = self.net(self._inner(x, s), self._clock(each), label)
        if self.kind == "iddpm":
            out = out[:, : x.shape[1]]
        if self.kind != "edm":
            return x + (s if self.kind == "ve" else -s) * out
        total = s**2 + self.sigma_data**2
        return self.sigma_data**2 / total * x + s * self.sigma_data / total.sqrt() * out

    def _inner(self, x: Tensor, s: Tensor) -> Tensor:
        if self.kind == "ve":
            return x
        return x / (s**2 + (self.sigma_data**2 if self.kind == "edm" else 1.0)).sqrt()

    def _clock(self, sigma: Tensor) -> Tensor:
        if self.kind == "edm":
            return sigma.log() / 4
        if self.kind == "ve":
            return (sigma / 2).log()
        if self.kind == "vp":
            slope, least = self.beta
            root = (least**2 + 2 * slope * (1 + sigma**2).log()).sqrt()
            return (self.knots - 1) * (root - least) / slope
        return (self.knots - 1 - self._index(sigma)).to(sigma.dtype)

    def _index(self, sigma: Tensor) -> Tensor:
        """The nearest of the levels."""
        levels: Any = self.levels
        if levels is None:
            raise ValueError(f"{self.kind} has no list of levels")
        levels = levels.to(sigma.device)
        dtype = torch.promote_types(sigma.dtype, levels.dtype)
        return (sigma.to(dtype)[:, None] - levels.to(dtype)).abs().argmin(1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The sigmas at which the network is evaluated in place of those."""
        sigma = torch.as_tensor(sigma)
        if self.kind != "iddpm":
            return sigma
        levels: Any = self.levels
        nearest: Tensor = levels[self._index(sigma.reshape(-1))]
        return nearest.to(sigma).reshape(sigma.shape)
