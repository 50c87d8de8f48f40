"""Augmentation of the batches of a source, a function of (seed, step, row)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .._checks import check_kind, check_number
from .._identity import recipe
from .batch import Batch
from .order import stream
from .source import Source, as_source
from .units import Units

__all__ = ["Augmentation", "Augmented", "HorizontalFlip"]

# Streams of the augmentations: away from those of the epochs, and from those of the training's
# steps, which begin at 2^63.
_FIRST = 1 << 62


@runtime_checkable
class Augmentation(Protocol):
    """A random change of images that a training sees more of, such as `HorizontalFlip`.

    Example:
        >>> flip: Augmentation = HorizontalFlip()
        >>> flip.conditions
        ()
    """

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that describe the change to the network."""

    def draw(self, batch: int, generator: np.random.Generator) -> Tensor:
        """The random numbers of a batch, shape (batch, ...), on the host."""

    def __call__(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The changed samples (n, *event), and the conditions by name.

        Args:
            x: The samples, on their device.
            drawn: The numbers of these rows, on the host.
        """


class HorizontalFlip:
    """Mirrors each image left to right with a probability.

        y[..., w] = x[..., W - 1 - w]

    Args:
        p: Of the flip, in [0, 1].

    Raises:
        ValueError: If p lies outside.

    Example:
        >>> HorizontalFlip()(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([True]))[0]
        tensor([[[[2., 1.]]]])
    """

    conditions = ()

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_number("p", p, 0.0, 1.0)

    def draw(self, batch: int, generator: np.random.Generator) -> Tensor:
        """Which images are mirrored, shape (batch,)."""
        return torch.from_numpy(generator.random(batch) < self.p)

    def __call__(self, x: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (n, C, H, W), those drawn mirrored."""
        check_images(x)
        return mirrored(x, drawn, 3), {}


class Augmented:
    """A source whose batches are changed at random, on the device they are served to.

    What happens to a row is a function of (seed, step, row), whatever the number of processes.

    Args:
        source: `Data` or another source or dataset, of images (C, H, W).
        augmentation: `HorizontalFlip()`, `NonLeaking()` or an `Augmentation` of one's own.

    Raises:
        TypeError: If `source` is none.
        ValueError: If the augmentation does not suit its samples, or a name of a condition occurs
            twice.

    Example:
        >>> from scoregen import Data
        >>> source = Augmented(Data(torch.zeros(8, 1, 4, 4)), HorizontalFlip())
        >>> next(source.serve(4, seed=0)).x.shape
        torch.Size([4, 1, 4, 4])
    """

    def __init__(self, source: Source, augmentation: Augmentation) -> None:
        check_kind("augmentation", augmentation, Augmentation, "HorizontalFlip()")
        self.source, self.augmentation = as_source(source), augmentation
        twice = set(self.source.conditions) & set(augmentation.conditions)
        if twice:
            raise ValueError(f"the samples have the conditions {sorted(twice)} already")
        # one sample of zeros shows whether the augmentation suits the samples
        augmentation(torch.zeros(1, *self.event), augmentation.draw(1, stream(0)))
        self.depth: int = self.source.depth + 1 if isinstance(self.source, Augmented) else 0

    def __repr__(self) -> str:
        return f"Augmented({self.source!r}, {type(self.augmentation).__name__})"

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.source.event

    @property
    def range(self) -> tuple[float, float] | None:
        """That of the source."""
        return self.source.range

    @property
    def bins(self) -> int | None:
        """Those of the source."""
        return self.source.bins

    @property
    def units(self) -> Units | None:
        """Those of the source."""
        return self.source.units

    @property
    def conditions(self) -> tuple[str, ...]:
        """Those of the source, and those that describe the change."""
        return (*self.source.conditions, *self.augmentation.conditions)

    @property
    def classes(self) -> int:
        """Those of the source."""
        return self.source.classes

    def with_classes(self, classes: int | None) -> Augmented:
        """The same, with the number of classes where it was not given."""
        other = copy(self)
        other.source = as_source(self.source, classes)
        return other

    def mean_square(self) -> float | None:
        """That of the source: a change of images leaves about as much."""
        return self.source.mean_square()

    def identity(self) -> str | None:
        """Of the source and the augmentation, with its code."""
        source = self.source.identity()
        if source is None:
            return None
        return f"{source}, augmented: {recipe(self.augmentation, 'the augmentation')}"

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """The batches of the source, changed: see `Source`."""
        served = self.source.serve(batch, seed, first_step, rows, device)
        return self._serve(served, batch, seed, first_step, rows)

    def _serve(
        self, served: Iterator[Batch], batch: int, seed: int, first_step: int, rows: slice
    ) -> Iterator[Batch]:
        for step, (x, condition) in enumerate(served, first_step):
            generator = stream(seed, _FIRST + (self.depth << 40) + step)
            drawn = self.augmentation.draw(batch, generator)[rows]
            changed, described = self.augmentation(x, drawn)
            yield Batch(changed, {**condition, **described})


def mirrored(x: Tensor, which: Tensor, axis: int) -> Tensor:
    """Some of the images (n, C, H, W) reversed along an axis.

    Example:
        >>> mirrored(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([True]), 3)
        tensor([[[[2., 1.]]]])
    """
    return torch.where(which.reshape(-1, 1, 1, 1).to(x.device), x.flip(axis), x)


def check_images(x: Tensor) -> None:
    """Refuse samples that are not of shape (C, H, W)."""
    if x.dim() != 4:
        raise ValueError(f"augmentation is for images (C, H, W), got {tuple(x.shape[1:])}")
