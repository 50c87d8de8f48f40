"""Whole-number levels, such as those of 8-bit images, on [-1, 1] and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_count, check_finite, check_tensor

__all__ = ["from_levels", "to_levels"]


def from_levels(levels: Tensor, bins: int) -> Tensor:
    """Puts whole-number levels 0 .. bins - 1 on [-1, 1].

        x = 2 levels / (bins - 1) - 1

    Args:
        levels: Integer tensor of any shape with values in 0 .. bins - 1.
        bins: Number of levels: 256 for 8-bit images.

    Returns:
        float32 tensor of the same shape; 0 gives -1 and bins - 1 gives 1 exactly.

    Raises:
        TypeError: If `levels` is not an integer tensor.
        ValueError: If `bins` is below 2, or a level lies outside.

    Example:
        >>> from_levels(torch.tensor([0, 51, 255]), bins=256)
        tensor([-1.0000, -0.6000,  1.0000])
    """
    bins = check_bins(bins)
    check_levels(check_tensor("levels", levels), bins)
    return on_range(levels, bins)


def check_levels(levels: Tensor, bins: int) -> None:
    """Refuse what are no levels 0 .. bins - 1; `bins` is checked where it is declared."""
    if levels.dtype.is_floating_point or levels.dtype.is_complex or levels.dtype == torch.bool:
        raise TypeError(f"levels must be an integer tensor, got {levels.dtype}")
    if levels.numel() and (levels.dtype != torch.uint8 or bins < 256):
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high >= bins:
            raise ValueError(f"levels must lie in 0 .. {bins - 1}, got {low} .. {high}")


def beyond(x: Tensor, low: float, high: float) -> tuple[float, float] | None:
    """The least and the largest value of x, if one of them lies outside of [low, high]."""
    least, most = float(x.min()), float(x.max())
    # The bounds are compared as x would hold them: 0.1 in float32 exceeds 0.1.
    low, high = torch.tensor([low, high], dtype=x.dtype).tolist()
    return (least, most) if least < low or most > high else None


def on_range(levels: Tensor, bins: int) -> Tensor:
    # In this order the two ends come out as -1 and 1 exactly. The divisor is a tensor of the
    # device, since CUDA multiplies by the reciprocal of a number, whose last bit differs.
    divisor = torch.full((), bins - 1, dtype=torch.float32, device=levels.device)
    return levels.to(torch.float32).mul_(2).div_(divisor).sub_(1)


def to_levels(x: Tensor, bins: int) -> Tensor:
    """The nearest of `bins` levels on [-1, 1]; the exact inverse of `from_levels`.

        level = floor((x + 1) (bins - 1) / 2 + 1/2), at least 0 and at most bins - 1

    A value outside [-1, 1], as a sampler may give, has an end level as its nearest.

    Args:
        x: Floating tensor of any shape.
        bins: Number of levels.

    Returns:
        int64 tensor of the same shape (int64, because uint8 indexes as a mask).

    Raises:
        TypeError: If `x` is not floating.
        ValueError: If `bins` is below 2, or `x` is not finite.

    Example:
        >>> to_levels(torch.tensor([-1.0, -0.6001, 1.3]), bins=256)
        tensor([  0,  51, 255])
    """
    bins = check_bins(bins)
    if not check_tensor("x", x).is_floating_point():
        raise TypeError(f"x must be a floating tensor on [-1, 1], got {x.dtype}")
    check_finite("x", x)
    return (x.double().add_(1).mul_((bins - 1) / 2) + 0.5).floor_().clamp_(0, bins - 1).long()


def check_bins(bins: object) -> int:
    """The number of levels as an int.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If there are fewer than two, or more than float32 keeps apart.

    Example:
        >>> check_bins(torch.tensor(256))
        256
    """
    count = check_count("bins", bins, 2)
    if count > 1 << 24:
        raise ValueError(f"bins must be at most 2^24, the whole numbers of float32, got {count}")
    return count
