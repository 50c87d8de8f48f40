"""A plain perceptron between any two shapes: encoders, decoders, generators and critics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .._checks import check_count, check_counts

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """Linear layers with SiLU between them, from one shape to another; no clock, as `MLP` has.

    y = W_depth SiLU(... SiLU(W_0 x))

    Args:
        inputs: shape of one input.
        outputs: shape of one output; () for a number per sample.
        hidden: width of the layers between.
        depth: how many of those; 0 is one linear map.
        classes: K of a label in 0 .. K - 1, which is put beside x as K numbers; 0 for none.

    >>> Perceptron((2,), (), classes=3)(torch.zeros(5, 2), torch.arange(5) % 3).shape
    torch.Size([5])
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        hidden: int = 128,
        depth: int = 2,
        classes: int = 0,
    ):
        super().__init__()
        self.inputs, self.outputs = check_counts("inputs", inputs), check_counts("outputs", outputs)
        self.classes = check_count("classes", classes, 0)
        check_count("hidden", hidden)
        widths = [math.prod(self.inputs) + classes, *[hidden] * check_count("depth", depth, 0)]
        layers: list[nn.Module] = []
        for one, other in pairwise(widths):
            layers += [nn.Linear(one, other), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.outputs)))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The output, shape (batch, *outputs).

        Args:
            x: shape (batch, *inputs).
            label: int64 of shape (batch,), for a network with classes.

        Raises:
            ValueError: for another shape.
            TypeError: for a missing label, or one that is not taken.
        """
        if x.shape[1:] != self.inputs:
            raise ValueError(f"this network takes (batch, *{self.inputs}), got {tuple(x.shape)}")
        if (label is None) == bool(self.classes):
            raise TypeError(
                f"this network has {self.classes} classes and got "
                f"{'no label' if label is None else 'a label'}"
            )
        flat = x.reshape(len(x), math.prod(self.inputs))
        if label is not None:
            flat = torch.cat([flat, nn.functional.one_hot(label, self.classes).to(flat)], 1)
        return self.layers(flat).reshape(len(x), *self.outputs)
