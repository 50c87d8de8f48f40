"""A slow average of the weights, which samples better than the last ones."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_kind, check_number
from .sharding import divide, gather, sharded

__all__ = ["EMA", "ema_decay"]

# the model, averages, its weights beside them, whether these are narrower, and what is copied
_Lists = tuple[nn.Module, list[Tensor], list[Tensor], bool, list[tuple[Tensor, Tensor]]]


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


def _narrow(p: Tensor) -> bool:
    return p.is_floating_point() and p.element_size() < 4


class EMA(nn.Module):
    """Exponential moving average of a model's weights.

        e_0 = w_0,   e_k = d_k e_{k-1} + (1 - d_k) w_k

    with the decay d_k of `ema_decay`. Weights of 16 bits and fewer are averaged in float32, since
    an update of 1 - d_k = 0.001 is less than their rounding, and `module` holds the average
    rounded to the model's own dtype. Buffers are copied. The average lives in `module`, in
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
        super().__init__()
        check_kind("model", model, nn.Module, "ScoreNetwork(net, VPSDE(), V())")
        self.decay = check_number("decay", decay, 0.0, 1.0, open_high=True)
        # on the host wherever the weights are: the next decay depends on it, and reading it must
        # not wait for a device
        self.register_buffer("n_averaged", torch.tensor(0, device="cpu"))
        self.n_averaged: Tensor
        self.module = deepcopy(model).requires_grad_(False)
        narrow = [p for p in self.module.parameters() if _narrow(p)]
        self.narrow = len(narrow)
        for i, p in enumerate(narrow):
            self.register_buffer(f"wide{i}", p.detach().float())
        # lists of tensors are gathered once: finding them costs as much as the update itself
        self._lists: _Lists | None = None
        self.eval()

    def _gather(self, model: nn.Module) -> _Lists:
        averages: list[Tensor] = []
        current: list[Tensor] = []
        copied = list(zip(self.module.buffers(), model.buffers(), strict=True))
        wide = iter(self._wide())
        for e, w in zip(self.module.parameters(), model.parameters(), strict=True):
            if e.is_floating_point() or e.is_complex():
                averages.append(next(wide) if _narrow(e) else e)
                current.append(w)
            else:
                copied.append((e, w))
        narrower = any(w.dtype != e.dtype for e, w in zip(averages, current, strict=True))
        self._lists = (model, averages, current, narrower, copied)
        return self._lists

    def _wide(self) -> list[Tensor]:
        return [getattr(self, f"wide{i}") for i in range(self.narrow)]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average.

        Args:
            model: the model given at the start, or one of the same architecture.
        """
        known = self._lists is not None and self._lists[0] is model
        lists = self._lists if known and self._lists else self._gather(model)
        _, averages, current, narrower, copied = lists
        count = self.count
        if averages and count:
            if narrower:
                pairs = zip(averages, current, strict=True)
                current = [w.to(e.dtype) for e, w in pairs]
            torch._foreach_lerp_(averages, current, 1 - self.decay_of(count))
        else:
            # one by one: divided weights have no joint copy
            for e, w in zip(averages, current, strict=True):
                e.copy_(w)
        for e, w in copied:
            e.copy_(w)
        self.n_averaged += 1
        if self.narrow:
            narrow: list[Tensor] = [p for p in self.module.parameters() if _narrow(p)]
            torch._foreach_copy_(narrow, self._wide())

    def decay_of(self, count: int) -> float:
        """The decay of the update after `count` others, of which the first copies the weights."""
        return ema_decay(count, self.decay)

    def state(self) -> dict[str, Tensor]:
        """What `module.state_dict()` holds, with the averages in the precision they are kept in."""
        wide = iter(self._wide())
        kept = {id(p): next(wide) for p in self.module.parameters() if _narrow(p)}
        held = self.module.state_dict(keep_vars=True)
        return {name: kept.get(id(t), t).detach() for name, t in held.items()}

    def snapshot(self) -> nn.Module:
        """A copy of the average as it is now, ready to sample from.

        Where the average is divided among processes, each of them must call this.
        """
        copy = deepcopy(self.module)
        gather(copy)
        return copy

    def divide_like(self, model: nn.Module) -> None:
        """Divide the average among the processes as `fully_shard` divided the model.

        Raises:
            ValueError: for weights of 16 bits, whose wide averages would stay whole.
        """
        if self.narrow and any(map(sharded, model.parameters())):
            raise ValueError(
                "weights that are divided among processes must be of 32 bits: compute in 16 bits "
                "by MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
            )
        divide(self.module, model)
        self._lists = None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The averaged model's own answer."""
        return self.module(*arguments, **named)

    def train(self, mode: bool = True) -> EMA:
        """Stays in evaluation mode: the average is for sampling."""
        super().train(False)
        return self

    @property
    def count(self) -> int:
        """Updates so far, which the next decay depends on."""
        return int(self.n_averaged)

    def _apply(self, *arguments: Any, **named: Any) -> EMA:
        self._lists = None  # moving a module replaces its buffers
        count = self.n_averaged
        super()._apply(*arguments, **named)
        self.n_averaged = count
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lists": None}
