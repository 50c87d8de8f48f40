"""Score models: at a noise level, which part of x is data and which is noise."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import (
    check_number,
    check_state,
    check_times,
)
from ..processes import SDE, Level
from . import conditions as trees
from .modes import evaluating
from .network import Conditions, compute_dtype
from .operators import Operators
from .prediction import Prediction

__all__ = ["Given", "ScoreModel", "Wrapped", "check_model", "evaluating"]


class Counter(Protocol):
    """What takes notice of evaluations: `Counted`."""

    def watches(self, model: ScoreModel) -> bool: ...

    def note(self, x: Tensor, t: Level) -> Prediction | None: ...


COUNTERS: list[Counter] = []


def _noticed(predict: Callable[..., Prediction]) -> Callable[..., Prediction]:
    """`predict`, noticed by the counters there are; models call it directly, past any hook."""

    @functools.wraps(predict)
    def noticed(self: ScoreModel, x: Tensor, t: Level, **condition: Any) -> Prediction:
        # a subclass that calls its parent's `predict` is one evaluation
        if COUNTERS and type(self).predict is noticed:
            for counter in tuple(COUNTERS):
                made = counter.note(x, t) if counter.watches(self) else None
                if made is not None:
                    return made
        return predict(self, x, t, **condition)

    return noticed


class ScoreModel(Operators, nn.Module, ABC):
    """Anything that predicts at a noise level: a network, a density, models made of models.

    Subclasses set `sde` and write `predict`; one that takes a condition sets `conditions` too.
    Calling the model checks the arguments, then predicts.

    Attributes:
        sde: the process.
        event: shape of one sample, where the model knows it.
        conditions: the conditions it takes; None where that is not known. None are taken unless a
            subclass declares some.

    >>> from scoregen import VPSDE, Gaussian
    >>> model = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    >>> model(torch.ones(1, 2), 1.0).score
    tensor([[-1., -1.]])
    """

    sde: SDE
    event: tuple[int, ...] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "predict" in cls.__dict__:
            type.__setattr__(cls, "predict", _noticed(cls.__dict__["predict"]))

    @property
    def conditions(self) -> Conditions | None:
        return Conditions()

    @abstractmethod
    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        """The prediction at a level; without checks, so that vmap and jvp may pass.

        Args:
            x: state of shape (batch, *event).
            t: level of floats, or of tensors that broadcast against x.
        """

    def forward(self, x: Tensor, t: Level | float | Tensor, **condition: Any) -> Prediction:
        """The checked entry: argument validation, then `predict`.

        Args:
            x: state of shape (batch, *event), real and floating.
            t: a level, a time, or one time per sample.

        Raises:
            ValueError, TypeError: for a time that is neither 0 nor in [t_min, t_max], a wrong shape
                or dtype, or a condition the model does not know.
        """
        if not isinstance(t, Level):
            check_state(x)
            t = self.level(t, x)
            if condition:
                self.check_condition(**condition)
        return self.predict(x, t, **condition)

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """The level of a time, checked against the domain of the process.

        Raises:
            ValueError: for a time outside [0, t_max], or in (0, t_min), where no network was
                trained.
        """
        sde = self.sde
        if isinstance(t, Tensor):
            check_times(t, sde.t_max, sde.t_min)
            return sde.level_of(t, x)
        t = t if type(t) is float else check_number("t", t)
        check_times(torch.tensor(t, dtype=torch.float64), sde.t_max, sde.t_min)
        return sde.level(t)

    def check_condition(self, **condition: Any) -> None:
        """Refuse a condition this model does not know.

        Raises:
            TypeError, ValueError: for an unknown name, or a value that cannot be.
        """
        known = self.conditions
        if known is not None and not known.null and condition:
            raise TypeError(f"{type(self).__name__} takes no condition, got {', '.join(condition)}")
        if known is not None:
            known.check(**condition)

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

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        """This model for some rows of its batch: what is held per sample goes with them.

        Models that hold nothing per sample, here or inside, are their own rows.

        Args:
            part: a slice, or whole numbers of shape (n,), which may repeat.
            batch: how many samples the model is for.
        """
        return _with_rows(self, part, batch)

    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device of the first floating-point parameter or buffer, and the dtype it computes in.

        CPU and float32 for a model without.
        """
        dtype = compute_dtype(self)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype if dtype is None else dtype
        return torch.device("cpu"), torch.float32


