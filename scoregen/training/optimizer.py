"""The optimizer of a training: AdamW that leaves out a step on the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["SkippingAdamW"]


class SkippingAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2017, 1711.05101) that skips a step where the gradient is bad.

    The fused kernels read `found_inf` on the device, so that the host needs not wait to know
    whether a step is taken; weights and moments keep their bits in a step that is not. Where there
    are no fused kernels, the host waits.

    Args:
        parameters: what to train.
        lr: the learning rate.
        weight_decay: as a share of lr.

    >>> w = nn.Parameter(torch.ones(1))
    >>> optimizer = SkippingAdamW([w], 0.1)
    >>> w.grad = torch.tensor([torch.nan])
    >>> optimizer.step_unless(~w.grad.isfinite().all())
    >>> w.item()
    1.0
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        kept = list(parameters)
        self.fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in kept)
        super().__init__(kept, lr, weight_decay=weight_decay, fused=self.fused)

    def step_unless(self, bad: Tensor) -> None:
        """One update, or none.

        Args:
            bad: whether to leave it out, a boolean of shape (), on the device.
        """
        if self.fused:
            self.found_inf = bad.float()
            self.step()
        elif not bool(bad):
            self.step()
