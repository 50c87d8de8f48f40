"""A score model made of a network: what it predicts, on which process, at which clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..processes import SDE, Level
from .base import ScoreModel
from .clocks import Clock, HalfLogSNR
from .network import (
    Conditions,
    check_network,
    check_network_condition,
    conditions_of,
    evaluate,
)
from .parameterization import Parameterization
from .prediction import Prediction

__all__ = ["ScoreNetwork"]


class ScoreNetwork(ScoreModel):
    """A network, a process, the meaning of its output and the clock it reads: four slots.

    Args:
        net: any callable net(x, clock, **condition): a module, a function, a parallel wrapper. Its
            output, shaped like x, may come in a tuple or an object (see `models.network`). The
            condition is passed on as given.
        sde: the process it was trained on.
        parameterization: what its output means.
        clock: the time as it reads it, half the log-SNR unless given.
        conditions: what it takes, for a network that does not declare it itself.

    Raises:
        TypeError: for a slot filled with something else.

    >>> from scoregen import MLP, VPSDE, Eps
    >>> model = ScoreNetwork(MLP(event=(2,)), VPSDE(), Eps())
    >>> model(torch.zeros(4, 2), 0.5).eps.shape
    torch.Size([4, 2])
    >>> ScoreNetwork(lambda x, clock: 0 * x, VPSDE(), Eps()).placement()
    (device(type='cpu'), torch.float32)
    """

    net: Any

    def __init__(
        self,
        net: Callable[..., Any],
        sde: SDE,
        parameterization: Parameterization,
        clock: Clock | None = None,
        *,
        conditions: Conditions | None = None,
    ):
        super().__init__()
        check_network(net)
        if isinstance(net, ScoreModel):
            raise TypeError(f"{type(net).__name__} is a score model already; net is a network")
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be a process such as VPSDE(), got {sde!r}")
        if not isinstance(parameterization, Parameterization):
            raise TypeError(
                f"parameterization must be one such as Eps() or V(), got {parameterization!r}"
            )
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be a callable such as HalfLogSNR(), got {clock!r}")
        if conditions is not None and not isinstance(conditions, Conditions):
            raise TypeError(f"conditions must be models.Conditions(...), got {conditions!r}")
        self.net, self.sde, self.parameterization = net, sde, parameterization
        self.clock: Clock = HalfLogSNR() if clock is None else clock
        self.declared = conditions

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scale = self.parameterization.input_scale(self.sde, t)
        inner = x if isinstance(scale, float) and scale == 1.0 else scale * x
        # a clock in half precision would be rounded before the network sees it
        like = x if x.dtype in (torch.float32, torch.float64) else x.float()
        out = evaluate(self.net, inner, self.clock(self.sde, t, like), condition, x.dtype)
        return self.parameterization.decode(self.sde, t, x, out)

    @property
    def conditions(self) -> Conditions | None:
        return conditions_of(self.net) if self.declared is None else self.declared

    def check_condition(self, **condition: Any) -> None:
        check_network_condition(self.net, self.declared, condition)