def _with_rows(module: Any, part: slice | Tensor, batch: int) -> Any:
    """The module with every score model inside it replaced by its rows; itself if none changes."""
    changed: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, ScoreModel):
            found: nn.Module = child.rows(part, batch)
        elif isinstance(child, nn.ModuleList | nn.ModuleDict):
            found = _with_rows(child, part, batch)
        else:
            continue
        if found is not child:
            changed[name] = found
    return twin(module, **changed) if changed else module


def twin(module: Any, **changed: nn.Module) -> Any:
    """A shallow copy with other children; parameters and buffers are the same tensors."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {**module._modules, **changed}
    twin.__dict__["_buffers"] = dict(module._buffers)
    return twin


def check_model(model: object, name: str = "model") -> ScoreModel:
    """Refuse what is no score model, with what makes one of it.

    Raises:
        TypeError: for anything but a `ScoreModel` with a process.

    >>> check_model(torch.nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    TypeError: model must be a score model, got the network Linear: name what it predicts, as in \
ScoreNetwork(net, VPSDE(), Eps()), or EnergyNetwork(net, sde) for an energy
    """
    if isinstance(model, ScoreModel):
        if not isinstance(getattr(model, "sde", None), SDE):
            raise TypeError(
                f"{type(model).__name__} has no process: set self.sde, such as VPSDE(), in its "
                "__init__ after super().__init__()"
            )
        return model
    if isinstance(model, type):
        what = f"the class {model.__name__}: make an instance of it"
    elif isinstance(model, nn.Module):
        what = (
            f"the network {type(model).__name__}: name what it predicts, as in "
            "ScoreNetwork(net, VPSDE(), Eps()), or EnergyNetwork(net, sde) for an energy"
        )
    elif callable(model):
        what = (
            f"the callable {getattr(model, '__name__', type(model).__name__)}: name what it "
            "predicts, as in ScoreNetwork(function, VPSDE(), Eps()), or Potential(function) for a "
            "time-free energy"
        )
    else:
        what = f"{type(model).__name__}: use ScoreNetwork(net, sde, parameterization, clock)"
    raise TypeError(f"{name} must be a score model, got {what}")


class Wrapped(ScoreModel):
    """A model around another: subclasses write what differs, all else is the inner model's.

    Process, event, conditions and rows are forwarded. So is the energy difference, unless the
    subclass writes a `predict` of its own: then its own score is integrated.

    Args:
        model: the model inside.

    >>> from scoregen import VPSDE, Gaussian
    >>> class Halved(Wrapped):
    ...     def predict(self, x, t, **condition):
    ...         p = self.model.predict(x, t, **condition)
    ...         return p.with_x0(p.x0 / 2)
    >>> Halved(Gaussian(VPSDE(), torch.ones(2), 1.0))(torch.zeros(1, 2), 1.0).x0.shape
    torch.Size([1, 2])
    """

    def __init__(self, model: ScoreModel):
        super().__init__()
        check_model(model)
        self.model, self.sde, self.event = model, model.sde, model.event

    @property
    def conditions(self) -> Conditions | None:
        return self.model.conditions

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        return self.model.predict(x, t, **condition)

    def energy_difference(
        self, x: Tensor, y: Tensor, t: Level | float, *, nodes: int = 8, **condition: Any
    ) -> Tensor:
        if type(self).predict is Wrapped.predict:
            return self.model.energy_difference(x, y, t, nodes=nodes, **condition)
        return super().energy_difference(x, y, t, nodes=nodes, **condition)


class Given(Wrapped):
    """A model with its condition bound, as `model.given(label=...)` makes it.

    >>> from scoregen import MLP, VPSDE, Eps, HalfLogSNR, ScoreNetwork
    >>> model = ScoreNetwork(MLP(event=(2,), classes=3), VPSDE(), Eps(), HalfLogSNR())
    >>> bound = model.given(label=torch.tensor([0, 2]))
    >>> bound(torch.zeros(2, 2), 0.5).x0.shape
    torch.Size([2, 2])
    """

    def __init__(self, model: ScoreModel, condition: dict[str, Any]):
        super().__init__(model)
        self.condition = condition

    @property
    def conditions(self) -> Conditions | None:
        inner = self.model.conditions
        if inner is None:
            return None
        free = {name: value for name, value in inner.null.items() if name not in self.condition}
        return Conditions(free, inner.classes if "label" in free else 0)

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

    def rows(self, part: slice | Tensor, batch: int) -> ScoreModel:
        inner = self.model.rows(part, batch)
        return Given(inner, trees.rows(self.condition, part, batch))
