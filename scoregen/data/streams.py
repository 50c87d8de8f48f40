"""Iterables of batches as a source, and what a continued training needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch

from .._checks import (
    check_callable,
    check_count,
    check_counts,
    check_device,
    check_flag,
    check_kind,
)
from .batch import Batch
from .items import Items, ItemSource
from .order import check_seed

__all__ = ["FromBatches", "once", "replayed"]


class FromBatches(ItemSource):
    """Batches that something else puts together, such as webdataset or a loader of one's own.

    What is read, in which order, is decided by the iterable alone: `seed` does not reach it. A
    training that was stopped at step k goes on with `batches(k)`, whose batches must be those that
    `batches(0)` gives from its k-th on. Whether they are cannot be seen from here: it is declared
    by an `identity`, and without one a training that writes is refused.

    Args:
        batches: Function of the first step that gives the batches from that one on, without end.
            `replayed(iterable)` makes one that reads the earlier batches again and drops them.
        event: Shape of one sample.
        x: The key of x in batches that are dicts.
        conditions: Names of the conditions, or a dict from each name to its key in the batches; ()
            for none. A pair is (x, label), and a list or tuple of one is x.
        bins: Number of levels of whole numbers, which become 2 level / (bins - 1) - 1; None for
            floats, which are kept as they are.
        range: The interval that floats cannot leave; (-1, 1) for levels.
        classes: Labels are in 0 .. classes - 1; those of the network that is trained unless given.
        channels_last: Whether samples are (H, W, C); they become (C, H, W).
        name: What tables and checkpoints call it.
        identity: Stands for the samples and their order; change it whenever either changes.
        sharded: Whether each of several processes is given batches that hold its own rows alone;
            otherwise every process reads the whole batch and takes its rows.

    Raises:
        ValueError, TypeError: For arguments that do not fit.

    Example:
        >>> source = FromBatches(replayed([torch.zeros(4, 2), torch.ones(4, 2)]), event=(2,))
        >>> next(source.serve(4, seed=0, first_step=3)).x.mean()
        tensor(1.)
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[Any]],
        *,
        event: Sequence[int],
        x: str = "x",
        conditions: Mapping[str, str] | Sequence[str] = (),
        bins: int | None = None,
        range: tuple[float, float] | None = None,
        classes: int | None = None,
        channels_last: bool = False,
        name: str = "batches",
        identity: str | None = None,
        sharded: bool = False,
    ) -> None:
        check_callable("batches", batches, "(first_step) of an iterable, such as replayed(loader)")
        check_flag("sharded", sharded)
        check_kind("conditions", conditions, (Mapping, tuple, list), '("label",)')
        super().__init__(
            Items(x, conditions, bins, range, classes, None, channels_last), name, identity
        )
        self.batches = batches
        self.event = check_counts("event", event)
        self.conditions = tuple(self.items.conditions or ())
        self.sharded = sharded

    def __repr__(self) -> str:
        return f"FromBatches({self.name!r}: samples of shape {self.event})"

    def identity(self) -> str | None:
        """As declared; None without."""
        return None if self.declared is None else f"declared: {self.declared}"

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """The batches, from `batches(first_step)` on: see `Source`.

        Args:
            batch: Samples per step, which each batch must have.
            seed: Not used: the iterable decides its order.
            first_step: The step to begin with.
            rows: Which rows of each batch are served.
            device: Where the batches are put.

        Raises:
            ValueError: Here if `batch` is not positive; while serving if a batch has another number
                of rows, samples of another shape, or the iterable ends.
        """
        batch, first_step = check_count("batch", batch), check_count("first_step", first_step, 0)
        check_seed(seed)
        check_kind("rows", rows, slice, "slice(0, 16)")
        return self._serve(batch, first_step, rows, check_device("device", device))

    def _serve(
        self, batch: int, first_step: int, rows: slice, device: torch.device
    ) -> Iterator[Batch]:
        wanted = len(range(batch)[rows])
        step = first_step
        for found in self.batches(first_step):
            stored = self.items.read_batch(found)
            expected = wanted if self.sharded else batch
            if len(stored.x) != expected or tuple(stored.x.shape[1:]) != self.event:
                raise ValueError(
                    f"batch {step} of {self.name} must have shape {(expected, *self.event)}, got "
                    f"{tuple(stored.x.shape)}; a loader drops a short last batch by drop_last=True"
                )
            if not self.sharded and wanted < batch:
                stored = stored.rows(rows)
            yield self.items.serve(stored, device)
            step += 1
        raise ValueError(
            f"{self.name} ended before batch {step}, and a training needs batches without end: "
            "replayed(iterable) passes over it again and again"
        )


def replayed(iterable: Iterable[Any]) -> Callable[[int], Iterator[Any]]:
    """Passes over an iterable again and again; a later start reads and drops what came before.

    Args:
        iterable: Of batches; a new pass in a new process must give the same batches, as of a loader
            without shuffling, or with a generator that is seeded where the loader is made.

    Raises:
        TypeError: If it cannot be iterated.

    Example:
        >>> [*islice(replayed("abc")(2), 5)]
        ['c', 'a', 'b', 'c', 'a']
    """
    if not isinstance(iterable, Iterable):
        raise TypeError(f"replayed takes an iterable of batches, got {type(iterable).__name__}")

    def batches(first_step: int) -> Iterator[Any]:
        return islice(_passes(iterable), first_step, None)

    return batches


def _passes(iterable: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in iterable:
            empty = False
            yield batch
        if empty:
            return


def once(iterable: Iterable[Any]) -> FromBatches:
    """A bare iterable as a source, described by its first batch, for a training from step 0.

    Args:
        iterable: Of batches of floats: x, (x,), (x, label) or a dict of x and conditions.

    Raises:
        ValueError: If it is empty.

    Example:
        >>> once([{"x": torch.zeros(4, 2), "label": torch.zeros(4, dtype=torch.int64)}]).conditions
        ('label',)
    """
    begun = iter(iterable)
    try:
        first = next(begun)
    except StopIteration:
        raise ValueError("the iterable of batches is empty") from None
    stored = Items().read_batch(first)

    def batches(first_step: int) -> Iterator[Any]:
        return islice(chain([first], begun, _passes(iterable)), first_step, None)

    return FromBatches(batches, event=stored.x.shape[1:], conditions=tuple(stored.condition))
