"""Augmentation that does not leak into the samples, since the network is given its description."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from .._checks import check_flag, check_number
from .augmented import check_images, mirrored

__all__ = ["NonLeaking"]


@dataclass(frozen=True)
class NonLeaking:
    """Flips, scalings, rotation and translation, described to the network by nine numbers.

    With probability p each, independently (the mirror image alone is always considered):

        image         numbers                   map of the plane             condition
        mirrored      a0 in {0, 1}              diag(1 - 2 a0, 1)            a0
        upside down   a1 in {0, 1}              diag(1, 1 - 2 a1)            a1
        scaled        a2 ~ N(0, 1)              2^(scale a2)                 a2
        rotated       a3 ~ U(-pi, pi)           R(-a3)                       cos a3 - 1, sin a3
        stretched     a4 ~ U(-pi, pi), a5 ~ N   R(a4) diag(s, 1/s) R(-a4)    a5 cos a4, a5 sin a4
        moved         a6, a7 ~ N(0, 1)          + move (a6 W, a7 H)          a6, a7

    with s = 2^(stretch a5) and the rotation R by an angle;
    all maps one after the other, in this order. The condition "augment", shape (batch, 9), is zero
    where nothing happened, so a network that is given zeros samples images of the data's own law.
    Its null value is zero: `Conditions({"augment": torch.zeros(9)})`.

    Images are resampled once, by bicubic interpolation, and continued beyond their edges by
    reflection. Those that are at most flipped are not resampled. (The paper resamples on a grid of
    twice the size with wavelet filters; the maps and the condition are the paper's.)

    Args:
        p: Probability of each change; 0.12 for CIFAR-10 and 0.15 for faces there.
        scale: log2 of the standard factor of the scaling.
        stretch: log2 of the standard factor of the stretching.
        move: Standard translation, as a share of the image.
        upside_down: Whether images may be turned upside down.

    Raises:
        ValueError: If p is not in [0, 1], or a size not in [0, 8].

    Source:
        Karras et al. (2022), 2206.00364, appendix F.2.

    Example:
        >>> from scoregen import Data
        >>> from scoregen.data import Augmented
        >>> source = Augmented(Data(torch.zeros(8, 3, 4, 4)), NonLeaking())
        >>> next(source.serve(4, seed=0)).condition["augment"].shape
        torch.Size([4, 9])
    """

    p: float = 0.12
    scale: float = 0.2
    stretch: float = 0.2
    move: float = 0.125
    upside_down: bool = True

    def __post_init__(self) -> None:
        for name, most in (("p", 1.0), ("scale", 8.0), ("stretch", 8.0), ("move", 8.0)):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0.0, most))
        check_flag("upside_down", self.upside_down)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The description of the change."""
        return ("augment",)

    def draw(self, batch: int, generator: np.random.Generator) -> Tensor:
        """a0 .. a7 of each image, 0 where the change is not made; shape (batch, 8), float64."""
        turned, scaled, rotated, stretched, moved = (generator.random((5, batch)) < self.p) * 1.0
        a0, a1 = (generator.random((2, batch)) < 0.5) * 1.0
        a3, a4 = math.pi * (2 * generator.random((2, batch)) - 1)
        a2, a5, a6, a7 = generator.standard_normal((4, batch))
        a = (
            a0, a1 * turned * self.upside_down, a2 * scaled, a3 * rotated,
            a4 * stretched, a5 * stretched, a6 * moved, a7 * moved,
        )  # fmt: skip
        return torch.from_numpy(np.stack(a, 1))

    def __call__(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (n, C, H, W), changed, and their condition "augment", shape (n, 9).

        Args:
            x: The images.
            drawn: a0 .. a7 of each, float64 on the host.
        """
        check_images(x)
        a = drawn.double().unbind(1)
        described = torch.stack(
            (a[0], a[1], a[2], a[3].cos() - 1, a[3].sin(), a[5] * a[4].cos(), a[5] * a[4].sin(),
             a[6], a[7]), 1,
        )  # fmt: skip
        condition = {"augment": described.to(torch.float32).to(x.device)}
        x = mirrored(mirrored(x, a[0] == 1, 3), a[1] == 1, 2)
        moved = (drawn[:, 2:] != 0).any(1)
        if not bool(moved.any()):  # on the host
            return x, condition
        grid = affine_grid(self._inverse(drawn, x).to(x), list(x.shape), align_corners=False)
        there = grid_sample(x, grid, "bicubic", "reflection", align_corners=False)
        return torch.where(moved.reshape(-1, 1, 1, 1).to(x.device), there, x), condition

    def _inverse(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Where each point of the changed image lies in x, (n, 2, 3), for sides of length 2.

        The maps are those of pixels, so that a rotation is one in images that are not square too.
        """
        a2, a3, a4, a5, a6, a7 = drawn.double()[:, 2:].unbind(1)
        stretch = torch.stack((self.stretch * a5, -self.stretch * a5), 1).exp2()
        scale = (self.scale * a2).exp2()[:, None, None]
        linear = _rotation(a4) @ torch.diag_embed(stretch) @ _rotation(-a4) @ _rotation(-a3) * scale
        half = torch.tensor([x.shape[3] / 2, x.shape[2] / 2], dtype=torch.float64)
        # y = L x + m in pixels, m = 2 move a half; so x = L^-1 (y - m)
        back = torch.linalg.inv(linear)
        shift = back @ (2 * self.move * torch.stack((a6, a7), 1) * half)[..., None]
        return torch.cat((back * half, -shift), 2) / half[:, None]


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
