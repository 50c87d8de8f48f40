"""A device without values: reading one, copying to the host or making float64 fails on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten


class WaitedError(AssertionError):
    """An operation that waits for the device, or that a device without float64 cannot make."""


class NoSync(TorchDispatchMode):
    """Fails where the host would wait for a tensor of `DEVICE`, and where float64 is made on it.

    The meta device holds shapes and no values: what runs on it needs no value on the host. It
    stands for a device that is slow to answer (CUDA) and for one without float64 (MPS).
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        if any(v.device == DEVICE for v in given) and _waits(func, given, kwargs or {}):
            raise WaitedError(f"{func} waits for the device")
        made = func(*args, **(kwargs or {}))
        if any(v.device == DEVICE and v.dtype == torch.float64 for v in _tensors(made)):
            raise WaitedError(f"{func} makes float64 on the device")
        return made


def _tensors(tree: Any) -> list[Tensor]:
    return [v for v in tree_leaves(tree) if isinstance(v, Tensor)]


def _waits(func: Any, given: list[Tensor], options: dict[str, Any]) -> bool:
    if func is _ATEN._to_copy.default:
        return options.get("device", DEVICE) != DEVICE
    if func is _ATEN.copy_.default:
        return given[0].device != DEVICE
    if func is _ATEN.index.Tensor:
        return any(v.dtype in (torch.bool, torch.uint8) for v in given[1:])
    if func is _ATEN.index_put_.default:  # of one number it is a masked fill
        *places, values = given[1:]
        masks = any(v.dtype in (torch.bool, torch.uint8) for v in places)
        return masks and values.numel() > 1
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
