"""What a network is to a model: any callable, what it declares of its conditions, what it returns.

A network that implements `Network` states its conditions once, and training, guidance and the
command line read them by `conditions_of`. Any other callable has none declared: its conditions are
passed on as given, and guidance needs the null values from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .._checks import (
    check_count,
    check_kind,
)
from .._identity import uncompiled
from .conditions import plain

__all__ = ["Conditions", "Network", "conditions_of"]

# What torch multiplies in. Float8 and integer weights are storage: they do not bind the input.
_COMPUTE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHELLS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


@dataclass(frozen=True)
class Conditions:
    """The conditions a network takes, each with the value that stands for its absence.

    Each is one entry per sample: tensors of shape (batch, ...), in any nested structure.

    Args:
        null: name -> null value, a number or a tensor; {} for a network without conditions.
        classes: number K of classes of the condition "label", 0 .. K - 1; 0 without labels.

    Raises:
        ValueError: for classes without a condition "label".

    >>> Conditions.labels(10)
    Conditions(null={'label': 10}, classes=10)
    """

    null: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 0

    def __post_init__(self) -> None:
        check_kind("null", self.null, Mapping, '{"label": 10}')
        object.__setattr__(self, "null", dict(self.null))
        check_count("classes", self.classes, 0)
        if self.classes and "label" not in self.null:
            raise ValueError(
                'classes are those of the condition "label": give its null value too, as in '
                f'Conditions({{"label": {self.classes}}}, classes={self.classes})'
            )

    @classmethod
    def labels(cls, classes: int) -> Conditions:
        """One label of K classes, whose null class is K; no condition for K = 0."""
        return cls({"label": classes} if classes else {}, classes)

    def check(self, **condition: object) -> None:
        """Refuse unknown names, and labels of a wrong type, shape or value.

        Raises:
            TypeError: for an unknown name, a label without classes, or one that is not int64.
            ValueError: for a label that is not of shape (batch,), or outside 0 .. K.
        """
        if "label" in condition and "label" not in self.null and condition["label"] is not None:
            raise TypeError(NO_CLASSES)
        unknown = sorted(set(condition) - set(self.null) - {"label"})
        if unknown:
            known = ", ".join(map(repr, self.null)) or "none"
            raise TypeError(f"unknown condition {unknown}; this network takes: {known}")
        label = condition.get("label")
        if not self.classes or label is None:
            return
        if not isinstance(label, Tensor) or label.dtype != torch.int64:
            got = label.dtype if isinstance(label, Tensor) else type(label).__name__
            raise TypeError(f"label must be an int64 tensor, got {got}; use label.to(torch.int64)")
        if label.ndim != 1:
            raise ValueError(
                f"label must have shape (batch,), one entry per sample, got {tuple(label.shape)}"
            )
        last = max(self.classes - 1, int(self.null["label"]))
        outside = (label < 0) | (label > last)
        if bool(outside.any()):
            raise ValueError(
                f"labels must lie in 0 .. {last}, where {self.null['label']} is the null class; "
                f"got {label[outside][:5].tolist()}"
            )


NO_CLASSES = (
    "a label was given to a network without classes; "
    "build it with classes=K, or leave the label out"
)


@runtime_checkable
class Network(Protocol):
    """A network, or a model, that declares its conditions.

    >>> from scoregen import MLP
    >>> isinstance(MLP(classes=3), Network), isinstance(torch.nn.Linear(2, 2), Network)
    (True, False)
    """

    @property
    def conditions(self) -> Conditions | None:
        """What it takes; None where that is not known."""

    def check_condition(self, **condition: Any) -> None:
        """Refuse a condition it would not understand."""


def conditions_of(model: object) -> Conditions | None:
    """The conditions a model or network declares; None where it declares nothing.

    Parallel, averaging and compiling wrappers of torch are looked through.

    >>> from scoregen import MLP, VPSDE, Eps, ScoreNetwork
    >>> conditions_of(ScoreNetwork(MLP(classes=3), VPSDE(), Eps())).classes
    3
    >>> conditions_of(lambda x, clock: x) is None
    True
    """
    inner = unwrapped(model)
    found = inner.conditions if isinstance(inner, Network) else None
    return found if isinstance(found, Conditions) else None


def unwrapped(net: Any) -> Any:
    """The network inside torch's parallel, averaging and compiling wrappers.

    The last one hands on the attributes of the network, but from Python 3.12 on a protocol is
    looked for in the class alone.
    """
    while isinstance(net, _SHELLS):
        net = net.module
    inner = uncompiled(net) if isinstance(net, nn.Module) else net
    return net if inner is net else unwrapped(inner)


def check_network(net: object, name: str = "net") -> None:
    """Refuse what cannot be evaluated as net(x, clock, **condition)."""
    if isinstance(net, type) or not callable(net):
        raise TypeError(
            f"{name} must be a callable net(x, clock, **condition), such as an nn.Module or a "
            f"function, got {net!r}"
        )


def check_network_condition(
    net: object, declared: Conditions | None, condition: Mapping[str, Any]
) -> None:
    """Refuse what a network would not understand, by what is declared of it; else nothing."""
    inner = unwrapped(net)
    if declared is not None:
        declared.check(**condition)
    elif isinstance(inner, Network):
        inner.check_condition(**condition)


def compute_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first parameter that is half, bfloat16, single or double; else None."""
    return next((p.dtype for p in module.parameters() if p.dtype in _COMPUTE), None)


def evaluate(
    net: Callable[..., Any],
    x: Tensor,
    clock: Tensor,
    condition: Mapping[str, Any],
    dtype: torch.dtype,
) -> Tensor:
    """net(x, clock, **condition) as one tensor of the given dtype.

    x is cast to the dtype the network computes in. A clock stays whole numbers, or float32:
    bfloat16 would make 1000 of 999; float64 for a network in float64.
    """
    own = compute_dtype(net) if isinstance(net, nn.Module) else None
    own = dtype if own is None else own
    wide = torch.float64 if own == torch.float64 else torch.float32
    if clock.is_floating_point():
        clock = clock.to(wide)
    out = output_tensor(net(x.to(own), clock, **plain(condition)))
    if not out.is_floating_point():
        raise TypeError(f"a network must return a real floating-point tensor, got {out.dtype}")
    return out.to(dtype)


def output_tensor(out: object) -> Tensor:
    """The tensor in a network's output.

    It is the output itself, its attribute `sample` (as diffusers has it), or the only tensor in a
    tuple, list, mapping or dataclass. With several there is no telling which is meant.

    Raises:
        TypeError: for any other output.

    >>> output_tensor((torch.ones(1), None))
    tensor([1.])
    """
    if isinstance(out, Tensor):
        return out
    sample = getattr(out, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    parts: list[Any] = []
    if isinstance(out, Mapping):
        parts = list(out.values())
    elif isinstance(out, tuple | list):
        parts = list(out)
    elif is_dataclass(out):
        parts = [getattr(out, f.name) for f in fields(out)]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "none"
    raise TypeError(
        "a network must return a tensor, an object whose `sample` is one, or a collection that "
        f"holds exactly one; got {type(out).__name__} with tensors of shapes {shapes}. Wrap it in "
        "a function that returns the one that is meant"
    )
