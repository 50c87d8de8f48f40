"""Conditions of any nested structure: which parts belong to a sample, and taking rows of them.

Mappings and tuples are structure, and so are lists of tensors or of structures. Leaves are

    a tensor (batch, ...)               one entry per sample
    a tensor (1, ...) or ()             shared by the batch
    a list of strings or numbers        one item per sample, or one item shared by the batch
    a string, a number, None            shared by the batch
    Shared(anything)                    shared by the batch, whatever its shape

Any other leading axis is refused where a part of the batch is taken, and so are other objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Number
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_kind, shown
from .._rows import moved

__all__ = ["Shared", "expand", "fill", "join", "named", "plain", "rows"]

Rows = slice | Tensor


@dataclass(frozen=True, eq=False)
class Shared:
    """A condition that all samples share, whatever its shape; the network sees the value itself.

    Args:
        value: a tensor without a batch axis, or anything else.

    >>> text = torch.zeros(77, 8)  # one embedding for all, without a leading axis of 1
    >>> rows({"text": Shared(text)}, slice(0, 2), batch=77)["text"].value.shape
    torch.Size([77, 8])
    """

    value: Any


def _listed(value: object) -> bool:
    """A list of strings or numbers: one item per sample."""
    return isinstance(value, list) and all(isinstance(v, str | Number) for v in value)


def mapped(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same structure with every leaf replaced; the very object where no leaf changes."""
    if isinstance(tree, Mapping):
        full = {name: mapped(value, leaf) for name, value in tree.items()}
        return tree if all(full[name] is value for name, value in tree.items()) else full
    if isinstance(tree, tuple) or (isinstance(tree, list) and not _listed(tree)):
        items = [mapped(value, leaf) for value in tree]
        same = all(new is old for new, old in zip(items, tree, strict=True))
        return tree if same else _like(tree, items)
    return leaf(tree)


