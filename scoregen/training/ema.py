"""A slow average of the weights, which samples better than the last ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .._checks import check_number

__all__ = ["EMA", "ema_decay"]

_Tensors = tuple[Tensor, ...] | list[Tensor]


def ema_decay(count: int, decay: float) -> float:
    """The decay of an update, warmed up so that the first random weights are soon forgotten.

        d_k = min(decay, (1 + k) / (10 + k)),  k = updates before this one

    Args:
        count: k; the first update, k = 0, copies the weights instead.
        decay: the decay in the long run, in [0, 1).

    >>> [round(ema_decay(k, 0.9), 3) for k in (1, 10, 100)]
    [0.182, 0.55, 0.9]
    """
    return min(decay, (1 + count) / (10 + count))


class EMA(AveragedModel):
    """Exponential moving average of a model's weights, by torch's own `AveragedModel`.

        e_0 = w_0,   e_k = d_k e_{k-1} + (1 - d_k) w_k

    with the decay d_k of `ema_decay`. Buffers are copied. The average lives in `module`, in
    evaluation mode and without gradients; the model itself is only read. (Polyak and Juditsky
    1992; for scores: Song and Ermon 2020, 2006.09011.)

    Args:
        model: what to average; it is copied.
        decay: the decay in the long run, in [0, 1).

    >>> model = nn.Linear(2, 2)
    >>> ema = EMA(model, decay=0.99)
    >>> ema.update_parameters(model)
    >>> ema.module.weight.equal(model.weight)
    True
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        check_number("decay", decay, 0.0, 1.0, open_high=True)

        def average(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
            rate = ema_decay(int(count), decay)
            get_ema_multi_avg_fn(rate)(averaged, current, count)

        super().__init__(model, multi_avg_fn=average)
        self.decay = decay
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EMA:
        """Stays in evaluation mode: the average is for sampling."""
        super().train(False)
        return self
