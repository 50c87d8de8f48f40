"""Numbers of any origin as tensors, and many of them as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["stacked", "tensor_of"]


def tensor_of(value: Any, name: str) -> Tensor:
    """Numbers as a tensor of their own type: floats of Python are float32, integers int64.

    Args:
        value: A tensor, an array, a number, or a list of numbers.
        name: For the message.

    Raises:
        TypeError: For anything else.

    Example:
        >>> tensor_of(np.array([1, 2], dtype=">i2"), "x")
        tensor([1, 2], dtype=torch.int16)
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=torch.float32 if isinstance(value, float) else None)
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        whole = all(isinstance(v, int) for v in value)
        return torch.tensor(value, dtype=None if whole else torch.float32)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        # Torch knows little of 16 to 64 unsigned bits, and nothing of a foreign byte order.
        wide = value.dtype.kind == "u" and value.dtype.itemsize > 1
        native = value.astype(np.int64 if wide else value.dtype.newbyteorder("="))
        return torch.from_numpy(np.ascontiguousarray(native).reshape(value.shape))
    got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise TypeError(f"{name} must hold numbers, got {got}")


def stacked(values: Sequence[Any], name: str) -> Any:
    """One entry per sample, gathered: tensors with a new first axis, within the same structure.

    Args:
        values: Of the samples: numbers, arrays, tensors, strings, and dicts and tuples of them.
        name: For the message.

    Raises:
        TypeError: For other things.
        ValueError: If the samples differ in shape, type or structure.

    Example:
        >>> stacked([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "item")
        {'a': tensor([1, 2]), 'b': ['x', 'y']}
    """
    first = values[0]
    if isinstance(first, str):
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} must be a string in every sample or in none")
        return list(values)
    if isinstance(first, Mapping):
        if any(not isinstance(v, Mapping) or v.keys() != first.keys() for v in values):
            raise ValueError(f"{name} must have the same keys in every sample: {list(first)}")
        return {key: stacked([v[key] for v in values], f"{name}.{key}") for key in first}
    if isinstance(first, tuple):
        if any(not isinstance(v, tuple) or len(v) != len(first) for v in values):
            raise ValueError(f"{name} must have {len(first)} parts in every sample")
        return tuple(
            stacked(list(part), f"{name}[{i}]") for i, part in enumerate(zip(*values, strict=True))
        )
    tensors = [tensor_of(value, name) for value in values]
    for tensor in tensors:
        if tensor.shape != tensors[0].shape or tensor.dtype != tensors[0].dtype:
            raise ValueError(
                f"{name} must agree in shape and type over the samples: "
                f"{tuple(tensors[0].shape)} and {tensors[0].dtype}, "
                f"{tuple(tensor.shape)} and {tensor.dtype}"
            )
    return torch.stack(tensors)