def _like(sequence: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """The items as a list, a tuple or a named tuple, as the sequence is."""
    if isinstance(sequence, list):
        return items
    return type(sequence)(*items) if hasattr(sequence, "_fields") else tuple(items)


def named(condition: object) -> dict[str, Any]:
    """Keyword arguments of a model by their names; none for None.

    Raises:
        TypeError: for anything but a mapping, and for a name that is no string.

    >>> named(None), named({"label": 3})
    ({}, {'label': 3})
    """
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        raise TypeError(
            f"condition must map names to values, such as {{'label': 3}}; got {shown(condition)}"
        )
    for name in condition:
        check_kind("the name of a condition", name, str, "'label'")
    return dict(condition)


def plain(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The condition as the network sees it, without `Shared`.

    >>> plain({"scale": Shared(2.0)})
    {'scale': 2.0}
    """
    return {name: mapped(value, _unmarked) for name, value in condition.items()}


def _unmarked(value: Any) -> Any:
    return value.value if isinstance(value, Shared) else value


def expand(condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Any]:
    """The condition on a device; a whole number becomes one label per sample.

    >>> expand({"label": 3}, 2, torch.device("cpu"))
    {'label': tensor([3, 3])}
    """

    def moved(value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(mapped(value.value, moved))
        return value.to(device) if isinstance(value, Tensor) else value

    full: dict[str, Any] = {}
    for name, value in condition.items():
        if isinstance(value, Integral) and not isinstance(value, bool):
            full[name] = torch.full((batch,), int(value), dtype=torch.long, device=device)
        else:
            full[name] = mapped(value, moved)
    return full


def rows(condition: Mapping[str, Any], part: Rows, batch: int) -> dict[str, Any]:
    """The condition of some rows of a batch.

    Args:
        condition: name -> value of any nested structure.
        part: a slice, or whole numbers of shape (n,), which may repeat.
        batch: of how many samples it is the condition.

    Raises:
        ValueError: for a leaf that is neither one per sample nor one for all.
        TypeError: for a leaf that is none of those listed above.

    >>> rows({"label": torch.arange(4), "text": ["a", "b", "c", "d"]}, slice(2, 4), batch=4)
    {'label': tensor([2, 3]), 'text': ['c', 'd']}
    """
    return {name: _rows_of(name, value, part, batch) for name, value in condition.items()}


def _rows_of(name: str, tree: Any, part: Rows, batch: int) -> Any:
    def taken(value: Any) -> Any:
        if isinstance(value, Shared | str | Number) or value is None:
            return value
        if isinstance(value, Tensor):
            if not value.dim():
                return value
        elif not _listed(value):
            raise TypeError(
                f"the condition {name} holds {type(value).__name__}, whose rows are not known; "
                "use tensors, strings and numbers in dicts, lists and tuples, or mark it as one "
                "for all samples with models.Shared(value)"
            )
        if len(value) == batch:
            return select(value, part)
        if len(value) == 1 or (isinstance(value, list) and not value):
            return value
        shape = tuple(value.shape) if isinstance(value, Tensor) else f"a list of {len(value)}"
        raise ValueError(
            f"the condition {name} must hold one entry per sample ({batch} on its first axis) or "
            f"one for all (1 on its first axis), got {shape}; mark what all samples share with "
            "models.Shared(value)"
        )

    return mapped(tree, taken)


def select(value: Any, part: Rows) -> Any:
    """Some rows of a tensor or a list."""
    if isinstance(value, Tensor):
        return value[part] if isinstance(part, slice) else value[moved(part, value.device)]
    return value[part] if isinstance(part, slice) else [value[i] for i in part.tolist()]


class Kept(NamedTuple):
    """Which rows of a larger batch are at hand, and how many it has."""

    rows: Tensor
    batch: int


def kept(before: Kept | None, part: Rows, batch: int) -> Kept:
    """The rows `part` of a batch that may itself be rows of a larger one."""
    index = torch.arange(batch)[part]
    if before is None:
        return Kept(index, batch)
    return Kept(before.rows[index], before.batch)


def fill(null: Any, like: Any, name: str, among: Kept | None = None) -> Any:
    """The null value in the form of a condition, wherever the condition's structure has it.

    A number fills a tensor's shape; a tensor with fewer axes is expanded to it; a tensor with as
    many stands as it is, so negatives may be per sample and of another length. A string stands
    for every item of a list. Where the condition is marked `Shared`, so is its null.

    Args:
        null: the null value.
        like: the condition, of the rows at hand.
        name: of the condition, for messages.
        among: the rows at hand, where the null was given for a larger batch.

    Raises:
        TypeError: for a null of another dtype than whole-numbered labels.
        ValueError: for a tensor that does not expand.

    >>> fill(7, torch.tensor([0, 1]), "label")
    tensor([7, 7])
    """
    if isinstance(like, Shared):
        return Shared(fill(_unmarked(null), like.value, name))
    if isinstance(null, Shared):
        return null
    if isinstance(null, Mapping) and isinstance(like, Mapping):
        missing = [key for key in like if key not in null]
        if missing:
            raise TypeError(f"the null of {name} lacks {missing}, which the condition holds")
        return {
            key: fill(value, like[key], f"{name}.{key}", among) if key in like else value
            for key, value in null.items()
        }
    if (
        isinstance(null, list | tuple)
        and isinstance(like, list | tuple)
        and not _listed(like)
        and len(null) == len(like)
    ):
        pairs = enumerate(zip(null, like, strict=True))
        return _like(like, [fill(n, v, f"{name}[{i}]", among) for i, (n, v) in pairs])
    if _listed(like) and isinstance(null, str | Number):
        return [null] * len(like)
    if not isinstance(like, Tensor) or not isinstance(null, Tensor | Number):
        return null if among is None else _rows_of(f"{name} (its null)", null, *among)
    if torch.as_tensor(null).is_floating_point() and not like.is_floating_point():
        raise TypeError(f"the null of {name} must be whole-numbered like its labels, got {null!r}")
    if isinstance(null, Tensor):
        whole = moved(null, like.device).to(like.dtype)
    else:  # filled in on the device: a copy of the number would make the host wait
        number: Any = null
        whole = like.new_full((), number)
    if whole.dim() and whole.dim() >= like.dim():
        return whole if among is None else _rows_of(f"{name} (its null)", whole, *among)
    try:
        return whole.expand_as(like)
    except RuntimeError as error:
        raise ValueError(
            f"the null of {name}, of shape {tuple(whole.shape)}, does not expand to the "
            f"condition's {tuple(like.shape)}; give it a batch axis"
        ) from error


def join(first: Mapping[str, Any], second: Mapping[str, Any], batch: int) -> dict[str, Any] | None:
    """Two conditions of `batch` samples each as one of twice as many; None if they do not fit.

    >>> join({"label": torch.tensor([1, 2])}, {"label": torch.tensor([9, 9])}, 2)
    {'label': tensor([1, 2, 9, 9])}
    """
    try:
        return {name: _joined(first[name], second[name], batch) for name in first}
    except _Apart:
        return None


class _Apart(Exception):
    """Two leaves that cannot be parts of one batch."""


def _joined(a: Any, b: Any, batch: int) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dim() and b.dim() and {len(a), len(b)} <= {1, batch} and a.shape[1:] == b.shape[1:]:
            wide = [v.expand(batch, *v.shape[1:]) for v in (a, b)]
            if wide[0].dtype == wide[1].dtype:
                return torch.cat(wide)
        raise _Apart
    if isinstance(a, Shared) and a is b:
        return a
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return {name: _joined(a[name], b[name], batch) for name in a}
    if _listed(a) and _listed(b) and len(a) == len(b) == batch:
        return a + b
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b) and not _listed(a):
        return _like(a, [_joined(v, w, batch) for v, w in zip(a, b, strict=True)])
    if (a is None and b is None) or (isinstance(a, str | Number) and a == b):
        return a
    raise _Apart
