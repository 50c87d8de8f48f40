"""What a training reads its samples from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .._checks import check_count
from .batch import Batch
from .datasets import FromDataset
from .streams import once
from .units import Units

__all__ = ["Source", "as_source"]


@runtime_checkable
class Source(Protocol):
    """Samples in an order that a resumed training finds again.

    Batch k is a function of (seed, k) alone. Each of several processes is served its `rows` of
    every batch, so that together they see what one process would.

    Example:
        >>> from scoregen import Data
        >>> isinstance(Data(torch.zeros(5, 2)), Source)
        True
    """

    @property
    def name(self) -> str:
        """What tables and checkpoints call it."""

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The interval the values cannot leave, if there is one."""

    @property
    def bins(self) -> int | None:
        """The number of equally spaced levels over `range`; None for continuous data."""

    @property
    def units(self) -> Units | None:
        """What the values were standardised by, if they were."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that come with every batch."""

    @property
    def classes(self) -> int:
        """Labels are in 0 .. classes - 1; 0 without a condition "label"."""

    def identity(self) -> str | None:
        """What a continued training must find unchanged; None where nothing identifies it."""

    def mean_square(self) -> float | None:
        """E|x|^2 / d; None where it takes a pass over the data."""

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Batches without end, from step `first_step` on; arguments are checked at once.

        Args:
            batch: Samples per step, over all processes together.
            seed: Of the order.
            first_step: The step to begin with.
            rows: Which rows of each batch this process is served.
            device: Where the batches are put.
        """


@runtime_checkable
class TakesClasses(Source, Protocol):
    """A source whose labels have as many classes as the network, unless it was declared."""

    def with_classes(self, classes: int | None) -> Source:
        """The same source, its labels checked against this number, unless it had one."""


def as_source(data: object, classes: int | None = None) -> Source:
    """The data of a training as a `Source`.

    Args:
        data: `Data`, `FromDataset`, `FromBatches`, `Augmented`, another source, a map-style dataset
            of floats, or an iterable of batches of floats.
        classes: Labels must lie in 0 .. classes - 1 where the data do not declare their number.

    Raises:
        TypeError: For anything else, and for what may be either samples or batches.

    Example:
        >>> import numpy as np
        >>> as_source(np.zeros((5, 2), dtype=np.float32)).event
        (2,)
    """
    if classes is not None:
        check_count("classes", classes, 0)
    if isinstance(data, TakesClasses):
        return data.with_classes(classes)
    if isinstance(data, Source):
        return data
    if isinstance(data, Tensor):
        raise TypeError("data must be a source of samples, got a tensor; use Data(x)")
    if isinstance(data, list | tuple | Mapping | IterableDataset):
        raise TypeError(
            f"data must be a source of samples, got {type(data).__name__}, which may hold samples "
            "or batches: use FromDataset(samples), or FromBatches(replayed(batches), event=...)"
        )
    if hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__"):
        return FromDataset(data).with_classes(classes)
    if isinstance(data, Iterable):
        return once(data).with_classes(classes)
    raise TypeError(
        f"data must be a source of samples, such as Data(x) or FromDataset(dataset), got "
        f"{type(data).__name__}"
    )
