"""The samples of one step of a training."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Samples of one step, and what they are conditioned on.

    Args:
        x: Floating, shape (n, *event).
        condition: Name -> value of any nested structure, one entry per sample; classes are int64
            under the name "label". {} without conditions.

    Example:
        >>> import torch
        >>> Batch(torch.zeros(2, 3), {"label": torch.tensor([0, 4])}).x.shape
        torch.Size([2, 3])
    """

    x: Tensor
    condition: dict[str, Any]
