"""Data in memory, checked once, and served in an order that a resumed training finds again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    check_count,
    check_device,
    check_entries,
    check_kind,
    check_number,
    check_range,
)
from .._rows import moved
from .batch import Batch
from .levels import beyond, check_bins, check_levels, on_range
from .order import check_seed, order, stream
from .units import Units


class Data:
    """Samples, with their labels and the range and levels they are known to have.

    Whole numbers given with `bins` are kept as they are, a quarter of the memory of floats for
    8-bit images, and are put on [-1, 1] batch by batch.

    Args:
        x: Samples of shape (N, *event): floating, float32 as a rule; or, with `bins`, levels
            0 .. bins - 1 of an integer type, which stand for 2 level / (bins - 1) - 1.
        label: Classes of shape (N,), int64 from 0; or None.
        range: The interval the values cannot leave, or None where there is no such bound;
            (-1, 1) for levels.
        bins: The number of equally spaced levels over `range` on which the values stand
            (256 for 8-bit images), or None for continuous data.
        name: What tables and checkpoints call it.
        class_names: What the classes are called, in the order of their labels; or None.
        units: What the values were standardised by; see `standardised`.

    Raises:
        TypeError: If x is not floating and has no bins, or label is not int64.
        ValueError: If x is empty or not finite, if the lengths differ, a label is negative,
            a value leaves `range`, or stands between two of the `bins` levels.

    Example:
        >>> data = Data(torch.randn(6, 2), label=torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> len(data), data.event, data.classes
        (6, (2,), 3)
        >>> Data(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), bins=256)
        Data('data': 5 samples of shape (3, 8, 8), uint8, 256 levels on [-1, 1])
    """

    def __init__(
        self,
        x: Tensor,
        label: Tensor | None = None,
        range: tuple[float, float] | None = None,
        bins: int | None = None,
        name: str = "data",
        class_names: tuple[str, ...] | None = None,
        units: Units | None = None,
    ) -> None:
        range = None if range is None else check_range("range", range)
        bins = None if bins is None else check_bins(bins)
        check_kind("name", name, str, '"faces"')
        if units is not None:
            check_kind("units", units, Units, "Units((0.5,), (2.0,))")
        whole = isinstance(x, Tensor) and bins is not None and not _is_float(x)
        if whole and bins is not None:
            if range is not None and range != (-1, 1):
                raise ValueError(
                    f"levels are put on [-1, 1]; leave range=({range[0]:g}, {range[1]:g}) out"
                )
            check_levels(x, bins)
            _check_size(x)
            range = (-1.0, 1.0)
        else:
            _check_x(x)
        if label is not None:
            _check_label(label, len(x))
        if class_names is not None:
            class_names = tuple(check_entries("class_names", class_names, "strings"))
            for i, entry in enumerate(class_names):
                check_kind(f"class_names[{i}]", entry, str, '"cat"')
            if label is None or int(label.max()) >= len(class_names):
                raise ValueError(f"class_names must name every label, got {class_names}")
        if not whole and range is not None:
            _check_within(x, *range)
        if not whole and bins is not None:
            if range is None:
                raise ValueError(f"bins={bins} needs the range over which they are spaced")
            _check_on_levels(x, *range, bins)
        self.stored = x
        self.label, self.range, self.bins, self.name = label, range, bins, name
        self.class_names, self.units = class_names, units

    def __repr__(self) -> str:
        parts = [
            f"{len(self)} samples of shape {self.event}",
            str(self.stored.dtype).removeprefix("torch."),
        ]
        if self.range is not None:
            span = f"on [{self.range[0]:g}, {self.range[1]:g}]"
            parts.append(span if self.bins is None else f"{self.bins} levels {span}")
        if self.label is not None:
            parts.append(f"{self.classes} classes")
        return f"Data({self.name!r}: {', '.join(parts)})"

    @property
    def x(self) -> Tensor:
        """All samples, floating, shape (N, *event); made at each call where levels are stored."""
        return self._floating(self.stored)

    def _floating(self, stored: Tensor) -> Tensor:
        if self.bins is None or _is_float(stored):
            return stored
        return on_range(stored, self.bins)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.stored.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one, or 0 without labels."""
        return 0 if self.label is None else int(self.label.max()) + 1

    def split(self, test: float | int, seed: int) -> tuple[Data, Data]:
        """Parts the samples at random into (train, test), each in its original order.

        Args:
            test: Number of test samples, or their fraction in (0, 1).
            seed: The same seed always gives the same parts.

        Raises:
            TypeError: If `test` is no number, or `seed` no whole one.
            ValueError: If one of the parts would be empty.

        Example:
            >>> train, test = Data(torch.randn(10, 2)).split(0.3, seed=0)
            >>> len(train), len(test)
            (7, 3)
        """
        n, seed = len(self), check_seed(seed)
        fraction = _is_fraction(test)
        test = check_number("test", test) if fraction else check_count("test", test)
        count = round(test * n) if fraction else int(test)
        if not 0 < count < n or (fraction and test >= 1):
            raise ValueError(
                f"test must leave at least one of the {n} samples on either side: a count in "
                f"1 .. {n - 1} or a fraction in (0, 1); got {test}, that is {count} samples"
            )
        order = stream(seed).permutation(n)
        return self._take(np.sort(order[count:]), "train"), self._take(
            np.sort(order[:count]), "test"
        )

    def batches(
        self, batch: int, seed: int, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Serves (x, label) without end; step k depends on (seed, k) alone.

        One random order of all samples follows another, each drawn from (seed, epoch), so
        every sample is seen once per epoch and a training resumed at step k sees what the
        uninterrupted one does.

        Args:
            batch: Samples per step, at most the number there is.
            seed: Of the orders.
            first_step: The step to begin with.

        Raises:
            ValueError: If `batch` is not in 1 .. N, or `first_step` is negative.

        Example:
            >>> data = Data(torch.arange(5.0)[:, None])
            >>> x0, _ = next(data.batches(2, seed=0, first_step=7))
            >>> x0.shape
            torch.Size([2, 1])
        """
        rows = order(len(self), batch, seed, first_step)
        return ((self._floating(x), label) for x, label in map(self._rows, rows))

    def _rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Samples as they are stored, and their labels."""
        index = moved(torch.from_numpy(rows), self.stored.device)
        return self.stored[index], None if self.label is None else self.label[index]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions: "label" or none."""
        return () if self.label is None else ("label",)

    def serve(
        self,
        batch: int,
        seed: int,
        first_step: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """The same batches on a device, as a training reads them: see `Source`.

        Levels are put on [-1, 1] there, so that a quarter of the bytes is copied.

        Args:
            batch: Samples per step, at most the number there is.
            seed: Of the orders.
            first_step: The step to begin with.
            rows: Which rows of each batch.
            device: Where the batches are put.

        Raises:
            ValueError: As for `batches`.

        Example:
            >>> data = Data(torch.zeros(5, 2, dtype=torch.uint8), torch.arange(5), bins=256)
            >>> next(data.serve(4, seed=0, rows=slice(2, 4))).x
            tensor([[-1., -1.],
                    [-1., -1.]])
        """
        orders = order(len(self), batch, seed, first_step, rows)
        place = check_device("device", device)
        return (self._batch(part, place) for part in orders)

    def _batch(self, rows: np.ndarray, device: torch.device | str) -> Batch:
        x, label = self._rows(rows)
        condition = {} if label is None else {"label": moved(label, device)}
        return Batch(self._floating(moved(x, device)), condition)

    def unlabelled(self) -> Data:
        """The same samples without their labels, for a model that takes none."""
        return Data(self.stored, None, self.range, self.bins, self.name, None, self.units)

    def standardised(self) -> Data:
        """The samples with mean 0 and standard deviation 1 in each channel.

            (x - mean_c) / std_c,   c: the first axis of a sample

        The means are kept in `units`, go into the checkpoint of a training, and are undone by
        `unstandardised`; `scoregen sample` undoes them by itself. A range and bins are dropped.

        Raises:
            ValueError: If a channel is constant.

        Example:
            >>> data = Data(100 + 7 * torch.randn(50, 3)).standardised()
            >>> bool(data.x.mean().abs() < 1e-5), data.unstandardised(data.x).mean() > 90
            (True, tensor(True))
        """
        x = self.x
        wide = x.double().transpose(0, 1).flatten(1) if x.dim() > 1 else x.double()[None]
        mean, std = wide.mean(1), wide.std(1, correction=0)
        if not bool((std > 0).all()):
            rows = (std == 0).nonzero().flatten().tolist()
            raise ValueError(f"channels must vary to be standardised, and these do not: {rows}")
        units = Units(tuple(mean.tolist()), tuple(std.tolist()))
        y = units.apply(x.double()).to(x.dtype)
        return Data(y, self.label, None, None, self.name, self.class_names, units)

    def unstandardised(self, x: Tensor) -> Tensor:
        """Samples of shape (N, *event) in the units of the data before `standardised`.

        Args:
            x: Samples of a model trained on these data.
        """
        return x if self.units is None else self.units.restore(x)

    def mean_square(self) -> float:
        """E|x|^2 / d, the mean square of a coordinate."""
        total = sum(float(self._floating(part).double().square().sum()) for part in self._parts())
        return total / self.stored.numel()

    def identity(self) -> str:
        """SHA-256 of the samples and labels as they are stored."""
        total = hashlib.sha256(f"{self.stored.dtype} {tuple(self.stored.shape)}".encode())
        for part in self._parts():
            total.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if self.label is not None:
            total.update(self.label.cpu().contiguous().numpy().data)
        return total.hexdigest()

    def _parts(self) -> tuple[Tensor, ...]:
        """The stored samples, some megabytes at a time."""
        return self.stored.split(max(1, (1 << 20) // max(1, math.prod(self.event))))

    def _take(self, rows: np.ndarray, part: str) -> Data:
        index = torch.from_numpy(rows).to(self.stored.device)
        label = None if self.label is None else self.label[index]
        return Data(
            self.stored[index],
            label,
            self.range,
            self.bins,
            f"{self.name}/{part}",
            self.class_names,
            self.units,
        )


def _is_fraction(test: object) -> bool:
    """Whether a share is meant, as 0.25, and no count; also of NumPy's and torch's numbers."""
    if isinstance(test, Tensor):
        return test.is_floating_point()
    return isinstance(test, float | np.floating)


def _is_float(x: Tensor) -> bool:
    return x.dtype.is_floating_point or x.dtype.is_complex


def _check_x(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a floating tensor, got {got}; put integers on [-1, 1] by "
            "from_levels(x, bins), with bins=256 for 8-bit images"
        )
    _check_size(x)
    bad = ~x.isfinite().reshape(len(x), -1).all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        more = ", ..." if len(rows) > 10 else ""
        raise ValueError(
            f"x must be finite; {len(rows)} of {len(x)} rows hold NaN or infinity: "
            f"{', '.join(map(str, rows[:10]))}{more}; drop or repair them"
        )


def _check_size(x: Tensor) -> None:
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x must hold at least one sample and one value, got {tuple(x.shape)}")


def _check_label(label: Tensor, n: int) -> None:
    if not isinstance(label, Tensor) or label.dtype != torch.int64:
        got = label.dtype if isinstance(label, Tensor) else type(label).__name__
        raise TypeError(f"label must be an int64 tensor, got {got}")
    if label.shape != (n,):
        raise ValueError(f"label must have shape ({n},), one per sample, got {tuple(label.shape)}")
    if bool((label < 0).any()):
        raise ValueError(f"labels must be >= 0, got {int(label.min())}")


def _check_within(x: Tensor, low: float, high: float) -> None:
    if found := beyond(x, low, high):
        raise ValueError(
            f"values must stay in the declared range [{low:g}, {high:g}], got {found[0]} .. "
            f"{found[1]}; 8-bit images are put on [-1, 1] by from_levels(x, bins=256)"
        )


def _check_on_levels(x: Tensor, low: float, high: float, bins: int) -> None:
    # A tenth of a level: wide enough for half precision, narrow enough that 255 levels do
    # not pass for 256.
    level = (x.double() - low) * ((bins - 1) / (high - low))
    off = (level - level.round()).abs().max()
    if float(off) > 0.1:
        raise ValueError(
            f"bins={bins} says that the values stand on {bins} equally spaced levels over "
            f"[{low:g}, {high:g}], but one is {float(off):.2g} of a level away; "
            "leave bins out for continuous data"
        )
