"""What a training reads its samples from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from .batch import Batch
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


def as_source(data: object) -> Source:
    """The data of a training as a `Source`.

    Args:
        data: A `Source`, such as `Data`.

    Raises:
        TypeError: For anything else.

    Example:
        >>> from scoregen import Data
        >>> as_source(Data(torch.zeros(5, 2))).event
        (2,)
    """
    if isinstance(data, Source):
        return data
    raise TypeError(f"data must be scoregen Data, got {type(data).__name__}; use Data(x)")
