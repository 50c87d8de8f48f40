"""Score models: look at x at a noise level, and say which part is data and which is noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import check_state, check_times
from ..processes import SDE, Level
from .clocks import Clock, HalfLogSNR
from .parameterization import Parameterization
from .prediction import Prediction

__all__ = ["Counted", "Given", "ScoreModel", "ScoreNetwork", "evaluating"]


class ScoreModel(nn.Module, ABC):
    """Anything that predicts at a noise level: a network, a density, models made of models.

    Subclasses set `sde` and write `predict`. Calling the model is the checked door.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> model(torch.ones(1, 2), 1.0).score
    tensor([[-1., -1.]])
    """

    sde: SDE

    @abstractmethod
    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        """The prediction at a level; without checks, so that vmap and jvp may pass.

        Args:
            x: state of shape (batch, *event).
            t: level of floats, or of tensors that broadcast against x.
        """

    def forward(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Prediction:
        """The door: checks, then `predict`.

        Args:
            x: state of shape (batch, *event), real and floating.
            t: a level, a time, or one time per sample.

        Raises:
            ValueError, TypeError: for a time outside [0, t_max], a wrong shape or dtype, or a
                condition the model does not know.
        """
        if not isinstance(t, Level):
            check_state(x)
            t = self.level(t, x)
            if condition:
                self.check_condition(**condition)
        return self.predict(x, t, **condition)

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """The level of a time, checked against the domain of the process."""
        if isinstance(t, Tensor):
            check_times(t, self.sde.t_max)
            return self.sde.level_of(t, x)
        check_times(torch.tensor(t, dtype=torch.float64), self.sde.t_max)
        return self.sde.level(t)

    def check_condition(self, **condition: Any) -> None:
        """Refuse a condition this model does not know; by default it knows none."""
        if condition:
            raise TypeError(f"{type(self).__name__} takes no condition, got {', '.join(condition)}")

    def score(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Tensor:
        """grad_x log p_t(x), shaped like x."""
        return self(x, t, **condition).score

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        """E(y) - E(x) = -int_0^1 score(x + u (y - x)) . (y - x) du, by Gauss-Legendre nodes.

        Exact for an energy model; for other models as exact as the line integral is.

        Args:
            x: start points, shape (batch, *event).
            y: end points, shaped like x.

        Returns:
            Tensor of shape (batch,).
        """
        level = t if isinstance(t, Level) else self.level(t, x)
        points, weights = np.polynomial.legendre.leggauss(nodes)
        step = y - x
        total = x.new_zeros(len(x))
        for u, w in zip((points + 1) / 2, weights / 2, strict=True):
            slope = self.predict(x + float(u) * step, level, **condition).score * step
            total = total - float(w) * slope.reshape(len(x), math.prod(x.shape[1:])).sum(1)
        return total

    def given(self, **condition: Any) -> ScoreModel:
        """This model with its condition bound: everything downstream sees an ordinary model."""
        self.check_condition(**condition)
        return Given(self, condition) if condition else self

    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the model's first parameter or buffer; CPU and float32 without."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        return torch.device("cpu"), torch.float32


class Given(ScoreModel):
    """A model with its condition bound, as `model.given(label=...)` makes it.

    >>> from scoregen import MLP, VPSDE, Eps, HalfLogSNR, ScoreNetwork
    >>> model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps(), HalfLogSNR())
    >>> bound = model.given(label=torch.tensor([0, 2]))
    >>> bound(torch.zeros(2, 2), 0.5).x0.shape
    torch.Size([2, 2])
    """

    def __init__(self, model: ScoreModel, condition: dict[str, Any]):
        super().__init__()
        self.model, self.condition, self.sde = model, condition, model.sde

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return self.model.predict(x, t, **self.condition, **condition)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        return self.model.energy_difference(x, y, t, nodes=nodes, **self.condition, **condition)

    def check_condition(self, **condition: Any) -> None:
        twice = set(condition) & set(self.condition)
        if twice:
            raise TypeError(f"{', '.join(sorted(twice))} is bound already; bind it once")
        self.model.check_condition(**self.condition, **condition)


class ScoreNetwork(ScoreModel):
    """A network, a process, the meaning of its output and the clock it reads: four slots.

    Args:
        net: callable net(x, clock, **condition) with the output shaped like x.
        sde: the process it was trained on.
        parameterization: what its output means.
        clock: what it is told the time is.

    >>> from scoregen import MLP, VPSDE, Eps
    >>> model = ScoreNetwork(MLP(event=(2,)), VPSDE(), Eps())
    >>> model(torch.zeros(4, 2), 0.5).eps.shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        clock: Clock | None = None,
    ):
        super().__init__()
        self.net, self.sde, self.parameterization = net, sde, parameterization
        self.clock: Clock = HalfLogSNR() if clock is None else clock

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        scale = self.parameterization.input_scale(self.sde, t)
        inner = x if isinstance(scale, float) and scale == 1.0 else scale * x
        clock = self.clock(self.sde, t, x)
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        if dtype != x.dtype:
            inner = inner.to(dtype)
            clock = clock.to(dtype) if clock.is_floating_point() else clock
        out = self.net(inner, clock, **condition).to(x.dtype)
        return self.parameterization.decode(self.sde, t, x, out)

    def check_condition(self, **condition: Any) -> None:
        check: Callable[..., None] | None = getattr(self.net, "check_condition", None)
        if check is not None:
            check(**condition)


class Counted:
    """Counts evaluations: rows that the leaves of a model predict, inside a `with` block.

    Guidance that asks for two branches counts two, correctors and rejected steps count too.

    Args:
        model: any score model; the models it is made of are found among its modules.

    >>> from scoregen import DDIM, VPSDE, Gaussian, Sampler, UniformTime
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> with Counted(model) as count:
    ...     _ = Sampler(DDIM(), UniformTime(10)).sample(model, (4, 2), seed=0)
    >>> count.rows / 4
    10.0
    """

    def __init__(self, model: ScoreModel):
        models = [m for m in model.modules() if isinstance(m, ScoreModel)]
        self.leaves = [
            m for m in models if sum(isinstance(c, ScoreModel) for c in m.modules()) == 1
        ]
        self.rows = 0

    def __enter__(self) -> Counted:
        for leaf in self.leaves:
            if "predict" in leaf.__dict__:
                raise RuntimeError("this model is being counted already; nest no Counted blocks")
            object.__setattr__(leaf, "predict", self._counting(leaf.predict))
        return self

    def __exit__(self, *exception: object) -> None:
        for leaf in self.leaves:
            object.__delattr__(leaf, "predict")

    def _counting(self, predict: Callable[..., Prediction]) -> Callable[..., Prediction]:
        def counted(x: Tensor, t: Level, **condition: Any) -> Prediction:
            self.rows += len(x)
            return predict(x, t, **condition)

        return counted


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside the block; every module's own mode comes back after.

    >>> net = torch.nn.Dropout()
    >>> with evaluating(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
