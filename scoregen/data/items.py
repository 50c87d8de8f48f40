"""How the items of a user's dataset are read: x, its levels, and the conditions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_flag, check_kind, check_range, shown
from ..models.conditions import expand, rows
from .arrays import stacked, tensor_of
from .batch import Batch
from .images import MODES, pixels
from .levels import beyond, check_bins, check_levels, on_range

__all__ = ["Items", "Stored"]


class Stored(NamedTuple):
    """Samples as they are stored, levels as whole numbers, with their conditions, on the host.

    Args:
        x: Shape (n, *event).
        condition: Name -> value, one entry per sample.

    Example:
        >>> Stored(torch.zeros(2, 3), {}).x.shape
        torch.Size([2, 3])
    """

    x: Tensor
    condition: dict[str, Any]

    def rows(self, part: slice) -> Stored:
        """Some of the samples."""
        return Stored(self.x[part], rows(self.condition, part, len(self.x)))


@dataclass(frozen=True)
class Items:
    """What an item is: x or (x,) alone, a pair (x, label), or a dict of x and conditions.

    x is a tensor, an array or a PIL image. Whole numbers are levels and need `bins`:

        x = 2 level / (bins - 1) - 1

    Args:
        x: The key of x in items that are dicts.
        conditions: Names of the conditions, or a dict from each name to its key in the items; None
            for every other key (of a pair, for its label), () for none. Labels are whole numbers
            under the name "label".
        bins: Number of levels; None for floats, which are kept as they are.
        range: The interval that floats cannot leave; (-1, 1) for levels.
        classes: Labels are in 0 .. classes - 1; None for those of the network that is trained.
        mode: What PIL images are converted to, as in `load`.
        channels_last: Whether arrays and tensors are (H, W, C); they become (C, H, W), as images
            always do.

    Raises:
        ValueError, TypeError: For arguments that do not fit.

    Example:
        >>> import numpy as np
        >>> items = Items(bins=3, conditions={"label": "digit"})
        >>> items.read([{"x": np.array([0, 2]), "digit": 7, "file": "a.png"}])
        Stored(x=tensor([[0, 2]]), condition={'label': tensor([7])})
    """

    x: str = "x"
    conditions: Mapping[str, str] | Sequence[str] | None = None
    bins: int | None = None
    range: tuple[float, float] | None = None
    classes: int | None = None
    mode: str | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_kind("x", self.x, str, '"image"')
        if self.mode is not None:
            check_choice("mode", self.mode, MODES)
        if self.conditions is not None:
            object.__setattr__(self, "conditions", _keys(self.conditions))
        if self.classes is not None:
            object.__setattr__(self, "classes", check_count("classes", self.classes))
        check_flag("channels_last", self.channels_last)
        if self.bins is not None:
            object.__setattr__(self, "bins", check_bins(self.bins))
            if self.range is not None and check_range("range", self.range) != (-1, 1):
                raise ValueError(f"levels are put on [-1, 1]; leave range={self.range} out")
            object.__setattr__(self, "range", (-1.0, 1.0))
        if self.range is not None:
            object.__setattr__(self, "range", check_range("range", self.range))

    def with_classes(self, classes: int | None) -> Items:
        """The same, with the number of classes where it was not given."""
        return self if self.classes or not classes else replace(self, classes=classes)

    def keys(self, item: Mapping[str, Any]) -> dict[str, str]:
        """Name -> key of the conditions of a dict, and that its keys are there."""
        if self.conditions is None:
            wanted = {name: name for name in item if name != self.x}
        else:
            wanted = dict(self.conditions)  # type: ignore[arg-type]
        missing = [key for key in (self.x, *wanted.values()) if key not in item]
        if missing:
            raise ValueError(
                f"the items must have {missing}, and have {sorted(map(str, item))}: name the "
                "key of the samples by x=, and the wanted conditions by conditions="
            )
        return wanted

    def read(self, items: Sequence[Any]) -> Stored:
        """Some items as one batch, checked."""
        parts = [self._parts(item) for item in items]
        samples = [self._sample(x) for x, _ in parts]
        condition = stacked([condition for _, condition in parts], "item")
        return self._checked(stacked(samples, self.x), condition)

    def read_batch(self, batch: Any) -> Stored:
        """A batch that was put together elsewhere, checked.

        Args:
            batch: As an item, with every part one entry per sample.
        """
        x, condition = self._parts(batch)
        if isinstance(x, list):
            x = stacked([self._sample(sample) for sample in x], self.x)
        else:
            x = self._channels(tensor_of(x, self.x), 1)
        ready = {
            name: value if _strings(value) else _gathered(value, name)
            for name, value in condition.items()
        }
        return self._checked(x, ready)

    def serve(self, stored: Stored, device: torch.device) -> Batch:
        """The batch on a device, where levels are put on [-1, 1]: a quarter of the bytes moves."""
        x = stored.x.to(device, non_blocking=stored.x.is_pinned())
        condition = expand(stored.condition, len(x), device)
        return Batch(x if self.bins is None else on_range(x, self.bins), condition)

    def _parts(self, item: Any) -> tuple[Any, dict[str, Any]]:
        if isinstance(item, Mapping):
            keys = self.keys(item)
            return item[self.x], {name: item[key] for name, key in keys.items()}
        if isinstance(item, tuple | list) and len(item) == 1:
            (item,) = item  # x alone, as torch's TensorDataset(x) gives it
        elif isinstance(item, tuple | list):
            if len(item) != 2:
                raise ValueError(
                    f"items must be x, (x,), a pair (x, label) or a dict, got {len(item)} parts; "
                    "return a dict of x and the conditions by name"
                )
            names = ["label"] if self.conditions is None else list(self.conditions)
            self._only_labels(names)
            return item[0], dict.fromkeys(names, item[1])
        self._only_labels(names := list(self.conditions or ()))
        if names:
            raise ValueError(f"the items hold x alone, and conditions={names} are wanted")
        return item, {}

    def _only_labels(self, names: list[str]) -> None:
        if names not in ([], ["label"]):
            raise ValueError(f"conditions {names} need items that are dicts")

    def _sample(self, value: Any) -> Tensor:
        image = sys.modules.get("PIL.Image")  # a PIL image exists only where PIL is imported
        if image is not None and isinstance(value, image.Image):
            levels = tensor_of(pixels(value, self.mode, "an item"), self.x)
            return levels[None] if levels.dim() == 2 else levels.movedim(2, 0)
        return self._channels(tensor_of(value, self.x), 0)

    def _channels(self, x: Tensor, first: int) -> Tensor:
        """The last axis moved to `first`, if it holds the channels."""
        if not self.channels_last:
            return x
        if x.dim() != first + 3:
            raise ValueError(f"channels_last is for images (H, W, C), got {tuple(x.shape)[first:]}")
        return x.movedim(-1, first)

    def _checked(self, x: Tensor, condition: dict[str, Any]) -> Stored:
        floating = x.is_floating_point()
        if self.bins is None:
            if not floating:
                raise TypeError(
                    f"the samples are {x.dtype}, which says nothing of their scale: declare "
                    "bins=256 for 8-bit images, or return floats"
                )
            if not bool(x.isfinite().all()):
                raise ValueError("the samples must be finite, got NaN or infinity")
            if self.range is not None and (found := beyond(x, *self.range)):
                raise ValueError(
                    f"values must stay in the declared range {self.range}, got {found[0]:g} .. "
                    f"{found[1]:g}"
                )
        elif floating:
            raise TypeError(
                f"bins={self.bins} is for whole numbers, and the samples are {x.dtype}; return "
                "the levels themselves, without a transform to floats"
            )
        else:
            check_levels(x, self.bins)
        if "label" in condition:
            condition = {**condition, "label": self._label(condition["label"])}
        return Stored(x.contiguous(), condition)

    def _label(self, label: Any) -> Tensor:
        if not isinstance(label, Tensor) or label.is_floating_point() or label.dtype == torch.bool:
            got = label.dtype if isinstance(label, Tensor) else "other things"
            raise TypeError(f"labels must be whole numbers, got {got}; name them otherwise")
        if label.dim() != 1:
            raise ValueError(f"a label must be one number, got shape {tuple(label.shape[1:])}")
        low, high = int(label.min()), int(label.max())
        if low < 0 or (self.classes is not None and high >= self.classes):
            most = "" if self.classes is None else f" .. {self.classes - 1}"
            raise ValueError(f"labels must lie in 0{most}, got {low} .. {high}")
        return label.to(torch.int64)


def _keys(conditions: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Name -> key, also of names alone."""
    pairs = conditions
    if isinstance(conditions, list | tuple):
        pairs = dict(zip(conditions, conditions, strict=True))
    if isinstance(pairs, Mapping) and all(isinstance(v, str) for p in pairs.items() for v in p):
        return dict(pairs)
    raise TypeError(
        'conditions must be names, such as ("label",), or a dict of names and keys, such as '
        f'{{"label": "digit"}}; got {shown(conditions)}'
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _gathered(value: Any, name: str) -> Any:
    """A condition of a whole batch: dicts and tuples of tensors and lists of strings."""
    if isinstance(value, Mapping):
        return {key: _gathered(v, f"{name}.{key}") for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_gathered(v, f"{name}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list) and not _strings(value):
        return stacked(value, name)
    return value if _strings(value) else tensor_of(value, name)


class ItemSource:
    """What sources of a user's items have in common.

    Args:
        items: How they are read.
        name: What tables and checkpoints call the data.
        declared: What stands for their content; None where nothing does.
    """

    units = None
    conditions: tuple[str, ...]

    def __init__(self, items: Items, name: str, declared: str | None) -> None:
        check_kind("name", name, str, '"faces"')
        if declared is not None:
            check_kind("identity", declared, str, '"faces, version 1"')
            if not declared:
                raise ValueError("identity must not be empty: leave it out, or name the data")
        self.items, self.name, self.declared = items, name, declared

    @property
    def range(self) -> tuple[float, float] | None:
        """The interval the values cannot leave, if there is one."""
        return self.items.range

    @property
    def bins(self) -> int | None:
        """The number of levels; None for continuous data."""
        return self.items.bins

    @property
    def classes(self) -> int:
        """Number of classes as declared; 0 without labels, or where it is the network's."""
        return (self.items.classes or 0) if "label" in self.conditions else 0

    def with_classes(self, classes: int | None) -> Self:
        """The same source, its labels checked against a number of classes, if none was given."""
        other = copy(self)
        other.items = self.items.with_classes(classes)
        return other

    def mean_square(self) -> None:
        """Not known before the samples are read."""
